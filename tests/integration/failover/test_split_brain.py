"""Two primaries on one timeline: nobody writes until one of them is gone, or trusted."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

INSERT = "INSERT INTO written VALUES ($1) RETURNING current_setting('cluster_name')"


@pytest.fixture
async def guard(cluster, open_guard):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    return await open_guard(cluster)


async def test_two_primaries_on_one_timeline_stop_writes_until_one_is_trusted_or_gone(cluster, guard, until):
    """b and c are promoted at once, from one point: two servers on timeline 2."""
    await asyncio.to_thread(cluster.kill, "a")
    await asyncio.gather(asyncio.to_thread(cluster.promote, "b"), asyncio.to_thread(cluster.promote, "c"))

    def timelines():
        return {n.name: n.timeline for n in guard.status().nodes if n.reachable}

    await until(lambda: timelines() == {"b": 2, "c": 2})
    await until(lambda: "split brain" in guard.status().why)
    with pytest.raises(asyncpg.PostgresConnectionError, match="split brain"):
        await guard.fetchval(INSERT, 1)

    await asyncio.to_thread(cluster.kill, "c")

    await until(lambda: guard.status().writes == "open")
    assert await guard.fetchval(INSERT, 1) == "b"
