from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from dbguard.testing import cluster as module
from dbguard.testing import ports
from dbguard.testing.cluster import Cluster, ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.binaries import Binaries

# --- what a cluster is


@pytest.mark.every_postgres
def test_two_replicas_stream_from_the_primary(calm_cluster: Cluster) -> None:
    rows = calm_cluster.sql("a", "SELECT application_name, state FROM pg_stat_replication ORDER BY 1")

    assert rows == [("b", "streaming"), ("c", "streaming")]
    assert calm_cluster.primary.name == "a"
    assert [node.name for node in calm_cluster.replicas] == ["b", "c"]


def test_replica_refuses_writes(calm_cluster: Cluster) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        calm_cluster.sql("b", "CREATE TABLE t (id int)")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("synchronous_commit", "on"),
        ("fsync", "off"),
        ("data_checksums", "on"),
        ("wal_log_hints", "on"),
        ("hot_standby_feedback", "on"),
        ("wal_retrieve_retry_interval", "200ms"),
        ("max_connections", "100"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("dynamic_shared_memory_type", "mmap"),  # else a killed server leaves segments in /dev/shm
        ("synchronous_standby_names", ""),
    ],
)
def test_every_node_has_the_promised_setting(setting: str, value: str, calm_cluster: Cluster) -> None:
    for node in calm_cluster.nodes:
        assert calm_cluster.sql(node, "SELECT current_setting($1)", setting) == [(value,)]


def test_nodes_carry_their_names(calm_cluster: Cluster) -> None:
    names = [calm_cluster.sql(node, "SHOW cluster_name")[0][0] for node in calm_cluster.nodes]

    assert names == [node.name for node in calm_cluster.nodes] == ["a", "b", "c"]


def test_settings_of_the_caller_win(cluster_factory: Callable[..., Cluster]) -> None:
    cluster = cluster_factory(
        replicas=0, settings={"work_mem": "7MB", "wal_keep_size": "64MB", "search_path": "it's, \\"}
    )

    assert [cluster.sql("a", f"SHOW {name}")[0][0] for name in ("work_mem", "wal_keep_size", "search_path")] == [
        "7MB",
        "64MB",
        "it's, \\",
    ]


def test_single_node_is_a_cluster_too(cluster_factory: Callable[..., Cluster]) -> None:
    cluster = cluster_factory(replicas=0)

    assert cluster.sql("a", "SELECT pg_is_in_recovery()") == [(False,)]
    assert cluster.replicas == ()


def test_number_of_replicas_is_checked() -> None:
    with pytest.raises(ValueError, match="replicas must be 0 to 9, not 10"):
        Cluster(replicas=10)


def test_two_clusters_live_side_by_side(cluster_factory: Callable[..., Cluster]) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: cluster_factory(replicas=1), range(2))

    identifiers = {c.sql("a", "SELECT system_identifier FROM pg_control_system()")[0][0] for c in (one, other)}
    assert len(identifiers) == 2
    one.stop()
    assert other.sql("b", "SELECT 1") == [(1,)]


# --- addresses


def test_dsn_names_all_nodes_or_the_chosen_ones(calm_cluster: Cluster) -> None:
    a, b, c = calm_cluster.nodes

    assert (
        calm_cluster.dsn() == f"postgresql://postgres@127.0.0.1:{a.port},127.0.0.1:{b.port},127.0.0.1:{c.port}/postgres"
    )
    assert calm_cluster.dsn(c, "a", user="a/b", database="x y") == (
        f"postgresql://a%2Fb@127.0.0.1:{c.port},127.0.0.1:{a.port}/x%20y"
    )


async def test_dsn_leads_a_client_to_the_primary(calm_cluster: Cluster) -> None:
    connection = await asyncpg.connect(calm_cluster.dsn("c", "a"), target_session_attrs="read-write")
    try:
        assert await connection.fetchval("SHOW cluster_name") == "a"
    finally:
        await connection.close()


def test_unknown_node_is_an_error_that_names_those_there_are(calm_cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="no node d in this cluster; there are a, b, c"):
        calm_cluster.kill("d")


async def test_password_is_asked_for_and_replication_knows_it(cluster_factory: Callable[..., Cluster]) -> None:
    cluster = cluster_factory(replicas=1, password="p@ss/w:rd#1% '\\")

    connection = await asyncpg.connect(cluster.dsn("b"))
    await connection.close()
    assert cluster.sql("a", "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'postgres'") == [
        (True,)
    ]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(cluster.dsn("a"), password="wrong")
    cluster.kill("a")
    cluster.promote("b")
    assert cluster.rejoin("a") == "rewind"


