"""Through a failover: a pause for writes, nothing for reads, and nothing lost that was acknowledged."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg
import pytest

import dbguard
from dbguard.events import GateChanged, PrimaryChanged

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.testing.cluster import Cluster

WHERE = "SELECT current_setting('cluster_name')"
INSERT = "INSERT INTO written VALUES ($1)"
WRITERS = 4
SOON = 5.0
"""Seconds from a promotion to the first acknowledged write: generous, for a machine that does much else."""


@dataclass
class Load:
    """Readers and writers over a guard, and what became of their calls. Each writer writes in a way of its own."""

    guard: dbguard.Guard
    cluster: Cluster
    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)
    read_errors: list[BaseException] = field(default_factory=list)
    write_errors: list[BaseException] = field(default_factory=list)
    reads: int = 0
    acknowledged_at: float = 0.0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    over: bool = False

    async def call(self, number: int) -> None:
        await self.guard.execute(INSERT, number)

    async def function(self, number: int) -> None:
        async def insert(tx: dbguard.Connection) -> None:
            await tx.execute(INSERT, -number)
            await tx.execute("UPDATE written SET id = $1 WHERE id = $2", number, -number)

        await self.guard.run_in_transaction(insert)

    async def block(self, number: int) -> None:
        try:
            async with self.guard.transaction() as tx:
                await tx.execute(INSERT, -number)
                await tx.execute("UPDATE written SET id = $1 WHERE id = $2", number, -number)
        except dbguard.DbGuardError:
            raise
        except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            self.undone.add(number)  # a block is not repeated; the driver's error says that nothing was committed
            await self.call(number)

    async def copy(self, number: int) -> None:
        await self.guard.copy_records_to_table("written", records=[(number,)])

    async def write(self, writer: int, way: Callable[[int], Awaitable[None]]) -> None:
        number = writer
        while not self.over:
            number += WRITERS
            async with self.guard.causal():
                try:
                    await way(number)
                except dbguard.OutcomeUnknown:
                    self.unknown.add(number)
                except Exception as error:  # noqa: BLE001  judged by the test
                    self.write_errors.append(error)
                else:
                    self.acknowledged.add(number)
                    self.acknowledged_at = time.monotonic()
                    if (await self.guard.fetchval("SELECT count(*) FROM written WHERE id = $1", number)) != 1:
                        self.read_errors.append(AssertionError(f"{number} was written, and not read by its writer"))
            await asyncio.sleep(0.002)

    async def read(self) -> None:
        while not self.over:
            async with self.guard.causal():
                try:
                    await self.guard.fetchval("SELECT count(*) FROM written")
                except Exception as error:  # noqa: BLE001  judged by the test
                    self.read_errors.append(error)
                else:
                    self.reads += 1
            await asyncio.sleep(0.002)

    def begin(self) -> None:
        ways = (self.call, self.function, self.block, self.copy)
        self.tasks = [asyncio.create_task(self.write(n, way)) for n, way in enumerate(ways)]
        self.tasks += [asyncio.create_task(self.read()) for _ in range(4)]

    async def end(self) -> None:
        self.over = True
        await asyncio.gather(*self.tasks)


@pytest.fixture
async def load(cluster_factory, open_guard, until):
    """A cluster under load. Its commits wait for a replica, so that nothing acknowledged is lost with its primary."""
    cluster = await asyncio.to_thread(cluster_factory, synchronous=True)
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    load = Load(await open_guard(cluster), cluster)
    load.begin()
    await until(lambda: len(load.acknowledged) > 20 and load.reads > 20)
    yield load
    await load.end()


async def promote(cluster) -> str:
    """Promote the replica that has received most, as a cluster manager does, and let the other one follow it."""
    received = {}
    for node in cluster.replicas:
        if node.running:
            await asyncio.to_thread(
                cluster.wait_for,
                node,
                "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')",
            )
            query = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn"
            received[node.name] = (await asyncio.to_thread(cluster.sql, node, query))[0][0]
    best = max(received, key=lambda name: received[name])
    await asyncio.to_thread(cluster.promote, best)
    for name in received:
        if name != best:
            await asyncio.to_thread(cluster.follow, name, best)
    return best


async def judge(load: Load, failovers: int = 1) -> None:
    """Nobody saw an error but for writes of unknown fate; nothing acknowledged is lost, nothing is there twice."""
    await load.end()
    cluster = load.cluster
    rows = [row[0] for row in await asyncio.to_thread(cluster.sql, cluster.primary, "SELECT id FROM written")]
    assert load.read_errors == []
    assert load.write_errors == []
    assert len(rows) == len(set(rows))
    assert load.acknowledged <= set(rows) <= load.acknowledged | load.unknown
    assert len(load.unknown) <= WRITERS * failovers  # at most what was in flight


async def flows_again(load: Load, until, seconds: float = SOON) -> None:
    began, before = time.monotonic(), len(load.acknowledged)
    await until(lambda: len(load.acknowledged) > before + 20, seconds)
    assert load.acknowledged_at > began


@pytest.mark.every_postgres
async def test_a_killed_primary_is_a_pause_for_writes_and_nothing_for_reads(load, until, events):
    cluster = load.cluster
    await asyncio.to_thread(cluster.kill, "a")
    reads = load.reads
    await until(lambda: load.guard.status().waiting >= WRITERS)
    await until(lambda: load.reads > reads + 50)  # no write flows, reads go on

    new = await promote(cluster)

    await flows_again(load, until)
    await judge(load)
    assert [event.node for event in events if isinstance(event, PrimaryChanged)] == ["a", new]
    assert [event.now for event in events if isinstance(event, GateChanged)][-1] == "open"


async def test_a_stopped_primary_is_a_pause_for_writes_and_nothing_for_reads(load, until):
    cluster = load.cluster
    await asyncio.to_thread(cluster.stop_node, "a", "fast")
    await promote(cluster)

    await flows_again(load, until)
    await judge(load)


async def test_the_old_primary_comes_back_as_a_replica_and_serves_reads(load, until, settled):
    cluster = load.cluster
    await asyncio.to_thread(cluster.kill, "a")
    new = await promote(cluster)
    await asyncio.to_thread(cluster.rejoin, "a")

    await settled(load.guard)
    await flows_again(load, until)
    seen = set()

    async def all_serve() -> bool:
        async with load.guard.causal():
            seen.add(await load.guard.fetchval(WHERE))
        return seen == {"a", "b", "c"} - {new}

    await until(all_serve)
    await judge(load)


async def test_two_failovers_in_a_row(load, until, settled):
    cluster = load.cluster
    for _ in range(2):
        old = cluster.primary
        await asyncio.to_thread(cluster.kill, old)
        await promote(cluster)
        await asyncio.to_thread(cluster.rejoin, old)
        await flows_again(load, until)
        await asyncio.to_thread(cluster.wait_streaming)

    await settled(load.guard)
    assert load.guard.status().primary == cluster.primary.name
    await judge(load, failovers=2)


async def test_a_primary_restarted_in_place_stays_in_office(load, until, events, settled):
    cluster = load.cluster
    await settled(load.guard)
    reign = load.guard.status().reign

    await asyncio.to_thread(cluster.stop_node, "a", "fast")
    await asyncio.to_thread(cluster.start_node, "a")

    await flows_again(load, until)
    assert load.guard.status().reign == reign
    assert [event.node for event in events if isinstance(event, PrimaryChanged)] == ["a"]
    await judge(load)


async def test_terminating_all_backends_is_no_error_for_reads_and_told_truthfully_for_writes(load, until):
    cluster = load.cluster
    for _ in range(10):
        reads, written = load.reads, len(load.acknowledged)
        for node in cluster.nodes:
            await asyncio.to_thread(cluster.terminate_backends, node)
        await until(lambda n=reads: load.reads > n + 5)
        await until(lambda n=written: len(load.acknowledged) > n + 5)

    assert load.guard.status().primary == "a"
    await judge(load, failovers=10)


async def test_a_killed_replica_is_no_error_for_reads(load, until):
    cluster = load.cluster
    await asyncio.to_thread(cluster.kill, "b")
    reads = load.reads
    await until(lambda: load.reads > reads + 100)

    await asyncio.to_thread(cluster.start_node, "b")
    await until(lambda: all(node.reachable and node.breaker == "closed" for node in load.guard.status().nodes))
    assert load.unknown == set()
    await judge(load)
