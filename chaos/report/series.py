"""What a history holds over time, in bins that are few enough to be drawn. Pure: nothing here draws.

A call belongs to the bin in which it ended: a client is told of it then, and what waited for a primary shows as the wait
that it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos.history import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.history import History, Kind

__all__ = ["Axis", "Latency", "axis_of", "latency", "level", "merged", "throughput"]

_WIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)  # seconds; wider ones are multiples of the last
_MOST = 240  # bins: about as many as a reader can tell apart on a page's width


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Time in bins of equal width; bin 0 begins at *start*.

    start: seconds of the run's time, a multiple of *width*. width: seconds, above 0. count: bins, 1 or more.
    """

    start: float
    width: float
    count: int

    @property
    def end(self) -> float:
        """When the last bin ends."""
        return self.start + self.count * self.width

    @property
    def edges(self) -> list[float]:
        """When each bin begins, and when the last one ends."""
        return [self.start + n * self.width for n in range(self.count + 1)]

    def bin(self, moment: float) -> int:
        """Return the bin of a moment; moments before the first and after the last belong to these."""
        return min(max(math.floor((moment - self.start) / self.width), 0), self.count - 1)


def axis_of(history: History, most: int = _MOST) -> Axis:
    """Return an axis of *most* bins or fewer that holds all of a history."""
    moments = [0.0, history.stopped or 0.0]
    moments += [moment for op in history.operations for moment in (op.start, op.end)]
    moments += [moment for fault in history.faults for moment in (fault.start, fault.end) if moment is not None]
    moments += [sample["at"] for sample in history.samples]
    first, last = min(moments), max(moments)
    widths = [*_WIDTHS, _WIDTHS[-1] * math.ceil((last - first) / _WIDTHS[-1] / (most - 2) + 1)]
    for width in widths:
        start = math.floor(first / width)
        count = max(1, math.ceil(last / width) - start)
        if count <= most:
            break
    return Axis(start=start * width, width=width, count=count)


def throughput(history: History, axis: Axis, kind: Kind) -> dict[Outcome, list[int]]:
    """Count the calls of a kind that ended in each bin, by what clients were told."""
    counts = {outcome: [0] * axis.count for outcome in Outcome}
    for op in history.operations:
        if op.kind is kind:
            counts[op.outcome][axis.bin(op.end)] += 1
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long the calls took that ended in each bin, in seconds, whatever they were told; NaN where none ended."""

    p50: list[float]
    p99: list[float]
    longest: list[float]


def latency(history: History, axis: Axis, kind: Kind) -> Latency:
    """Return the percentiles of each bin, by the nearest rank: always a value that a call had."""
    took: list[list[float]] = [[] for _ in range(axis.count)]
    for op in history.operations:
        if op.kind is kind:
            took[axis.bin(op.end)].append(op.end - op.start)
    for seconds in took:
        seconds.sort()
    return Latency(
        p50=[_percentile(seconds, 0.5) for seconds in took],
        p99=[_percentile(seconds, 0.99) for seconds in took],
        longest=[_percentile(seconds, 1.0) for seconds in took],
    )


def level(history: History, axis: Axis, name: str) -> list[float]:
    """Return the highest number that was sampled under *name* in each bin; NaN where there was none."""
    highest = [math.nan] * axis.count
    for sample in history.samples:
        if isinstance(value := sample.get(name), int | float):
            at = axis.bin(sample["at"])
            highest[at] = value if math.isnan(highest[at]) else max(highest[at], value)
    return highest


def merged(spans: Sequence[tuple[float, float]], gap: float = 0.0) -> list[tuple[float, float]]:
    """Join spans of time that overlap or lie no more than *gap* seconds apart."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1] + gap:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def _percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of sorted values that *share* of them do not exceed; NaN if there are none."""
    return values[math.ceil(share * len(values)) - 1] if values else math.nan
