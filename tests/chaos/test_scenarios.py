"""Every scenario, on a real cluster behind the real Toxiproxy server, judged by its checkers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaos.checkers import State
from chaos.history import Outcome
from chaos.play import cluster_for, play
from chaos.scenario import every, find

if TYPE_CHECKING:
    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("name", [path.stem for path in every() if path.stem != "ack-lost"])
def test_promises_of_the_scenario_are_kept(name: str, binaries: Binaries) -> None:
    scenario = find(name)

    with cluster_for(scenario, binaries=binaries) as cluster:
        result = asyncio.run(play(scenario, cluster))

    assert result.state is State.OK, str(result)
    assert set(result.verdicts) == set(scenario.checkers)


def test_client_that_repeats_everything_is_caught_duplicating_and_the_guard_is_not(binaries: Binaries) -> None:
    scenario = find("ack-lost")

    with cluster_for(scenario, binaries=binaries) as cluster:
        naive = asyncio.run(play(scenario, cluster, client="naive-retry", seed=7))
        guarded = asyncio.run(play(scenario, cluster, client="guard", seed=7))

    assert naive.verdicts["duplicated"].state is State.BROKEN, str(naive)
    assert naive.verdicts["felt"].state is State.OK, str(naive)
    assert guarded.state is State.OK, str(guarded)
    assert set(guarded.verdicts) == set(scenario.checkers)
    # acknowledgements were lost to the guard, too: it did not just have better luck
    assert sum(op.outcome is Outcome.UNKNOWN for op in guarded.history.operations) >= 6, str(guarded)
