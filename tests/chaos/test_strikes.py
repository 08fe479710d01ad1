"""Strikes: connections are broken at one statement, whatever driver sends it, and nothing else is touched."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, get_args

import asyncpg
import psycopg
import pytest

from chaos.application import Application
from chaos.faults import Strike
from chaos.faults.strikes import What, met
from chaos.stage import Stage
from dbguard.drivers import outcome_sql
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from dbguard.testing.wire import Wire
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos

TABLE = "chaos_struck"
INSERT = f"INSERT INTO {TABLE} (key, n) VALUES (1, %s)"


@pytest.fixture(scope="module")
def shared(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(replicas=0, binaries=binaries) as cluster:
        cluster.sql("a", f"CREATE TABLE {TABLE} (key bigint, n bigint)")
        yield cluster


@pytest.fixture
async def stage(shared: ProxiedCluster) -> AsyncIterator[Stage]:
    shared.sql("a", f"DELETE FROM {TABLE}")
    link = shared.link(APPLICATION, "a")
    async with Wire(link.host, link.port) as wire:
        yield Stage(shared, application=Application(asyncio.get_running_loop(), TABLE, {"a": wire}))


class Asyncpg:
    """A connection of asyncpg's through the wire, on which everything is prepared."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> None:
        self.con = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user="postgres", database="postgres", ssl=False
        )
        await self.write(0)
        await self.read()

    async def write(self, n: int) -> None:
        await self.con.execute(INSERT.replace("%s", "$1"), n)

    async def block(self, n: int) -> None:
        async with self.con.transaction():
            await self.write(n)

    async def copy(self, n: int) -> None:
        await self.con.copy_records_to_table(TABLE, columns=["key", "n"], records=[(1, n)])

    async def read(self) -> None:
        await self.con.fetchval(f"SELECT count(*) FROM {TABLE}")

    async def close(self) -> None:
        self.con.terminate()


class Psycopg:
    """The same of psycopg's, which prepares what it has run five times, under a name of its own."""

    def __init__(self, port: int) -> None:
        self.dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable"

    async def open(self) -> None:
        self.con = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        for _ in range(7):
            await self.write(0)
            await self.read()

    async def write(self, n: int) -> None:
        await self.con.execute(INSERT, (n,))

    async def block(self, n: int) -> None:
        async with self.con.transaction():
            await self.write(n)

    async def copy(self, n: int) -> None:
        async with (
            self.con.cursor() as cursor,
            cursor.copy(f"COPY {TABLE} (key, n) FROM STDIN") as copy,
        ):
            await copy.write_row((1, n))

    async def read(self) -> None:
        await self.con.execute(f"SELECT count(*) FROM {TABLE}")

    async def close(self) -> None:
        await self.con.close()


LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, psycopg.Error)


@pytest.fixture(params=[Asyncpg, Psycopg])
async def client(request: pytest.FixtureRequest, stage: Stage) -> AsyncIterator[Any]:
    client = request.param(stage.application.wires["a"].port)
    await client.open()
    yield client
    await client.close()


@contextlib.asynccontextmanager
async def struck(stage: Stage, **fields: Any) -> AsyncIterator[Strike]:
    """Strike as a run does: from a thread."""
    strike = Strike(**fields)
    with contextlib.ExitStack() as healing:
        said = await asyncio.to_thread(lambda: healing.enter_context(strike.inject(stage)))
        assert said == f"{strike.how} at {strike.what} to a"
        try:
            yield strike
        finally:
            await asyncio.to_thread(healing.close)


def rows(stage: Stage, n: int) -> int:
    return int(stage.cluster.sql("a", f"SELECT count(*) FROM {TABLE} WHERE n = $1", n)[0][0])


@pytest.mark.parametrize(("what", "way"), [("write", "write"), ("write", "copy"), ("commit", "block")])
@pytest.mark.parametrize(("how", "applied"), [("request-cut", 0), ("ack-cut", 1)])
async def test_strike_cuts_before_or_behind_what_it_waits_for(
    stage: Stage, client: Any, what: str, way: str, how: str, applied: int
) -> None:
    async with struck(stage, what=what, how=how) as strike:
        await client.read()
        assert strike.effect(stage) is None

        with pytest.raises(LOST):
            await getattr(client, way)(7)

        assert strike.effect(stage) == "1 struck"
    assert await asyncio.to_thread(rows, stage, 7) == applied


async def test_strike_leaves_alone_what_it_does_not_wait_for(stage: Stage, client: Any) -> None:
    async with struck(stage, what="commit", how="ack-cut"), struck(stage, what="claim", how="ack-cut"):
        await client.write(3)
        await client.read()
    async with struck(stage, what="write", how="ack-cut", skip=1, requests=1):
        await client.write(4)
        with pytest.raises(LOST):
            await client.write(5)

    await client.close()
    await client.open()
    await client.block(6)  # no strike is left
    assert await asyncio.to_thread(lambda: [rows(stage, n) for n in (3, 4, 5, 6)]) == [1, 1, 1, 1]


async def test_statement_that_is_late_arrives_when_it_is_healed(stage: Stage, client: Any) -> None:
    async with struck(stage, what="commit", how="late"):
        with pytest.raises(LOST):
            await client.block(8)
        assert await asyncio.to_thread(rows, stage, 8) == 0

    await until(lambda: rows(stage, 8) == 1)


@pytest.mark.parametrize(("how", "applied"), [("request-hole", 0), ("ack-hole", 1)])
async def test_hole_stays_open_until_it_is_healed(stage: Stage, client: Any, how: str, applied: int) -> None:
    async with struck(stage, what="write", how=how) as strike:
        writing = asyncio.create_task(client.write(9))
        await until(lambda: strike.effect(stage) is not None)
        assert not writing.done()

    with pytest.raises(LOST):
        await writing
    await until(lambda: rows(stage, 9) == applied)


WHAT: tuple[What, ...] = get_args(What)


def test_claims_are_told_from_writes() -> None:
    token = "00000000-0000-7000-8000-000000000000"
    horizon, claim = outcome_sql.CLAIM_HORIZON, outcome_sql.CLAIM
    asked = (outcome_sql.CLAIM_BEGIN, horizon, claim, "COMMIT")
    wrote = ("BEGIN;", INSERT, outcome_sql.joined(token, direct=True, always=False))  # type: ignore[arg-type]
    carried = f"WITH {outcome_sql.cte_item('$2')} {INSERT}"

    assert [what for what in WHAT if met(what, asked, TABLE)] == ["claim"]
    assert [what for what in WHAT if met(what, wrote, TABLE)] == ["commit", "outcome"]
    assert [what for what in WHAT if met(what, wrote[:2], TABLE)] == ["write"]
    assert [what for what in WHAT if met(what, (carried,), TABLE)] == ["write", "outcome"]
    assert [what for what in WHAT if met(what, (f"BEGIN; {INSERT}",), TABLE)] == ["write"]
    assert not met("claim", asked[:-1], TABLE)
    assert not met("commit", ("BEGIN", f"SELECT * FROM {TABLE}", "COMMIT"), TABLE)
    assert not met("write", (f"INSERT INTO {TABLE}_of_others VALUES (1)",), TABLE)
