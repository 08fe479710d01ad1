"""Everything observable, as frozen records.

A record is made when something *changes*, never per call on the way of success. A listener is any callable that takes
one record; what it raises is logged and never felt by a call. No record holds SQL text, parameters, passwords or DSNs.

Each class has a `level` (of `logging`) and a `text()`: the line that appears in the log ``dbguard``, with the id of the
episode that it belongs to at its end. Where one change makes several records, one of them stays at its level and the
others are `quiet`: they reach listeners as ever, and the log at DEBUG.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from dbguard.event import Event, Listener
from dbguard.gate_events import Flapping, GateChanged, WritesPaused, WritesResumed

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BreakerChanged",
    "CallRepeated",
    "ClassifierMissed",
    "ConnectionDropped",
    "Contested",
    "ContextOutlivedReign",
    "Drained",
    "EpisodeEnded",
    "Event",
    "Flapping",
    "GateChanged",
    "Listener",
    "NodeDown",
    "NodeFenced",
    "NodeMisconfigured",
    "NodeUp",
    "NotificationGap",
    "OutcomeLeftOpen",
    "OutcomeResolved",
    "PrimaryChanged",
    "ReignUnmarked",
    "RoleChanged",
    "SplitBrainSeen",
    "WriteMayBeLost",
    "WriteWithoutToken",
    "WritesPaused",
    "WritesResumed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUp(Event):
    """A node answers a probe again, or for the first time.

    was: the role that it had when it last answered, if that was another one.
    """

    node: str
    role: str
    was: str | None = None

    def text(self) -> str:
        """Return the line for the log."""
        return f"{self.node} answers as {self.role}" + (f" (was {self.was})" if self.was else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDown(Event):
    """A node does not answer its probes.

    waited: seconds from the unanswered question to this conclusion.
    """

    level: ClassVar[int] = logging.WARNING
    node: str
    why: str
    waited: float = 0.0

    def text(self) -> str:
        """Return the line for the log."""
        return f"{self.node} does not answer: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMisconfigured(Event):
    """A node answers but cannot be used: password, database, TLS, or another cluster's system identifier."""

    level: ClassVar[int] = logging.ERROR
    node: str
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"{self.node} is out of rotation: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(Event):
    """A node was seen in another role than before."""

    level: ClassVar[int] = logging.WARNING
    node: str
    was: str
    now: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"{self.node} was {self.was}, is now {self.now}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrimaryChanged(Event):
    """Another reign was accepted: writes go to *node* from now on."""

    level: ClassVar[int] = logging.WARNING
    node: str
    was: str | None
    reign: str

    @property
    def severity(self) -> int:
        """INFO for the first one, at start-up."""
        if self.quiet:
            return logging.DEBUG
        return logging.INFO if self.was is None else self.level

    def text(self) -> str:
        """Return the line for the log."""
        before = f" (was {self.was})" if self.was else ""
        return f"primary is {self.node}{before}, reign {self.reign}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFenced(Event):
    """A node that claims to be primary belongs to an older reign: nothing is written to it, its leases are ended."""

    level: ClassVar[int] = logging.ERROR
    node: str
    timeline: int
    accepted: int

    def text(self) -> str:
        """Return the line for the log."""
        return (
            f"{self.node} is fenced: it claims to be primary on timeline {self.timeline}, accepted is {self.accepted}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contested(Event):
    """A stranger claims to be primary beside the known one, or an old primary answers alone at the start: writes are refused."""

    level: ClassVar[int] = logging.ERROR
    node: str
    incumbent: str
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"{self.node} contests {self.incumbent}: {self.why}; writes are refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBrainSeen(Event):
    """Two servers answer as primary on one timeline: writes are refused."""

    level: ClassVar[int] = logging.CRITICAL
    nodes: tuple[str, ...]
    timeline: int

    def text(self) -> str:
        """Return the line for the log."""
        return f"split brain: {' and '.join(self.nodes)} are primary on timeline {self.timeline}; writes are refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteMayBeLost(Event):
    """The new reign begins below a position that was acknowledged: the cluster lost writes (asynchronous replication).

    lost_bytes: how far below.
    """

    level: ClassVar[int] = logging.ERROR
    node: str
    lost_bytes: int

    def text(self) -> str:
        """Return the line for the log."""
        return f"the new primary {self.node} begins {self.lost_bytes} bytes below an acknowledged position: writes may be lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReignUnmarked(Event):
    """The reign of *node* has a mark of this process's own, because the one that all processes share cannot be had."""

    level: ClassVar[int] = logging.WARNING
    node: str
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"the reign of {self.node} is not marked, so that other processes may tell it from others otherwise: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOutlivedReign(Event):
    """A context reads that wrote under an older reign: what of its writes the new primary has is not known."""

    level: ClassVar[int] = logging.WARNING
    node: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"a context that wrote before {self.node} became the primary reads now: whether {self.node} has it all is not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged(Event):
    """A node's breaker has changed its state."""

    level: ClassVar[int] = logging.WARNING
    node: str
    was: str
    now: str
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"breaker of {self.node}: {self.was} -> {self.now} ({self.why})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained(Event):
    """A node's connections became stale: idle ones were closed, those in use end as said."""

    level: ClassVar[int] = logging.WARNING
    node: str
    epoch: int
    idle: int
    in_use: int
    how: str

    @property
    def severity(self) -> int:
        """INFO where nobody was using any of them."""
        if self.quiet:
            return logging.DEBUG
        return self.level if self.in_use else logging.INFO

    def text(self) -> str:
        """Return the line for the log."""
        used = f", {self.in_use} in use {self.how}" if self.in_use else ""
        return f"drained {self.node} (epoch {self.epoch}): {self.idle} idle connections closed{used}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRepeated(Event):
    """A call failed in a way that allows another attempt, and gets one."""

    level: ClassVar[int] = logging.DEBUG
    node: str
    attempt: int
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"attempt {self.attempt} on {self.node} is repeated: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeLeftOpen(Event):
    """`OutcomeUnknown` was raised to a caller.

    node: where the write was sent. why: what ended the attempt, and what kept the outcome from being found out.
    token: under which it can be asked for later; None: it carries none.
    reign: the primary's time in office it was sent under; None: not known.
    sent_at: when it was sent, in seconds since the epoch; None: not known.
    """

    level: ClassVar[int] = logging.ERROR
    node: str
    why: str
    token: str | None = None
    reign: str | None = None
    sent_at: float | None = None

    def text(self) -> str:
        """Return the line for the log."""
        at = self.sent_at
        sent = "" if at is None else f", sent {datetime.fromtimestamp(at, UTC).isoformat(timespec='milliseconds')}"
        reign = "" if self.reign is None else f", under {self.reign}"
        way_out = f"; token {self.token}: `dbguard outcome resolve CONFIG {self.token}`" if self.token else "; no token"
        return f"the outcome of a write on {self.node} is unknown: {self.why}{sent}{reign}{way_out}"

    def alike(self) -> object | None:
        """Each token is needed; without one, a few lines tell the same as all."""
        return None if self.token else (self.node, self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeResolved(Event):
    """A token has told what became of a write whose answer was lost.

    node: where the write was sent; for one that `guard.resolve` asked about, where it was asked.
    token: the write's. outcome: ``applied``, ``not applied``, or ``result lost`` (applied, without its rows).
    """

    node: str
    token: str
    outcome: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"the outcome of a write on {self.node} is known by its token {self.token}: {self.outcome}"

    def alike(self) -> object | None:
        """They come in bursts, and nothing is to be done about them."""
        return self.node, self.outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteWithoutToken(Event):
    """Writes that should carry a token go without: what becomes of them can stay unknown."""

    level: ClassVar[int] = logging.WARNING
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"writes without a token: {self.why}"

    def alike(self) -> object | None:
        """Many texts may be refused for one reason."""
        return self.why


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierMissed(Event):
    """A statement called a read was refused by a replica as a write; it ran once on the primary and is remembered."""

    level: ClassVar[int] = logging.WARNING
    node: str
    sqlstate: str | None
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"{self.node} refused a statement called a read ({self.sqlstate}; {self.why}); it goes to the primary from now on"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionDropped(Event):
    """The application dropped an acquired connection without giving it back; it was terminated.

    taken_at: the line that took it, in asyncio's debug mode; else None.
    """

    level: ClassVar[int] = logging.WARNING
    node: str
    taken_at: str | None

    def text(self) -> str:
        """Return the line for the log."""
        where = self.taken_at or "a place that asyncio's debug mode would tell"
        return f"a connection to {self.node}, taken at {where}, was dropped without release(): it was terminated"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationGap(Event):
    """A connection that listened was lost: what is notified until the application listens again, it does not hear.

    node: where it led. channels: what it listened to. pid: its process on the server.
    why: ``ended by the guard``, because its server is not the primary any more or does not answer, or ``lost``.
    """

    level: ClassVar[int] = logging.WARNING
    node: str
    channels: tuple[str, ...]
    pid: int
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        channels = ", ".join(self.channels)
        return f"notifications on {channels} may be missed: a connection to {self.node} that listened (pid {self.pid}) was {self.why}"

    def alike(self) -> object | None:
        """Many connections may listen to the same."""
        return self.node, self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEnded(Event):
    """Writes were disturbed, or the guard was starting, and that is over: the whole of it as one line.

    kind: ``start-up``, ``failover``, ``switchover``, ``interruption``, ``refusal``, ``pause`` or ``suspicion``.
    summary: the line.
    details: the fields of `dbguard.Episode`.
    """

    level: ClassVar[int] = logging.WARNING
    kind: str
    summary: str
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def severity(self) -> int:
        """INFO for a start-up."""
        if self.quiet:
            return logging.DEBUG
        return logging.INFO if self.kind == "start-up" else self.level

    def text(self) -> str:
        """Return the line for the log."""
        return self.summary
