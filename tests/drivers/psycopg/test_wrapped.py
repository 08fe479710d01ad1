"""Pools of psycopg_pool under a guard: each use takes one connection and gives it back as it was, and none is ever lost."""

from __future__ import annotations

import asyncio
import select
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest

from dbguard.core.route import Node
from dbguard.core.statement import Touch
from dbguard.core.topology import Instance, NodeView, Role
from dbguard.drivers.base import WrongNode
from dbguard.drivers.named import PoolExhausted
from dbguard.drivers.psycopg import wrapped as module
from dbguard.drivers.psycopg.failures import PoolClosed
from dbguard.drivers.psycopg.wrapped import WrappedPool
from dbguard.errors import GuardClosed
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dbguard.testing.cluster import Cluster

SOON = 5.0


class Clock:
    """Time that goes, and that a test can move on."""

    def __init__(self) -> None:
        self.more = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.more


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def open_pool(side: Any, single: Cluster) -> AsyncIterator[Callable[..., Any]]:
    """Open a pool as an application does; closed at the end."""
    pools: list[Any] = []

    async def opened(size: int = 2, *, port: int = single.primary.port, wait: bool = True, **given: Any) -> Any:
        conninfo = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        options = {"min_size": size, "max_size": size, "open": False} | given
        if side.threads:
            pool: Any = psycopg_pool.ConnectionPool(conninfo, **options)
            pools.append(pool)
            await asyncio.to_thread(pool.open, wait)
        else:
            pool = psycopg_pool.AsyncConnectionPool(conninfo, **options)
            pools.append(pool)
            await pool.open(wait)
        return pool

    yield opened
    for pool in pools:
        await shut(side, pool)


async def shut(side: Any, pool: Any) -> None:
    await (asyncio.to_thread(pool.close) if side.threads else pool.close())


async def borrowed(side: Any, pool: Any) -> Any:
    """Check a connection out, as the application does itself."""
    return await (asyncio.to_thread(pool.getconn) if side.threads else pool.getconn())


async def lent_back(side: Any, pool: Any, raw: Any) -> None:
    await (asyncio.to_thread(pool.putconn, raw) if side.threads else pool.putconn(raw))


@pytest.fixture
async def wrap(side: Any, clock: Clock) -> AsyncIterator[Callable[..., WrappedPool]]:
    """Wrap a pool; let go of at the end."""
    made: list[WrappedPool] = []

    def wrapped(pool: Any, *, check: Callable[[Any], None] = lambda _: None, **given: Any) -> WrappedPool:
        breaker: Any = None
        node = Node("a", breaker, NodeView(name="a"))
        made.append(
            WrappedPool(node, pool, side.line, colour=side.colour, clock=clock, check=check, ask_within=5.0, **given)
        )
        return made[-1]

    yield wrapped
    for pool in made:
        await pool.close(0.1)
        await until(lambda pool=pool: not pool._jobs)


async def taken(side: Any, pool: WrappedPool) -> Any:
    return await asyncio.wait_for(side.run(pool.take()), SOON)


async def back(side: Any, pool: WrappedPool, lease: Any, touched: Touch = Touch.NOTHING) -> None:
    """Give a lease back as a call does, on the call's own side."""

    async def settle() -> None:
        work = pool.settle(lease, touched)
        hand_on = None if work is None else await work
        if hand_on is not None:
            hand_on()

    await side.run(settle())


async def interruptible(side: Any, pool: WrappedPool, worker: list[Any]) -> Any:
    """Take a lease as an attempt does, which the sweep may interrupt."""
    worker.append(side.colour.task())
    return await pool.take()


async def is_whole(side: Any, pool: WrappedPool, size: int) -> None:
    """Nothing is out, and the application can have every connection there may be."""
    assert pool.node.load.in_use == len(pool.out) == 0
    raws = [await asyncio.wait_for(borrowed(side, pool.pool), SOON) for _ in range(size)]
    assert {raw.info.transaction_status for raw in raws} == {psycopg.pq.TransactionStatus.IDLE}
    for raw in raws:
        await lent_back(side, pool.pool, raw)


# ---------------------------------------------------------------------- one checkout, one return


