"""What is known about the cluster, as values.

A *sighting* is what one answered probe said, a *missed* one why it was not answered. `dbguard.core.merge` folds them
into a *view*, the immutable picture that routing and the gate read, and into *changes*: events to tell, and what the
runtime must do with its leases.

Times are seconds on the guard's monotonic clock, positions are WAL positions (LSN) as a count of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.events import Event

__all__ = [
    "Changes",
    "Drain",
    "Instance",
    "Mark",
    "Missed",
    "NodeView",
    "Reign",
    "Role",
    "Sighting",
    "View",
    "sterner",
]

Drain = Literal["keep", "drain", "now"]
"""What becomes of leases of an old epoch, from the mildest to the sternest.

``now``: all are terminated at once, whatever they are doing. ``drain``: idle ones go now, those in use at their
return, the stubborn after `drain_timeout`. ``keep``: as ``drain``, but a connection that is known to lead to the very
instance seen there now is taken over into the new epoch instead, idle or at its return: another reign began, or the
replica was promoted, and the server is the same. Were they all to go, everybody would dial the new primary at once.
"""

DRAINS: tuple[Drain, ...] = get_args(Drain)


def sterner(one: Drain, other: Drain) -> Drain:
    """Return the sterner of two."""
    return max(one, other, key=DRAINS.index)


class Role(Enum):
    """What a node does in its cluster."""

    PRIMARY = "primary"
    """It says that it is not in recovery. Whether writes may go there is another question: see `View.primary`."""
    REPLICA = "replica"
    """It is in recovery."""
    UNKNOWN = "unknown"
    """It has not said so yet, or it is not of this cluster."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The running server behind a connection.

    Names and addresses of one instance are one server. What a server does not tell is None, and never a mismatch.

    system_id: the cluster's system identifier.
    started: when its postmaster started, as the server tells it (microseconds included).
    """

    system_id: str | None = None
    started: str | None = None

    def differs(self, other: Instance) -> bool:
        """Return whether these are known to be two servers."""
        return self.is_of_another_system(other) or (
            self.started is not None and other.started is not None and self.started != other.started
        )

    def is_of_another_system(self, other: Instance) -> bool:
        """Return whether these are known to belong to two clusters."""
        return self.system_id is not None and other.system_id is not None and self.system_id != other.system_id

    def is_surely(self, other: Instance) -> bool:
        """Return whether these are known to be one server."""
        return self.system_id is not None and self.started is not None and self == other


@dataclass(frozen=True, slots=True)
class Reign:
    """One primary's time in office.

    A timeline number alone is no identity: two successive promotions can bear the same.

    system_id: the cluster's system identifier; None if the server does not tell.
    timeline: the primary's WAL timeline; 0 if the server does not tell.
    own: made by this process when it accepted the reign: by this alone it tells reigns apart, since that never changes.
    agreed: what the table ``dbguard.reign`` has for it, the same in all processes; None: not known (yet), or no table.
    """

    system_id: str | None
    timeline: int
    own: str
    agreed: str | None = field(default=None, compare=False)

    @property
    def mark(self) -> str:
        """What tells it from another reign of this timeline: agreed on by all processes, or else this process's own."""
        return self.agreed or self.own

    def __str__(self) -> str:
        return f"timeline {self.timeline} (mark {self.mark[:8]})"


