"""How long things took: calls that outlived their deadlines, clients that had to wait.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from chaos.checkers.verdict import Checker, Verdict, broken, ok, unknown
from chaos.history import GIVEN_UP, History, Kind, Operation
from dbguard.config.quantities import Duration, Whole
from dbguard.config.values import Fault as Unfitness
from dbguard.config.values import Text

__all__ = ["Gaps", "Overshoot", "Pause", "ReadsGoOn", "pauses"]


@dataclass(frozen=True, slots=True, order=True)
class Pause:
    """How long a client went without an acknowledged operation: *seconds*, from *start* on, which *client*."""

    seconds: float
    start: float
    client: str

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s at {self.start:.3f} s ({self.client})"


def pauses(history: History, kind: Kind | None = None) -> list[Pause]:
    """Return the longest time without an acknowledged operation of *kind*, for each client that made one, or tried to.

    kind: None counts both kinds, so that a client which appends now and then and reads meanwhile does not pause.

    From the run's time zero until callers were told to stop (or to the end of the client's own last call, or of the
    record), and from end to end: an operation that takes long is a pause, and so is the silence of a client that makes
    no call any more.
    """
    kinds = tuple(Kind) if kind is None else (kind,)
    ends = {op.client: [0.0] for op in history.operations if op.kind in kinds}
    stopped = history.stopped
    if stopped is None:
        stopped = max((op.end for op in history.operations), default=0.0)
    last = dict.fromkeys(ends, stopped)
    for op in sorted((op for kind in kinds for op in history.of(kind)), key=lambda op: op.end):
        last[op.client] = max(stopped, op.end)
        if op.acknowledged:
            ends[op.client].append(op.end)
    return [
        max(Pause(after - before, before, client) for before, after in pairwise([*times, max(last[client], 0.0)]))
        for client, times in ends.items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps(Checker):
    """No client has to wait too long for its next success, be it that calls take long, fail or are not made."""

    read: Annotated[float, Duration(above=True, none=True)] = math.inf
    """Seconds from one acknowledged read of a client to the next, above 0, or ``none``. Default none."""
    append: Annotated[float, Duration(above=True, none=True)] = math.inf
    """The same for appends. Default none."""
    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Acknowledged operations of each kind that is bounded, or the run proves nothing. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Look for pauses that are too long."""
        bounds = {kind: bound for kind, bound in self._bounds().items() if bound < math.inf}
        found = {kind: pauses(history, kind) for kind in bounds}
        if over := [pause for kind, bound in bounds.items() for pause in found[kind] if pause.seconds > bound]:
            allowed = ", ".join(f"{kind}s {bound:g} s" for kind, bound in bounds.items())
            return broken(f"{len(over)} clients paused for too long (allowed: {allowed})", sorted(over, reverse=True))
        for kind in bounds:
            if (acknowledged := sum(op.acknowledged for op in history.of(kind))) < self.least:
                return unknown(f"{acknowledged} {kind}s acknowledged; {self.least} would prove something")
        return ok("; ".join(f"longest pause of {kind}s {max(found[kind])}" for kind in bounds))

    def _bounds(self) -> dict[Kind, float]:
        return {Kind.READ: self.read, Kind.APPEND: self.append}

    def _contradictions(self) -> list[Unfitness]:
        bounded = any(bound < math.inf for bound in self._bounds().values())
        return [] if bounded else [((), "should bound the gaps of read, append or both")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overshoot(Checker):
    """Every call ends by its deadline, or when its caller gives it up, and *by* at most after it."""

    by: Annotated[float, Duration()] = 0.1
    """Seconds after its deadline by which a call must have ended. Default 100 ms, the promise on an idle machine."""
    least: Annotated[int, Whole(1, 1_000_000)] = 1
    """Calls that must have come to within *by* of their deadline or past it, or the run proves nothing. Default 1."""

    def judge(self, history: History) -> Verdict:
        """Look for calls that ended too late; those of the warm-up count, too."""
        bounded = [op for op in history.operations if op.deadline is not None]
        given_up = [(float(e["late"]), float(e["at"])) for e in history.events if e["event"] == GIVEN_UP]
        if late := [op for op in bounded if _over(op) > self.by]:
            late.sort(key=_over, reverse=True)
            said = f"{len(late)} of {len(bounded)} calls outlived their deadline by more than {self.by:g} s"
            return broken(f"{said}, the worst by {_over(late[0]):.3f} s", late)
        if deaf := [f"{by:.3f} s until {at:.3f} s" for by, at in sorted(given_up, reverse=True) if by > self.by]:
            return broken(
                f"{len(deaf)} of {len(given_up)} calls went on for more than {self.by:g} s when given up", deaf
            )
        put_to_the_test = sum(_over(op) > -self.by for op in bounded) + len(given_up)
        if put_to_the_test < self.least:
            return unknown(f"{put_to_the_test} calls came near their deadline; {self.least} would prove something")
        worst = max([*(_over(op) for op in bounded), *(by for by, _ in given_up)])
        said = f"{len(bounded)} calls, {put_to_the_test} came near their deadline or were given up"
        return ok(f"{said}; the worst: {worst:+.3f} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadsGoOn(Checker):
    """No read fails, and no client's reads pause for longer than *gap*, while a node is away."""

    gap: Annotated[float, Duration(above=True)]
    """Seconds that may pass for any one client from one acknowledged read to the next, above 0. No default."""
    away: Annotated[str, Text()]
    """The node that the faults take away: it must have served reads before the first, and none during any. No default."""
    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Reads that must have been made during the faults, or the run proves nothing. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Say whether reads went on while the faults lasted."""
        reads = history.of(Kind.READ)
        if failed := [op for op in reads if not op.acknowledged]:
            return broken(f"{len(failed)} of {len(reads)} reads failed", failed)
        found = pauses(history, Kind.READ)
        if over := [pause for pause in found if pause.seconds > self.gap]:
            return broken(f"reads paused, allowed {self.gap:g} s", sorted(over, reverse=True))
        return self._doubt(history, reads) or ok(f"{len(reads)} reads, none failed; longest pause {max(found)}")

    def names(self) -> dict[str, str]:
        """Return the node that goes away."""
        return {"away": self.away}

    def _doubt(self, history: History, reads: Sequence[Operation]) -> Verdict | None:
        """Say why nothing is proved, if that is so."""
        during = [op for op in reads if any(fault.during(op) for fault in history.faults)]
        if len(during) < self.least:
            return unknown(f"{len(during)} reads were made during the faults; {self.least} would prove something")
        first = min(fault.since for fault in history.faults)
        if not any(op.node == self.away and op.end <= first for op in history.operations if op.kind is Kind.READ):
            return unknown(f"{self.away} served no read before the fault: nobody was to miss it")
        if served := sum(op.node == self.away for op in during):
            return unknown(f"{self.away} served {served} reads during the fault, which was none")
        return None


def _over(op: Operation) -> float:
    """Return how long after its deadline a call ended; negative: before."""
    return op.end - (math.inf if op.deadline is None else op.deadline)
