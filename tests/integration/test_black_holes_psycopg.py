"""No call over psycopg hangs, in a task or a thread, wherever the hole opens; and no thread is left behind.

All forms of calls meet one hole at the same time: each comes to where it opens (before a dial, in mid-stream, between the
last statement and COMMIT), and goes on once it is there. `test_black_holes` has the same for asyncpg.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import dbguard
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from tests.integration.facades import kind_of, over_psycopg, waited, words_for, words_of
from tests.pg.colours import block, each, got
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from dbguard.testing.binaries import Binaries

act = asyncio.to_thread

LIMIT = 2.0
"""Seconds that each call has; the hole opens in the middle of them at the latest."""

TOO_LATE = 8.0
"""Seconds after that: far above what a machine adds that stands still for some of them, and below every limit of the driver's."""

LARGE = "SELECT repeat('x', 2000), pg_sleep(0.002) FROM generate_series(1, 100000)"
INSERT = "INSERT INTO written VALUES (1)"
TOLD = (dbguard.DbGuardError, TimeoutError, KeyError)
"""How calls may end; KeyError is the application's own."""

FORMS: dict[str, Callable[..., Any]] = {}


def form(function: Callable[..., Any]) -> Callable[..., Any]:
    FORMS[function.__name__] = function
    return function


# ---------------------------------------------------------------------- the forms, for both colours


@form
async def a_dial(guard: Any, reach: Callable[[], Any]) -> None:
    """No connection is at hand: each call waits for one at the same time."""
    await reach()
    await got(guard.execute(INSERT))


@form
async def a_read(guard: Any, reach: Callable[[], Any]) -> None:
    await reach()
    await got(guard.fetchall("SELECT 1"))


@form
async def a_large_result(guard: Any, reach: Callable[[], Any]) -> None:
    await reach(goes_on=True)
    await got(guard.execute(LARGE))


@form
async def a_function_at_its_commit(guard: Any, reach: Callable[[], Any]) -> None:
    if isinstance(guard, dbguard.SyncGuard):

        def fn(tx: Any) -> None:
            tx.execute(INSERT)
            reach.wait()

        guard.run_in_transaction(fn)
        return

    async def work(tx: Any) -> None:
        await tx.execute(INSERT)
        await reach()

    await guard.run_in_transaction(work)


@form
async def entering_a_block(guard: Any, reach: Callable[[], Any]) -> None:
    await reach()
    async with block(guard.transaction()):
        pass


@form
async def a_block_at_its_commit(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.transaction()) as tx:
        await got(tx.execute(INSERT))
        await reach()


@form
async def a_block_at_its_rollback(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.transaction()) as tx:
        await got(tx.execute(INSERT))
        await reach()
        raise KeyError


@form
async def a_statement_in_a_block(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.transaction()) as tx:
        await reach()
        await got(tx.execute(INSERT))


