"""RULES 2.1: a call is cancelled at every await, one by one; nothing is left out, and no cancel request is sent.

A `Cancelled` run drives the call's coroutine by hand inside a task and cancels that task at its n-th suspension: while the
answer is awaited, or just as it has come. For every n: CancelledError comes out at once, without another await; no lease
is out, no task is left, the pool's places are all free, and the wire has seen no CancelRequest.
"""

from __future__ import annotations

import asyncio
import io
import os
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from tests.drivers.conftest import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator
    from pathlib import Path

    from dbguard.testing.cluster import Cluster
    from tests.drivers.conftest import Wire

Scenario = "Callable[[dbguard.Guard, str, Path], Awaitable[Any]]"
ROWS = [(number, str(number)) for number in range(10, 400)]
BIG = b"".join(b"%d\t%s\n" % (number, b"x" * 1000) for number in range(10, 1500))


class Cancelled:
    """Runs *work*, and cancels its task at suspension *at* (0: never).

    answered: not while it waits, but when what it waits for has just come.
    suspended: how often it was suspended. after: how often again once it was cancelled.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, *, answered: bool) -> None:
        self._work = work
        self._at = at
        self._answered = answered
        self.suspended = 0
        self.after = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        thrown = False
        while True:
            try:
                waits_for = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration as end:
                return end.value
            self.suspended += 1
            self.after += thrown
            if self.suspended == self._at:
                if self._answered and waits_for is not None:
                    waits_for.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            try:
                yield waits_for
                error = None
            except BaseException as raised:  # noqa: BLE001  handed on to the coroutine
                error, thrown = raised, True


async def run(work: Awaitable[Any], at: int = 0, *, answered: bool = False) -> Cancelled:
    """Run *work* in a task of its own."""

    async def main() -> None:
        await work

    cancelled = Cancelled(main(), at, answered=answered)

    async def task() -> None:
        await cancelled

    result = (await asyncio.gather(task(), return_exceptions=True))[0]
    if at:
        assert result is None or isinstance(result, asyncio.CancelledError), repr(result)
        assert cancelled.after == 0, f"cancelled at {at}, it was suspended {cancelled.after} times more"
    else:
        assert result is None, repr(result)
    return cancelled


# ---------------------------------------------------------------------- what is cancelled


async def execute(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.execute(f"UPDATE {t} SET name = 'x'")


async def execute_with_arguments(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.execute(f"UPDATE {t} SET name = $1 WHERE id = $2", "x", 1)


async def fetch(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.fetch(f"SELECT * FROM {t} WHERE id > $1", 0)


async def executemany(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.executemany(f"INSERT INTO {t} VALUES ($1, $2) ON CONFLICT DO NOTHING", ROWS)


async def fetchmany(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.fetchmany(f"UPDATE {t} SET name = $2 WHERE id = $1 RETURNING id", ROWS)


async def copy_to_a_path(guard: dbguard.Guard, t: str, path: Path) -> None:
    await guard.copy_from_table(t, output=path / "out")


async def copy_to_a_file(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_from_query(f"SELECT * FROM {t}", output=io.BytesIO())


async def copy_to_a_function(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def slow(chunk: bytes) -> None:
        await asyncio.sleep(0)

    await guard.copy_from_query(f"SELECT * FROM {t} WHERE id > $1", 0, output=slow)


async def copy_from_a_path(guard: dbguard.Guard, t: str, path: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=path / "in")


async def copy_from_a_text_path(guard: dbguard.Guard, t: str, path: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=os.fspath(path / "in"))


async def copy_from_a_file(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=io.BytesIO(BIG))


async def copy_from_an_iterator(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(BIG), 400_000):
            await asyncio.sleep(0)
            yield BIG[start : start + 400_000]

    await guard.copy_to_table(f"{t}_copy", source=chunks())


async def copy_from_a_buffer(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_to_table(f"{t}_copy", source=bytearray(BIG))


async def copy_records(guard: dbguard.Guard, t: str, _: Path) -> None:
    await guard.copy_records_to_table(f"{t}_copy", records=[(number, "x" * 3000) for number in range(400)])


async def copy_records_of_an_iterator(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def records() -> AsyncIterator[tuple[int, str]]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number, "x"

    await guard.copy_records_to_table(f"{t}_copy", records=records())


async def block(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.transaction() as con:
        await con.execute(f"UPDATE {t} SET name = 'x'")


async def block_within_a_block(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.acquire() as con, con.transaction():
        await con.execute(f"UPDATE {t} SET name = 'x'")
        async with con.transaction():
            await con.execute(f"UPDATE {t} SET name = 'y'")


async def function(guard: dbguard.Guard, t: str, _: Path) -> None:
    async def rename(con: dbguard.Connection) -> None:
        await con.execute(f"UPDATE {t} SET name = $1", "x")

    await guard.run_in_transaction(rename)


async def copy_in_a_block(guard: dbguard.Guard, t: str, path: Path) -> None:
    async with guard.transaction() as con:
        await con.copy_to_table(f"{t}_copy", source=path / "in")
        await con.copy_from_table(t, output=path / "out")


async def cursor_in_a_block(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.transaction() as con:
        async for _row in con.cursor("SELECT generate_series(1, $1)", 120):
            pass
        cursor = await con.cursor(f"UPDATE {t} SET name = 'x' RETURNING id")
        await cursor.fetch(1)
        await cursor.forward(1)


async def prepared_statement(guard: dbguard.Guard, t: str, _: Path) -> None:
    async with guard.acquire() as con:
        statement = await con.prepare(f"UPDATE {t} SET name = $1 RETURNING id")
        await statement.fetch("x")
        await statement.executemany([("x",), ("y",)])


SCENARIOS = [
    execute,
    execute_with_arguments,
    fetch,
    executemany,
    fetchmany,
    copy_to_a_path,
    copy_to_a_file,
    copy_to_a_function,
    copy_from_a_path,
    copy_from_a_text_path,
    copy_from_a_file,
    copy_from_an_iterator,
    copy_from_a_buffer,
    copy_records,
    copy_records_of_an_iterator,
    block,
    block_within_a_block,
    function,
    copy_in_a_block,
    cursor_in_a_block,
    prepared_statement,
]


@pytest.fixture
def files(tmp_path: Path, table: str, single: Cluster) -> Path:
    (tmp_path / "in").write_bytes(BIG)
    single.sql("a", f"CREATE TABLE {table}_copy (id int, name text)")
    single.sql("a", f"INSERT INTO {table} SELECT n, repeat('x', 500) FROM generate_series(10, 400) n")
    return tmp_path


@pytest.fixture(params=["own", "wrapped"])
async def guard(request: pytest.FixtureRequest, wire: Wire, open_guard: Any) -> AsyncIterator[dbguard.Guard]:
    if request.param == "own":
        yield await open_guard(wire.port, min_size=1, max_size=2)
        return
    pool = await asyncpg.create_pool(
        host="127.0.0.1", port=wire.port, user="postgres", database="postgres", min_size=1, max_size=3
    )
    async with dbguard.Guard.wrap(pool) as wrapped:
        yield wrapped
    pool.terminate()


def left(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """The tasks that are there now and were not before; the wire's own do not count."""
    return [task for task in asyncio.all_tasks() - tasks if not task.get_coro().__qualname__.startswith("Wire.")]


