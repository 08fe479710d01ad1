"""What can happen to a node, and how it comes back."""

from __future__ import annotations

import asyncio
import shutil
import socket
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.testing.cluster import Cluster, ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.every_postgres
async def test_kill_ends_every_process_and_connection_at_once(cluster: Cluster) -> None:
    cluster.sql("a", "CREATE TABLE t (id int)")
    cluster.sql("a", "INSERT INTO t VALUES (1)")
    connection = await asyncpg.connect(cluster.dsn("a"))

    await asyncio.to_thread(cluster.kill, "a")

    with pytest.raises((asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError)):
        await connection.fetch("SELECT 1")
    with pytest.raises(OSError, match="Connect call failed"):
        cluster.sql("a", "SELECT 1")
    assert not cluster.node("a").running
    with pytest.raises(ClusterError, match=r"a \(.*\) is not running"):
        cluster.kill("a")
    cluster.start_node("a")
    assert cluster.sql("a", "SELECT id FROM t") == [(1,)]
    assert "was not properly shut down; automatic recovery" in cluster.node("a").log.read_text()


@pytest.mark.parametrize("mode", ["fast", "immediate", "smart"])
def test_node_is_stopped_as_asked_and_comes_back_in_its_role(mode: Any, cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.stop_node(name, mode)
        assert f"received {mode} shutdown request" in cluster.node(name).log.read_text()

    for name in ("b", "a"):
        cluster.start_node(name)

    cluster.wait_streaming()
    assert cluster.sql("b", "SELECT pg_is_in_recovery()") == [(True,)]


async def test_smart_stop_waits_for_clients_and_says_so(cluster: Cluster) -> None:
    connection = await asyncpg.connect(cluster.dsn("b"))

    with pytest.raises(
        ClusterError, match=r"(?s)b \(.*\) did not stop \(smart\) within 0\.3 s.*smart shutdown request"
    ):
        await asyncio.to_thread(cluster.stop_node, "b", "smart", timeout=0.3)

    connection.terminate()


def test_running_node_is_not_started_again(calm_cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"a \(.*\) is running already"):
        calm_cluster.start_node("a")


async def test_frozen_node_keeps_its_connections_and_answers_when_thawed(cluster: Cluster) -> None:
    connection = await asyncpg.connect(cluster.dsn("a"))
    cluster.freeze("a")
    answer = asyncio.ensure_future(connection.fetchval("SELECT 1"))

    done, _ = await asyncio.wait([answer], timeout=0.3)
    assert not done
    assert cluster.node("a").frozen
    with pytest.raises(ClusterError, match=r"a \(.*\) is frozen and cannot stop; thaw it first, or kill it"):
        cluster.stop_node("a")

    cluster.thaw("a")
    assert await asyncio.wait_for(answer, 60) == 1
    assert not cluster.node("a").frozen
    connection.terminate()


def test_frozen_node_can_be_killed_and_started(cluster: Cluster) -> None:
    cluster.freeze("a")

    cluster.kill("a")
    cluster.start_node("a")

    assert not cluster.node("a").frozen
    cluster.wait_streaming()


@pytest.mark.every_postgres
def test_promoted_replica_takes_writes_and_the_other_follows(cluster: Cluster) -> None:
    cluster.kill("a")

    seconds = cluster.promote("b")
    cluster.sql("b", "CREATE TABLE t (id int)")
    cluster.follow("c", "b")

    cluster.wait_streaming()
    cluster.wait_for("c", "SELECT count(*) = 0 FROM t")
    assert 0 < seconds < 30
    assert cluster.primary.name == "b"
    assert [node.name for node in cluster.replicas] == ["c"]


def test_replica_that_is_down_follows_when_it_is_back(cluster: Cluster) -> None:
    cluster.stop_node("c")
    cluster.kill("a")
    cluster.promote("b")

    cluster.follow("c", "b")
    cluster.start_node("c")

    cluster.wait_streaming()


def test_upstream_may_be_reached_by_another_address(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        cluster.follow("b", "a", host="127.0.0.1", port=proxy.getsockname()[1])
        proxy.settimeout(20)
        knocking, _ = proxy.accept()
        knocking.close()

    cluster.follow("b", "a")
    cluster.wait_streaming()


def test_running_primary_follows_nobody(calm_cluster: Cluster) -> None:
    with pytest.raises(
        ClusterError, match=r"a \(.*\) runs as a primary and follows nobody; rejoin it, or stop it first"
    ):
        calm_cluster.follow("a", "b")


def test_paused_replica_receives_but_does_not_apply(cluster: Cluster) -> None:
    cluster.pause_replay("b")
    cluster.sql("a", "CREATE TABLE t (id int)")
    position = cluster.sql("a", "SELECT pg_current_wal_insert_lsn()::text")[0][0]

    cluster.wait_for("b", f"SELECT pg_last_wal_receive_lsn() >= '{position}'")
    assert cluster.sql("b", "SELECT to_regclass('t')") == [(None,)]

    cluster.resume_replay("b")
    cluster.wait_for("b", "SELECT to_regclass('t') IS NOT NULL")


async def test_terminated_backends_are_counted_and_the_rest_is_spared(calm_cluster: Cluster) -> None:
    one, two = [
        await asyncpg.connect(calm_cluster.dsn("b"), server_settings={"application_name": n}) for n in ("1", "2")
    ]

    ended = await asyncio.to_thread(calm_cluster.terminate_backends, "b", where="application_name = '1'")

    assert ended == 1
    assert await two.fetchval("SELECT 1") == 1
    with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError)):
        await one.fetchval("SELECT 1")
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = '1'"  # it tells first, and then ends
    await asyncio.to_thread(calm_cluster.wait_for, "b", gone)
    assert await asyncio.to_thread(calm_cluster.terminate_backends, "b") == 1
    one.terminate()
    two.terminate()
    calm_cluster.wait_streaming()


