"""The monitor: one connection per node, outside the pools, and rounds of questions over all nodes.

Steady: a round every half second. While the primary is missing or in doubt: every 25 to 50 ms for ten seconds, then
growing to the steady pace. A round asks the nodes in parallel, each with its own short limit. A node whose connection
is gone is dialled at its own pace (at once, then 50 ms doubling to 1 s, full jitter, one in flight), in the background:
a black hole among the nodes does not slow down the round that finds the new primary.

A name may come to lead to another server while the connection to the old one lives on. That is found out in three ways: a
new connection of a pool has met another server than the monitor's own is connected to, which is then dialled anew; each
name is looked up now and then, and dialled anew where the address that was dialled is not among its own any more; and
while there is no primary, every node is dialled anew now and then beside the questions.

What a round saw goes to `GuardState.probed`; what follows is decided there.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dbguard.core.failure import Family
from dbguard.core.gate import GateState
from dbguard.core.topology import Missed, Sighting
from dbguard.runtime.burial import bury
from dbguard.runtime.marking import Marking

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.core.topology import View
    from dbguard.drivers.base import Control
    from dbguard.runtime.engine import Engine

__all__ = ["Monitor", "Pace", "moved"]

log = logging.getLogger("dbguard")

URGENT_FOR = 10.0
"""Seconds for which rounds follow each other at the urgent pace; then the pace grows to the steady one."""

REGAINED = 6.0
"""Seconds of calm that give back one of urgency: a primary that comes and goes because it has too much to do is not asked
twenty times as often each time that it is missed."""

WEARIEST = 6.0
"""Seconds beyond `URGENT_FOR` that count: by then the pace has slowed down 64 times, from 25 ms to more than a second."""

DIAL_FIRST, DIAL_MOST = 0.05, 1.0
"""Seconds between two dials of a node that does not answer: at least the first, doubling up to the second."""

RENEW_FIRST, RENEW = 1.0, 5.0
"""Seconds without a primary after which a node that answers is dialled anew, at most; and about how often from then on:
a name that was moved to the new primary is found, and a thousand processes make two hundred dials a second."""

LOOK_UP = 10.0
"""About how often a name is looked up beside the questions, in seconds: as often as name servers expect to be asked again
(a thousand processes with three names ask three hundred times a second), and no dial is made unless it has moved."""

PATIENT = 10.0
"""Seconds after a late answer in which the next late ones are waited for, for the whole of their limit, before the node
is dialled beside the question: each dial is a new process on a server that has too much to do."""

STARTING_AGAIN = 0.25
"""Seconds before a node that said it is starting (57P03) or full (53300) is dialled again."""


class Pace:
    """How often to ask.

    interval: seconds between steady rounds. jitter: share by which each is varied. limit: seconds an answer may take.
    urgent: seconds between rounds while the primary is missing.
    """

    __slots__ = ("dial_limit", "interval", "jitter", "limit", "urgent")

    def __init__(self, *, interval: float, jitter: float, limit: float, urgent: float) -> None:
        self.interval = interval
        self.jitter = jitter
        self.limit = limit
        self.urgent = urgent
        self.dial_limit = 2 * limit


def moved(view: View, seen: Sighting) -> bool:
    """Whether a name leads elsewhere by now than the connection over which its node was *seen*, as *view* knows.

    Where several servers answer under a name, each connection is as good as any.
    """
    known = view.nodes[seen.node]
    return known.instance.differs(seen.instance) and not known.group


class _Target:
    """One node and the monitor's connection to it."""

    __slots__ = (
        "asked",
        "control",
        "dial",
        "dialled_at",
        "fails",
        "look_up_at",
        "name",
        "next_dial",
        "patient_until",
        "reason",
        "renew_at",
        "renewal",
    )

    def __init__(self, name: str, control: Control) -> None:
        self.name = name
        self.control = control
        self.asked: asyncio.Task[Sighting] | None = None
        self.dial: asyncio.Task[Sighting | Missed] | None = None
        self.dialled_at = 0.0
        self.next_dial = 0.0
        self.fails = 0
        self.reason: Missed | None = None
        self.patient_until = 0.0
        self.renewal: asyncio.Task[Sighting | Missed | None] | None = None
        self.renew_at = 0.0
        self.look_up_at = 0.0


