"""Virtual time: an agenda of what happens next, and processes that wait for signals.

Nothing sleeps and nothing runs at once with something else. What is due at the same moment happens in the order in which
it was put down, so a run depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from itertools import count
from typing import Any

__all__ = ["LATE", "Agenda", "Process", "Signal"]

LATE = object()
"""What a signal says when its time was up before anybody woke it."""


class Signal:
    """Something that one process waits for, once. Whoever wakes it first decides what it says."""

    __slots__ = ("_agenda", "_process", "done", "value")

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._process: Process | None = None
        self.done = False
        self.value: Any = None

    def wake(self, value: Any = None) -> None:
        """Let the process go on, at this very moment but not before the present event is over."""
        if not self.done:
            self.done = True
            self.value = value
            if self._process is not None:
                self._agenda.after(0.0, self._agenda.resume, self._process, value)

    def wake_last(self, value: Any = None) -> None:
        """Let the process go on at once: only as the last thing that the present event does."""
        if not self.done:
            self.done = True
            self.value = value
            if self._process is not None:
                self._agenda.resume(self._process, value)

    def hold(self, process: Process) -> None:
        """Let *process* wait."""
        if self.done:
            self._agenda.after(0.0, self._agenda.resume, process, self.value)
        else:
            self._process = process


Process = Generator[Signal, Any, Any]


class Agenda:
    """What happens, and when.

    now: seconds; begins at 1,000. happened: events so far. over: nothing more is to happen.
    """

    __slots__ = ("_heap", "_turns", "happened", "now", "over")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._turns = count()
        self.now = 1_000.0
        self.happened = 0
        self.over = False

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def at(self, when: float, act: Callable[..., Any], *args: Any) -> None:
        """Put down that ``act(*args)`` happens at *when*; what lies in the past happens now."""
        heappush(self._heap, (when, next(self._turns), act, args))

    def after(self, delay: float, act: Callable[..., Any], *args: Any) -> None:
        """Put down that ``act(*args)`` happens in *delay* seconds."""
        heappush(self._heap, (self.now + delay, next(self._turns), act, args))

    def signal(self, until: float | None = None) -> Signal:
        """Return a signal that says `LATE` at *until*; None: only when it is woken."""
        signal = Signal(self)
        if until is not None:
            self.at(until, signal.wake, LATE)
        return signal

    def sleep(self, seconds: float) -> Signal:
        """Return a signal that comes in *seconds*."""
        return self.signal(self.now + seconds)

    def spawn(self, process: Process) -> None:
        """Start a process."""
        self.after(0.0, self.resume, process, None)

    def resume(self, process: Process, value: Any) -> None:
        """Let a process go on until it waits again, or ends."""
        try:
            signal = process.send(value)
        except StopIteration:
            return
        signal.hold(process)

    def run(self, until: float) -> None:
        """Let everything happen up to *until*, or until it is `over`."""
        heap, happened = self._heap, 0
        while heap and not self.over:
            when, _, act, args = heappop(heap)
            if when > self.now:
                if when > until:
                    break
                self.now = when
            happened += 1
            act(*args)
        self.happened += happened
