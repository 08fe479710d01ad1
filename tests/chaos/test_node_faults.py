"""Faults of whole nodes, on one real cluster in which commits wait for a replica: what they do, and that all of it heals."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from chaos.clients import CLIENTS_NAME
from chaos.faults import Crash, Freeze, Hole, Kill, PauseReplay, Promote, Restart, Sql, Stop, Switchover, Terminate
from chaos.faults.base import Nothing
from chaos.play import play
from chaos.scenario import find
from chaos.stage import Stage
from dbguard.testing.proxied import ProxiedCluster
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from chaos.faults import Breakage
    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos

_STARTED = "SELECT pg_postmaster_start_time()"
_NAMES = "SELECT current_setting('synchronous_standby_names')"


@pytest.fixture(scope="module")
def cluster(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(synchronous=True, binaries=binaries) as cluster:
        cluster.sql("a", "CREATE TABLE written (n int)")
        yield cluster


@pytest.fixture
def stage(cluster: ProxiedCluster) -> Iterator[Stage]:
    """A stage on which all is in its place in the end: the test does nothing for that but leave its faults."""
    yield Stage(cluster)
    assert [node.name for node in cluster.nodes if not node.running or node.frozen] == []
    for node in cluster.nodes:
        if node is not cluster.primary:
            cluster.wait_linked(node, cluster.primary)
    assert {cluster.sql(node, _NAMES)[0][0] for node in cluster.nodes} == {"ANY 1 (a, b, c)"}
    cluster.sql(cluster.primary, "INSERT INTO written VALUES (0)")  # returns once a replica has it


@pytest.fixture
async def session(cluster: ProxiedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A session of the client, on the primary."""
    connection = await _of_the_client(cluster)
    yield connection
    connection.terminate()


async def _of_the_client(cluster: ProxiedCluster) -> asyncpg.Connection:
    name = {"application_name": CLIENTS_NAME}
    return await asyncpg.connect(cluster.dsn(cluster.primary), ssl=False, server_settings=name)


def works(cluster: ProxiedCluster, node: str) -> bool:
    """Whether it answers, though it may take its time."""
    return cluster.sql(node, "SELECT true") == [(True,)]


def is_away(cluster: ProxiedCluster, node: str) -> bool:
    with contextlib.suppress(OSError):
        return not cluster.sql(node, "SELECT true", timeout=0.5)
    return True


@pytest.mark.parametrize(
    "fault", [Kill(node="b"), Freeze(node="replica"), Stop(node="b"), Stop(node="b", mode="immediate")], ids=str
)
def test_replica_is_away_until_it_is_healed(fault: Breakage, stage: Stage) -> None:
    with fault.inject(stage) as said:
        assert str(said).startswith("b ")
        assert is_away(stage.cluster, "b")
        assert works(stage.cluster, "c")

    assert works(stage.cluster, "b")


def test_restarted_node_is_another_instance_at_once(stage: Stage) -> None:
    before = stage.cluster.sql(stage.cluster.primary, _STARTED)

    with Restart(node="primary").inject(stage):
        assert stage.cluster.sql(stage.cluster.primary, _STARTED) > before


def test_primary_that_was_away_and_not_replaced_is_the_primary_again(stage: Stage) -> None:
    primary = stage.cluster.primary

    with Freeze(node="primary").inject(stage):
        assert is_away(stage.cluster, primary.name)

    assert stage.cluster.primary is primary
    assert not primary.is_replica


@pytest.mark.parametrize("last", ["killed", "promoted"])
def test_killed_primary_returns_as_a_replica_of_the_promoted_whichever_heals_first(last: str, stage: Stage) -> None:
    cluster, old = stage.cluster, stage.cluster.primary
    kill, promote = contextlib.ExitStack(), contextlib.ExitStack()

    kill.enter_context(Kill(node="primary").inject(stage))
    said = promote.enter_context(Promote().inject(stage))
    assert said == f"{cluster.primary.name} promoted, in place of {old.name}"
    assert stage.node("old-primary") is old
    cluster.sql(cluster.primary, "INSERT INTO written VALUES (1)")  # the other replica follows

    first, second = (promote, kill) if last == "killed" else (kill, promote)
    first.close()
    assert not old.running  # the other fault holds it still
    second.close()
    assert old.is_replica


def test_old_primary_that_lives_is_brought_back_without_what_it_alone_took(stage: Stage) -> None:
    cluster, old = stage.cluster, stage.cluster.primary
    alone = Sql(node="old-primary", do="ALTER SYSTEM SET synchronous_standby_names = ''", reload=True)

    with Promote(node="other-replica").inject(stage) as said:
        assert str(said).startswith("c promoted")
        with alone.inject(stage):
            cluster.wait_for(old, "SELECT current_setting('synchronous_standby_names') = ''")
            cluster.sql(old, "INSERT INTO written VALUES (666)")

    assert cluster.sql(old, "SELECT count(*) FROM written WHERE n = 666") == [(0,)]


def test_fittest_is_promoted_only_where_all_can_be_asked_that_may_have_more(stage: Stage) -> None:
    primary = stage.cluster.primary
    away, there = [node.name for node in stage.cluster.replicas]

    with Kill(node=away).inject(stage), pytest.raises(LookupError), Promote().inject(stage):
        pass
    assert stage.cluster.primary is primary
    with Kill(node=away).inject(stage), Promote(node=there).inject(stage):  # by name: whoever asks for it, must know
        assert stage.cluster.primary.name == there