class Monitor:
    """Asks all nodes, again and again, until it is stopped.

    keeps_marks: reigns are marked in the table of marks.
    """

    def __init__(
        self, engine: Engine, controls: Mapping[str, Control], pace: Pace, *, keeps_marks: bool = False
    ) -> None:
        self._engine = engine
        self._marking = Marking(engine.tell, engine.state.clock) if keeps_marks else None
        self._state = engine.state
        self._pace = pace
        self._targets = [_Target(name, control) for name, control in controls.items()]
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._urgency = URGENT_FOR
        self._paused_at = engine.state.clock()
        self.rounds = 0
        self.last: dict[str, Sighting | Missed] = {}
        self.round_done = asyncio.Event()

    def start(self) -> asyncio.Task[None]:
        """Begin; needs a running loop. Returns the task, which ends by being cancelled alone."""
        self._engine.wanted = self._wanted.set
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dbguard monitor")
        return self._task

    def cancel(self) -> list[asyncio.Task[Any]]:
        """Stop asking and close the connections; returns the tasks, which end by themselves."""
        begun = [
            self._task,
            *(task for target in self._targets for task in (target.asked, target.dial, target.renewal)),
        ]
        tasks = [task for task in begun if task is not None]
        for task in tasks:
            task.cancel()
        for target in self._targets:
            target.control.drop()
        return tasks

    async def stop(self) -> None:
        """Stop, and wait for the tasks to end."""
        await asyncio.gather(*self.cancel(), return_exceptions=True)
        self.cancel()  # what was dialled meanwhile

    def missed(self) -> dict[str, str]:
        """Return why each node that is not fit was not fit when last asked."""
        view = self._state.view
        said = {name: last.why for name, last in self.last.items() if isinstance(last, Missed)}
        if not self.last:
            said = dict.fromkeys(view.nodes, "no answer yet")
        return said | {name: node.misconfigured for name, node in view.nodes.items() if node.misconfigured}

    def misconfigured(self) -> dict[str, str]:
        """Return which nodes answer but cannot be used as they are configured, if no node that answers can."""
        answered = {name for name, last in self.last.items() if isinstance(last, Sighting) or last.config or last.alive}
        view = self._state.view
        wrong = {name: why for name, why in self.missed().items() if view.nodes[name].misconfigured is not None}
        return wrong if answered and answered <= set(wrong) else {}

    async def _run(self) -> None:
        clock = self._state.clock
        while True:
            self._wanted.clear()
            began = clock()
            try:
                await self.round()
            except Exception:
                # Whatever it is, a guard without a monitor would be worse: the next round tries again.
                log.exception("a round of probes failed")
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wanted.wait()
            except TimeoutError:
                continue
            # Hurried by a call: at once, but never more often than at the urgent pace, however many calls fail.
            await asyncio.sleep(max(0.0, began + min(self._pace.interval, self._pace.urgent * self._weary()) - clock()))

    async def round(self) -> None:
        """Ask every node once, in parallel, and hand the answers on."""
        results = await asyncio.gather(*(self._probe(target) for target in self._targets))
        self._state.probed(results, full=True)
        self.last = {result.node: result for result in results}
        self._state.tick()
        self.rounds += 1
        self._engine.flush()
        self.round_done.set()
        self.round_done = asyncio.Event()
        for pool in self._engine.pools.values():
            pool.rest()
        live = {target.name: target.control for target in self._targets if target.dial is None}
        if self._engine.orphans:
            await bury(self._engine.orphans, live, self._state.view, within=self._pace.limit)
        if self._marking is not None:
            marked = await self._marking.look(self._state.view, self.last, live, within=self._pace.limit)
            if marked is not None:
                self._state.probed([marked], full=False)
                self._engine.flush()

    def _pause(self) -> float:
        state = self._state
        now = state.clock()
        calm = state.gate.state is GateState.OPEN or state.gate.state is GateState.DOWN
        steady = self._pace.interval * (1 + self._pace.jitter * (2 * state.rng.random() - 1))
        passed, self._paused_at = now - self._paused_at, now
        if calm:
            self._urgency = min(URGENT_FOR, self._urgency + passed / REGAINED)
            return steady
        self._urgency = max(-WEARIEST, self._urgency - passed)
        return min(steady, self._pace.urgent * (1 + state.rng.random()) * self._weary())

    def _weary(self) -> float:
        """Return by how much the urgent pace has slowed down: it doubles with each second beyond `URGENT_FOR`."""
        slower: float = 2.0 ** max(0.0, -self._urgency)
        return slower

    async def _probe(self, target: _Target) -> Sighting | Missed:
        """Ask one node: over the live connection, and if that is slow to answer over a new one as well."""
        at = self._state.clock()
        if target.dial is None and target.control.alive:
            self._renew(target, at)
            seen = self._renewed(target) or await self._ask(target, at) or self._renewed(target)
            if seen is not None:
                return seen
        if target.dial is None and self._state.clock() >= target.next_dial:
            self._begin_dial(target)
        if target.dial is not None and not target.dial.done() and target.fails == 0:
            # The first dial after a loss is waited for: the round must know. Later ones go on in the background.
            left = target.dialled_at + self._pace.limit - self._state.clock()
            await asyncio.wait({target.dial}, timeout=max(0.0, left))
        if target.dial is not None and target.dial.done():
            result = target.dial.result()
            target.dial = None
            return result
        reason = target.reason
        return Missed(node=target.name, at=at, why="no answer in time") if reason is None else replace(reason, at=at)

    async def _ask(self, target: _Target, at: float) -> Sighting | None:
        """Ask over the live connection; None: it has to be dialled, and perhaps that has begun."""
        limit = self._pace.limit
        asked = target.asked = asyncio.get_running_loop().create_task(target.control.ask(limit))
        try:
            done, _ = await asyncio.wait({asked}, timeout=limit / 2)
            if not done and at >= target.patient_until:
                # Slow, or silent: which of the two, a new connection finds out meanwhile.
                target.fails = 0
                self._begin_dial(target)
            seen = await asked
            if not done:
                target.patient_until = at + PATIENT
        except Exception as error:  # noqa: BLE001  named, and answered by dialling anew
            target.fails = 0
            target.next_dial = at
            target.reason = self._named(target, at, error)
            return None
        finally:
            asked.cancel()
        if moved(self._state.view, seen):
            target.fails, target.next_dial = 0, at
            return None
        if target.dial is not None:
            target.dial.cancel()
            target.dial = None
        return seen

    def _renew(self, target: _Target, now: float) -> None:
        """Find out now and then, in the background, whether a node that answers is still where its name leads."""
        rng, view = self._state.rng, self._state.view
        loop = asyncio.get_running_loop()
        if view.primary is None:
            target.look_up_at = now + LOOK_UP * rng.random()
            if now >= target.renew_at and target.renewal is None:
                target.renew_at = now + RENEW * (0.5 + rng.random())
                target.renewal = loop.create_task(self._dial(target))
            return
        target.renew_at = now + RENEW_FIRST * rng.random()
        if now >= target.look_up_at and target.renewal is None and not view.nodes[target.name].group:
            target.look_up_at = now + LOOK_UP * (0.5 + rng.random())
            target.renewal = loop.create_task(self._follow(target))

    async def _follow(self, target: _Target) -> Sighting | Missed | None:
        """Dial a node anew if its name has come to lead elsewhere; None: it has not."""
        return await self._dial(target) if await target.control.strayed() else None

    def _renewed(self, target: _Target) -> Sighting | None:
        """Return what the server said to which a name leads now; None if that is not known yet."""
        renewal = target.renewal
        if renewal is None or not renewal.done():
            return None
        target.renewal = None
        result = renewal.result()
        return result if isinstance(result, Sighting) else None

    def _begin_dial(self, target: _Target) -> None:
        target.dialled_at = self._state.clock()
        target.dial = asyncio.get_running_loop().create_task(self._dial(target))

    async def _dial(self, target: _Target) -> Sighting | Missed:
        state = self._state
        at = state.clock()
        try:
            seen = await target.control.dial(self._pace.dial_limit)
        except Exception as error:  # noqa: BLE001  named just below
            missed = self._named(target, at, error)
            target.reason = missed
            wait = min(DIAL_MOST, DIAL_FIRST * 2 ** min(target.fails, 10)) * state.rng.random()
            if missed.alive:
                wait = max(wait, STARTING_AGAIN)
            target.fails += 1
            target.next_dial = state.clock() + wait
            return missed
        target.fails = 0
        target.reason = None
        return seen

    def _named(self, target: _Target, at: float, error: Exception) -> Missed:
        failure = self._engine.driver.name_dial(error, target.name)
        return Missed(
            node=target.name,
            at=at,
            why=self._engine.driver.describe(error),
            config=failure.family is Family.CONFIG or failure.family is Family.SHUT,
            shut=failure.family is Family.SHUT,
            alive=failure.sqlstate in ("53300", "57P03") or failure.family is Family.SOFT,
            closed=failure.sqlstate == "57P03",
        )
