"""LISTEN in a failover: whoever listened is told that something may be missed, and hears again on the new primary."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

import dbguard
from dbguard.events import NotificationGap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.events import Event
    from dbguard.testing.cluster import Cluster

DOCS = Path(__file__).parents[3] / "docs"
END = "SELECT pg_terminate_backend(pid, 5000) FROM unnest($1::int[]) AS pid"


def gaps(events: list[Event]) -> list[tuple[str, tuple[str, ...], int, str]]:
    return [(told.node, told.channels, told.pid, told.why) for told in events if isinstance(told, NotificationGap)]


def ignore(*_: Any) -> None:
    """Hear a notification."""


def recipe() -> Callable[..., Awaitable[None]]:
    """Return the function on the page."""
    (code,) = re.findall(r"```python\n# listener.py\n(.*?)```", (DOCS / "listening.md").read_text(), re.DOTALL)
    made: dict[str, Any] = {}
    exec(code, made)
    return made["listen"]  # type: ignore[no-any-return]


async def test_in_a_failover_who_listened_is_told_of_the_gap_and_hears_again_on_the_new_primary(
    cluster: Cluster, open_guard: Any, until: Any, events: list[Event]
) -> None:
    guard = await open_guard(cluster)
    heard: list[str] = []
    looked: list[Any] = []

    async def look() -> None:
        looked.append(await guard.fetchval("SELECT current_setting('cluster_name')"))

    listening = asyncio.create_task(recipe()(guard, "news", heard.append, look))
    async with guard.acquire() as con:
        await con.add_listener("two", ignore)
        await con.add_listener("one", ignore)
        await con.add_listener("gone", ignore)
        await con.remove_listener("gone", ignore)
        pid = con.get_server_pid()
        await until(lambda: looked)
        await guard.execute("NOTIFY news, 'before'")
        await until(lambda: heard == ["before"])

        cluster.kill("a")
        await asyncio.to_thread(cluster.promote, "b")
        await until(lambda: len(looked) > 1)
        assert con.is_closed()
    await guard.execute("NOTIFY news, 'after'")
    await until(lambda: heard == ["before", "after"])
    listening.cancel()

    told = [event for event in events if isinstance(event, NotificationGap)]
    assert sorted((gap.node, gap.channels) for gap in told) == [("a", ("news",)), ("a", ("one", "two"))]
    assert pid in {gap.pid for gap in told}
    assert {gap.episode for gap in told} != {None}
    assert "notifications on one, two may be missed: a connection to a that listened" in " ".join(
        gap.text() for gap in told
    )


async def test_a_listener_on_a_primary_that_falls_silent_is_told(
    cluster: Cluster, open_guard: Any, until: Any, events: list[Event]
) -> None:
    guard = await open_guard(cluster)
    async with guard.acquire() as con:
        await con.add_listener("news", ignore)
        pid = con.get_server_pid()

        cluster.freeze("a")
        await asyncio.to_thread(cluster.promote, "b")
        await until(lambda: gaps(events))

    assert gaps(events) == [("a", ("news",), pid, "ended by the guard")]
    cluster.thaw("a")


@pytest.mark.parametrize("kind", ["own", "wrapped"])
async def test_only_a_loss_is_told(
    calm_cluster: Cluster, open_guard: Any, until: Any, events: list[Event], kind: str
) -> None:
    async def tried(guard: dbguard.Guard) -> None:
        async def listens() -> dbguard.Connection:
            con = await guard.acquire()
            await con.add_listener("news", ignore)
            return con

        for end in ("terminate", "close", "reset"):
            con = await listens()
            said = getattr(con, end)()
            if said is not None:
                await said
            await guard.release(con)
        async with guard.acquire() as con:
            await con.add_listener("news", ignore)
            await con.add_listener("news", print)
            await con.remove_listener("news", ignore)
            await con.remove_listener("news", print)
            pids = [con.get_server_pid()]
            await guard.fetch(END, pids)
            await until(con.is_closed)
        await guard.release(await listens())  # in the application's own pool asyncpg warns, which is an error here
        lost = await listens()
        pid = lost.get_server_pid()
        await guard.using(role="primary").fetch(END, [pid])
        await until(lambda: gaps(events))
        await guard.release(lost)

        assert gaps(events) == [("a" if kind == "own" else "primary", ("news",), pid, "lost")]
        events.clear()
        await listens()  # and the guard is closed

    if kind == "own":
        guard = await open_guard(calm_cluster)
        await tried(guard)
        await guard.close(timeout=0)
    else:
        pool = await asyncpg.create_pool(calm_cluster.dsn("a"), min_size=1, max_size=4)
        try:
            guard = await dbguard.Guard.wrap(pool, on_event=events.append).open()
            await tried(guard)
            await guard.close(timeout=0)
            async with asyncio.timeout(10):
                await pool.close()
        finally:
            pool.terminate()
    await asyncio.sleep(0)
    assert gaps(events) == []


async def test_over_psycopg_who_waits_for_notifications_gets_the_loss_as_an_error(
    calm_cluster: Cluster, until: Any
) -> None:
    heard: list[str] = []

    async def listen() -> None:
        async with guard.connection() as con:
            await con.set_autocommit(True)
            await con.execute("LISTEN news")
            pids.append(con.info.backend_pid)
            async for said in con.notifies():
                heard.append(said.payload)  # noqa: PERF401  each as it comes

    pids: list[int] = []
    async with dbguard.PsycopgGuard(calm_cluster.dsn()) as guard:
        listening = asyncio.create_task(listen())
        await until(lambda: pids)
        await guard.execute("NOTIFY news, 'before'")
        await until(lambda: heard == ["before"])
        await asyncio.to_thread(calm_cluster.sql, "a", END.replace("$1", f"'{{{pids[0]}}}'"))

        with pytest.raises(psycopg.OperationalError):
            await listening