def test_replica_behind_a_hole_is_not_the_fittest(stage: Stage) -> None:
    cluster = stage.cluster
    behind, fit = [node.name for node in cluster.replicas]
    hole = Hole(link=f"{behind}->primary").resolved(stage)  # type: ignore[arg-type]  # parsed, as from a file

    with hole.inject(stage):
        cluster.sql(cluster.primary, "INSERT INTO written VALUES (7)")
        with Promote().inject(stage):
            assert cluster.primary.name == fit
            assert cluster.sql(fit, "SELECT count(*) FROM written WHERE n = 7") == [(1,)]


def test_switchover_goes_to_and_fro(stage: Stage) -> None:
    old = stage.cluster.primary
    new = stage.cluster.replicas[0].name

    with Switchover(node=new).inject(stage) as said:
        assert said == f"switchover from {old.name} to {new}"
    assert old.is_replica
    with Switchover(node=old.name).inject(stage):
        assert stage.cluster.primary is old


@pytest.mark.parametrize("first", [0, 2], ids=["the primary first", "the primary last"])
def test_all_come_back_from_an_outage_of_all(first: int, stage: Stage) -> None:
    nodes = sorted(stage.cluster.nodes, key=lambda node: node is not stage.cluster.primary)
    away = [contextlib.ExitStack() for _ in nodes]
    for node, healing in zip(nodes, away, strict=True):
        healing.enter_context(Kill(node=node.name).inject(stage))
    again = contextlib.ExitStack()
    said = again.enter_context(Freeze(node="b").inject(stage))
    assert "off already" in said
    assert isinstance(said, Nothing)

    for healing in [*(away if first == 0 else reversed(away)), again]:
        healing.close()


def test_what_was_done_in_a_node_is_undone_when_it_is_back(stage: Stage) -> None:
    cluster, node = stage.cluster, stage.cluster.replicas[0].name
    setting = Sql(node=node, do="ALTER SYSTEM SET work_mem = '7MB'", undo="ALTER SYSTEM RESET work_mem", reload=True)
    work_mem = "SELECT current_setting('work_mem') = '4MB'"
    kill = contextlib.ExitStack()

    with setting.inject(stage):
        kill.enter_context(Kill(node=node).inject(stage))
    kill.close()

    cluster.wait_for(node, work_mem)


def test_paused_replica_receives_and_does_not_apply(stage: Stage) -> None:
    cluster = stage.cluster
    replica = stage.node("replica").name
    pause = PauseReplay(node="replica").resolved(stage)

    with pause.inject(stage):
        cluster.sql(cluster.primary, "INSERT INTO written VALUES (8)")
        assert pause.effect(stage) == f"{replica} has not applied what it received"
        assert cluster.sql(replica, "SELECT count(*) FROM written WHERE n = 8") == [(0,)]

    cluster.wait_for(replica, "SELECT count(*) = 1 FROM written WHERE n = 8")


async def test_share_of_the_sessions_of_the_client_is_ended(stage: Stage, session: asyncpg.Connection) -> None:
    other = await asyncpg.connect(stage.cluster.dsn(stage.cluster.primary), ssl=False)  # somebody else's

    with Terminate(share=0.1).inject(stage) as said:
        assert said == f"1 of 1 sessions on {stage.cluster.primary.name} ended"
    await until(session.is_closed)
    assert await other.fetchval("SELECT 1") == 1
    other.terminate()


async def test_sessions_at_work_are_ended_before_idle_ones(stage: Stage, session: asyncpg.Connection) -> None:
    idle = [await _of_the_client(stage.cluster) for _ in range(5)]
    working = asyncio.create_task(session.execute("SELECT pg_sleep(30)"))
    busy = f"SELECT state = 'active' FROM pg_stat_activity WHERE pid = {session.get_server_pid()}"
    await until(lambda: stage.cluster.sql(stage.cluster.primary, busy) == [(True,)])

    with Terminate(share=0.1).inject(stage) as said:
        assert str(said).startswith("1 of 6 sessions")
    with pytest.raises(asyncpg.PostgresError, match="administrator command"):
        await working
    assert [await one.fetchval("SELECT 1") for one in idle] == [1] * 5
    for one in idle:
        one.terminate()


async def test_end_of_sessions_where_there_are_none_is_nothing(stage: Stage) -> None:
    with Terminate(node="replica").inject(stage) as said:
        assert isinstance(said, Nothing)
    with Crash(node="replica").inject(stage) as said:
        assert isinstance(said, Nothing)


async def test_crash_of_a_session_ends_all_others_and_the_node_goes_on(
    stage: Stage, session: asyncpg.Connection
) -> None:
    other = await asyncpg.connect(stage.cluster.dsn(stage.cluster.primary), ssl=False)

    with await asyncio.to_thread(lambda: Crash().inject(stage)) as said:
        assert said == f"session on {stage.cluster.primary.name} crashed"
        await until(other.is_closed)

    assert works(stage.cluster, stage.cluster.primary.name)


async def test_run_that_is_cancelled_in_a_failover_leaves_the_cluster_as_it_was(stage: Stage) -> None:
    cluster, scenario, promoted = stage.cluster, find("primary-kill-promote"), asyncio.Event()
    if cluster.primary.name != "a":
        with Switchover(node="a").inject(stage):
            pass
    scenario = replace(scenario, workload=replace(scenario.workload, timeout=2.0))
    told = lambda line: promoted.set() if "promoted, in place of a" in line else None  # noqa: E731
    running = asyncio.create_task(play(scenario, cluster, say=told))
    await promoted.wait()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert cluster.primary.name == "a"
    assert cluster.toxiproxy.broken() == []
