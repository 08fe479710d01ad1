"""Whose time in office it is: marks that all processes agree on, what a failover lost, and claims that are contested.

Reigns are marked where writes carry tokens (`outcome: {resolve: token-table}`). A guard of its own stands for a process
of its own: guards share nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import asyncpg
import pytest

import dbguard
from dbguard.drivers import outcome_sql
from dbguard.events import Contested, NodeFenced, PrimaryChanged, ReignUnmarked, WriteMayBeLost
from dbguard.testing.relay import Relay
from tests.integration.failover.workload import promote

if TYPE_CHECKING:
    from collections.abc import Iterator

act = asyncio.to_thread

TOKENS = {"outcome": {"resolve": "token-table"}}
INSERT = "INSERT INTO written VALUES ($1) RETURNING current_setting('cluster_name')"
END = "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint"
BRANCHED = "SELECT pg_read_file('pg_wal/0000000' || $1::text || '.history')"


async def install(cluster, database: str = "postgres", role: str = "postgres") -> None:
    con = await asyncpg.connect(cluster.dsn(cluster.primary, database=database))
    async with con.transaction():
        await con.execute(outcome_sql.schema())
        await con.execute(outcome_sql.grants(role))
    await con.close()
    for replica in cluster.replicas:
        await act(cluster.wait_for, replica, "SELECT pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()")


def told(events, kind):
    return [event for event in events if isinstance(event, kind)]


def node(guard, name):
    return next(node for node in guard.status().nodes if node.name == name)


async def marks_on(cluster, name: str) -> dict[int, str]:
    return {timeline: mark.hex for timeline, mark in await act(cluster.sql, name, "SELECT * FROM dbguard.reign")}


def branch_of(history: str) -> int:
    """Return where a timeline branched off, as the last line of its history says."""
    high, low = history.strip().splitlines()[-1].split("\t")[1].split("/")
    return (int(high, 16) << 32) + int(low, 16)


class Door(Relay):
    """An address of one server that nobody can reach until it is opened."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self._open = False

    def open(self) -> None:
        self._open = True

    async def receive(self, requests, client, *, first=b""):
        if self._open:
            await super().receive(requests, client, first=first)


# ---------------------------------------------------------------- marks


@pytest.mark.every_postgres
async def test_two_processes_agree_on_each_reign_and_its_replicas_are_proven_by_it(cluster, open_guard, until, settled):
    await install(cluster)
    one, other = await asyncio.gather(*(open_guard(cluster, config=TOKENS) for _ in range(2)))
    await until(lambda: one.status().mark and other.status().mark)
    first = one.status().mark
    assert other.status().mark == first
    assert await marks_on(cluster, "a") == {1: first}

    await act(cluster.kill, "a")
    await act(cluster.promote, "b")
    await act(cluster.follow, "c", "b")

    await until(lambda: all(guard.status().primary == "b" and guard.status().mark for guard in (one, other)))
    second = one.status().mark
    assert other.status().mark == second != first
    assert await marks_on(cluster, "b") == {1: first, 2: second}
    for guard in (one, other):
        await settled(guard, 1)
    assert await marks_on(cluster, "c") == {1: first, 2: second}


async def test_a_process_that_starts_beside_nobody_but_an_old_primary_is_warned_by_a_replica(
    cluster, open_guard, until
):
    await install(cluster)
    first = await open_guard(cluster, config=TOKENS)
    await until(lambda: first.status().mark)
    await act(cluster.kill, "a")
    await act(cluster.promote, "b")
    await act(cluster.follow, "c", "b")
    await until(lambda: first.status().primary == "b" and first.status().mark)

    async def told() -> bool:
        return 2 in await marks_on(cluster, "c")

    await until(told)
    await act(cluster.kill, "b")
    await act(cluster.start_node, "a")

    guard = await open_guard(cluster, config=TOKENS, settle=False)

    with pytest.raises(dbguard.NoPrimary, match=r"a seems to be an old primary: .* c has followed timeline 2"):
        await guard.execute("CREATE TABLE never ()")
    with pytest.raises(dbguard.OutcomeUnknown):
        await guard.resolve("019aa8c2-5d30-7c1e-8f00-3b6f0a9d7e11", timeout=1.0)
    await act(cluster.start_node, "b")
    await until(lambda: guard.status().primary == "b")