async def test_a_connection_goes_back_as_it_was_found(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1))
    assert pool.take_now() is None

    lease = await taken(side, pool)
    assert lease.con.raw.autocommit
    assert pool.node.load.in_use == 1
    assert await side.run(lease.con.fetchval("SELECT pg_backend_pid()")) == lease.backend[0]
    await back(side, pool, lease)

    raw = await borrowed(side, pool.pool)
    assert raw is lease.loan[0]
    assert not raw.autocommit
    assert raw.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert lease.con.is_closed()  # to whom it was lent
    await lent_back(side, pool.pool, raw)
    await is_whole(side, pool, 1)


async def test_a_connection_is_asked_who_it_is_once(
    side: Any, open_pool: Any, wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counter[str]()
    ask = module.ask

    async def counted(*args: Any, **given: Any) -> Any:
        asked["times"] += 1
        return await ask(*args, **given)

    monkeypatch.setattr(module, "ask", counted)
    pool = wrap(await open_pool(1, kwargs={"autocommit": True}))

    for _ in range(3):
        lease = await taken(side, pool)
        assert lease.instance.started is not None
        await back(side, pool, lease)

    assert asked["times"] == 1
    raw = await borrowed(side, pool.pool)
    assert raw.autocommit
    await lent_back(side, pool.pool, raw)


async def test_dead_connections_that_the_pool_hands_out_are_passed_over(
    side: Any, open_pool: Any, wrap: Any, single: Cluster
) -> None:
    pool = wrap(await open_pool(3))
    leases = [await taken(side, pool) for _ in range(3)]
    raws = [lease.loan[0] for lease in leases]
    for lease in leases:
        await back(side, pool, lease)
    for lease in leases:
        single.sql("a", f"SELECT pg_terminate_backend({lease.backend[0]})")
    await until(lambda: len(select.select(raws, [], [], 0)[0]) == 3)

    lease = await taken(side, pool)

    assert await side.run(lease.con.fetchval("SELECT 1")) == 1
    assert lease.loan[0] not in raws
    await back(side, pool, lease)
    await is_whole(side, pool, 3)


async def test_who_waits_for_a_full_pool_gets_what_the_application_gives_back(
    side: Any, open_pool: Any, wrap: Any
) -> None:
    pool = wrap(await open_pool(1))
    raw = await borrowed(side, pool.pool)
    workers: list[Any] = []
    first = side.start(interruptible(side, pool, workers))
    await until(lambda: pool.pool.get_stats().get("requests_waiting"))
    second = side.start(pool.take())
    await until(lambda: len(pool._waiters) == 2)
    assert pool.full

    workers[0].cancel()
    await asyncio.wait([first])
    await lent_back(side, pool.pool, raw)

    assert first.cancelled()
    lease = await asyncio.wait_for(second, SOON)
    assert lease.loan[0] is raw
    await back(side, pool, lease)
    await is_whole(side, pool, 1)


async def test_a_connection_that_nobody_waits_for_any_more_goes_back(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1))
    raw = await borrowed(side, pool.pool)
    workers: list[Any] = []
    call = side.start(interruptible(side, pool, workers))
    await until(lambda: pool.pool.get_stats().get("requests_waiting"))

    workers[0].cancel()
    await asyncio.wait([call])
    await lent_back(side, pool.pool, raw)

    await until(lambda: pool.pool.get_stats()["pool_available"] == 1)
    await is_whole(side, pool, 1)


async def test_a_checkout_that_hangs_keeps_no_call_beyond_its_time(
    side: Any, open_pool: Any, wrap: Any, wire: Any, clock: Clock
) -> None:
    kind = psycopg_pool.ConnectionPool if side.threads else psycopg_pool.AsyncConnectionPool
    application = await open_pool(2, port=wire.port, check=kind.check_connection)
    pool = wrap(application)
    lease = await taken(side, pool)
    await back(side, pool, lease)
    wire.mute()
    workers: list[Any] = []
    call = side.start(interruptible(side, pool, workers))
    await until(lambda: application.get_stats()["pool_available"] == 1)

    began = time.monotonic()
    workers[0].cancel()
    await asyncio.wait([call])
    assert time.monotonic() - began < 3.0
    assert call.cancelled()

    call = side.start(pool.take())
    await until(lambda: pool._waiters)
    clock.more += module.HANGS + 1.0  # the checkout still hangs: another one is made beside it
    pool.rest()
    await until(lambda: application.get_stats()["pool_available"] == 0)
    wire.unmute()
    lease = await asyncio.wait_for(call, SOON)
    await back(side, pool, lease)
    await until(lambda: application.get_stats()["pool_available"] == 2)
    await is_whole(side, pool, 2)


