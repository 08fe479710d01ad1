"""COPY with paths and sources of the application's.

A path is opened and closed here, because asyncpg awaits between an interruption and its caller: it closes a path it has
opened in a thread and waits for that; meanwhile its cancel request goes out, and the caller cannot `terminate` first. So
asyncpg is handed open files alone. Opening may take for ever (a FIFO that nobody writes to): it is done in a thread of its
own, which nobody waits for longer than the call has time; not in the loop's default executor, whose threads the end of
`asyncio.run` waits for.

A COPY to the server whose own source is interrupted leaves "Future exception was never retrieved" in asyncio's log, with
asyncpg's `ConnectionDoesNotExistError`: asyncpg wants to tell the server before it takes in the answer that it waits for,
and has nothing to write to any more, since the connection is terminated first, so that no cancel request is sent. The error
reaches the caller all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import IO, TYPE_CHECKING, Any

from dbguard.drivers.asyncpg.failures import dress
from dbguard.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["opened"]

_MODES = (("source", "rb"), ("output", "wb"))


@contextlib.asynccontextmanager
async def opened(extra: dict[str, Any], within: float) -> AsyncIterator[dict[str, Any]]:
    """Give the arguments of a COPY with its path, if it names one, as an open file.

    within: seconds that opening it may take. Nothing is awaited at the end. Raises `OSError` if the file cannot be opened;
    `DeadlineExceeded`, which is one, if not in time.
    """
    for word, mode in _MODES:
        path = extra.get(word)
        if isinstance(path, str | bytes | os.PathLike):
            file = await _open(path, mode, within)
            try:
                yield {**extra, word: file}
            except BaseException:
                # In a thread, which may wait for another one that still reads or writes, and not awaited.
                asyncio.get_running_loop().run_in_executor(None, _close, file)
                raise
            file.close()
            return
    yield extra


async def _open(path: Any, mode: str, within: float) -> IO[bytes]:
    loop = asyncio.get_running_loop()
    opening: asyncio.Future[IO[bytes]] = loop.create_future()
    threading.Thread(target=_opens, args=(loop, opening, path, mode), name="dbguard open", daemon=True).start()
    try:
        await asyncio.wait({opening}, timeout=max(0.0, within))
        if opening.done():
            return opening.result()
    except asyncio.CancelledError:
        opening.add_done_callback(_discard)
        raise
    opening.add_done_callback(_discard)
    raise dress(DeadlineExceeded(f"{path!r} was not opened within {within:.3g} s; nothing was copied"))


def _opens(loop: asyncio.AbstractEventLoop, opening: asyncio.Future[IO[bytes]], path: Any, mode: str) -> None:
    """Open *path* in a thread of its own, and tell the loop."""
    said: IO[bytes] | Exception
    try:
        said = open(path, mode)  # noqa: PTH123, SIM115  a path may be bytes; handed to who waits
    except Exception as error:  # noqa: BLE001  same
        said = error
    try:
        loop.call_soon_threadsafe(_tell, opening, said)
    except RuntimeError:  # the loop has been closed meanwhile: nobody waits any more
        if not isinstance(said, Exception):
            _close(said)


def _tell(opening: asyncio.Future[IO[bytes]], said: IO[bytes] | Exception) -> None:
    if isinstance(said, Exception):
        opening.set_exception(said)
    else:
        opening.set_result(said)


def _discard(opening: asyncio.Future[IO[bytes]]) -> None:
    if opening.exception() is None:
        _close(opening.result())


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        file.close()
