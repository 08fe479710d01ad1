"""A soak: one client, segments that are judged and forgotten, and what is told of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from chaos import cli, cli_soak, mix
from chaos.checkers import State, Verdict
from chaos.history import History, Leak, LeakKind
from chaos.journal import Journal, read
from chaos.judging import Judged, judged, result_of, state_of
from chaos.mix import Segment
from chaos.play import Result, cluster_for
from chaos.resting import Rest
from chaos.scenario import parse
from chaos.soak import Soak, Stretch
from dbguard.testing.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dbguard.testing.binaries import Binaries

REST = Rest(memory=100 * 2**20, tasks=20, threads=3, files=60, leases=0, backends=24)
HEAD = {"scenario": "soak-1-1", "client": "guard", "seed": 2, "about": "A segment of a soak."}


def result(**verdicts: State) -> Result:
    said = {"felt": State.OK, "lost": State.OK} | verdicts
    return Result(History(head=HEAD, final={}), {name: Verdict(state, "so it is") for name, state in said.items()})


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({}, (State.OK, ())),
        ({"felt": State.UNKNOWN, "overshoot": State.UNKNOWN}, (State.OK, ())),
        ({"overshoot": State.BROKEN}, (State.BROKEN, ("overshoot",))),
        ({"lost": State.UNKNOWN}, (State.UNKNOWN, ("lost",))),
        ({"lost": State.UNKNOWN, "stale": State.BROKEN}, (State.BROKEN, ("stale",))),
    ],
    ids=str,
)
def test_segment_may_leave_open_what_chance_did_not_bring_about(
    verdicts: dict[str, State], expected: tuple[State, tuple[str, ...]]
) -> None:
    assert state_of(result(**verdicts)) == expected


# --- the command


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> list[Result | BaseException]:
    """Let a soak end at once, with these segments."""
    played: list[Result | BaseException] = []

    async def run(soak: Soak, cluster: Any, drawn: Iterator[Segment], *, seconds: float) -> None:
        for number, (one, segment) in enumerate(zip(played, drawn, strict=False), 1):
            if isinstance(one, BaseException):
                raise one
            soak.watch.begins(number, segment)
            made, path = soak.folder / f"{number}.yaml", soak.folder / f"{number}.jsonl"
            made.write_text(segment.text)
            with Journal(0.0, path=path, **HEAD):
                pass
            found = judged(one, 1.0)
            soak.watch.judged(number, found, made, path)
            stretch = Stretch(
                number=number, summary=found.summary, state=found.state, wrong=found.wrong, felt=True, rest=REST
            )
            soak.stretches.append(stretch)
            soak.watch.ends(stretch)
        soak.leaks = list(leaks)

    monkeypatch.setattr(Soak, "run", run)
    monkeypatch.setattr(cli_soak, "cluster_for", lambda scenario, **options: contextlib.nullcontext())
    monkeypatch.setattr(cli_soak, "server_binary", lambda say: "a server")
    leaks.clear()
    return played


leaks: list[Leak] = []


def test_soak_in_which_nothing_is_wrong_is_ok(
    segments: list[Result], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    segments += [result()] * 12
    file = tmp_path / "soak.json"

    assert cli.main(["soak", "--seed", "4", "--client", "plain", "--json", str(file)]) == 0

    said = capsys.readouterr().out
    assert "soak, 12 segments, client plain, seed 4: " in said
    assert "memory: 100.0 MiB, then 100.0 MiB (+0.0%)" in said
    assert said.endswith(f"left behind in the end: nothing\nverdict: ok\nwritten: {file}\n")
    document = json.loads(file.read_text())
    assert document["state"] == "ok"
    assert document["postgres"] == find_binaries().version
    assert document["total"]["segments"] == len(document["segments"]) == 12
    assert {one["state"] for one in document["growth"]} == {"ok"}
    assert [one["number"] for one in document["segments"]] == list(range(1, 13))
    assert document["segments"][0]["verdicts"]["lost"] == {"state": "ok", "why": "so it is"}


def test_one_broken_segment_breaks_the_soak_and_is_told(
    segments: list[Result], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    segments += [result()] * 6 + [result(lost=State.BROKEN)] + [result()] * 6

    page = tmp_path / "page.html"

    assert cli.main(["soak", "--report", str(page)]) == 1

    assert "\n  segment 7: broken: lost; " in capsys.readouterr().out
    shown = re.findall(r' id="run-\d+"', page.read_text())
    assert len(shown) == 3  # the first two, and what is broken


def test_what_the_client_leaves_behind_breaks_the_soak(
    segments: list[Result], capsys: pytest.CaptureFixture[str]
) -> None:
    segments += [result()] * 12
    leaks.append(Leak(kind=LeakKind.TASK, what="monitor"))

    assert cli.main(["soak"]) == 1

    assert "left behind in the end: task monitor" in capsys.readouterr().out


def test_short_soak_proves_nothing(segments: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    segments += [result()] * 3

    assert cli.main(["soak"]) == 2

    assert "memory: too few rests to judge" in capsys.readouterr().out


def test_soak_whose_cluster_fails_in_the_very_end_is_not_ok(
    segments: list[Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextlib.contextmanager
    def falls(*_: Any, **__: Any) -> Iterator[None]:
        yield
        raise RuntimeError("cannot be stopped")

    segments += [result()] * 12
    monkeypatch.setattr(cli_soak, "cluster_for", falls)
    file = tmp_path / "soak.json"

    assert cli.main(["soak", "--json", str(file)]) == 2

    said = capsys.readouterr().out
    assert "ended by RuntimeError: cannot be stopped" in said
    assert "verdict: unknown" in said
    assert {"error": "RuntimeError: cannot be stopped", "state": "unknown"}.items() <= json.loads(
        file.read_text()
    ).items()


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("no server"), 2)])
def test_soak_that_does_not_come_to_its_end_tells_what_it_saw(
    end: BaseException, code: int, segments: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    segments += [result(), end]

    assert cli.main(["soak"]) == code

    said = capsys.readouterr().out
    assert "soak, 1 segments" in said
    assert ("interrupted, and healed" in said) is (code == 130)
    assert ("RuntimeError: no server" in said) is (code == 2)


# --- for real


SHORT = """
about: A short one.
topology: {replicas: 2, synchronous: true}
guard: {outcome: {resolve: token-table}}
workload: {append: {readers: 2, writers: 3, owners: 2, linger: 200ms}}
warm_up: 500ms
duration: 2s
timeline:
  - {at: 100ms, for: 400ms, %s}
  - {at: 700ms, for: 600ms, toxic: {link: app->replica, kind: timeout}}
