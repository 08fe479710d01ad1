"""Judging a history against what the table holds afterwards. Pure: a checker gets everything and prints nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dbguard.cli.demo.history import Ending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbguard.cli.demo.history import History

__all__ = ["Figures", "faults", "first_after", "judge", "longest_pause"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What became of one side's work.

    reads, writes: acknowledged ones.
    errors: reads and writes that raised anything but `OutcomeUnknown`.
    unknown: writes that raised `OutcomeUnknown`.
    unknown_applied: those among them that the table holds.
    failed_applied: writes that raised another error, and yet the table holds them.
    lost: acknowledged writes that the table does not hold.
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
    unknown: int
    unknown_applied: int
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


def judge(history: History, rows: Mapping[int, int], promoted: float | None) -> Figures:
    """Compare what was acknowledged with *rows*: how often the table holds each value.

    promoted: when the new primary was seen out of recovery, on the history's clock.
    """
    ended = history.ended if history.ended is not None else history.began
    reads, writes = history.acknowledged("read"), history.acknowledged("write")
    return Figures(
        reads=len(reads),
        writes=len(writes),
        errors=history.count(Ending.FAILED),
        unknown=history.count(Ending.UNKNOWN),
        unknown_applied=len(history.values(Ending.UNKNOWN) & rows.keys()),
        failed_applied=len(history.values(Ending.FAILED) & rows.keys()),
        lost=len(history.values(Ending.ACKNOWLEDGED) - rows.keys()),
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


def faults(guarded: Figures) -> tuple[str, ...]:
    """Return what speaks against the guarded side; nothing if it kept its promises."""
    found = []
    if guarded.errors:
        found.append(f"{guarded.errors} calls raised an error")
    if guarded.lost:
        found.append(f"{guarded.lost} acknowledged writes are not in the table")
    if guarded.duplicated:
        found.append(f"{guarded.duplicated} rows are there more than once")
    if guarded.write_gap_after_promotion_s is None:
        found.append("no write was acknowledged after the promotion")
    return tuple(found)