async def test_synchronous_commit_waits_for_a_replica(cluster_factory: Callable[..., Cluster]) -> None:
    cluster = cluster_factory(synchronous=True)
    cluster.sql("a", "CREATE TABLE t (id int)")
    cluster.wait_for("a", "SELECT count(*) = 2 FROM pg_stat_replication WHERE sync_state = 'quorum'")
    cluster.freeze("b")
    cluster.sql("a", "INSERT INTO t VALUES (1)")

    cluster.freeze("c")

    with pytest.raises(TimeoutError):
        cluster.sql("a", "INSERT INTO t VALUES (2)", timeout=0.5)


# --- rejoining


def fail_over(cluster: Cluster, lose: Callable[[Cluster], None]) -> None:
    """``a`` is lost by *lose*, ``b`` takes over, ``c`` follows it; the table t holds 1 from before and 2 from after."""
    cluster.sql("a", "CREATE TABLE t (id int)")
    cluster.sql("a", "INSERT INTO t VALUES (1)")
    cluster.wait_for("b", "SELECT count(*) = 1 FROM t")
    lose(cluster)
    cluster.promote("b")
    cluster.follow("c", "b")
    cluster.sql("b", "INSERT INTO t VALUES (2)")


def run_on_as_a_stale_primary(cluster: Cluster) -> None:
    cluster.kill("a")
    cluster.start_node("a")


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda cluster: cluster.kill("a"), id="killed"),
        pytest.param(lambda cluster: cluster.stop_node("a"), id="stopped"),
        pytest.param(lambda cluster: cluster.freeze("a"), id="frozen"),
        pytest.param(run_on_as_a_stale_primary, id="still running"),
    ],
)
def test_old_primary_rejoins_by_rewind_and_forgets_its_own_writes(
    lose: Callable[[Cluster], None], cluster: Cluster
) -> None:
    fail_over(cluster, lose)
    if cluster.node("a").running and not cluster.node("a").frozen:
        cluster.sql("a", "INSERT INTO t VALUES (666)")

    assert cluster.rejoin("a") == "rewind"

    cluster.wait_streaming()
    cluster.wait_for("a", "SELECT array_agg(id ORDER BY id) = '{1,2}' FROM t")
    assert {node.name for node in cluster.replicas} == {"a", "c"}


def test_killed_replica_of_the_old_primary_rejoins(cluster: Cluster) -> None:
    fail_over(cluster, lambda cluster: (cluster.kill("c"), cluster.kill("a"), cluster.start_node("c"))[0])
    cluster.kill("c")

    assert cluster.rejoin("c") == "rewind"

    cluster.wait_for("c", "SELECT count(*) = 2 FROM t")


def test_node_that_cannot_be_rewound_is_copied_anew(cluster: Cluster) -> None:
    fail_over(cluster, lambda cluster: cluster.kill("a"))
    shutil.rmtree(cluster.node("a").data / "pg_wal")

    assert cluster.rejoin("a") == "copy"

    cluster.wait_for("a", "SELECT count(*) = 2 FROM t")
    assert cluster.sql("a", "SHOW cluster_name") == [("a",)]


def test_nodes_can_fail_and_rejoin_again_and_again(cluster: Cluster) -> None:
    cluster.sql("a", "CREATE TABLE t (id int)")
    for lost, next_, other in (("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")):
        cluster.sql(lost, f"INSERT INTO t VALUES (ascii('{lost}'))")
        cluster.wait_for(next_, f"SELECT bool_or(id = ascii('{lost}')) FROM t")
        cluster.kill(lost)
        cluster.promote(next_)
        cluster.follow(other, next_)
        cluster.rejoin(lost)
        cluster.wait_streaming()

    assert cluster.sql("a", "SELECT count(*) FROM t") == [(3,)]


def test_primary_does_not_rejoin_itself(calm_cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"a \(.*\) is the primary; start it, or promote another node first"):
        calm_cluster.rejoin("a")
