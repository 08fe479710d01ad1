"""A cluster serves the next run as well if it is as it was when it was new, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaos.clusters import Clusters
from chaos.scenario import Topology, find
from dbguard.testing.toxiproxy_server import server_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.binaries import Binaries

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]


@pytest.fixture
def clusters(binaries: Binaries) -> Iterator[Clusters]:
    with Clusters(binaries, server_binary(), said.append) as clusters:
        yield clusters


said: list[str] = []


def test_cluster_is_used_again_until_a_run_leaves_it_changed(clusters: Clusters) -> None:
    scenario = find("replica-hole")
    said.clear()

    with clusters.lend(scenario) as first, first.link("app", "b").toxic("latency", latency=5):
        pass
    with clusters.lend(scenario) as second:
        second.sql("b", "SELECT pg_wal_replay_pause()")
    assert second is first
    assert "b is another: replay is paused" in said[-1]
    with clusters.lend(replace(scenario, topology=Topology(replicas=1))) as third:
        third.promote("b")

    assert third is not second
    assert "b is the primary now" in said[-1]
    with pytest.raises(LookupError), clusters.lend(replace(scenario, topology=Topology(replicas=0))) as fourth:
        raise LookupError
    assert fourth is not third
    assert not any(node.running for cluster in (first, third, fourth) for node in cluster._nodes)
