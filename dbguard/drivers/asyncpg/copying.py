"""COPY with paths: opened and closed here, because asyncpg awaits between an interruption and its caller.

It closes a path it has opened in a thread and waits for that; meanwhile its cancel request goes out, and the caller
cannot `terminate` first. So asyncpg is handed open files alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["opened"]

_MODES = (("source", "rb"), ("output", "wb"))


@contextlib.asynccontextmanager
async def opened(extra: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Give the arguments of a COPY with its path, if it names one, as an open file.

    Nothing is awaited at the end. Raises `OSError` if the file cannot be opened.
    """
    for word, mode in _MODES:
        path = extra.get(word)
        if isinstance(path, str | bytes | os.PathLike):
            file = await _open(path, mode)
            try:
                yield {**extra, word: file}
            except BaseException:
                # In a thread, which may wait for another one that still reads or writes, and not awaited.
                asyncio.get_running_loop().run_in_executor(None, _close, file)
                raise
            file.close()
            return
    yield extra


async def _open(path: Any, mode: str) -> IO[bytes]:
    opening = asyncio.get_running_loop().run_in_executor(None, open, path, mode)
    try:
        file: IO[bytes] = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_discard)
        raise
    return file


def _discard(opening: asyncio.Future[IO[bytes]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        file.close()
