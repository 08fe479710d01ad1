"""The fault catalogue, made to happen: real servers, the real Toxiproxy, psycopg on asyncio and in threads.

What matters of each fault is the `Failure` that comes of it; of those that meet a write, as well whether it was applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from dbguard.core.failure import Failure, Family, Phase
from dbguard.drivers.psycopg.cord import Cord
from dbguard.drivers.psycopg.failures import PsycopgDriver, describe, name_dial
from dbguard.testing.proxied import ProxiedCluster
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from dbguard.testing.binaries import Binaries
    from dbguard.testing.toxiproxy import Proxy

pytestmark = pytest.mark.chaos

numbers = count(1)


@pytest.fixture(scope="module")
def faulty(binaries: Binaries) -> Iterator[ProxiedCluster]:
    """A primary and a replica behind proxies, with roles and databases that refuse."""
    settings = {
        "superuser_reserved_connections": "80",
        "max_standby_streaming_delay": "0",
        "hot_standby_feedback": "off",
    }
    with ProxiedCluster(binaries=binaries, replicas=1, password="s3cret", settings=settings) as cluster:
        for statement in (
            "CREATE TABLE written (n int PRIMARY KEY)",
            "CREATE TABLE changing (n int)",
            "CREATE ROLE app LOGIN PASSWORD 'app'",
            "GRANT ALL ON written, changing TO app",
            "CREATE ROLE crowded LOGIN PASSWORD 'app' CONNECTION LIMIT 0",
            "CREATE ROLE nologin PASSWORD 'app'",
            "CREATE DATABASE closed ALLOW_CONNECTIONS false",
            "CREATE DATABASE narrow CONNECTION LIMIT 0",
            "CREATE DATABASE private",
            "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
        ):
            cluster.sql("a", statement)
        yield cluster


class Colour:
    """psycopg on asyncio or, blocking, in threads. Connections are closed at the end of the test."""

    def __init__(self, *, threads: bool) -> None:
        self.threads = threads
        self._open: list[Any] = []

    async def connect(self, **how: Any) -> Any:
        if self.threads:
            con: Any = await asyncio.to_thread(partial(psycopg.Connection.connect, autocommit=True, **how))
        else:
            con = await psycopg.AsyncConnection.connect(autocommit=True, **how)
        self._open.append(con)
        return con

    async def run(self, con: Any, *statements: str) -> None:
        for statement in statements:
            await (asyncio.to_thread(con.execute, statement) if self.threads else con.execute(statement))

    async def close(self) -> None:
        for con in self._open:
            con.pgconn.finish()

    async def dial_failure(self, **how: Any) -> Failure:
        """Dial, in vain, and name what came of it."""
        with pytest.raises(psycopg.Error) as raised:
            await self.connect(**how)
        return name_dial(raised.value, "a")

    async def failure(self, con: Any, *statements: str) -> Failure:
        """Run statements, of which the last one fails, and name that as the runtime does."""
        await self.run(con, *statements[:-1])
        lent = Lent(con)
        unsent = lent.is_closed()
        with pytest.raises(psycopg.Error) as raised:
            await self.run(con, statements[-1])
        return PsycopgDriver.name_failure(raised.value, "a", lent, unsent=unsent, closed=lent.is_closed())


class Lent:
    """A lease and its line, as far as naming a failure goes."""

    def __init__(self, raw: Any) -> None:
        self.con = self
        self.ours = False
        self._raw = raw

    def is_closed(self) -> bool:
        return bool(self._raw.closed)

    def in_standby(self) -> bool | None:
        said = self._raw.info.parameter_status("in_hot_standby")
        return None if said is None else said == "on"


@pytest.fixture(params=["asyncio", "threads"])
async def colour(request: pytest.FixtureRequest) -> AsyncIterator[Colour]:
    made = Colour(threads=request.param == "threads")
    yield made
    await made.close()


@pytest.fixture
def direct(faulty: ProxiedCluster) -> dict[str, Any]:
    """How to reach the primary past all proxies, as the application."""
    where = {"host": "127.0.0.1", "port": faulty.node("a").port}
    return where | {"user": "app", "password": "app", "dbname": "postgres", "connect_timeout": 5}


@pytest.fixture
def link(faulty: ProxiedCluster) -> Iterator[Proxy]:
    yield faulty.link("app", "a")
    assert faulty.toxiproxy.broken() == []


def written(faulty: ProxiedCluster, n: int) -> bool:
    """Whether the row is there, asked past all proxies."""
    return bool(faulty.sql("a", "SELECT count(*) FROM written WHERE n = $1", n)[0][0])


def through(link: Proxy, direct: dict[str, Any]) -> dict[str, Any]:
    return direct | {"host": link.host, "port": link.port}


# ---------------------------------------------------------------------- connecting


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("given", "sqlstate", "family"),
    [
        ({"password": "wrong"}, "28P01", Family.CONFIG),
        ({"user": "nobody"}, "28P01", Family.CONFIG),
        ({"password": ""}, None, Family.CONFIG),
        ({"user": "nologin"}, "28000", Family.CONFIG),
        ({"dbname": "missing"}, "3D000", Family.CONFIG),
        ({"dbname": "closed"}, "55000", Family.CONFIG),
        ({"dbname": "private"}, "42501", Family.CONFIG),
        ({"user": "crowded"}, "53300", Family.SOFT),
        ({"dbname": "narrow"}, "53300", Family.SOFT),
        ({"options": "-c no_such=1"}, "42704", Family.CONFIG),
        ({"options": "-c statement_timeout=soon"}, "22023", Family.CONFIG),
        ({"sslmode": "require"}, None, Family.CONFIG),
        ({"sslmode": "bogus"}, None, Family.CONFIG),
        ({"sslmode": "verify-full", "sslrootcert": "/no/where"}, None, Family.CONFIG),
        ({"target_session_attrs": "standby"}, None, Family.ROLE),
        ({"target_session_attrs": "read-only"}, None, Family.ROLE),
        ({"host": "no.such.host.invalid"}, None, Family.HARD),
        ({"host": "/no/where"}, None, Family.HARD),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
async def test_what_a_server_refuses_at_the_door(
    given: dict[str, Any], sqlstate: str | None, family: Family, colour: Colour, direct: dict[str, Any]
) -> None:
    failure = await colour.dial_failure(**(direct | given))

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.CONNECT, sqlstate, family)


@pytest.mark.every_postgres
async def test_a_server_that_is_full_is_alive(colour: Colour, direct: dict[str, Any]) -> None:
    reserved = await until(partial(filled, colour, direct))

    assert "reserved" in str(reserved.cause)
    assert (reserved.phase, reserved.sqlstate, reserved.family) == (Phase.CONNECT, "53300", Family.SOFT)


async def test_a_server_without_a_connection_for_anybody_is_alive(direct: dict[str, Any]) -> None:
    colour = Colour(threads=False)
    none_left = await until(partial(filled, colour, direct | {"user": "postgres", "password": "s3cret"}))
    await colour.close()

    assert "too many clients" in str(none_left.cause)
    assert (none_left.phase, none_left.sqlstate, none_left.family) == (Phase.CONNECT, "53300", Family.SOFT)


async def filled(colour: Colour, there: dict[str, Any]) -> Failure | None:
    """Take one more connection; once there is none, name why."""
    try:
        await colour.connect(**there)
    except psycopg.OperationalError as error:
        return name_dial(error, "a")
    return None


async def test_nobody_listens_is_hard(colour: Colour, direct: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        failure = await colour.dial_failure(**(direct | {"port": free.getsockname()[1]}))

    assert (failure.phase, failure.family, failure.timed_out) == (Phase.CONNECT, Family.HARD, False)
    assert describe(failure.cause) == "connection refused"


async def test_a_black_hole_is_hard_and_took_its_time(colour: Colour, link: Proxy, direct: dict[str, Any]) -> None:
    with link.hole():
        failure = await colour.dial_failure(**(through(link, direct) | {"connect_timeout": 1}))

    assert (failure.phase, failure.family, failure.timed_out) == (Phase.CONNECT, Family.HARD, True)


@pytest.mark.parametrize(
    ("kind", "stream", "attributes"),
    [
        ("reset_peer", "downstream", {"timeout": 0}),
        ("reset_peer", "upstream", {"timeout": 0}),
        ("limit_data", "downstream", {"bytes": 0}),
        ("limit_data", "downstream", {"bytes": 30}),
        ("timeout", "downstream", {"timeout": 100}),
    ],
)
async def test_a_handshake_that_is_cut_off_is_hard(
    kind: Any, stream: Any, attributes: dict[str, int], colour: Colour, link: Proxy, direct: dict[str, Any]
) -> None:
    with link.toxic(kind, stream=stream, **attributes):
        failure = await colour.dial_failure(**through(link, direct))

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.CONNECT, None, Family.HARD)


@pytest.mark.every_postgres
async def test_a_server_that_shuts_down_is_hard_and_says_57p03(
    colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    replica = direct | {"port": faulty.node("b").port}
    con = await colour.connect(**replica)
    stopping = asyncio.ensure_future(asyncio.to_thread(faulty.stop_node, "b", "smart"))  # waits for the session

    async def refused() -> Failure | None:
        try:
            (await colour.connect(**replica)).pgconn.finish()
        except psycopg.OperationalError as error:
            return name_dial(error, "b")
        return None

    failure = await until(refused)
    await colour.run(con, "SELECT 1")
    con.pgconn.finish()
    await stopping
    await asyncio.to_thread(faulty.start_node, "b")

    assert (failure.phase, failure.family, failure.sqlstate) == (Phase.CONNECT, Family.HARD, "57P03")


KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSa6RFVsFuiuBBT/z
3KdMcRhpj20OPYFs7X5rVlDexPqhRANCAASQeXCNomDec/KEx/LLg1xNKzE5ksZh
MiVjDyqLqdKQYJKpzkL14MlS06IDeovy623doYA+st2sZ7BK/Loo66pC
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBYDCCAQegAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAllbHNld2hl
cmUwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWVsc2V3aGVyZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJB5cI2iYN5z8oTH
8suDXE0rMTmSxmEyJWMPKoup0pBgkqnOQvXgyVLTogN6i/Lrbd2hgD6y3axnsEr8
uijrqkKjSDBGMBQGA1UdEQQNMAuCCWVsc2V3aGVyZTAPBgNVHRMBAf8EBTADAQH/
MB0GA1UdDgQWBBTc7B4feUWJg2IQ3fvVcxysyzefgDAKBggqhkjOPQQDAgNHADBE
AiA8QprMtyAfKssNVpZKdD297xcuAUV1puDCmlV6T/oPIwIgQ4CFL4e7Rl6b3hK+
Bb/DiMluUTzqjPrFCfRO+oCZ07Y=
-----END CERTIFICATE-----
"""
"""Of a server called ``elsewhere``, made for this test; trusted by nobody."""

