"""Checkers: pure judgements on a history, with three verdicts.

*ok*: what is promised was kept. *broken*: it was not; the verdict shows what. *unknown*: nothing wrong was seen, but the
run proves nothing, since too little happened in it or its fault was not felt. A broken run is broken however short.

A checker is a dataclass: its fields are the bounds that a scenario sets, and `CHECKERS` gives it its name there.
"""

from __future__ import annotations

from chaos.checkers.answers import Failed, Latency
from chaos.checkers.course import Contended, Felt, Leaks
from chaos.checkers.reads import Order, Stale
from chaos.checkers.roles import Fenced, Recovers, Returns
from chaos.checkers.routes import Spared, Steady
from chaos.checkers.table import Duplicated, Lost, Phantom
from chaos.checkers.times import Gaps, Overshoot, Pause, ReadsGoOn, pauses
from chaos.checkers.verdict import Checker, State, Verdict

__all__ = [
    "CHECKERS",
    "Checker",
    "Contended",
    "Duplicated",
    "Failed",
    "Felt",
    "Fenced",
    "Gaps",
    "Latency",
    "Leaks",
    "Lost",
    "Order",
    "Overshoot",
    "Pause",
    "Phantom",
    "ReadsGoOn",
    "Recovers",
    "Returns",
    "Spared",
    "Stale",
    "State",
    "Steady",
    "Verdict",
    "pauses",
]

CHECKERS: dict[str, type[Checker]] = {
    "lost": Lost,
    "duplicated": Duplicated,
    "phantom": Phantom,
    "stale": Stale,
    "order": Order,
    "reads-go-on": ReadsGoOn,
    "gaps": Gaps,
    "overshoot": Overshoot,
    "failed": Failed,
    "latency": Latency,
    "fenced": Fenced,
    "recovers": Recovers,
    "returns": Returns,
    "leaks": Leaks,
    "felt": Felt,
    "spared": Spared,
    "steady": Steady,
    "contended": Contended,
}
"""The checkers, by their names in a scenario."""
