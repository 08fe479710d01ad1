"""No CancelRequest is ever sent: it would end a commit's wait for its standby, and acknowledge what no standby has.

Calls are cancelled, or their time is over, while the server works, while its answer is swallowed, and while it does not
read; each ends in time, and the wire has seen nothing but connections.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from tests.drivers import call_forms
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from dbguard.testing.cluster import Cluster
    from tests.drivers.conftest import Wire

APPLICATION = "doomed"


# ---------------------------------------------------------------------- the server is at work


async def slow_rows() -> AsyncIterator[tuple[int, str]]:
    for n in range(10**6):
        await asyncio.sleep(0.05)
        yield n, "x"


def ways(guard: Any, table: str, **limit: float) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Every way to wait for a server that takes its time."""

    async def with_connection(do: Callable[[Any], Awaitable[Any]]) -> None:
        async with guard.acquire() as con:
            await do(con)

    async def in_block(do: Callable[[Any], Awaitable[Any]]) -> None:
        async with guard.transaction() as tx:
            await do(tx)

    async def cursor(tx: Any) -> None:
        async for _ in tx.cursor("SELECT pg_sleep(30) FROM generate_series(1, 3)", **limit):
            pass

    async def prepared(con: Any) -> None:
        statement = await con.prepare("SELECT pg_sleep(30)")
        await statement.fetch(**limit)

    async def discard(_: bytes) -> None:
        await asyncio.sleep(0)

    sleep = "SELECT pg_sleep(30)"
    write = f"INSERT INTO {table} SELECT 9, 'x' FROM pg_sleep(30)"
    return {
        "fetch": lambda: guard.fetch(sleep, **limit),
        "fetchval": lambda: guard.fetchval(sleep, **limit),
        "fetchrow": lambda: guard.fetchrow(sleep, **limit),
        "fetchmany": lambda: guard.fetchmany(f"{sleep} WHERE $1 > 0", [(1,)], **limit),
        "execute": lambda: guard.execute(write, **limit),
        "execute-arguments": lambda: guard.execute(write + " WHERE $1 > 0", 1, **limit),
        "executemany": lambda: guard.executemany(write + " WHERE $1 > 0", [(1,)], **limit),
        "copy-from-query": lambda: guard.copy_from_query(sleep, output=discard, **limit),
        "copy-records": lambda: guard.copy_records_to_table(table, records=slow_rows(), **limit),
        "acquired-copy": lambda: with_connection(
            lambda con: con.copy_records_to_table(table, records=slow_rows(), **limit)
        ),
        "acquired": lambda: with_connection(lambda con: con.fetch(sleep, **limit)),
        "acquired-write": lambda: with_connection(lambda con: con.execute(write, **limit)),
        "block": lambda: in_block(lambda tx: tx.execute(write, **limit)),
        "cursor": lambda: in_block(cursor),
        "prepared": lambda: with_connection(prepared),
        "function": lambda: guard.run_in_transaction(lambda tx: tx.execute(write), **limit),
    }


@pytest.mark.parametrize("way", sorted(ways(None, "")))
@pytest.mark.parametrize("end", ["timeout", "cancel"])
async def test_no_cancel_request_is_sent_to_a_server_at_work(
    way: str, end: str, open_guard: Any, wire: Wire, single: Cluster, table: str
) -> None:
    guard = await open_guard(wire.port, server_settings={"application_name": APPLICATION})
    task = asyncio.ensure_future(ways(guard, table, **({"timeout": 0.2} if end == "timeout" else {}))[way]())
    asked = (
        f"SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
        " AND (wait_event = 'PgSleep' OR query LIKE 'COPY%')"
    )
    await until(lambda: asyncio.to_thread(lambda: single.sql("a", asked)[0][0] or task.done()))

    if end == "cancel":
        task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    # Whatever is sent after the call has ended would have been sent by now: a new connection comes through behind it.
    con = await asyncpg.connect(host="127.0.0.1", port=wire.port, user="postgres", database="postgres", ssl=False)
    await con.close()

    wanted = asyncio.CancelledError if end == "cancel" else (TimeoutError, asyncpg.PostgresConnectionError)
    assert isinstance(result, wanted)
    assert task.cancelling() == (end == "cancel")
    assert wire.opened >= 2
    assert wire.cancels == 0
    await asyncio.to_thread(single.terminate_backends, "a", where="wait_event = 'PgSleep'")


@pytest.mark.parametrize("how", ["call", "acquired"])
async def test_a_commands_timeout_sends_none_to_a_server_at_work_either(
    how: str, wire: Wire, open_guard: Any, single: Cluster
) -> None:
    guard = await open_guard(wire.port, config={"retry": {"attempts": 1}}, command_timeout=0.2)

    async def call() -> None:
        if how == "call":
            await guard.fetchval("SELECT pg_sleep(60)")
        async with guard.acquire() as con:
            await con.fetchval("SELECT pg_sleep(60)")

    with pytest.raises(TimeoutError):
        await call()

    con = await asyncpg.connect(host="127.0.0.1", port=wire.port, user="postgres", database="postgres", ssl=False)
    await con.close()
    assert wire.cancels == 0
    await asyncio.to_thread(single.terminate_backends, "a", where="wait_event = 'PgSleep'")


# ---------------------------------------------------------------------- its answer is swallowed

