"""What is kept while nodes change their roles: nobody writes to an old primary, and work goes on soon.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from chaos.checkers.verdict import Checker, Verdict, broken, ok, unknown
from chaos.history import Fault, History, Kind, Operation
from dbguard.config.quantities import Duration, Whole
from dbguard.config.values import Fault as Unfitness
from dbguard.config.values import Text

__all__ = ["Fenced", "Recovers", "Returns"]


class _Reign(NamedTuple):
    """Which node a client took for the primary, from when until when."""

    node: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced(Checker):
    """Once the client has accepted another primary, no append is acknowledged by a node that is not the one in office.

    A row that the old primary gave may come later: where the append's token has told on the new one that it was applied.
    """

    within: Annotated[float, Duration()] = 0.1
    """Seconds in which an answer that had come already may still reach its caller. Default 100 ms."""
    least: Annotated[int, Whole(1, 1_000_000)] = 1
    """Changes of the primary that the client must have told of, or the run proves nothing. Default 1."""

    def judge(self, history: History) -> Verdict:
        """Look for acknowledgements of others."""
        reigns = list(_reigns(history))
        appends = [
            op for op in history.operations if op.kind is Kind.APPEND and op.acknowledged and op.node is not None
        ]
        judged = [(op, reign) for op in appends for reign in reigns if reign.start + self.within < op.end < reign.end]
        others = [op for op, reign in judged if op.node != reign.node]
        if wrong := _without_proof(others, history):
            return broken(f"{len(wrong)} appends were acknowledged by a node that was the primary no more", wrong)
        changes = len(reigns) - 1
        if changes < self.least:
            return unknown(
                f"the client told of {max(changes, 0)} changes of the primary; {self.least} would prove something"
            )
        if not any(reign is not reigns[0] for _, reign in judged):
            return unknown("the primary changed, and no append after it tells who acknowledged it")
        return ok(f"{len(judged)} appends were acknowledged by the primary of their time; it changed {changes} times")


def _without_proof(appends: Sequence[Operation], history: History) -> list[Operation]:
    """Leave out those of which a token has told meanwhile that they were applied: each such report speaks of one."""
    proofs = [e for e in history.events if e["event"] == "OutcomeResolved" and e["outcome"] == "applied"]
    left = []
    for op in sorted(appends, key=lambda op: op.end):
        proof = next((e for e in proofs if e["node"] == op.node and op.start <= e["at"] <= op.end), None)
        if proof is None:
            left.append(op)
        else:
            proofs.remove(proof)
    return left


class _Moment(NamedTuple):
    """From when on something is due, for how many seconds, and what had happened then."""

    at: float
    bound: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovers(Checker):
    """Appends are acknowledged again soon after a node was promoted, and soon after all was healed."""

    promoted: Annotated[float, Duration(above=True, none=True)] = math.inf
    """Seconds from a promotion to the next acknowledged append of anybody, above 0, or ``none``. Default none."""
    healed: Annotated[float, Duration(above=True, none=True)] = math.inf
    """Seconds from when nothing is broken any more to the next acknowledged append, the same way. Default none."""
    least: Annotated[int, Whole(1, 1_000_000)] = 1
    """Such moments that must have been seen, or the run proves nothing. Default 1."""

    def judge(self, history: History) -> Verdict:
        """Look for moments that were followed by a silence that is too long."""
        ends = [op.end for op in history.of(Kind.APPEND) if op.acknowledged]
        return _soon(history, self._moments(history), ends, "appends went on", self.least)

    def _moments(self, history: History) -> Iterator[_Moment]:
        for fault in history.faults:
            if "promoted" in fault.what or "switchover" in fault.what:
                yield _Moment(fault.start, self.promoted, fault.what)
            done = fault.healed
            if done is not None and not any(_in_force(other, done) for other in history.faults):
                yield _Moment(done, self.healed, f"all was healed, at last {fault.what}")

    def _contradictions(self) -> list[Unfitness]:
        bounded = min(self.promoted, self.healed) < math.inf
        return [] if bounded else [((), "should bound the time after promoted, after healed, or both")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Returns(Checker):
    """A node that was away serves reads again soon after it has come back."""

    node: Annotated[str, Text()]
    """Which; every fault must have been about it. No default."""
    within: Annotated[float, Duration(above=True)]
    """Seconds from when it was brought back to the next read that it serves, above 0. No default."""
    least: Annotated[int, Whole(1, 1_000_000)] = 1
    """Returns that must have been seen, or the run proves nothing. Default 1."""

    def judge(self, history: History) -> Verdict:
        """Look for returns after which it was left alone."""
        ends = [op.end for op in history.of(Kind.READ) if op.acknowledged and op.node == self.node]
        back = [_Moment(f.healed, self.within, f"the end of {f.what}") for f in history.faults if f.healed is not None]
        return _soon(history, back, ends, f"{self.node} served reads again", self.least)

    def names(self) -> dict[str, str]:
        """Return the node."""
        return {"node": self.node}


def _reigns(history: History) -> Iterator[_Reign]:
    told = sorted((e["at"], str(e["node"])) for e in history.events if e["event"] == "PrimaryChanged")
    for n, (at, node) in enumerate(told):
        yield _Reign(node, at, told[n + 1][0] if n + 1 < len(told) else math.inf)


def _in_force(fault: Fault, moment: float) -> bool:
    return fault.since <= moment and (fault.healed is None or fault.healed > moment)


def _soon(history: History, moments: Iterable[_Moment], ends: Iterable[float], what: str, least: int) -> Verdict:
    """Say whether one of *ends* follows each moment in time.

    Where the next fault, or the end, comes before it and before the bound, nobody knows: then nothing is proved.
    """
    cuts = [fault.since for fault in history.faults]
    cuts.append(math.inf if history.stopped is None else history.stopped)
    found = sorted(ends)
    seen: list[tuple[float, str]] = []
    late: list[str] = []
    cut_short: list[str] = []
    for moment in (moment for moment in moments if moment.bound < math.inf):
        seconds = next((end for end in found if end > moment.at), math.inf) - moment.at
        cut = min((cut for cut in cuts if cut > moment.at), default=math.inf) - moment.at
        said = f"{seconds:.3f} s after {moment.what} at {moment.at:.3f} s"
        if moment.bound < min(seconds, cut):
            late.append(said)
        elif seconds < cut:
            seen.append((seconds, said))
        else:
            cut_short.append(f"{moment.what} at {moment.at:.3f} s")
    if late:
        return broken(f"{what} too late {len(late)} times", late)
    if len(seen) < least:
        return unknown(f"{len(seen)} moments after which {what}; {least} would prove something")
    if cut_short:
        return unknown(f"{len(cut_short)} moments were cut short before {what}, the first: {cut_short[0]}")
    return ok(f"{what} after {len(seen)} moments, the slowest {max(seen)[1]}")
