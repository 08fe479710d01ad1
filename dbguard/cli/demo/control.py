"""The control: asyncpg's own pool, as an application without dbguard would open it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg

__all__ = ["plain_pool"]


def plain_pool(dsn: str, size: int) -> asyncpg.Pool[Any]:
    """Make a pool that looks for the primary among the hosts of *dsn* at each connect; to be opened by ``async with``.

    size: connections at most.
    """
    import asyncpg  # noqa: PLC0415  loaded with the demo, not with the command line

    # What it says of the failover would be written across the view; what its clients get is counted.
    logging.getLogger("asyncpg").addHandler(logging.NullHandler())
    return asyncpg.create_pool(
        dsn + "?target_session_attrs=read-write", min_size=2, max_size=size, timeout=5, command_timeout=30
    )
