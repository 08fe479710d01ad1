"""What asyncpg raises, named: the fault catalogue as a table, with real errors where they are cheap to have.

The phase comes from what was recorded around the call. An SQLSTATE speaks of the node only if the connection died with
it: any function can raise any code.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from dbguard import errors
from dbguard.core.failure import Family, Phase
from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.failures import (
    AsyncpgDriver,
    NotReplicated,
    dress,
    is_refusal,
    name_dial,
    name_failure,
)
from dbguard.drivers.base import WrongNode
from dbguard.drivers.named import PoolExhausted
from dbguard.testing.cluster import Cluster
from dbguard.testing.relay import StreamServer
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.binaries import Binaries


@pytest.fixture(scope="module")
def guarded(binaries: Binaries) -> Iterator[Cluster]:
    """A server that asks for passwords, with roles and databases that refuse."""
    with Cluster(binaries=binaries, replicas=0, password="s3cret") as cluster:
        for statement in (
            "CREATE ROLE app LOGIN PASSWORD 'app'",
            "CREATE ROLE crowded LOGIN PASSWORD 'app' CONNECTION LIMIT 0",
            "CREATE ROLE nologin PASSWORD 'app'",
            "CREATE DATABASE closed ALLOW_CONNECTIONS false",
            "CREATE DATABASE private",
            "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
        ):
            cluster.sql("a", statement)
        yield cluster


async def dial_error(**arguments: Any) -> BaseException:
    with pytest.raises(Exception) as raised:
        await asyncpg.connect(timeout=5, **arguments)
    return raised.value


# ---------------------------------------------------------------------- before there is a connection


@pytest.mark.parametrize(
    ("given", "sqlstate", "family"),
    [
        ({"password": "wrong"}, "28P01", Family.CONFIG),
        ({"user": "nobody"}, "28P01", Family.CONFIG),
        ({"user": "nologin"}, "28000", Family.CONFIG),
        ({"database": "missing"}, "3D000", Family.CONFIG),
        ({"database": "closed"}, "55000", Family.CONFIG),
        ({"database": "private"}, "42501", Family.CONFIG),
        ({"user": "crowded"}, "53300", Family.SOFT),
        ({"server_settings": {"no_such": "x"}}, "42704", Family.CONFIG),
        ({"server_settings": {"statement_timeout": "soon"}}, "22023", Family.CONFIG),
        ({"ssl": "require"}, None, Family.CONFIG),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
async def test_what_a_server_refuses_at_the_door(
    given: dict[str, Any], sqlstate: str | None, family: Family, guarded: Cluster
) -> None:
    where = {
        "host": "127.0.0.1",
        "port": guarded.primary.port,
        "user": "app",
        "password": "app",
        "database": "postgres",
    }

    failure = name_dial(await dial_error(**(where | given)), "a")

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.CONNECT, sqlstate, family)


async def test_nobody_listens_is_hard(single: Cluster) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        failure = name_dial(await dial_error(host="127.0.0.1", port=free.getsockname()[1], user="x"), "a")

    assert (failure.family, failure.sqlstate, failure.broken) == (Family.HARD, None, True)


@pytest.mark.parametrize(("hangs_up", "timed_out"), [(False, True), (True, False)], ids=["black hole", "hangs up"])
async def test_a_handshake_that_is_not_answered_is_hard(*, hangs_up: bool, timed_out: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not hangs_up:
            await reader.read()  # until its end

    async with StreamServer(serve) as server:
        with pytest.raises(Exception) as raised:
            await asyncpg.connect(host="127.0.0.1", port=server.port, user="x", timeout=0.2)

    failure = name_dial(raised.value, "a")

    assert (failure.phase, failure.family, failure.timed_out) == (Phase.CONNECT, Family.HARD, timed_out)


async def test_a_server_that_shuts_down_is_hard_and_says_57p03(binaries: Binaries) -> None:
    with Cluster(binaries=binaries, replicas=0) as cluster:
        con = await asyncpg.connect(cluster.dsn())
        stopping = asyncio.ensure_future(asyncio.to_thread(cluster.stop_node, "a", "smart"))  # waits for the session

        async def refused() -> BaseException | None:
            try:
                (await asyncpg.connect(cluster.dsn())).terminate()
            except asyncpg.CannotConnectNowError as error:
                return error
            return None

        failure = name_dial(await until(refused), "a")
        con.terminate()
        await stopping

    assert (failure.phase, failure.family, failure.sqlstate) == (Phase.CONNECT, Family.HARD, "57P03")


DIALS = [
    (socket.gaierror(-2, "Name or service not known"), Family.HARD),
    (OSError(113, "No route to host"), Family.HARD),
    (ConnectionResetError(104, "reset"), Family.HARD),
    (ssl.SSLCertVerificationError(1, "certificate verify failed"), Family.CONFIG),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), Family.HARD),
    (ConnectionError("rejected SSL upgrade"), Family.CONFIG),
    (asyncpg.ClientConfigurationError("no such thing"), Family.CONFIG),
    (asyncpg.TargetServerAttributeNotMatched("none"), Family.ROLE),
    (asyncpg.CannotConnectNowError("shutting down"), Family.HARD),
    (asyncpg.AdminShutdownError("terminating"), Family.HARD),
    (asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"), Family.HARD),
    (asyncpg.InterfaceError("pool is closing"), Family.HARD),
    (PoolExhausted("none free"), Family.NEUTRAL),
    (ZeroDivisionError("in the application's init"), Family.NEUTRAL),
]


@pytest.mark.parametrize(("error", "family"), DIALS, ids=lambda value: type(value).__name__)
def test_other_ways_not_to_get_a_connection(error: Exception, family: Family) -> None:
    failure = name_dial(error, "a")

    assert (failure.phase, failure.family, failure.cause) == (Phase.CONNECT, family, error)


def test_a_server_that_must_not_be_used_is_told_in_words_that_the_application_can_catch() -> None:
    failure = name_dial(WrongNode("a belongs to an older reign"), "a")

    assert (failure.phase, failure.family) == (Phase.CONNECT, Family.ROLE)
    assert isinstance(failure.cause, errors.NoPrimary)
    assert isinstance(failure.cause, asyncpg.PostgresConnectionError)
    assert "a belongs to an older reign" in str(failure.cause)


def test_a_wait_for_a_full_pool_says_nothing_about_the_node() -> None:
    failure = name_dial(TimeoutError(), "a", full=True)

    assert failure.family is Family.NEUTRAL
    assert isinstance(failure.cause, PoolExhausted)
    assert name_dial(TimeoutError(), "a").family is Family.HARD


# ---------------------------------------------------------------------- on a connection


class Lent:
    """A lease, as far as naming a failure goes."""

    def __init__(self, con: Any) -> None:
        self.con = con
        self.ours = False
        self.touched = Touch.NOTHING


async def named(con: Any, *statements: str) -> Any:
    """Run statements of which the last fails, and name its failure as the runtime does."""
    for statement in statements[:-1]:
        await con.execute(statement)
    unsent = con.is_closed()
    with pytest.raises(Exception) as raised:
        await con.execute(statements[-1])
    return AsyncpgDriver.name_failure(raised.value, "a", Lent(con), unsent=unsent, closed=con.is_closed())


def raises(code: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"


REFUSED = [
    (["SELECT 1/0"], "22012", Family.ANSWERED),
    (["SELEC"], "42601", Family.ANSWERED),
    (["SELECT * FROM missing"], "42P01", Family.ANSWERED),
    (["CREATE TEMP TABLE u (id int UNIQUE)", "INSERT INTO u VALUES (1), (1)"], "23505", Family.ANSWERED),
    (["SET statement_timeout = 10", "SELECT pg_sleep(5)"], "57014", Family.NEUTRAL),
    (["SET default_transaction_read_only = on", "CREATE TABLE x ()"], "25006", Family.ANSWERED),
    (["BEGIN READ ONLY", "CREATE TABLE x ()"], "25006", Family.ANSWERED),
    (["BEGIN; SAVEPOINT s; SELECT 1", "SELECT 1/0"], "22012", Family.ANSWERED),
    ([raises("40001")], "40001", Family.CONTENTION),
    ([raises("40P01")], "40P01", Family.CONTENTION),
    ([raises("55P03")], "55P03", Family.ANSWERED),
    *(([raises(code)], code, Family.ANSWERED) for code in ("57P01", "57P02", "57P03", "08006", "08003", "53300", "25006", "0A000", "55000", "XX000", "28P01", "3D000")),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "sqlstate", "family"), REFUSED, ids=lambda value: str(value)[:70])
async def test_an_error_on_a_connection_that_lives_says_nothing_about_the_node(
    statements: list[str], sqlstate: str, family: Family, single: Cluster
) -> None:
    con = await asyncpg.connect(single.dsn())
    try:
        failure = await named(con, *statements)
    finally:
        con.terminate()

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.ERROR, sqlstate, family)
    assert not failure.broken


async def test_a_serialization_failure_is_contention(single: Cluster, table: str) -> None:
    one, other = await asyncpg.connect(single.dsn()), await asyncpg.connect(single.dsn())
    try:
        await one.execute(f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM {table}")
        await other.execute(f"UPDATE {table} SET name = 'x'")
        failure = await named(one, f"UPDATE {table} SET name = 'y'")
    finally:
        one.terminate()
        other.terminate()

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.ERROR, "40001", Family.CONTENTION)


@pytest.mark.parametrize(
    ("statement", "sqlstate"),
    [
        ("CREATE TABLE x ()", "25006"),
        ("BEGIN READ WRITE", "0A000"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "0A000"),
        ("SELECT pg_current_wal_lsn()", "55000"),
        ("SELECT lo_create(0)", "25006"),
    ],
)
async def test_a_write_that_reached_a_standby_is_a_role_signal(
    statement: str, sqlstate: str, calm_cluster: Cluster
) -> None:
    con = await asyncpg.connect(calm_cluster.dsn("b"))
    try:
        failure = await named(con, statement)
        answered = await named(con, "ROLLBACK", "SELECT 1/0")
    finally:
        con.terminate()

    assert (failure.phase, failure.sqlstate, failure.family) == (Phase.ERROR, sqlstate, Family.ROLE)
    assert answered.family is Family.ANSWERED


async def test_an_exception_of_the_clients_after_sending_is_sent(single: Cluster) -> None:
    con = await asyncpg.connect(single.dsn())

    def decode(_: str) -> None:
        raise ValueError("no")

    await con.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=decode)
    with pytest.raises(ValueError, match="no") as raised:
        await con.fetchval("SELECT 1::int4")
    failure = AsyncpgDriver.name_failure(raised.value, "a", Lent(con), unsent=False, closed=con.is_closed())
    con.terminate()

    assert (failure.phase, failure.family, failure.broken) == (Phase.SENT, Family.NEUTRAL, False)


# ---------------------------------------------------------------------- the connection dies


@pytest.mark.parametrize("end", ["pg_terminate_backend(pg_backend_pid())", "pg_sleep(60)"])
async def test_a_session_ended_in_flight_is_hard_and_sent(end: str, single: Cluster) -> None:
    con = await asyncpg.connect(single.dsn())
    call = asyncio.ensure_future(named(con, f"SELECT {end}"))
    asks = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {con.get_server_pid()} AND wait_event = 'PgSleep'"
    if "sleep" in end:
        await until(lambda: asyncio.to_thread(lambda: single.sql("a", asks)[0][0]))
        await asyncio.to_thread(single.sql, "a", "SELECT pg_terminate_backend($1)", con.get_server_pid())

    failure = await call

    assert (failure.phase, failure.family, failure.broken) == (Phase.SENT, Family.HARD, True)


async def test_a_session_ended_while_idle_is_unsent(single: Cluster) -> None:
    con = await asyncpg.connect(single.dsn())
    single.sql("a", "SELECT pg_terminate_backend($1)", con.get_server_pid())
    await until(con.is_closed)

    failure = await named(con, "SELECT 1")

    assert (failure.phase, failure.family, failure.broken) == (Phase.UNSENT, Family.HARD, True)


LOST: list[tuple[BaseException, dict[str, Any], Phase, Family]] = [
    (asyncpg.ConnectionDoesNotExistError("lost"), {"closed": True}, Phase.SENT, Family.HARD),
    (asyncpg.InternalClientError("cannot switch to state 12"), {"closed": True}, Phase.SENT, Family.HARD),
    (AttributeError("'NoneType' object has no attribute 'bind_execute'"), {"closed": True}, Phase.SENT, Family.HARD),
    (asyncpg.InterfaceError("connection is closed"), {"unsent": True, "closed": True}, Phase.UNSENT, Family.HARD),
    (asyncpg.InterfaceError("the server expects 1 argument for this query"), {}, Phase.ERROR, Family.NEUTRAL),
    (asyncpg.InterfaceError("raised by a decoder"), {}, Phase.SENT, Family.NEUTRAL),
    (asyncpg.InternalClientError("no binary encoder"), {}, Phase.SENT, Family.NEUTRAL),
    (asyncpg.DataError("invalid input for query argument"), {}, Phase.ERROR, Family.ANSWERED),
    (TimeoutError(), {}, Phase.SENT, Family.SOFT),
    (asyncio.CancelledError(), {}, Phase.SENT, Family.NEUTRAL),
    (NotReplicated("cut short"), {}, Phase.SENT, Family.NEUTRAL),
    (asyncpg.AdminShutdownError("terminating"), {"closed": True}, Phase.SENT, Family.HARD),
    (asyncpg.SerializationError("conflict with recovery"), {"standby": True}, Phase.ERROR, Family.CONTENTION),
    (asyncpg.ReadOnlySQLTransactionError("no"), {"standby": True}, Phase.ERROR, Family.ROLE),
    (asyncpg.ReadOnlySQLTransactionError("no"), {"standby": None}, Phase.ERROR, Family.ROLE),
    (asyncpg.FeatureNotSupportedError("no"), {"standby": None}, Phase.ERROR, Family.ANSWERED),
    (asyncpg.InvalidCachedStatementError("changed by DDL"), {"standby": True}, Phase.ERROR, Family.CONTENTION),
    (asyncpg.InvalidCachedStatementError("changed by DDL"), {"standby": False}, Phase.ERROR, Family.CONTENTION),
]


@pytest.mark.parametrize(("error", "facts", "phase", "family"), LOST, ids=lambda value: str(value)[:40] or "timed out")
def test_the_phase_comes_from_what_was_recorded(
    error: BaseException, facts: dict[str, Any], phase: Phase, family: Family
) -> None:
    failure = name_failure(error, "a", **({"unsent": False, "closed": False, "standby": False} | facts))

    assert (failure.phase, failure.family) == (phase, family)


async def test_an_argument_that_does_not_fit_is_no_answer_of_the_servers(single: Cluster) -> None:
    con = await asyncpg.connect(single.dsn())
    with pytest.raises(asyncpg.DataError) as unfit:
        await con.fetchval("SELECT $1::int", "x")
    with pytest.raises(asyncpg.DataError) as refused:
        await con.fetchval("SELECT 'x'::int")
    con.terminate()

    assert (is_refusal(unfit.value), is_refusal(refused.value)) == (False, True)


async def test_a_block_in_which_an_argument_did_not_fit_commits_the_rest(
    open_guard: Any, single: Cluster, table: str
) -> None:
    guard = await open_guard(single.primary.port)
    async with guard.transaction() as con:
        await con.execute(f"INSERT INTO {table} VALUES (3, 'three')")
        with pytest.raises(asyncpg.DataError):
            await con.execute(f"INSERT INTO {table} VALUES ($1, 'four')", "4")

    assert await guard.fetchval(f"SELECT count(*) FROM {table} WHERE id = 3") == 1


def test_no_name_shows_what_the_server_said() -> None:
    failure = name_failure(
        asyncpg.UniqueViolationError("Key (card)=(4111) exists"), "a", unsent=False, closed=False, standby=False
    )

    assert "4111" not in failure.why


# ---------------------------------------------------------------------- dbguard's own, dressed


@pytest.mark.parametrize("late", [False, True], ids=["at once", "out of time"])
@pytest.mark.parametrize(
    "kind",
    [
        dbguard.NoPrimary,
        dbguard.NoReplica,
        dbguard.SplitBrain,
        dbguard.Overloaded,
        dbguard.GuardClosed,
        dbguard.OutcomeUnknown,
        dbguard.DeadlineExceeded,
    ],
)
def test_every_error_of_dbguards_own_is_the_drivers_connection_error_too(
    kind: type[dbguard.DbGuardError], *, late: bool
) -> None:
    given = {"node": "a", "phase": "sent"} if kind is dbguard.OutcomeUnknown else {}
    error = kind("said", **given)
    error.__cause__ = cause = OSError("below")
    error.__dict__["timed_out"] = late

    dressed = dress(error)

    assert isinstance(dressed, kind)
    assert isinstance(dressed, asyncpg.PostgresConnectionError)
    assert str(dressed) == "said"
    assert dressed.__cause__ is cause
    times = {dbguard.NoPrimary, dbguard.NoReplica, dbguard.OutcomeUnknown}
    assert isinstance(dressed, TimeoutError) == (kind is dbguard.DeadlineExceeded or (late and kind in times))
    assert dress(dressed) is dressed
