"""RULES 2.1: a call is cancelled at every await, one by one; nothing is left out, and no cancel request is sent.

A `Cancelled` run drives the call's coroutine by hand inside a task and cancels that task at its n-th suspension: while the
answer is awaited, or just as it has come. For every n: CancelledError comes out at once, without another await; no lease
is out, no task is left, the pool's places are all free, the server has no session at work and no lock, the breaker has
counted nothing (one failure would open it), and the wire has seen no CancelRequest.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.events import BreakerChanged
from tests.drivers import call_forms
from tests.drivers.conftest import APPLICATION, tasks_but
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator
    from pathlib import Path

    from dbguard.testing.cluster import Cluster
    from tests.drivers.conftest import Wire


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


class Watch:
    """What must be as it was once a cancelled call is over."""

    def __init__(self, guard: dbguard.Guard, observer: asyncpg.Connection[Any], wire: Wire) -> None:
        self.guard = guard
        self.wire = wire
        self._observer = observer
        self._changes: list[BreakerChanged] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        guard.on_event(lambda event: self._changes.append(event) if isinstance(event, BreakerChanged) else None)

    async def begin(self) -> None:
        """Look at the guard as it is when it does nothing."""
        await until(lambda: self.guard.get_idle_size() == self.guard.get_size())
        self._tasks = asyncio.all_tasks()

    async def settled(self) -> None:
        """Nothing is out, nothing is left, and every place of the pool can be had."""
        assert [node.in_use for node in self.guard.status().nodes] == [0]
        await self.quiet()
        async with self.guard.acquire(timeout=30) as one, self.guard.acquire(timeout=30) as other:
            assert await one.fetchval("SELECT 1") == await other.fetchval("SELECT 1")
        await until(lambda: not tasks_but(self._tasks))
        self.unharmed()

    async def quiet(self) -> None:
        """No task of the call's is left, and no session of its at work, in a transaction or with a lock."""
        await until(lambda: not tasks_but(self._tasks))
        await until(self._server_is_quiet)

    def unharmed(self) -> None:
        """The breaker has counted nothing, and no cancel request was sent."""
        assert self._changes == []
        assert self.wire.cancels == 0

    async def _server_is_quiet(self) -> bool:
        left = await self._observer.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'"
            " UNION ALL SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE application_name = $1",
            APPLICATION,
        )
        return not left


@pytest.fixture
def guard_config() -> dict[str, Any]:
    """A breaker that one failure opens; probes that are missed only where the server is gone, however slow the machine."""
    return {"breaker": {"consecutive": 1, "min_failures": 1}, "probe": {"timeout": 30.0}}


