"""Deadlines of attempts under way, held by one sweep for all of them.

A timer for each call costs microseconds, and the driver's own time-outs end in a cancel request, which must never reach
a commit. So attempts only note their deadline, and a sweep every 20 ms ends those that are over: by terminating the
connection, which wakes whoever waits on it; or, where there is none yet, by cancelling the wait for one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.drivers.base import Interruptible

__all__ = ["SWEEP", "Flight", "Flights"]

SWEEP = 0.02
"""Seconds between two sweeps: the most by which an attempt overstays its deadline, on a loop that runs."""


RESTS_AFTER = 50
"""Sweeps in a row that found nothing under way, after which none is made until there is something: a process at rest would
spend more on them than on its probes."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Flight:
    """One attempt under way.

    deadline: on the guard's clock. lease: once it has one; who notes it looks at *over* afterwards, because another thread
    may have ended it just before. task: who makes it. cancels: the task is cancelled too, because the application's
    own code runs in it. node: where it waits for a lease. settling: it has its result, and waits for its lease to be reset.
    over: its time was up, or it was dismissed: there is no use in waiting for that node.
    """

    deadline: float
    task: Interruptible | None
    cancels: bool
    node: str = ""
    lease: Any = None
    settling: bool = False
    dismissed: bool = False
    over: bool = False
    _cancelled: bool = False

    def end(self) -> None:
        """Time is up."""
        self.over = True
        lease = self.lease
        if lease is not None:
            lease.end()
        if (lease is None or self.cancels) and self.task is not None:
            self._cancelled = self.task.cancel()

    def absorb(self) -> bool:
        """Take this flight's own cancellation off the task's account; say whether it was the only one."""
        ours, self._cancelled = self._cancelled, False
        return ours and self.task is not None and self.task.uncancel() == 0


class Flights:
    """All attempts under way on one event loop.

    add: note one; it is looked up for each, since it is another one while no sweeps are made.
    """

    add: Callable[[Flight], object]

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._empty = 0
        self._all: dict[Any, None] = {}  # in the order of coming, so that a run can be replayed
        self._timer: asyncio.TimerHandle | None = None
        self._noted: Callable[[Flight], object] = self._all.setdefault
        self.add = self._noted

    def start(self) -> None:
        """Begin to sweep; needs a running loop."""
        self.add = self._noted
        self._timer = asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def stop(self) -> None:
        """Stop; what is under way has no deadline any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.add = self._noted

    def remove(self, flight: Flight) -> None:
        """Forget an attempt that has ended."""
        self._all.pop(flight, None)

    def dismiss(self, node: str) -> None:
        """End the attempts that wait for a connection to *node*, and go elsewhere, or for its reset, and have ended."""
        for flight in [flight for flight in self._under_way() if flight.node == node]:
            if (flight.lease is None or flight.settling) and not flight.over:
                flight.dismissed = True
                self._end(flight)

    def _add_first(self, flight: Flight) -> None:
        """Note one after a rest, and sweep again."""
        self._all[flight] = None
        self._empty = 0
        self.start()

    def _rest(self) -> None:
        self._timer, self.add = None, self._add_first

    def _sweep(self) -> None:
        self._empty = 0 if self._all else self._empty + 1
        if self._empty > RESTS_AFTER:
            self._rest()
            return
        self.start()
        now = self._clock()
        for flight in [flight for flight in self._under_way() if flight.deadline <= now and not flight.over]:
            self._end(flight)

    def _under_way(self) -> list[Flight]:
        return list(self._all)

    def _end(self, flight: Flight) -> None:
        """End one, unless another thread has just finished it: its lease may be somebody else's by now."""
        flight.end()
