"""Taking a connection out of a pool of the application's, and giving it back."""

from __future__ import annotations

import asyncio
import contextlib
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.drivers.asyncpg.failures import PoolClosed
from dbguard.drivers.asyncpg.lease import RETURN_WITHIN

__all__ = ["Borrowed", "Lender", "borrow", "refused"]

if TYPE_CHECKING:
    Pool = asyncpg.Pool[Any]


class Borrowed:
    """A connection of the application's pool, which can still be asked whether it is closed when it has left the pool.

    asyncpg takes a connection out of its pool the moment it is lost or terminated; its proxy then raises
    `InterfaceError` whatever it is asked. What each call asks is passed on without the detour by `__getattr__`, which
    costs eight times as much.
    """

    __slots__ = ("lent",)

    execute = property(attrgetter("lent.execute"))
    fetch = property(attrgetter("lent.fetch"))
    fetchrow = property(attrgetter("lent.fetchrow"))
    fetchval = property(attrgetter("lent.fetchval"))
    is_in_transaction = property(attrgetter("lent.is_in_transaction"))

    def __init__(self, lent: Any) -> None:
        self.lent = lent

    def is_closed(self) -> bool:
        """Whether it is closed, or has left its pool."""
        try:
            closed: bool = self.lent.is_closed()
            return closed  # noqa: TRY300  on the way of every call
        except asyncpg.InterfaceError:
            return True

    def terminate(self) -> None:
        """Terminate it, unless it is gone."""
        with contextlib.suppress(asyncpg.InterfaceError):
            self.lent.terminate()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lent, name)


class Lender:
    """Connections for claims, out of a pool of the application's: borrowed for one claim, and given back after it.

    asyncpg's public API does not tell how a pool connects, so that nothing can be dialled beside it.
    """

    def __init__(self, pool: Pool, node: str) -> None:
        self._pool = pool
        self._node = node
        self._returns: set[asyncio.Task[None]] = set()

    async def dial(self, *, timeout: float) -> Borrowed:
        """Borrow a connection; the pool dials if it has none. Raises TimeoutError if none is free in time."""
        return Borrowed(await borrow(self._pool, self._node, timeout))

    def give(self, con: Borrowed) -> None:
        """Give it back, in the background; one that was terminated, too."""
        task = asyncio.ensure_future(self._give(con))
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def _give(self, con: Borrowed) -> None:
        if con.is_closed():
            con.terminate()  # so that asyncpg is done with it, its listeners included
        with contextlib.suppress(Exception):  # asyncpg has terminated it
            await self._pool.release(con.lent, timeout=RETURN_WITHIN)


async def borrow(pool: Pool, node: str, timeout: float | None = None) -> Any:
    """Check a connection out, within *timeout* seconds; None: the caller bounds it.

    Raises `PoolClosed` if the application has closed the pool, does so meanwhile, or has not opened it; else what asyncpg
    raises.
    """
    try:
        return await pool.acquire(timeout=timeout)
    except asyncpg.InterfaceError as error:
        closed = refused(pool, node, error)
        if closed is None:
            raise
        raise closed from error


def refused(pool: Pool, node: str, error: asyncpg.InterfaceError) -> PoolClosed | None:
    """Return what to raise for a checkout that *error* has ended, where there is no use in another one; else None."""
    if "not initialized" in str(error):  # asyncpg has no other word for it
        return PoolClosed(f"the pool of {node} is not open: await asyncpg.create_pool(...) before the guard")
    if not pool.is_closing():
        return None
    return PoolClosed(f"the application has closed its pool of {node}")
