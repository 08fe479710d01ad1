"""What is remembered about one node, between the probes that reach it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dbguard.core.topology import Drain, Instance, Missed, NodeView, Reign, Role, Sighting, sterner
from dbguard.events import Event, NodeDown, NodeMisconfigured, NodeUp, RoleChanged

__all__ = ["Node"]

REMEMBERED = 8
"""Earlier instances kept per name: enough to know one that comes back, bounded for a name that never settles."""

MANY_RETURNS = 3

NEVER = object()


@dataclass(slots=True, eq=False)
class Node:
    """The memory of one node. Changed by `merge` alone."""

    name: str
    epoch: int = 0
    reachable: bool = False
    """The last probe was answered."""
    up: bool | None = None
    """As it was told to the listeners: down is only what a full round has confirmed. None: nothing was heard yet."""
    role: Role = Role.UNKNOWN
    instance: Instance = field(default_factory=Instance)
    seen: Sighting | None = None
    """The last answer."""
    last: Sighting | Missed | None = None
    """The last result."""
    earlier: tuple[Instance, ...] = ()
    returns: int = 0
    """How often an instance came back after another one had answered under this name."""
    risen: bool = False
    """It claims to be primary, and was a replica before it did."""
    known_as: object = NEVER
    """The system identifier under which it was last seen as a replica (None if it did not tell); NEVER if it was not."""
    heard_of: int = 0
    """The highest timeline that this instance has told of: where it is, its last checkpoint's, or a reign's that it knows."""
    heard_at: float = float("-inf")
    """When the last probe that counted was sent, or a call found out something: what was asked before is overtaken."""
    fenced: bool = False
    foreign: bool = False
    misconfigured: str | None = None
    proof: Reign | None = None
    """The reign that it was proven to follow, under this epoch."""
    marked: bool = False
    """The proof is the reign's mark, not a timeline's number."""
    diverged: bool = False
    ahead: int = 0
    behind_from: tuple[float, int] | None = None
    """A replay position, and a time by which it had been read: the primary, asked after it, must not be below."""
    bears: tuple[int, float] = (0, 0.0)
    """The latest timeline whose mark it has, and when that was heard first; 0: none is known."""
    passed: tuple[int, int] = (0, 0)
    """A timeline whose mark it had before it was asked for this position: that timeline branched off below; 0: none."""
    raised: Drain | None = None
    """How the epoch was raised in this merge."""
    told: list[Event] = field(default_factory=list)

    @property
    def claim(self) -> Sighting | None:
        """Its last result, if that says that it is a primary of this cluster."""
        return self.seen if self.last is self.seen and self.role is Role.PRIMARY else None

    @property
    def told_position(self) -> tuple[int, float] | None:
        """Its position and when that was asked for; None if that is not known, or not of one server in its role."""
        seen = self.seen
        if seen is None or seen.position is None or seen.role is not self.role or self.group:
            return None
        return seen.position, seen.at

    @property
    def group(self) -> bool:
        """Whether several instances stand behind the name."""
        return self.returns >= MANY_RETURNS

    @property
    def replica(self) -> bool:
        """Whether it is a replica of this cluster, as far as is known."""
        return self.role is Role.REPLICA and self.misconfigured is None

    def raise_epoch(self, how: Drain) -> None:
        """Make all connections dialled before stale: once per merge, the sterner way wins. No proof outlives it."""
        if self.raised is None:
            self.epoch += 1
        self.raised = how if self.raised is None else sterner(self.raised, how)
        self.forget_proof()

    def forget_proof(self) -> None:
        """Unlearn what was proven, and what speaks against it: both belong to an instance under one reign."""
        self.proof, self.marked, self.diverged, self.ahead, self.behind_from = None, False, False, 0, None

    def hear(self, sighting: Sighting, now: float) -> None:
        """Take in an answer."""
        self._meet(sighting)
        marked = sighting.marked.timeline if sighting.marked is not None else 0
        self.heard_of = max(self.heard_of, sighting.timeline or 0, sighting.control_timeline or 0, marked)
        self._pass(marked, sighting, now)
        self.last = self.seen = sighting
        self.heard_at = sighting.at
        if self.up is not True:
            role = sighting.role
            was = None if self.role in {Role.UNKNOWN, role} else self.role.value
            self.told.append(NodeUp(at=now, node=self.name, role=role.value, was=was))
        self.up = self.reachable = True
        if not self.foreign:
            self.misconfigured = None
        self.take_role(sighting.role, now)
        if self.behind_from is None and sighting.position is not None:
            self.behind_from = (now, sighting.position)

    def miss(self, missed: Missed, now: float, *, full: bool) -> bool:
        """Take in a probe that was not answered; return whether only a full round can confirm what it means.

        One missed probe makes the node suspect and no more.
        """
        self.last = missed
        self.heard_at = missed.at
        if missed.overloaded:
            return False
        self.reachable = False
        if not full:
            return self.up is True
        if missed.config:
            if self.misconfigured != missed.why:
                self.told.append(NodeMisconfigured(at=now, node=self.name, why=missed.why))
            self.misconfigured, self.foreign = missed.why, False
        elif self.up is not False:
            self.told.append(NodeDown(at=now, node=self.name, why=missed.why, waited=now - missed.at))
        self.up = False
        return False

    def take_role(self, role: Role, now: float) -> None:
        """Note the role it is seen in. A change of role makes its connections stale."""
        if role is self.role:
            return
        if self.role is not Role.UNKNOWN:
            self.told.append(RoleChanged(at=now, node=self.name, was=self.role.value, now=role.value))
            # A promotion leaves the server running; whatever else changes a role, another one may stand there now.
            self.raise_epoch("keep" if role is Role.PRIMARY else "drain")
        self.risen = self.role is Role.REPLICA
        self.role = role

    def judge_system(self, system_id: str | None, now: float) -> None:
        """Take it out of rotation if it is known to belong to another cluster than *system_id*, and back if not."""
        foreign = self.instance.is_of_another_system(Instance(system_id))
        if foreign and not self.foreign:
            self.misconfigured = (
                f"it belongs to another cluster: system identifier {self.instance.system_id}, not {system_id}"
            )
            self.told.append(NodeMisconfigured(at=now, node=self.name, why=self.misconfigured))
        elif self.foreign and not foreign:
            self.misconfigured = None
            self.told.append(NodeUp(at=now, node=self.name, role=self.role.value))
        self.foreign = foreign

    def is_known_replica(self, instance: Instance) -> bool:
        """Return whether this name was seen as a replica of the cluster of *instance*."""
        if self.known_as is NEVER:
            return False
        return self.known_as is None or instance.system_id is None or self.known_as == instance.system_id

    def prove(self, reign: Reign) -> None:
        """Take from the last answer what it proves, or disproves, about following *reign*.

        Where the reign's mark is known, it has to be there. Only of a server that does not tell it do numbers prove
        anything then; of one that was not asked this time, what was proven stays.
        """
        seen = self.seen
        if seen is None:
            return
        received = seen.timeline if seen.streaming else None
        control = seen.control_timeline
        marked = seen.marked.timeline if seen.marked is not None else 0  # a later reign wrote it
        if (received is not None and received != reign.timeline) or max(control or 0, marked) > reign.timeline:
            self.proof, self.marked = None, False
        elif reign.agreed is not None and seen.marked is not None:
            self.marked = seen.marked == (reign.timeline, reign.agreed)
            self.proof = reign if self.marked else None
        elif reign.timeline in (received, control) and (reign.agreed is None or seen.unmarked is not None):
            self.proof, self.marked = reign, False

    def compare(self, asked_at: float, position: int) -> None:
        """Compare with the primary, asked at *asked_at*: what was read here before that cannot be above it.

        Twice in a row, and the replica is known to have diverged, until it is another instance or under another reign.
        """
        if self.behind_from is None or asked_at < self.behind_from[0]:
            return
        self.ahead = self.ahead + 1 if self.behind_from[1] > position else 0
        self.diverged = self.diverged or self.ahead >= 2
        self.behind_from = None

    def view(self, *, lag: float | None, reign: Reign | None, doubted: bool, twinned: bool = False) -> NodeView:
        """Return the picture of this node.

        doubted: nothing proves now who follows *reign*. twinned: its timeline's number alone does not.
        """
        seen = self.seen
        told = self.told_position
        return NodeView(
            name=self.name,
            role=Role.UNKNOWN if self.misconfigured is not None else self.role,
            epoch=self.epoch,
            instance=self.instance,
            reachable=self.reachable,
            timeline=seen.timeline if seen is not None else None,
            position=told[0] if told is not None else None,
            position_at=told[1] if told is not None else None,
            lag=lag,
            proven=(
                self.replica
                and reign is not None
                and self.proof == reign
                and not (self.group or self.diverged or doubted or (twinned and not self.marked))
            ),
            fenced=self.fenced,
            misconfigured=self.misconfigured,
            silent=None if self.reachable or not isinstance(self.last, Missed) else self.last.why,
            read_only=seen is not None and seen.read_only,
            synchronous=seen is not None and seen.synchronous,
            group=self.group,
        )

    def _pass(self, marked: int, sighting: Sighting, now: float) -> None:
        """Note up to where at most the timeline began whose mark it has: *marked*, or one that was heard of before."""
        bears, since = self.bears
        if marked > bears:
            self.bears = (marked, now)
            return
        surely = sighting.instance.is_surely(self.instance)  # else another server behind the name may have told it
        if surely and self.passed[0] < bears and sighting.at >= since and sighting.position is not None:
            self.passed = (bears, sighting.position)

    def _meet(self, sighting: Sighting) -> None:
        """Note which server answers under this name. Another one makes connections to the old one stale.

        Instances that keep coming back were never gone: the name stands for a group, whose replicas are not drained
        for that. (One return may be a late answer over an old connection, or an address that moved and moved back.)
        """
        was, now = self.instance, sighting.instance
        if not now.differs(was):
            # What is not told this time is kept, as long as nothing speaks against it.
            self.instance = Instance(now.system_id or was.system_id, now.started or was.started)
            return
        self.returns += any(now.is_surely(past) for past in self.earlier)
        self.earlier = (*self.earlier, was)[-REMEMBERED:]
        if self.role is Role.PRIMARY:
            self.raise_epoch("now")
        elif not self.group:
            self.raise_epoch("drain")
        self.instance = now
        self.heard_of, self.bears, self.passed = 0, (0, 0.0), (0, 0)
