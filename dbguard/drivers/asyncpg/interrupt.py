"""Interrupting what feeds the server: executemany, fetchmany and COPY.

Where the server does not read on, asyncpg waits to be allowed to write. There a cancellation is swallowed (`executemany`
goes on to await the answer) and `terminate()` wakes nobody. So an interruption is met between the two: the connection is
terminated first, and then the driver hears of it; whatever it makes of it, the interruption goes on.
"""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["interruptible"]


@types.coroutine
def interruptible(con: Any, work: Any) -> Generator[Any, Any, Any]:
    """Await *work*, the coroutine of a call on *con*; a cancellation ends the connection before the driver hears of it."""
    error: BaseException | None = None
    cancelled: asyncio.CancelledError | None = None
    try:
        while True:
            try:
                waits_for = work.send(None) if error is None else work.throw(error)
            except StopIteration as end:
                if cancelled is None:
                    return end.value
                raise cancelled from None
            except Exception as raised:
                if cancelled is None:
                    raise
                raise cancelled from raised
            try:
                yield waits_for
                error = None
            except asyncio.CancelledError as raised:
                con.terminate()
                error = cancelled = raised
            except Exception as raised:  # noqa: BLE001  what it waited for has failed: the driver's to handle
                error = raised
    finally:
        work.close()
