"""Opening, closing and terminating a guard, in any order and at any moment: in time, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from tests.drivers.conftest import tasks_but
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dbguard.testing.cluster import Cluster
    from tests.drivers.conftest import Wire

APPLICATION = "lifetime"
SLACK = 15.0
"""Seconds that a busy machine may take for what should take some tenths of one. What is not ended takes longer: a call has
30 s, what the server does takes a minute."""

SETTINGS = {"application_name": APPLICATION, "client_connection_check_interval": "100ms"}
"""What sleeps on the server ends once its client is gone."""


@pytest.fixture
async def make(single: Cluster) -> AsyncIterator[Callable[..., dbguard.Guard]]:
    """Make a guard that is not open yet; closed at the end."""
    guards: list[dbguard.Guard] = []

    def made(port: int = 0, *, config: dict[str, Any] | None = None, **arguments: Any) -> dbguard.Guard:
        given: dict[str, Any] = {
            "nodes": [{"name": "a", "host": "127.0.0.1", "port": port or single.primary.port}],
            "connection": {"user": "postgres", "database": "postgres"},
        }
        arguments = {"min_size": 1, "max_size": 2, "server_settings": SETTINGS} | arguments
        guards.append(dbguard.Guard(given | (config or {}), **arguments))
        return guards[-1]

    yield made
    for guard in guards:
        await guard.close(timeout=0.1)


@pytest.fixture
async def nothing_left(single: Cluster) -> AsyncIterator[None]:
    """At the end, no task is left and no session on the server."""
    tasks = asyncio.all_tasks()
    yield
    await until(lambda: not tasks_but(tasks))
    await sessions_are(single, 0)


pytestmark = pytest.mark.usefixtures("nothing_left")


async def sessions_are(single: Cluster, count: int) -> None:
    asked = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
    await until(lambda: asyncio.to_thread(lambda: single.sql("a", asked)[0][0] == count))


async def in_time(work: Any, seconds: float = SLACK) -> Any:
    """Await *work*, which must not take long; raises what it raises."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=seconds)
    assert done, f"not over after {seconds} s"
    return task.result()


async def asleep(single: Cluster) -> None:
    """Wait until the server has a call that sleeps."""
    asked = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name = '{APPLICATION}'"
    await until(lambda: asyncio.to_thread(lambda: single.sql("a", asked)[0][0] > 0))


@contextlib.asynccontextmanager
async def held_up(single: Cluster) -> AsyncIterator[str]:
    """Lend a read that takes until this is left, and then returns 7."""
    con = await asyncpg.connect(single.dsn("a"))
    await con.execute("SELECT pg_advisory_lock(7)")
    try:
        yield "SELECT 7 FROM pg_advisory_xact_lock(7)"
    finally:
        await con.close()


async def is_held_up(single: Cluster) -> None:
    """Wait until the server has a call that is held up."""
    asked = (
        f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND application_name = '{APPLICATION}'"
    )
    await until(lambda: asyncio.to_thread(lambda: single.sql("a", asked)[0][0] > 0))


async def no_primary(guard: dbguard.Guard, wire: Wire) -> None:
    """Take the server away and wait until the guard knows."""
    await wire.close()
    await until(lambda: guard.status().writes == "failover")


# ---------------------------------------------------------------------- close


async def test_closing_lets_calls_end(make: Any, single: Cluster) -> None:
    guard = await make()
    async with held_up(single) as query:
        call = asyncio.ensure_future(guard.fetchval(query))
        await is_held_up(single)

        closing = asyncio.ensure_future(guard.close(timeout=60))
        await asyncio.sleep(0.05)
        assert not closing.done()
    await closing

    assert call.done()
    assert await call == 7
    with pytest.raises(dbguard.GuardClosed):
        await guard.fetchval("SELECT 1")


