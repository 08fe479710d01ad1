"""The monitor in the simulation: rounds of questions over all nodes, at the pace of `dbguard.runtime.monitor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.gate import GateState
from dbguard.core.topology import Missed, Sighting
from dbguard.runtime.monitor import moved
from dbguard.testing.simulation.agenda import LATE
from dbguard.testing.simulation.messages import Request
from dbguard.testing.simulation.network import LOST, Connection, dial
from dbguard.testing.simulation.pool import name_dial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.testing.simulation.agenda import Signal
    from dbguard.testing.simulation.guard import SimulatedGuard, Waits
    from dbguard.testing.simulation.network import Link

__all__ = ["SimulatedMonitor"]

INTERVAL, JITTER, LIMIT, URGENT = 0.5, 0.2, 0.5, 0.025
"""Seconds between steady rounds, their jitter, the limit of a question, and seconds between urgent rounds."""

DIAL_FIRST, DIAL_MOST, STARTING_AGAIN, RENEW_FIRST, RENEW = 0.05, 1.0, 0.25, 1.0, 5.0


class _Target:
    """One node, and the monitor's connection to it."""

    __slots__ = ("connection", "dialling", "fails", "link", "next_dial", "reason", "renew_at", "renewal")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.connection: Connection | None = None
        self.dialling: Signal | None = None
        self.fails = 0
        self.next_dial = 0.0
        self.reason: Missed | None = None
        self.renewal: Signal | None = None
        self.renew_at = 0.0


