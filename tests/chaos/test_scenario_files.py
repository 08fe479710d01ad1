"""Every scenario that is kept can be read, and a wrong one is told with file, line and column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos.checkers import Felt, Lost, ReadsGoOn
from chaos.faults import Down, Link, PauseReplay, Toxic
from chaos.scenario import Scenario, every, find, load
from chaos.workloads import Append
from dbguard.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
about: a test
topology: {replicas: 2, synchronous: true}
guard:
  timeout: 10s
  reads: {consistency: eventual}
workload: {append: {readers: 3, writers: 1, pause: 5ms}}
warm_up: 500ms
duration: 6s
timeline:
  - {at: 1s, for: 4s, toxic: {link: app->b, kind: latency, stream: upstream, attributes: {latency: 50}}}
  - {at: 2s, for: 1s, toxic: {link: c->a, kind: timeout}}
checkers:
  reads-go-on: {gap: 1s, away: b}
  lost:
  felt:
"""


def written(text: str, folder: Path) -> Path:
    file = folder / "here.yaml"
    file.write_text(text)
    return file


def problems(text: str, folder: Path) -> list[str]:
    """Return what is wrong with a file, without its name."""
    file = written(text, folder)
    with pytest.raises(ConfigError) as e:
        load(file)
    assert all(problem.startswith(f"{file}:") or "cannot be read" in problem for problem in e.value.problems)
    return [problem.removeprefix(f"{file}:") for problem in e.value.problems]


@pytest.mark.parametrize("path", every(), ids=lambda path: path.stem)
def test_scenario_that_is_kept_is_right(path: Path) -> None:
    scenario = find(path.stem)

    assert scenario.name == path.stem
    assert scenario.timeline
    assert scenario.checkers


def test_there_are_scenarios() -> None:
    assert "replica-hole" in {path.stem for path in every()}


