"""Ctrl-C and SIGTERM while something is broken: the first heals, another one ends at once.

Left to Python and asyncio, the second interrupts the healing at any point and waits for its threads all the same, while
asyncio reports each task that it gave up. So the second ends the process itself: the servers and their files are cleared
by the watchdogs of their sandboxes, as after a SIGKILL (`dbguard.testing.processes`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from chaos.table import INTERRUPTED
from dbguard.cli import running

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType, TracebackType
    from typing import Self

    from chaos.progress import Progress

__all__ = ["CtrlC"]

_SAME = (
    0.2  # seconds in which it is the same Ctrl-C again, which programs such as `timeout` pass on to who has it already
)
_FIRST = "interrupted: healing what is broken and stopping the servers; Ctrl-C again ends at once, without healing"
_SECOND = (
    b"ended at once: what was broken is not healed; the servers may run on for some 10 seconds, until their watchdogs have"
    b" ended them and removed their files; no table, document or page was written\n"
)

T = TypeVar("T")


class CtrlC:
    """What the signals do while this context manager is entered, in the main thread.

    The first raises KeyboardInterrupt, or cancels what `run` runs. The second ends the process with the exit code 130,
    whatever it is at.

    progress: where the first is told; the second is told on standard error.
    now: the time in seconds. leave: ends the process with an exit code, at once.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        now: Callable[[], float] = time.monotonic,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._progress = progress
        self._now = now
        self._leave = leave
        self._first: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Self:
        self._before = [(number, signal.signal(number, self._signal)) for number in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in a loop of its own. Raises KeyboardInterrupt once it has ended, if it was interrupted.

        What *work* itself raises then, as it could not heal, goes on.
        """

        async def cancellable() -> T:
            self._task = asyncio.current_task()
            return await work

        try:
            result = running.run(cancellable())
        except asyncio.CancelledError:
            if not self.heard:
                raise
            raise KeyboardInterrupt from None
        finally:
            self._task = None
        if self.heard:  # in its last moment, when there was nothing to cancel
            raise KeyboardInterrupt
        return result

    @property
    def heard(self) -> bool:
        """Whether the first has come."""
        return self._first is not None

    def _signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  what a handler is called with
        if self._first is not None:
            if self._now() - self._first > _SAME:
                self._end()
            return
        self._first = self._now()
        # by a thread: the main one may be in the middle of a line
        threading.Thread(target=self._progress.warn, args=(_FIRST,), daemon=True).start()
        if self._task is None:
            raise KeyboardInterrupt
        if not self._task.done():
            self._task.get_loop().call_soon_threadsafe(_cancel, self._task)

    def _end(self) -> None:
        try:
            self._progress.let_go()
            os.write(2, _SECOND)
        finally:
            self._leave(INTERRUPTED)


def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel it. What drivers leave unheard of those that are given up in the middle of a statement is nobody's concern."""
    task.get_loop().set_exception_handler(lambda _loop, _context: None)
    task.cancel()