class SimulatedMonitor:
    """Asks all nodes, again and again."""

    def __init__(self, guard: SimulatedGuard, links: Mapping[str, Link]) -> None:
        self.guard = guard
        self.agenda = guard.agenda
        self.targets = [_Target(link) for link in links.values()]
        self.rounds = 0
        self._wanted = False
        self._sleeping: Signal | None = None
        guard.hurry = self.hurry

    def hurry(self) -> None:
        """Ask soon."""
        self._wanted = True
        if self._sleeping is not None:
            self._sleeping.wake()

    def run(self) -> Waits:
        """Ask for ever."""
        agenda = self.agenda
        while True:
            self._wanted = False
            began = agenda.now
            yield from self._round()
            if not self._wanted:
                self._sleeping = agenda.sleep(self._pause())
                yield self._sleeping
                self._sleeping = None
            if self._wanted:
                yield agenda.sleep(max(0.0, began + URGENT - agenda.now))

    def _pause(self) -> float:
        state = self.guard.state
        if state.gate.state is GateState.OPEN or state.gate.state is GateState.DOWN:
            return INTERVAL * (1 + JITTER * (2 * state.rng.random() - 1))
        return URGENT * (1 + state.rng.random())

    def _round(self) -> Waits:
        """Ask every node once, in parallel, and hand the answers on."""
        guard = self.guard
        asked = [self._ask(target) for target in self.targets]
        results: list[Sighting | Missed] = []
        late: list[tuple[int, _Target, float]] = []
        for target, (signal, at) in zip(self.targets, asked, strict=True):
            result: Any = None
            if signal is not None:
                result = yield signal
            if isinstance(result, Sighting | Missed):
                target.dialling = None
            elif signal is not None:
                result = self._heard(target, at, result)
                if isinstance(result, Missed):
                    late.append((len(results), target, at))
            else:
                result = self._known(target, at)
            results.append(result)
        redialled = [self._dial(target) for _, target, _ in late]
        for (place, target, _), signal in zip(late, redialled, strict=True):
            results[place] = yield signal  # a node whose connection was lost is dialled before the round is judged
            target.dialling = None
        self.rounds += 1
        guard.state.probed(results, full=True)
        guard.state.tick()
        guard.flush()
        if guard.orphans:
            yield from self._bury()
        if guard.tokens:
            yield from self._mark()

    def _ask(self, target: _Target) -> tuple[Signal | None, float]:
        """Begin to ask one node. The signal of a dial brings a result, that of a question what the server says."""
        now = self.agenda.now
        if target.dialling is not None:
            return (target.dialling, now) if target.dialling.done else (None, now)
        if target.connection is not None and not target.connection.closed:
            self._renew(target, now)
            if target.renewal is not None and target.renewal.done:
                signal, target.renewal = target.renewal, None
                if isinstance(signal.value, Sighting):
                    return signal, now
            return target.connection.send(Request("ask"), now + LIMIT), now
        if now < target.next_dial:
            return None, now
        first = target.fails == 0
        signal = self._dial(target)
        return (signal if first else None), now

    def _heard(self, target: _Target, at: float, answer: Any) -> Sighting | Missed:
        node = target.link.node
        if answer is not LATE and answer.code is None and not answer.dead:
            seen: Sighting = answer.value.sighting(node, at, fresh=False, marks=self.guard.tokens)
            if not moved(self.guard.state.view, seen):
                return seen
            answer = LOST
        if target.connection is not None:
            target.connection.end()
        target.connection = None
        target.fails, target.reason = 0, self._missed(target, at, answer)
        return target.reason

    def _known(self, target: _Target, at: float) -> Missed:
        reason = target.reason
        node = target.link.node
        return Missed(
            node=node,
            at=at,
            why=reason.why if reason else "being dialled",
            alive=reason.alive if reason else False,
            closed=reason.closed if reason else False,
        )

    def _missed(self, target: _Target, at: float, answer: Any) -> Missed:
        failure = name_dial(target.link.node, answer)
        alive = failure.sqlstate in ("53300", "57P03")
        closed = failure.sqlstate == "57P03"
        return Missed(node=target.link.node, at=at, why=str(failure.cause), alive=alive, closed=closed)

    def _renew(self, target: _Target, now: float) -> None:
        """While there is no primary, find out now and then whether a name has come to lead elsewhere."""
        rng = self.guard.state.rng
        if self.guard.state.view.primary is not None:
            target.renew_at = now + RENEW_FIRST * rng.random()
        elif now >= target.renew_at and target.renewal is None:
            target.renew_at = now + RENEW * (0.5 + rng.random())
            target.renewal = self.agenda.signal()
            self.agenda.spawn(self._dialling(target, target.renewal))

    def _dial(self, target: _Target) -> Signal:
        """Dial one node, in the background; the signal brings the result."""
        signal = target.dialling = self.agenda.signal()
        self.agenda.spawn(self._dialling(target, signal))
        return signal

    def _dialling(self, target: _Target, done: Signal) -> Waits:
        agenda, began = self.agenda, self.agenda.now
        until = began + 2 * LIMIT
        answer: Any = yield dial(target.link, until, self.guard.dialled())
        if isinstance(answer, Connection):
            connection, at = answer, agenda.now
            answer = yield connection.send(Request("ask"), until)
            if answer is not LATE and answer.code is None and not answer.dead:
                if target.connection is not None:
                    target.connection.end()
                target.connection = connection
                target.fails, target.reason = 0, None
                done.wake(answer.value.sighting(target.link.node, at, fresh=True, marks=self.guard.tokens))
                return
            connection.end()
        missed = target.reason = self._missed(target, began, answer)
        wait = min(DIAL_MOST, DIAL_FIRST * 2 ** min(target.fails, 10)) * self.guard.state.rng.random()
        target.fails += 1
        target.next_dial = agenda.now + (max(wait, STARTING_AGAIN) if missed.alive else wait)
        done.wake(missed)

    def _mark(self) -> Waits:
        """Mark the present reign, if nobody has done so: the twin of `dbguard.runtime.marking`."""
        state, agenda = self.guard.state, self.agenda
        reign, node = state.view.reign, state.view.writable
        if reign is None or node is None or reign.agreed is not None:
            return
        target = next(target for target in self.targets if target.link.node == node)
        connection = target.connection
        if connection is None or connection.closed or target.dialling is not None:
            return
        for request in (Request("mark", (reign.timeline, reign.own)), Request("ask")):
            at = agenda.now
            answer: Any = yield connection.send(request, at + LIMIT)
            if answer is LATE or answer.dead:
                connection.end()
                return
        if answer.code is None:
            state.probed([answer.value.sighting(node, at, fresh=False, marks=True)], full=False)
            self.guard.flush()

    def _bury(self) -> Waits:
        """End backends that were given up, and note which are gone."""
        guard = self.guard
        view = guard.state.view
        targets = {target.link.node: target for target in self.targets if target.dialling is None}
        for orphan in list(guard.orphans):
            orphan.gone = orphan.is_past(view)
            for target in (targets[name] for name in orphan.names(view) if not orphan.gone and name in targets):
                connection = target.connection
                if connection is None or connection.closed or connection.server.instance != orphan.instance:
                    continue
                answer = yield connection.send(Request("end", (orphan.pid, orphan.doomed)), self.agenda.now + LIMIT)
                if answer is LATE or answer.dead:
                    connection.end()
                    continue
                orphan.gone = answer.value
                break
        guard.orphans[:] = [orphan for orphan in guard.orphans if not orphan.gone]