async def test_two_promotions_with_one_number_are_told_apart_by_a_process_that_saw_neither(cluster, open_guard, until):
    """c is promoted to the number of b, never seen as a replica, and has as much: by number it is b, started again."""
    await install(cluster)
    await act(cluster.sql, "a", "CREATE TABLE written (id int)")
    for name in "bc":
        await act(cluster.wait_for, name, "SELECT to_regclass('written') IS NOT NULL")
    await act(cluster.kill, "c")
    await act(cluster.kill, "a")
    await act(cluster.promote, "b")
    rare = {"probe": {"interval": "60s", "timeout": "3s"}}  # it looks when a call finds out something
    guard = await open_guard(cluster, "b", "c", config=TOKENS | rare, settle=False)
    plain = await open_guard(cluster, "b", "c", config=rare, settle=False)
    assert await guard.fetchval(INSERT, 1) == await plain.fetchval(INSERT, 2) == "b"
    await until(lambda: guard.status().mark)
    was, number = guard.status().mark, plain.status().reign

    await act(cluster.kill, "b")
    await act(cluster.start_node, "c")
    await act(cluster.promote, "c")
    await act(cluster.sql, "c", "SELECT pg_logical_emit_message(false, '', repeat('x', 3000000))")

    assert await plain.fetchval(INSERT, 3) == "c"
    assert plain.status().reign == number, "without marks, nothing shows that this is another history"
    assert await guard.fetchval(INSERT, 4) == "c"
    await until(lambda: guard.status().mark not in {None, was})
    assert await marks_on(cluster, "c") == {2: guard.status().mark}


@pytest.fixture
def database(calm_cluster, request) -> Iterator[str]:
    """A database of its own on the calm cluster, and a role that may log in there."""
    name = f"reigns_{abs(hash(request.node.name)) % 10_000}"
    calm_cluster.sql("a", f"CREATE DATABASE {name}")
    calm_cluster.sql("a", f"CREATE ROLE {name} LOGIN IN ROLE pg_monitor")
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, f"SELECT count(*) = 1 FROM pg_roles WHERE rolname = '{name}'")
    yield name
    calm_cluster.sql("a", f"DROP DATABASE {name} WITH (FORCE)")
    calm_cluster.sql("a", f"DROP ROLE {name}")


@pytest.mark.parametrize(
    ("lacks", "why"),
    [
        pytest.param("DROP SCHEMA dbguard CASCADE", "run `dbguard outcome install`", id="the table"),
        pytest.param("REVOKE ALL ON dbguard.reign FROM {0}", "lacks a right to dbguard.reign", id="every right"),
        pytest.param(
            "REVOKE INSERT (timeline, mark) ON dbguard.reign FROM {0}", "lacks a right", id="the right to add"
        ),
    ],
)
async def test_a_reign_that_cannot_be_marked_keeps_a_mark_of_its_own_and_says_so_once(
    calm_cluster, database, open_guard, until, events, lacks, why
):
    await install(calm_cluster, database, database)
    await act(calm_cluster.sql, "a", lacks.format(database), database=database)
    connection = {"user": database, "database": database}

    guard = await open_guard(
        calm_cluster,
        config=TOKENS | {"connection": connection, "probe": {"interval": "50ms", "timeout": "3s"}},
        settle=False,
    )

    await until(lambda: told(events, ReignUnmarked))
    seen = node(guard, "b").epoch, guard.status().reign
    await until(lambda: all(n.proven for n in guard.status().nodes if n.role == "replica"))
    for _ in range(4):
        await probed(calm_cluster)
    assert [(event.node, why in event.why) for event in told(events, ReignUnmarked)] == [("a", True)]
    assert (guard.status().mark, guard.status().writes) == (None, "open")
    assert (node(guard, "b").epoch, guard.status().reign) == seen


