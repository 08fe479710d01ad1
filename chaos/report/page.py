"""The page: an overview of all runs, then each run with its verdicts, its figure and its faults.

It is made as a tree of elements, so that text, whoever wrote it, is only ever text: it is escaped where the tree is
written. The page holds no script and fetches nothing.
"""

from __future__ import annotations

import platform
import shlex
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import dbguard
from chaos.checkers import State
from chaos.report.figure import draw
from chaos.report.text import counted, fit, seconds
from chaos.summary import summary_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from xml.etree.ElementTree import Element

    from chaos.checkers import Verdict
    from chaos.history import Fault, History
    from chaos.play import Result
    from chaos.summary import Summary

__all__ = ["Page", "write"]

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_SIGNS = {State.OK: "✔", State.UNKNOWN: "?", State.BROKEN: "✖"}
_MEANINGS = {
    State.OK: "every promise was kept",
    State.UNKNOWN: "nothing wrong was seen, but too little happened to prove it",
    State.BROKEN: "a promise was not kept",
}
_ERRORS = 8  # errors of a run that are shown, the most frequent first
_EPISODES = 12  # summaries of episodes that are shown
_TOLD = 700  # characters of what a checker found
_NAME = 40  # characters of an event's name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A run's line of the overview. verdict: in words; anchor: of its section, and error: why there is none."""

    scenario: str
    client: str
    seed: int
    state: State
    verdict: str
    anchor: str = ""
    error: str = ""
    summary: Summary | None = None


class Page:
    """A report, made run by run: what is kept of a run is what the page shows of it, so that histories can be dropped."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._sections: list[str] = []

    def add(self, result: Result) -> None:
        """Add a run, drawn."""
        summary, name = summary_of(result), f"run-{len(self._lines) + 1}"
        self._sections.append(_text(_run(name, result, summary)))
        which = [fit(checker) for checker, verdict in result.verdicts.items() if verdict.state is result.state]
        word = result.state.name.lower()
        line = _Line(
            scenario=fit(summary.scenario),
            client=fit(summary.client),
            seed=summary.seed,
            state=result.state,
            verdict=word if result.state is State.OK else f"{word}: {', '.join(which)}",
            anchor=name,
            summary=summary,
        )
        self._lines.append(line)

    def add_failed(self, *, scenario: str, client: str, seed: int, error: str) -> None:
        """Add a run that could not be made, or came to no end: its line says why, and it counts as unknown."""
        self._lines.append(
            _Line(
                scenario=fit(scenario),
                client=fit(client),
                seed=seed,
                state=State.UNKNOWN,
                verdict="not run",
                error=fit(error),
            )
        )

    def text(self) -> str:
        """Return the page, of one run or more."""
        head = _e(
            "head",
            _e("meta", charset="utf-8"),
            _e("meta", name="viewport", content="width=device-width, initial-scale=1"),
            _e("title", "Chaos report"),
            _e("style", _STYLE),
        )
        parts = [_text(head), "<body>", *map(_text, _overview(self._lines)), *self._sections, "</body>"]
        return f'<!DOCTYPE html>\n<html lang="en">{"".join(parts)}</html>\n'

    def write(self, path: Path) -> None:
        """Write the page as one file that needs nothing else, replaced if it is there. Raises OSError if it cannot be."""
        path.write_text(self.text(), encoding="utf-8")


def write(path: Path, results: Iterable[Result]) -> None:
    """Write the report of some runs, one or more. Raises OSError if it cannot be written."""
    page = Page()
    for result in results:
        page.add(result)
    page.write(path)


def _overview(lines: Sequence[_Line]) -> list[Element]:
    """Make what stands on top: whether all is well, what each client came to, and a line for each run."""
    now, clients = datetime.now(UTC), list(dict.fromkeys(line.client for line in lines))
    about = f"{now:%Y-%m-%d %H:%M} UTC, dbguard {dbguard.__version__}, Python {platform.python_version()}"
    known = _known(lines)
    injected = counted(sum(summary.faults for summary in known), "fault")
    judged = counted(sum(summary.calls for summary in known), "call")
    found = [
        _e("h1", "Chaos report", id="top"),
        _e("p", about, _class="soft"),
        _e("div", _verdicts(lines), _e("span", f"{injected} injected, {judged} judged"), _class="banner"),
    ]
    if len(clients) > 1:
        rows = []
        for name in clients:
            of = [line for line in lines if line.client == name]
            rows.append(_e("tr", _e("td", _verdicts(of)), _e("td", name, _class="name"), *_counts(_known(of))))
        found += [_e("h3", "Clients"), _table([("Verdicts", ""), ("Client", ""), *_COUNTS], rows)]
    head = [("Verdict", ""), ("Scenario", ""), ("Client", ""), ("Seed", _NUMBER), *_COUNTS]
    meanings = [part for state, meaning in _MEANINGS.items() for part in (_verdict(state), f" {meaning}. ")]
    return [*found, _e("h3", "Runs"), _table(head, map(_row, lines)), _e("p", *meanings, _class="soft")]


def _row(line: _Line) -> Element:
    """Make a run's line of the overview."""
    first = [
        _e("td", _verdict(line.state, line.verdict)),
        _e("td", _e("a", line.scenario, href=f"#{line.anchor}") if line.anchor else line.scenario, _class="name"),
        _e("td", line.client, _class="name"),
        _e("td", str(line.seed), _class=_NUMBER),
    ]
    if line.summary is None:
        return _e("tr", *first, _e("td", line.error, colspan=str(len(_COUNTS)), _class="said"))
    return _e("tr", *first, *_counts([line.summary]))