async def test_closing_ends_calls_that_take_too_long(make: Any, single: Cluster, table: str) -> None:
    guard = await make()
    read = asyncio.ensure_future(guard.fetchval("SELECT pg_sleep(60)"))
    write = asyncio.ensure_future(guard.execute(f"INSERT INTO {table} SELECT 9, '' FROM pg_sleep(60)"))
    await until(lambda: guard.status().nodes[0].in_use == 2)
    await asleep(single)

    await in_time(guard.close(timeout=0.1))

    assert read.done()
    assert write.done()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await read
    with pytest.raises(dbguard.OutcomeUnknown):
        await write
    await asyncio.to_thread(single.terminate_backends, "a", where="wait_event = 'PgSleep'")


async def test_closing_in_a_black_hole_keeps_to_its_limit(make: Any, wire: Wire) -> None:
    guard = await make(wire.port, max_size=3)
    await asyncio.gather(*(guard.fetchval("SELECT 1 FROM pg_sleep(0.01)") for _ in range(3)))
    wire.mute()
    calls = [asyncio.ensure_future(guard.fetchval("SELECT 1")), asyncio.ensure_future(guard.execute("SET x.y = 1"))]
    await asyncio.sleep(0)

    await in_time(guard.close(timeout=0.2))

    assert all(call.done() for call in calls)
    for call in calls:
        with pytest.raises(asyncpg.PostgresConnectionError):
            await call
    await wire.close()


async def test_connections_that_are_never_given_back_do_not_hold_the_closing_up(make: Any) -> None:
    guard = await make()
    con = await guard.acquire()

    await in_time(guard.close(timeout=0.1))

    assert con.is_closed()
    await guard.release(con)


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_calls_that_have_sent_nothing_are_sent_home_at_once(end: str, make: Any, wire: Wire) -> None:
    """Those who wait for a connection and those who dial: nothing of theirs was sent."""
    patient = {"user": "postgres", "database": "postgres", "connect_timeout": 60.0}
    guard = await make(wire.port, max_size=2, config={"connection": patient, "pool": {"acquire_timeout": 60.0}})
    con, other = await guard.acquire(), await guard.acquire()
    await other.close()
    await guard.release(other)
    wire.mute()
    dialling = asyncio.ensure_future(guard.execute("SELECT 1"))
    queued = asyncio.ensure_future(guard.fetchval("SELECT 1"))
    await asyncio.sleep(0.05)

    closing = asyncio.ensure_future(guard.close(timeout=60) if end == "close" else asyncio.to_thread(lambda: None))
    if end == "terminate":
        guard.terminate()

    for call in (dialling, queued):
        with pytest.raises(dbguard.GuardClosed):
            await in_time(call)  # well below the 60 s that a connection is waited for, and the 30 s of a call
    if end == "close":
        assert not closing.done()  # the connection is still out
        assert not con.is_closed()
    await guard.release(con)
    await in_time(closing)
    await wire.close()


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_calls_that_wait_for_a_primary_are_sent_home(end: str, make: Any, wire: Wire) -> None:
    guard = await make(wire.port)
    await no_primary(guard, wire)
    calls = [
        asyncio.ensure_future(call)
        for call in (
            guard.execute("SELECT 1"),
            guard.run_in_transaction(lambda con: con.execute("SELECT 1")),
            guard.copy_records_to_table("t", records=[(1,)]),
            guard.ready(),
        )
    ]
    await asyncio.sleep(0.05)
    assert not any(call.done() for call in calls)

    if end == "close":
        await in_time(guard.close())
    else:
        guard.terminate()

    for call in calls:
        with pytest.raises(dbguard.GuardClosed):
            await in_time(call)


async def test_closing_twice_at_once_and_again_is_closing_once(make: Any) -> None:
    guard = await make()
    con = await guard.acquire()

    first = asyncio.ensure_future(guard.close(timeout=60))
    second = asyncio.ensure_future(guard.close(timeout=60))
    await asyncio.sleep(0.05)
    assert not first.done()
    assert not second.done()  # it is not over yet, and that is not said of it
    await guard.release(con)
    await in_time(asyncio.gather(first, second))
    await guard.close()

    assert guard.is_closing()


