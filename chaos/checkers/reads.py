"""What reads return: a client's own appends always, and lists that only grow.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from chaos.checkers.verdict import Checker, Verdict, broken, ok, unknown
from chaos.history import History, Kind, Operation
from dbguard.config.quantities import Whole

__all__ = ["Order", "Stale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale(Checker):
    """A read sees every append of its own client that was acknowledged before, and those that an earlier one had seen."""

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Reads that must have had an append of their own to miss, or the run proves nothing. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Look for reads that miss an append of their own client; those of the warm-up count, too."""
        sent: dict[str, set[int]] = defaultdict(set)
        due: dict[tuple[str, int], set[int]] = defaultdict(set)  # what a client's next read below a key must see
        wrote: dict[tuple[str, int], str | None] = {}
        stale: list[Operation] = []
        missed, judged, elsewhere = set[int](), 0, 0
        # a client makes one call at a time: in the order of their ends, its appends stand before the reads that follow
        for op in sorted(history.operations, key=lambda op: op.end):
            if op.key is None:
                continue
            mine = op.client, op.key
            if op.kind is Kind.APPEND and op.value is not None:
                sent[op.client].add(op.value)
                if op.acknowledged:
                    due[mine].add(op.value)
                    wrote[mine] = op.node
            elif op.seen is not None and op.acknowledged:
                judged += bool(due[mine])
                elsewhere += bool(due[mine]) and op.node != (wrote.get(mine) or op.node)
                if missing := due[mine].difference(op.seen):
                    missed = missed or missing
                    stale.append(op)
                due[mine].update(sent[op.client].intersection(op.seen))
        if stale:
            said = f"{len(stale)} of {judged} reads miss an append of their own client (the first: {sorted(missed)})"
            return broken(said, stale)
        if judged < self.least:
            return unknown(f"{judged} reads had an append of their own to miss; {self.least} would prove something")
        return ok(f"{judged} reads saw all appends of their own client, {elsewhere} of them on another node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Checker):
    """Lists only grow: each read is a beginning of the final list, and an append that began after another stands after it.

    For workloads alone in which the values of a key stand in the order of their appends.
    """

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Reads that must have returned two values or more, or the run proves nothing. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Look for reads and appends out of order; those of the warm-up count, too."""
        if history.final is None:
            return unknown("the lists could not be read in the end")
        reads = [op for op in history.operations if op.kind is Kind.READ and op.key is not None and op.seen is not None]
        forked = [op for op in reads if op.seen != history.final.get(op.key or 0, ())[: len(op.seen or ())]]
        told = {op.value: op for op in history.operations if op.kind is Kind.APPEND and op.acknowledged}
        late = [
            op
            for values in history.final.values()
            for op in _out_of_order([told[value] for value in values if value in told])
        ]
        if forked or late:
            said = f"{len(forked)} reads are no beginning of the final list, {len(late)} appends stand after later ones"
            return broken(said, [*forked, *late])
        long = sum(len(op.seen or ()) > 1 for op in reads)
        if long < self.least:
            return unknown(f"{long} reads returned two values or more; {self.least} would prove something")
        return ok(f"{len(reads)} reads of {len(history.final)} lists, each a beginning of the final one")


def _out_of_order(appends: Sequence[Operation]) -> list[Operation]:
    """Return those that had ended before one that stands before them began."""
    found, latest = [], float("-inf")
    for op in appends:
        if op.end < latest:
            found.append(op)
        latest = max(latest, op.start)
    return found
