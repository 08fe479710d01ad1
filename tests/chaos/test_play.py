"""A run on a real cluster: it catches what it should, tells what happened, and heals what it broke."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from chaos.bench import Bench
from chaos.checkers import State, Verdict
from chaos.clients import CLIENTS_NAME
from chaos.faults import Down, Hole, Toxic, links
from chaos.history import History, Kind
from chaos.journal import read
from chaos.play import Result, judge, play, record
from chaos.scenario import Scenario, find
from chaos.stage import Stage
from chaos.workloads import Append
from dbguard.testing.proxied import ProxiedCluster
from dbguard.testing.toxiproxy import ToxiproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chaos.faults import Breakage
    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def shared(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries) as cluster:
        yield cluster


@pytest.fixture
def proxied(shared: ProxiedCluster) -> Iterator[ProxiedCluster]:
    """A cluster for runs that end as it was; each test sees that it is."""
    yield shared
    left = f"SELECT to_regclass('{Append.table}')::text, count(*) FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}'"
    assert shared.toxiproxy.broken() == []
    assert shared.sql("a", left) == [(None, 0)]


@pytest.fixture
def hole() -> Scenario:
    """The first fault of a scenario, sooner."""
    hole = find("replica-hole")
    step = replace(hole.timeline[0], at=0.2, for_=2.0, times=1, jitter=0.0)
    return replace(hole, warm_up=0.5, duration=2.5, timeline=(step,))


def with_toxic(scenario: Scenario, **change: Any) -> Scenario:
    (step,) = scenario.timeline
    return replace(scenario, timeline=(replace(step, fault=replace(step.fault, **change)),))


async def test_guard_that_repeats_nothing_is_caught(hole: Scenario, proxied: ProxiedCluster) -> None:
    result = await play(replace(hole, guard={"retry": {"attempts": 1}}), proxied)

    assert result.verdicts["reads-go-on"].state is State.BROKEN, str(result)
    assert "reads failed" in result.verdicts["reads-go-on"].why


async def test_fault_that_is_none_proves_nothing(hole: Scenario, proxied: ProxiedCluster) -> None:
    # nobody waits, and no probe is missed, though the machine stands still for a while
    reads_go_on = replace(hole.checkers["reads-go-on"], least=20, gap=60.0)
    calm = replace(hole, checkers={"reads-go-on": reads_go_on, "felt": hole.checkers["felt"]})
    calm = replace(calm, guard={"probe": {"timeout": "30s"}})

    result = await play(with_toxic(calm, toxicity=0.0), proxied)

    assert result.verdicts["reads-go-on"].state is State.UNKNOWN, str(result)
    assert "which was none" in result.verdicts["reads-go-on"].why
    assert result.verdicts["felt"].state is State.UNKNOWN
    assert result.state is State.UNKNOWN


async def test_history_tells_who_served_and_what_was_broken(
    hole: Scenario, proxied: ProxiedCluster, tmp_path: Path
) -> None:
    file = tmp_path / "history.jsonl"
    (step,) = hole.timeline
    hole = replace(hole, duration=6.5, timeline=(replace(step, for_=6.0),))  # long enough to be found by a busy machine

    result = await play(hole, proxied, seed=3, path=file)

    history = result.history
    (fault,) = history.faults
    assert fault.what == "timeout (timeout 0) downstream on app->b"
    assert fault.end is not None
    assert history.stopped is not None
    assert 0.2 <= fault.start < fault.end < history.stopped
    assert {op.node for op in history.operations if op.kind is Kind.READ} & {"b", "c"}
    assert {op.node for op in history.of(Kind.APPEND) if op.acknowledged} == {"a"}
    assert any(event["event"] == "NodeDown" and event["node"] == "b" for event in history.events)
    assert min(op.start for op in history.operations) < 0
    assert all(op.deadline == op.start + hole.workload.timeout for op in history.operations)
    assert history.leaks == ()
    assert history.final is not None
    appends = {op.value: op for op in history.operations if op.kind is Kind.APPEND}
    there = [value for values in history.final.values() for value in values]
    assert {value for value, op in appends.items() if op.acknowledged} <= set(there) <= set(appends)
    assert len(there) == len(set(there)) > 20
    assert history.head == {"scenario": "replica-hole", "client": "guard", "seed": 3, "about": hole.about}
    assert len(history.samples) >= 10
    assert {sample["nodes"]["b"] for sample in history.samples} == {"replica", "down"}
    assert history.samples[0]["gate"] == "open"
    assert all(sample["waiting"] >= 0 <= sample["in_use"] for sample in history.samples)
    assert [sample["at"] for sample in history.samples] == sorted(sample["at"] for sample in history.samples)
    assert read(file).operations == history.operations
    assert read(file).final == history.final


@pytest.mark.parametrize(
    ("fault", "shows"),
    [
        (Hole(link="b->a"), True),  # type: ignore[arg-type]  # parsed, as from a file
        (Down(link="c->a"), True),  # type: ignore[arg-type]
        (Toxic(link="b->a", kind="timeout", toxicity=0.0), False),  # type: ignore[arg-type]
        (Hole(link="app->b"), False),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_fault_between_nodes_shows_there_and_one_that_is_none_does_not(
    fault: Breakage, *, shows: bool, proxied: ProxiedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shows:
        monkeypatch.setattr(links, "_FRESH", 20.0)  # the replica may take its time

    with fault.inject(Stage(proxied)):
        proxied.sql("a", "SELECT pg_logical_emit_message(true, 'something', 'to replicate')")
        effect = fault.effect(Stage(proxied))

    assert (effect is not None) is shows, effect
    for replica in "bc":
        proxied.wait_linked(replica, "a")


# --- what is broken is healed


async def test_run_that_is_cancelled_heals_what_it_broke(hole: Scenario, proxied: ProxiedCluster) -> None:
    broken = asyncio.Event()
    told = lambda line: broken.set() if "timeout" in line else None  # noqa: E731
    running = asyncio.create_task(play(hole, proxied, say=told))
    await broken.wait()
    assert await asyncio.to_thread(proxied.toxiproxy.broken) != []

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await asyncio.to_thread(proxied.toxiproxy.broken) == []


async def test_run_that_is_cancelled_while_it_breaks_something_heals_it(
    hole: Scenario, proxied: ProxiedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = proxied.link("app", "b")
    add = link.toxic
    loop, running = asyncio.get_running_loop(), asyncio.create_task(play(hole, proxied))

    def add_and_be_cancelled(*args: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(running.cancel)
        toxic = add(*args, **options)
        added.append(toxic.name)
        return toxic

    added: list[str] = []
    monkeypatch.setattr(link, "toxic", add_and_be_cancelled)

    with pytest.raises(asyncio.CancelledError):
        await running

    assert added
    assert await asyncio.to_thread(proxied.toxiproxy.broken) == []


async def test_run_whose_fault_cannot_be_made_ends_with_the_reason(
    hole: Scenario, proxied: ProxiedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ToxiproxyError("no toxic today")

    monkeypatch.setattr(proxied.link("app", "b"), "toxic", refuse)

    with pytest.raises(ToxiproxyError, match="no toxic today"):
        await play(hole, proxied)


async def test_fault_that_is_in_anothers_way_is_left_out_where_faults_are_drawn(
    hole: Scenario, proxied: ProxiedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise ConnectionRefusedError("another fault has killed that node")

    monkeypatch.setattr(proxied.link("app", "b"), "toxic", refuse)
    said: list[str] = []

    async with Bench(proxied, "guard", size=hole.workload.callers, guard={}, say=said.append) as bench:
        result = judge(hole, await record(bench, hole, leave_out=True))

    assert result.history.faults == ()
    assert any("left out: timeout" in line and "another fault" in line for line in said)


async def test_fault_that_cannot_be_asked_what_it_shows_ends_no_run(
    hole: Scenario, proxied: ProxiedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise asyncpg.ConnectionDoesNotExistError("something else is broken there")

    monkeypatch.setattr(Toxic, "effect", refuse)
    said: list[str] = []

    result = await play(hole, proxied, say=said.append)

    assert [fault.end is not None for fault in result.history.faults] == [True]
    assert any("not seen whether it shows: timeout" in line for line in said)


def test_interrupted_command_heals_and_says_so_and_its_history_can_be_read(tmp_path: Path) -> None:
    in_background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as shells start what nobody waits for
    command = [*in_background, sys.executable, "-m", "chaos", "run", "replica-hole", "--history", str(tmp_path)]
    file = tmp_path / "replica-hole-guard-1.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("broken: timeout" in line for line in process.stdout)
        under_way = read(file)
        os.kill(process.pid, signal.SIGTERM)  # which is handled as Ctrl-C is
        rest, complaints = process.communicate(timeout=120)

    assert process.returncode == 130
    assert "healed: timeout (timeout 0) downstream on app->b" in rest
    assert complaints == ""
    assert under_way.operations
    assert [fault.end for fault in under_way.faults] == [None]
    history = read(file)
    assert history.operations[: len(under_way.operations)] == under_way.operations
    assert [fault.end is None for fault in history.faults] == [False]
    assert history.final is None
    states = {name: checker.judge(history).state for name, checker in find("replica-hole").checkers.items()}
    assert {states[name] for name in ("lost", "duplicated", "phantom", "leaks")} == {State.UNKNOWN}


# --- results


HEAD = {"scenario": "x", "client": "guard", "seed": 1}


def test_result_is_as_bad_as_its_worst_verdict() -> None:
    good, unknown, broken = (Verdict(state, "so it is") for state in State)

    assert Result(History(head=HEAD), {"lost": good}).state is State.OK
    assert Result(History(head=HEAD), {"lost": good, "phantom": unknown}).state is State.UNKNOWN
    assert Result(History(head=HEAD), {"lost": broken, "phantom": unknown}).state is State.BROKEN


def test_result_is_a_table_of_verdicts() -> None:
    result = Result(
        History(head=HEAD),
        {"lost": Verdict(State.BROKEN, "so it is", (1, 2)), "phantom": Verdict(State.UNKNOWN, "who knows")},
    )

    assert str(result).splitlines() == [
        "x: broken (client guard, seed 1; 0 reads, 0 appends, faults: 0)",
        "  lost     broken   so it is: 1; 2",
        "  phantom  unknown  who knows",
    ]
