"""The parts of a run's figure below its faults: calls, latency, the gate, the nodes, and what the guard had to hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from chaos.history import Kind, Outcome
from chaos.report import states
from chaos.report.series import latency, level, throughput
from chaos.report.svg import colour
from chaos.report.text import fit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from chaos.history import History
    from chaos.report.series import Axis
    from chaos.report.states import Span

__all__ = ["Panel", "panels"]

_KINDS = {Kind.READ: "reads", Kind.APPEND: "appends"}
_WORD = 0.075  # inches: the width of a character of a state's name, at most
_LANE = 0.3  # inches: the height of a node's lane
_NAME = 24  # characters of a state or a node, at most

_MARKS = {
    Outcome.RESULT_LOST: ("lost", "o", 3.0),
    Outcome.UNKNOWN: ("unknown", "D", 3.6),
    Outcome.FAILED: ("failed", "x", 4.2),
}
"""Colour, shape and size of what clients were told, but for ok."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of the figure: *height* in inches, and what draws it."""

    title: str
    height: float
    draw: Callable[[Axes], None]


@dataclass(frozen=True, slots=True)
class _Look:
    """How a state is drawn, in a lane of height 1: told apart by height and pattern, too, not by colour alone."""

    colour: str
    height: float
    hatch: str = ""


_NODES = {
    "primary": _Look("ok", 0.84),
    "replica": _Look("ok-light", 0.46),
    "fenced": _Look("fenced", 0.84, "xxxx"),
    states.DOWN: _Look("failed", 0.84, "/////"),
    "misconfigured": _Look("unknown", 0.84, "...."),
}
_GATE = {
    states.OPEN: _Look("ok-light", 0.3),
    "suspect": _Look("unknown", 0.56),
    "failover": _Look("failed", 0.84, "/////"),
    "down": _Look("ink", 0.84),
    "paused": _Look("fenced", 0.84, "xxxx"),
}
_OTHER = _Look("soft", 0.16)
_BREAKERS = {"open": "ink", "half-open": "unknown"}


def panels(history: History, axis: Axis, inch: float) -> Iterator[Panel]:
    """Choose the parts: what nobody told of is left out. inch: the seconds that one is wide."""
    kinds = [kind for kind in Kind if any(op.kind is kind for op in history.operations)]
    for kind in kinds:
        yield Panel(f"{_KINDS[kind]} per second".capitalize(), 1.2, _Calls(history, axis, kind))
    for kind in kinds:
        yield Panel(f"Latency of {_KINDS[kind]}", 1.1, _Times(history, axis, kind))
    if gate := states.gate(history, axis.start, axis.end):
        yield Panel("Gate", _LANE, _Spans({"writes": gate}, _GATE, {}, inch))
    if nodes := states.nodes(history, axis.start, axis.end):
        breakers = states.breakers(history, axis.start, axis.end)
        yield Panel("Nodes, as the client sees them", _LANE * len(nodes), _Spans(nodes, _NODES, breakers, inch))
    if any("waiting" in sample or "in_use" in sample for sample in history.samples):
        yield Panel("Held by the guard", 0.9, _Held(history, axis))


@dataclass(frozen=True, slots=True)
class _Calls:
    """How many calls ended; each bin in which one was not ok is marked above, however few they were."""

    history: History
    axis: Axis
    kind: Kind

    def __call__(self, axes: Axes) -> None:
        counts, edges, width = throughput(self.history, self.axis, self.kind), self.axis.edges, self.axis.width
        below = [0.0] * self.axis.count
        legend: list[Artist] = []
        found = [outcome for outcome in (Outcome.OK, *_MARKS) if outcome is Outcome.OK or any(counts[outcome])]
        for layer, outcome in enumerate(found):
            face, edge = ("ok-light", colour("ok")) if outcome is Outcome.OK else (_MARKS[outcome][0], "none")
            below = [sofar + count / width for sofar, count in zip(below, counts[outcome], strict=True)]
            axes.stairs(
                below,
                edges,
                fill=True,
                facecolor=colour(face),
                edgecolor=edge,
                linewidth=1.0,
                zorder=2 - layer / 10,
            )
            if outcome is Outcome.OK:
                legend.append(Patch(facecolor=colour(face), edgecolor=edge, label=f"ok {sum(counts[outcome]):,}"))
        height = max(1.0, *below)
        axes.set_ylim(0, height * (1.12 + 0.13 * (len(found) - 1)))
        for row, outcome in enumerate(found[1:]):
            face, marker, size = _MARKS[outcome]
            at = [edge + width / 2 for edge, count in zip(edges, counts[outcome], strict=False) if count]
            legend += axes.plot(
                at,
                [height * (1.12 + 0.13 * row)] * len(at),
                marker=marker,
                markersize=size,
                color=colour(face),
                linestyle="none",
                clip_on=False,
                label=f"{outcome} {sum(counts[outcome]):,}",
            )
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value <= height else ""))
        _rule(axes)
        _legend(axes, legend)