# ---------------------------------------------------------------------- why there is none


async def test_a_pool_that_its_owner_closes_sends_all_home_who_wait(side: Any, open_pool: Any, wrap: Any) -> None:
    application = await open_pool(1)
    pool = wrap(application)
    raw = await borrowed(side, application)
    calls = [side.start(pool.take()) for _ in range(3)]
    await until(lambda: len(pool._waiters) == 3)

    await shut(side, application)

    said = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in said] == [PoolClosed] * 3
    assert "the application has closed its pool of a" in str(said[0])
    with pytest.raises(PoolClosed):
        await taken(side, pool)
    await lent_back(side, application, raw)


async def test_a_pool_that_is_not_open_says_so(side: Any, wrap: Any) -> None:
    kind = psycopg_pool.ConnectionPool if side.threads else psycopg_pool.AsyncConnectionPool
    pool = wrap(kind("host=127.0.0.1", min_size=1, open=False))

    with pytest.raises(PoolClosed, match="open it before the guard"):
        await taken(side, pool)


async def test_a_pool_that_admits_no_more_waiting_is_busy_not_broken(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1, max_waiting=1))
    raw = await borrowed(side, pool.pool)
    first = side.start(pool.take())
    await until(lambda: pool.pool.get_stats().get("requests_waiting"))

    second = side.start(pool.take())
    done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED, timeout=SOON)

    assert [type(call.exception()) for call in done] == [PoolExhausted]
    await lent_back(side, pool.pool, raw)
    left = next(call for call in (first, second) if call not in done)
    await back(side, pool, await asyncio.wait_for(left, SOON))


async def test_the_wrong_server_is_refused_and_its_connection_replaced(side: Any, open_pool: Any, wrap: Any) -> None:
    def check(_: Any) -> None:
        raise WrongNode("not this one")

    pool = wrap(await open_pool(1), check=check)

    with pytest.raises(WrongNode):
        await taken(side, pool)

    await is_whole(side, pool, 1)


async def test_a_pool_that_cannot_dial_is_not_called_full(side: Any, open_pool: Any, wrap: Any, wire: Any) -> None:
    application = await open_pool(1, port=wire.port)
    pool = wrap(application)
    lease = await taken(side, pool)
    assert pool.full
    wire.refuse()
    lease.end()

    await back(side, pool, lease)

    await until(lambda: application.get_stats().get("connections_errors"))
    assert not pool.full
    wire.accept()
    await until(lambda: application.get_stats()["pool_available"])
    await back(side, pool, await taken(side, pool))
    await back(side, pool, await taken(side, pool))


# ---------------------------------------------------------------------- between two uses


LEFT = """
    SELECT concat_ws(' ', current_setting('statement_timeout'), current_user, session_user,
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_listening_channels()), pg_my_temp_schema() > 0
        AND EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema()))
"""


async def after(side: Any, pool: WrappedPool, touched: Touch, *statements: str) -> tuple[bool, Any]:
    """Run statements, give back, take again; return whether it is the same backend, and the lease."""
    lease = await taken(side, pool)
    for statement in statements:
        await side.run(lease.con.execute(statement))
    await back(side, pool, lease, touched)
    again = await taken(side, pool)
    return lease.backend == again.backend, again


async def test_what_a_use_has_left_is_gone_before_the_pool_has_it_again(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1))
    lease = await taken(side, pool)
    clean = await side.run(lease.con.fetchval(LEFT))
    await back(side, pool, lease)

    same, lease = await after(
        side,
        pool,
        Touch.SETTINGS,
        "SET statement_timeout = '77s'",
        "SELECT pg_advisory_lock(1)",
        "BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "LISTEN news",
        "CREATE TEMP TABLE secret (n serial)",
        "SET ROLE pg_monitor",
    )

    assert same
    assert await side.run(lease.con.fetchval(LEFT)) == clean
    await back(side, pool, lease)


