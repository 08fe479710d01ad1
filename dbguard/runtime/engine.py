"""The guard's engine: state, pools, waiting room and monitor, and one way for every call through them.

Facades translate their driver's words into jobs; what a call does after a failure is decided by the plan.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from dbguard.core.failure import Failure
from dbguard.core.outcome import StillOpen
from dbguard.core.plan import Attempt, Done, Pause, Stopped, recover
from dbguard.errors import DbGuardError, GuardClosed
from dbguard.events import Drained, Event
from dbguard.runtime.attempt import Job, attempt
from dbguard.runtime.backoff import Backoff
from dbguard.runtime.colour import ASYNCIO
from dbguard.runtime.drive import drive
from dbguard.runtime.flights import Flights
from dbguard.runtime.lines import Lines
from dbguard.runtime.resolve import answer
from dbguard.runtime.waiting import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.core.causal import Orphan
    from dbguard.core.plan import Bury, Call, Reply, Resolve
    from dbguard.core.state import GuardState
    from dbguard.core.topology import Drain
    from dbguard.drivers.base import Colour, Driver, NodePool, Registry
    from dbguard.events import Listener

__all__ = ["Engine"]

log = logging.getLogger("dbguard")

MOST_ORPHANS = 1_000
"""Backends given up that the monitor still watches for; of older ones their contexts stay on the primary."""


class Engine:
    """What a guard is made of once it runs.

    acquire_timeout: seconds one attempt may wait for a connection.
    drain_timeout: seconds after which leases of an old epoch are terminated.
    registries: each node's table of tokens; none where writes carry no tokens.
    colour, flights: what its calls run on, and where they are noted. task: `Colour.task`.
    fast: the first attempt is made without a plan; off, every call goes through one, with the same history.
    forked: why nothing of it must be used: this process is a fork of the one that it belongs to. Empty there.
    """

    def __init__(
        self,
        state: GuardState,
        pools: Mapping[str, NodePool],
        driver: Driver,
        *,
        acquire_timeout: float,
        drain_timeout: float,
        registries: Mapping[str, Registry] | None = None,
        colour: Colour = ASYNCIO,
        flights: Flights | None = None,
    ) -> None:
        self.colour = colour
        self.task = colour.task
        self.state = state
        self.pools = pools
        self.driver = driver
        self.acquire_timeout = acquire_timeout
        self.drain_timeout = drain_timeout
        self.registries = registries or {}
        self.room = Room(state)
        self.flights = flights or Flights(state.clock)
        self.listeners: list[Listener] = []
        self.lines = Lines(lambda seconds, then: asyncio.get_running_loop().call_later(seconds, then))
        self.orphans: list[Orphan] = []
        self.wanted: Callable[[], None] = _nobody
        self.closed = True
        self.fast = True
        self.forked = ""

    async def call(self, call: Call, job: Job, last: Failure | None = None) -> Any:
        """Make *call*, with as many attempts as are safe, affordable and in time.

        last: the failure of an attempt that was made already.
        """
        if self.closed:
            raise self.driver.dress(GuardClosed("the guard is closed"))
        if last is None and self.fast:
            # The fast path: an attempt with the gate open, without plan, task or timer. It may only succeed: what
            # fails becomes a value, and goes to the plan.
            node = self.state.pick(call)
            if node is not None:
                reply = await attempt(self, call, node, job)
                if isinstance(reply, Done):
                    return reply.value
                last = reply
                if last.unsent:
                    self._still_open("waited for a connection")
        return await self._recover(call, job, last)

    async def _recover(self, call: Call, job: Job, last: Failure | None) -> Any:
        """Make *call* as the plan decides."""
        state = self.state
        backoff: Backoff | None = None
        turn: int | None = None

        async def one(step: Attempt) -> Done | Failure:
            self._still_open("waited to be repeated")
            reply = await attempt(self, call, state.nodes[step.node], job)
            if isinstance(reply, Failure) and reply.unsent:
                self._still_open("waited for a connection")
            return reply

        async def pause(step: Pause) -> Stopped | None:
            nonlocal backoff, turn
            self._still_open("waited to be repeated")
            now = state.clock()
            if step.gate:
                had, turn = turn, None
                turn = await self.colour.elsewhere(self._next_turn(call, had, step.at_most))
                call.spent["wait"] = call.spent.get("wait", 0.0) + state.clock() - now
            else:
                backoff = backoff or Backoff(state.retry, call.began)
                seconds = backoff.seconds(step, now)
                if seconds is None:
                    return Stopped()
                await self.colour.elsewhere(self.room.pause(seconds, deaf=step.deaf))
                call.spent["backoff"] = call.spent.get("backoff", 0.0) + state.clock() - now
            self._still_open("waited")
            return None

        try:
            return await drive(recover(call, state, last), one, pause, self.ask, state.lock)
        except DbGuardError as error:
            dressed = self.driver.dress(error)
            raise dressed from error.__cause__
        finally:
            if turn is not None:
                self.colour.on_loop(self.room.back, turn)
            self.flush()

    async def _next_turn(self, call: Call, had: int | None, at_most: float) -> int | None:
        """Wait for a turn at the gate, for *at_most* seconds; *had*: the one that came to nothing. On the loop."""
        state, room = self.state, self.room
        room.back(had, again=True)
        refusal = room.admit(call)
        if refusal is not None:
            raise refusal
        with state.lock:
            state.counts["waited"] += "wait" not in call.spent
        return await room.turn(at_most, could_go=partial(state.could_go, call))

    async def ask(self, step: Resolve | Bury) -> Reply:
        """Ask what became of a write; open for ever where the guard is closed meanwhile, and with it who would answer."""
        try:
            return await self.colour.elsewhere(answer(self, step))
        except GuardClosed as error:
            return StillOpen(str(error))

    def _still_open(self, doing: str) -> None:
        """Raise `GuardClosed` if the guard was closed while a call was *doing* something."""
        if self.closed:
            raise self.driver.dress(GuardClosed(f"the guard was closed while this call {doing}"))

    # ------------------------------------------------------------------ effects

    def hurry(self) -> None:
        """Let the monitor ask all nodes at once."""
        self.colour.on_loop(self.wanted)

    def flush(self) -> None:
        """Do what the state has decided: end leases, hurry the monitor, wake who waits, tell listeners."""
        if self.state.eventful:
            self.colour.on_loop(self._flush)

    def _flush(self) -> None:
        effects = self.state.take_effects()
        if effects is None:
            return
        expired = [self._drain(name, epoch, how) for name, (epoch, how) in effects.epochs.items()]
        with self.state.lock:
            drained = self.state.chronicle.fold([said for said in expired if said is not None], self.state.clock())
        for name in effects.silent:
            self.pools[name].end_in_use()
            self.flights.dismiss(name)
        if effects.hurry:
            self.wanted()
        if effects.changed:
            self.room.changed()
        for event in (*effects.events, *drained):
            self._tell(event)

    def tell(self, event: Event) -> None:
        """Log *event* and hand it to the listeners; what they raise is logged and never felt by a call."""
        self.colour.on_loop(self._tell, event)

    def _tell(self, event: Event) -> None:
        self.lines.tell(event)
        for listener in tuple(self.listeners):  # one may take itself off, and threads do
            try:
                listener(event)
            except Exception:
                log.exception("a listener for dbguard's events failed")

    def wind_up(self) -> None:
        """Tell what is due, because nobody will look any more: the episode under way, and numbers of lines left out."""
        ended = self.state.chronicle.close(self.state.clock())
        if ended is not None:
            self.tell(ended)
        self.lines.close()

    def _drain(self, name: str, epoch: int, how: Drain) -> Drained | None:
        pool = self.pools[name]
        idle, in_use = pool.expire(how)
        if how == "now":
            self.flights.dismiss(name)
        if how != "now" and in_use:
            asyncio.get_running_loop().call_later(self.drain_timeout, pool.end_stale)
        if not (idle or in_use):
            return None
        said = "ended at once" if how == "now" else f"end when given back, at the latest after {self.drain_timeout:g} s"
        return Drained(at=self.state.clock(), node=name, epoch=epoch, idle=idle, in_use=in_use, how=said)

    def orphaned(self, orphan: Orphan) -> None:
        """Let the monitor watch for a backend that was given up, and end it where that is safe."""
        self.colour.on_loop(self._watch_for, orphan)

    def _watch_for(self, orphan: Orphan) -> None:
        self.orphans.append(orphan)
        del self.orphans[:-MOST_ORPHANS]
        self.wanted()


def _nobody() -> None:
    """Nobody to hurry: the monitor is not running."""
