"""Interrupting what a driver awaits: the connection ends before the driver hears of a cancellation.

Drivers answer a cancellation in ways of their own. asyncpg swallows it where the server does not read on (`executemany`
goes on to await the answer). psycopg asks the server to cancel, and waits for that up to ten seconds, which would end a
wait for a standby, too. So an interruption is met between the two: the connection is ended first, and then the driver
hears of it; whatever it makes of it, the interruption goes on.
"""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["met"]


@types.coroutine
def met(end: Callable[[], object], work: Any) -> Generator[Any, Any, Any]:
    """Await *work*, the coroutine of a call; a cancellation calls *end* before the driver hears of it."""
    error: BaseException | None = None
    cancelled: asyncio.CancelledError | None = None
    try:
        while True:
            try:
                waits_for = work.send(None) if error is None else work.throw(error)
            except StopIteration as done:
                if cancelled is None:
                    return done.value
                raise cancelled from None
            except Exception as raised:
                if cancelled is None:
                    raise
                raise cancelled from raised
            try:
                yield waits_for
                error = None
            except asyncio.CancelledError as raised:
                end()
                error = cancelled = raised
            except Exception as raised:  # noqa: BLE001  what it waited for has failed: the driver's to handle
                error = raised
    finally:
        work.close()