async def test_a_second_closing_may_shorten_the_first(make: Any) -> None:
    guard = await make()
    con = await guard.acquire()
    first = asyncio.ensure_future(guard.close(timeout=60))
    await asyncio.sleep(0)

    await in_time(guard.close(timeout=0.1))

    await in_time(first)
    assert con.is_closed()
    await guard.release(con)


async def test_a_closing_that_is_cancelled_ends_everything_at_once(make: Any) -> None:
    guard = await make()
    con = await guard.acquire()
    closing = asyncio.ensure_future(guard.close(timeout=60))
    await asyncio.sleep(0.05)

    closing.cancel()
    await asyncio.wait([closing], timeout=SLACK)

    assert closing.cancelled()
    assert con.is_closed()
    await guard.release(con)


# ---------------------------------------------------------------------- terminate


async def test_terminating_leaves_nothing_running_even_if_nobody_closes(make: Any, single: Cluster) -> None:
    tasks = asyncio.all_tasks()
    guard = await make()
    read = asyncio.ensure_future(guard.fetchval("SELECT pg_sleep(60)"))
    await asleep(single)

    guard.terminate()

    with pytest.raises(asyncpg.PostgresConnectionError):
        await in_time(read)
    await until(lambda: not tasks_but(tasks))  # no monitor, no reading of the catalogue
    await sessions_are(single, 0)
    assert guard.is_closing()
    with pytest.raises(dbguard.GuardClosed):
        await guard.fetchval("SELECT 1")
    guard.terminate()
    await in_time(guard.close())


# ---------------------------------------------------------------------- open, and again


async def test_a_guard_is_opened_once_however_many_ask_for_it(make: Any, single: Cluster) -> None:
    guard = make(max_size=1)

    await asyncio.gather(*(guard.open() for _ in range(5)))
    await guard.open()

    await sessions_are(single, 2)  # one for calls, one for the monitor
    assert await guard.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_a_guard_can_be_opened_again(end: str, make: Any, table: str) -> None:
    guard = await make()
    await guard.execute(f"DELETE FROM {table}")
    await guard.close() if end == "close" else guard.terminate()

    async with guard:
        assert await guard.fetchval(f"SELECT count(*) FROM {table}") == 0

    assert guard.is_closing()


async def test_opening_while_it_closes_waits_until_it_has(make: Any) -> None:
    guard = await make()
    con = await guard.acquire()
    closing = asyncio.ensure_future(guard.close())
    await asyncio.sleep(0)

    opening = asyncio.ensure_future(guard.open())
    await asyncio.sleep(0.05)
    assert not opening.done()
    await guard.release(con)
    await in_time(asyncio.gather(closing, opening))

    assert await guard.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("muted", [False, True], ids=["answers", "black hole"])
@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_closing_while_it_is_opened_ends_the_opening(end: str, make: Any, wire: Wire, *, muted: bool) -> None:
    guard = make(wire.port)
    if muted:
        wire.mute()
    opening = asyncio.ensure_future(guard.open())
    await asyncio.sleep(0.005)

    if end == "close":
        await in_time(guard.close())
    else:
        guard.terminate()

    with pytest.raises(dbguard.GuardClosed, match="while it was being opened"):
        await in_time(opening)
    await wire.close()


async def test_an_opening_that_is_cancelled_leaves_others_theirs(make: Any) -> None:
    guard = make()
    one, other = asyncio.ensure_future(guard.open()), asyncio.ensure_future(guard.open())
    await asyncio.sleep(0)

    one.cancel()
    await in_time(other)

    assert one.cancelled()
    assert await guard.fetchval("SELECT 1") == 1