class Mark(NamedTuple):
    """The last row of the table ``dbguard.reign`` on one server; 0 and empty: it has none."""

    timeline: int
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What one answered probe said.

    node: the name that was dialled.
    at: when the probe was sent.
    role: PRIMARY if it is not in recovery, else REPLICA.
    instance: the server that answered.
    timeline: of a primary, from `pg_walfile_name(pg_current_wal_insert_lsn())`; of a replica, `received_tli` while it
        streams. None if it is not known.
    control_timeline: from `pg_control_checkpoint()`: late by minutes, never early.
    position: of a primary the insert position, of a replica the replay position.
    flushed: of a primary, the flush position.
    branched: of a primary, where its timeline branched off, or a position above; None if it is not known.
    streaming: of a replica, whether its WAL receiver streams.
    read_only: `default_transaction_read_only` is on.
    synchronous: its commits wait for a standby.
    confirmed: those of the role that asks do, as far as neither a session nor a transaction says otherwise
        (``synchronous_commit``).
    marked: the last mark of a reign that it has; None: it was not asked, or does not tell.
    unmarked: why it does not tell; None: it was not asked, or has told.
    address: the server's own address.
    fresh: asked over a newly dialled connection, so the name leads to this instance *now*.
    """

    node: str
    at: float
    role: Role
    instance: Instance = Instance()
    timeline: int | None = None
    control_timeline: int | None = None
    position: int | None = None
    flushed: int | None = None
    branched: int | None = None
    streaming: bool | None = None
    read_only: bool = False
    synchronous: bool = False
    confirmed: bool = False
    marked: Mark | None = None
    unmarked: str | None = None
    address: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """A probe that was not answered with what was asked.

    node: the name that was dialled.
    at: when the probe was sent.
    why: a short phrase for logs.
    config: the node answers but cannot be used as it is configured: wrong password, database, TLS.
    alive: the node is alive and not usable now: 53300, 57P03. Overload is not death: the node keeps what it is.
    closed: with *alive*: it takes nobody in (57P03: starting up, shutting down), so it does not keep the primary's
        office as a node with 53300 does.
    shut: with *config*: the application has closed its own way to it, for good.
    """

    node: str
    at: float
    why: str
    config: bool = False
    alive: bool = False
    closed: bool = False
    shut: bool = False

    @property
    def overloaded(self) -> bool:
        """It serves the connections it has, and takes no new one."""
        return self.alive and not self.closed and not self.config


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node in the view.

    name: as it is configured.
    role: as it was last seen; UNKNOWN if it was not, or if it is misconfigured.
    epoch: its generation, from 0; raised when connections to it become stale.
    instance: the server last seen there.
    reachable: it answered its last probe. An overloaded node (53300) stays what it was.
    timeline: as it was last told.
    position, position_at: the position last told, and when the probe that told it was sent.
    lag: seconds of the primary's writes that a replica has not replayed, from this process's own observations; 0.0:
        none that the primary had when last asked; None: unknown. Means nothing unless *proven*.
    proven: a replica that is proven to follow the accepted reign (RULES 5.2).
    fenced: it claims to be primary but belongs to an older reign: nothing is written there.
    misconfigured: why it is out of rotation; None if it is not.
    silent: why it did not answer its last probe; None if it did.
    read_only: `default_transaction_read_only` is on: a primary stays the primary.
    synchronous: its commits wait for a standby.
    group: several instances were seen to answer under this name: nothing is proven by what one of them said.
    """

    name: str
    role: Role = Role.UNKNOWN
    epoch: int = 0
    instance: Instance = Instance()
    reachable: bool = False
    timeline: int | None = None
    position: int | None = None
    position_at: float | None = None
    lag: float | None = None
    proven: bool = False
    fenced: bool = False
    misconfigured: str | None = None
    silent: str | None = None
    read_only: bool = False
    synchronous: bool = False
    group: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as it is known now. Immutable: a change makes another one.

    nodes: by name, in the order of the configuration.
    primary: the node that holds the accepted reign and was there when last asked; None if there is none.
    reign: the accepted reign; it outlives its primary's absence.
    refused: why writes are refused although there may be a primary: contested, split brain. None if they are not.
    version: grows with every change.
    """

    nodes: Mapping[str, NodeView]
    primary: str | None = None
    reign: Reign | None = None
    refused: str | None = None
    version: int = 0

    @property
    def writable(self) -> str | None:
        """The node that writes go to now; None if they must wait or be refused."""
        return self.primary if self.refused is None else None

    @property
    def replicas(self) -> tuple[NodeView, ...]:
        """All replicas of this cluster, reachable or not, in the order of the configuration."""
        return tuple(node for node in self.nodes.values() if node.role is Role.REPLICA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a merge changed, beside the view.

    events: what to tell the listeners, in order.
    epochs: nodes whose epoch was raised: the new epoch, and what becomes of leases of an older one.
    look_again: something cannot be settled without a full round, or without another one: run one at once. (While
        `View.writable` is None all nodes are asked anyway.)
    """

    events: tuple[Event, ...] = ()
    epochs: Mapping[str, tuple[int, Drain]] = field(default_factory=dict)
    look_again: bool = False
