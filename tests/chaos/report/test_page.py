"""The page as a browser reads it: all runs are there, nothing comes from elsewhere, and text of others is only text."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from chaos.checkers import State, Verdict
from chaos.history import Fault, History, Kind, Operation, Outcome
from chaos.play import Result
from chaos.report import Page, write
from chaos.report.figure import draw
from chaos.report.svg import COLOURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

EVIL = "</text></svg><script>alert(1)</script><img src=x onerror=alert(2)> $x^{$ \" ' & \x1b[2J\x00 \u202e ]]> -->"
VOID = {"meta", "br", "img", "link", "input"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    inside: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.inside)

    def all(self, tag: str | None = None, look: str | None = None) -> Iterator[Element]:
        for part in self.inside:
            if isinstance(part, Element):
                if tag in (None, part.tag) and (look is None or look in part.attributes.get("class", "").split()):
                    yield part
                yield from part.all(tag, look)

    def one(self, tag: str | None = None, look: str | None = None) -> Element:
        (found,) = self.all(tag, look)
        return found


class Browser(HTMLParser):
    """Reads a page as a tree; tags that are not closed in order are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.path = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.path[-1].inside.append(element)
        if tag not in VOID:
            self.path.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.path[-1].inside.append(data)


def parsed(text: str) -> Element:
    browser = Browser()
    browser.feed(text)
    browser.close()
    (root,) = browser.path
    return root


@pytest.fixture(scope="module")
def guarded(honest: Callable[[int], History]) -> Result:
    """A run of a client that tells of its nodes."""
    history = honest(7)
    events = (
        {"event": "NodeUp", "at": -1.5, "node": "a", "role": "primary"},
        {"event": "NodeUp", "at": -1.5, "node": "b", "role": "replica"},
        {"event": "GateChanged", "at": 1.1, "was": "open", "now": "failover", "why": "gone", "waiting": 2},
        {"event": "NodeDown", "at": 1.1, "node": "b", "why": "silent"},
        {"event": "BreakerChanged", "at": 1.2, "node": "b", "was": "closed", "now": "open", "why": "5 failures"},
        {"event": "EpisodeEnded", "at": 4.2, "kind": "failover", "summary": "failover 1: b is the primary"},
    )
    samples = tuple(
        {"at": n / 10, "gate": "open", "waiting": n % 7, "in_use": 3, "nodes": {"a": "primary"}} for n in range(50)
    )
    head = {"scenario": "replica-hole", "client": "guard", "seed": 7, "about": "One replica is silent."}
    history = replace(history, head=head, events=events, samples=samples)
    return Result(history, {"lost": Verdict(State.OK, "300 appends"), "felt": Verdict(State.OK, "1 fault")})


@pytest.fixture(scope="module")
def naive(honest: Callable[[int], History]) -> Result:
    """A run of a client that tells nothing, and was caught."""
    history = replace(honest(3), head={"scenario": "ack-lost", "client": "naive-retry", "seed": 3}, events=())
    key, values = next(iter((history.final or {}).items()))
    history = replace(history, final={**(history.final or {}), key: (*values, values[0], values[1])})
    return Result(history, {"duplicated": Verdict(State.BROKEN, "2 appends were applied more than once", (4, 5))})


@pytest.fixture(scope="module")
def both(guarded: Result, naive: Result) -> Element:
    """The page of both runs, each drawn."""
    return parsed(page([guarded, naive]))


