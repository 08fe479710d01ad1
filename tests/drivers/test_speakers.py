"""What the monitor, the claims and the catalogue ask of a connection, over each driver: by the same words, with the same answers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import psycopg
import pytest

from dbguard.config.settings import Connection, NodeSettings
from dbguard.core.outcome import new_token
from dbguard.core.topology import Role
from dbguard.drivers import outcome_sql
from dbguard.drivers.asyncpg import dial as of_asyncpg
from dbguard.drivers.base import NotReplicated, TooOld
from dbguard.drivers.catalogue import read_catalogue
from dbguard.drivers.control import OwnControl
from dbguard.drivers.marks import Marks
from dbguard.drivers.probe import ask, sighting
from dbguard.drivers.psycopg import dial as of_psycopg
from dbguard.drivers.registry import Registry
from dbguard.drivers.speaker import refusal
from dbguard.login import libpq_keywords
from dbguard.testing.cluster import Cluster
from dbguard.wiring import connect_arguments
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dbguard.drivers.speaker import Speaker
    from dbguard.testing.binaries import Binaries
    from tests.drivers.conftest import Wire

LIMIT = 0.3
"""Seconds that an answer may take where none comes."""

SLACK = 4.5
"""Seconds more that a busy machine may take; psycopg's own cancellation takes five to ten in a black hole."""

OTHERS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, psycopg.Error)
"""What the drivers raise of a lost connection."""

LOGIN = Connection(user="postgres", database="postgres")
NOBODY = (0, None)


def dialer(driver: str, port: int) -> Any:
    node = NodeSettings(host="127.0.0.1", port=port)
    if driver == "asyncpg":
        return of_asyncpg.Dialer(connect_arguments(LOGIN, node), {})
    return of_psycopg.own_dialer(libpq_keywords(LOGIN, node), LOGIN.server_settings)


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def speak(driver: str) -> AsyncIterator[Callable[..., Awaitable[Speaker]]]:
    """Dial a port, as the monitor does; *timeout* is for each statement, too."""
    with contextlib.ExitStack() as stack:

        async def dial(port: int, *, timeout: float = 10.0) -> Speaker:
            speaker: Speaker = await dialer(driver, port).control(timeout=timeout)
            stack.callback(lambda: speaker.is_closed() or speaker.terminate())
            return speaker

        yield dial


@pytest.fixture
async def speaker(speak: Callable[..., Awaitable[Speaker]], single: Cluster) -> Speaker:
    return await speak(single.primary.port)


async def install(cluster: Cluster) -> None:
    """Make the schema of tokens, without a wait for standbys."""
    con = await asyncpg.connect(cluster.dsn("a"), server_settings={"synchronous_commit": "local"})
    await con.execute(outcome_sql.schema())
    await con.close()


@pytest.fixture
async def schema(single: Cluster) -> AsyncIterator[None]:
    """The schema of tokens on that server."""
    await install(single)
    yield
    await asyncio.to_thread(single.sql, "a", "DROP SCHEMA dbguard CASCADE")


# ---------------------------------------------------------------------- answers


async def test_rows_are_read_by_name_and_by_place_and_yield_their_values(speaker: Speaker) -> None:
    values: tuple[Any, ...] = (True, 2**40, UUID(int=7), b"\x00\xff", "ä", 1.5, None)

    row = await speaker.fetchrow(
        "SELECT $1::bool AS b, $2::int8 AS i, $3::uuid AS u, $4::bytea AS y, $5::text AS t, $6::float8 AS f, $7::int AS n",
        *values,
    )

    assert tuple(row) == values
    assert [row[name] for name in "biuytfn"] == list(values)
    assert [row[place] for place in range(7)] == list(values)
    with pytest.raises(KeyError):
        row["absent"]
    assert [row[0] for row in await speaker.fetch("SELECT generate_series(1, $1)", 3)] == [1, 2, 3]


async def test_what_is_not_there_is_none(speaker: Speaker) -> None:
    assert await speaker.fetch("SELECT 1 WHERE false") == []
    assert await speaker.fetchrow("SELECT 1 WHERE false") is None
    assert await speaker.fetchval("SELECT 1 WHERE false") is None


async def test_several_statements_are_one_text_and_the_last_ones_tag_is_told(speaker: Speaker) -> None:
    assert await speaker.execute("BEGIN; SET LOCAL lock_timeout = 100") == "SET"
    assert await speaker.fetchval("SHOW lock_timeout") == "100ms"
    assert await speaker.execute("COMMIT") == "COMMIT"
    assert await speaker.fetchval("SHOW lock_timeout") == "0"