_NUMBER = "number"
_COUNTS = [
    (name, _NUMBER)
    for name in (
        "Faults",
        "Calls",
        "Lost",
        "Duplicated",
        "Stale",
        "Unknown",
        "Failed reads",
        "Reads paused",
        "Writes paused",
    )
]
"""The columns of `_counts`."""


def _counts(summaries: Sequence[Summary]) -> list[Element]:
    """Make the cells that tell what some runs came to: sums, and the longest pauses."""
    cells = [
        _e("td", f"{sum(numbers):,}", _class=_NUMBER)
        for numbers in ([summary.faults for summary in summaries], [summary.calls for summary in summaries])
    ]
    columns: list[tuple[list[int | None], str]] = [
        ([summary.lost for summary in summaries], "bad"),
        ([summary.duplicated for summary in summaries], "bad"),
        ([summary.stale for summary in summaries], "bad"),
        ([summary.unknown for summary in summaries], "open"),
        ([summary.failed_reads for summary in summaries], "open"),
    ]
    for numbers, look in columns:
        known = [number for number in numbers if number is not None]
        text = f"{sum(known):,}" if known else ""
        if len(known) < len(numbers):
            text = f"{text} + ?" if known else "?"
        cells.append(_e("td", text, _class=f"{_NUMBER} {look}" if text.strip("0") else _NUMBER))
    pauses = ([summary.read_pause for summary in summaries], [summary.append_pause for summary in summaries])
    longest = (seconds(max(found)) if found else "" for found in pauses)
    return [*cells, *(_e("td", text, _class=_NUMBER) for text in longest)]


def _known(lines: Sequence[_Line]) -> list[Summary]:
    return [line.summary for line in lines if line.summary is not None]


def _run(name: str, result: Result, summary: Summary) -> Element:
    """Make the section of one run; *name*: its id on the page."""
    history = result.history
    words = [fit(summary.scenario), "--client", fit(summary.client), "--seed", str(summary.seed)]
    title = f"{fit(summary.scenario)} with {fit(summary.client)}, seed {summary.seed}"
    figure = _e(
        "figure", _e("div", draw(history, name=name, about=f"{title}: what happened over time"), _class="scroll")
    )
    figure.append(_e("figcaption", _CAPTION))
    return _e(
        "section",
        _e("header", _verdict(summary.state), _e("h2", title), _e("a", "to the overview", href="#top", _class="up")),
        _e("p", fit(history.head.get("about", ""))),
        _e("code", f"python -m chaos run {shlex.join(words)}", _class="again"),
        _table([("Verdict", ""), ("Checker", ""), ("What it found", "")], map(_found, result.verdicts.items())),
        figure,
        *_faults(history.faults, summary.seed),
        *_errors(history),
        *_events(history),
        id=name,
        _class="run",
    )