@pytest.fixture(scope="module")
def evil(guarded: Result) -> Element:
    return parsed(page([with_text(guarded, EVIL)]))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figure, which takes the longest."""
    monkeypatch.setattr("chaos.report.page.draw", lambda *_, **__: ET.Element("svg"))


def page(results: Iterable[Result]) -> str:
    made = Page()
    for result in results:
        made.add(result)
    return made.text()


def with_text(result: Result, text: str) -> Result:
    """Put the same text wherever others could put some."""
    history = result.history
    operation = Operation(
        client=text, kind=Kind.APPEND, start=1.0, end=1.1, outcome=Outcome.UNKNOWN, error=text, value=9_999
    )
    return Result(
        replace(
            history,
            head={"scenario": text, "client": text, "seed": 1, "about": text},
            operations=(*history.operations, operation),
            faults=(*history.faults, Fault(what=text, start=2.0, end=2.1)),
            events=(
                *history.events,
                {"event": text, "at": 1.0},
                {"event": "EpisodeEnded", "at": 2.0, "summary": text},
                {"event": "NodeUp", "at": 1.0, "node": text, "role": text},
                {"event": "GateChanged", "at": 1.0, "was": "open", "now": text},
                {"event": "BreakerChanged", "at": 1.0, "node": text, "was": "closed", "now": text},
            ),
        ),
        {text: Verdict(State.BROKEN, text, (operation,))},
    )


# --- the overview


def test_overview_has_a_line_for_each_run_with_its_verdict_in_words(both: Element) -> None:
    runs = [row for row in both.all("tr") if any(link.attributes["href"] != "#top" for link in row.all("a"))]
    assert [[cell.text for cell in row.all("td")][:4] for row in runs] == [
        ["✔ ok", "replica-hole", "guard", "7"],
        ["✖ broken: duplicated", "ack-lost", "naive-retry", "3"],
    ]
    head = next(row for row in both.all("tr") if "Scenario" in row.text)
    duplicated = [cell.text for cell in head.all("th")].index("Duplicated")
    assert [list(row.all("td"))[duplicated].text for row in runs] == ["0", "2"]
    assert ["bad" in list(row.all("td"))[duplicated].attributes["class"] for row in runs] == [False, True]
    assert both.one("div", "banner").text.startswith("✖ 2 runs: 1 broken, 1 ok2 faults injected, ")


@pytest.mark.usefixtures("undrawn")
def test_clients_are_summed_up_where_there_are_several(guarded: Result, naive: Result) -> None:
    several = parsed(page([guarded, guarded, naive]))
    alone = parsed(page([guarded, guarded]))

    assert "Clients" in [head.text for head in several.all("h3")]
    assert [[cell.text for cell in row.all("td")][:3] for row in several.all("tr")][1:3] == [
        ["✔ 2 runs: 2 ok", "guard", "2"],
        ["✖ 1 run: 1 broken", "naive-retry", "1"],
    ]
    assert "Clients" not in [head.text for head in alone.all("h3")]


@pytest.mark.usefixtures("undrawn")
def test_what_nobody_knows_is_no_zero(guarded: Result) -> None:
    unread = Result(replace(guarded.history, final=None), {"lost": Verdict(State.UNKNOWN, "not read")})
    tree = parsed(page([unread]))

    (row,) = [row for row in tree.all("tr") if list(row.all("a"))]
    cells = [cell.text for cell in row.all("td")]
    assert cells[0] == "? unknown: lost"
    assert cells[6:8] == ["?", "?"]


@pytest.mark.usefixtures("undrawn")
def test_run_that_could_not_be_made_is_told_with_its_reason_and_proves_nothing(guarded: Result) -> None:
    made = Page()
    made.add_failed(scenario="primary-kill", client="guard", seed=4, error="ClusterError: <b>no port</b>\x00")
    alone = parsed(made.text())
    made.add(guarded)
    tree = parsed(made.text())

    assert alone.one("div", "banner").text == "? 1 run: 1 unknown0 faults injected, 0 calls judged"
    assert tree.one("div", "banner").text.startswith("? 2 runs: 1 unknown, 1 ok1 fault injected, ")
    rows = [[cell.text for cell in row.all("td")] for row in tree.all("tr")]
    said = ["? not run", "primary-kill", "guard", "4", "ClusterError: <b>no port</b>\N{REPLACEMENT CHARACTER}"]
    assert said in rows
    assert [link.attributes["href"] for link in tree.all("a")] == ["#run-2", "#top"]
    assert tree.one("section").attributes["id"] == "run-2"


# --- one run


def test_run_tells_what_it_is_about_how_to_repeat_it_and_what_each_checker_said(both: Element) -> None:
    first, second = both.all("section")

    assert "One replica is silent." in first.text
    assert first.one("code").text == "python -m chaos run replica-hole --client guard --seed 7"
    assert second.one("code").text == "python -m chaos run ack-lost --client naive-retry --seed 3"
    said = [[cell.text for cell in row.all("td")] for row in second.all("tr")]
    assert ["✖ broken", "duplicated", "2 appends were applied more than once: 4; 5"] in said


@pytest.mark.usefixtures("undrawn")
def test_faults_are_listed_with_their_time_and_length(guarded: Result) -> None:
    faults = (
        Fault(what="a hole", start=1.0, end=4.0),
        Fault(what="a cut", start=2.5, end=2.6),
        Fault(what="x", start=3),
    )
    tree = parsed(page([Result(replace(guarded.history, faults=faults), guarded.verdicts)]))

    lines = [[part.text for part in line.all("span")] for line in tree.one("ol", "faults").all("li")]

    assert lines == [
        ["1", "1.000 s", "3.00 s", "a hole"],
        ["2", "2.500 s", "100 ms", "a cut"],
        ["3", "3.000 s", "not healed", "x"],
    ]
    assert any("3 faults, by seed 7" in head.text for head in tree.all("h3"))


@pytest.mark.usefixtures("undrawn")
def test_errors_are_counted_and_the_most_frequent_shown(guarded: Result) -> None:
    errors = [f"OSError: {n}" for n in range(10) for _ in range(n + 1)]
    operations = tuple(
        Operation(client="r", kind=Kind.READ, start=1.0, end=1.1, outcome=Outcome.FAILED, error=error)
        for error in errors
    )
    tree = parsed(page([Result(replace(guarded.history, operations=operations), guarded.verdicts)]))

    lines = [[cell.text for cell in row.all("td")] for row in tree.all("tr")]

    assert ["10", "read failed", "OSError: 9"] in lines
    assert ["3", "read failed", "OSError: 2"] in lines
    assert ["2", "read failed", "OSError: 1"] not in lines
    assert any("the 8 most frequent of 10" in head.text for head in tree.all("h3"))


def test_client_tells_its_episodes_in_its_own_words(both: Element) -> None:
    assert [line.text for line in both.one("ul", "lines").all("li")] == ["4.20 s: failover 1: b is the primary"]
    assert "NodeUp 2" in both.text


# --- the figure


def test_figure_has_the_faults_label_the_nodes_and_what_the_guard_held(both: Element) -> None:
    words = [text.text for text in next(both.all("svg")).all("text")]

    assert "a hole" in words
    for title in ("Faults", "Reads per second", "Appends per second", "Latency of reads", "Latency of appends"):
        assert title in words
    for word in ("Gate", "failover", "Nodes, as the client sees them", "a", "b", "primary", "down", "breaker open"):
        assert word in words
    assert {"Held by the guard", "calls that wait for a primary", "connections in use"} <= set(words)


def test_legend_counts_what_callers_were_told(naive: Result, both: Element) -> None:
    _, svg = both.all("svg")
    words = [text.text for text in svg.all("text")]

    for kind in Kind:
        told = Counter(op.outcome for op in naive.history.operations if op.kind is kind)
        for outcome, times in told.items():
            assert f"{outcome} {times}" in words


def test_client_that_tells_nothing_has_no_panel_for_it(both: Element) -> None:
    _, svg = both.all("svg")
    words = [text.text for text in svg.all("text")]

    assert "Reads per second" in words
    assert not {"Gate", "Nodes, as the client sees them", "Held by the guard"} & set(words)


@pytest.mark.parametrize("history", [History(), History(stopped=1.0), History(faults=(Fault(what="x", start=1.0),))])
def test_run_in_which_nobody_did_anything_is_drawn_all_the_same(history: History) -> None:
    history = replace(history, head={"scenario": "x", "client": "plain", "seed": 1})

    tree = parsed(page([Result(history, {"felt": Verdict(State.UNKNOWN, "nothing was broken")})]))

    assert "Faults" in tree.one("svg").text


def test_colours_are_those_of_the_page_in_both_schemes(both: Element) -> None:
    style = both.one("style").text
    light, dark = style.split("prefers-color-scheme: dark", 1)

    for svg in both.all("svg"):
        said = " ".join(element.attributes.get("style", "") for element in svg.all())
        used = set(re.findall(r"var\(--([\w-]+)\)", said))
        assert used <= set(COLOURS)
        assert {"ink", "ok", "fault", "band"} <= used
        assert re.findall(r"#[0-9a-fA-F]{3,8}\b", said.replace("url(#", "")) == []
        assert svg.attributes["aria-label"]
    for name in COLOURS:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark


# --- nobody else has a say


def test_page_fetches_nothing_and_runs_nothing(naive: Result) -> None:
    text = page([with_text(naive, "http://elsewhere.example/x.js")])
    tree = parsed(text)

    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & {element.tag for element in tree.all()}
    for element in tree.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert value.startswith("#")
            if name != "aria-label":
                assert "http" not in value
    assert re.findall(r"url\((?!#)|@import", text) == []


def test_every_reference_has_one_target(guarded: Result) -> None:
    text = page([guarded, guarded])
    ids = Counter(element.attributes["id"] for element in parsed(text).all() if "id" in element.attributes)

    assert [name for name, times in ids.items() if times > 1] == []
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)
    assert {"run-1", "run-2"} <= set(ids)


def test_text_of_others_is_only_text(evil: Element, both: Element) -> None:
    assert {element.tag for element in evil.all()} <= {element.tag for element in both.all()}
    assert {name for element in evil.all() for name in element.attributes} <= {
        name for element in both.all() for name in element.attributes
    }
    shown = "<script>alert(1)</script>"
    assert sum(shown in text.text for text in evil.one("svg").all("text")) >= 1
    assert shown in evil.one("ol", "faults").text
    assert shown in evil.one("ul", "lines").text
    assert any(shown in cell.text for cell in evil.all("td"))
    assert not set("\x00\x1b\u202e") & set(evil.text)


@pytest.mark.usefixtures("undrawn")
def test_command_to_repeat_a_run_is_one_command_whatever_its_names_are(naive: Result) -> None:
    (code,) = parsed(page([with_text(naive, "x; rm -rf ~")])).all("code")

    assert code.text == "python -m chaos run 'x; rm -rf ~' --client 'x; rm -rf ~' --seed 1"


# --- the file


@pytest.mark.usefixtures("undrawn")
def test_file_is_utf8_whatever_errors_hold(guarded: Result, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("an older one")

    write(file, [with_text(guarded, "half \ud800 a character, 日本")])

    assert "half \N{REPLACEMENT CHARACTER} a character, 日本" in file.read_text(encoding="utf-8")


def test_busy_run_stays_small() -> None:
    rng = random.Random(1)
    calls = [
        Operation(
            client=f"c {n}",
            kind=rng.choice(list(Kind)),
            start=(start := rng.uniform(-1, 20)),
            end=start + rng.expovariate(50),
            outcome=rng.choice(list(Outcome)),
            value=n,
            error=f"OSError: {n}",
        )
        for n in range(20_000)
    ]
    nodes, gates = ("primary", "replica", "down", "fenced"), ("open", "suspect", "failover")
    samples = [
        {
            "at": n / 10,
            "gate": gates[n // 4 % 3],
            "waiting": rng.randrange(50),
            "in_use": rng.randrange(20),
            "nodes": {name: nodes[(n // 4 + shift) % 4] for shift, name in enumerate("abc")},
        }
        for n in range(-10, 200)
    ]
    faults = [Fault(what=f"{n % 15} is broken", start=n * 0.6, end=n * 0.6 + 0.3) for n in range(33)]
    history = History(operations=tuple(calls), faults=tuple(faults), samples=tuple(samples))

    svg = draw(history, name="run-1", about="a run in which all that can happen does all the time")

    assert len(ET.tostring(svg, method="html")) < 150_000


def test_scenarios_are_there_without_what_draws_the_report() -> None:
    code = "import sys; from chaos.cli import main; sys.exit(main(['list']) or 'matplotlib' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_matplotlib_that_is_missing_is_named_with_the_way_out() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import chaos.report"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    assert done.returncode == 1
    assert "a report is drawn by matplotlib, which is missing: pip install" in done.stderr
