"""Taking a connection out of a pool of the application's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.drivers.asyncpg.failures import PoolClosed

__all__ = ["borrow"]

if TYPE_CHECKING:
    Pool = asyncpg.Pool[Any]


async def borrow(pool: Pool, node: str, timeout: float | None = None) -> Any:
    """Check a connection out, within *timeout* seconds; None: the caller bounds it.

    Raises `PoolClosed` if the application has closed the pool, or does so meanwhile; else what asyncpg raises.
    """
    try:
        return await pool.acquire(timeout=timeout)
    except asyncpg.InterfaceError as error:
        if not pool.is_closing():
            raise
        raise PoolClosed(f"the application has closed its pool of {node}") from error