_CAPTION = (
    "Violet: something was broken. Dotted lines: the warm-up has ended, callers were told to stop. Calls count where they "
    "ended, whatever they were told; a mark above the curve stands for one or more that were not ok."
)


def _found(told: tuple[str, Verdict]) -> Element:
    """Make the line of one checker."""
    name, verdict = told
    return _e(
        "tr",
        _e("td", _verdict(verdict.state)),
        _e("td", fit(name)),
        _e("td", fit(verdict.told, _TOLD), _class="said"),
    )


def _faults(faults: Sequence[Fault], seed: int) -> list[Element]:
    """List all that was broken, in the order in which it was."""
    if not faults:
        return []
    lines = [
        _e(
            "li",
            _e("span", str(number), _class="soft"),
            _e("span", f"{fault.start:.3f} s"),
            _e("span", "not healed" if fault.end is None else seconds(fault.end - fault.start), _class="soft"),
            _e("span", fit(fault.what), _class="what"),
        )
        for number, fault in enumerate(faults, 1)
    ]
    head = f"{counted(len(faults), 'fault')}, by seed {seed}: when after the warm-up, for how long, what"
    return [_e("h3", head), _e("ol", *lines, _class="faults")]


def _errors(history: History) -> list[Element]:
    """Count what clients were told beside ok."""
    told = Counter((op.kind, op.outcome, fit(op.error)) for op in history.operations if op.error is not None)
    if not told:
        return []
    lines = [
        _e(
            "tr",
            _e("td", f"{times:,}", _class=_NUMBER),
            _e("td", f"{kind} {outcome}"),
            _e("td", error, _class="said"),
        )
        for (kind, outcome, error), times in told.most_common(_ERRORS)
    ]
    rest = f", the {_ERRORS} most frequent of {len(told):,} texts" if len(told) > _ERRORS else ""
    head = [("Times", _NUMBER), ("Call", ""), ("Error", "")]
    return [_e("h3", f"What callers were told when not all was well{rest}"), _table(head, lines)]


def _events(history: History) -> list[Element]:
    """Count what the client reported, and let it tell its episodes in its own words."""
    if not history.events:
        return []
    names = Counter(fit(event["event"], _NAME) for event in history.events)
    lines = [
        _e("li", f"{event['at']:.2f} s: {fit(event['summary'])}")
        for event in history.events
        if event["event"] == "EpisodeEnded"
    ]
    return [
        _e("h3", "What the client reported"),
        _e("p", ", ".join(f"{name} {times:,}" for name, times in names.most_common()), _class="soft"),
        *([_e("ul", *lines[:_EPISODES], _class="lines")] if lines else []),
    ]


def _verdict(state: State, text: str = "") -> Element:
    """Make a verdict: a sign and a word, a shape and a colour."""
    word = state.name.lower()
    return _e("span", f"{_SIGNS[state]} {text or word}", _class=f"verdict {word}")


def _verdicts(lines: Sequence[_Line]) -> Element:
    """Make one of several, which is as bad as the worst."""
    states = Counter(line.state for line in lines)
    told = ", ".join(f"{number:,} {state.name.lower()}" for state, number in sorted(states.items(), reverse=True))
    return _verdict(max(states), f"{counted(len(lines), 'run')}: {told}")


def _table(head: Sequence[tuple[str, str]], rows: Iterable[Element]) -> Element:
    """Make a table that scrolls by itself where a screen is narrow. head: each column's name and class."""
    cells = [_e("th", name, **({"_class": look} if look else {})) for name, look in head]
    table = _e("table", _e("thead", _e("tr", *cells)), _e("tbody", *rows))
    return _e("div", table, _class="scroll")


def _e(tag: str, *inside: Element | str, **attributes: str) -> Element:
    """Make an element of other ones and of text; ``_class`` is its class."""
    element = ET.Element(tag, {name.lstrip("_"): value for name, value in attributes.items()})
    for part in inside:
        if not isinstance(part, str):
            element.append(part)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + part
        else:
            element.text = (element.text or "") + part
    return element


def _text(element: Element) -> str:
    """Write an element; text in it is escaped."""
    return ET.tostring(element, encoding="unicode", method="html")