async def test_an_opening_that_fails_says_why_to_all_and_can_be_tried_again(make: Any, wire: Wire) -> None:
    guard = make(wire.port, config={"startup": {"wait": 3.0}})
    wire.mute()

    results = await asyncio.gather(guard.open(), guard.open(), return_exceptions=True)

    assert [type(result).__mro__[1] for result in results] == [dbguard.NoPrimary] * 2
    wire.unmute()
    async with guard:
        assert await guard.fetchval("SELECT 1") == 1
    await wire.close()


def test_a_guard_lives_through_several_event_loops(single: Cluster) -> None:
    """At module level, with `asyncio.run` called more than once, and nobody who closes it."""
    guard = dbguard.Guard(single.dsn("a"), min_size=1, max_size=2, server_settings={"application_name": APPLICATION})

    async def use() -> Any:
        await guard.open()
        return await guard.fetchval("SELECT 1")

    assert [asyncio.run(use()) for _ in range(3)] == [1, 1, 1]


async def test_a_guard_is_not_used_on_two_event_loops_at_once(make: Any) -> None:
    guard = await make()
    raised: list[BaseException] = []

    def elsewhere() -> None:
        for use in (guard.open, guard.close):
            try:
                asyncio.run(use())
            except RuntimeError as error:
                raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)

    assert ["another event loop" in str(error) for error in raised] == [True, True]
    assert await guard.fetchval("SELECT 1") == 1


# ---------------------------------------------------------------------- async with


async def test_a_block_that_fails_closes_the_guard_and_passes_its_error_on(make: Any) -> None:
    guard = make()

    async def block() -> None:
        async with guard:
            await guard.execute("SELECT 1")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await block()

    assert guard.is_closing()


@pytest.mark.parametrize("form", ["guard", "connect"])
async def test_a_block_that_is_cancelled_is_left_at_once_and_lets_others_end(
    form: str, make: Any, single: Cluster
) -> None:
    dsn = single.dsn("a")
    opened = make() if form == "guard" else dbguard.connect(dsn, min_size=1, max_size=2, server_settings=SETTINGS)
    others: list[asyncio.Task[Any]] = []
    guards: list[dbguard.Guard] = []

    async def block(query: str) -> None:
        async with opened as guard:
            guards.append(guard)
            others.append(asyncio.ensure_future(guard.fetchval(query)))
            await asyncio.sleep(60)

    async with held_up(single) as query:
        task = asyncio.ensure_future(block(query))
        await is_held_up(single)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert task.cancelled()
        assert not others[0].done()
        with pytest.raises(dbguard.GuardClosed):
            await guards[0].fetchval("SELECT 1")
    assert await in_time(others[0]) == 7


# ---------------------------------------------------------------------- dropped connections


def drops(guard: dbguard.Guard) -> list[Any]:
    """Return the list that the connections which are dropped will be told in."""
    told: list[Any] = []
    guard.on_event(lambda event: told.append(event) if isinstance(event, dbguard.events.ConnectionDropped) else None)
    return told


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", ["acquire", "transaction"])
async def test_a_connection_that_is_dropped_is_ended_and_told_of(
    kind: str, make: Any, single: Cluster, table: str, *, debug: bool
) -> None:
    guard = await make(max_size=1)
    told = drops(guard)
    asyncio.get_running_loop().set_debug(debug)

    async def careless() -> None:
        con = await getattr(guard, kind)()
        await con.execute(f"SELECT pg_advisory_lock(1), * FROM {table} FOR UPDATE")

    await careless()
    asyncio.get_running_loop().set_debug(False)
    gc.collect()

    assert await in_time(guard.fetchval("SELECT 1")) == 1  # the pool's one place is free again
    await until(lambda: guard.status().nodes[0].in_use == 0)  # the catalogue may be read meanwhile
    (dropped,) = told
    assert (dropped.taken_at is not None) == debug
    assert not debug or ("test_lifetime.py" in dropped.taken_at and dropped.taken_at.endswith("in careless"))
    assert "dropped without release()" in dropped.text()
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    await until(lambda: asyncio.to_thread(lambda: single.sql("a", locks)[0][0] == 0))


