"""The home of a guard for threads: an event loop in one daemon thread, on which all runs that is nobody's call."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from dbguard import forked
from dbguard.errors import GuardClosed
from dbguard.runtime.colour import Threads

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Home"]

T = TypeVar("T")

STOP_WITHIN = 5.0
"""Seconds that the thread may take to end, once nothing is left to be done there."""


class Home:
    """A loop that runs until it is stopped. colour: of the calls that are made beside it."""

    colour: Threads

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="dbguard", daemon=True)
        self._over = ""
        self._thread.start()
        assert self._thread.ident is not None  # noqa: S101  it was started
        self.colour = Threads(self._loop, self._thread.ident)
        forked.watch(self)

    @property
    def over(self) -> bool:
        """Whether nothing runs there any more."""
        return bool(self._over)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for *work*, which runs there. Raises what it raises; `GuardClosed` if nothing runs there any more."""
        if self._over:
            work.close()
            raise GuardClosed(self._over)
        return self.colour.ask(work)

    def stop(self) -> None:
        """End the loop and its thread. Nothing happens the second time."""
        if self._over:
            return
        self._over = "the guard was closed"
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_WITHIN)

    def forked(self) -> None:
        """Note, in a child of the process, that the thread is the parent's."""
        self._over = forked.refusal()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            while tasks := asyncio.all_tasks(self._loop):  # threads wait for what they asked for
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(tasks))
        finally:
            self._loop.close()
            self.colour.ended()
