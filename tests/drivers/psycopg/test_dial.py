"""Dials of psycopg's: what libpq is told, within which time, by which address, and that no secret is shown."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest

from dbguard.config.settings import Connection, NodeSettings
from dbguard.config.values import Secret
from dbguard.drivers.psycopg.dial import Dialer, dialer_of_pool, own_dialer
from dbguard.drivers.server_settings import SERVER_SETTINGS
from dbguard.login import libpq_keywords
from dbguard.runtime.colour import now
from dbguard.testing.cluster import Cluster
from dbguard.testing.relay import Relay, StreamServer
from tests.drivers.conftest import NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from dbguard.testing.binaries import Binaries
    from tests.drivers.conftest import NameServer

SLACK = 3.0
"""Seconds more than its limit that a dial may take on a busy machine."""

SECRET = "hunter two\\'s"
"""With all that libpq escapes."""


def own(port: int, host: str = "127.0.0.1", *, aside: bool = False, **connection: Any) -> Dialer:
    settings = Connection(**{"user": "postgres", "database": "postgres"} | connection)
    node = NodeSettings(host=host, port=port)
    return own_dialer(libpq_keywords(settings, node), settings.server_settings, aside=aside)


async def asked(dialer: Dialer, query: str, *args: Any) -> Any:
    """Dial as the monitor does, ask, and hang up."""
    speaker = await dialer.control(timeout=10)
    try:
        return await speaker.fetchval(query, *args)
    finally:
        speaker.terminate()


@pytest.fixture(scope="module")
def locked(binaries: Binaries) -> Iterator[Cluster]:
    """One server that asks for a password."""
    with Cluster(binaries=binaries, replicas=0, password=SECRET) as cluster:
        yield cluster


# ---------------------------------------------------------------------- what is told


async def test_the_server_is_told_how_to_look_after_the_session(single: Cluster) -> None:
    dialer = own(single.primary.port)

    for name, value in SERVER_SETTINGS.items():
        # What is in use, in the unit of the setting; Unix sockets alone know no keepalives.
        assert await asked(dialer, "SELECT setting FROM pg_settings WHERE name = $1", name) == value


async def test_settings_of_the_applications_win_whatever_is_in_them(single: Cluster) -> None:
    said = {
        "application_name": "a shop's \\ till",
        "search_path": '"a b\\c", public',
        "client_min_messages": "warning",
        "options": "-c lock_timeout=1234",
    }
    dialer = own(single.primary.port, server_settings=said)

    for name in ("application_name", "search_path", "client_min_messages"):
        assert await asked(dialer, "SELECT current_setting($1)", name) == said[name]
    assert await asked(dialer, "SHOW lock_timeout") == "1234ms"


async def test_the_monitor_logs_in_with_what_was_given_for_the_pools(locked: Cluster) -> None:
    keywords = {"host": "127.0.0.1", "port": locked.primary.port, "user": "postgres", "dbname": "postgres"}
    given = {"password": SECRET, "options": "-c lock_timeout=1234", "autocommit": False, "prepare_threshold": 1}
    dialer = own_dialer(keywords, {}, kwargs=given)

    assert await asked(dialer, "SHOW lock_timeout") == "1234ms"
    assert await asked(dialer, "SHOW tcp_keepalives_count") == SERVER_SETTINGS["tcp_keepalives_count"]


async def test_what_the_environment_says_of_servers_is_not_for_nodes(
    single: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.9")
    monkeypatch.setenv("PGPORT", "1")

    assert await asked(own(single.primary.port), "SELECT 1") == 1


async def test_a_socket_in_a_directory_is_not_overruled_by_an_address() -> None:
    said = await own(5433, "/var/run/postgresql").parameters()

    assert (said["host"], said["port"], said["hostaddr"]) == ("/var/run/postgresql", "5433", "")


class Pooler(Relay):
    """A proxy that refuses options, as PgBouncer does. packets: the startup packets that it saw."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.packets: list[bytes] = []

    async def receive(
        self, requests: asyncio.StreamReader, client: asyncio.StreamWriter, *, first: bytes = b""
    ) -> None:
        packet = b""
        for _ in range(2):
            head = await requests.readexactly(4)
            packet = head + await requests.readexactly(struct.unpack("!i", head)[0] - 4)
            if len(packet) > 8:
                break
            client.write(b"N")  # no TLS, no GSSAPI
        self.packets.append(packet)
        if b"options" in packet:
            body = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter in options: tcp_keepalives_count\0\0"
            client.write(b"E" + struct.pack("!i", len(body) + 4) + body)
        else:
            await super().receive(requests, client, first=packet)


