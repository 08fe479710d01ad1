"""The one mutable aggregate that plans read and attempts record into.

Whoever holds it holds the guard's lock (on asyncio: runs on the loop, without an await inside). It decides nothing by
itself: it hands the facts to `retry`, `breaker`, `gate`, `topology` and `route`, and publishes what follows from them.
What must be done outside (events to dispatch, leases to end, probes to hurry) is collected and taken by the runtime
with `take_effects`, so that no user code runs in here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dbguard.core.breaker import Breaker, BreakerPolicy, BreakerState
from dbguard.core.budget import Budget
from dbguard.core.effects import Effects
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.gate import Gate, GateState
from dbguard.core.outcome import Applied, NotApplied, left_open, result_lost
from dbguard.core.plan import Call, Choice, Nowhere
from dbguard.core.reasons import why_unfit
from dbguard.core.retry import RetryPolicy, Stake
from dbguard.core.route import STRATEGIES, Node, Rng, caught_up
from dbguard.core.topology import Changes, Instance, Missed, Role, Sighting, View
from dbguard.errors import NoPrimary, NoReplica, Overloaded, SplitBrain
from dbguard.events import (
    BreakerChanged,
    CallRepeated,
    ClassifierMissed,
    ContextOutlivedReign,
    GateChanged,
    OutcomeLeftOpen,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dbguard.core import breaker, gate
    from dbguard.core.causal import Box
    from dbguard.core.merge import Topology
    from dbguard.errors import OutcomeUnknown, ResultLost

__all__ = ["GuardState", "ReadPolicy"]

COUNTED = ("repeats", "unknown", "applied", "not_applied", "result_lost", "waited", "misread", "would_go_to_replica")
SOFT_FOR = 10.0
"""Seconds for which an overloaded node's weight is halved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """How reads are spread.

    from_replicas: whether reads may go to replicas at all. Default True.
    max_lag: seconds a replica may be behind, > 0; unknown lag is too much. Default 5.
    balance: a name in `route.STRATEGIES`. Default ``least-busy``.
    """

    from_replicas: bool = True
    max_lag: float = 5.0
    balance: str = "least-busy"


class GuardState:
    """Everything the guard knows, and what follows from it.

    clock: seconds, monotonic; handed in. rng: handed in. observe: decide and report, send all to the primary.
    """

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
        self.clock = clock
        self.rng = rng
        self.retry = retry
        self.reads = reads
        self.topology = topology
        self.gate = gate
        self.observe = observe
        self.budget = Budget(ratio=retry.budget, floor=retry.floor)
        self.effects = Effects()
        self.waiting = 0
        self.learnt: int | None = None
        self.learnt_at = -1.0
        self._wall = wall
        self._addresses = dict(addresses or {})
        self._from_replicas = reads.from_replicas
        self._balance = STRATEGIES[reads.balance]()
        self._lost_reigns: set[str] = set()
        self.nodes = {
            name: Node(name, Breaker(breaker, rng), view, weight=(weights or {}).get(name, 1))
            for name, view in topology.view.nodes.items()
        }
        self.primary: Node | None = None
        self._holder: Node | None = None  # of the office, now or last
        self.readers: tuple[Node, ...] = ()
        self.eventual: tuple[Node, ...] = ()
        self.counts = dict.fromkeys(COUNTED, 0)
        self.publish()

    @property
    def view(self) -> View:
        """The present picture of all nodes; immutable."""
        return self.topology.view

    # ------------------------------------------------------------------ recording attempts

    def succeeded(self, node: Node, generation: int) -> None:
        """Record that an attempt on *node* was answered; *generation* is the breaker's when it began."""
        node.breaker.success(self.clock(), generation)

    def failed(self, failure: Failure, generation: int) -> None:
        """Record a failed attempt; *generation* is that of the breaker when the attempt began."""
        now = self.clock()
        node = self.nodes[failure.node]
        family = failure.family
        if family is Family.ANSWERED or family is Family.CONTENTION:
            node.breaker.success(now, generation)
        elif family is Family.HARD and not failure.ours:
            self._note_breaker(node, node.breaker.failure(now, generation, hard=True))
            self._doubt(node, now, failure.why)
        elif family is Family.SOFT:
            node.breaker.failure(now, generation, hard=False)
            node.soft_until = now + SOFT_FOR
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
        view = self.view
        for result in results:
            node = self.nodes[result.node]
            if isinstance(result, Sighting):
                node.seen_at = max(node.seen_at, result.at)
                if result.fresh or node.breaker.state in (BreakerState.OPEN, BreakerState.HALF_OPEN):
                    self._note_breaker(node, node.breaker.close_at_once(now, "a probe reached it"))
                if result.node == view.primary and result.position is not None and result.at > self.learnt_at:
                    self.learnt, self.learnt_at = result.position, result.at
            elif result.shut:
                node.shut = True
            elif full and not result.alive and not result.config:
                if view.nodes[result.node].role is not Role.PRIMARY:
                    # What is under way on a silent primary may still succeed; it is ended when another one is accepted.
                    self.effects.silent.append(result.node)
                self._note_breaker(node, node.breaker.trip(now, result.why))
        self._absorb(changes, now)
        primary = view.nodes[view.primary] if view.primary else None
        if view.refused:
            self._gate(now, self.gate.refuse(now, view.refused or ""))
        elif primary is None:
            self._gate(now, self.gate.primary_lost(now, self._why_lost()))
        elif not primary.reachable:
            self._gate(now, self.gate.suspect(now, f"{primary.name} missed a probe"))
        elif not self.nodes[primary.name].doubted:
            self._gate(now, self.gate.primary_found(now))
        if full:
            self.effects.changed = True

    def met(self, seen: Sighting) -> str | None:
        """Take in what a new connection's server said of itself; the reason if the connection must not be used."""
        self.probed([seen], full=False)
        view = self.view.nodes[seen.node]
        if view.fenced or self._is_older(seen):
            return f"{seen.node} belongs to an older reign"
        return view.misconfigured

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

    def trust(self, node: str) -> None:
        """Forget what was remembered of older reigns: *node* is the primary because its operator says so."""
        now = self.clock()
        self._absorb(self.topology.trust(node, now), now)

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
            self.effects.epochs[name] = (epoch, how)
        if changes.epochs or changes.events:
            self.effects.changed = True
        if changes.look_again:
            self.effects.hurry = True
        if self.view.primary is None and self.primary is not None:
            self._gate(now, self.gate.primary_lost(now, f"{self.primary.name} is lost"))
        self.publish()

    def publish(self) -> None:
        """Recompute who is fit for what. Called on change, never per call."""
        view = self.view
        for name, node in self.nodes.items():
            node.view = view.nodes[name]
        primary = self.nodes[view.primary] if view.primary else None
        if primary is not self.primary:
            self.learnt, self.learnt_at = None, -1.0
            self.effects.changed = True
        self.primary = primary
        self._holder = primary or self._holder
        live = [
            node
            for node in self.nodes.values()
            if node.view.role is Role.REPLICA
            and node.view.reachable
            and node.view.misconfigured is None
            and node.breaker.granted
        ]
        calm = [node for node in live if not node.doubted]
        self.eventual = tuple(calm or live)
        self.readers = tuple(
            node
            for node in self.eventual
            if node.view.proven and node.view.lag is not None and node.view.lag <= self.reads.max_lag
        )

    # ------------------------------------------------------------------ routing

    def pick(self, call: Call) -> Node | None:
        """Choose the node for the first attempt of *call*, as `route` does; None: ask `route`. On the fast path."""
        if call.reads and (call.role == "replica" or (call.role is None and self._from_replicas)):
            candidates = self.candidates(call)
            if candidates and self.observe:
                self.counts["would_go_to_replica"] += 1
            elif candidates:
                return self._balance(candidates, self.rng, call.began)
            elif call.fallback == "error":
                return None
        primary = self.primary
        if primary is None or self.gate.state is not GateState.OPEN or self.gate.paced:
            return None
        return primary

    def route(self, call: Call, avoid: frozenset[str] = frozenset(), *, queued: bool = False) -> Choice | Nowhere:
        """Choose the node for the next attempt of *call*, and say why.

        avoid: nodes where it has failed; the primary among them counts only while the doubt has not been answered.
        queued: the call has waited for its turn already.
        """
        if self.spreads(call):
            candidates = self.candidates(call)
            if avoid:
                candidates = [node for node in candidates if node.name not in avoid]
            if candidates and not self.observe:
                node = self._balance(candidates, self.rng, self.clock())
                return Choice(node.name, "replica", f"{call.consistency} read, {len(candidates)} fit")
            why = "mode: observe" if candidates else self._no_reader(call)
            if not candidates and call.fallback == "error":
                return Nowhere(f"no replica is fit for this read: {why}", NoReplica, waits=False)
        else:
            why = call.text.why if call.text is not None else "a transaction"
        return self._writer(call, avoid, why, queued=queued)

    def spreads(self, call: Call) -> bool:
        """Whether *call* is one for a replica, as far as what it is and what was asked for say."""
        return call.reads and (call.role == "replica" or (call.role is None and self._from_replicas))

    def candidates(self, call: Call) -> Sequence[Node]:
        """Return the replicas that are fit for a read of this consistency, in this context, of the nodes it may go to."""
        fit = self._fit(call.consistency, call.box)
        return fit if call.group is None else [node for node in fit if node.name in call.group]

    def _fit(self, consistency: str, box: Box) -> Sequence[Node]:
        if consistency == "own-writes":
            if not box.written_at and not box.pins:
                # Before a first primary was seen there is nothing to follow, and nothing of this context to miss.
                return self.readers if self.view.reign is not None else self.eventual
            if box.reign != self.view.reign:
                self._say_lost(box)
            floor = box.floor(self.view.reign, self.learnt, self.learnt_at)
            return () if floor is None else caught_up(self.readers, floor)
        if consistency == "primary":
            return ()
        return self.eventual if consistency == "eventual" else self.readers

    def overtaken(self, call: Call, node: Node, epoch: int) -> Failure | None:
        """Say whether the choice of *node*, made under its *epoch*, still stands; the failure to go on with if not.

        Asked when a call has waited for a connection: meanwhile the node may have become another one. A fresh
        connection to it passes every check of its own, and is still not where this call wanted to go: a write would
        reach a server that nobody has accepted, a read one that was never proven to have what it needs.
        """
        if node.epoch == epoch:
            return None
        error = NoReplica if call.reads else NoPrimary
        cause = error(f"{node.name} changed while this call waited for a connection to it", retry_after=0.1)
        return Failure(node=node.name, phase=Phase.UNSENT, family=Family.NEUTRAL, cause=cause, ours=True)

    def has_other(self, call: Call, failed: str) -> bool:
        """Say whether *call* can go on at once on another node than *failed*."""
        return not isinstance(self.route(call, frozenset((failed,))), Nowhere)

    def _writer(self, call: Call, avoid: frozenset[str], why: str, *, queued: bool) -> Choice | Nowhere:
        primary = self.primary
        if self._holder is not None and self._holder.shut:
            return Nowhere(f"the application has closed its pool of {self._holder.name}", NoPrimary, waits=False)
        if primary is None or not self.gate.writable:
            refused = self.view.refused
            error = SplitBrain if refused and "split brain" in refused else NoPrimary
            reason = refused or self.gate.why
            waits = call.wait and self.gate.state is not GateState.DOWN and not refused
            return Nowhere(f"no primary to go to: {reason}", error, waits=waits, retry_after=1.0)
        if primary.doubted and (primary.name in avoid or not primary.breaker.granted):
            return Nowhere(f"{primary.name} is being probed", NoPrimary, waits=call.wait, retry_after=0.1)
        if not queued and self.waiting and self.gate.paced:
            return Nowhere("waiting calls go first", NoPrimary, waits=True)
        return Choice(primary.name, "primary", why)

    def _no_reader(self, call: Call) -> str:
        consistency = call.consistency
        if consistency == "primary":
            return "consistency: primary"
        if consistency == "own-writes" and call.box.floor(self.view.reign, self.learnt, self.learnt_at) is None:
            return "own writes: no replica is proven to have them yet"
        return why_unfit(self.nodes.values(), consistency, self.reads.max_lag)

    def _say_lost(self, box: Box) -> None:
        reign = self.view.reign
        if box.reign is None or reign is None or box.reign == reign or str(box.reign) in self._lost_reigns:
            return
        self._lost_reigns.add(str(box.reign))
        self.effects.events.append(ContextOutlivedReign(at=self.clock(), node=self.view.primary or "no node"))

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

    def resolved(self, call: Call, answer: Applied | NotApplied) -> None:
        """Take in what a token proved: the context's reads need not wait for the backend any more.

        Whatever still runs there cannot be applied, so that its locks may be taken from it.
        """
        if isinstance(answer, Applied):
            self.counts["applied"] += 1
            call.box.wrote(self.view.reign, self.clock())
        else:
            self.counts["not_applied"] += 1
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
        self.effects.events.append(OutcomeLeftOpen(at=self.clock(), node=failure.node, why=failure.why))
        error = left_open(call, failure, self._addresses.get(failure.node, failure.node), why)
        error.reign = str(self.view.reign) if self.view.reign else None
        error.sent_at = self._wall() if self._wall else None
        return error

    def take_effects(self) -> Effects | None:
        """Hand over what has to be done outside; None if there is nothing."""
        effects = self.effects
        if not (effects.events or effects.epochs or effects.silent or effects.hurry or effects.changed):
            return None
        self.effects = Effects()
        return effects

    def _gate(self, now: float, change: gate.Change | None) -> None:
        if change is None or change.was is change.now:
            return
        self.effects.changed = True
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