async def settled(guard: dbguard.Guard, tasks: set[asyncio.Task[Any]]) -> None:
    """Nothing is out, nothing is left, and every place of the pool can be had."""
    assert [node.in_use for node in guard.status().nodes] == [0]
    await until(lambda: not left(tasks))
    async with guard.acquire(timeout=5) as one, guard.acquire(timeout=5) as other:
        assert await one.fetchval("SELECT 1") == await other.fetchval("SELECT 1")
    await until(lambda: not left(tasks))


@pytest.mark.parametrize("answered", [False, True], ids=["waiting", "answered"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_a_call_is_cancelled_at_every_await_and_leaves_nothing(
    scenario: Any, guard: dbguard.Guard, wire: Wire, table: str, files: Path, *, answered: bool
) -> None:
    await run(scenario(guard, table, files))
    await until(lambda: guard.get_idle_size() == guard.get_size())
    tasks = asyncio.all_tasks()
    at = 0
    while True:
        at += 1
        ran = await run(scenario(guard, table, files), at, answered=answered)
        if ran.suspended < at:
            break
        await settled(guard, tasks)
    assert at > 1
    assert wire.cancels == 0


# ---------------------------------------------------------------------- the call's time is over

WRITES = (
    execute,
    execute_with_arguments,
    executemany,
    fetchmany,
    copy_from_a_path,
    copy_from_an_iterator,
    copy_records,
)
READS = (fetch, copy_to_a_path, copy_to_a_function)


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
    assert took < 3.0  # well below the 20 s that an unwatched call would take
    await guard.ready()
    assert await guard.fetchval("SELECT 1") == 1
    assert [node.in_use for node in guard.status().nodes] == [0]
    assert wire.cancels == 0


@pytest.mark.parametrize("by", ["the guard", "the application"])
async def test_a_commit_out_of_time_is_unknown_and_not_cancelled(
    by: str, guard: dbguard.Guard, wire: Wire, table: str, single: Cluster
) -> None:
    limited = guard.using(timeout=0.3) if by == "the guard" else guard

    async def call() -> None:
        async with asyncio.timeout(0.3 if by == "the application" else None), limited.transaction() as con:
            await con.execute(f"INSERT INTO {table} VALUES (3, 'three')")
            wire.mute()

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
    assert took < 3.0
    await guard.ready()
    assert await guard.fetchval(f"SELECT count(*) FROM {table} WHERE id = 3") == 0
    assert wire.cancels == 0


async def test_a_limit_of_the_drivers_own_sends_no_cancel_request(wire: Wire, open_guard: Any, table: str) -> None:
    guard = await open_guard(wire.port, min_size=1, max_size=2, command_timeout=0.3)
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
    await asyncio.wait([call], timeout=5)
    took = loop.time() - began
    wire.unstall()

    assert took < 3.0
    assert call.cancelled() if how == "cancelled" else isinstance(call.exception(), dbguard.OutcomeUnknown)
    assert wire.cancels == 0
