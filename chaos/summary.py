"""What a run comes to in a few numbers, counted from its history alone, whichever checkers its scenario has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos.checkers import Duplicated, Lost, Stale, pauses
from chaos.history import Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chaos.checkers import Checker, Pause, State
    from chaos.history import History
    from chaos.play import Result

__all__ = ["Summary", "summary_of", "total"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One line of a table of runs; whatever happened during the warm-up counts, but for pauses.

    faults: how many times something was broken.
    lost, duplicated: appends; None: the table could not be read in the end, so nobody knows.
    stale: reads that missed an append of their own client.
    unknown: appends whose outcome the client was not told.
    failed_reads: reads that returned no rows, for whatever reason.
    longest_pause: seconds for which a client at most had no acknowledged call, be it a read or an append.
    read_pause, append_pause: the same for clients that do nothing but read, or append: who appends now and then lets time
        pass between two appends by its nature. Of all that do so, where nobody does nothing else.
    """

    scenario: str
    client: str
    seed: int
    faults: int
    calls: int
    lost: int | None
    duplicated: int | None
    stale: int
    unknown: int
    failed_reads: int
    longest_pause: float
    read_pause: float
    append_pause: float
    state: State


def summary_of(result: Result) -> Summary:
    """Count."""
    history = result.history
    read_back = history.final is not None
    return Summary(
        scenario=history.head["scenario"],
        client=history.head["client"],
        seed=history.head["seed"],
        faults=len(history.faults),
        calls=len(history.operations),
        lost=_found(Lost(), history) if read_back else None,
        duplicated=_found(Duplicated(), history) if read_back else None,
        stale=_found(Stale(), history),
        unknown=sum(op.outcome is Outcome.UNKNOWN for op in history.operations),
        failed_reads=sum(op.kind is Kind.READ and not op.acknowledged for op in history.operations),
        longest_pause=_longest(pauses(history)),
        read_pause=_longest(_of(Kind.READ, history)),
        append_pause=_longest(_of(Kind.APPEND, history)),
        state=result.state,
    )


def total(figures: Iterable[int | None]) -> int | None:
    """Return the sum; None if one of them is: who does not know one does not know the sum."""
    known = list(figures)
    return None if None in known else sum(figure for figure in known if figure is not None)


def _found(checker: Checker, history: History) -> int:
    """Return how much breaks a promise: a checker has no evidence where nothing does."""
    return len(checker.judge(history).evidence)


def _longest(found: Sequence[Pause]) -> float:
    return max((pause.seconds for pause in found), default=0.0)


def _of(kind: Kind, history: History) -> list[Pause]:
    """Return the pauses of clients that do nothing else, or of all where there are none."""
    mixed = {op.client for op in history.operations if op.kind is not kind}
    found = pauses(history, kind)
    return [pause for pause in found if pause.client not in mixed] or found
