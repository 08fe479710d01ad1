"""Where a client's calls go: away from what is slow, and not away from what is well.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

from dataclasses import dataclass
from typing import Annotated

from chaos.checkers.course import SHOWN
from chaos.checkers.verdict import Checker, Verdict, broken, ok, unknown
from chaos.history import History, Kind, Operation
from dbguard.config.quantities import Number, Whole
from dbguard.config.values import Text

__all__ = ["Spared", "Steady"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spared(Checker):
    """A node that the faults slow down serves a smaller share of the reads while they last."""

    node: Annotated[str, Text()]
    """Which. No default."""
    most: Annotated[float, Number(0, 1)]
    """Its share of the reads during faults at most, 0 to 1. Before the first it must have served more. No default."""
    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Reads both before the first fault and during the faults, or the run proves nothing. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Compare its share before and during the faults."""
        if not history.faults:
            return unknown("nothing was broken")
        reads = [op for op in history.operations if op.kind is Kind.READ and op.acknowledged]
        first = min(fault.since for fault in history.faults)
        before = [op for op in reads if op.end <= first]
        during = [op for op in reads if any(fault.during(op) for fault in history.faults)]
        if min(len(before), len(during)) < self.least:
            return unknown(
                f"{len(before)} reads before the faults, {len(during)} during them; {self.least} would prove something"
            )
        usual, now = self._share(before), self._share(during)
        said = f"{self.node} served {now:.0%} of {len(during)} reads during the faults, {usual:.0%} of {len(before)} before"
        if usual <= self.most:
            return unknown(f"{said}: it had no larger share to lose")
        if now > self.most:
            return broken(f"{said}; allowed {self.most:.0%}", [op for op in during if op.node == self.node])
        return ok(said)

    def names(self) -> dict[str, str]:
        """Return the node."""
        return {"node": self.node}

    def _share(self, reads: list[Operation]) -> float:
        return sum(op.node == self.node for op in reads) / len(reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady(Checker):
    """The client calls no node dead, and opens no breaker: nothing is, whatever the faults do."""

    def judge(self, history: History) -> Verdict:
        """Look for reports of that."""
        reports = [e for e in history.events if e["event"] != SHOWN]
        if not reports:
            return unknown("the client tells nothing")
        told = [e for e in reports if e["at"] >= 0]
        wrong = [
            e for e in told if e["event"] == "NodeDown" or (e["event"], e.get("now")) == ("BreakerChanged", "open")
        ]
        if wrong:
            shown = (f"{e['event']} of {e['node']} at {e['at']:.3f} s ({e['why']})" for e in wrong)
            return broken(f"{len(wrong)} times a node was given up", shown)
        return ok(f"{len(told)} events, and none of them gives up a node")
