"""What callers are told, and how long it takes, while something is broken.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from chaos.checkers.verdict import Checker, Verdict, broken, ok, unknown
from chaos.history import History, Kind, Operation, Outcome
from dbguard.config.quantities import Duration, Number, Whole
from dbguard.config.values import Fault as Unfitness

__all__ = ["Failed", "Latency"]

_SHARE = 0.99
_Any = Whole(0, 1_000_000, word="any")
_Most: TypeAlias = int | Literal["any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Checker):
    """No more calls than these end without what was asked for; those of the warm-up do not count."""

    reads: Annotated[_Most, _Any] = 0
    """Reads that fail at most, 0 to 1,000,000, or any number. Default 0."""
    appends: Annotated[_Most, _Any] = 0
    """Appends at most of which the caller is told that they failed; the same. Default 0."""
    unknown: Annotated[_Most, _Any] = "any"
    """Appends at most of which the caller is told that they may have been applied; the same. Default any.

    Not bounded for a client that cannot do what the scenario asks of the guard, such as tokens: it is right to doubt.
    """
    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Calls of the kinds that are bounded, or the run proves nothing. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Count them."""
        counted = {
            ("reads", "failed", self.reads): (Kind.READ, Outcome.FAILED),
            ("appends", "failed", self.appends): (Kind.APPEND, Outcome.FAILED),
            ("appends", "are unknown", self.unknown): (Kind.APPEND, Outcome.UNKNOWN),
        }
        said: list[str] = []
        over: list[Operation] = []
        kinds: set[Kind] = set()
        for (calls, how, most), (kind, outcome) in counted.items():
            if most == "any":
                continue
            made = history.of(kind)
            found = [op for op in made if op.outcome is outcome]
            if outcome is Outcome.UNKNOWN and history.head.get("without"):
                said.append(
                    f"{len(found)} of {len(made)} {calls} {how}, not bounded, as the client does without {history.head['without']}"
                )
                kinds.add(kind)
                continue
            said.append(f"{len(found)} of {len(made)} {calls} {how}, allowed {most}")
            over += found if len(found) > most else []
            kinds.add(kind)
        if over:
            return broken("; ".join(said), over)
        if sum(len(history.of(kind)) for kind in kinds) < self.least:
            return unknown(f"{'; '.join(said)}; {self.least} would prove something")
        return ok("; ".join(said))

    def _contradictions(self) -> list[Unfitness]:
        bounded = any(most != "any" for most in (self.reads, self.appends, self.unknown))
        return [] if bounded else [((), "should bound something")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Checker):
    """The p99 of the reads during the faults is at most *factor* times that of the calm before the first, plus *attempt*.

    While they are being injected, too. Of reads that failed, too: they have taken their caller's time.
    """

    attempt: Annotated[float, Duration(above=True)]
    """Seconds after which an attempt on a node that does not answer is given up, above 0. No default."""
    factor: Annotated[float, Number(1, 100)] = 2.0
    """How many times slower reads may be beside that, 1 to 100. Default 2."""
    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Reads both in the calm and during the faults, or the run proves nothing: of fewer than 100, the p99 is the slowest.
    Default 100."""

    def judge(self, history: History) -> Verdict:
        """Compare the reads that a fault overlaps with those that had ended before there was any."""
        if not history.faults:
            return unknown("nothing was broken")
        reads = history.of(Kind.READ)
        first = min(fault.since for fault in history.faults)
        calm = [op for op in reads if op.end <= first]
        during = [op for op in reads if any(fault.overlaps(op) for fault in history.faults)]
        if not calm or not during:
            return unknown(f"{len(calm)} reads before the first fault, {len(during)} during the faults")
        usual, slow = _p99(calm), _p99(during)
        allowed = self.factor * usual + self.attempt
        said = f"p99 of {len(during)} reads during the faults {slow:.3f} s, of {len(calm)} before {usual:.3f} s; allowed {allowed:.3f} s"
        if slow > allowed:
            slower = sorted((op for op in during if _took(op) > allowed), key=_took, reverse=True)
            return broken(said, slower)
        if min(len(calm), len(during)) < self.least:
            return unknown(f"{said}; {self.least} of each would prove something")
        return ok(f"{said}; the longest took {max(map(_took, during)):.3f} s")


def _took(op: Operation) -> float:
    return op.end - op.start


def _p99(reads: Sequence[Operation]) -> float:
    """Return the time that 99 % of them took at most, which one of them took: the nearest rank."""
    return sorted(map(_took, reads))[math.ceil(_SHARE * len(reads)) - 1]
