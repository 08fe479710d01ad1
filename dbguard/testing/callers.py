"""Callers that go on calling while a test breaks what they call.

    async with Callers(order, ledger) as callers:      # a coroutine function: tasks of this loop
        async with faults.failover():
            await callers.acknowledged(50)             # until 50 more calls have ended well

    with Callers(order, ledger) as callers:            # a plain function: threads
        with faults.failover():
            callers.wait_acknowledged(50)

Each call gets a number that no other call has, and what becomes of it stands in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from dbguard.testing.ledger import Ledger

__all__ = ["Callers"]

_POLL = 0.01  # seconds between two looks at the ledger


class Callers:
    """Call a function again and again, from several callers at once; a context manager, plain or asynchronous.

    Leaving it lets each caller finish its call. An `Exception` of a call stands in the ledger, and its caller goes on.

    call: gets a number and writes it; a coroutine function for ``async with``, a plain one for ``with``.
    ledger: where to note what became of each call; its own, since all callers begin to count at 1.
    count: how many callers, >= 1. Default 4.
    pause: seconds between two calls of a caller, >= 0. Default 0.01, so that failing at once is not a busy loop.
    patience: seconds that the last calls may take to end once the block is left, > 0. Default 60.
    Raises TimeoutError when left, if a call takes longer; tasks are cancelled then, threads left to themselves.
    """

    def __init__(
        self, call: Callable[[int], Any], ledger: Ledger, *, count: int = 4, pause: float = 0.01, patience: float = 60.0
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        self._call = call
        self._ledger = ledger
        self._count = count
        self._pause = pause
        self._patience = patience
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._stop = asyncio.Event()

    # --- in threads

    def wait_acknowledged(self, more: int, *, timeout: float = 60.0) -> None:
        """Wait until *more* further calls were acknowledged. Raises TimeoutError after *timeout* seconds."""
        goal, until = self._ledger.acknowledged + more, time.monotonic() + timeout
        while self._ledger.acknowledged < goal:
            if time.monotonic() > until:
                raise TimeoutError(self._short(goal, timeout))
            time.sleep(_POLL)

    def __enter__(self) -> Self:
        if asyncio.iscoroutinefunction(self._call):
            raise TypeError(f"{self._call.__name__} is a coroutine function: write `async with Callers(...)`")
        for number in range(self._count):
            self._threads.append(threading.Thread(target=self._in_thread, name=f"caller-{number}", daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        until = time.monotonic() + self._patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if stuck := sum(thread.is_alive() for thread in self._threads):
            raise TimeoutError(self._late(stuck))

    def _in_thread(self) -> None:
        while not self._over.is_set():
            number = next(self._numbers)
            with contextlib.suppress(Exception), self._ledger.entry(number):  # it stands in the ledger
                self._call(number)
            self._over.wait(self._pause)

    # --- in tasks

    async def acknowledged(self, more: int, *, timeout: float = 60.0) -> None:
        """Wait until *more* further calls were acknowledged. Raises TimeoutError after *timeout* seconds."""
        goal, until = self._ledger.acknowledged + more, time.monotonic() + timeout
        while self._ledger.acknowledged < goal:
            if time.monotonic() > until:
                raise TimeoutError(self._short(goal, timeout))
            await asyncio.sleep(_POLL)

    async def __aenter__(self) -> Self:
        if not asyncio.iscoroutinefunction(self._call):
            raise TypeError(f"{self._call!r} is no coroutine function: write `with Callers(...)`")
        self._tasks += [asyncio.create_task(self._in_task(), name=f"caller-{n}") for n in range(self._count)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            _, late = await asyncio.wait(self._tasks, timeout=self._patience)
        finally:
            for task in self._tasks:
                task.cancel()
            ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        if late:
            raise TimeoutError(self._late(len(late)))
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _in_task(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            with contextlib.suppress(Exception), self._ledger.entry(number):  # it stands in the ledger
                await self._call(number)
            await asyncio.sleep(self._pause)

    def _short(self, goal: int, timeout: float) -> str:
        seen = ", ".join(f"{name} {times}" for name, times in self._ledger.errors.most_common(3)) or "none"
        return f"{self._ledger.acknowledged} calls acknowledged, not {goal}, after {timeout:g} s; errors: {seen}"

    def _late(self, stuck: int) -> str:
        return f"{stuck} of {self._count} callers were still in a call {self._patience:g} s after their time was over"
