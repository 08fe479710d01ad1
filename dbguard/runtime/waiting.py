"""Where calls wait for the topology: for their turn at the gate, or while they back off.

Turns are given in the order of coming, and as earlier ones come back: a herd that is let through at once drowns the new
primary and keeps it drowned (the classic metastable failure). Whoever's time is over takes no turn and no place.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from dbguard.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.plan import Call
    from dbguard.core.state import GuardState

__all__ = ["Room"]


class _Woken(Enum):
    """Why a call that waited for its turn goes on without one."""

    CHANGED = "its time is over, or something has changed: it asks anew where to go"
    DROPPED = "the room was full, and its deadline could not be met"


class _Waiting(NamedTuple):
    """A call that waits for its turn. until: its deadline. could_go: whether it need wait no longer, though writes do."""

    until: float
    could_go: Callable[[], bool]


Waiter = asyncio.Future["int | _Woken"]


class Room:
    """The waiting calls of one guard, on one event loop."""

    def __init__(self, state: GuardState) -> None:
        self._state = state
        self._turns: OrderedDict[Waiter, _Waiting] = OrderedDict()
        self._pauses: dict[Waiter, bool] = {}  # in the order of coming, as all that is woken here
        self._timer: asyncio.TimerHandle | None = None
        self._again_at: float | None = None

    def __len__(self) -> int:
        return len(self._turns)

    def admit(self, call: Call) -> Overloaded | None:
        """Say whether one more call may wait; the error to raise if not.

        A room that is full first drops those whose deadline has passed, or lies before anybody can go.
        """
        gate = self._state.gate
        if len(self._turns) >= gate.max_waiting:
            earliest = gate.earliest(self._state.clock())
            for waiter in [waiter for waiter, waiting in self._turns.items() if waiting.until <= earliest]:
                self._wake(waiter, _Woken.DROPPED)
        return self._state.admit(call)

    async def turn(self, at_most: float, *, could_go: Callable[[], bool]) -> int | None:
        """Wait for this call's turn, for *at_most* seconds.

        could_go: asked at each change of the topology while writes do not flow: whether this call need not wait for that.
            Who is woken for nothing loses its place, and thousands of them, at every round of probes, hold up the loop.

        Returns the number of the release in which it goes, to be told to `back`; None if it was woken for another
        reason. Raises `Overloaded` if it was dropped.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._turns[waiter] = _Waiting(self._state.clock() + at_most, could_go)
        self._count()
        try:
            woken = await self._sleep(waiter, at_most)
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and isinstance(waiter.result(), int):
                self.back(waiter.result())
            raise
        finally:
            self._turns.pop(waiter, None)
            self._count()
        if woken is _Woken.DROPPED:
            raise Overloaded(
                f"{self._state.gate.max_waiting} calls were waiting (failover.max_waiting), and nobody could go before"
                " this one's deadline",
                retry_after=1.0,
            )
        return woken if isinstance(woken, int) else None

    def back(self, release: object, *, again: bool = False) -> None:
        """Take in that a call which got its turn in that *release* has ended; None: it got none.

        again: it waits for another turn, as the primary is no place to go to just now: nor is it for the others.
        """
        if not isinstance(release, int):
            return
        with self._state.lock:
            if again:
                self._state.gate.setback()
            self._state.gate.returned(release)
            if self._turns and self._state.gate.paced:
                self._give()

    async def pause(self, seconds: float, *, deaf: bool = False) -> None:
        """Sleep, or until the topology changes; *deaf*: that is no reason to wake."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._pauses[waiter] = deaf
        try:
            await self._sleep(waiter, seconds)
        finally:
            self._pauses.pop(waiter, None)

    def changed(self) -> None:
        """Wake who backs off, and give turns if writes can flow."""
        for waiter, deaf in self._pauses.items():
            if not deaf:
                _wake(waiter, _Woken.CHANGED)
        self._give()

    def release_all(self) -> None:
        """Wake everybody; used when the guard is closed."""
        for waiter in [*self._pauses, *self._turns]:
            _wake(waiter, _Woken.CHANGED)

    async def _sleep(self, waiter: Waiter, seconds: float) -> int | _Woken:
        timer = asyncio.get_running_loop().call_later(min(seconds, 86_400.0), _wake, waiter, _Woken.CHANGED)
        try:
            return await waiter
        finally:
            timer.cancel()

    def _give(self) -> None:
        """Give as many turns as the gate allows, and come back for the rest."""
        with self._state.lock:
            gate, now = self._state.gate, self._state.clock()
            if not gate.writable:
                self._come_back(None, now)
                # Where nobody waits any more, who does is told so, as a newcomer is; and a read may find a fit replica.
                declines = gate.declines
                for waiter in [waiter for waiter, waiting in self._turns.items() if declines or waiting.could_go()]:
                    self._wake(waiter, _Woken.CHANGED)
                return
            go, again_at = gate.release(now, len(self._turns))
            while go and self._turns:
                waiter, waiting = next(iter(self._turns.items()))
                if waiter.done() or waiting.until <= now:
                    self._wake(waiter, _Woken.CHANGED)  # a call whose time is over takes nobody's turn
                else:
                    self._wake(waiter, gate.releases)
                    go -= 1
            gate.unused(go)
            self._come_back(again_at, now)

    def _come_back(self, at: float | None, now: float) -> None:
        """Give turns again *at* that time; None: when something changes."""
        if at == self._again_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._again_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._due) if at is not None else None

    def _due(self) -> None:
        self._timer = self._again_at = None
        self._give()

    def _wake(self, waiter: Waiter, why: int | _Woken) -> None:
        """Let one go on: from now on it waits no longer."""
        self._turns.pop(waiter, None)
        self._count()
        _wake(waiter, why)

    def _count(self) -> None:
        self._state.waiting = len(self._turns)


def _wake(waiter: Waiter, why: int | _Woken) -> None:
    if not waiter.done():
        waiter.set_result(why)
