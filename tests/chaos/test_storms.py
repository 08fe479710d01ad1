"""Storms: a node without room, reads that recovery ends, a table that changes, calls that are given up."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self

import asyncpg
import pytest

from chaos.application import Application
from chaos.clients.base import CLIENTS_NAME, Client, Place
from chaos.faults import Cancel, Conflict, Connections, Ddl
from chaos.history import Kind, Outcome
from chaos.interruptions import Interruptible, Storm
from chaos.stage import Stage
from dbguard.testing.proxied import ProxiedCluster
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from chaos.faults import Breakage
    from dbguard.testing.binaries import Binaries

pytestmark = pytest.mark.chaos

TABLE = "chaos_stormy"
SHAPE = """
    SELECT attname::text, atttypid::regtype::text FROM pg_attribute
    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
    UNION ALL SELECT indexrelid::regclass::text, 'index' FROM pg_index WHERE indrelid = $1::text::regclass
"""
RUTHLESS = (
    "SELECT current_setting('max_standby_streaming_delay') = '0' AND current_setting('hot_standby_feedback') = 'off'"
)


@pytest.fixture(scope="module")
def shared(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(replicas=1, binaries=binaries) as cluster:
        cluster.sql("a", f"CREATE TABLE {TABLE} (key bigint, items bigint[])")
        cluster.sql("a", f"INSERT INTO {TABLE} SELECT n, ARRAY[n] FROM generate_series(1, 100) AS n")
        cluster.wait_for("b", f"SELECT count(*) = 100 FROM {TABLE}")
        yield cluster


@pytest.fixture
async def stage(shared: ProxiedCluster) -> Stage:
    return Stage(shared, application=Application(asyncio.get_running_loop(), TABLE))


@contextlib.asynccontextmanager
async def broken(fault: Breakage, stage: Stage) -> AsyncIterator[None]:
    with contextlib.ExitStack() as healing:
        await asyncio.to_thread(lambda: healing.enter_context(fault.inject(stage)))
        try:
            yield
        finally:
            await asyncio.to_thread(healing.close)


async def shown(fault: Breakage, stage: Stage) -> str:
    return str(await until(lambda: asyncio.to_thread(fault.effect, stage)))


async def dial(stage: Stage, node: str, name: str = CLIENTS_NAME) -> asyncpg.Connection[Any]:
    at = stage.cluster.node(node)
    settings = {"application_name": name}
    return await asyncpg.connect(
        host=at.host, port=at.port, user="postgres", database="postgres", ssl=False, server_settings=settings
    )


async def test_full_node_has_ended_the_clients_sessions_and_takes_no_other(stage: Stage) -> None:
    client = await dial(stage, "b")
    fault = Connections(node="replica")

    async with broken(fault, stage):
        await until(client.is_closed)
        assert await shown(fault, stage) == "53300"
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await dial(stage, "b")
        (await dial(stage, "a")).terminate()

    again = await until(lambda: _admitted(stage, "b"))
    assert await again.fetchval("SELECT 1") == 1
    again.terminate()
    await until(lambda: asyncio.to_thread(lambda: fault.effect(stage) is None))  # the others end in a moment, too


async def _admitted(stage: Stage, node: str) -> asyncpg.Connection[Any] | None:
    with contextlib.suppress(asyncpg.TooManyConnectionsError):  # sessions that were closed end in a moment
        return await dial(stage, node)
    return None


async def test_recovery_ends_reads_on_the_replica_and_is_as_patient_as_before_afterwards(stage: Stage) -> None:
    fault = Conflict()
    reader = await dial(stage, "b")

    async with broken(fault, stage):
        assert stage.cluster.sql("b", RUTHLESS) == [(True,)]
        with pytest.raises(asyncpg.SerializationError, match="conflict with recovery"):
            await reader.execute(f"SELECT pg_sleep(30) FROM {TABLE} LIMIT 1")
        assert "reads ended" in await shown(fault, stage)

    reader.terminate()
    stage.cluster.wait_for("b", f"SELECT NOT ({RUTHLESS})")
    assert sorted(stage.cluster.sql("a", f"SELECT key FROM {TABLE}")) == [(n,) for n in range(1, 101)]


@pytest.mark.parametrize("what", ["column", "type", "index"])
async def test_table_changes_again_and_again_and_is_as_it_was_afterwards(stage: Stage, what: Any) -> None:
    fault = Ddl(what=what)
    before = stage.cluster.sql("a", SHAPE, TABLE)
    rows = stage.cluster.sql("a", f"SELECT * FROM {TABLE} ORDER BY key")
    changed = (
        "SELECT max(xmin::text::bigint) FROM (SELECT xmin FROM pg_attribute UNION ALL SELECT xmin FROM pg_index) AS c"
    )
    ((first,),) = stage.cluster.sql("a", changed)

    async with broken(fault, stage):
        assert "changed" in await shown(fault, stage)
        await until(
            lambda: asyncio.to_thread(stage.cluster.sql, "a", f"{changed} HAVING max(xmin::text::bigint) > $1", first)
        )

    assert stage.cluster.sql("a", SHAPE, TABLE) == before
    assert stage.cluster.sql("a", f"SELECT * FROM {TABLE} ORDER BY key") == rows


# --- calls that are given up


class Slow(Client):
    """A client whose calls take as long as they are given, and which notes how they ended."""

    takes_tokens = False

    def __init__(self) -> None:
        super().__init__(Place(addresses={}, size=1, guard={}, tell=lambda _: None))
        self.given: list[float] = []
        self.cancelled = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *ended: object) -> None:
        pass

    def context(self) -> Any:
        return nullcontext()

    async def call(self, kind: Kind, query: str, args: Any, timeout: float) -> Any:
        self.given.append(timeout)
        try:
            await asyncio.sleep(timeout)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise TimeoutError(f"{timeout:g} s are over")

    async def fetch(self, query: str, args: Any, timeout: float) -> Any:
        return await self.call(Kind.READ, query, args, timeout)

    async def transaction(self, work: Any, *, isolation: str | None, timeout: float) -> Any:
        return await self.call(Kind.APPEND, "", (), timeout)

    async def copy(self, table: str, columns: Any, records: Any, timeout: float) -> int:
        return int(await self.call(Kind.APPEND, "", (), timeout))

    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        return Outcome.RESULT_LOST

    def leases(self) -> int:
        return 0


class InThreads(Slow):
    """The same, whose calls go on when they are cancelled."""

    cancellable = False


CALLS = {
    "call": (Kind.APPEND, lambda client, seconds: client.call(Kind.APPEND, "", (), seconds)),
    "fetch": (Kind.READ, lambda client, seconds: client.fetch("", (), seconds)),
    "transaction": (Kind.APPEND, lambda client, seconds: client.transaction(None, isolation=None, timeout=seconds)),
    "copy": (Kind.APPEND, lambda client, seconds: client.copy("", (), (), seconds)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_call_in_a_storm_is_cancelled_and_its_caller_told_nothing(name: str) -> None:
    inner = Slow()
    client = Interruptible(inner)
    client.storm = Storm(1.0, 0.05, random.Random(1))
    kind, call = CALLS[name]

    with pytest.raises(Exception, match="cancelled after") as given_up:
        await call(client, 30)

    assert inner.cancelled == 1
    assert client.outcome_of(kind, given_up.value) is (Outcome.FAILED if kind is Kind.READ else Outcome.UNKNOWN)
    assert client.outcome_of(kind, OSError()) is Outcome.RESULT_LOST


async def test_call_that_cannot_be_cancelled_gets_little_time() -> None:
    inner = InThreads()
    client = Interruptible(inner)
    client.storm = Storm(1.0, 0.05, random.Random(1))

    with pytest.raises(TimeoutError):
        await client.call(Kind.READ, "", (), 30)

    assert inner.cancelled == 0
    assert 0 < inner.given[0] <= 0.05


async def test_storm_gives_up_its_share_and_nothing_once_it_is_over(stage: Stage) -> None:
    inner = InThreads()
    calls = Interruptible(inner)
    stage = Stage(stage.cluster, application=Application(asyncio.get_running_loop(), TABLE, calls=calls))
    storm = Cancel(share=0.5, within=0.01)

    async with broken(storm, stage):
        assert storm.effect(stage) is None
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                await calls.call(Kind.READ, "", (), 0.011)
        assert storm.effect(stage) == f"{calls.given_up} calls given up"
    during = sum(given < 0.011 for given in inner.given)
    with pytest.raises(TimeoutError):
        await calls.call(Kind.READ, "", (), 0.011)

    assert 60 <= during <= 140
    assert inner.given[-1] == 0.011


@pytest.mark.parametrize("kind", [Slow, InThreads])
async def test_call_that_was_given_up_tells_how_long_it_went_on(kind: type[Slow]) -> None:
    class Deaf(kind):  # type: ignore[valid-type,misc]
        async def call(self, *args: Any) -> Any:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await super().call(*args)
            await asyncio.sleep(0.2)

    told: list[Any] = []
    inner = Deaf()
    inner.place = Place(addresses={}, size=1, guard={}, tell=told.append)
    client = Interruptible(inner)
    await client.call(Kind.READ, "", (), 0.01)
    assert told == []
    client.storm = Storm(1.0, 0.05, random.Random(1))

    await client.call(Kind.READ, "", (), 30)

    (event,) = told
    assert event["event"] == "CallGivenUp"
    assert event["late"] >= 0.19
    assert client.given_up == 1


async def test_call_that_ends_as_cancelled_before_the_storm_cancelled_it_is_none_of_its_own() -> None:
    class Quitter(Slow):
        async def call(self, *_: Any) -> Any:
            raise asyncio.CancelledError

    client = Interruptible(Quitter())
    client.storm = Storm(1.0, 1_000.0, random.Random(1))

    with pytest.raises(asyncio.CancelledError):
        await client.call(Kind.APPEND, "", (), 30)
    assert client.given_up == 0


async def test_end_of_the_caller_itself_is_no_storm() -> None:
    inner = Slow()
    client = Interruptible(inner)
    client.storm = Storm(1.0, 1_000.0, random.Random(1))
    calling = asyncio.create_task(client.call(Kind.APPEND, "", (), 30))
    await until(lambda: inner.given)

    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling

    assert inner.cancelled == 1
