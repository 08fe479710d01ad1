"""Faults in a line: names by letter and role, healing whatever happened meanwhile, from plain code and from coroutines."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.testing.cluster import Cluster, ClusterError
from dbguard.testing.faults import Faults
from dbguard.testing.proxied import ProxiedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def shared(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries) as cluster:
        yield cluster


def is_whole(cluster: Cluster) -> bool:
    """Whether one node is primary, and all others stream from it."""
    replicas = [node for node in cluster.nodes if node is not cluster.primary]
    cluster.wait_streaming()
    return [bool(cluster.sql(node, "SELECT pg_is_in_recovery()")[0][0]) for node in replicas] == [True, True]


@pytest.fixture
def faults(shared: ProxiedCluster) -> Iterator[Faults]:
    with Faults(shared) as faults:
        yield faults
    assert is_whole(shared)
    assert shared.toxiproxy.broken() == []


def roles(faults: Faults) -> dict[str, Any]:
    return {name: faults.node(name).name for name in ("primary", "replica", "other-replica")}


def test_failover_moves_the_primary_and_the_old_one_comes_back_as_a_replica(faults: Faults) -> None:
    old, new, other = roles(faults).values()

    with faults.failover(after=0) as fault:
        assert str(fault) == f"{old} killed, {new} promoted"
        assert faults.node("primary").name == new
        assert faults.node("old-primary").name == old
        assert not faults.node(old).running
        faults.cluster.wait_for(new, f"SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = '{other}'")

    assert faults.cluster.sql(old, "SELECT pg_is_in_recovery()") == [(True,)]
    assert faults.node("primary").name == new


def test_switchover_loses_nothing_that_only_the_old_primary_had_written(faults: Faults) -> None:
    faults.cluster.sql(faults.node("primary"), "CREATE TABLE IF NOT EXISTS switched (n int)")
    faults.cluster.sql(faults.node("primary"), "INSERT INTO switched VALUES (1)")
    old = faults.node("primary").name

    with faults.switchover() as fault:
        assert str(fault).startswith(f"{old} stopped")
        assert faults.cluster.sql(faults.node("primary"), "SELECT n FROM switched") == [(1,)]


def test_primary_that_was_killed_comes_back_as_primary(faults: Faults) -> None:
    primary = faults.node("primary")

    with faults.kill() as fault:
        assert str(fault) == f"kill {primary.name}"
        assert not primary.running

    assert faults.node("primary") is primary
    assert faults.cluster.sql(primary, "SELECT pg_is_in_recovery()") == [(False,)]


def test_frozen_primary_that_lost_its_office_meanwhile_comes_back_as_a_replica(faults: Faults) -> None:
    old = faults.node("primary")

    with faults.freeze(old.name), faults.promote() as fault:
        assert old.frozen
        assert str(fault) == f"promote {faults.node('primary').name} beside {old.name}"

    assert faults.cluster.sql(old, "SELECT pg_is_in_recovery()") == [(True,)]


def test_replica_that_is_paused_shows_the_past_until_it_is_healed(faults: Faults) -> None:
    primary, replica = faults.node("primary"), faults.node("replica")

    with faults.pause_replay() as fault:
        assert str(fault) == f"pause the replay of {replica.name}"
        faults.cluster.sql(primary, "CREATE TABLE late (n int)")
        assert faults.cluster.sql(replica, "SELECT to_regclass('late')::text") == [(None,)]
    faults.cluster.wait_for(replica, "SELECT to_regclass('late') IS NOT NULL")
    faults.cluster.sql(primary, "DROP TABLE late")


def test_backends_are_ended_once(faults: Faults) -> None:
    with faults.end_backends(where="application_name = 'nobody'") as fault:
        assert str(fault) == f"0 backends of {faults.node('primary').name} ended"


def test_faults_of_links_say_where_and_heal_themselves(faults: Faults) -> None:
    broken = faults.cluster.toxiproxy.broken  # type: ignore[attr-defined]
    primary, replica, _ = roles(faults).values()

    with faults.hole() as hole, faults.latency("replica->primary", 0.2, jitter=0.1) as latency:
        assert str(hole) == f"hole on app->{primary}"
        assert str(latency) == f"latency latency=200 jitter=100 on {replica}->{primary}"
        assert len(broken()) == 3
    with faults.down(f"app->{replica}"), faults.toxic("app->primary", "bandwidth", rate=10, stream="upstream"):
        assert set(broken()) == {f"app-{primary} has the toxic bandwidth-upstream-3", f"app-{replica} is down"}
    assert broken() == []


def test_what_is_injected_is_healed_at_the_end_the_last_first(shared: ProxiedCluster) -> None:
    with Faults(shared) as faults:
        faults.hole("app->b").inject()
        killed = faults.kill("other-replica").inject()
        assert len(shared.toxiproxy.broken()) == 2
        killed.heal()
        assert faults.node(str(killed).split()[-1]).running
        killed.heal()  # once is enough

    assert shared.toxiproxy.broken() == []


async def test_in_a_coroutine_the_loop_goes_on_while_something_is_broken(faults: Faults) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.005)
            turns += 1

    turning = asyncio.create_task(turn())
    began = time.monotonic()
    async with faults.failover(after=0.2) as fault:
        assert "promoted" in str(fault)
    injected = await faults.freeze("replica")
    turning.cancel()

    assert faults.node(str(injected).split()[-1]).frozen
    assert turns > 10, f"{turns} turns in {time.monotonic() - began:.1f} s"


async def test_fault_that_is_cancelled_while_it_begins_is_healed(faults: Faults) -> None:
    primary = faults.node("primary")
    beginning = asyncio.create_task(faults.freeze("primary").__aenter__())
    await asyncio.sleep(0)  # the thread is at work

    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning

    assert primary.running
    assert not primary.frozen


async def test_blocking_in_a_coroutine_is_refused(faults: Faults) -> None:
    fault = faults.freeze("replica")
    with pytest.raises(RuntimeError, match=r"freeze replica: this would hold up the event loop.*async with"):
        fault.inject()
    with pytest.raises(RuntimeError, match="hold up the event loop"), fault:
        pass

    assert not any(node.frozen for node in faults.cluster.nodes)
    await fault  # so that it was not described for nothing


def test_fault_that_was_described_and_never_done_is_an_error(shared: ProxiedCluster) -> None:
    with (
        pytest.raises(ClusterError, match="described and never done: kill primary; enter it"),
        Faults(shared) as faults,
    ):
        faults.kill()

    with pytest.raises(KeyError), Faults(shared) as faults:  # the test's own error is not hidden by it
        raise KeyError(str(faults.kill()))


def test_fault_is_done_once(faults: Faults) -> None:
    fault = faults.end_backends(where="false").inject()

    with pytest.raises(RuntimeError, match="describe it anew"):
        fault.inject()


@pytest.mark.parametrize(
    ("describe", "said"),
    [
        (lambda f: f.kill("z"), "no node 'z'; there are a, b, c, and the roles primary, replica"),
        (lambda f: f.failover("primary"), "is the primary already; name a replica"),
        (lambda f: f.hole("b"), "'b' is no link; write who dials and who listens, such as app->primary"),
        (lambda f: f.hole("primary->primary"), "to itself"),
        (lambda f: f.down("b->z"), "no node 'z'"),
    ],
)
def test_name_of_nothing_is_refused_and_nothing_is_broken(describe: Any, said: str, faults: Faults) -> None:
    with pytest.raises(ClusterError, match=said):
        describe(faults).inject()


def test_roles_that_nobody_has_are_refused(shared: ProxiedCluster, calm_cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="no node is old-primary now"):
        Faults(shared).node("old-primary")
    with pytest.raises(ClusterError, match=r"this cluster has no proxies; use .*dbguard_proxied_cluster"):
        Faults(calm_cluster).link("app->a")
