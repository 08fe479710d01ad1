"""Some scenarios, on a real cluster behind the real Toxiproxy server, judged by their checkers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from chaos.checkers import State
from chaos.history import Outcome
from chaos.play import cluster_for, play
from chaos.scenario import find

if TYPE_CHECKING:
    from chaos.scenario import Scenario
    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos


# A client without a guard that is caught by a checker: the proof that the checker sees.
CAUGHT = {"ack-lost": ("naive-retry", "duplicated"), "replica-lag": ("plain", "stale")}


FEW = 20  # calls that are enough for a checker of a shortened scenario, on a machine that does other things, too
STALL = 3.0  # seconds for which such a machine may stand still
SECONDS = ("gap", "read", "append", "attempt", "promoted", "healed", "within")  # the bounds of checkers that are times


def shortened(name: str, steps: int, *, lasting: float = 0.0, apart: float = 0.0) -> Scenario:
    """Return a scenario with the first *steps* of its timeline, each but once, for a machine that stands still at times.

    A short run proves something with less. Each bound on a time has room for one stall, and each fault lasts *lasting*
    seconds longer: where that is more than a stall, whoever waits for what is broken still breaks the bound. *apart*:
    seconds more between two steps, where a fault lasts a moment, for clients to be back before the next.
    """
    scenario = find(name)
    once = tuple(
        replace(step, times=1, at=step.at + number * apart, for_=step.seconds + lasting)
        for number, step in enumerate(scenario.timeline[:steps])
    )
    return replace(
        scenario,
        workload=replace(scenario.workload, timeout=30.0),
        timeline=once,
        duration=max(step.end for step in once) + 0.5,
        checkers={name: unhurried(checker) for name, checker in scenario.checkers.items()},
    )


def unhurried(checker: Any) -> Any:
    bounds: dict[str, Any] = {name: getattr(checker, name) + STALL for name in SECONDS if hasattr(checker, name)}
    if hasattr(checker, "least"):
        bounds["least"] = min(checker.least, FEW)
    return replace(checker, **bounds)


# `python -m chaos run all --client all` has the time for the others. Here: reads beside a silent replica, and a failover,
# in threads, and a server that crashes, over psycopg.
@pytest.mark.parametrize(
    ("name", "steps", "client", "lasting"),
    [("replica-hole", 1, "guard", 5.0), ("primary-kill-promote", 2, "sync", 5.0), ("crash-restart", 1, "psycopg", 3.0)],
)
def test_promises_of_the_scenario_are_kept(
    name: str, steps: int, client: str, lasting: float, binaries: Binaries
) -> None:
    scenario = shortened(name, steps, lasting=lasting)

    with cluster_for(scenario, binaries=binaries) as cluster:
        result = asyncio.run(play(scenario, cluster, client=client))

    assert result.state is State.OK, str(result)
    assert set(result.verdicts) == set(scenario.checkers)


@pytest.mark.parametrize("name", CAUGHT)
def test_promises_are_kept_where_another_client_is_caught_by_the_same_faults(name: str, binaries: Binaries) -> None:
    client, checker = CAUGHT[name]
    scenario = shortened(name, 3, lasting=0.2, apart=1.5) if name == "ack-lost" else shortened(name, 1, lasting=5.0)

    with cluster_for(scenario, binaries=binaries) as cluster:
        caught = asyncio.run(play(scenario, cluster, client=client, seed=7))
        guarded = asyncio.run(play(scenario, cluster, client="guard", seed=7))

    wrong = {name for name, verdict in caught.verdicts.items() if verdict.state is State.BROKEN}
    assert checker in wrong, str(caught)
    assert wrong <= {checker, "gaps", "stale"}, str(caught)  # it reads a replica, which may be late without any fault
    assert caught.verdicts["felt"].state is State.OK, str(caught)
    assert guarded.state is State.OK, str(guarded)
    assert set(guarded.verdicts) == set(scenario.checkers)
    assert [fault.what for fault in caught.history.faults] == [fault.what for fault in guarded.history.faults]
    if checker == "duplicated":  # acknowledgements were lost to the guard, too: it did not just have better luck
        unknown = [op for op in guarded.history.operations if op.outcome is Outcome.UNKNOWN]
        assert len(unknown) >= len(guarded.history.faults), str(guarded)
        assert guarded.history.final is not None
        there = {value for values in guarded.history.final.values() for value in values}
        assert any(op.value in there for op in unknown), str(guarded)
