"""Everything observable, as frozen records.

A record is made when something *changes*, never per call on the way of success. A listener is any callable that takes
one record; what it raises is logged and never felt by a call. No record holds SQL text, parameters, passwords or DSNs.

Each class has a `level` (of `logging`) and a `text()`: the line that appears in the log ``dbguard``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

__all__ = [
    "BreakerChanged",
    "CallRepeated",
    "ClassifierMissed",
    "ConnectionDropped",
    "Contested",
    "ContextOutlivedReign",
    "Drained",
    "Event",
    "GateChanged",
    "Listener",
    "NodeDown",
    "NodeFenced",
    "NodeMisconfigured",
    "NodeUp",
    "OutcomeLeftOpen",
    "PrimaryChanged",
    "RoleChanged",
    "SplitBrainSeen",
    "WriteMayBeLost",
    "WriteWithoutToken",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One observation.

    at: seconds on the guard's monotonic clock.
    """

    level: ClassVar[int] = logging.INFO
    at: float

    def text(self) -> str:
        """Return the line for the log."""
        said = " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "at")
        return f"{type(self).__name__} {said}"

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data, for JSON."""
        return {"event": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}


Listener = Callable[[Event], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUp(Event):
    """A node answers a probe again, or for the first time."""

    node: str
    role: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"{self.node} answers as {self.role}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDown(Event):
    """A node does not answer its probes."""

    level: ClassVar[int] = logging.WARNING
    node: str
    why: str

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
    """A stranger claims to be primary while the known one still answers as primary: writes are refused."""

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
class ContextOutlivedReign(Event):
    """A context reads that wrote under an older reign: what of its writes the new primary has is not known."""

    level: ClassVar[int] = logging.WARNING
    node: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"a context reads that wrote before {self.node} became the primary: its writes may be lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateChanged(Event):
    """Whether writes can flow has changed. States: open, suspect, failover, down."""

    level: ClassVar[int] = logging.WARNING
    was: str
    now: str
    why: str
    waiting: int = 0

    def text(self) -> str:
        """Return the line for the log."""
        return f"writes: {self.was} -> {self.now} ({self.why}); {self.waiting} waiting"


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

    def text(self) -> str:
        """Return the line for the log."""
        return f"drained {self.node} (epoch {self.epoch}): {self.idle} idle closed, {self.in_use} in use {self.how}"


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
    """`OutcomeUnknown` was raised to a caller."""

    level: ClassVar[int] = logging.ERROR
    node: str
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"outcome of a write on {self.node} is unknown: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteWithoutToken(Event):
    """Writes that should carry a token go without: what becomes of them can stay unknown."""

    level: ClassVar[int] = logging.WARNING
    why: str

    def text(self) -> str:
        """Return the line for the log."""
        return f"writes without a token: {self.why}"


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
