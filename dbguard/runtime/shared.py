"""What threads share of a guard: its state, of which each use by itself holds the lock, and its flights.

What belongs together (a plan's step, a release of waiting calls) holds the lock around all of it, which may be taken again
by who has it. Nothing of the application's runs under it, and nothing that waits.
"""

from __future__ import annotations

import threading
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any
from weakref import ref

from dbguard.core.router import Router
from dbguard.core.state import GuardState
from dbguard.runtime.flights import Flight, Flights

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from dbguard.runtime.colour import Threads

__all__ = ["SharedFlights", "SharedState"]


class SharedState(GuardState):
    """`GuardState` for calls on any thread. lock: one that its holder can take again."""

    def __init__(self, *args: Any, lock: AbstractContextManager[object], **options: Any) -> None:
        self.lock = lock
        super().__init__(*args, **options)
        self.budget.deposit = _under(lock, self.budget.deposit)  # type: ignore[assignment]  # declared by its first value


def _under(lock: AbstractContextManager[object], act: Callable[[float], None]) -> Callable[[float], None]:
    """Return *act*, which is not a method that is looked up, under *lock*."""

    def held(now: float) -> None:
        with lock:
            act(now)

    return held


def _held(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def held(self: SharedState, *args: Any, **options: Any) -> Any:
        with self.lock:
            return method(self, *args, **options)

    return held


for _owner in (Router, GuardState):
    for _name, _method in vars(_owner).items():
        if isfunction(_method) and not _name.startswith("_"):
            setattr(SharedState, _name, _held(_method))


class SharedFlights(Flights):
    """`Flights` of calls on any thread; swept on the guard's loop.

    They are referred to weakly: a thread can be interrupted anywhere, and what it has not taken off would hold its lease.
    """

    def __init__(self, clock: Callable[[], float], colour: Threads) -> None:
        super().__init__(clock)
        self._colour = colour
        self._resting = False
        self._lock = threading.RLock()  # what the collector ends under it may be an attempt, too
        self.add = self._noted = self._add

    def start(self) -> None:
        """Begin to sweep; on the guard's loop."""
        super().start()
        self._resting = False

    def stop(self) -> None:
        """Stop; what is under way has no deadline any more."""
        super().stop()
        self._resting = False

    def remove(self, flight: Flight) -> None:
        """Forget an attempt that has ended, before its lease is given back: from then on the sweep leaves it alone."""
        with self._lock:
            self._all.pop(ref(flight), None)

    def _end(self, flight: Flight) -> None:
        with self._lock:
            if ref(flight) in self._all:
                super()._end(flight)

    def _add(self, flight: Flight) -> None:
        # The sweep notes that it rests, and looks then whether there is anything; this way round one sees the other.
        self._all[ref(flight)] = None
        if self._resting:
            self._colour.on_loop(self._wake)

    def _under_way(self) -> list[Flight]:
        found = []
        for one in list(self._all):
            flight = one()
            if flight is None:
                self._all.pop(one, None)
            else:
                found.append(flight)
        return found

    def _rest(self) -> None:
        self._timer, self._resting = None, True
        if self._all:
            self._wake()

    def _wake(self) -> None:
        if self._resting:
            self._empty = 0
            self.start()