@pytest.fixture
async def pooler(single: Cluster) -> AsyncIterator[Pooler]:
    async with Pooler(single.primary.port) as pooler:
        yield pooler


async def test_a_pooler_that_refuses_what_it_is_told_is_not_told_any_more(pooler: Pooler) -> None:
    dialer = own(pooler.port, server_settings={"application_name": "shop"})

    assert await asked(dialer, "SHOW application_name") == "shop"
    assert await asked(dialer, "SELECT 1") == 1

    assert [b"options" in packet for packet in pooler.packets] == [True, False, False]


@pytest.mark.parametrize("kind", ["text", "plain", "async"])
async def test_passwords_and_functions_that_know_them_log_in(locked: Cluster, kind: str) -> None:
    times = []

    def plain() -> str:
        times.append(threading.current_thread())
        return SECRET

    async def later() -> str:
        await asyncio.sleep(0)
        return plain()

    password: Any = {"text": Secret(SECRET), "plain": plain, "async": later}[kind]
    dialer = own(locked.primary.port, password=password)

    assert await asked(dialer, "SELECT 1") == 1
    assert await asked(dialer, "SELECT 1") == 1
    assert times == ([] if kind == "text" else [threading.current_thread()] * 2)


async def test_a_guard_of_threads_asks_for_passwords_in_a_thread_of_their_own(locked: Cluster) -> None:
    asked_in = []

    def slow() -> str:
        asked_in.append(threading.current_thread())
        return SECRET

    assert await asked(own(locked.primary.port, password=slow, aside=True), "SELECT 1") == 1
    assert threading.current_thread() not in asked_in
    assert asked_in

    def fails() -> str:
        raise LookupError("no vault")

    with pytest.raises(LookupError):
        await own(locked.primary.port, password=fails, aside=True).control(timeout=5)


# ---------------------------------------------------------------------- for tasks, and for threads


def blocking(dialer: Dialer, timeout: float) -> Any:
    """Dial on a thread that it may block, beside this loop."""
    loop = asyncio.get_running_loop()

    async def elsewhere(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    return asyncio.to_thread(now, dialer.connect_blocking(elsewhere, timeout=timeout, autocommit=True))


async def test_a_thread_dials_as_a_task_does(pooler: Pooler) -> None:
    dialer = own(pooler.port, password=lambda: "any", aside=True, server_settings={"application_name": "till"})

    con = await blocking(dialer, 10)

    assert (await asyncio.to_thread(con.execute, "SHOW application_name")).fetchone() == ("till",)
    assert [b"options" in packet for packet in pooler.packets] == [True, False]
    con.close()


async def test_a_thread_that_dials_waits_for_a_name_no_longer_than_it_may(
    single: Cluster, name_server: NameServer
) -> None:
    name_server.answers.clear()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        await blocking(own(single.primary.port, NAME), 0.3)

    assert time.monotonic() - began < 0.3 + SLACK
    name_server.answers.set()


FORK = """
import asyncio, os, psycopg
from dbguard.drivers.psycopg.dial import own_dialer

async def on_loop(work):
    return await work

async def dial():
    dialer = own_dialer({"host": "127.0.0.1", "port": PORT, "user": "postgres", "dbname": "postgres"}, {})
    return await DIAL

async def ask(con):
    asked = con.execute("SELECT 1")
    if hasattr(asked, "__await__"):
        await asked

loop = asyncio.new_event_loop()
con = loop.run_until_complete(dial())
pid = os.fork()
if not pid:
    try:
        asyncio.new_event_loop().run_until_complete(ask(con))
    except psycopg.OperationalError:
        del con
        os._exit(0)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
loop.run_until_complete(ask(con))
os._exit(code)
"""


@pytest.mark.parametrize(
    "way", ["dialer.control(timeout=10)", "dialer.connect(timeout=10)", "dialer.connect_blocking(on_loop, timeout=10)"]
)
async def test_a_forked_child_finds_no_connection_and_leaves_its_parents_alone(single: Cluster, way: str) -> None:
    program = FORK.replace("PORT", str(single.primary.port)).replace("DIAL", way)
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)

    _, said = await asyncio.wait_for(done.communicate(), 30)

    assert (done.returncode, said) == (0, b"")