WRITES = (
    call_forms.execute,
    call_forms.execute_with_arguments,
    call_forms.executemany,
    call_forms.fetchmany,
    call_forms.copy_from_a_path,
    call_forms.copy_from_an_iterator,
    call_forms.copy_records,
)
READS = (call_forms.fetch, call_forms.copy_to_a_path, call_forms.copy_to_a_function)


@pytest.mark.parametrize("scenario", [*WRITES, *READS], ids=lambda scenario: scenario.__name__)
async def test_a_call_out_of_time_ends_in_time_without_a_cancel_request(
    scenario: Any, guard: dbguard.Guard, wire: Wire, table: str, files: Path
) -> None:
    await scenario(guard, table, files)
    loop = asyncio.get_running_loop()

    wire.mute()
    began = loop.time()
    with pytest.raises(TimeoutError) as raised:
        await scenario(guard.using(timeout=0.3), table, files)
    took = loop.time() - began
    wire.unmute()

    assert isinstance(raised.value, dbguard.OutcomeUnknown) == (scenario in WRITES)
    assert isinstance(raised.value, asyncpg.PostgresConnectionError)
    assert took < 10.0  # well below the 20 s that an unwatched call would take
    await guard.ready()
    assert await guard.fetchval("SELECT 1") == 1
    assert [node.in_use for node in guard.status().nodes] == [0]
    assert wire.cancels == 0


@pytest.mark.parametrize("by", ["the guard", "the application"])
async def test_a_commit_out_of_time_is_unknown_and_not_cancelled(
    by: str, guard: dbguard.Guard, wire: Wire, table: str, single: Cluster
) -> None:
    limited = guard.using(timeout=2.0) if by == "the guard" else guard  # all but the COMMIT is to be done by then

    async def call() -> None:
        async with asyncio.timeout(None) as limit, limited.transaction() as con:
            await con.execute(f"INSERT INTO {table} VALUES (3, 'three')")
            wire.mute()
            if by == "the application":
                limit.reschedule(asyncio.get_running_loop().time() + 0.3)

    with pytest.raises(TimeoutError) as raised:
        await call()
    wire.unmute()

    # Whoever cuts the call's time from outside gets what he asked for; the guard's own limit says what it knows.
    assert isinstance(raised.value, dbguard.OutcomeUnknown) == (by == "the guard")
    await guard.ready()
    assert await guard.fetchval(f"SELECT count(*) FROM {table} WHERE id = 3") == 1
    assert wire.cancels == 0


async def statement(con: dbguard.Connection, t: str) -> None:
    await con.execute(f"UPDATE {t} SET name = 'x'")


async def iteration(con: dbguard.Connection, t: str) -> None:
    async for _ in con.cursor(f"SELECT * FROM {t}"):
        pass


async def preparing(con: dbguard.Connection, t: str) -> None:
    await con.prepare(f"SELECT * FROM {t}")


@pytest.mark.parametrize("by", ["the guard", "the application"])
@pytest.mark.parametrize("use", [statement, iteration, preparing], ids=lambda use: use.__name__)
async def test_a_block_out_of_time_ends_at_once_and_nothing_of_it_is_committed(
    use: Any, by: str, guard: dbguard.Guard, wire: Wire, table: str
) -> None:
    loop = asyncio.get_running_loop()
    limited = guard.using(timeout=0.3) if by == "the guard" else guard

    async def call() -> None:
        async with limited.transaction() as con:
            await con.execute(f"INSERT INTO {table} VALUES (3, 'three')")
            wire.mute()
            async with asyncio.timeout(0.3 if by == "the application" else None):
                await use(con, table)

    began = loop.time()
    with pytest.raises(TimeoutError) as raised:
        await call()
    took = loop.time() - began
    wire.unmute()

    assert not isinstance(raised.value, dbguard.OutcomeUnknown)
    assert took < 10.0
    await guard.ready()
    assert await guard.fetchval(f"SELECT count(*) FROM {table} WHERE id = 3") == 0
    assert wire.cancels == 0


async def test_a_limit_of_the_drivers_own_sends_no_cancel_request(wire: Wire, open_guard: Any, table: str) -> None:
    guard = await open_guard(wire.port, min_size=1, max_size=2, command_timeout=1.5)
    await guard.execute(f"UPDATE {table} SET name = 'x'")

    wire.mute()
    with pytest.raises(dbguard.OutcomeUnknown):
        await guard.execute(f"UPDATE {table} SET name = 'y'")
    wire.unmute()

    assert wire.cancels == 0


@pytest.mark.parametrize("how", ["cancelled", "out of time"])
async def test_executemany_that_waits_for_the_server_to_read_ends_at_once(
    how: str, guard: dbguard.Guard, wire: Wire, table: str
) -> None:
    loop = asyncio.get_running_loop()
    rows = [(number, "x" * 100_000) for number in range(1000, 1200)]
    query = f"INSERT INTO {table} VALUES ($1, $2)"
    await guard.executemany(query, [(3, "x")])

    wire.stall()
    began = loop.time()
    call = asyncio.ensure_future(guard.executemany(query, rows, timeout=0.3 if how == "out of time" else 30))
    if how == "cancelled":
        loop.call_later(0.3, call.cancel)
    await asyncio.wait([call], timeout=20)
    took = loop.time() - began
    wire.unstall()

    assert took < 10.0
    assert call.cancelled() if how == "cancelled" else isinstance(call.exception(), dbguard.OutcomeUnknown)
    assert wire.cancels == 0