def test_ports_are_below_those_lent_to_outgoing_connections(
    calm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lent = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(ports, "_RANGE_FILE", lent)
    lent.write_text("22000\t60999\n")

    claims = ports.claim_ports(50)

    chosen = [claim.getsockname()[1] for claim in claims]
    assert all(20_000 <= port < 22_000 for port in chosen)
    assert len(set(chosen)) == 50
    for claim in claims:
        claim.close()


def test_where_the_range_leaves_no_room_below_ports_are_taken_above(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ports, "_RANGE_FILE", tmp_path / "range")
    (tmp_path / "range").write_text("1024 60000")

    (claim,) = ports.claim_ports(1)

    assert claim.getsockname()[1] > 60_000
    claim.close()


def test_claimed_port_is_not_claimed_twice_though_nobody_listens() -> None:
    (claim,) = ports.claim_ports(1)

    assert ports._claim(claim.getsockname()[1]) is None
    claim.close()


def test_taken_port_makes_the_cluster_start_again_with_others(
    cluster_factory: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted: list[list[socket.socket]] = []

        def claim(count: int) -> list[socket.socket]:
            wanted.append(claims := ports.claim_ports(count))
            if len(wanted) == 1:  # another program was faster
                claims[1].close()
                claims[1] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                claims[1].bind(taken.getsockname())
            return claims

        monkeypatch.setattr(module, "claim_ports", claim)
        cluster = cluster_factory()

        assert len(wanted) == 2
        assert taken.getsockname()[1] not in {node.port for node in cluster.nodes}
        assert cluster.sql("b", "SHOW port") == [(str(cluster.node("b").port),)]


# --- asking


def test_rows_are_tuples_and_arguments_are_bound(calm_cluster: Cluster) -> None:
    assert calm_cluster.sql("b", "SELECT $1::int + 1, $2::text[]", 1, ["x"]) == [(2, ["x"])]


def test_error_of_the_server_reaches_the_caller_with_a_note_of_the_node(calm_cluster: Cluster) -> None:
    with pytest.raises(asyncpg.UndefinedTableError) as caught:
        calm_cluster.sql("b", "SELECT * FROM nowhere")

    assert caught.value.__notes__ == [f"asked by the test harness of {calm_cluster.node('b')}"]


async def test_questions_may_be_asked_from_a_running_loop_and_from_threads(calm_cluster: Cluster) -> None:
    assert calm_cluster.sql("a", "SELECT 1") == [(1,)]

    answers = await asyncio.gather(*(asyncio.to_thread(calm_cluster.sql, "a", f"SELECT {n}") for n in range(8)))
    assert answers == [[(n,)] for n in range(8)]


async def test_waiting_ends_with_the_last_answer(calm_cluster: Cluster) -> None:
    """Both at once: each has time for an answer on a machine that stands still for a while."""
    queries = ("SELECT 1 > 2", "SELECT * FROM nowhere")

    waiting = (asyncio.to_thread(calm_cluster.wait_for, "a", query, timeout=4) for query in queries)
    false, absent = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(false, TimeoutError)
    assert re.match(r"a \(127\.0\.0\.1:\d+\): not true within 4 s: SELECT 1 > 2 \(last: False", str(false))
    assert isinstance(absent, TimeoutError)
    assert re.search(r"last: UndefinedTableError: .*nowhere", str(absent))


def test_statement_is_bounded_in_time(calm_cluster: Cluster) -> None:
    with pytest.raises(TimeoutError):
        calm_cluster.sql("a", "SELECT pg_sleep(60)", timeout=0.1)


# --- errors and ends


def test_failed_start_shows_the_log_and_leaves_nothing(binaries: Binaries, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o777)
        cluster = Cluster(binaries=binaries, settings={"shared_buffers": "a lot"}, base=Path(base))

        with pytest.raises(
            ClusterError, match=r"(?s)did not start \(exit code 1\).*parameter \"shared_buffers\": \"a lot\""
        ):
            cluster.start()

        assert list(Path(base).iterdir()) == []


def test_directory_that_the_user_cannot_enter_is_named(binaries: Binaries, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    refused = pytest.raises(ClusterError, match=f"(?s)initdb failed.*{closed}.*Permission denied")

    cluster = Cluster(binaries=binaries, replicas=0, base=closed)
    with contextlib.nullcontext() if os.geteuid() else refused:  # only root gives way to another user
        cluster.start()
    cluster.stop()

    assert list(closed.iterdir()) == []


def test_cluster_is_started_once_and_stopped_as_often_as_one_likes(binaries: Binaries) -> None:
    before = set(threading.enumerate())
    cluster = Cluster(binaries=binaries, replicas=0)
    with pytest.raises(ClusterError, match="was not started"):
        _ = cluster.nodes
    cluster.stop()
    with cluster:
        with pytest.raises(ClusterError, match="is started already"):
            cluster.start()
        directory = cluster.nodes[0].data.parent
        assert directory.exists()
        cluster.stop()
        assert not directory.exists()
    cluster.stop()
    assert set(threading.enumerate()) == before


def test_stopped_cluster_can_be_started_anew(binaries: Binaries) -> None:
    cluster = Cluster(binaries=binaries, replicas=0)
    for _ in range(2):
        with cluster:
            assert cluster.sql("a", "SELECT to_regclass('t')") == [(None,)]
            cluster.sql("a", "CREATE TABLE t (id int)")
