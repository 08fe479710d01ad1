"""An ambient deadline: inner ones only shorten, and the error names whose limit it was."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

import dbguard
from dbguard.deadlines import ambient

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster


def test_an_inner_deadline_only_shortens() -> None:
    with dbguard.deadline(10) as outer:
        with dbguard.deadline(60) as longer:
            assert longer.until == outer.until
        with dbguard.deadline(1) as shorter:
            assert shorter.until < outer.until
            assert ambient() == shorter.until
        assert ambient() == outer.until
    assert ambient() is None


def test_a_deadline_lies_ahead() -> None:
    with pytest.raises(ValueError, match="above 0 seconds"):
        dbguard.deadline(0)
    with pytest.raises(ValueError, match="above 0 seconds, not '2'"):
        dbguard.deadline("2")  # type: ignore[arg-type]


async def test_child_tasks_share_it() -> None:
    with dbguard.deadline(5) as outer:
        assert await asyncio.create_task(_ambient()) == outer.until


async def test_threads_started_by_asyncio_share_it() -> None:
    with dbguard.deadline(5) as outer:
        assert await asyncio.to_thread(ambient) == outer.until


async def test_tasks_beside_it_do_not_see_it() -> None:
    beside = asyncio.Event()
    task = asyncio.create_task(_ambient_after(beside))
    with dbguard.deadline(5):
        beside.set()
        assert await task is None


async def _ambient_after(event: asyncio.Event) -> float | None:
    await event.wait()
    return ambient()


async def _ambient() -> float | None:
    return ambient()


async def test_a_call_ends_by_the_ambient_deadline_and_says_so(cluster: Cluster) -> None:
    async with dbguard.connect(cluster.dsn(cluster.primary)) as guard:
        await guard.fetchval("SELECT 1")
        await asyncio.to_thread(cluster.freeze, cluster.primary)
        try:
            began = time.monotonic()
            with dbguard.deadline(0.4), pytest.raises(TimeoutError, match=r"deadline\(\)"):
                await guard.fetchval("SELECT 1", timeout=20)
            assert time.monotonic() - began < 10
        finally:
            await asyncio.to_thread(cluster.thaw, cluster.primary)


async def test_a_shorter_timeout_of_the_calls_own_wins(cluster: Cluster) -> None:
    async with dbguard.connect(cluster.dsn(cluster.primary)) as guard:
        await guard.fetchval("SELECT 1")
        await asyncio.to_thread(cluster.freeze, cluster.primary)
        try:
            with dbguard.deadline(20), pytest.raises(TimeoutError, match="timeout="):
                await guard.fetchval("SELECT 1", timeout=0.3)
        finally:
            await asyncio.to_thread(cluster.thaw, cluster.primary)


async def test_statements_in_a_block_end_by_it_too(cluster: Cluster) -> None:
    async with dbguard.connect(cluster.dsn(cluster.primary)) as guard, guard.acquire() as con:
        with dbguard.deadline(0.3), pytest.raises(TimeoutError):
            await con.fetchval("SELECT pg_sleep(20)")
