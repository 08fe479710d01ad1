"""What the driver's contract tests share: guards over one node, bounded waiting, and a wire that is listened to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from dbguard.testing.cluster import Cluster
from dbguard.testing.relay import CHUNK, Relay, both
from tests.drivers import call_forms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from dbguard.testing.binaries import Binaries

CANCEL_REQUEST = 80877102
"""The code in the first packet of a connection that asks for another one's query to be cancelled."""

SSL_REQUEST = 80877103
"""The code in the packet that may come before the first one; a wire answers it with no."""

_numbers = itertools.count(1)


class Wire(Relay):
    """A proxy before one server, which counts connections and cancel requests, and can swallow replies.

    cancels: connections whose first packet was a CancelRequest. opened: all others.
    helpers: what a test has put on its way meanwhile.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._flows = asyncio.Event()
        self._flows.set()
        self._reads = asyncio.Event()
        self._reads.set()
        self._refuses = False
        self.helpers: list[asyncio.Future[None]] = []
        self.cancels = 0
        self.opened = 0

    def mute(self) -> None:
        """Hold replies back from now on."""
        self._flows.clear()

    def unmute(self) -> None:
        """Let replies through again, those held back first."""
        self._flows.set()

    def refuse(self) -> None:
        """Break all connections, and every new one."""
        self._refuses = True
        self.cut()

    def accept(self) -> None:
        """Let connections through again."""
        self._refuses = False

    async def helped(self) -> None:
        """Wait for the helpers."""
        while self.helpers:
            await self.helpers.pop()

    def stall(self) -> None:
        """Stop reading what the client sends, so that its writes pile up."""
        self._reads.clear()

    def unstall(self) -> None:
        """Read on."""
        self._reads.set()

    async def receive(
        self, requests: asyncio.StreamReader, client: asyncio.StreamWriter, *, first: bytes = b""
    ) -> None:
        if self._refuses:
            return
        first = await requests.readexactly(8)
        if struct.unpack("!ii", first)[1] == SSL_REQUEST:
            client.write(b"N")
            first = await requests.readexactly(8)
        if struct.unpack("!ii", first)[1] == CANCEL_REQUEST:
            self.cancels += 1
        else:
            self.opened += 1
        await super().receive(requests, client, first=first)

    async def converse(
        self,
        requests: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        replies: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        await both(
            self._pump(requests, server, self._reads), self._pump(replies, client, self._flows), until="FIRST_COMPLETED"
        )

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, may: asyncio.Event) -> None:
        while data := await source.read(CHUNK):
            await may.wait()
            target.write(data)
            await target.drain()


NAME = "db.example.test"
"""The name that a `NameServer` knows."""


class NameServer:
    """What `socket.getaddrinfo` asks in some tests.

    answers: cleared, it does not. fails: it knows no such name. addresses: what the name leads to. asked: how often it was.
    """

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1"]
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
        return [found for address in self.addresses for found in self._real(address, *args, **more)]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    yield server
    server.answers.set()
    for thread in threading.enumerate():
        if thread.name == f"dbguard name {NAME}":
            thread.join()


def tasks_but(known: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Return the tasks that are there now and are none of the *known*; this one and a wire's own do not count."""
    now = asyncio.all_tasks() - known - {asyncio.current_task()}
    return [task for task in now if not task.get_coro().__qualname__.startswith(("StreamServer.", "Wire."))]


@pytest.fixture(scope="session")
def single(binaries: Binaries) -> Iterator[Cluster]:
    """One server, which nobody breaks."""
    with Cluster(binaries=binaries, replicas=0) as cluster:
        yield cluster


@pytest.fixture
async def wire(single: Cluster) -> AsyncIterator[Wire]:
    """A wire to that server."""
    async with Wire(single.primary.host, single.primary.port) as wire:
        yield wire


@pytest.fixture
async def table(single: Cluster) -> AsyncIterator[str]:
    """The name of a table ``id int primary key, name text`` with two rows."""
    name = f"t{next(_numbers)}"
    single.sql("a", f"CREATE TABLE {name} (id int PRIMARY KEY, name text)")
    single.sql("a", f"INSERT INTO {name} VALUES (1, 'one'), (2, 'two')")
    yield name
    # In a thread: a wire that still has something to hand on runs in this loop.
    await asyncio.to_thread(single.sql, "a", f"DROP TABLE IF EXISTS {name} CASCADE")


@pytest.fixture
async def open_guard() -> AsyncIterator[Callable[..., Awaitable[dbguard.Guard]]]:
    """Open a guard over one address; closed at the end. Sections of the configuration by *config*."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(port: int, *, config: dict[str, Any] | None = None, **arguments: Any) -> dbguard.Guard:
            given: dict[str, Any] = {
                "nodes": [{"name": "a", "host": "127.0.0.1", "port": port}],
                "connection": {"user": "postgres", "database": "postgres"},
            }
            guard = dbguard.Guard(given | (config or {}), **arguments)
            await guard.open()
            stack.push_async_callback(guard.close, timeout=0.5)
            await guard.ready()
            return guard

        yield make


APPLICATION = "under test"
"""The name under which the server knows the sessions of `guard`."""


@pytest.fixture
def guard_config() -> dict[str, Any]:
    """Sections of the configuration of `guard`; to be overridden."""
    return {}


@pytest.fixture(params=["own", "wrapped"])
async def guard(
    request: pytest.FixtureRequest, guard_config: dict[str, Any], wire: Wire, open_guard: Any
) -> AsyncIterator[dbguard.Guard]:
    """A guard over the wire, which makes its own pools or is given one."""
    settings, config = {"application_name": APPLICATION}, guard_config
    if request.param == "own":
        yield await open_guard(wire.port, min_size=1, max_size=2, server_settings=settings, config=config)
        return
    pool = await asyncpg.create_pool(
        host="127.0.0.1",
        port=wire.port,
        user="postgres",
        database="postgres",
        min_size=1,
        max_size=3,
        server_settings=settings,
    )
    async with dbguard.Guard.wrap(pool, config=config) as wrapped:
        yield wrapped
    pool.terminate()


@pytest.fixture
def files(tmp_path: Path, table: str, single: Cluster) -> Path:
    """A folder with a file to copy from; *table* has some hundred rows then, and an empty copy."""
    (tmp_path / "in").write_bytes(call_forms.BIG)
    single.sql("a", f"CREATE TABLE {table}_copy (id int, name text)")
    single.sql("a", f"INSERT INTO {table} SELECT n, repeat('x', 500) FROM generate_series(10, 400) n")
    return tmp_path