async def test_who_locks_the_table_of_marks_holds_up_no_probe(calm_cluster, database, open_guard, until, events):
    await install(calm_cluster, database)
    locked = await asyncpg.connect(calm_cluster.dsn("a", database=database))
    await locked.execute("BEGIN; LOCK TABLE dbguard.reign")

    guard = await open_guard(calm_cluster, config=TOKENS | {"connection": {"database": database}}, settle=False)

    await until(lambda: guard.status().writes == "open")
    assert await guard.execute("CREATE TABLE made ()") == "CREATE TABLE"
    assert [event.why for event in told(events, ReignUnmarked)] == ["the table dbguard.reign is locked"]
    assert guard.status().primary == "a"
    await locked.close()


# ---------------------------------------------------------------- what a failover lost


async def behind(cluster, *replicas: str) -> None:
    """Let these receive nothing any more."""
    for replica in replicas:
        await act(cluster.follow, replica, "a", port=1)
    listed = ", ".join(f"'{replica}'" for replica in replicas)
    senders = f"FROM pg_stat_replication WHERE application_name IN ({listed})"
    await act(cluster.sql, "a", f"SELECT count(pg_terminate_backend(pid)) {senders}")
    await act(cluster.wait_for, "a", f"SELECT count(*) = 0 {senders}")


async def probed(cluster, guards: int = 1) -> None:
    """Wait until the primary has answered a probe of each of so many guards that was sent after this."""
    now = (await act(cluster.sql, cluster.primary, "SELECT clock_timestamp()::text"))[0][0]
    asked = f"query LIKE '%pg_walfile_name%' AND state = 'idle' AND query_start > '{now}'"
    await act(cluster.wait_for, cluster.primary, f"SELECT count(*) >= {guards} FROM pg_stat_activity WHERE {asked}")


@pytest.mark.every_postgres
async def test_the_replica_that_is_behind_promoted_says_how_much_is_lost_and_can_be_refused(
    cluster, open_guard, until, events
):
    await act(cluster.sql, "a", "CREATE TABLE written (id int)")
    for name in "bc":
        await act(cluster.wait_for, name, "SELECT to_regclass('written') IS NOT NULL")
    guard = await open_guard(cluster)
    careful = await open_guard(cluster, config={"failover": {"max_loss": 100}})
    lax = await open_guard(cluster, config={"failover": {"max_loss": 1_000_000_000}})
    idle = await open_guard(cluster)
    await behind(cluster, "b", "c")
    acknowledged = []
    for number, writer in enumerate((guard, careful, lax)):
        assert (
            await writer.execute("INSERT INTO written SELECT $1 FROM generate_series(1, 1000)", number)
            == "INSERT 0 1000"
        )
        acknowledged.append((await act(cluster.sql, "a", END))[0][0])
    await probed(cluster, 4)
    events.clear()
    written = (await act(cluster.sql, "a", END))[0][0]
    await act(cluster.kill, "a")

    await act(cluster.promote, "b")

    await until(lambda: all(g.status().primary == "b" for g in (guard, careful, lax, idle)))
    lost = [event.lost_bytes for event in told(events, WriteMayBeLost)]
    branched = branch_of((await act(cluster.sql, "b", BRANCHED, "2"))[0][0])
    assert len(lost) == 3, "each process that has lost something says so, and who wrote nothing has lost nothing"
    for own, size in zip(acknowledged, sorted(lost), strict=True):
        assert own - branched - 8 <= size <= written - branched, (lost, acknowledged, branched)
    assert [event.node for event in told(events, WriteMayBeLost)] == ["b"] * 3
    for writer in (guard, lax, idle):
        assert await writer.fetchval(INSERT, 9) == "b"
    with pytest.raises(dbguard.NoPrimary, match=r"max_loss \(100\).*trust"):
        await careful.fetchval(INSERT, 9)
    assert await careful.using(consistency="eventual").fetchval("SELECT current_setting('cluster_name')") == "c"

    careful.trust("b")

    await until(lambda: careful.status().writes == "open")
    assert await careful.fetchval(INSERT, 9) == "b"


