"""The one mutable aggregate that plans read and attempts record into.

On asyncio whoever uses it runs on the loop, without an await inside; threads hold its `lock` (`dbguard.runtime.shared`). It decides nothing by
itself: it hands the facts to `retry`, `breaker`, `gate`, `topology` and `route`, and publishes what follows from them.
What must be done outside (events to dispatch, leases to end, probes to hurry) is collected and taken by the runtime
with `take_effects`, so that no user code runs in here.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from dbguard.core.breaker import Breaker, BreakerPolicy, BreakerState
from dbguard.core.budget import Budget
from dbguard.core.effects import Effects
from dbguard.core.episode import Chronicle
from dbguard.core.failure import Failure, Family
from dbguard.core.loss import Acknowledged
from dbguard.core.outcome import Applied, NotApplied, left_open, result_lost
from dbguard.core.retry import RetryPolicy, Stake
from dbguard.core.route import Node
from dbguard.core.router import Router
from dbguard.core.topology import Changes, Instance, Missed, Role, Sighting, sterner
from dbguard.errors import Overloaded
from dbguard.events import (
    BreakerChanged,
    CallRepeated,
    ClassifierMissed,
    Flapping,
    GateChanged,
    OutcomeLeftOpen,
    OutcomeResolved,
    WritesPaused,
    WritesResumed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dbguard.core import breaker, gate
    from dbguard.core.causal import Box, Orphan
    from dbguard.core.gate import Gate
    from dbguard.core.merge import Topology
    from dbguard.core.plan import Call
    from dbguard.core.route import Rng
    from dbguard.core.router import ReadPolicy
    from dbguard.core.topology import Reign
    from dbguard.errors import OutcomeUnknown, ResultLost

__all__ = ["GuardState"]

READ_ONLY = "25006"

UNEXPLAINED_FOR = 0.25
"""Seconds after which a node that refuses a write as read-only, though it has told no reason, is asked again: at most
four times a second, where a steady round asks twice."""


class GuardState(Router):
    """Everything the guard knows, and what follows from it.

    clock: seconds, monotonic; handed in. rng: handed in. observe: decide and report, send all to the primary.
    commits: told of every commit that is acknowledged. lock: held around several uses that belong together.
    """

    lock: AbstractContextManager[object] = nullcontext()

    def __init__(
        self,
        topology: Topology,
        *,
        clock: Callable[[], float],
        rng: Rng,
        retry: RetryPolicy,
        breaker: BreakerPolicy,
        gate: Gate,
        reads: ReadPolicy,
        weights: Mapping[str, int] | None = None,
        addresses: Mapping[str, str] | None = None,
        observe: bool = False,
        wall: Callable[[], float] | None = None,
    ) -> None:
        nodes = {
            name: Node(name, Breaker(breaker, rng), view, weight=(weights or {}).get(name, 1))
            for name, view in topology.view.nodes.items()
        }
        super().__init__(topology, nodes, clock=clock, rng=rng, gate=gate, reads=reads, observe=observe)
        self.retry = retry
        self.budget = Budget(ratio=retry.budget, floor=retry.floor)
        self.wall = wall
        self.commits = Acknowledged()
        self.chronicle = Chronicle(self.counts, gate, clock(), wall)
        self._addresses = dict(addresses or {})

    # ------------------------------------------------------------------ recording attempts

    def succeeded(self, node: Node, generation: int) -> None:
        """Record that an attempt on *node* was answered; *generation* is the breaker's when it began."""
        node.breaker.success(self.clock(), generation)

    def wrote(self, box: Box, reign: Reign | None, *, acknowledged: bool = False) -> None:
        """Record that a write of the context of *box*, sent under *reign*, has ended just now, however it ended.

        acknowledged: by a commit.
        """
        now = self.clock()
        box.wrote(reign, now)
        if acknowledged:
            self.commits.note(reign, now)

    def pin(self, box: Box, orphan: Orphan) -> None:
        """Keep the reads of the context of *box* on the primary until *orphan* is gone, or its fate is known."""
        box.pin(orphan)

    def failed(self, failure: Failure, generation: int) -> None:
        """Record a failed attempt; *generation* is that of the breaker when the attempt began."""
        now = self.clock()
        node = self.nodes[failure.node]
        family = failure.family
        if family is Family.ANSWERED or family is Family.CONTENTION:
            node.breaker.success(now, generation)
            if failure.sqlstate == READ_ONLY and not node.view.read_only and now - node.seen_at > UNEXPLAINED_FOR:
                # A read-only session; or the node is a standby by now, and a pooler has kept its clients' connections.
                self.effects.hurry = True
        elif family is Family.HARD and not failure.ours:
            self._note_breaker(node, node.breaker.failure(now, generation, hard=True))
            self._doubt(node, now, failure.why)
        elif family is Family.SOFT:
            node.breaker.failure(now, generation, hard=False)
            node.soften(now)
            if node is self.primary:
                self.gate.setback()
            if failure.timed_out:
                self.effects.hurry = True
        elif family is Family.SHUT:
            node.shut = self.effects.hurry = True
        elif family is Family.ROLE:
            self._doubt(node, now, failure.why)
            self._absorb(self.topology.lost(node.name, now), now)

    def _doubt(self, node: Node, now: float, why: str) -> None:
        node.doubted_at = now
        self.effects.hurry = True
        if node is self.primary:
            self._gate(now, self.gate.suspect(now, why))
        self.publish()

    # ------------------------------------------------------------------ probes

    def probed(self, results: Sequence[Sighting | Missed], *, full: bool) -> None:
        """Take in what probes said; *full*: one parallel round over all nodes."""
        now = self.clock()
        changes = self.topology.merge(results, now, full=full)
        self._absorb(changes, now)
        view = self.view
        for result in results:
            node = self.nodes[result.node]
            if isinstance(result, Sighting):
                node.seen_at = max(node.seen_at, result.at)
                if result.fresh or node.breaker.state in (BreakerState.OPEN, BreakerState.HALF_OPEN):
                    self._note_breaker(node, node.breaker.close_at_once(now, "a probe reached it"))
                if result.node == view.primary and result.position is not None and result.at > self.learnt_at:
                    self.learnt, self.learnt_at = result.position, result.at
                    self._bound(result, result.position)
            elif result.shut:
                node.shut = True
            elif full and not result.alive and not result.config and result.at >= node.seen_at:
                if view.nodes[result.node].role is not Role.PRIMARY:
                    # What is under way on a silent primary may still succeed; it is ended when another one is accepted.
                    self.effects.silent.append(result.node)
                self._note_breaker(node, node.breaker.trip(now, result.why))
        self.publish()
        primary = view.nodes[view.primary] if view.primary else None
        if view.refused:
            self._gate(now, self.gate.refuse(now, view.refused or ""))
        elif primary is None:
            self._gate(now, self.gate.primary_lost(now, self._why_lost()))
        elif not primary.reachable:
            self._gate(now, self.gate.suspect(now, f"{primary.name} missed a probe"))
        elif not self.nodes[primary.name].doubted:
            slots = self.nodes[primary.name].load.size
            self._gate(now, self.gate.primary_found(now, view.reign, slots=slots))
        if full:
            self.effects.changed = True

    def _bound(self, seen: Sighting, position: int) -> None:
        """Take a position of the primary as a bound of what was acknowledged before it was asked for."""
        reign = self.view.reign
        if reign is not None and seen.role is Role.PRIMARY and self.commits.lies_before(reign, seen.at):
            self.topology.acknowledged(position, reign, confirmed=seen.confirmed)

    def met(self, seen: Sighting) -> str | None:
        """Take in what a new connection's server said of itself; the reason if the connection must not be used."""
        self.probed([seen], full=False)
        view = self.view.nodes[seen.node]
        if view.fenced or self._is_older(seen):
            return f"{seen.node} belongs to an older reign"
        return view.misconfigured

    def met_to_claim(self, seen: Sighting) -> str | None:
        """Take in what a server said that is to answer a claim; the reason if it must not.

        Only the server that holds the office may: under the primary's name another one may stand, on the same timeline,
        of which it is not known yet whether it goes on with the reign; that it lacks a token says nothing.
        """
        refusal = self.met(seen)
        if refusal is None and (self.view.writable != seen.node or not self.nodes[seen.node].is_here(seen.instance)):
            return f"{seen.node} does not hold the primary's office"
        return refusal

    def _is_older(self, seen: Sighting) -> bool:
        """Whether a server claims to be primary on a lower timeline than the accepted one.

        Said of the connection that asked, even where newer news of its node have overtaken the answer.
        """
        reign = self.view.reign
        if seen.role is not Role.PRIMARY or reign is None or seen.timeline is None:
            return False
        return seen.timeline < reign.timeline and not seen.instance.is_of_another_system(Instance(reign.system_id))

    def tick(self) -> None:
        """Let time pass: a failover that lasts too long turns to down."""
        now = self.clock()
        self._gate(now, self.gate.tick(now))
        until = self.gate.paused_until
        if until is not None and now >= until:
            self.resume(forgotten=True)
        # What was heard just now is told first: it may belong to the episode that would end here.
        ended = None if self.effects.events else self.chronicle.tick(now)
        if ended is not None:
            self.effects.events.append(ended)

    def pause(self, at_most: float) -> None:
        """Let nothing more go to the primary before `resume`, or for *at_most* seconds."""
        now = self.clock()
        self.gate.pause(now + at_most)
        self.effects.events.append(WritesPaused(at=now, node=self.view.primary, at_most=at_most))

    def under_way(self) -> int:
        """Return how many leases of the primary are out; where there is none, those of the last one."""
        holder = self._holder
        return 0 if holder is None or holder.view.role is Role.REPLICA else holder.load.in_use

    def resume(self, *, forgotten: bool = False) -> None:
        """End a pause, if there is one. forgotten: nobody did before its limit."""
        if self.gate.paused_until is None:
            return
        now = self.clock()
        self.gate.resume(now)
        self.effects.changed = True
        self.effects.events.append(WritesResumed(at=now, forgotten=forgotten, waiting=self.waiting))

    def trust(self, node: str) -> None:
        """Forget what was remembered of older reigns: *node* is the primary because its operator says so."""
        now = self.clock()
        self._absorb(self.topology.trust(node, now), now)
        if self.gate.refused:  # it is decided: calls may wait for the round in which that node answers
            self._gate(now, self.gate.primary_lost(now, f"{node} is trusted, and has yet to answer"))

    def renew(self, node: str) -> None:
        """Make all connections to *node* stale, by the application's wish."""
        now = self.clock()
        self._absorb(self.topology.renew(node, now), now)

    def _why_lost(self) -> str:
        return "no node answers as primary" if self.view.reign is not None else "no primary has been seen yet"

    def _absorb(self, changes: Changes, now: float) -> None:
        self.effects.events.extend(changes.events)
        for name, (epoch, how) in changes.epochs.items():
            self.nodes[name].epoch = epoch
            waiting = self.effects.epochs.get(name)
            self.effects.epochs[name] = (epoch, how if waiting is None else sterner(waiting[1], how))
        if changes.epochs or changes.events:
            self.effects.changed = True
        if changes.look_again:
            self.effects.hurry = True
        if self.view.primary is None and self.primary is not None:
            self._gate(now, self.gate.primary_lost(now, f"{self.primary.name} is lost"))
        self.publish()

    # ------------------------------------------------------------------ what is said

    def repeats(self, failure: Failure, number: int, why: str) -> None:
        """Count a repeat."""
        self.counts["repeats"] += 1
        self.effects.events.append(CallRepeated(at=self.clock(), node=failure.node, attempt=number, why=why))

    def misread(self, call: Call, failure: Failure) -> None:
        """A replica has refused a read as a write: it goes to the primary, now and from now on (RULES: learning)."""
        call.reads = False
        call.work = replace(call.work, stake=Stake.WRITE)
        if call.text is not None:
            call.text.refuse()
            why = call.text.why
        else:
            why = "a read-only block"
        self.counts["misread"] += 1
        self.effects.events.append(
            ClassifierMissed(at=self.clock(), node=failure.node, sqlstate=failure.sqlstate, why=why)
        )

    def resolved(self, call: Call, node: str, answer: Applied | NotApplied) -> None:
        """Take in what a token proved: the context's reads need not wait for the backend any more.

        Whatever still runs there cannot be applied, so that its locks may be taken from it.
        node: where the write was sent.
        """
        if isinstance(answer, Applied):
            self.counts["proved_applied"] += 1
            self.wrote(call.box, self.view.reign, acknowledged=True)
        else:
            self.counts["proved_not_applied"] += 1
        if call.token is not None:
            applied = "result lost" if call.result is None else "applied"
            outcome = "not applied" if isinstance(answer, NotApplied) else applied
            self.effects.events.append(OutcomeResolved(at=self.clock(), node=node, token=call.token, outcome=outcome))
        if call.orphan is not None:
            call.orphan.resolved = True
            call.orphan.doomed = isinstance(answer, NotApplied)

    def result_lost(self, call: Call, failure: Failure) -> ResultLost:
        """Return the error for a write that was applied, and whose rows went with the connection."""
        self.counts["result_lost"] += 1
        return result_lost(call, self._addresses.get(failure.node, failure.node))

    def left_open(self, call: Call, failure: Failure, why: str | None = None) -> OutcomeUnknown:
        """Return the error for a write of unknown fate; *why*: what else is known about it, as one phrase."""
        self.counts["unknown"] += 1
        now = self.clock()
        error = left_open(call, failure, self._addresses.get(failure.node, failure.node), why)
        reign = call.orphan.reign if call.orphan is not None else self.view.reign
        error.reign = str(reign) if reign else None
        sent = call.began if call.sent is None else call.sent
        error.sent_at = self.wall() - (now - sent) if self.wall else None
        self.effects.events.append(
            OutcomeLeftOpen(
                at=now,
                node=failure.node,
                why=f"{failure.why} ({why})" if why else failure.why,
                token=call.token,
                reign=error.reign,
                sent_at=error.sent_at,
            )
        )
        return error

    @property
    def eventful(self) -> bool:
        """Whether something has to be done outside."""
        effects = self.effects
        return bool(effects.events or effects.epochs or effects.silent or effects.hurry or effects.changed)

    def take_effects(self) -> Effects | None:
        """Hand over what has to be done outside; None if there is nothing."""
        effects = self.effects
        if not self.eventful:
            return None
        now = self.clock()
        effects.events = self.chronicle.fold(effects.events, now)
        self._note_since(now)
        self.effects = Effects()
        return effects

    def _note_since(self, now: float) -> None:
        """Note when what `status` shows took its value."""
        self.since.note(self.gate.state, now, "writes")
        for name, node in self.nodes.items():
            self.since.note((node.view.role, node.view.fenced), now, name, "role")
            self.since.note(node.view.reachable, now, name, "reachable")
            self.since.note(node.breaker.state, now, name, "breaker")

    def _gate(self, now: float, change: gate.Change | None) -> None:
        if change is None:
            return
        self.effects.changed = True
        if change.hold is not None:
            hold = change.hold
            self.effects.events.append(
                Flapping(
                    at=now,
                    node=self.view.primary or "no node",
                    changes=hold.changes,
                    within=hold.window,
                    stay=hold.until - now,
                )
            )
        if change.was is change.now:
            return
        self.effects.events.append(
            GateChanged(at=now, was=change.was.value, now=change.now.value, why=change.why, waiting=self.waiting)
        )

    def _note_breaker(self, node: Node, change: breaker.Change | None) -> None:
        if change is None or change.was is change.now:
            return
        self.effects.events.append(
            BreakerChanged(at=self.clock(), node=node.name, was=change.was.value, now=change.now.value, why=change.why)
        )
        self.publish()

    def admit(self, call: Call) -> Overloaded | None:
        """Say whether one more call may wait; the error to raise if not."""
        refusal = self.gate.may_wait(self.waiting, call.deadline, self.clock())
        return Overloaded(refusal, retry_after=1.0) if refusal else None
