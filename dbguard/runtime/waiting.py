"""Where calls wait for the topology: for their turn at the gate, or while they back off.

Turns are given in the order of coming, at a rising pace: a herd that is let through at once drowns the new primary and
keeps it drowned (the classic metastable failure). Whoever's deadline passes leaves the queue by himself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from dbguard.core.gate import GateState

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.state import GuardState

__all__ = ["Room"]


class Room:
    """The waiting calls of one guard, on one event loop."""

    def __init__(self, state: GuardState) -> None:
        self._state = state
        self._turns: OrderedDict[asyncio.Future[None], bool] = OrderedDict()
        self._pauses: dict[asyncio.Future[None], bool] = {}  # in the order of coming, as all that is woken here
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._turns)

    async def turn(self, at_most: float, *, reads: bool) -> None:
        """Wait for this call's turn, for *at_most* seconds. *reads*: any change of the topology may help it."""
        await self._wait(at_most, lambda waiter: self._turns.__setitem__(waiter, reads), self._leave)

    async def pause(self, seconds: float, *, deaf: bool = False) -> None:
        """Sleep, or until the topology changes; *deaf*: that is no reason to wake."""
        await self._wait(seconds, lambda waiter: self._pauses.__setitem__(waiter, deaf), self._rested)

    def changed(self) -> None:
        """Wake who backs off, and give turns if writes can flow."""
        for waiter, deaf in self._pauses.items():
            if not deaf:
                _wake(waiter)
        self._give()

    def release_all(self) -> None:
        """Wake everybody; used when the guard is closed."""
        for waiter in [*self._pauses, *self._turns]:
            _wake(waiter)

    async def _wait(
        self,
        seconds: float,
        enter: Callable[[asyncio.Future[None]], object],
        leave: Callable[[asyncio.Future[None]], object],
    ) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        enter(waiter)
        self._state.waiting = len(self._turns)
        timer = loop.call_later(min(seconds, 86_400.0), _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            leave(waiter)
            self._state.waiting = len(self._turns)

    def _leave(self, waiter: asyncio.Future[None]) -> None:
        self._turns.pop(waiter, None)

    def _rested(self, waiter: asyncio.Future[None]) -> None:
        self._pauses.pop(waiter, None)

    def _give(self) -> None:
        """Give as many turns as the gate's pace allows, and come back for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        state = self._state
        if state.gate.writable:
            now = state.clock()
            waiting = [waiter for waiter in self._turns if not waiter.done()]
            go, again_at = state.gate.release(now, len(waiting))
            for waiter in waiting[:go]:
                _wake(waiter)
            if again_at is not None:
                self._timer = asyncio.get_running_loop().call_later(max(0.0, again_at - now), self._give)
        else:
            down = state.gate.state is GateState.DOWN  # calls no longer wait: whoever is woken is told so
            for waiter, reads in self._turns.items():
                if reads or down:
                    _wake(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
