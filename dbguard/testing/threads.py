"""What blocks, done from a coroutine whose loop must go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(work: Callable[[], T], threads: Executor | None = None) -> T:
    """Do *work* in a thread, and return what it returns. A cancellation waits for its end: it cannot be stopped halfway.

    threads: where. Default: those of the loop.
    """
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
