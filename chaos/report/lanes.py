"""Where faults and their labels go: one row for each kind of fault, its label where no bar is. Pure: nothing here draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from chaos.report.series import merged
from chaos.report.text import counted, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.history import Fault
    from chaos.report.series import Axis

__all__ = ["Lanes", "Row", "lanes_of"]

_ROWS = 12  # kinds of faults that have a row of their own; the page lists all of them
_LABEL = 90  # characters
_NEAR = 0.004  # of the axis: bars that lie closer are one


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Faults of one kind.

    bars: when they were broken, as start and end. line: in which line the bars are, 0 the topmost.
    label, label_line: what they are, and in which line that is written. label_at: where it begins, on the time axis.
    """

    label: str
    bars: list[tuple[float, float]]
    line: int
    label_line: int
    label_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """All rows, and how many lines they take."""

    rows: list[Row]
    lines: int


def lanes_of(faults: Sequence[Fault], axis: Axis, character: float) -> Lanes:
    """Place faults in the order in which each kind of them began.

    character: how wide one is, in seconds on the axis.
    """
    kinds: dict[str, list[tuple[float, float]]] = {}
    for fault in faults:
        kinds.setdefault(fault.what, []).append((fault.start, axis.end if fault.end is None else fault.end))
    named = list(kinds.items())
    shown, rest = named[:_ROWS], named[_ROWS:]
    if rest:
        shown.append((counted(len(rest), "more kind", "more kinds"), [span for _, spans in rest for span in spans]))
    rows: list[Row] = []
    line = 0
    for what, spans in shown:
        label, bars = fit(what, _LABEL), merged(spans, _NEAR * (axis.end - axis.start))
        free = _gap(bars, (len(label) + 1) * character, axis)
        label_line, line = line, line + (free is None)
        at = axis.start if free is None else free
        rows.append(Row(label=label, bars=bars, line=line, label_line=label_line, label_at=at + character / 2))
        line += 1
    return Lanes(rows=rows, lines=max(1, line))


def _gap(bars: Sequence[tuple[float, float]], length: float, axis: Axis) -> float | None:
    """Return where a gap beside or between the bars begins that is wide enough, the first after a bar if there is one."""
    ends = [(-math.inf, axis.start), *bars, (axis.end, math.inf)]
    gaps = [(end, start - end) for (_, end), (start, _) in pairwise(ends)]
    return next((start for start, wide in [*gaps[1:], gaps[0]] if wide >= length), None)
