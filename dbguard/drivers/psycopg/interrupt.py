"""Interrupting what runs on an asynchronous connection of psycopg's.

psycopg answers a cancellation with a request to the server to cancel, and waits for what comes of it: in a black hole five
to ten seconds. It does neither for a connection that is finished already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.drivers.interrupt import met

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import psycopg

__all__ = ["interruptible"]


def interruptible(con: psycopg.AsyncConnection[Any], work: Any) -> Awaitable[Any]:
    """Await *work*, the coroutine of a call on *con*; a cancellation finishes it before psycopg hears of that.

    The connection's socket is closed then, without a wait.
    """
    return met(con.pgconn.finish, work)
