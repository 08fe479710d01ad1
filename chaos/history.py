"""What happened in a run: every operation of every client, every fault, and what the table held in the end.

All times are seconds on one monotonic clock, `time.monotonic`, counted from the run's time zero, the end of its warm-up:
what happened while it was warming up has negative times. In a file it is one JSON object per line.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Fault", "History", "Kind", "Operation", "Outcome"]


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

    client: who called; a client makes one call at a time.
    value: what was appended (unique in the run), or what a read returned.
    node: who served it; None if the client was not told.
    error: the exception's class and text, if there was one.
    """

    client: str
    kind: Kind
    start: float
    end: float
    outcome: Outcome
    value: int | None = None
    node: str | None = None
    error: str | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the client was told that it was done."""
        return self.outcome in (Outcome.OK, Outcome.RESULT_LOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that was broken from *start*, when breaking it was done, to *end*, when healing it began."""

    what: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All of a run.

    operations: in the order in which they ended.
    final: all values in the table of the surviving primary once every client was gone; None if it could not be read.
    events: what the guard reported, as plain data with ``at`` in the run's time; for the reader, no checker looks at it.
    """

    operations: tuple[Operation, ...] = ()
    faults: tuple[Fault, ...] = ()
    final: tuple[int, ...] | None = None
    events: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    def of(self, kind: Kind) -> list[Operation]:
        """List the operations of one kind that began after the warm-up."""
        return [op for op in self.operations if op.kind is kind and op.start >= 0]

    def lines(self) -> Iterator[str]:
        """Write it as JSON, line by line."""
        yield from (json.dumps({"operation": asdict(op)}) for op in self.operations)
        yield from (json.dumps({"fault": asdict(fault)}) for fault in self.faults)
        yield from (json.dumps({"event": event}, default=str) for event in self.events)
        yield json.dumps({"final": self.final})

    @classmethod
    def read(cls, path: Path) -> History:
        """Read what `lines` wrote. Raises ValueError if it is something else."""
        found: dict[str, list[Any]] = {"operation": [], "fault": [], "event": [], "final": []}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                ((kind, said),) = json.loads(line).items()
                found[kind].append(said)
            except (AttributeError, KeyError, ValueError):
                raise ValueError(f"{path}:{number}: is no line of a history") from None
        if len(found["final"]) != 1:
            raise ValueError(f"{path}: was cut off")  # the last line is written last
        (final,) = found["final"]
        return cls(
            operations=tuple(
                Operation(**op | {"kind": Kind(op["kind"]), "outcome": Outcome(op["outcome"])})
                for op in found["operation"]
            ),
            faults=tuple(Fault(**fault) for fault in found["fault"]),
            final=None if final is None else tuple(final),
            events=tuple(found["event"]),
        )