checkers: {lost: {least: 10}, duplicated: {least: 10}, phantom: {least: 10}, stale: {least: 1}, leaks: {}, felt: {}}
"""


class Heard:
    """Remembers what a soak tells."""

    def __init__(self) -> None:
        self.found: list[Judged] = []
        self.histories: list[History] = []

    def begins(self, number: int, segment: Segment) -> None:
        pass

    def judged(self, number: int, found: Judged, scenario: Path, history: Path) -> None:
        self.found.append(found)
        self.histories.append(read(history))
        assert judged(result_of(scenario, history), found.entry["seconds"]) == found

    def ends(self, stretch: Stretch) -> None:
        pass


@pytest.mark.chaos
def test_client_stays_open_from_segment_to_segment(binaries: Binaries, tmp_path: Path) -> None:
    faults = ["toxic: {link: app->primary, kind: reset_peer}", "strike: {what: write, how: ack-cut}"]
    short = [Segment(parse(SHORT % fault, f"short-{number}"), SHORT % fault) for number, fault in enumerate(faults, 1)]
    heard = Heard()
    soak = Soak(client="guard", seed=1, say=print, watch=heard, folder=tmp_path)

    with cluster_for(short[0].scenario, binaries=binaries) as cluster:
        asyncio.run(soak.run(cluster, iter(short), seconds=3600.0))
        schemas = cluster.sql(cluster.primary, "SELECT nspname FROM pg_namespace WHERE nspname = 'dbguard'")

    assert [stretch.state for stretch in soak.stretches] == [State.OK, State.OK], "\n".join(
        one.told for one in heard.found
    )
    assert soak.leaks == []
    assert schemas == []
    first, second = (stretch.rest for stretch in soak.stretches)
    assert first.backends > 0
    assert second.backends > 0
    assert (first.leases, second.leases) == (0, 0)
    found = [{e["node"] for e in one.events if e["event"] == "PrimaryChanged"} for one in heard.histories]
    assert found == [{"a"}, set()]  # it is found by the first alone
    assert all(one.final for one in heard.histories)
    assert (tmp_path / "short-2.yaml").read_text() == SHORT % faults[1]
    assert (tmp_path / "short-2-guard.jsonl").exists()


def test_soak_ends_once_its_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def segment(soak: Soak, bench: Any, number: int, drawn: Segment) -> None:
        played.append(number)
        now[0] += 20.0

    played: list[int] = []
    now = [100.0]
    monkeypatch.setattr(Soak, "_segment", segment)
    monkeypatch.setattr("chaos.soak.time.monotonic", lambda: now[0])
    monkeypatch.setattr("chaos.soak.Bench", Nothing)
    soak = Soak(client="guard", seed=1, say=print, watch=Heard(), folder=tmp_path)

    asyncio.run(soak.run(None, islice(mix.segments(1), 20), seconds=70.0))  # type: ignore[arg-type]

    assert played == [1, 2, 3]


class Nothing:
    """A bench on which nothing is."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *args: object) -> None:
        pass

    async def close(self) -> None:
        pass

    async def left(self) -> list[Leak]:
        return []
