"""Where a call may go: who is fit for what, recomputed when something changes, and one node chosen per call.

It changes nothing of what is known; `dbguard.core.state` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbguard.core.effects import Effects
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.gate import PACE
from dbguard.core.plan import Choice, Nowhere
from dbguard.core.reasons import why_unfit
from dbguard.core.route import STRATEGIES, caught_up
from dbguard.core.since import Since
from dbguard.core.topology import Role
from dbguard.errors import NoPrimary, NoReplica, Overloaded, SplitBrain
from dbguard.events import ContextOutlivedReign

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dbguard.core.causal import Box
    from dbguard.core.gate import Gate
    from dbguard.core.merge import Topology
    from dbguard.core.plan import Call
    from dbguard.core.route import Node, Rng
    from dbguard.core.topology import Reign, View

__all__ = ["ReadPolicy", "Router"]

COUNTED = (
    "repeats",
    "unknown",
    "proved_applied",
    "proved_not_applied",
    "result_lost",
    "waited",
    "misread",
    "would_go_to_replica",
)


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


class Router:
    """What routing reads, and the choice of a node.

    nodes: by name, in the order of the configuration. primary: where writes go; None if there is none.
    readers: replicas fit for reads that need proof; eventual: those fit for reads that do not.
    learnt, learnt_at: a position of the present primary, and when the probe that told it was sent.
    waiting: calls that wait for their turn at the gate. counts: since the guard was opened.
    since: when what is shown of each node, and the gate, last changed.
    """

    def __init__(
        self,
        topology: Topology,
        nodes: Mapping[str, Node],
        *,
        clock: Callable[[], float],
        rng: Rng,
        gate: Gate,
        reads: ReadPolicy,
        observe: bool,
    ) -> None:
        self.topology = topology
        self.nodes = nodes
        self.clock = clock
        self.rng = rng
        self.gate = gate
        self.reads = reads
        self.observe = observe
        self.effects = Effects()
        self.waiting = 0
        self.learnt: int | None = None
        self.learnt_at = -1.0
        self.primary: Node | None = None
        self.readers: tuple[Node, ...] = ()
        self.eventual: tuple[Node, ...] = ()
        self.counts = dict.fromkeys(COUNTED, 0)
        self.since = Since()
        self._holder: Node | None = None  # of the office, now or last
        self._from_replicas = reads.from_replicas
        self._balance = STRATEGIES[reads.balance]()
        self._lost_reigns: set[Reign] = set()
        self._fit: Mapping[str, Sequence[Node]] = {}  # by consistency, for contexts that have written nothing
        self.publish()

    @property
    def view(self) -> View:
        """The present picture of all nodes; immutable."""
        return self.topology.view

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
        self._fit = {
            # Before a first primary was seen there is nothing to follow, and nothing of any context to miss.
            "own-writes": self.readers if view.reign is not None else self.eventual,
            "bounded": self.readers,
            "eventual": self.eventual,
            "primary": (),
        }

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
        if primary is None or not self.gate.clear:
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
        box = call.box
        if (box.written_at or box.pins) and call.consistency == "own-writes":
            fit = self._behind(box)
        else:
            fit = self._fit[call.consistency]
        return fit if call.group is None else [node for node in fit if node.name in call.group]

    def _behind(self, box: Box) -> Sequence[Node]:
        """Return the replicas that have what a context has written."""
        reign = self.view.reign
        if box.reign is not reign and box.reign != reign:
            self._say_lost(box)
        floor = box.floor(reign, self.learnt, self.learnt_at)
        return () if floor is None else caught_up(self.readers, floor)

    def overtaken(self, call: Call, node: Node, epoch: int) -> Failure | None:
        """Say whether the choice of *node*, made under its *epoch*, still stands; the failure to go on with if not.

        Asked when a call has waited for a connection: meanwhile the node may have become another one. A fresh
        connection to it passes every check of its own, and is still not where this call wanted to go: a write would
        reach a server that nobody has accepted, a read one that was never proven to have what it needs, or of which that
        is not known any more.
        """
        if node.epoch == epoch and (node is self.primary or not self.spreads(call) or node in self.candidates(call)):
            return None
        error = NoReplica if call.reads else NoPrimary
        cause = error(f"{node.name} changed while this call waited for a connection to it", retry_after=0.1)
        return Failure(node=node.name, phase=Phase.UNSENT, family=Family.NEUTRAL, cause=cause, ours=True)

    def still_asked(self, node: Node, epoch: int, reign: Reign | None) -> bool:
        """Say whether what *node* answered, asked as the primary of *reign* under *epoch*, counts.

        The reign alone does not tell: it goes on where another instance is taken for its primary restarted, and what
        the one before answers from then on is as void as what it answers to a write.
        """
        return self.view.reign == reign and node.epoch == epoch

    def has_other(self, call: Call, failed: str) -> bool:
        """Say whether *call* can go on at once on another node than *failed*."""
        return not isinstance(self.route(call, frozenset((failed,))), Nowhere)

    def could_go(self, call: Call) -> bool:
        """Say whether *call*, which waits at the gate, is served or refused if it asks again, though writes do not flow.

        Quick, since it is asked for each that waits: by what `route` looks at, without the choice.
        """
        if self._holder is not None and self._holder.shut:
            return True
        return not self.observe and self.spreads(call) and bool(self.candidates(call))

    def _writer(self, call: Call, avoid: frozenset[str], why: str, *, queued: bool) -> Choice | Nowhere:
        primary = self.primary
        if self._holder is not None and self._holder.shut:
            return Nowhere(f"the application has closed its pool of {self._holder.name}", NoPrimary, waits=False)
        if primary is None or not self.gate.writable:
            return self._no_writer(call)
        if primary.doubted and (primary.name in avoid or not primary.breaker.granted):
            return Nowhere(f"{primary.name} is being probed", NoPrimary, waits=call.wait, retry_after=0.1)
        if not queued and self.waiting and self.gate.paced:
            return Nowhere("waiting calls go first", Overloaded, waits=call.wait, retry_after=PACE)
        return Choice(primary.name, "primary", why)

    def _no_writer(self, call: Call) -> Nowhere:
        """Say why nothing goes to a primary now, and whether *call* waits for that to change."""
        gate, refused = self.gate, self.view.refused
        waits = call.wait and not gate.declines and not refused
        if refused:
            error = SplitBrain if "split brain" in refused else NoPrimary
            return Nowhere(f"no primary to go to: {refused}", error, waits=waits, retry_after=1.0)
        if gate.open and gate.paused_until is not None:
            left = max(0.0, gate.paused_until - self.clock())
            return Nowhere("guard.pause() holds what needs the primary", NoPrimary, waits=waits, retry_after=left)
        if gate.hold is not None:
            left = max(0.0, gate.hold.until - self.clock())
            return Nowhere(f"no primary to go to yet: {gate.why}", NoPrimary, waits=waits, retry_after=left)
        silent = [node.view for node in self.nodes.values() if not node.view.reachable]
        what = f"no primary to go to: {gate.why}"
        if len(silent) == len(self.nodes):
            said = "; ".join(
                f"{view.name}: {view.misconfigured or view.silent or 'not heard of yet'}" for view in silent
            )
            what = f"no node answers ({said}): {gate.why}"
        return Nowhere(what, NoPrimary, waits=waits, retry_after=1.0)

    def _no_reader(self, call: Call) -> str:
        consistency = call.consistency
        if consistency == "primary":
            return "consistency: primary"
        if consistency == "own-writes" and call.box.floor(self.view.reign, self.learnt, self.learnt_at) is None:
            return "own writes: no replica is proven to have them yet"
        return why_unfit(self.nodes.values(), consistency, self.reads.max_lag)

    def _say_lost(self, box: Box) -> None:
        reign = self.view.reign
        if box.reign is None or reign is None or box.reign == reign or box.reign in self._lost_reigns:
            return
        self._lost_reigns.add(box.reign)
        self.effects.events.append(ContextOutlivedReign(at=self.clock(), node=self.view.primary or "no node"))