def test_scenario_is_what_its_file_says(tmp_path: Path) -> None:
    scenario = load(written(GOOD, tmp_path))

    assert isinstance(scenario, Scenario)
    assert (scenario.name, scenario.about, scenario.duration, scenario.warm_up) == ("here", "a test", 6.0, 0.5)
    assert (scenario.topology.names, scenario.topology.synchronous) == ("abc", True)
    assert scenario.guard == {"timeout": "10s", "reads": {"consistency": "eventual"}}
    assert scenario.workload == Append(readers=3, writers=1, pause=0.005)
    assert [(step.at, step.for_, step.fault) for step in scenario.timeline] == [
        (1.0, 4.0, Toxic(link=Link("app", "b"), kind="latency", stream="upstream", attributes={"latency": 50})),
        (2.0, 1.0, Toxic(link=Link("c", "a"), kind="timeout")),
    ]
    assert scenario.checkers == {"reads-go-on": ReadsGoOn(gap=1.0, away="b"), "lost": Lost(), "felt": Felt()}


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (2, "topology: {replicas: ¦12}", "topology.replicas: should be a whole number from 0 to 9"),
        (2, "topology: {replica: ¦2}", "topology.replica: unknown key; known here: replicas, synchronous"),
        (2, "topology: ¦3", "topology: should be a mapping of keys to values"),
        (2, "topology: {synchronous: ¦1}", "topology.synchronous: should be true or false"),
        (2, "topologie: ¦{}", "topologie: unknown key; known here: about, workload, duration, timeline, checkers"),
        (4, "  timeout: ¦soon", "guard.timeout: should be a duration"),
        (5, "  reads: {consistency: ¦some}", "guard.reads.consistency: should be own-writes, "),
        (5, "  redas: ¦{}", "guard.redas: unknown key; did you mean reads?"),
        (5, "  nodes: ¦[{host: x}]", "guard.nodes: is the harness's to say"),
        (6, "workload: {append: {readers: ¦many}}", "workload.append.readers: should be a whole number"),
        (6, "workload: {upend: ¦{}}", "workload.upend: unknown; known: append, list-append, hot-rows, bulk"),
        (6, "workload: ¦{}", "workload: should hold one of append, list-append, hot-rows, bulk"),
        (7, "warm_up: ¦0s", "warm_up: should be a duration"),
        (8, "duration: ¦6m", "duration: should be a duration such as"),
        (
            10,
            "  - {at: 1s, for: ¦6s, toxic: {link: app->b, kind: timeout}}",
            "timeline[0].for: ends after the run, at 7 s",
        ),
        (10, "  - ¦{at: 1s, toxic: {link: app->b, kind: timeout}}", "timeline[0].for: is missing"),
        (10, "  - ¦{at: 1s, for: 1s}", "timeline[0]: should hold one of toxic, down, hole"),
        (10, "  - {at: 1s, for: 1s, poison: ¦{}}", "timeline[0].poison: unknown; known: toxic, down, hole"),
        (
            10,
            "  - {at: 1s, for: 1s, times: 4, every: ¦1s, down: {link: app->b}}",
            "timeline[0].every: should be above 1 s, so that one time is over before the next",
        ),
        (
            10,
            "  - {at: 1s, for: ¦1s, times: 5, every: 1100ms, down: {link: app->b}}",
            "timeline[0].for: ends after the run, at 6.4 s of 6 s",
        ),
        (10, "  - {at: 1s, for: 1s, times: ¦0, down: {link: app->b}}", "timeline[0].times: should be a whole"),
        (10, "  - {at: 1s, for: 1s, down: {link: ¦app->d}}", "timeline[0].down.link: names d, which"),
        (10, "  - ¦now", "timeline[0]: should be a mapping, such as"),
        (10, "  - {at: 1s, for: 1s, toxic: {link: ¦app->d, kind: timeout}}", "timeline[0].toxic.link: names d, which"),
        (10, "  - {at: 1s, for: 1s, toxic: {link: ¦app, kind: timeout}}", "timeline[0].toxic.link: should be a link"),
        (10, "  - {at: 1s, for: 1s, toxic: {link: app->b, kind: ¦lag}}", "timeline[0].toxic.kind: should be bandw"),
        (
            10,
            "  - {at: 1s, for: 1s, toxic: {link: app->b, kind: latency, attributes: {lag: ¦5}}}",
            "timeline[0].toxic.attributes.lag: is no attribute of latency; known: jitter, latency",
        ),
        (
            10,
            "  - {at: 1s, for: 1s, toxic: {link: app->b, kind: latency, attributes: {latency: ¦5.5}}}",
            "timeline[0].toxic.attributes.latency: should be a whole number",
        ),
        (10, "  - {at: 1s, for: 1s, pause-replay: {node: ¦primary}}", "timeline[0].pause-replay.node: should be a rep"),
        (10, "  - {at: 1s, for: 1s, promote: {node: ¦primary}}", "timeline[0].promote.node: should be a replica"),
        (10, "  - {at: 1s, switchover: {node: ¦primary}}", "timeline[0].switchover.node: should be a replica"),
        (13, "  reads-go-on: ¦{away: b}", "checkers.reads-go-on.gap: is missing"),
        (
            13,
            "  reads-go-on: {gap: 1s, away: ¦z}",
            "checkers.reads-go-on.away: names z, which is no node; there are a, ",
        ),
        (14, "  found:¦", "checkers.found: unknown; known: lost, duplicated, phantom, stale"),
        (14, "  order: ¦{}", "checkers.order: needs a workload whose values have an order: list-append, hot-rows"),
        (14, "  failed: ¦{reads: any, appends: any}", "checkers.failed: should bound something"),
        (15, "  gaps: ¦{}", "checkers.gaps: should bound the gaps of read"),
        (14, "  lost: {least: ¦0}", "checkers.lost.least: should be a whole number from 1"),
        (14, "  ¦reads-go-on: {}", "the same key stands at 13:3"),
        (15, "  felt: [¦", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_told_with_line_and_column(line: int, text: str, said: str, tmp_path: Path) -> None:
    place = f"{line}:{text.index('¦') + 1}"
    lines = GOOD.splitlines()
    lines[line - 1] = text.replace("¦", "")

    (found,) = problems("\n".join(lines), tmp_path)

    assert found.startswith(f"{place}: {said}")


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("latency: 50", "lag: 50").replace("gap: 1s", "gap: 0s").replace("writers: 1", "writer: 1")
    text = text.replace("timeout: 10s", "timeout: 0s").replace("eventual", "sometimes")

    found = problems(text, tmp_path)

    assert [problem.split(":")[0] for problem in found] == ["4", "5", "6", "10", "13"]


def test_scenario_that_breaks_something_must_say_that_it_was_felt(tmp_path: Path) -> None:
    (found,) = problems(GOOD.replace("  felt:\n", ""), tmp_path)

    assert "checkers: lacks felt" in found


def test_replay_is_paused_on_a_replica_where_nobody_says_which(tmp_path: Path) -> None:
    scenario = load(written(GOOD.replace("toxic: {link: c->a, kind: timeout}", "pause-replay: {}"), tmp_path))

    assert scenario.timeline[1].fault == PauseReplay(node="replica")


def test_same_seed_gives_the_same_schedule_in_order(tmp_path: Path) -> None:
    begin, end = GOOD.index("  - {at: 1s"), GOOD.index("checkers:")
    steps = "  - {at: 1s, for: 100ms, times: 3, every: 1s, jitter: 500ms, down: {link: app->b}}\n"
    steps += "  - {at: 500ms, for: 1s, times: 2, every: 1500ms, toxic: {link: b->a, kind: timeout}}\n"
    scenario = load(written(GOOD[:begin] + steps + GOOD[end:], tmp_path))

    schedule = scenario.schedule(5)

    downs = [due.at for due in schedule if isinstance(due.fault, Down)]
    assert [due.at for due in schedule if isinstance(due.fault, Toxic)] == [0.5, 2.0]
    assert [due.at for due in schedule] == sorted(due.at for due in schedule)
    assert all(n + 1 <= at <= n + 1.5 for n, at in enumerate(downs))
    assert len(downs) == 3
    assert scenario.schedule(5) == schedule
    assert scenario.schedule(6) != schedule


@pytest.mark.parametrize("missing", ["about", "workload", "duration", "timeline", "checkers"])
def test_what_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    begin = GOOD.index(f"{missing}:")
    ends = [n for n in range(begin + 1, len(GOOD)) if GOOD[n - 1] == "\n" and GOOD[n] not in " \n"]
    text = GOOD[:begin] + GOOD[ends[0] if ends else len(GOOD) :]

    assert problems(text, tmp_path) == [f"1:1: {missing}: is missing"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "should be a mapping"),
        ("- a\n", "1:1: should be a mapping"),
        ("checkers: {}\n", "1:11: checkers: should be"),
    ],
)
def test_file_that_is_no_scenario_is_refused(text: str, said: str, tmp_path: Path) -> None:
    assert any(said in problem for problem in problems(text, tmp_path))


def test_file_that_cannot_be_read_is_told_by_its_path(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")

    for file in (tmp_path / "none.yaml", binary, tmp_path):
        with pytest.raises(ConfigError, match=f"{file}: cannot be read: "):
            load(file)


def test_scenario_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no scenario nothing; there are .*replica-hole"):
        find("nothing")