async def test_what_is_made_of_a_connection_keeps_it(make: Any) -> None:
    guard = await make(max_size=1)
    told = drops(guard)

    async def prepared() -> Any:
        con = await guard.acquire()
        return await con.prepare("SELECT 1")

    statement = await prepared()
    gc.collect()
    assert await statement.fetchval() == 1
    assert not told

    del statement
    gc.collect()
    await until(lambda: guard.status().nodes[0].in_use == 0)
    assert len(told) == 1


async def test_a_connection_that_listens_is_not_dropped(make: Any) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    guard = await make(max_size=2)
    told = drops(guard)

    async def listen() -> Any:
        con = await guard.acquire()
        await con.add_listener("news", lambda *said: heard.put_nowait(said))
        return weakref.ref(con)

    listening = await listen()
    gc.collect()
    await guard.execute("NOTIFY news, 'x'")

    con, _pid, channel, payload = await in_time(heard.get())
    assert (con, channel, payload) == (listening(), "news", "x")
    assert not told
    await guard.release(con)


async def test_a_connection_given_back_is_no_longer_watched(make: Any) -> None:
    guard = await make()
    told = drops(guard)

    async with guard.acquire():
        gc.collect()  # nobody holds the connection, and the block does
    con = await guard.acquire()
    await guard.release(con)
    del con
    gc.collect()
    await asyncio.sleep(0)

    assert not told


# ---------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("wrapped", [False, True], ids=["own", "wrapped"])
@pytest.mark.parametrize("waits", [False, True], ids=["function", "coroutine"])
async def test_callbacks_get_the_guards_connection_and_not_the_drivers(
    make: Any, single: Cluster, *, waits: bool, wrapped: bool
) -> None:
    """The driver's own would be used behind the guard's back: it would not know what was done to the session."""
    heard: asyncio.Queue[Any] = asyncio.Queue()

    def hear(con: Any, *_: Any) -> None:
        heard.put_nowait(con)

    async def hear_and_wait(con: Any, *_: Any) -> None:
        heard.put_nowait(con)

    listener: Any = hear_and_wait if waits else hear
    async with contextlib.AsyncExitStack() as stack:
        if wrapped:
            pool = await stack.enter_async_context(asyncpg.create_pool(single.dsn("a"), min_size=1, max_size=3))
            guard = await stack.enter_async_context(dbguard.Guard.wrap(pool))
        else:
            guard = await make()
        con = await guard.acquire()
        await con.add_listener("news", listener)
        con.add_log_listener(listener)
        await con.execute("NOTIFY news")
        assert await in_time(heard.get()) is con
        await con.execute("DO 'BEGIN RAISE NOTICE ''x''; END'")
        assert await in_time(heard.get()) is con

        await con.remove_listener("news", listener)
        con.remove_log_listener(listener)
        await con.execute("NOTIFY news")
        await con.execute("DO 'BEGIN RAISE NOTICE ''x''; END'")
        con.add_termination_listener(listener)
        con.remove_termination_listener(listener)
        con.add_termination_listener(listener)
        con.terminate()
        assert await in_time(heard.get()) is con
        assert heard.empty()
        await guard.release(con)


@pytest.mark.parametrize("what", ["another guard's", "a driver's"])
async def test_only_the_guards_own_connections_are_taken_back(what: str, make: Any, single: Cluster) -> None:
    guard, other = await make(), await make()
    con = await other.acquire() if what == "another guard's" else await asyncpg.connect(single.dsn("a"))

    with pytest.raises(asyncpg.InterfaceError, match="no connection of this guard"):
        await guard.release(con)

    assert await con.fetchval("SELECT 1") == 1
    await (other.release(con) if what == "another guard's" else con.close())


async def test_a_view_gives_back_what_it_has_acquired(make: Any) -> None:
    guard = await make()
    view = guard.using(role="primary")

    con = await view.acquire()
    await view.release(con)
    await view.release(con)

    assert con.is_closed()
    assert guard.status().nodes[0].in_use == 0
