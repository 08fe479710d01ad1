"""What happened in a run: every operation of every client, every fault, and what was there in the end.

All times are seconds on one monotonic clock, `time.monotonic`, counted from the run's time zero, the end of its warm-up:
what happened while it was warming up has negative times. `chaos.journal` keeps a history in a file while it happens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GIVEN_UP", "Fault", "History", "Kind", "Leak", "LeakKind", "Operation", "Outcome"]


GIVEN_UP = "CallGivenUp"
"""The harness's own event: a call has ended, and ``late`` says how many seconds after its caller gave it up."""


class Kind(StrEnum):
    """What a client did."""

    READ = "read"
    APPEND = "append"


class Outcome(StrEnum):
    """What the client was told.

    OK: it was done. FAILED: it was not done, and never will be. UNKNOWN: an append may have been applied, or may yet be.
    RESULT_LOST: an append was applied, what it returned was lost.
    """

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"
    RESULT_LOST = "result lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of a client, with all attempts that were made for it.

    client: who called; a client makes one call at a time, and all of its calls are of one causal context.
    key: what it read, or appended to; the values below one key belong together. None: the workload has no keys.
    value: what was appended; unique in the run.
    seen: what a read returned: the values below the key, in the order in which the table has them.
    node: who served it; None if the client was not told.
    attempts: how often the client ran its transaction function; None if it was no such call, or did not succeed.
    error: the exception's class, text and notes, if there was one.
    deadline: by when the call was to end; None if it had no deadline.
    """

    client: str
    kind: Kind
    start: float
    end: float
    outcome: Outcome
    key: int | None = None
    value: int | None = None
    seen: tuple[int, ...] | None = None
    node: str | None = None
    attempts: int | None = None
    error: str | None = None
    deadline: float | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the client was told that it was done."""
        return self.outcome is Outcome.OK or self.outcome is Outcome.RESULT_LOST

    def __str__(self) -> str:
        what = self.value if self.kind is Kind.APPEND else self.key
        said = " ".join(str(word) for word in (self.client, self.kind, what) if word is not None)
        said += f" at {self.start:.3f} s: {self.outcome}"
        return said + (f" ({self.error})" if self.error else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that was broken from *start*, when breaking it was done, to *end*, when healing it began.

    end: None if the record ends before that.
    began: when breaking it began, at most *start*; None if that is not known.
    healed: when healing it was done; None if that is not known, or if the record ends before that.
    shown: whether it did something, as it tells itself; None if that is left to those who suffer from it.
    """

    what: str
    start: float
    end: float | None = None
    began: float | None = None
    healed: float | None = None
    shown: bool | None = None

    def __str__(self) -> str:
        return f"{self.what} at {self.start:.3f} s"

    @property
    def since(self) -> float:
        """When breaking it began, as far as that is known: from then on it may do harm."""
        return self.start if self.began is None else self.began

    def during(self, op: Operation) -> bool:
        """Whether all of an operation fell into the fault."""
        return self.start <= op.start and (self.end is None or op.end <= self.end)

    def overlaps(self, op: Operation) -> bool:
        """Whether some of an operation fell into the fault, or into breaking it."""
        return op.end > self.since and (self.end is None or op.start < self.end)


class LeakKind(StrEnum):
    """What can be left behind: a connection not given back, an asyncio task, a server's session, a lock of one."""

    LEASE = "lease"
    TASK = "task"
    SESSION = "session"
    LOCK = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Something that was still there once every client had ended; *what* says which and where."""

    kind: LeakKind
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All of a run.

    head: what was run, as plain data: scenario, client, seed, and what the scenario is about.
    operations: in the order in which they ended.
    faults: in the order in which they began.
    stopped: when callers were told to stop; None if the record ends before that.
    final: the values in the table of the surviving primary, by key and in the table's order, read once every fault was
        healed and every client gone; None if they could not be read.
    leaks: what was left behind; None if nobody could look.
    events: what the client reported, as plain data with its name in ``event`` and the run's time in ``at``.
    samples: what the client said of itself every now and then (`Client.sample`), with the run's time in ``at``; none in
        histories that were written before there were any.
    """

    head: Mapping[str, Any] = field(default_factory=dict)
    operations: tuple[Operation, ...] = ()
    faults: tuple[Fault, ...] = ()
    stopped: float | None = None
    final: Mapping[int, tuple[int, ...]] | None = None
    leaks: tuple[Leak, ...] | None = None
    events: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()

    def of(self, kind: Kind) -> list[Operation]:
        """List the operations of one kind that began after the warm-up."""
        return [op for op in self.operations if op.kind is kind and op.start >= 0]