async def test_synchronous_promotion_of_the_replica_that_has_most_is_no_loss(
    cluster_factory, open_guard, until, events
):
    """Under load of this process, and of others whose records reach no standby in time and were never acknowledged."""
    cluster = await act(cluster_factory, synchronous=True)
    await act(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster)
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        while True:
            with contextlib.suppress(dbguard.OutcomeUnknown):
                await guard.fetchval(INSERT, acknowledged)
                acknowledged += 1

    async def others() -> None:
        while True:
            with contextlib.suppress(
                OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError
            ):
                con = await asyncpg.connect(cluster.dsn(cluster.primary))
                try:
                    while True:
                        await con.execute("BEGIN; INSERT INTO written SELECT generate_series(1, 500); ROLLBACK")
                finally:
                    con.terminate()
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(work()) for work in (write, write, write, others)]
    for _ in range(2):
        old, before = cluster.primary, acknowledged
        await until(lambda before=before: acknowledged > before + 50)
        await probed(cluster)
        await act(cluster.kill, old)
        await act(promote, cluster)
        await act(cluster.rejoin, old)
    before = acknowledged
    await until(lambda: acknowledged > before + 20)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert len(told(events, PrimaryChanged)) == 3
    assert told(events, WriteMayBeLost) == []


async def test_what_waits_for_a_standby_that_never_comes_is_no_loss(cluster_factory, open_guard, until, events):
    """The primary goes on writing, and a statement that changes nothing is answered."""
    cluster = await act(cluster_factory, synchronous=True)
    await act(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster)
    assert await guard.fetchval(INSERT, 1) == "a"
    await probed(cluster)
    await act(cluster.wait_for, "b", "SELECT count(*) = 1 FROM written")
    await behind(cluster, "b", "c")
    other = await asyncpg.connect(cluster.dsn("a"))
    waits = asyncio.create_task(other.execute("INSERT INTO written SELECT generate_series(2, 1000)"))
    await act(cluster.wait_for, "a", "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    assert await guard.execute("UPDATE written SET id = 0 WHERE false") == "UPDATE 0"
    await probed(cluster)
    await act(cluster.kill, "a")

    await act(cluster.promote, "b")

    await until(lambda: guard.status().primary == "b")
    assert told(events, WriteMayBeLost) == []
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        await waits
    other.terminate()


async def test_another_replica_than_the_one_that_confirmed_promoted_says_how_much_is_lost(
    cluster_factory, open_guard, until, events
):
    cluster = await act(cluster_factory, synchronous=True)
    await act(cluster.sql, "a", "CREATE TABLE written (id int)")
    await act(cluster.wait_for, "c", "SELECT to_regclass('written') IS NOT NULL")
    guard = await open_guard(cluster)
    await behind(cluster, "c")
    assert await guard.execute("INSERT INTO written SELECT generate_series(1, 1000)") == "INSERT 0 1000"
    acknowledged = (await act(cluster.sql, "a", END))[0][0]
    await act(cluster.wait_for, "b", "SELECT count(*) = 1000 FROM written")
    for _ in range(2):  # the primary has told where it is, and b what it has
        await probed(cluster)
    await act(cluster.kill, "a")
    await act(cluster.kill, "b")

    await act(cluster.promote, "c")

    await until(lambda: guard.status().primary == "c")
    branched = branch_of((await act(cluster.sql, "c", BRANCHED, "2"))[0][0])
    assert [event.node for event in told(events, WriteMayBeLost)] == ["c"]
    assert 30_000 < told(events, WriteMayBeLost)[0].lost_bytes <= acknowledged - branched + 1000


# ---------------------------------------------------------------- claims of strangers


@pytest.fixture
async def strange(cluster, open_guard, configured):
    """A guard that cannot reach c yet, under the name x, and the door to it."""
    await act(cluster.sql, "a", "CREATE TABLE written (id int)")
    async with Door(cluster.node("c").port) as door:
        nodes = configured(cluster, "a", "b")["nodes"]
        nodes.append({"name": "x", "host": "127.0.0.1", "port": door.port})
        guard = await open_guard(cluster, config={"nodes": nodes}, settle=False)
        yield guard, door
        await guard.close(timeout=1.0)


async def test_one_promoted_by_mistake_beside_the_primary_is_contested_until_it_is_gone(
    cluster, strange, until, settled, events
):
    guard, door = strange
    await settled(guard, 1)
    assert await guard.fetchval(INSERT, 1) == "a"
    await act(cluster.promote, "c")

    door.open()

    await until(lambda: "contested" in guard.status().why)
    assert [(event.node, event.incumbent) for event in told(events, Contested)] == [("x", "a")]
    with pytest.raises(dbguard.NoPrimary, match=r"contested: x claims to be primary beside a; trust one of them"):
        await guard.fetchval(INSERT, 2)
    assert await guard.using(consistency="eventual").fetchval("SELECT current_setting('cluster_name')") == "b"
    for _ in range(3):
        await probed(cluster)
    assert len(told(events, Contested)) == 1

    await act(cluster.kill, "c")

    await until(lambda: guard.status().writes == "open")
    assert await guard.fetchval(INSERT, 3) == "a"
    await act(cluster.start_node, "c")
    await until(lambda: len(told(events, Contested)) == 2)
    assert guard.status().writes != "open"
    await act(cluster.stop_node, "c")
    await until(lambda: guard.status().writes == "open")
    assert await guard.fetchval(INSERT, 4) == "a"
    assert [event.node for event in told(events, PrimaryChanged)] == ["a"]


async def test_a_replica_nobody_has_seen_promoted_while_the_old_primary_returns_as_one_is_not_contested(
    cluster, strange, until, events
):
    guard, door = strange
    assert await guard.fetchval(INSERT, 1) == "a"
    await act(cluster.wait_for, "c", "SELECT count(*) = 1 FROM written")
    await act(cluster.stop_node, "a")
    await act(cluster.promote, "c")
    await act(cluster.rejoin, "a")
    await until(lambda: node(guard, "a").role == "replica")

    door.open()

    assert await guard.fetchval(INSERT, 2) == "c"
    assert guard.status().primary == "x"
    assert told(events, Contested) == []
    assert told(events, WriteMayBeLost) == []


async def test_a_restore_is_fenced_until_it_is_trusted(cluster, open_guard, until, events):
    """What comes back is the cluster as it was before the last failover."""
    await act(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster)
    await act(cluster.kill, "a")  # from here on its data directory is the snapshot
    await act(cluster.promote, "b")
    assert await guard.fetchval(INSERT, 1) == "b"
    for name in "bc":
        await act(cluster.kill, name)

    await act(cluster.start_node, "a")

    await until(lambda: node(guard, "a").role == "fenced")
    assert [event.node for event in told(events, NodeFenced)] == ["a"]
    with pytest.raises(dbguard.NoPrimary):
        await guard.using(timeout=0.5).fetchval(INSERT, 2)

    guard.trust("a")

    await until(lambda: guard.status().writes == "open")
    assert await guard.fetchval(INSERT, 3) == "a"
    assert await act(cluster.sql, "a", "SELECT id FROM written") == [(3,)]
