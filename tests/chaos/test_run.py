"""A run on a real cluster: it catches what it should, tells what happened, and heals what it broke."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from chaos.checkers import State, Verdict
from chaos.history import History
from chaos.run import CLIENTS_NAME, Result, run
from chaos.scenario import Scenario, find
from chaos.workload import TABLE
from dbguard.testing.proxied import ProxiedCluster
from dbguard.testing.toxiproxy import ToxiproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    left = (
        f"SELECT to_regclass('{TABLE}')::text, count(*) FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}'"
    )
    assert shared.toxiproxy.broken() == []
    assert shared.sql("a", left) == [(None, 0)]


@pytest.fixture
def hole() -> Scenario:
    """The first scenario, cut short."""
    hole = find("replica-hole")
    (step,) = hole.timeline
    return replace(hole, warm_up=0.5, duration=3.5, timeline=(replace(step, at=0.2, for_=3.0),))


def with_toxic(scenario: Scenario, **change: Any) -> Scenario:
    (step,) = scenario.timeline
    return replace(scenario, timeline=(replace(step, fault=replace(step.fault, **change)),))


async def test_guard_that_repeats_nothing_is_caught(hole: Scenario, proxied: ProxiedCluster) -> None:
    result = await run(replace(hole, guard={"retry": {"attempts": 1}}), proxied)

    assert result.verdicts["reads-go-on"].state is State.BROKEN, str(result)
    assert "reads failed" in result.verdicts["reads-go-on"].why


async def test_fault_that_is_none_proves_nothing(hole: Scenario, proxied: ProxiedCluster) -> None:
    result = await run(with_toxic(hole, toxicity=0.0), proxied)

    assert result.verdicts["reads-go-on"].state is State.UNKNOWN, str(result)
    assert "which was none" in result.verdicts["reads-go-on"].why


async def test_history_tells_who_served_and_what_was_broken(hole: Scenario, proxied: ProxiedCluster) -> None:
    result = await run(hole, proxied)

    history = result.history
    (fault,) = history.faults
    assert fault.what == "timeout (timeout 0) downstream on app->b"
    assert 0.2 <= fault.start < fault.end <= hole.duration + 1.0
    assert {op.node for op in history.operations if op.client.startswith("reader")} >= {"b", "c"}
    assert {op.node for op in history.operations if op.client.startswith("writer")} == {"a"}
    assert any(event["event"] == "NodeDown" and event["node"] == "b" for event in history.events)
    assert history.final is not None
    assert min(op.start for op in history.operations) < 0


# --- what is broken is healed


async def test_run_that_is_cancelled_heals_what_it_broke(hole: Scenario, proxied: ProxiedCluster) -> None:
    broken = asyncio.Event()
    told = lambda line: broken.set() if "timeout" in line else None  # noqa: E731
    running = asyncio.create_task(run(hole, proxied, say=told))
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
    loop, running = asyncio.get_running_loop(), asyncio.create_task(run(hole, proxied))

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
        await run(hole, proxied)


def test_interrupted_command_heals_and_says_so() -> None:
    command = [sys.executable, "-m", "chaos.run", "replica-hole"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "timeout" in line:
                break
        os.kill(process.pid, signal.SIGINT)
        rest, complaints = process.stdout.read(), process.stderr.read()

    assert process.returncode == 130
    assert "healed timeout (timeout 0) downstream on app->b" in rest
    assert complaints == ""


# --- results


def test_result_is_as_bad_as_its_worst_verdict() -> None:
    ok, unknown, broken = (Verdict(state, "so it is") for state in State)

    assert Result("x", History(), {"lost": ok}).state is State.OK
    assert Result("x", History(), {"lost": ok, "phantom": unknown}).state is State.UNKNOWN
    worst = Result("x", History(), {"lost": broken, "phantom": unknown})
    assert str(worst) == "x: broken\n  lost: broken: so it is\n  phantom: unknown: so it is"
