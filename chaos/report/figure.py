"""One run over one time axis: its faults, what clients got, how long it took, and what the client knew of the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from chaos.report.lanes import lanes_of
from chaos.report.panels import Panel, panels
from chaos.report.series import axis_of, merged
from chaos.report.svg import colour, element_of, styled

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.axes import Axes

    from chaos.history import History
    from chaos.report.lanes import Lanes
    from chaos.report.series import Axis

__all__ = ["draw"]

# inches
_WIDTH = 13.0
_LEFT, _RIGHT = 0.72, 0.12
_BOTTOM = 0.46
_TITLE = 0.32  # above each panel, for its title and legend
_CHARACTER = 0.068  # the width of one in a fault's label, at most
_LINE = 0.19  # the height of a line in the panel of faults


def draw(history: History, *, name: str, about: str) -> Element:
    """Draw a run as an SVG element; name and about: as for `element_of`."""
    axis = axis_of(history)
    inch = (axis.end - axis.start) / (_WIDTH - _LEFT - _RIGHT)
    lanes = lanes_of(history.faults, axis, _CHARACTER * inch)
    with styled():
        parts = [Panel("Faults", _LINE * lanes.lines, lambda axes: _faults(axes, lanes)), *panels(history, axis, inch)]
        height = sum(part.height + _TITLE for part in parts) + _BOTTOM
        figure = Figure(figsize=(_WIDTH, height))
        top, axes = height, None
        for part in parts:
            top -= _TITLE + part.height
            place = (_LEFT / _WIDTH, top / height, (_WIDTH - _LEFT - _RIGHT) / _WIDTH, part.height / height)
            axes = figure.add_axes(place, sharex=axes)
            axes.set_title(part.title, loc="left", pad=5, y=1.0)
            axes.xaxis.set_visible(False)  # one axis serves all
            axes.tick_params(axis="y", length=2, labelsize=8.5)
            part.draw(axes)
        _time(figure, history, axis)
        return element_of(figure, name=name, about=about)


def _faults(axes: Axes, lanes: Lanes) -> None:
    """Draw when what was broken."""
    axes.set_ylim(lanes.lines, 0)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    face = colour("fault")
    for row in lanes.rows:
        bars = [(start, end - start) for start, end in row.bars]
        axes.broken_barh(bars, (row.line + 0.22, 0.56), facecolors=face, edgecolors=face, linewidth=1.2)
        axes.text(row.label_at, row.label_line + 0.52, row.label, va="center", fontsize=8.5, parse_math=False)
    if not lanes.rows:
        axes.text(0, 0.5, "nothing was broken", va="center", fontsize=8.5)


def _time(figure: Figure, history: History, axis: Axis) -> None:
    """Draw what all panels share: the axis, when something was broken, and when the run began and was stopped."""
    first, *others = figure.axes
    last = figure.axes[-1]
    last.set_xlim(axis.start, axis.end)
    last.xaxis.set_visible(True)
    last.spines["bottom"].set_visible(True)
    last.tick_params(axis="x", length=3, labelsize=8.5)
    last.xaxis.set_major_locator(MaxNLocator(nbins=22, steps=[1, 2, 5, 10]))
    last.set_xlabel("seconds after the warm-up", fontsize=8.5)
    for axes in others:
        for moment in (0.0, history.stopped):
            if moment is not None:
                axes.axvline(moment, color=colour("soft"), linewidth=0.8, linestyle=(0, (2, 3)))
    spans = merged([(fault.start, axis.end if fault.end is None else fault.end) for fault in history.faults])
    if not spans:
        return
    bottom, top = _BOTTOM / figure.get_figheight(), first.get_position().y1
    boxes = [Path([(a, bottom), (b, bottom), (b, top), (a, top), (a, bottom)], closed=True) for a, b in spans]
    figure.add_artist(
        PathPatch(
            Path.make_compound_path(*boxes),
            transform=blended_transform_factory(last.transData, figure.transFigure),
            facecolor=colour("band"),
            edgecolor=colour("band"),
            linewidth=0.8,  # so that what was brief is seen, too
            zorder=-1,
        )
    )