@pytest.mark.parametrize("what", ["SET statement_timeout = '33s'", "SET ROLE pg_monitor"])
async def test_a_session_that_the_application_has_configured_is_ended_not_reset(
    what: str, side: Any, open_pool: Any, wrap: Any
) -> None:
    def configure(con: Any) -> None:
        con.execute(what)
        con.commit()

    async def configure_async(con: Any) -> None:
        await con.execute(what)
        await con.commit()

    pool = wrap(await open_pool(1, configure=configure if side.threads else configure_async))

    same, lease = await after(side, pool, Touch.NOTHING)
    assert same
    configured = await side.run(lease.con.fetchval(LEFT))
    await back(side, pool, lease)
    same, lease = await after(side, pool, Touch.SETTINGS, "SET application_name = 'other'")
    assert not same
    assert await side.run(lease.con.fetchval(LEFT)) == configured
    await back(side, pool, lease)


@pytest.mark.parametrize("why", ["lost", "in a transaction", "ended", "stale"])
async def test_what_must_not_be_used_again_is_replaced(why: str, side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1))
    lease = await taken(side, pool)
    raw = lease.loan[0]

    if why == "in a transaction":
        await side.run(lease.con.execute("BEGIN"))
    elif why == "ended":
        lease.end()
    elif why == "stale":
        pool.node.epoch += 1
        assert pool.expire("return")[1] == 1
    await back(side, pool, lease, Touch.LOST if why == "lost" else Touch.NOTHING)

    assert raw.closed
    again = await taken(side, pool)
    assert again.backend != lease.backend
    await back(side, pool, again)
    await is_whole(side, pool, 1)


async def test_what_is_ended_on_its_way_back_is_replaced(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1))
    lease = await taken(side, pool)

    work = pool.settle(lease, Touch.NOTHING)
    lease.end()  # as the sweep does
    await side.run(work)

    assert lease.loan[0].closed
    await is_whole(side, pool, 1)


async def test_connections_at_hand_are_replaced_when_the_node_changes(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(2))
    lease = await taken(side, pool)
    other = await taken(side, pool)
    blocked = side.start(lease.con.run(lease.con.raw.execute, "SELECT pg_sleep(60)"))
    await until(lease.con.is_in_transaction)
    await back(side, pool, other)

    pool.node.epoch += 1
    assert pool.expire("now") == (1, 1)

    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(blocked, SOON)
    assert lease.ours
    await back(side, pool, lease)
    await until(lambda: other.loan[0].closed)
    again = [await taken(side, pool) for _ in range(2)]
    assert not {lease.backend, other.backend} & {one.backend for one in again}
    for one in again:
        await back(side, pool, one)


async def test_a_connection_to_another_server_than_is_seen_there_is_replaced(
    side: Any, open_pool: Any, wrap: Any
) -> None:
    pool = wrap(await open_pool(1))
    lease = await taken(side, pool)
    await back(side, pool, lease)
    pool.node.view = replace(pool.node.view, role=Role.PRIMARY, instance=Instance("1", "2"))
    workers: list[Any] = []
    call = side.start(interruptible(side, pool, workers))

    await until(lambda: lease.loan[0].closed)

    assert not call.done()
    workers[0].cancel()
    await asyncio.wait([call])
    pool.node.view = replace(pool.node.view, instance=Instance())
    await back(side, pool, await taken(side, pool))
    await is_whole(side, pool, 1)


# ---------------------------------------------------------------------- held


async def test_a_held_lease_stays_out_between_calls(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(3), hold=1)
    lease, other = await taken(side, pool), await taken(side, pool)

    await back(side, pool, lease)
    await back(side, pool, other)

    assert pool.pool.get_stats()["pool_available"] == 2
    assert pool.idle == 3
    assert pool.take_now() is lease
    assert lease.con.raw.autocommit
    await back(side, pool, lease)


async def test_a_held_lease_goes_to_who_waits(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1), hold=1)
    lease = await taken(side, pool)
    call = side.start(pool.take())
    await until(lambda: pool._waiters)

    await back(side, pool, lease)

    assert await asyncio.wait_for(call, SOON) is lease
    await back(side, pool, lease)