async def test_each_statement_is_a_transaction_by_itself(speaker: Speaker) -> None:
    first = await speaker.fetchval("SELECT pg_current_xact_id()::text")

    assert await speaker.fetchval("SELECT pg_current_xact_id()::text") != first


async def test_a_server_is_recognised_and_its_catalogue_read_alike(single: Cluster, table: str) -> None:
    await asyncio.to_thread(single.sql, "a", f"CREATE VIEW {table}_view AS SELECT id, lower(name) FROM {table}")
    said = []
    for name in ("asyncpg", "psycopg"):
        speaker = await dialer(name, single.primary.port).control(timeout=10)
        seen = sighting(await ask(speaker, timeout=10), "a", 0.0, fresh=True)
        catalogue = await read_catalogue(speaker, timeout=10)
        assert catalogue is not None
        said.append((seen.role, seen.instance, seen.timeline, seen.address, catalogue))
        speaker.terminate()

    assert said[0] == said[1]
    assert said[0][0] is Role.PRIMARY
    assert said[0][1].system_id is not None
    assert said[0][2] == 1
    assert any(f"public.{table}" in relation.names and relation.bare for relation in said[0][4].relations)
    assert any(query for _, query in said[0][4].queries)


# ---------------------------------------------------------------------- errors


async def test_a_refusal_is_told_from_a_lost_connection(speaker: Speaker, single: Cluster) -> None:
    with pytest.raises(OTHERS) as refused:
        await speaker.fetch("SELECT * FROM absent")
    assert refusal(refused.value, speaker) == "42P01"
    assert await speaker.fetchval("SELECT 1") == 1

    asking = asyncio.ensure_future(speaker.fetchval("SELECT pg_sleep(60)"))
    pid = speaker.get_server_pid()
    await until(
        lambda: asyncio.to_thread(
            single.sql, "a", f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"
        )
    )
    await asyncio.to_thread(single.sql, "a", "SELECT pg_terminate_backend($1)", pid)
    with pytest.raises(OTHERS) as lost:
        await asking
    assert refusal(lost.value, speaker) is None
    assert speaker.is_closed()


async def test_one_that_the_server_has_ended_while_nobody_asked_is_closed(speaker: Speaker, single: Cluster) -> None:
    assert not speaker.is_closed()

    await asyncio.to_thread(single.sql, "a", "SELECT pg_terminate_backend($1)", speaker.get_server_pid())

    await until(speaker.is_closed)


