"""Interrupting what feeds the server: executemany, fetchmany and COPY.

Where the server does not read on, asyncpg waits to be allowed to write, and there `terminate()` alone wakes nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.drivers.interrupt import met

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["interruptible"]


def interruptible(con: Any, work: Any) -> Awaitable[Any]:
    """Await *work*, the coroutine of a call on *con*; a cancellation ends the connection before the driver hears of it."""
    return met(con.terminate, work)
