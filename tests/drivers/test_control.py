"""The monitor's connections: a backend is judged and ended on its own server alone."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

from dbguard.drivers.asyncpg.borrowed import BorrowedControl
from dbguard.drivers.control import BURY, OwnControl
from dbguard.drivers.psycopg.dial import own_dialer
from dbguard.testing.wire import Break, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.drivers.base import Control
    from dbguard.testing.cluster import Cluster

BACKEND = "SELECT pid, extract(epoch from backend_start)::float8 FROM pg_stat_activity WHERE pid = pg_backend_pid()"


@pytest.fixture(params=["asyncpg", "borrowed", "psycopg"])
async def control(request: pytest.FixtureRequest, calm_cluster: Cluster) -> AsyncIterator[Control]:
    pool = await asyncpg.create_pool(calm_cluster.dsn("a"), min_size=0, max_size=1)

    async def dial(*, timeout: float) -> Any:
        return await asyncpg.connect(calm_cluster.dsn("a"), timeout=timeout)

    keywords = conninfo_to_dict(calm_cluster.dsn("a"))
    made: dict[str, Control] = {
        "asyncpg": OwnControl("a", dial, clock=time.monotonic),
        "borrowed": BorrowedControl("a", pool, clock=time.monotonic),
        "psycopg": OwnControl("a", own_dialer(keywords, {}).control, clock=time.monotonic),
    }
    control = made[request.param]
    yield control
    control.drop()
    pool.terminate()


async def test_a_backend_is_ended_on_its_own_server_alone(control: Control, calm_cluster: Cluster) -> None:
    here = (await control.dial(30.0)).instance
    elsewhere = replace(here, started=f"{here.started}1")
    given_up = await asyncpg.connect(calm_cluster.dsn("a"))
    pid, started = await given_up.fetchrow(BACKEND)

    assert await control.end_backend(pid, started, instance=elsewhere, doomed=True, timeout=30.0) is None
    assert await given_up.fetchval("SELECT 1") == 1
    assert await control.end_backend(pid, started, instance=here, doomed=False, timeout=30.0) is False
    assert await given_up.fetchval("SELECT 1") == 1

    assert await control.end_backend(pid, started, instance=here, doomed=True, timeout=30.0) is False
    calm_cluster.wait_for("a", f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})")

    assert await control.end_backend(pid, started, instance=elsewhere, doomed=True, timeout=30.0) is None
    assert await control.end_backend(pid, started, instance=here, doomed=True, timeout=30.0) is True
    given_up.terminate()


class Slow:
    """A connection whose first answer to a question about a backend takes until it is let go."""

    def __init__(self, con: Any) -> None:
        self._con = con
        self.asked = asyncio.Event()
        self.goes_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    async def fetchrow(self, query: str, *args: Any, timeout: float) -> Any:
        if query is BURY:
            self.asked.set()
            await self.goes_on.wait()
        return await self._con.fetchrow(query, *args, timeout=timeout)


@pytest.mark.parametrize("end", ["answered", "lost"])
async def test_a_question_under_way_is_answered_though_another_connection_takes_its_place(
    calm_cluster: Cluster, end: str
) -> None:
    dialled: list[Slow] = []

    async def dial(*, timeout: float) -> Any:
        dialled.append(Slow(await asyncpg.connect(calm_cluster.dsn("a"), timeout=timeout)))
        return dialled[-1]

    control = OwnControl("a", dial, clock=time.monotonic)
    here = (await control.dial(30.0)).instance
    asking = asyncio.create_task(control.end_backend(1, None, instance=here, doomed=False, timeout=30.0))
    await dialled[0].asked.wait()

    await control.dial(30.0)

    if end == "lost":
        dialled[0].terminate()
    dialled[0].goes_on.set()
    if end == "lost":
        with pytest.raises(asyncpg.InterfaceError):
            await asking
    else:
        assert await asking is True
    assert dialled[0].is_closed()
    assert control.alive
    assert (await control.ask(30.0)).instance == here
    control.drop()


async def test_a_borrowed_connection_that_is_lost_while_it_is_asked_is_told_as_what_it_was(
    calm_cluster: Cluster,
) -> None:
    node = calm_cluster.primary

    async with (
        Wire(node.host, node.port) as wire,
        asyncpg.create_pool(
            host="127.0.0.1", port=wire.port, user="postgres", database="postgres", ssl=False, min_size=0, max_size=1
        ) as pool,
    ):
        wire.arm(b"pg_stat_wal_receiver", Break.REQUEST_CUT)
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionResetError)):
            await BorrowedControl("a", pool, clock=time.monotonic).ask(30.0)
