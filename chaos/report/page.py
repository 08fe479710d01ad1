"""The page: an overview of all runs, then each run with its verdicts, its figure and its faults.

It is made as a tree of elements, so that text, whoever wrote it, is only ever text: it is escaped where the tree is
written. The page holds no script and fetches nothing.
"""

from __future__ import annotations

import platform
import shlex
from collections import Counter
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

__all__ = ["page", "write"]

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


def write(path: Path, results: Sequence[Result]) -> None:
    """Write the report of some runs, one or more, as one HTML file that needs nothing else; replaced if it is there.

    Raises OSError if it cannot be written.
    """
    path.write_text(page(results), encoding="utf-8", errors="replace")  # lone surrogates cannot be written


def page(results: Sequence[Result]) -> str:
    """Return the page of some runs, one or more."""
    summaries = [summary_of(result) for result in results]
    runs = [
        _run(f"run-{number}", result, summary)
        for number, (result, summary) in enumerate(zip(results, summaries, strict=True), 1)
    ]
    html = _e(
        "html",
        _e(
            "head",
            _e("meta", charset="utf-8"),
            _e("meta", name="viewport", content="width=device-width, initial-scale=1"),
            _e("title", "Chaos report"),
            _e("style", _STYLE),
        ),
        _e("body", *_overview(summaries), *runs),
        lang="en",
    )
    return "<!DOCTYPE html>\n" + ET.tostring(html, encoding="unicode", method="html") + "\n"


def _overview(summaries: Sequence[Summary]) -> list[Element]:
    """Make what stands on top: whether all is well, what each client came to, and a line for each run."""
    now, clients = datetime.now(UTC), list(dict.fromkeys(summary.client for summary in summaries))
    about = f"{now:%Y-%m-%d %H:%M} UTC, dbguard {dbguard.__version__}, Python {platform.python_version()}"
    faults = counted(sum(summary.faults for summary in summaries), "fault")
    calls = counted(sum(summary.calls for summary in summaries), "call")
    found = [
        _e("h1", "Chaos report", id="top"),
        _e("p", about, _class="soft"),
        _e("div", _verdicts(summaries), _e("span", f"{faults} injected, {calls} judged"), _class="banner"),
    ]
    if len(clients) > 1:
        rows = [_client(name, [summary for summary in summaries if summary.client == name]) for name in clients]
        found += [_e("h3", "Clients"), _table([("Verdicts", ""), ("Client", ""), *_COUNTS], rows)]
    head = [("Verdict", ""), ("Scenario", ""), ("Client", ""), ("Seed", _NUMBER), *_COUNTS]
    runs = [
        _e(
            "tr",
            _e("td", _verdict(summary.state)),
            _e("td", _e("a", fit(summary.scenario), href=f"#run-{number}")),
            _e("td", fit(summary.client), _class="name"),
            _e("td", str(summary.seed), _class=_NUMBER),
            *_counts([summary]),
        )
        for number, summary in enumerate(summaries, 1)
    ]
    meanings = [part for state, meaning in _MEANINGS.items() for part in (_verdict(state), f" {meaning}. ")]
    return [*found, _e("h3", "Runs"), _table(head, runs), _e("p", *meanings, _class="soft")]


_NUMBER = "number"
_COUNTS = [
    (name, _NUMBER)
    for name in ("Faults", "Calls", "Lost", "Duplicated", "Stale", "Unknown", "Failed reads", "Longest pause")
]
"""The columns of `_counts`."""


def _client(name: str, summaries: Sequence[Summary]) -> Element:
    return _e("tr", _e("td", _verdicts(summaries)), _e("td", fit(name), _class="name"), *_counts(summaries))


def _counts(summaries: Sequence[Summary]) -> list[Element]:
    """Make the cells that tell what one or more runs came to."""
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
        cells.append(_e("td", text, _class=_NUMBER if text == "0" else f"{_NUMBER} {look}"))
    longest = max(summary.longest_pause for summary in summaries)
    return [*cells, _e("td", seconds(longest), _class=_NUMBER)]


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


def _verdicts(summaries: Sequence[Summary]) -> Element:
    """Make one of several, which is as bad as the worst."""
    states = Counter(summary.state for summary in summaries)
    told = ", ".join(f"{number:,} {state.name.lower()}" for state, number in sorted(states.items(), reverse=True))
    return _verdict(max(states), f"{counted(len(summaries), 'run')}: {told}")


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
