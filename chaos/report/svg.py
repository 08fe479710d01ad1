"""A drawing of matplotlib as an element for a page: its colours become the page's own, which has a light and a dark scheme.

matplotlib writes colours as numbers. So it draws with numbers that stand for a name each, and here they become
``var(--name)``, to be defined in the page's style sheet.
"""

from __future__ import annotations

import re
import warnings
from io import BytesIO
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import matplotlib as mpl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from xml.etree.ElementTree import Element

    from matplotlib.figure import Figure

__all__ = ["COLOURS", "colour", "element_of", "styled"]

COLOURS = (
    "ink",
    "soft",
    "grid",
    "paper",
    "fault",
    "band",
    "ok",
    "ok-light",
    "unknown",
    "lost",
    "failed",
    "fenced",
)
"""The names of the page's colours that a drawing uses."""

_NUMBERS = {name: f"#0a0b{number:02x}" for number, name in enumerate(COLOURS)}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_NUMBER = re.compile(r"#0a0b[0-9a-f]{2}")
_LOCAL = re.compile(r"url\(#([\w-]+)\)")
_PRECISE = re.compile(r"-?\d+\.\d+")
_ROUNDED = ("x", "y", "transform", "points", "width", "height")
_STEP = re.compile(r"([A-Za-z])([^A-Za-z]*)")  # of a path: a command and its numbers
_FONTS = re.compile(r"font-family: [^;]+;? ?")
_MANY = 3  # parts of a group, from which on it is worth while
_IDLE = re.compile(r"rotate\(-?0 [^)]*\)")


def colour(name: str) -> str:
    """Return what matplotlib has to be told for one of `COLOURS`."""
    return _NUMBERS[name]


def styled() -> AbstractContextManager[None]:
    """Set what every drawing has in common, and its default colours; for all of what is drawn and written."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: it can be found, copied and read aloud, and is small
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlecolor": colour("ink"),
            "axes.edgecolor": colour("soft"),
            "axes.facecolor": "none",
            "axes.labelcolor": colour("soft"),
            "axes.linewidth": 0.8,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.facecolor": "none",
            "grid.color": colour("grid"),
            "grid.linewidth": 0.7,
            "hatch.color": colour("paper"),
            "hatch.linewidth": 1.2,
            "legend.fontsize": 8.5,
            "text.color": colour("ink"),
            "xtick.color": colour("soft"),
            "ytick.color": colour("soft"),
        }
    )


def element_of(figure: Figure, *, name: str, about: str) -> Element:
    """Return the drawing as an SVG element for a page of HTML; within `styled`.

    name: unique on the page; the ids of the element's parts begin with it.
    about: what it shows, for whoever cannot see it.
    """
    file = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser's fonts have what ours lacks
        figure.savefig(file, format="svg", metadata=nothing)
    root = ET.fromstring(file.getvalue())  # noqa: S314  matplotlib has just written it
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    written = ET.tostring(root, encoding="unicode")
    targets = dict.fromkeys(re.findall(r'(?:href="|url\()#([\w-]+)', written))
    ids = {target: f"{name}-{number}" for number, target in enumerate(targets)}
    for element in root.iter():
        _adapt(element, ids)
    for element in root.iter("g"):
        _share(element)
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": about}
    return root


def _adapt(element: Element, ids: Mapping[str, str]) -> None:
    """Make one element of a drawing one of the page. ids: new ones, by those that are referred to."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    given = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    element.attrib = {}
    for key, value in given.items():
        if key == "id":
            if value in ids:
                element.set(key, ids[value])
        elif key == "href":
            element.set(key, f"#{ids[value.lstrip('#')]}")
        elif key == "d":
            element.set(key, _short(value))
        elif key in _ROUNDED:
            if not _IDLE.fullmatch(value):
                element.set(key, _PRECISE.sub(_round, value))
        else:
            named = _NUMBER.sub(lambda found: f"var(--{_NAMES[found[0]]})", _FONTS.sub("", value))
            element.set(key, _LOCAL.sub(lambda found: f"url(#{ids[found[1]]})", named))


def _share(group: Element) -> None:
    """Give a group what all of its parts have in common: many bars or marks look alike."""
    if len(group) < _MANY:
        return
    for key in ("style", "clip-path"):
        values = {part.get(key) for part in group}
        if len(values) == 1 and None not in values and key not in group.attrib:
            group.set(key, str(*values))
            for part in group:
                del part.attrib[key]


def _short(path: str) -> str:
    """Write a path in fewer characters: steps, which most are made of, go along one axis at a time."""
    written, x, y = [], "", ""
    for command, numbers in _STEP.findall(_PRECISE.sub(_round, path)):
        point = numbers.split()
        if command == "L":
            across, along = point[0] == x, point[1] == y
            step = "" if across and along else f"V{point[1]}" if across else f"H{point[0]}" if along else None
            written.append("L" + " ".join(point) if step is None else step)
        else:
            written.append(command + " ".join(point))
        if point:
            x, y = point[-2:]
    return "".join(written)


def _round(found: re.Match[str]) -> str:
    return f"{float(found[0]):.1f}".removesuffix(".0")