@pytest.fixture
async def observer(single: Cluster) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection that looks at the server, past the wire."""
    con = await asyncpg.connect(single.dsn("a"))
    yield con
    await con.close()


@pytest.fixture
async def watch(guard: dbguard.Guard, observer: asyncpg.Connection[Any], wire: Wire) -> Watch:
    return Watch(guard, observer, wire)


HOW = pytest.mark.parametrize("answered", [False, True], ids=["waiting", "answered"])


@HOW
@pytest.mark.parametrize("form", call_forms.FORMS, ids=lambda form: form.__name__)
async def test_a_call_is_cancelled_at_every_await_and_leaves_nothing(
    form: Any, guard: dbguard.Guard, watch: Watch, table: str, files: Path, *, answered: bool
) -> None:
    await run(form(guard, table, files))
    await watch.begin()
    at = 0
    while True:
        at += 1
        ran = await run(form(guard, table, files), at, answered=answered)
        if ran.suspended < at:
            break
        await watch.settled()
    assert at > 1


# ---------------------------------------------------------------------- waiting, dialling, and what is not one call


async def has_to_dial(guard: dbguard.Guard, wire: Wire) -> None:
    """The connections at hand are of an older epoch."""
    await guard.expire_connections()


async def finds_the_pool_exhausted(guard: dbguard.Guard, wire: Wire) -> None:
    """All connections are out for a moment."""
    held = [await guard.acquire() for _ in range(guard.get_max_size())]

    async def give_back() -> None:
        for con in held:
            await asyncio.sleep(0.01)
            await guard.release(con)

    wire.helpers.append(asyncio.ensure_future(give_back()))


async def finds_no_primary(guard: dbguard.Guard, wire: Wire) -> None:
    """The server is away for a moment."""
    wire.refuse()
    await until(lambda: guard.status().writes == "failover")

    async def come_back() -> None:
        await asyncio.sleep(0.05)
        wire.accept()

    wire.helpers.append(asyncio.ensure_future(come_back()))


async def write(guard: dbguard.Guard, table: str) -> None:
    await guard.execute(f"UPDATE {table} SET name = 'x'")


async def block(guard: dbguard.Guard, table: str) -> None:
    async with guard.transaction() as con:
        await con.execute(f"UPDATE {table} SET name = 'x'")


async def acquired(guard: dbguard.Guard, table: str) -> None:
    con = await guard.acquire()
    await guard.release(con)


@HOW
@pytest.mark.parametrize("before", [has_to_dial, finds_the_pool_exhausted], ids=lambda before: before.__name__)
@pytest.mark.parametrize("form", [write, block, acquired], ids=lambda form: form.__name__)
async def test_a_call_that_waits_for_a_connection_is_cancelled_at_every_await(
    form: Any, before: Any, guard: dbguard.Guard, watch: Watch, wire: Wire, table: str, *, answered: bool
) -> None:
    await form(guard, table)
    await watch.begin()
    at = 0
    while True:
        at += 1
        await before(guard, wire)
        ran = await run(form(guard, table), at, answered=answered)
        await wire.helped()
        if ran.suspended < at:
            break
        await watch.settled()
    assert at > 1


@HOW
@pytest.mark.parametrize("form", [write, block], ids=lambda form: form.__name__)
async def test_a_call_that_waits_for_a_primary_is_cancelled_at_every_await(
    form: Any, guard: dbguard.Guard, watch: Watch, wire: Wire, table: str, *, answered: bool
) -> None:
    await form(guard, table)
    await watch.begin()
    at = 0
    while True:
        at += 1
        await finds_no_primary(guard, wire)
        ran = await run(form(guard, table), at, answered=answered)
        assert [node.in_use for node in guard.status().nodes] == [0]
        await wire.helped()
        await guard.ready()
        await until(lambda: guard.status().nodes[0].breaker == "closed")
        if ran.suspended < at:
            break
        await watch.quiet()
        await form(guard, table)
    assert at > 1
    assert wire.cancels == 0


async def test_a_connection_that_is_dropped_by_a_cancellation_is_given_back(
    guard: dbguard.Guard, watch: Watch, table: str
) -> None:
    async def acquired_and_dropped() -> None:
        con = await guard.acquire()
        await con.fetch(f"SELECT * FROM {table} FOR UPDATE")
        await con.fetch("SELECT pg_sleep(1)")

    await watch.begin()
    task = asyncio.ensure_future(acquired_and_dropped())
    await until(lambda: guard.status().nodes[0].in_use == 1)

    task.cancel()
    await asyncio.wait([task])
    del task
    gc.collect()

    await until(lambda: guard.status().nodes[0].in_use == 0)
    await watch.settled()


@HOW
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_dial_is_cancelled_at_every_await_without_a_complaint(
    wire: Wire, observer: asyncpg.Connection[Any], *, tls: bool, answered: bool
) -> None:
    """asyncpg before 0.32 leaves a future behind whose exception nobody retrieves."""
    where = {"host": "127.0.0.1", "port": wire.port, "user": "postgres", "database": "postgres", "timeout": 30.0}
    dialer = Dialer(where | {"ssl": "prefer" if tls else False}, {"server_settings": {"application_name": APPLICATION}})
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def dial() -> None:
        con = await dialer.control(timeout=30.0)
        con.terminate()

    suspended, at = 1, 0
    while suspended >= at:
        at += 1
        suspended = (await run(dial(), at, answered=answered)).suspended
        await until(lambda: no_sessions(observer))
        gc.collect()

    assert at > 3
    assert complaints == []
    assert wire.cancels == 0


MOMENTS = 40
"""Moments at which an opening or a closing is cancelled, spread over the time it takes: it runs in a task of its own."""


@pytest.mark.parametrize("end", ["close", "nothing"])
async def test_an_opening_is_cancelled_at_many_moments(
    end: str, wire: Wire, single: Cluster, observer: asyncpg.Connection[Any]
) -> None:
    loop = asyncio.get_running_loop()
    given = {
        "nodes": [{"name": "a", "host": "127.0.0.1", "port": wire.port}],
        "connection": {"user": "postgres", "database": "postgres"},
    }
    guard = dbguard.Guard(given, min_size=2, max_size=2, server_settings={"application_name": APPLICATION})
    tasks = asyncio.all_tasks()
    began = loop.time()
    await guard.open()
    took = loop.time() - began
    await guard.close()
    cancelled = 0
    for moment in range(MOMENTS):
        opening = asyncio.ensure_future(guard.open())
        await asyncio.sleep(took * moment / MOMENTS)
        opening.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it goes at once: another await would need more turns of the loop
        assert opening.done()
        cancelled += opening.cancelled()
        if end == "close" or not opening.cancelled():
            await guard.close()
        await until(lambda: not tasks_but(tasks))
        await until(lambda: no_sessions(observer))
    assert cancelled > 0
    async with guard:
        assert await guard.fetchval("SELECT 1") == 1
    assert wire.cancels == 0


async def no_sessions(observer: asyncpg.Connection[Any]) -> bool:
    asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
    return not await observer.fetchval(asked, APPLICATION)


async def test_a_closing_is_cancelled_at_many_moments(
    wire: Wire, table: str, open_guard: Any, observer: asyncpg.Connection[Any]
) -> None:
    loop = asyncio.get_running_loop()
    settings = {"application_name": APPLICATION}
    tasks = asyncio.all_tasks()
    took, cancelled = 0.0, 0
    for moment in range(-1, MOMENTS):
        guard = await open_guard(wire.port, min_size=2, max_size=3, server_settings=settings)
        con = await guard.acquire()
        call = asyncio.ensure_future(guard.fetchval("SELECT 7 FROM pg_sleep(0.005)"))
        await asyncio.sleep(0)
        loop.call_later(0.002, con.terminate)
        began = loop.time()
        closing = asyncio.ensure_future(guard.close(timeout=0.01))
        if moment < 0:
            await closing
            took = loop.time() - began
        else:
            await asyncio.sleep(took * moment / MOMENTS)
            closing.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert closing.done()
            cancelled += closing.cancelled()
        await guard.release(con)
        with contextlib.suppress(asyncpg.PostgresConnectionError):
            assert await call == 7
        await until(lambda: not tasks_but(tasks))
        await until(lambda: no_sessions(observer))
    assert cancelled > 0
    assert wire.cancels == 0
