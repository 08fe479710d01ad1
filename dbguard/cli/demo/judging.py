"""Judging a history against what the table holds afterwards. Pure: a checker gets everything and prints nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dbguard.cli.demo.history import Ending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbguard.cli.demo.history import History

__all__ = ["NOTHING_PROVED", "Figures", "Proofs", "excuse", "faults", "first_after", "judge", "longest_pause"]


@dataclass(frozen=True, slots=True)
class Proofs:
    """How often a token proved what became of a write whose answer was lost.

    applied: it was in the database. not_applied: it was not, and could not come any more, so it was sent again.
    """

    applied: int
    not_applied: int

    @property
    def all(self) -> int:
        """How often it was proved, whichever way it was."""
        return self.applied + self.not_applied

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Proofs:
        """Read them from the counts of a guard's status."""
        return cls(counts.get("proved_applied", 0), counts.get("proved_not_applied", 0))


NOTHING_PROVED = Proofs(0, 0)
"""That of a side whose writes carry no tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What became of one side's work.

    reads, writes: acknowledged ones.
    errors: reads and writes that raised anything but `OutcomeUnknown` and `ResultLost`.
    proved_applied, proved_not_applied: writes whose answer was lost, and what their tokens proved.
    unknown: writes that raised `OutcomeUnknown`.
    unknown_applied: those among them that the table holds.
    result_lost: writes that raised `ResultLost`: proved to be applied, their rows lost.
    failed_applied: writes that raised another error, and yet the table holds them.
    lost: writes that the table does not hold, although they were acknowledged or proved to be applied.
    duplicated: rows beyond the first of a value.
    read_gap_s, write_gap_s: the longest pause between two acknowledged ones, the beginning and the end of the run
        included.
    longest_read_s: how long the slowest acknowledged read took.
    write_gap_after_promotion_s: from the moment when the new primary was seen out of recovery to the next
        acknowledgement of a write; None if there was no promotion, or no such write.
    """

    reads: int
    writes: int
    errors: int
    proved_applied: int
    proved_not_applied: int
    unknown: int
    unknown_applied: int
    result_lost: int
    failed_applied: int
    lost: int
    duplicated: int
    read_gap_s: float
    write_gap_s: float
    longest_read_s: float
    write_gap_after_promotion_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; times in seconds, to the millisecond."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def judge(
    history: History, rows: Mapping[int, int], promoted: float | None, proofs: Proofs = NOTHING_PROVED
) -> Figures:
    """Compare what was acknowledged with *rows*: how often the table holds each value.

    promoted: when the new primary was seen out of recovery, on the history's clock.
    """
    ended = history.ended if history.ended is not None else history.began
    reads, writes = history.acknowledged("read"), history.acknowledged("write")
    return Figures(
        reads=len(reads),
        writes=len(writes),
        errors=history.count(Ending.FAILED),
        proved_applied=proofs.applied,
        proved_not_applied=proofs.not_applied,
        unknown=history.count(Ending.UNKNOWN),
        unknown_applied=len(history.values(Ending.UNKNOWN) & rows.keys()),
        result_lost=history.count(Ending.RESULT_LOST),
        failed_applied=len(history.values(Ending.FAILED) & rows.keys()),
        lost=len(history.values(Ending.ACKNOWLEDGED, Ending.RESULT_LOST) - rows.keys()),
        duplicated=sum(count - 1 for count in rows.values()),
        read_gap_s=longest_pause(reads, history.began, ended),
        write_gap_s=longest_pause(writes, history.began, ended),
        longest_read_s=max(
            (o.ended - o.began for o in history.operations if o.kind == "read" and o.ending is Ending.ACKNOWLEDGED),
            default=0.0,
        ),
        write_gap_after_promotion_s=None if promoted is None else first_after(writes, promoted),
    )


def longest_pause(times: Sequence[float], began: float, ended: float) -> float:
    """Return the longest time in [*began*, *ended*] without any of *times*, which are in order."""
    marks = [began, *(time for time in times if began < time < ended), ended]
    return max(after - before for before, after in pairwise(marks))


def first_after(times: Sequence[float], moment: float) -> float | None:
    """Return the seconds from *moment* to the first of *times*, which are in order, at or after it; None: never."""
    return next((time - moment for time in times if time >= moment), None)


def excuse(*, tokens: bool, outage: float, timeout: float) -> str | None:
    """Return why guarded writes may stay of unknown outcome, as one sentence; None: none may.

    tokens: the writes carried them. outage: seconds without a primary. timeout: seconds that a call had.
    """
    if not tokens:
        return "Without tokens nobody can prove it"
    if outage >= timeout:
        return f"There was no primary for {outage:.1f} s, and a call has {timeout:g} s"
    return None


def faults(guarded: Figures, excuse: str | None = None) -> tuple[str, ...]:
    """Return what speaks against the guarded side; nothing if it kept its promises.

    excuse: why writes of unknown outcome are none; None: they are.
    """
    found = []
    if guarded.errors:
        found.append(f"{guarded.errors} calls raised an error")
    if guarded.lost:
        found.append(f"{guarded.lost} acknowledged writes are not in the table")
    if guarded.duplicated:
        found.append(f"{guarded.duplicated} rows are there more than once")
    if guarded.unknown and excuse is None:
        found.append(f"{guarded.unknown} writes are of unknown outcome, although each carried a token")
    if guarded.write_gap_after_promotion_s is None:
        found.append("no write was acknowledged after the promotion")
    return tuple(found)