@form
async def a_connection_at_its_commit(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con:
        await got(con.execute(INSERT))
        await reach()


@form
async def a_connection_closed_by_hand(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con:
        await got(con.execute(INSERT))
        await reach()
        await got(con.commit())


@form
async def a_read_on_a_connection(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con:
        await reach()
        await got((await got(con.execute("SELECT 1"))).fetchone())


@form
async def copy_in(guard: Any, reach: Callable[[], Any]) -> None:
    async with (
        block(guard.connection()) as con,
        block(con.cursor()) as cursor,
        block(cursor.copy("COPY written FROM STDIN")) as copy,
    ):
        await reach()
        for _ in range(10_000):
            await got(copy.write(b"1\n" * 8_000))


@form
async def copy_out(guard: Any, reach: Callable[[], Any]) -> None:
    async with (
        block(guard.connection()) as con,
        block(con.cursor()) as cursor,
        block(cursor.copy(f"COPY ({LARGE}) TO STDOUT")) as copy,
    ):
        await reach()
        await each(copy)


@form
async def executemany(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con, block(con.cursor()) as cursor:
        await reach(goes_on=True)
        await got(cursor.executemany("INSERT INTO texts SELECT %s FROM pg_sleep(0.001)", [("x" * 1_000,)] * 20_000))


@form
async def a_cursor_of_the_server(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con, block(con.cursor(name="large")) as cursor:
        await got(cursor.execute("SELECT generate_series(1, 10000)"))
        await got(cursor.fetchmany(10))
        await reach()
        await got(cursor.fetchmany(10))


@form
async def a_stream(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con, block(con.cursor()) as cursor:
        await reach(goes_on=True)
        await each(cursor.stream(LARGE))


@form
async def a_pipeline(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con, block(con.pipeline()):
        await got(con.execute("SELECT 1"))
        await reach()
        await got((await got(con.execute("SELECT 2"))).fetchone())


@form
async def giving_back_which_resets(guard: Any, reach: Callable[[], Any]) -> None:
    async with block(guard.connection()) as con:
        await got(con.set_autocommit(True)) if hasattr(con, "set_autocommit") else setattr(con, "autocommit", True)
        await got(con.execute("SET application_name = 'touched'"))
        await reach()


# ---------------------------------------------------------------------- one hole for all of them


class Reach:
    """Where the hole opens: who comes to it waits until it has."""

    def __init__(self, event: Any) -> None:
        self.arrived = 0
        self._hole = event

    async def __call__(self, *, goes_on: bool = False) -> None:
        """Come there; *goes_on*: and go on."""
        self.arrived += 1
        if not goes_on:
            await got(self._hole.wait())

    def wait(self) -> None:
        """Come there, on a thread."""
        self.arrived += 1
        self._hole.wait()

    def open(self) -> None:
        self._hole.set()


@pytest.fixture(scope="module")
def proxied(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries, replicas=0) as cluster:
        cluster.sql("a", "CREATE TABLE written (id int)")
        cluster.sql("a", "CREATE TABLE texts (body text)")
        yield cluster


@pytest.fixture
async def opened(proxied: ProxiedCluster, facade: str) -> AsyncIterator[Callable[..., Any]]:
    """Open a guard that reaches the node through its proxy; closed at the end."""
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Any:
            link = proxied.link(APPLICATION, proxied.primary)
            node = {"name": "a", "host": link.host, "port": link.port}
            connection = {"user": "postgres", "database": "postgres"}
            guard = kind_of(facade)({"nodes": [node], "connection": connection, **options.pop("config", {})}, **options)
            await waited(guard.open)
            stack.push_async_callback(waited, guard.close, timeout=0.1)
            return guard

        yield make


@pytest.fixture
async def wrapped(proxied: ProxiedCluster, facade: str) -> AsyncIterator[Any]:
    """A guard over a pool of the application's: one connection of it is at hand, and there may be one more."""
    link = proxied.link(APPLICATION, proxied.primary)
    dsn = f"postgresql://postgres@{link.host}:{link.port}/postgres"
    kind = ConnectionPool if facade == "threads" else AsyncConnectionPool
    pool = kind(dsn, min_size=1, max_size=2, open=False)
    await waited(pool.open, wait=True)
    guard = kind_of(facade).wrap(pool)
    await waited(guard.open)
    yield guard
    await waited(guard.close, timeout=0.1)
    await waited(pool.close)


@pytest.fixture
async def hole(proxied: ProxiedCluster) -> AsyncIterator[Callable[[str], Any]]:
    """Open a hole of one kind; healed at the end."""
    async with AsyncExitStack() as stack:

        async def make(fault: str) -> None:
            if fault == "frozen":
                await act(proxied.freeze, proxied.primary)
                stack.push_async_callback(act, proxied.thaw, proxied.primary)
            else:
                toxic = await act(lambda: proxied.link(APPLICATION, "a").toxic("timeout", timeout=0))
                stack.push_async_callback(act, toxic.remove)

        yield make


async def timed(guard: Any, function: Callable[..., Any], reach: Reach, seen: dict[str, Any]) -> None:
    """Make a call that must end by `LIMIT`; note by how much it did not, and what it raised."""
    raised: BaseException | None = None
    ends = time.monotonic() + LIMIT
    try:
        with dbguard.deadline(LIMIT):
            await function(guard, reach)
    except Exception as error:  # noqa: BLE001  judged by the test
        raised = error
    seen[function.__name__] = (time.monotonic() - ends, raised)


@over_psycopg
@pytest.mark.parametrize("fault", ["replies", "frozen"])
async def test_no_call_hangs_in_a_black_hole(
    opened: Callable[..., Any], wrapped: Any, hole: Callable[[str], Any], facade: str, fault: str
) -> None:
    before = set(threading.enumerate())
    seen: dict[str, Any] = {}
    reach = Reach(words_for(facade).event())
    guard = await opened(max_size=len(FORMS) + 1)
    full = await opened(max_size=1)
    resets = await opened(max_size=1, reset=reset_of(facade, reach))
    words = words_of(guard)

    async def holds_the_only_one(guard: Any, reach: Reach) -> None:
        async with block(guard.connection()):
            await reach()

    async def waits_for_the_only_one(guard: Any, _: Reach) -> None:
        await got(guard.execute(INSERT))

    async def a_wrapped_pool_s(guard: Any, reach: Reach) -> None:
        async with block(guard.connection()) as con:
            await reach()
            await got(con.execute("SELECT 1"))

    async def a_wrapped_pool_s_checkout(guard: Any, _: Reach) -> None:
        await got(guard.execute(INSERT))

    async def another_of_them(guard: Any, _: Reach) -> None:
        await got(guard.execute(INSERT))

    async def waits_for_a_primary(guard: Any, _: Reach) -> None:
        await got(guard.execute(INSERT))

    async def a_reset(guard: Any, _: Reach) -> None:
        await got(guard.execute("SELECT 1"))

    begun = words.work(
        [
            *(timed(guard, function, reach, seen) for function in FORMS.values()),
            timed(full, holds_the_only_one, reach, seen),
            timed(resets, a_reset, reach, seen),
            timed(wrapped, a_wrapped_pool_s, reach, seen),
        ]
    )
    with suppress(TimeoutError):
        await until(lambda: reach.arrived >= len(FORMS) + 3, LIMIT / 2)
    await hole(fault)
    begun += words.work(
        [timed(full, waits_for_the_only_one, reach, seen)]
        + [timed(wrapped, call, reach, seen) for call in (a_wrapped_pool_s_checkout, another_of_them)]
    )
    reach.open()
    await until(lambda: guard.status().writes != "open")
    begun += words.work([timed(guard, waits_for_a_primary, reach, seen)])
    async with asyncio.timeout(LIMIT + 30):
        await asyncio.gather(*begun)

    assert len(seen) == len(FORMS) + 7
    assert {name: over for name, (over, _) in seen.items() if over > TOO_LATE} == {}
    assert {name: raised for name, (_, raised) in seen.items() if raised and not isinstance(raised, TOLD)} == {}
    # All others asked something that nobody could answer. A statement was answered before its connection was reset.
    done = {name for name, (_, raised) in seen.items() if raised is None}
    assert done == {"holds_the_only_one", "giving_back_which_resets", "a_reset"}

    began = time.monotonic()
    with pytest.raises(dbguard.DbGuardError):
        await opened(config={"startup": {"wait": 0.5}})
    assert time.monotonic() - began < 0.5 + TOO_LATE
    for closing in (guard, full, resets):
        began = time.monotonic()
        await waited(closing.close, timeout=0.5)
        assert time.monotonic() - began < 0.5 + TOO_LATE
    # The event loop's own workers stay. A thread that dials goes on until the driver gives that up.
    await until(
        lambda: (
            not [
                thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("asyncio_")
            ]
        )
    )


def reset_of(facade: str, reach: Reach) -> Callable[[Any], Any]:
    """Return a pool's ``reset`` that asks the server something once the hole is there."""

    def reset(con: Any) -> None:
        reach.wait()
        con.execute("SELECT 1")

    async def reset_in_a_task(con: Any) -> None:
        await reach()
        await con.execute("SELECT 1")

    return reset if facade == "threads" else reset_in_a_task