# ---------------------------------------------------------------------- time


async def cancelled(dial: Coroutine[Any, Any, Any], dialled: asyncio.Event) -> asyncio.Task[Any]:
    """Cancel a dial once the server has heard of it; the task keeps how it ended."""
    task = asyncio.create_task(dial)
    await dialled.wait()
    task.cancel()
    await asyncio.wait({task})
    return task


async def late(dial: Any, _: object) -> BaseException:
    """Wait for a dial that fails; returns with what."""
    with pytest.raises((TimeoutError, psycopg.errors.ConnectionTimeout)) as caught:
        await dial
    return caught.value


class Translating(psycopg.AsyncConnection[Any]):
    """One that has its own errors."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:  # type: ignore[override]  # as in psycopg's manual
        try:
            return await super().connect(conninfo, **kwargs)
        except asyncio.CancelledError as error:
            raise TimeoutError from error


@pytest.mark.parametrize(
    ("ends", "dial"),
    [
        (late, lambda dialer: dialer.control(timeout=0.3)),
        (late, lambda dialer: dialer.connect(timeout=10, connect_timeout=2)),
        (late, lambda dialer: dialer.connect(timeout=0.3, kind=Translating)),
        (late, lambda dialer: blocking(dialer, 0.3)),
        (cancelled, lambda dialer: dialer.control(timeout=10)),
        (cancelled, lambda dialer: dialer.connect(timeout=10)),
    ],
    ids=[
        "late",
        "too late for psycopg",
        "late, with errors of its own",
        "late on a thread",
        "cancelled",
        "cancelled, of a pool",
    ],
)
async def test_a_dial_that_was_given_up_leaves_no_connection_behind(ends: Any, dial: Callable[[Dialer], Any]) -> None:
    dialled, gone = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.set()
        with contextlib.suppress(OSError):
            await reader.read()  # until its end
        gone.set()

    async with StreamServer(say_nothing) as server:
        kept = await ends(dial(own(server.port)), dialled)

        await asyncio.wait_for(gone.wait(), SLACK)
        assert kept is not None


async def test_a_dial_takes_no_more_than_its_limit_where_nobody_answers() -> None:
    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()  # until its end

    async with StreamServer(say_nothing) as server:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await own(server.port).control(timeout=0.3)
        assert 0.25 <= time.monotonic() - began < 0.3 + SLACK


async def test_a_dial_that_fails_leaves_alone_what_was_being_handled() -> None:
    def fails() -> None:
        kept = "what a debugger shows"
        raise LookupError(kept)

    try:
        fails()
    except LookupError as error:
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await own(1).control(timeout=10)  # a port that nobody listens on
        trace: Any = error.__traceback__
        assert trace.tb_next.tb_frame.f_locals == {"kept": "what a debugger shows"}


async def test_the_limit_holds_while_a_name_or_a_function_does_not_answer(
    single: Cluster, name_server: NameServer
) -> None:
    name_server.answers.clear()
    never = asyncio.Event()

    async def wait() -> str:
        await never.wait()
        return ""

    for dialer in (own(single.primary.port, NAME), own(single.primary.port, password=wait)):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await dialer.control(timeout=0.3)
        assert time.monotonic() - began < 0.3 + SLACK
    name_server.answers.set()


# ---------------------------------------------------------------------- names


async def test_the_last_good_address_serves_where_a_name_cannot_be_looked_up(
    single: Cluster, name_server: NameServer
) -> None:
    dialer = own(single.primary.port, NAME)
    assert await asked(dialer, "SELECT 1") == 1

    name_server.fails = True

    assert await asked(dialer, "SELECT 1") == 1
    with pytest.raises(OSError, match="no such name"):
        await own(single.primary.port, NAME).control(timeout=5)


async def test_the_addresses_of_a_name_are_tried_one_after_the_other(single: Cluster, name_server: NameServer) -> None:
    name_server.addresses = ["127.0.0.9", "127.0.0.1"]
    dialer = own(single.primary.port, NAME)

    speaker = await dialer.control(timeout=10)

    assert speaker.reached == (NAME, "127.0.0.1")
    speaker.terminate()


async def test_a_name_that_leads_elsewhere_by_now_is_noticed(single: Cluster, name_server: NameServer) -> None:
    dialer = own(single.primary.port, NAME)
    speaker = await dialer.control(timeout=10)
    by_address = await own(single.primary.port).control(timeout=10)
    assert not await dialer.strayed(speaker)

    name_server.addresses = ["127.0.0.9"]
    assert await dialer.strayed(speaker)
    assert not await dialer.strayed(by_address)

    name_server.fails = True
    assert not await own(single.primary.port, NAME).strayed(speaker)  # one that knows no last good address
    speaker.terminate()
    by_address.terminate()


# ---------------------------------------------------------------------- pools of the application's


POOLS: dict[str, type[Any]] = {"asyncio": psycopg_pool.AsyncConnectionPool, "threads": psycopg_pool.ConnectionPool}


@pytest.mark.parametrize("colour", POOLS)
async def test_what_a_pool_is_told_leads_to_its_server(colour: str, locked: Cluster) -> None:
    port = locked.primary.port
    pool = POOLS[colour](
        f"host=127.0.0.1 port={port} dbname=postgres application_name=shop",
        kwargs={"user": "postgres", "password": SECRET, "autocommit": True, "row_factory": psycopg.rows.dict_row},
        open=False,
    )

    assert await asked(dialer_of_pool(pool), "SHOW application_name") == "shop"


@pytest.mark.parametrize("colour", POOLS)
async def test_functions_of_a_pool_are_asked_at_each_dial_and_block_nobody(colour: str, locked: Cluster) -> None:
    asked_in: list[threading.Thread] = []

    def conninfo() -> str:
        asked_in.append(threading.current_thread())
        return f"host=127.0.0.1 port={locked.primary.port} dbname=postgres user=postgres"

    def kwargs() -> dict[str, Any]:
        return {"password": SECRET}

    dialer = dialer_of_pool(POOLS[colour](conninfo, kwargs=kwargs, open=False))

    assert await asked(dialer, "SELECT 1") == 1
    assert await asked(dialer, "SELECT 1") == 1
    assert len(asked_in) == 2
    assert (threading.current_thread() in asked_in) == (colour == "asyncio")


async def test_a_class_of_connections_of_the_applications_is_what_dials(locked: Cluster) -> None:
    class Knowing(psycopg.AsyncConnection[Any]):
        """One that knows the password."""

        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:  # type: ignore[override]  # as in psycopg's manual
            return await super().connect(conninfo, password=SECRET, **kwargs)

    pool: Any = psycopg_pool.AsyncConnectionPool(
        f"host=127.0.0.1 port={locked.primary.port} dbname=postgres user=postgres",
        connection_class=Knowing,
        open=False,
    )

    assert await asked(dialer_of_pool(pool), "SELECT 1") == 1


async def test_a_pool_of_several_hosts_is_led_to_the_one_that_it_asks_for(
    calm_cluster: Cluster, name_server: NameServer
) -> None:
    nodes = [*calm_cluster.replicas, calm_cluster.primary]
    ports = ",".join(str(node.port) for node in nodes)
    pool: Any = psycopg_pool.AsyncConnectionPool(
        f"host=127.0.0.1,127.0.0.1,{NAME} port={ports} dbname=postgres user=postgres target_session_attrs=read-write",
        open=False,
    )
    name_server.addresses = ["127.0.0.9", "127.0.0.1"]

    speaker = await dialer_of_pool(pool).control(timeout=10)

    assert await speaker.fetchval("SELECT inet_server_port()") == calm_cluster.primary.port
    assert speaker.reached == (NAME, "127.0.0.1")
    speaker.terminate()


async def test_a_pool_that_leaves_its_server_to_the_environment_is_followed(
    single: Cluster, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGHOST": NAME, "PGPORT": str(single.primary.port), "PGUSER": "postgres"}.items():
        monkeypatch.setenv(name, value)
    pool: Any = psycopg_pool.AsyncConnectionPool("dbname=postgres", open=False)
    dialer = dialer_of_pool(pool)
    assert await asked(dialer, "SELECT 1") == 1

    name_server.fails = True
    assert await asked(dialer, "SELECT 1") == 1  # by the last good address
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    assert await asked(dialer_of_pool(pool), "SELECT 1") == 1


async def test_how_the_application_reads_values_is_not_how_the_monitor_does(single: Cluster) -> None:
    class Shouting(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return f"{bytes(data)!r}!"

    context = psycopg.adapt.AdaptersMap(psycopg.adapters)
    context.register_loader("int4", Shouting)
    pool: Any = psycopg_pool.AsyncConnectionPool(single.dsn("a"), kwargs={"context": context}, open=False)

    assert await asked(dialer_of_pool(pool), "SELECT 1") == 1


# ---------------------------------------------------------------------- secrets


def shown(error: BaseException) -> str:
    """All that a log would show of an error, and of those behind it."""
    said = []
    seen: BaseException | None = error
    while seen is not None:
        said.append(f"{seen!r} {seen} {getattr(seen, '__notes__', '')}")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(said)


def wrong_password(locked: Cluster) -> Dialer:
    return own(locked.primary.port, password="hunter three")


def refused(_: Cluster) -> Dialer:
    return own(1, password="hunter three")


def torn_conninfo(_: Cluster) -> Dialer:
    pool: Any = psycopg_pool.AsyncConnectionPool("host=localhost password=a hunter", open=False)
    return dialer_of_pool(pool)


def torn_uri(_: Cluster) -> Dialer:
    pool: Any = psycopg_pool.AsyncConnectionPool("postgresql://u:%hunter@localhost/x", open=False)
    return dialer_of_pool(pool)


@pytest.mark.parametrize("make", [wrong_password, refused, torn_conninfo, torn_uri])
async def test_no_error_shows_a_password(make: Callable[[Cluster], Dialer], locked: Cluster) -> None:
    dialer = make(locked)

    with pytest.raises(psycopg.Error) as raised:
        await dialer.control(timeout=10)

    assert "hunter" not in shown(raised.value)
    assert "hunter" not in repr(dialer)


async def test_no_connection_shows_its_password(locked: Cluster) -> None:
    speaker = await own(locked.primary.port, password=Secret(SECRET)).control(timeout=10)

    assert "hunter" not in repr(speaker)
    speaker.terminate()
