"""A read sees every write that its context has finished."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

import dbguard

WHERE = "SELECT current_setting('cluster_name')"


@contextlib.contextmanager
def paused(cluster):
    """Stop replay on all replicas."""
    for replica in cluster.replicas:
        cluster.pause_replay(replica)
    try:
        yield
    finally:
        for replica in cluster.replicas:
            cluster.resume_replay(replica)


@pytest.mark.every_postgres
async def test_a_read_after_a_write_never_misses_it(calm_cluster, open_guard, table, until):
    guard = await open_guard(calm_cluster)
    await guard.execute(f"INSERT INTO {table} VALUES (1, 0)")

    with paused(calm_cluster):
        for n in range(1, 201):
            async with guard.causal():
                await guard.execute(f"UPDATE {table} SET n = $1 WHERE id = 1", n)

                assert await guard.fetchval(f"SELECT n FROM {table} WHERE id = 1") == n

    async with guard.causal():
        await guard.execute(f"UPDATE {table} SET n = -1 WHERE id = 1")
        seen = {"a"}

        async def read_on_a_replica() -> bool:
            n, node = await guard.fetchrow(f"SELECT n, current_setting('cluster_name') FROM {table} WHERE id = 1")
            assert n == -1
            seen.add(node)
            return seen == {"a", "b", "c"}

        await until(read_on_a_replica)


async def test_a_read_after_a_write_never_misses_it_while_replicas_follow(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster, config={"probe": {"interval": 0.02, "urgent": 0.02, "timeout": 3.0}})
    await guard.execute(f"INSERT INTO {table} VALUES (1, 0)")
    nodes = set()

    async with guard.causal():
        n = 0
        while n < 120 or len(nodes) < 2:  # replicas are asked, too: on a slow machine later
            n += 1
            await guard.execute(f"UPDATE {table} SET n = $1 WHERE id = 1", n)
            for _ in range(4):
                seen, node = await guard.fetchrow(
                    f"SELECT n, current_setting('cluster_name') FROM {table} WHERE id = 1"
                )
                assert seen == n
                nodes.add(node)
                await asyncio.sleep(0.002)


async def test_a_context_that_wrote_nothing_reads_from_replicas(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    with paused(calm_cluster):
        async with guard.causal():
            await guard.execute(f"INSERT INTO {table} VALUES (1, 1)")
        async with guard.causal():
            other = await guard.fetchval(WHERE)

    assert other in {"b", "c"}


async def test_without_a_context_the_process_has_one(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    with paused(calm_cluster):
        await asyncio.create_task(guard.execute(f"INSERT INTO {table} VALUES (1, 1)"))
        seen = await asyncio.create_task(guard.fetchval(f"SELECT n FROM {table}"))

    assert seen == 1


@pytest.mark.parametrize("how", ["gather", "group", "thread"])
async def test_child_tasks_share_the_context(calm_cluster, open_guard, table, how):
    guard = await open_guard(calm_cluster)
    loop = asyncio.get_running_loop()

    with paused(calm_cluster):
        async with guard.causal():
            write = f"INSERT INTO {table} VALUES (1, 1)"
            if how == "gather":
                await asyncio.gather(guard.execute(write))
            elif how == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(guard.execute(write))
            else:
                await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(guard.execute(write), loop).result())

            assert await guard.fetchval(f"SELECT n FROM {table}") == 1


@pytest.mark.parametrize("how", ["transaction", "function", "acquire", "copy", "many", "raw"])
async def test_writes_of_every_kind_count(calm_cluster, open_guard, table, how):
    guard = await open_guard(calm_cluster)
    write = f"INSERT INTO {table} VALUES (1, 1)"

    with paused(calm_cluster):
        async with guard.causal():
            match how:
                case "transaction":
                    async with guard.transaction() as tx:
                        await tx.execute(write)
                case "function":
                    await guard.run_in_transaction(lambda tx: tx.execute(write))
                case "acquire":
                    async with guard.acquire() as con:
                        await con.execute(write)
                case "copy":
                    await guard.copy_records_to_table(table, records=[(1, 1)])
                case "many":
                    await guard.executemany(f"INSERT INTO {table} VALUES ($1, $2)", [(1, 1)])
                case "raw":
                    async with guard.acquire() as con:
                        await con.raw.execute(write)

            assert await guard.fetchval(f"SELECT n FROM {table}") == 1


async def test_eventual_reads_do_not_wait_for_writes(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    with paused(calm_cluster):
        async with guard.causal():
            await guard.execute(f"INSERT INTO {table} VALUES (1, 1)")
            eventual = guard.using(consistency="eventual")

            assert await eventual.fetchval(WHERE) in {"b", "c"}
            assert await eventual.fetchval(f"SELECT count(*) FROM {table}") == 0
            with pytest.raises(dbguard.NoReplica, match="own writes"):
                await guard.using(fallback="error").fetchval(WHERE)


async def test_a_replica_too_far_behind_gets_no_reads(calm_cluster, open_guard, table, until):
    guard = await open_guard(
        calm_cluster, config={"reads": {"max_lag": 0.2}, "probe": {"interval": 0.05, "timeout": 3.0}}
    )

    with paused(calm_cluster):
        calm_cluster.sql("a", f"INSERT INTO {table} VALUES (1, 1)")

        async with guard.causal():
            await until(lambda: guard.route(WHERE).node == "a")
            assert await guard.using(consistency="eventual").fetchval(WHERE) in {"b", "c"}

    await until(lambda: guard.route(WHERE).role == "replica")
