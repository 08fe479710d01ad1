"""What the table holds in the end, against what clients were told: nothing lost, nothing twice, nothing made up.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from chaos.checkers.verdict import Checker, Verdict, broken, ok, unknown
from chaos.history import History, Kind, Operation, Outcome
from dbguard.config.quantities import Whole

__all__ = ["Duplicated", "Lost", "Phantom"]


class _TableChecker(Checker):
    """A promise about appends that the table shows in the end; those of the warm-up count, too."""

    __slots__ = ()
    least: int

    def judge(self, history: History) -> Verdict:
        """Compare what clients were told with the final table."""
        if history.final is None:
            return unknown("the table could not be read in the end")
        appends = [op for op in history.operations if op.kind is Kind.APPEND]
        there = [value for values in history.final.values() for value in values]
        if (wrong := self.compare(appends, self.judged(history, there))) is not None:
            return wrong
        acknowledged = sum(op.acknowledged for op in appends)
        if acknowledged < self.least:
            return unknown(f"{acknowledged} appends acknowledged; {self.least} would prove something")
        open_ = [op for op in appends if op.outcome is Outcome.UNKNOWN]
        applied, values = len({op.value for op in open_}.intersection(there)), len(there)
        return ok(
            f"{acknowledged} appends acknowledged, {len(open_)} unknown of which {applied} applied, {values} values"
        )

    def judged(self, history: History, there: Sequence[int]) -> Sequence[int]:  # noqa: ARG002  see below
        """Return the values that it looks at: those in the final table, unless it says otherwise."""
        return there

    @abstractmethod
    def compare(self, appends: Sequence[Operation], there: Sequence[int]) -> Verdict | None:
        """Return what is wrong, if something is. appends: all of them; there: the values that are `judged`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(_TableChecker):
    """Every acknowledged append is in the final table."""

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Appends that must have been acknowledged, or the run proves nothing. Default 100."""

    def compare(self, appends: Sequence[Operation], there: Sequence[int]) -> Verdict | None:
        """Look for acknowledged appends that are not there."""
        values = set(there)
        lost = [op for op in appends if op.acknowledged and op.value not in values]
        return broken(f"{len(lost)} acknowledged appends are lost", lost) if lost else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicated(_TableChecker):
    """No append is in the final table twice, or was in anything that was read."""

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """As of `Lost`."""

    def judged(self, history: History, there: Sequence[int]) -> Sequence[int]:
        """Return what was read twice in one answer, too: a failover may have lost the second application since."""
        once = set(there)
        read = {value for op in history.operations if op.seen for value, n in Counter(op.seen).items() if n > 1}
        return [*there, *(value for value in read for _ in range(1 if value in once else 2))]

    def compare(self, appends: Sequence[Operation], there: Sequence[int]) -> Verdict | None:
        """Look for values that are there more than once."""
        told = {op.value: op for op in appends}
        twice = [value for value, times in Counter(there).items() if times > 1]
        if not twice:
            return None
        return broken(f"{len(twice)} appends were applied more than once", (told.get(value, value) for value in twice))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom(_TableChecker):
    """Nothing is in the final table, or was ever read, that nobody appended, or that was said to have failed."""

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """As of `Lost`."""

    def judged(self, history: History, there: Sequence[int]) -> Sequence[int]:
        """Return what was read, too."""
        return [*there, *(value for op in history.operations for value in op.seen or ())]

    def compare(self, appends: Sequence[Operation], there: Sequence[int]) -> Verdict | None:
        """Look for values that should not be there."""
        values = set(there)
        failed = [op for op in appends if op.outcome is Outcome.FAILED and op.value in values]
        strange = sorted(values - {op.value for op in appends})
        if not failed and not strange:
            return None
        said = f"{len(failed)} appends were applied and said to have failed, {len(strange)} values sent by nobody"
        return broken(said, [*failed, *strange])
