"""Names of hosts: a name server that hangs is felt by nobody who needs no new address, and by no other thread."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

import dbguard
from tests.drivers.conftest import NAME

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster
    from tests.drivers.conftest import NameServer


def named(single: Cluster, **more: Any) -> dict[str, Any]:
    return {
        "nodes": [{"name": "a", "host": NAME, "port": single.primary.port}],
        "connection": {"user": "postgres", "database": "postgres"},
        **more,
    }


async def test_a_name_is_looked_up(single: Cluster, name_server: NameServer) -> None:
    async with dbguard.connect(named(single)) as guard:
        assert await guard.fetchval("SELECT 1") == 1

    assert name_server.asked > 0


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_the_last_good_address_serves_where_the_name_cannot_be_looked_up(
    single: Cluster, name_server: NameServer, how: str
) -> None:
    async with dbguard.connect(named(single)) as guard:
        before = await guard.fetchval("SELECT pg_backend_pid()")
        name_server.asked = 0
        if how == "hangs":
            name_server.answers.clear()
        else:
            name_server.fails = True

        await guard.expire_connections()
        assert await guard.fetchval("SELECT pg_backend_pid()", timeout=30) != before

        assert name_server.asked > 0
        name_server.answers.set()


async def test_a_name_server_that_hangs_takes_one_thread_per_name_and_none_of_the_loops(
    single: Cluster, name_server: NameServer
) -> None:
    name_server.answers.clear()
    guard = dbguard.Guard(named(single, startup={"wait": "400ms"}))

    began = time.monotonic()
    with pytest.raises(dbguard.NoPrimary):
        await guard.open()

    assert time.monotonic() - began < 15  # the name is never told
    # More of the application's own work than the loop's executor has threads for, had each dial kept one.
    assert await asyncio.wait_for(asyncio.gather(*(asyncio.to_thread(int, n) for n in range(50))), 60)
    assert name_server.asked <= 2  # the pool's and the monitor's dials share one question


async def test_a_call_that_waits_for_a_name_ends_by_its_deadline(single: Cluster, name_server: NameServer) -> None:
    async with dbguard.connect(named(single), min_size=0) as guard:
        name_server.answers.clear()
        await guard.expire_connections()
        began = time.monotonic()

        with dbguard.deadline(30):
            assert await guard.fetchval("SELECT 1") == 1
        assert time.monotonic() - began < 30
        name_server.answers.set()