@dataclass(frozen=True, slots=True)
class _Times:
    """How long the calls took that ended, on a logarithmic scale."""

    history: History
    axis: Axis
    kind: Kind

    def __call__(self, axes: Axes) -> None:
        found, edges = latency(self.history, self.axis, self.kind), self.axis.edges
        axes.set_yscale("log")
        axes.stairs(found.p99, edges, baseline=found.p50, fill=True, facecolor=colour("ok-light"), linewidth=0)
        axes.stairs(found.p99, edges, color=colour("ok"), linewidth=0.8, baseline=None)
        axes.stairs(found.p50, edges, color=colour("ink"), linewidth=1.3, baseline=None)
        at = [edge + self.axis.width / 2 for edge in edges[:-1]]
        apart = [(x, y) for x, y, p99 in zip(at, found.longest, found.p99, strict=True) if y > p99]
        (dots,) = axes.plot(
            [x for x, _ in apart],
            [y for _, y in apart],
            marker="^",
            markersize=3.2,
            color=colour("failed"),
            linestyle="none",
            markeredgewidth=0,
            label="longest, if above",
        )
        known = [value for value in (*found.p50, *found.longest) if value > 0]  # NaN is not
        low, high = (min(known), max(known)) if known else (0.001, 1.0)
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** (math.ceil(math.log10(high * 1.05))))
        axes.yaxis.set_major_locator(LogLocator(10))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _decade(value)))
        _rule(axes)
        _legend(
            axes,
            [
                Line2D([], [], color=colour("ink"), linewidth=1.3, label="p50"),
                Patch(facecolor=colour("ok-light"), edgecolor=colour("ok"), label="up to p99"),
                dots,
            ],
        )


@dataclass(frozen=True, slots=True)
class _Spans:
    """In which state things were, each in a lane of its own; a breaker that is not closed is a bar below the node's."""

    lanes: Mapping[str, Sequence[Span]]
    looks: Mapping[str, _Look]
    breakers: Mapping[str, Sequence[Span]]
    inch: float

    def __call__(self, axes: Axes) -> None:
        seen: dict[str, _Look] = {}
        broken: set[str] = set()
        for row, (name, spans) in enumerate(self.lanes.items()):
            for state in dict.fromkeys(span.state for span in spans):
                look = seen[state] = self.looks.get(state, _OTHER)
                bars = [(span.start, span.end - span.start) for span in spans if span.state == state]
                axes.broken_barh(
                    bars, (row + 0.5 - look.height / 2, look.height), facecolors=colour(look.colour), hatch=look.hatch
                )
            for span in self.breakers.get(name, ()):
                if span.state != states.CLOSED:
                    broken.add(span.state)
                    face = colour(_BREAKERS.get(span.state, "ink"))
                    axes.broken_barh([(span.start, span.end - span.start)], (row + 0.8, 0.2), facecolors=face)
        axes.set_ylim(len(self.lanes), 0)
        names = [fit(name, _NAME) for name in self.lanes]
        axes.set_yticks([row + 0.5 for row in range(len(names))], names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        order = [*self.looks, *(state for state in seen if state not in self.looks)]
        legend: list[Artist] = [
            Patch(facecolor=colour(seen[state].colour), hatch=seen[state].hatch, label=fit(state, _NAME))
            for state in order
            if state in seen
        ]
        legend += [
            Patch(facecolor=colour(_BREAKERS.get(s, "ink")), label=f"breaker {fit(s, _NAME)}") for s in sorted(broken)
        ]
        _legend(axes, legend)


@dataclass(frozen=True, slots=True)
class _Held:
    """Calls that waited for a primary, and connections in use: the most in each bin."""

    history: History
    axis: Axis

    def __call__(self, axes: Axes) -> None:
        edges = self.axis.edges
        waiting, in_use = (_steady(level(self.history, self.axis, name)) for name in ("waiting", "in_use"))
        axes.stairs(waiting, edges, fill=True, facecolor=colour("unknown"), linewidth=0)
        axes.stairs(in_use, edges, color=colour("ok"), linewidth=1.3, baseline=None)
        axes.set_ylim(0, 1.1 * max([1.0, *(value for value in (*waiting, *in_use) if not math.isnan(value))]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        _rule(axes)
        _legend(
            axes,
            [
                Patch(facecolor=colour("unknown"), label="calls that wait for a primary"),
                Line2D([], [], color=colour("ok"), linewidth=1.3, label="connections in use"),
            ],
        )


def _steady(values: Sequence[float]) -> list[float]:
    """Fill bins between two samples with the earlier one: bins may be narrower than samples are apart."""
    found, last = [], math.nan
    for value in values:
        last = last if math.isnan(value) else value
        found.append(last)
    return found


def _decade(value: float) -> str:
    """Write a power of ten of seconds."""
    return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"


def _rule(axes: Axes) -> None:
    """Draw a line across at each tick, below the data."""
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _legend(axes: Axes, entries: Sequence[Artist]) -> None:
    """Write a legend above the panel, where no data is."""
    legend = axes.legend(
        handles=entries,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=max(1, len(entries)),
        frameon=False,
        borderaxespad=0.1,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
