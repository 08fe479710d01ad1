"""Every scenario, on a real cluster behind the real Toxiproxy server, judged by its checkers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaos.checkers import State
from chaos.run import cluster_for, run
from chaos.scenario import every, find

if TYPE_CHECKING:
    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("name", [path.stem for path in every()])
def test_promises_of_the_scenario_are_kept(name: str, binaries: Binaries) -> None:
    scenario = find(name)

    with cluster_for(scenario, binaries=binaries) as cluster:
        result = asyncio.run(run(scenario, cluster))

    assert result.state is State.OK, str(result)
    assert set(result.verdicts) == set(scenario.checkers)