async def test_what_is_held_is_given_back_when_the_application_waits_for_it(
    side: Any, open_pool: Any, wrap: Any
) -> None:
    pool = wrap(await open_pool(1), hold=1)
    lease = await taken(side, pool)
    await back(side, pool, lease)
    assert pool._free

    raw = await asyncio.wait_for(borrowed(side, pool.pool), SOON)

    assert raw is lease.loan[0]
    assert not raw.autocommit
    await lent_back(side, pool.pool, raw)


async def test_what_is_held_is_given_back_when_it_is_not_used(
    side: Any, open_pool: Any, wrap: Any, clock: Clock, single: Cluster
) -> None:
    pool = wrap(await open_pool(2), hold=2, max_idle=60.0)
    lease, other = await taken(side, pool), await taken(side, pool)
    await back(side, pool, lease)
    await back(side, pool, other)
    single.sql("a", f"SELECT pg_terminate_backend({other.backend[0]})")
    await until(other.con.is_dead)

    pool.rest()
    assert list(pool._free) == [lease]
    clock.more += 61.0
    pool.rest()

    assert not pool._free
    await until(lambda: pool.pool.get_stats()["pool_available"] == 2)
    await is_whole(side, pool, 2)


async def test_the_applications_close_has_its_connections_back(side: Any, open_pool: Any, wrap: Any) -> None:
    application = await open_pool(2)
    pool = wrap(application, hold=1)
    lease, other = await taken(side, pool), await taken(side, pool)
    await back(side, pool, lease)

    began = time.monotonic()
    await shut(side, application)
    assert time.monotonic() - began < SOON

    await until(lambda: lease.loan[0].closed)
    await back(side, pool, other)
    assert other.loan[0].closed


# ---------------------------------------------------------------------- the end


async def test_closing_the_guards_side_leaves_the_pool_to_the_application(side: Any, open_pool: Any, wrap: Any) -> None:
    application = await open_pool(3)
    pool = wrap(application, hold=1)
    held, out = await taken(side, pool), await taken(side, pool)
    await back(side, pool, held)
    raw = await borrowed(side, application)
    closing = asyncio.ensure_future(pool.close(SOON))
    await until(held.con.is_closed)
    assert not closing.done()
    assert not held.loan[0].closed

    with pytest.raises(GuardClosed):
        await taken(side, pool)
    await back(side, pool, out)
    await closing
    await lent_back(side, application, raw)

    assert not application.closed
    assert not out.loan[0].closed
    await is_whole(side, pool, 3)


@pytest.mark.parametrize("how", ["close", "terminate"])
async def test_what_is_never_given_back_is_ended_and_replaced(how: str, side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(1))
    lease = await taken(side, pool)
    blocked = side.start(lease.con.run(lease.con.raw.execute, "SELECT pg_sleep(60)"))
    await until(lease.con.is_in_transaction)

    if how == "close":
        await pool.close(0.05)
    else:
        pool.terminate()

    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(blocked, SOON)
    await until(lambda: pool.pool.get_stats()["pool_available"] == 1)
    await back(side, pool, lease)
    await is_whole(side, pool, 1)


async def test_many_callers_over_few_connections_lose_none_and_share_none(side: Any, open_pool: Any, wrap: Any) -> None:
    pool = wrap(await open_pool(4), hold=2)
    holders: Counter[int] = Counter()
    shared: list[int] = []

    async def client(number: int) -> int:
        for turn in range(15):
            lease = pool.take_now() or await pool.take()
            pid = lease.backend[0]
            holders[pid] += 1
            if holders[pid] > 1:
                shared.append(pid)
            assert await lease.con.fetchval("SELECT pg_backend_pid()") == pid
            holders[pid] -= 1
            worst = Touch.LOST if (number, turn) == (3, 7) else Touch.SETTINGS if turn == 5 else Touch.NOTHING
            work = pool.settle(lease, worst)
            hand_on = None if work is None else await work
            if hand_on is not None:
                hand_on()
        return turn

    done = await asyncio.gather(*(side.start(client(number)) for number in range(32)))

    assert done == [14] * 32
    assert shared == []
    pool._let_go(lambda _: True)
    await is_whole(side, pool, 4)