STRANGER = """\
-----BEGIN CERTIFICATE-----
MIIBXzCCAQWgAwIBAgIBAjAKBggqhkjOPQQDAjATMREwDwYDVQQDDAhzdHJhbmdl
cjAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowEzERMA8GA1UEAwwI
c3RyYW5nZXIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQaB2UwbxAQZW92LfG3
tXymPhGnkQuvnBKN4KY4+HocbgVDMJxX/2cfEh1JrJwIGxz/HE5y6rnQmPfaUdMk
ym4To0gwRjAUBgNVHREEDTALggllbHNld2hlcmUwDwYDVR0TAQH/BAUwAwEB/zAd
BgNVHQ4EFgQUPAwtQBGQQiUXtzxvD2YKSkoNqw4wCgYIKoZIzj0EAwIDSAAwRQIg
dzZ3KfN3lsAdIE0NwfN1LKsWdPqeZ/lHf77aB2zj3g4CIQDHZjguKc38oUHZHF3B
hRz75hIbB5Cs+lzVOZ1Pnsg79g==
-----END CERTIFICATE-----
"""
"""Somebody else's."""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of one who speaks TLS, as ``elsewhere``, and the file with its certificate."""
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    for path, text in zip(files, (CERTIFICATE, KEY), strict=True):
        path.write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    context.set_alpn_protocols(["postgresql"])

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                con, _ = listens.accept()
                with con, contextlib.suppress(OSError):
                    assert struct.unpack("!II", con.recv(8, socket.MSG_WAITALL)) == (8, 80877103)
                    con.sendall(b"S")
                    context.wrap_socket(con, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listens:
        serves = threading.Thread(target=serve)
        serves.start()
        yield listens.getsockname()[1], files[0]
        listens.shutdown(socket.SHUT_RDWR)
        serves.join()


async def test_a_certificate_that_is_not_trusted_or_for_another_is_configuration(
    colour: Colour, elsewhere: tuple[int, Path], direct: dict[str, Any], tmp_path: Path
) -> None:
    port, certificate = elsewhere
    stranger, empty = tmp_path / "stranger.pem", tmp_path / "empty.pem"
    stranger.write_text(STRANGER)
    empty.write_text("")
    there = direct | {"port": port, "sslmode": "verify-full"}
    untrusted = await colour.dial_failure(**there, sslrootcert=str(stranger))
    another = await colour.dial_failure(**there, sslrootcert=str(certificate))
    unreadable = await colour.dial_failure(**there, sslrootcert=str(empty))

    for failure in (untrusted, another, unreadable):
        assert (failure.phase, failure.sqlstate, failure.family) == (Phase.CONNECT, None, Family.CONFIG)
    told = [describe(failure.cause) for failure in (untrusted, another)]
    assert told == ["its certificate is not trusted", "its certificate is for another name"]


# ---------------------------------------------------------------------- the session is ended by the server


def pid(con: Any) -> int:
    return int(con.info.backend_pid)


def asleep(faulty: ProxiedCluster, node: str, con: Any) -> Callable[[], Awaitable[Any]]:
    """Return what says whether the backend of *con* sleeps."""
    asks = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid(con)} AND wait_event = 'PgSleep'"

    async def look() -> Any:
        return (await asyncio.to_thread(faulty.sql, node, asks))[0][0]

    return look


def gone(faulty: ProxiedCluster, node: str, backend: int) -> Callable[[], Awaitable[bool]]:
    asks = f"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {backend}"

    async def look() -> bool:
        return bool((await asyncio.to_thread(faulty.sql, node, asks))[0][0])

    return look


async def test_a_session_ended_in_flight_is_hard_and_sent(
    colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    con = await colour.connect(**direct)
    call = asyncio.ensure_future(colour.failure(con, "SELECT pg_sleep(60)"))
    await until(asleep(faulty, "a", con))
    await asyncio.to_thread(faulty.sql, "a", f"SELECT pg_terminate_backend({pid(con)})")

    failure = await call

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.SENT, "57P01", Family.HARD)
    assert failure.broken


async def test_a_session_ended_while_idle_is_met_by_the_next_call_and_may_be_seen_before(
    colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    con = await colour.connect(**direct)
    cord = Cord(con.pgconn.socket)
    await asyncio.to_thread(faulty.sql, "a", f"SELECT pg_terminate_backend({pid(con)})")
    await until(cord.hangs_loose)
    cord.close()

    met = await colour.failure(con, "SELECT 1")
    after = await colour.failure(con, "SELECT 1")

    assert (met.phase, met.sqlstate, met.family, met.broken) == (Phase.SENT, "57P01", Family.HARD, True)
    assert (after.phase, after.sqlstate, after.family, after.broken) == (Phase.UNSENT, None, Family.HARD, True)


@pytest.mark.parametrize("end", ["immediate", "kill"])
async def test_a_server_that_dies_is_hard_in_flight_and_idle(
    end: str, colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    there = direct | {"port": faulty.node("b").port}
    busy, idle = await colour.connect(**there), await colour.connect(**there)
    call = asyncio.ensure_future(colour.failure(busy, "SELECT pg_sleep(60)"))
    await until(asleep(faulty, "b", busy))
    if end == "kill":
        await asyncio.to_thread(faulty.kill, "b")
    else:
        await asyncio.to_thread(faulty.stop_node, "b", "immediate")

    failures = [await call, await colour.failure(idle, "SELECT 1")]
    await asyncio.to_thread(faulty.start_node, "b")

    for failure in failures:
        assert (failure.phase, failure.family, failure.broken) == (Phase.SENT, Family.HARD, True)


@pytest.mark.every_postgres
@pytest.mark.parametrize(
    ("begun", "then", "sqlstate"),
    [
        (
            ["SET idle_in_transaction_session_timeout = 50", "BEGIN", "INSERT INTO written VALUES (@)"],
            "COMMIT",
            "25P03",
        ),
        (["SET idle_session_timeout = 50"], "INSERT INTO written VALUES (@)", "57P05"),
    ],
    ids=["in a transaction", "outside"],
)
async def test_what_meets_a_session_that_was_idle_too_long_never_ran(
    begun: list[str], then: str, sqlstate: str, colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    con, n = await colour.connect(**direct), next(numbers)
    await colour.run(con, *(statement.replace("@", str(n)) for statement in begun))
    await until(gone(faulty, "a", pid(con)))

    failure = await colour.failure(con, then.replace("@", str(n)))

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.UNSENT, sqlstate, Family.NEUTRAL)
    assert failure.broken
    assert not written(faulty, n)


@pytest.mark.every_postgres
async def test_a_standby_ends_a_session_whose_snapshot_is_in_the_way_of_replay(
    colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    n = next(numbers)
    faulty.sql("a", "INSERT INTO written VALUES ($1)", n)
    faulty.wait_for("b", f"SELECT count(*) = 1 FROM written WHERE n = {n}")
    con = await colour.connect(**(direct | {"port": faulty.node("b").port}))
    await colour.run(con, "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM written")

    async def in_the_way() -> bool:
        for statement in (f"DELETE FROM written WHERE n = {n}", "VACUUM written"):
            await asyncio.to_thread(faulty.sql, "a", statement)
        return await gone(faulty, "b", pid(con))()

    await until(in_the_way)
    failure = await colour.failure(con, "SELECT 1")

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.SENT, "40001", Family.CONTENTION)
    assert failure.broken


@pytest.mark.every_postgres
async def test_a_database_that_was_dropped_under_a_standbys_session_cannot_be_used(
    colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    name = f"short_lived_{next(numbers)}"
    faulty.sql("a", f"CREATE DATABASE {name}")
    faulty.wait_for("b", f"SELECT count(*) = 1 FROM pg_database WHERE datname = '{name}'")
    con = await colour.connect(**(direct | {"port": faulty.node("b").port, "dbname": name}))
    faulty.sql("a", f"DROP DATABASE {name}")
    await until(gone(faulty, "b", pid(con)))

    failure = await colour.failure(con, "SELECT 1")

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.SENT, "57P04", Family.CONFIG)


# ---------------------------------------------------------------------- the network

CUTS = [
    ("timeout", "downstream", {"timeout": 200}, True),
    ("timeout", "upstream", {"timeout": 200}, False),
    ("reset_peer", "downstream", {"timeout": 0}, True),
    ("reset_peer", "upstream", {"timeout": 0}, False),
    ("limit_data", "downstream", {"bytes": 0}, True),
    ("limit_data", "downstream", {"bytes": 7}, True),
]


@pytest.mark.parametrize("at", ["write", "commit"])
@pytest.mark.parametrize(("kind", "stream", "attributes", "applied"), CUTS)
async def test_a_lost_request_and_a_lost_acknowledgement_look_alike(
    kind: Any,
    stream: Any,
    attributes: dict[str, int],
    at: str,
    colour: Colour,
    link: Proxy,
    faulty: ProxiedCluster,
    direct: dict[str, Any],
    *,
    applied: bool,
) -> None:
    con, n = await colour.connect(**through(link, direct)), next(numbers)
    backend = pid(con)
    statements = ["BEGIN", f"INSERT INTO written VALUES ({n})", "COMMIT"] if at == "commit" else []
    last = statements.pop() if statements else f"INSERT INTO written VALUES ({n})"
    await colour.run(con, *statements)

    with link.toxic(kind, stream=stream, **attributes):
        failure = await colour.failure(con, last)
    await until(gone(faulty, "a", backend))

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.SENT, None, Family.HARD)
    assert failure.broken
    assert written(faulty, n) is applied


@pytest.mark.parametrize(("stream", "applied"), [("downstream", True), ("upstream", False)])
async def test_a_black_hole_ends_when_the_line_is_cut(
    stream: Any,
    colour: Colour,
    link: Proxy,
    faulty: ProxiedCluster,
    direct: dict[str, Any],
    *,
    applied: bool,
) -> None:
    con, n = await colour.connect(**through(link, direct)), next(numbers)
    backend, cord = pid(con), Cord(con.pgconn.socket)
    with link.toxic("timeout", stream=stream, timeout=0):
        call = asyncio.ensure_future(colour.failure(con, f"INSERT INTO written VALUES ({n})"))
        if applied:
            await until(lambda: asyncio.to_thread(written, faulty, n))
        cord.cut()
        failure = await call
    cord.close()
    await until(gone(faulty, "a", backend))

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.SENT, None, Family.HARD)
    assert written(faulty, n) is applied


@pytest.mark.parametrize("busy", [True, False])
async def test_a_proxy_that_goes_down_ends_what_it_carries(
    busy: bool,  # noqa: FBT001  pytest gives it by name
    colour: Colour,
    link: Proxy,
    faulty: ProxiedCluster,
    direct: dict[str, Any],
) -> None:
    con = await colour.connect(**through(link, direct))
    call = asyncio.ensure_future(colour.failure(con, "SELECT pg_sleep(60)")) if busy else None
    if call:
        await until(asleep(faulty, "a", con))
    with link.down():
        failure = await (call or colour.failure(con, "SELECT 1"))
        dialled = await colour.dial_failure(**through(link, direct))

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.SENT, None, Family.HARD)
    assert (dialled.phase, dialled.family) == (Phase.CONNECT, Family.HARD)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("latency", {"latency": 50}),
        ("slicer", {"average_size": 10, "size_variation": 5, "delay": 10}),
        ("bandwidth", {"rate": 100}),
    ],
)
async def test_what_is_slow_is_no_failure(
    kind: Any, attributes: dict[str, int], colour: Colour, link: Proxy, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    n = next(numbers)
    with link.toxic(kind, **attributes):
        con = await colour.connect(**through(link, direct))
        await colour.run(con, f"INSERT INTO written VALUES ({n})")

    assert written(faulty, n)


# ---------------------------------------------------------------------- the server says no, and the session lives


@pytest.mark.parametrize(
    ("statement", "sqlstate"),
    [
        ("INSERT INTO written VALUES (0)", "25006"),
        ("BEGIN READ WRITE", "0A000"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "0A000"),
        ("SELECT pg_current_wal_lsn()", "55000"),
        ("SELECT lo_create(0)", "25006 XX000"),  # since version 16, and before
    ],
)
async def test_a_write_that_reached_a_standby_is_a_role_signal(
    statement: str, sqlstate: str, colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    con = await colour.connect(**(direct | {"port": faulty.node("b").port}))

    failure = await colour.failure(con, statement)
    answered = await colour.failure(con, "ROLLBACK", "SELECT 1/0")

    assert (failure.phase, failure.family) == (Phase.ERROR, Family.ROLE)
    assert (failure.sqlstate or "none") in sqlstate
    assert (answered.family, answered.broken) == (Family.ANSWERED, False)


@pytest.mark.parametrize("code", ["57P01", "57P02", "57P03", "08006", "53300", "25006", "0A000", "28P01", "25P03"])
async def test_a_code_that_a_function_raises_says_nothing_about_the_node(
    code: str, colour: Colour, direct: dict[str, Any]
) -> None:
    con = await colour.connect(**direct)

    failure = await colour.failure(con, f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$")

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.ERROR, code, Family.ANSWERED)
    assert not failure.broken


async def test_a_plan_that_went_stale_is_refused_until_all_are_deallocated_and_may_be_repeated(
    colour: Colour, faulty: ProxiedCluster, direct: dict[str, Any]
) -> None:
    con = await colour.connect(**direct)
    await colour.run(con, *["SELECT * FROM changing"] * 7)
    faulty.sql("a", f"ALTER TABLE changing ADD COLUMN c{next(numbers)} int")

    failures = [await colour.failure(con, "SELECT * FROM changing") for _ in range(2)]
    await colour.run(con, "DEALLOCATE ALL", "SELECT * FROM changing")

    for failure in failures:
        assert (failure.phase, failure.sqlstate, failure.family) == (Phase.ERROR, "0A000", Family.CONTENTION)
        assert not failure.broken


async def test_what_was_refused_before_it_ran_is_told_apart(colour: Colour, direct: dict[str, Any]) -> None:
    con = await colour.connect(**direct)

    unreadable = await colour.failure(con, "SELEC")
    no_table = await colour.failure(con, "SELECT 1; SELECT * FROM missing")
    within = await colour.failure(con, "DO $$ BEGIN PERFORM * FROM missing; END $$")

    assert (unreadable.unparsed, unreadable.refused) == (True, True)
    assert (no_table.unparsed, no_table.refused) == (False, True)
    assert (within.unparsed, within.refused) == (False, False)
