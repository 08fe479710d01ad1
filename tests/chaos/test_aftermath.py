"""What a client leaves behind is found, and what it still tidies up is not held against it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from chaos import aftermath
from chaos.checkers import Leaks, State
from chaos.clients import CLIENTS, CLIENTS_NAME
from chaos.clients.pools import Plain
from chaos.history import LeakKind
from chaos.play import play
from chaos.scenario import find
from chaos.workloads import Append
from dbguard.testing.proxied import ProxiedCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def proxied(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries, replicas=1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays is found after a moment; what ends has longer than a busy machine stands still."""
    monkeypatch.setattr(aftermath, "_PATIENCE", 0.3)
    monkeypatch.setattr(aftermath, "_GONE", 0.3)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, hasty: None) -> None:
    monkeypatch.setattr(aftermath, "_PATIENCE", 30.0)


@contextlib.asynccontextmanager
async def session(cluster: ProxiedCluster, node: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(cluster.dsn(node), ssl=False, server_settings={"application_name": CLIENTS_NAME})
    try:
        yield connection
    finally:
        connection.terminate()
        gone = f"SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}'"
        await asyncio.to_thread(cluster.wait_for, node, gone)


@pytest.mark.parametrize("node", ["a", "b"])
async def test_session_is_found_on_any_node(node: str, proxied: ProxiedCluster) -> None:
    async with session(proxied, node) as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        (leak,) = await asyncio.to_thread(aftermath.sessions, proxied)

    assert (leak.kind, leak.what) == (LeakKind.SESSION, f"{node}: session {pid}, idle")
    assert await asyncio.to_thread(aftermath.sessions, proxied) == []


async def test_open_transaction_and_its_locks_are_found(proxied: ProxiedCluster) -> None:
    async with session(proxied, "a") as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        assert await asyncio.to_thread(aftermath.locks, proxied) == []
        await connection.execute("BEGIN; LOCK TABLE pg_description; SELECT pg_advisory_lock(7)")
        found = await asyncio.to_thread(aftermath.locks, proxied)

    assert {leak.what for leak in found} >= {
        f"a: {pid} is idle in transaction",
        f"a: {pid} holds AccessExclusiveLock on relation pg_description",
        f"a: {pid} holds ExclusiveLock on advisory ",
    }
    assert {leak.kind for leak in found} == {LeakKind.LOCK}


async def test_lock_that_is_given_back_meanwhile_is_none(proxied: ProxiedCluster, patient: None) -> None:
    async with session(proxied, "a") as connection:
        await connection.execute("SELECT pg_advisory_lock(7)")
        looking = asyncio.create_task(asyncio.to_thread(aftermath.locks, proxied))
        await asyncio.sleep(0.1)
        assert not looking.done()
        await connection.execute("SELECT pg_advisory_unlock(7)")
        assert await looking == []


async def test_leases_that_come_back_are_none(patient: None) -> None:
    out = [3, 3, 1, 0]
    slow: Any = SimpleNamespace(leases=lambda: out.pop(0))

    assert await aftermath.leases(slow) == []


async def test_leases_that_stay_out_are_found() -> None:
    leaky: Any = SimpleNamespace(leases=lambda: 2)

    assert [str(leak) for leak in await aftermath.leases(leaky)] == ["lease 1 of 2", "lease 2 of 2"]


async def test_tasks_that_end_are_none(patient: None) -> None:
    before = asyncio.all_tasks()
    ended = asyncio.create_task(asyncio.sleep(0.05))

    assert await aftermath.tasks(before) == []
    assert ended.done()


async def test_tasks_that_stay_are_found() -> None:
    before = asyncio.all_tasks()
    stays = asyncio.create_task(asyncio.Event().wait(), name="the one that stays")

    (leak,) = await aftermath.tasks(before)

    assert leak.kind is LeakKind.TASK
    assert leak.what.startswith("the one that stays: ")
    stays.cancel()


# --- the final table


@pytest.fixture
def table(proxied: ProxiedCluster) -> Iterator[Append]:
    work = Append()
    for statement in work.create:
        proxied.sql("a", statement)
    proxied.sql("a", f"INSERT INTO {work.table} VALUES (1, 10), (1, 11), (2, 20), (1, 10)")
    yield work
    proxied.sql("a", f"DROP TABLE {work.table}")


def test_table_is_read_with_all_that_was_applied(proxied: ProxiedCluster, table: Append) -> None:
    found = aftermath.read_back(proxied, table)

    assert {key: sorted(values) for key, values in found.items()} == {1: [10, 10, 11], 2: [20]}


async def test_table_that_a_session_could_still_write_to_is_not_read(proxied: ProxiedCluster, table: Append) -> None:
    async with session(proxied, "a"):
        with pytest.raises(aftermath.FinalTableError, match="1 sessions of the client: they could write"):
            await asyncio.to_thread(aftermath.read_back, proxied, table)


async def test_table_is_not_read_between_segments_while_a_session_is_at_work_that_has_not_written_yet(
    proxied: ProxiedCluster, table: Append
) -> None:
    other = await asyncpg.connect(proxied.dsn("a"), ssl=False)
    await other.execute("SELECT pg_advisory_lock(8)")
    async with session(proxied, "a") as late:
        assert await asyncio.to_thread(aftermath.read_between, proxied, table)
        working = asyncio.create_task(late.execute("SELECT pg_advisory_lock(8)"))
        busy = f"SELECT state = 'active' FROM pg_stat_activity WHERE pid = {late.get_server_pid()}"
        await asyncio.to_thread(proxied.wait_for, "a", busy)
        with pytest.raises(aftermath.FinalTableError, match="1 sessions of the client at work, which could write"):
            await asyncio.to_thread(aftermath.read_between, proxied, table)
        await other.execute("SELECT pg_advisory_unlock(8)")
        await working
        assert await asyncio.to_thread(aftermath.read_between, proxied, table)
    other.terminate()


def test_table_of_a_node_that_is_no_primary_is_not_read(proxied: ProxiedCluster, table: Append) -> None:
    wrong: Any = SimpleNamespace(primary=proxied.node("b"), sql=proxied.sql)
    proxied.wait_for("b", f"SELECT to_regclass('{table.table}') IS NOT NULL")

    with pytest.raises(aftermath.FinalTableError, match="in recovery"):
        aftermath.read_back(wrong, table)


def test_table_of_a_node_that_is_down_is_not_read(proxied: ProxiedCluster, table: Append) -> None:
    proxied.kill("b")
    wrong: Any = SimpleNamespace(primary=proxied.node("b"), sql=proxied.sql)

    try:
        with pytest.raises(aftermath.FinalTableError, match="cannot be asked"):
            aftermath.read_back(wrong, table)
        assert aftermath.sessions(proxied) == []  # nobody asks a node that is down
    finally:
        proxied.start_node("b")


# --- all of it, in a run


class Leaky(Plain):
    """Keeps a connection with an open transaction, and a task."""

    async def __aenter__(self) -> Any:
        await super().__aenter__()
        connection = await next(iter(self._pools.values())).acquire()
        await connection.execute("BEGIN")
        self.task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
        return self

    async def __aexit__(self, *error: object) -> None:
        self._terminate()


async def test_client_that_leaks_is_caught(proxied: ProxiedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLIENTS, "leaky", Leaky)
    monkeypatch.setattr(aftermath, "_PATIENCE", 2.0)  # seconds for what the client leaves to end by itself
    monkeypatch.setattr(aftermath, "_GONE", 30.0)
    calm = replace(find("replica-hole"), warm_up=0.1, duration=0.2, timeline=(), checkers={"leaks": Leaks()})

    result = await play(calm, proxied, client="leaky")

    assert result.state is State.BROKEN
    assert result.history.leaks is not None
    assert [leak.kind for leak in result.history.leaks] == [LeakKind.LEASE, LeakKind.LOCK, LeakKind.TASK]
    for task in asyncio.all_tasks():
        if task.get_name() == "forgotten":
            task.cancel()
