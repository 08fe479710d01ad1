"""Checkers: pure judgements on a history, with three verdicts.

*ok*: what is promised was kept. *broken*: it was not; the verdict shows what. *unknown*: nothing wrong was seen, but the
run proves nothing, since too little happened in it or its fault was not felt. A broken run is broken however short.

A checker is a dataclass: its fields are the bounds that a scenario sets, and `CHECKERS` gives it its name there.
(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Annotated

from chaos.history import Fault, History, Kind, Operation, Outcome
from dbguard.config.quantities import Duration, Whole
from dbguard.config.section import Section
from dbguard.config.values import Text

__all__ = ["CHECKERS", "Checker", "Duplicated", "Lost", "Pause", "Phantom", "ReadsGoOn", "State", "Verdict", "pauses"]

_SHOWN = 5  # pieces of evidence that a verdict's line shows


class State(IntEnum):
    """A verdict; of several, the highest is the whole run's."""

    OK = 0
    UNKNOWN = 1
    BROKEN = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checker found: *why* in one line, for ok with the figures that it was judged by."""

    state: State
    why: str

    def __str__(self) -> str:
        return f"{self.state.name.lower()}: {self.why}"


class Checker(Section):
    """A promise, with its bounds."""

    __slots__ = ()

    def judge(self, history: History) -> Verdict:
        """Say whether the promise was kept."""
        raise NotImplementedError

    def names(self) -> dict[str, str]:
        """Return the nodes that the bounds name, by the field that does."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadsGoOn(Checker):
    """No read fails, and no client's reads pause for longer than *gap*."""

    gap: Annotated[float, Duration(above=True)]
    """Seconds that may pass for any one client from one acknowledged read to the next, above 0. No default."""
    away: Annotated[str, Text()]
    """The node that the faults take away: it must have served reads before the first, and none during any. No default."""
    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Reads that must have been made during the faults, or the run proves nothing. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Say whether reads went on while the faults lasted."""
        reads = history.of(Kind.READ)
        if failed := [op for op in reads if op.outcome is not Outcome.OK]:
            return _broken(f"{len(failed)} of {len(reads)} reads failed", map(_told, failed))
        readers = {op.client for op in history.operations if op.kind is Kind.READ}
        longest = max(pauses(reads, readers), default=Pause(0.0, 0.0, "nobody"))
        if longest.seconds > self.gap:
            return Verdict(State.BROKEN, f"reads paused: {longest}, allowed {self.gap:g} s")
        return self._doubt(history, reads) or Verdict(
            State.OK, f"{len(reads)} reads, none failed; longest pause {longest}"
        )

    def names(self) -> dict[str, str]:
        """Return the node that goes away."""
        return {"away": self.away}

    def _doubt(self, history: History, reads: Sequence[Operation]) -> Verdict | None:
        """Say why nothing is proved, if that is so."""
        during = [op for op in reads for fault in history.faults if _within(op, fault)]
        if len(during) < self.least:
            return Verdict(
                State.UNKNOWN, f"{len(during)} reads were made during the faults; {self.least} would prove something"
            )
        first = min(fault.start for fault in history.faults)
        if not any(op.node == self.away and op.end <= first for op in history.operations if op.kind is Kind.READ):
            return Verdict(State.UNKNOWN, f"{self.away} served no read before the fault: nobody was to miss it")
        if served := sum(op.node == self.away for op in during):
            return Verdict(State.UNKNOWN, f"{self.away} served {served} reads during the fault, which was none")
        return None


class _FinalChecker(Checker):
    """A promise about appends that the table shows in the end."""

    __slots__ = ()
    least: int

    def judge(self, history: History) -> Verdict:
        """Compare what clients were told with the final table."""
        if history.final is None:
            return Verdict(State.UNKNOWN, "the table could not be read in the end")
        appends = [op for op in history.operations if op.kind is Kind.APPEND]  # those of the warm-up count, too
        acknowledged = sum(op.acknowledged for op in appends)
        if (wrong := self.compare(appends, history.final)) is not None:
            return wrong
        if acknowledged < self.least:
            return Verdict(State.UNKNOWN, f"{acknowledged} appends acknowledged; {self.least} would prove something")
        open_ = sum(op.outcome is Outcome.UNKNOWN for op in appends)
        return Verdict(State.OK, f"{acknowledged} appends acknowledged, {open_} unknown, {len(history.final)} rows")

    def compare(self, appends: Sequence[Operation], final: Sequence[int]) -> Verdict | None:
        """Return what is wrong, if something is."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(_FinalChecker):
    """Every acknowledged append is in the final table."""

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Appends that must have been acknowledged, or the run proves nothing. Default 100."""

    def compare(self, appends: Sequence[Operation], final: Sequence[int]) -> Verdict | None:
        """Look for acknowledged appends that are not there."""
        there = set(final)
        lost = [op for op in appends if op.acknowledged and op.value not in there]
        return _broken(f"{len(lost)} acknowledged appends are lost", map(_told, lost)) if lost else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicated(_FinalChecker):
    """No append is in the final table twice."""

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """As of `Lost`."""

    def compare(self, appends: Sequence[Operation], final: Sequence[int]) -> Verdict | None:
        """Look for values that are there more than once."""
        twice = {value: times for value, times in Counter(final).items() if times > 1}
        told = {op.value: op for op in appends}
        said = (f"{times} times {_told(told[value]) if value in told else value}" for value, times in twice.items())
        return _broken(f"{len(twice)} appends were applied more than once", said) if twice else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom(_FinalChecker):
    """Nothing is in the final table that nobody appended, or that was said to have failed."""

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """As of `Lost`."""

    def compare(self, appends: Sequence[Operation], final: Sequence[int]) -> Verdict | None:
        """Look for values that should not be there."""
        there = set(final)
        failed = [op for op in appends if op.outcome is Outcome.FAILED and op.value in there]
        strange = sorted(there - {op.value for op in appends})
        if failed:
            return _broken(f"{len(failed)} appends were applied and said to have failed", map(_told, failed))
        return _broken(f"{len(strange)} values were appended by nobody", map(str, strange)) if strange else None


CHECKERS: dict[str, type[Checker]] = {
    "reads-go-on": ReadsGoOn,
    "lost": Lost,
    "duplicated": Duplicated,
    "phantom": Phantom,
}
"""The checkers, by their names in a scenario."""


@dataclass(frozen=True, slots=True, order=True)
class Pause:
    """How long a client went without an acknowledged operation: *seconds*, from *start* on, which *client*."""

    seconds: float
    start: float
    client: str

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s at {self.start:.3f} s ({self.client})"


def pauses(operations: Sequence[Operation], clients: Collection[str] = ()) -> list[Pause]:
    """Return each client's longest time without an acknowledged operation, from the first's start to the last's end.

    Measured from end to end, so that an operation which takes long is a pause; a client that falls silent pauses, too.
    clients: those who may have been silent all the time. Default: those of the operations.
    """
    if not operations:
        return []
    first, last = min(op.start for op in operations), max(op.end for op in operations)
    ends = {client: [first] for client in {op.client for op in operations}.union(clients)}
    for op in sorted(operations, key=lambda op: op.end):
        if op.acknowledged:
            ends[op.client].append(op.end)
    return [
        max(Pause(after - before, before, client) for before, after in pairwise([*times, last]))
        for client, times in ends.items()
    ]


def _within(op: Operation, fault: Fault) -> bool:
    return fault.start <= op.start and op.end <= fault.end


def _told(op: Operation) -> str:
    """Say what a client did and was told."""
    said = f"{op.client} {op.kind} {op.value} at {op.start:.3f} s: {op.outcome}"
    return said + (f" ({op.error})" if op.error else "")


def _broken(what: str, evidence: Iterable[str]) -> Verdict:
    shown = list(evidence)
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return Verdict(State.BROKEN, f"{what}: {'; '.join(shown[:_SHOWN])}{more}")
