"""Names of hosts: a name server that hangs is felt by nobody who needs no new address, and by no other thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import dbguard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.cluster import Cluster

NAME = "db.example.test"


class NameServer:
    """What `socket.getaddrinfo` asks in these tests. hangs: it does not answer. fails: it knows no such name."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.fails = False
        self.asked = 0
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, *args: Any, **more: Any) -> Any:
        if host != NAME:
            return self._real(host, *args, **more)
        self.asked += 1
        self.answers.wait()
        if self.fails:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return self._real("127.0.0.1", *args, **more)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    yield server
    server.answers.set()
    for thread in threading.enumerate():
        if thread.name == f"dbguard name {NAME}":
            thread.join()


def named(single: Cluster, **more: Any) -> dict[str, Any]:
    return {
        "nodes": [{"name": "a", "host": NAME, "port": single.primary.port}],
        "connection": {"user": "postgres", "database": "postgres"},
        **more,
    }


async def test_a_name_is_looked_up(single: Cluster, server: NameServer) -> None:
    async with dbguard.connect(named(single)) as guard:
        assert await guard.fetchval("SELECT 1") == 1

    assert server.asked > 0


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_the_last_good_address_serves_where_the_name_cannot_be_looked_up(
    single: Cluster, server: NameServer, how: str
) -> None:
    async with dbguard.connect(named(single)) as guard:
        before = await guard.fetchval("SELECT pg_backend_pid()")
        server.asked = 0
        if how == "hangs":
            server.answers.clear()
        else:
            server.fails = True

        await guard.expire_connections()
        assert await guard.fetchval("SELECT pg_backend_pid()", timeout=10) != before

        assert server.asked > 0
        server.answers.set()


async def test_a_name_server_that_hangs_takes_one_thread_per_name_and_none_of_the_loops(
    single: Cluster, server: NameServer
) -> None:
    server.answers.clear()
    guard = dbguard.Guard(named(single, startup={"wait": "400ms"}))

    began = time.monotonic()
    with pytest.raises(dbguard.NoPrimary):
        await guard.open()

    assert time.monotonic() - began < 5
    # More of the application's own work than the loop's executor has threads for, had each dial kept one.
    assert await asyncio.wait_for(asyncio.gather(*(asyncio.to_thread(int, n) for n in range(50))), 5)
    assert server.asked <= 2  # the pool's and the monitor's dials share one question


async def test_a_call_that_waits_for_a_name_ends_by_its_deadline(single: Cluster, server: NameServer) -> None:
    async with dbguard.connect(named(single), min_size=0) as guard:
        server.answers.clear()
        await guard.expire_connections()
        began = time.monotonic()

        with dbguard.deadline(5):
            assert await guard.fetchval("SELECT 1") == 1
        assert time.monotonic() - began < 5
        server.answers.set()
