"""Whether a run was what it was meant to be: its faults were felt, its callers contended, and nothing stays behind it.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from chaos.checkers.verdict import Checker, Verdict, broken, ok, unknown
from chaos.history import Fault, History, Kind
from dbguard.config.quantities import Whole

__all__ = ["NOTICED", "SHOWN", "Contended", "Felt", "Leaks"]

SHOWN = "FaultShown"
"""The harness's own event: a fault showed on the nodes themselves while it lasted."""

NOTICED = frozenset(
    {
        "BreakerChanged",
        "CallRepeated",
        "Contested",
        "GateChanged",
        "NodeDown",
        "NodeFenced",
        "OutcomeLeftOpen",
        "OutcomeResolved",
        "PrimaryChanged",
        "RoleChanged",
        "SplitBrainSeen",
        SHOWN,
    }
)
"""Events that tell of a fault: of `dbguard.events`, a naive client's own ``CallRepeated``, and the harness's."""

_CALM = frozenset({("GateChanged", "open"), ("BreakerChanged", "closed"), ("BreakerChanged", "half-open")})
"""What they tell of the end of one: the event, and what is so now."""

_MET = re.compile(r"\b(?:40001|40P01)\b|could not serialize access|deadlock detected")
"""What the guard's reports, and the server's errors, say of transactions that met. A recovery conflict is 40001, too; that
fault shows by itself."""

STUCK = 0.25
"""Seconds that a call must have taken to be counted though it ended after the fault. To heal is to cut, too: removing a
toxic ends connections, and what was just under way fails, whether the fault did anything or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Felt(Checker):
    """Every fault was felt while it lasted: a call failed, the client told that it noticed, or the nodes showed it.

    A fault that says itself that it did nothing was not felt, whatever others did meanwhile; nor is it what transactions
    do to each other that makes one felt.

    Never broken: a fault that was not felt makes the run prove nothing.
    """

    least: Annotated[int, Whole(1, 1_000_000)] = 1
    """Calls without success and reports together that each fault must have caused. Default 1."""

    def judge(self, history: History) -> Verdict:
        """Look for what each fault did."""
        if not history.faults:
            return unknown("nothing was broken")
        marks = {fault: _marks(history, fault) for fault in history.faults}
        if not_felt := [fault for fault, found in marks.items() if found < self.least]:
            return unknown(f"{len(not_felt)} of {len(marks)} faults were not felt, the first: {not_felt[0]}")
        return ok(f"{len(marks)} faults, each felt at least {min(marks.values())} times")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contended(Checker):
    """Transactions met on the same rows: some were run again, or failed.

    Never broken: where nobody contends, nothing is proved about those who do.
    """

    least: Annotated[int, Whole(1, 1_000_000)] = 100
    """Transactions that were run more than once, or not done. Default 100."""

    def judge(self, history: History) -> Verdict:
        """Count them."""
        appends = history.of(Kind.APPEND)
        again = [op for op in appends if (op.attempts or 0) > 1]
        failed = [op for op in appends if not op.acknowledged]
        if len(again) + len(failed) < self.least:
            return unknown(
                f"{len(again)} of {len(appends)} transactions were run again; {self.least} would prove something"
            )
        most = max((op.attempts or 0 for op in again), default=1)
        return ok(f"{len(again)} of {len(appends)} transactions were run again, one of them {most} times")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks(Checker):
    """No connection, task, session or lock of the client is left once every call has ended."""

    def judge(self, history: History) -> Verdict:
        """Say what was left."""
        if history.leaks is None:
            return unknown("nobody looked what was left behind")
        if history.leaks:
            return broken(f"{len(history.leaks)} things were left behind", history.leaks)
        if not history.operations:
            return unknown("nothing was done that could have left something behind")
        return ok(f"nothing was left behind by {len(history.operations)} calls")


def _marks(history: History, fault: Fault) -> int:
    if fault.shown is False:
        return 0
    end = math.inf if fault.end is None else fault.end
    failed = [op for op in history.operations if not op.acknowledged and not _contention(op.error)]
    calls = [op for op in failed if op.start < end and op.end > fault.since]
    told = [e for e in history.events if fault.since <= e["at"] < end and _tells(e, fault)]
    return len([op for op in calls if op.end <= end or op.end - op.start >= STUCK]) + len(told)


def _tells(event: Mapping[str, Any], fault: Fault) -> bool:
    if event["event"] == SHOWN:
        return bool(event["fault"] == fault.what)  # of others it tells nothing
    if event["event"] == "CallRepeated" and _contention(event.get("why")):
        return False
    return event["event"] in NOTICED and (event["event"], event.get("now")) not in _CALM


def _contention(why: str | None) -> bool:
    """Whether something failed, or was repeated, since transactions met: that happens where nothing is broken, too."""
    return why is not None and _MET.search(why) is not None
