"""What the demo's clients did: each operation with its beginning, its end and how it ended.

Pure: times are seconds on one monotonic clock, handed in by whoever records.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Literal

__all__ = ["BEAT", "Beat", "Ending", "History", "Kind", "Operation"]

Kind = Literal["read", "write"]

BEAT = 0.25
"""Seconds that one `Beat` sums up."""


class Ending(Enum):
    """How an operation ended, as its client saw it."""

    ACKNOWLEDGED = "acknowledged"
    """It returned."""
    FAILED = "failed"
    """It raised an error."""
    UNKNOWN = "unknown"
    """A write that raised `OutcomeUnknown`: the client was told that it may have been applied."""
    RESULT_LOST = "result lost"
    """A write that raised `ResultLost`: the client was told that it was applied, once, and that its rows are lost."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call.

    value: what a write appended; None for a read.
    error: the class of the error, where there was one.
    """

    kind: Kind
    began: float
    ended: float
    ending: Ending
    value: int | None = None
    error: str | None = None


@dataclass(slots=True)
class Beat:
    """The operations of one kind that ended within one beat."""

    acknowledged: int = 0
    failed: int = 0


class History:
    """All operations of one side.

    began: when its clients began; ended: when they were told to stop, None while they run.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.ended: float | None = None
        self.operations: list[Operation] = []
        self.errors: Counter[str] = Counter()
        self._counts: Counter[tuple[Kind, Ending]] = Counter()
        self._beats: dict[tuple[Kind, int], Beat] = {}

    def add(self, operation: Operation) -> None:
        """Record one operation that has ended."""
        self.operations.append(operation)
        self._counts[operation.kind, operation.ending] += 1
        number = int((operation.ended - self.began) / BEAT)
        beat = self._beats.setdefault((operation.kind, number), Beat())
        if operation.ending is Ending.ACKNOWLEDGED:
            beat.acknowledged += 1
        elif operation.ending is Ending.FAILED:
            beat.failed += 1
            self.errors[operation.error or "error"] += 1

    def count(self, ending: Ending, *kinds: Kind) -> int:
        """Return how many operations of *kinds* (all if none is named) ended so."""
        return sum(self._counts[kind, ending] for kind in kinds or ("read", "write"))

    def beat(self, kind: Kind, number: int) -> Beat:
        """Return what ended in the beat of that number, counted from 0."""
        return self._beats.get((kind, number)) or Beat()

    def acknowledged(self, kind: Kind) -> list[float]:
        """Return when operations of *kind* were acknowledged, in order."""
        return sorted(
            operation.ended
            for operation in self.operations
            if operation.kind == kind and operation.ending is Ending.ACKNOWLEDGED
        )

    def values(self, *endings: Ending) -> set[int]:
        """Return the values of the writes that ended so."""
        return {
            operation.value
            for operation in self.operations
            if operation.value is not None and operation.ending in endings
        }
