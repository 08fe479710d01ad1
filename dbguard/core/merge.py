"""The memory behind the views: folds what probes and calls said into the next view (RULES 4 and 5.2).

What a *full* round alone can do (all nodes asked in parallel): accept the first reign; find a claim contested or a
split brain, and lift such a refusal; confirm that a node does not answer, and so take the office from a silent
primary. What any single probe does at once: fence a node on a lower timeline; follow a known replica that was
promoted; follow the primary that was restarted under its name; take the office from a primary that is in recovery.
A single missed probe changes nothing but asks for a full round.

Cluster identity. Until a reign is accepted, the system identifier told by most nodes is the cluster's; of equal
numbers, the one listed first. A node of another cluster is out of rotation, with an event. Under ``pin`` that stays
until `Topology.trust`; under ``follow`` a primary of another cluster is treated as a stranger on a higher timeline.

Loss. A reign that begins below what was acknowledged under the one before it says so (`dbguard.core.loss`). One that
begins further below than `max_loss` gets the office, so that the old primary is fenced, and no writes: until the operator
trusts a node, or another reign begins that has them. What was acknowledged is kept until then.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, assert_never

from dbguard.core.lag import Samples
from dbguard.core.loss import Ledger
from dbguard.core.node import NEVER, Node
from dbguard.core.succession import (
    Accept,
    Claim,
    Contest,
    Holder,
    Keep,
    Office,
    Outlived,
    Split,
    Verdict,
    Witness,
    judge,
)
from dbguard.core.topology import Changes, Instance, Missed, NodeView, Reign, Role, Sighting, View
from dbguard.events import Contested, Event, NodeFenced, PrimaryChanged, SplitBrainSeen, WriteMayBeLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Topology"]


class Topology:
    """What this process knows about the cluster.

    Not thread-safe: one monitor merges; everybody reads `view`, which is replaced and never changed.

    names: the nodes, in the order of the configuration; at least one, no two alike.
    new_mark: makes the mark of a reign; unique in this process.
    split_brain: ``refuse`` writes while two servers claim one timeline, or go on with the ``incumbent`` as long as its
        control connection never broke.
    system_id: ``pin`` the cluster's identity, or ``follow`` the primary's.
    max_loss: bytes by which a new reign may begin below what was acknowledged, >= 0; None: any number.
    """

    _office: Office | None
    _system_id: str | None
    _trusted: str | None
    _dismissed: dict[str, Instance]
    _bearers: dict[int, Instance]
    """Who was seen to claim a timeline above the accepted one, by its number."""
    _doubted: set[int]
    """Numbers that two reigns were seen to bear."""
    _twinned: set[int]
    """Numbers that two reigns were seen to bear, with a mark of its own each."""
    _rivalled: bool
    """A probe saw another server claim the accepted timeline; until a full round has judged it, no number proves anything."""
    _ledger: Ledger
    """Where acknowledged commits lie in the history of the accepted reign; while its loss is refused, of the one before."""
    _refused: str | None
    _too_lossy: str | None
    """Why the accepted reign gets no writes; None: it begins with enough."""
    _split: int
    """Full rounds in a row that found a split brain."""
    _split_said: tuple[str, ...]
    _unbroken: bool
    """The holder's control connection never broke."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        new_mark: Callable[[], str],
        split_brain: Literal["refuse", "incumbent"] = "refuse",
        system_id: Literal["pin", "follow"] = "pin",
        max_loss: int | None = None,
    ) -> None:
        self._nodes = {name: Node(name) for name in names}
        self._new_mark = new_mark
        self._incumbent_wins = split_brain == "incumbent"
        self._follows = system_id == "follow"
        self._max_loss = max_loss
        self._events: list[Event] = []
        self._samples = Samples()
        self._last_word: tuple[str, Reign] | None = None  # who was announced last
        self._forget()
        self.view = View(MappingProxyType({name: NodeView(name=name) for name in names}))

    def merge(self, results: Sequence[Sighting | Missed], now: float, *, full: bool) -> Changes:
        """Fold the results of one round into the next `view`; return what changed.

        results: of one probe, or of several; of a full round, one per node. Results that newer ones have overtaken are
            dropped.
        full: all nodes were asked, in parallel. See the module's docstring for what depends on it.
        """
        heard: set[str] = set()
        doubt = False
        for result in results:
            node = self._nodes[result.node]
            if result.at < node.heard_at:
                continue
            if isinstance(result, Sighting):
                node.hear(result, now)
                heard.add(node.name)
            else:
                doubt |= node.miss(result, now, full=full)
                if self._office is not None and node.name == self._office.node:
                    self._unbroken = False
        self._place(heard, now, full=full)
        holder, name = self._find_holder()
        while isinstance(verdict := self._judge(holder, heard, full=full), Accept):
            self._accept(verdict, now)  # and the other claims are judged beside the new holder
            holder, name = self._find_holder()
        primary = self._settle(verdict, name, now, full=full)
        doubt |= isinstance(verdict, Keep) and verdict.doubt
        return self._publish(heard, primary, now, doubt=doubt)

    def lost(self, node: str, now: float) -> Changes:
        """Conclude what a call found out by itself: *node* is in recovery, so it is not the primary (any more).

        Only hard evidence counts: 25006 with `in_hot_standby` on. Probes sent before it cannot say otherwise.
        """
        found = self._nodes[node]
        found.heard_at = max(found.heard_at, now)
        if found.role is Role.PRIMARY:
            found.take_role(Role.REPLICA, now)
        return self._publish(set(), None if self.view.primary == node else self.view.primary, now, doubt=True)

    def trust(self, node: str, now: float) -> Changes:
        """Let the operator decide: forget what was accepted, and take *node* for the primary as soon as it claims to be.

        For after a restore, and to end a contest or a split brain. Whoever else claims to be primary now is fenced,
        whatever its timeline, until it is another instance or a replica. No write is known to be acknowledged.
        """
        chosen = self._nodes[node]
        self._forget()
        for other in self._nodes.values():
            other.known_as, other.returns, other.earlier, other.heard_of = NEVER, 0, (), 0
            if other.claim is not None and other is not chosen and not other.instance.is_surely(chosen.instance):
                self._dismissed[other.name] = other.instance
        self._trusted = node
        self._system_id = chosen.instance.system_id
        self._place(set(), now, full=False)
        primary = self._accept(Accept(self._claim(chosen)), now) if chosen.claim is not None else None
        return self._publish(set(), primary, now, doubt=True)

    def renew(self, node: str, now: float) -> Changes:
        """Make all connections to *node* stale, because the application wants new ones."""
        self._nodes[node].raise_epoch("drain")
        return self._publish(set(), self.view.primary, now, doubt=False)

    def acknowledged(self, position: int, reign: Reign, *, confirmed: bool = False) -> None:
        """Note that a commit acknowledged under *reign* lies at or below *position*.

        position: the primary's insert position, asked for after the acknowledgement: insert positions alone say
            nothing, since what was never acknowledged is not lost.
        confirmed: a standby had the commit before it was acknowledged.
        """
        if self._office is not None and self._office.reign == reign and self._too_lossy is None:
            self._ledger.note(position, confirmed=confirmed)

    def _forget(self) -> None:
        self._office = self._system_id = self._trusted = self._refused = self._too_lossy = None
        self._ledger = Ledger()
        self._dismissed, self._bearers, self._doubted, self._twinned = {}, {}, set(), set()
        self._rivalled = False
        self._split, self._split_said, self._unbroken = 0, (), True

    def _place(self, heard: set[str], now: float, *, full: bool) -> None:
        """Sort out who belongs to this cluster, and remember the replicas among them."""
        if full and (self._system_id is None or (self._office is None and self._trusted is None)):
            told = Counter(
                node.instance.system_id
                for node in self._nodes.values()
                if node.last is node.seen and node.instance.system_id is not None
            )
            self._system_id = told.most_common(1)[0][0] if told else self._system_id
        for node in self._nodes.values():
            node.judge_system(self._system_id, now)
            if node.name in heard and node.replica:
                node.known_as = node.instance.system_id
                self._dismissed.pop(node.name, None)

    def _find_holder(self) -> tuple[Holder, str | None]:
        """Return what became of the holder of the office, and the name under which it is the primary now."""
        office = self._office
        if office is None:
            return Holder.GONE, None
        own = self._nodes[office.node]
        waiting = self.view.primary == own.name and own.up is True and isinstance(own.last, Missed)
        names = [node.name for node in self._nodes.values() if self._holds(office, node)]
        if names:
            return Holder.ANSWERS, own.name if waiting or own.name in names else names[0]
        return (Holder.OVERLOADED, own.name) if waiting else (Holder.GONE, None)

    def _holds(self, office: Office, node: Node) -> bool:
        """Return whether *node* answers as the very server that holds the office."""
        if node.claim is None or node.claim.timeline not in {None, office.reign.timeline}:
            return False
        if node.name == office.node and not node.risen:
            return not node.instance.differs(office.instance)
        return node.instance.is_surely(office.instance)

    def _is_dismissed(self, node: Node) -> bool:
        return node.name in self._dismissed and not node.instance.differs(self._dismissed[node.name])

    def _claim(self, node: Node) -> Claim:
        marked = node.seen.marked if node.seen is not None else None
        timeline = node.seen.timeline if node.seen is not None else None
        return Claim(
            node=node.name,
            instance=node.instance,
            timeline=timeline,
            position=node.seen.position if node.seen is not None else None,
            branched=node.seen.branched if node.seen is not None else None,
            known=node.is_known_replica(node.instance),
            risen=node.risen,
            mark=None if marked is None else marked.mark if marked.timeline == timeline else "",
            unasked=node.seen is not None and marked is None and node.seen.unmarked is None,
        )

    def _judge(self, holder: Holder, heard: set[str], *, full: bool) -> Verdict:
        office = self._office
        claims = [
            self._claim(node)
            for node in self._nodes.values()
            if node.claim is not None
            and node.name in heard
            and not (office is not None and self._holds(office, node))
            and not self._is_dismissed(node)
            and (not node.foreign or (self._follows and office is not None))
        ]
        for claim in claims:
            if office is not None and claim.timeline is not None and claim.compared_to(office.reign) > 0:
                self._note_bearer(claim.timeline, claim.instance)
        for claim in claims:
            if office is None and claim.node == self._trusted:
                return Accept(claim)
        self._rivalled = not full and (
            self._rivalled
            or (holder is Holder.ANSWERS and office is not None and any(_rivals(office, claim) for claim in claims))
        )
        if self._split and not full:
            return Keep(doubt=True)
        number = office.reign.timeline if office is not None else None
        doubted, twinned = number in self._doubted, number in self._twinned
        told = [Witness(node.name, node.heard_of) for node in self._nodes.values() if node.misconfigured is None]
        witness = max(told, key=lambda witness: witness.timeline, default=None)
        return judge(office, holder, claims, full=full, witness=witness, doubted=doubted, twinned=twinned)

    def _settle(
        self, verdict: Keep | Contest | Split | Outlived, name: str | None, now: float, *, full: bool
    ) -> str | None:
        """Carry out *verdict*; return the primary's name. Only a full round lifts a refusal."""
        was_refused = self._refused
        if full:
            self._refused = None
            if not isinstance(verdict, Split):
                self._split, self._split_said = 0, ()
        match verdict:
            case Keep():
                return name if self._split == 0 or name == self.view.primary else None
            case Contest() | Outlived():
                self._refused = verdict.refusal(name)
                if self._refused != was_refused:
                    beside = name or "a later primary"
                    self._events.append(Contested(at=now, node=verdict.claim.node, incumbent=beside, why=verdict.why))
                return name
            case Split(claims, beside):
                return self._note_split(claims, name if beside else None, was_refused, now)
            case _:
                assert_never(verdict)

    def _note_split(self, claims: tuple[Claim, ...], incumbent: str | None, was: str | None, now: float) -> str | None:
        """Count one full round in which several instances claimed one timeline; the second in a row refuses writes."""
        timeline = claims[0].timeline or 0
        self._doubted.add(timeline)
        self._split += 1
        names = tuple(name for name in (incumbent, *(claim.node for claim in claims)) if name is not None)
        if self._split == 1:
            self._refused = was
            return incumbent
        if names != self._split_said:
            self._events.append(SplitBrainSeen(at=now, nodes=names, timeline=timeline))
            self._split_said = names
        if not (self._incumbent_wins and incumbent is not None and self._unbroken):
            self._refused = f"split brain: {' and '.join(names)} are primary on timeline {timeline}; trust one of them"
        return incumbent

    def _accept(self, verdict: Accept, now: float) -> str:
        """Give the office to a claim, under the same reign or another one."""
        claim, old = verdict.claim, self._office
        node = self._nodes[claim.node]
        node.risen = False
        self._unbroken = True
        if old is not None and verdict.continues:
            if old.node != claim.node and self._nodes[old.node].role is Role.PRIMARY:
                self._nodes[old.node].raise_epoch("now")
            self._office = replace(old, node=claim.node, instance=claim.instance)
            return claim.node
        timeline = claim.timeline or (old.reign.timeline if old is not None else 0)
        system_id = claim.instance.system_id or self._system_id
        if system_id != self._system_id:
            self._system_id = system_id
            for other in self._nodes.values():
                other.judge_system(system_id, now)
        elif old is not None and old.reign.timeline == timeline:
            told_apart = None not in (old.reign.agreed, claim.mark) and claim.mark != old.reign.agreed
            (self._twinned if told_apart else self._doubted).add(timeline)
        if old is not None:
            self._judge_loss(claim, old, now)
        self._bearers = {number: bearer for number, bearer in self._bearers.items() if number > timeline}
        self._doubted = {number for number in self._doubted if number >= timeline}
        self._twinned = {number for number in self._twinned if number >= timeline}
        self._samples.clear()
        self._office = Office(
            reign=Reign(system_id, timeline, self._new_mark()), node=claim.node, instance=claim.instance
        )
        for other in self._nodes.values():
            if self._last_word is not None:
                deposed = (
                    other.role is Role.PRIMARY and other is not node and not other.instance.is_surely(node.instance)
                )
                other.raise_epoch("now" if deposed else "keep")
            other.forget_proof()
        return claim.node

    def _judge_loss(self, claim: Claim, old: Office, now: float) -> None:
        """Say what the new reign lacks of what was acknowledged under the *old* one, and refuse it if that is too much."""
        begin = None if claim.instance.is_of_another_system(old.instance) else claim.begins(old.reign)
        between, position = self._nodes[claim.node].passed
        if begin is not None and old.reign.timeline < between < (claim.timeline or 0):
            begin = min(begin, position)  # the reign between was never accepted here, and began below
        lost = self._ledger.lost(begin) if begin is not None else 0
        if lost:
            self._events.append(WriteMayBeLost(at=now, node=claim.node, lost_bytes=lost))
        if self._max_loss is not None and lost > self._max_loss:
            self._too_lossy = (
                f"{claim.node} begins {lost} bytes below what was acknowledged, which is more than failover.max_loss "
                f"({self._max_loss}); guard.trust() goes on with it, or with the node that has more"
            )
        else:
            self._too_lossy = None
            if begin is None:
                self._ledger = Ledger()
            else:
                self._ledger.branch(begin)

    def _note_bearer(self, timeline: int, instance: Instance) -> None:
        if instance.differs(self._bearers.setdefault(timeline, instance)):
            self._doubted.add(timeline)

    def _fence(self, node: Node, now: float) -> None:
        """Fence a node that claims to be primary on a lower timeline, or against the operator's word."""
        if node.role is Role.REPLICA:
            node.fenced = False
        if node.claim is None:
            return
        office = self._office
        lower = office is not None and self._claim(node).compared_to(office.reign) < 0
        fenced = lower or self._is_dismissed(node)
        if fenced and not node.fenced:
            node.raise_epoch("now")
            accepted = office.reign.timeline if office is not None else 0
            self._events.append(
                NodeFenced(at=now, node=node.name, timeline=node.claim.timeline or 0, accepted=accepted)
            )
        node.fenced = fenced

    def _measure(self, heard: set[str], primary: str | None) -> None:
        """Learn from the primary's answer where it is, and from the replicas' whom they follow."""
        office = self._office
        if office is None:
            return
        claim = self._nodes[primary].claim if primary is not None and primary in heard else None
        marked = claim.marked if claim is not None else None
        if marked is not None and marked.timeline == office.reign.timeline and marked.mark != office.reign.agreed:
            self._office = office = replace(office, reign=replace(office.reign, agreed=marked.mark))
        if claim is not None and claim.position is not None:
            flushed = [told for told in (office.flushed, claim.flushed) if told is not None]
            self._office = replace(office, flushed=max(flushed, default=None))
            self._samples.add(claim.at, claim.position)
        for node in self._nodes.values():
            if not node.replica:
                continue
            if claim is not None and claim.position is not None:
                node.compare(claim.at, claim.position)
            if node.name in heard:
                node.prove(office.reign)
                if node.proof == office.reign and node.told_position is not None and self._too_lossy is None:
                    self._ledger.replay(node.told_position[0])

    def _publish(self, heard: set[str], primary: str | None, now: float, *, doubt: bool) -> Changes:
        """Make the next view, and hand out what was noted on the way."""
        for node in self._nodes.values():
            self._fence(node, now)
        self._measure(heard, primary)
        reign = self._office.reign if self._office is not None else None
        if primary is not None and reign is not None and (primary, reign) != self._last_word:
            was = self._last_word[0] if self._last_word is not None else None
            self._events.append(PrimaryChanged(at=now, node=primary, was=was, reign=str(reign)))
            self._last_word = primary, reign
        before, refused = self.view, self._refused or self._too_lossy
        nodes = {name: self._see(node, before.nodes[name], reign, primary, now) for name, node in self._nodes.items()}
        told = before.primary, before.reign, before.reign and before.reign.mark, before.refused, before.nodes
        if told != (primary, reign, reign and reign.mark, refused, nodes):
            self.view = View(MappingProxyType(nodes), primary, reign, refused, before.version + 1)
        events = [event for node in self._nodes.values() for event in node.told] + self._events
        epochs = {node.name: (node.epoch, node.raised) for node in self._nodes.values() if node.raised is not None}
        for node in self._nodes.values():
            node.raised = None
            node.told.clear()
        self._events.clear()
        lost_primary = before.primary is not None and primary is None
        look_again = doubt or lost_primary or self._split == 1
        return Changes(events=tuple(events), epochs=epochs, look_again=look_again)

    def _see(self, node: Node, before: NodeView, reign: Reign | None, primary: str | None, now: float) -> NodeView:
        told = node.told_position if node.replica else None
        lag = self._samples.lag(told[0], None if primary is None else now) if told is not None else None
        number = reign.timeline if reign is not None else None
        doubted, twinned = self._rivalled or number in self._doubted, number in self._twinned
        after = node.view(lag=lag, reign=reign, doubted=doubted, twinned=twinned)
        return before if after == before else after


def _rivals(office: Office, claim: Claim) -> bool:
    return claim.compared_to(office.reign) == 0 and claim.instance.differs(office.instance)