async def test_who_waits_on_one_that_is_terminated_is_woken(speaker: Speaker, single: Cluster) -> None:
    asking = asyncio.ensure_future(speaker.fetchval("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.05)

    speaker.terminate()

    async with asyncio.timeout(SLACK):
        with pytest.raises(OTHERS) as raised:
            await asking
    assert refusal(raised.value, speaker) is None
    assert speaker.is_closed()
    speaker.terminate()


# ---------------------------------------------------------------------- time


async def test_a_statement_in_a_black_hole_ends_within_its_limit(
    speak: Callable[..., Awaitable[Speaker]], wire: Wire
) -> None:
    speaker = await speak(wire.port)
    wire.mute()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        await speaker.fetchval("SELECT 1", timeout=LIMIT)

    assert LIMIT * 0.9 <= time.monotonic() - began < LIMIT + SLACK


async def test_a_statement_without_a_limit_of_its_own_has_the_dials(
    speak: Callable[..., Awaitable[Speaker]], wire: Wire
) -> None:
    speaker = await speak(wire.port, timeout=2.0)
    wire.mute()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        await speaker.fetchval("SELECT 1")

    assert 1.8 <= time.monotonic() - began < 2 + SLACK


async def test_a_dial_into_a_black_hole_ends_within_its_limit(driver: str, wire: Wire) -> None:
    wire.mute()
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        await dialer(driver, wire.port).control(timeout=LIMIT)

    assert LIMIT * 0.9 <= time.monotonic() - began < LIMIT + SLACK


async def test_a_question_that_is_cancelled_in_a_black_hole_ends_at_once(driver: str, wire: Wire) -> None:
    control = OwnControl("a", dialer(driver, wire.port).control, clock=time.monotonic)
    await control.dial(10.0)
    wire.mute()
    asking = asyncio.ensure_future(control.ask(60.0))
    await asyncio.sleep(0.05)
    began = time.monotonic()

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert time.monotonic() - began < SLACK
    assert not control.alive
    assert wire.cancels == 0
    control.drop()


# ---------------------------------------------------------------------- notices


RAISE = "DO $$ BEGIN RAISE NOTICE 'listen'; END $$"


async def test_notices_are_heard_with_the_function_that_said_them(speaker: Speaker) -> None:
    heard: list[tuple[Any, Any]] = []

    def hear(con: Any, notice: Any) -> None:
        heard.append((con, notice.server_source_function))

    speaker.add_log_listener(hear)
    await speaker.execute(RAISE)
    await asyncio.sleep(0)  # asyncpg tells in the next turn of the loop
    assert heard == [(speaker, "exec_stmt_raise")]

    speaker.remove_log_listener(hear)
    await speaker.execute(RAISE)
    await asyncio.sleep(0)
    assert len(heard) == 1


# ---------------------------------------------------------------------- claims, marks


def registry_of(driver: str, port: int) -> Registry:
    return Registry("a", dialer(driver, port).registry, lambda _: None, clock=time.monotonic)


def token_now() -> UUID:
    return new_token(time.time(), secrets.randbits(74))


@pytest.mark.usefixtures("schema")
async def test_a_claim_tells_what_became_of_a_write(driver: str, single: Cluster) -> None:
    registry = registry_of(driver, single.primary.port)
    written, absent = token_now(), token_now()
    await asyncio.to_thread(single.sql, "a", f"INSERT INTO dbguard.token (token) VALUES ('{written}')")

    assert await registry.claim(written, NOBODY, 30.0)
    assert not await registry.claim(absent, NOBODY, 30.0)
    assert not await registry.claim(absent, NOBODY, 30.0)
    await asyncio.to_thread(single.sql, "a", f"UPDATE dbguard.horizon SET token = '{token_now()}'")
    with pytest.raises(TooOld):
        await registry.claim(absent, NOBODY, 30.0)
    registry.close()


OWN = "SELECT pid, extract(epoch FROM backend_start)::float8 FROM pg_stat_activity WHERE pid = pg_backend_pid()"


@pytest.mark.usefixtures("schema")
async def test_a_write_that_holds_up_the_claim_is_ended(driver: str, speaker: Speaker, single: Cluster) -> None:
    registry = registry_of(driver, single.primary.port)
    token = token_now()
    own = tuple(await speaker.fetchrow(OWN))
    await speaker.execute("BEGIN")
    await speaker.execute(f"INSERT INTO dbguard.token (token) VALUES ('{token}')")

    async with asyncio.timeout(60):
        assert not await registry.claim(token, own, 30.0)

    await until(speaker.is_closed)
    registry.close()


@pytest.mark.usefixtures("schema")
async def test_reigns_are_marked_and_their_marks_told(driver: str, single: Cluster) -> None:
    control = OwnControl(
        "a", dialer(driver, single.primary.port).control, clock=time.monotonic, marks=Marks(clock=time.monotonic)
    )
    seen = await control.dial(10.0)
    assert seen.timeline is not None
    assert seen.marked is not None
    assert not seen.marked.mark

    mark = secrets.token_hex(16)
    assert await control.mark(seen.timeline, mark, 10.0) is None

    marked = (await control.ask(10.0)).marked
    assert marked is not None
    assert (marked.timeline, marked.mark) == (seen.timeline, mark)
    control.drop()


async def test_a_server_without_the_table_of_marks_is_asked_all_the_same(driver: str, single: Cluster) -> None:
    control = OwnControl(
        "a", dialer(driver, single.primary.port).control, clock=time.monotonic, marks=Marks(clock=time.monotonic)
    )

    seen = await control.dial(10.0)

    assert seen.role is Role.PRIMARY
    assert "dbguard outcome install" in (seen.unmarked or "")
    assert "dbguard outcome install" in (await control.mark(1, secrets.token_hex(16), 10.0) or "")
    assert control.alive
    control.drop()


@pytest.fixture(scope="module")
def frozen(binaries: Binaries) -> Iterator[Cluster]:
    """A primary whose only, synchronous, standby does not answer."""
    with Cluster(binaries=binaries, replicas=1, synchronous=True) as cluster:
        cluster.freeze("b")
        yield cluster
        cluster.thaw("b")


async def test_a_claim_that_no_standby_has_is_no_answer(driver: str, frozen: Cluster) -> None:
    await install(frozen)
    registry = registry_of(driver, frozen.primary.port)
    claiming = asyncio.ensure_future(registry.claim(token_now(), NOBODY, 10.0))
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    (pid,) = (await until(lambda: asyncio.to_thread(frozen.sql, "a", waits)))[0]

    await asyncio.to_thread(frozen.sql, "a", "SELECT pg_cancel_backend($1)", pid)

    with pytest.raises(NotReplicated):
        await claiming
    registry.close()
