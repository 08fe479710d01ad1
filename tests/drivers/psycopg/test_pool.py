"""The guard's own pool of psycopg's connections, alone: who gets which lease when, and that none is ever lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from dbguard.core.breaker import Breaker, BreakerPolicy
from dbguard.core.route import Node
from dbguard.core.statement import Touch
from dbguard.core.topology import Instance, NodeView, Role
from dbguard.drivers.base import WrongNode
from dbguard.drivers.named import NotDialled
from dbguard.drivers.pacing import AT_ONCE
from dbguard.drivers.psycopg.pool import REFILL_AGAIN, OwnPool
from dbguard.errors import GuardClosed
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dbguard.testing.cluster import Cluster

FOREVER = 1e9
SOON = 5.0


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(side: Any, single: Cluster, clock: Clock) -> AsyncIterator[Callable[..., OwnPool]]:
    """Make a pool; closed at the end."""
    pools: list[OwnPool] = []

    def made(size: int = 2, *, port: int = single.primary.port, node: Node | None = None, **given: Any) -> OwnPool:
        breaker: Any = None
        options: dict[str, Any] = {
            "dial": lambda: side.dial(port),
            "clock": clock,
            "keep": 0,
            "max_lifetime": FOREVER,
            "max_idle": FOREVER,
            "max_uses": FOREVER,
            "check": lambda _: None,
            "ask_within": 5.0,
            "rng": random.Random(1),
        }
        options |= given
        pool = OwnPool(
            node or Node("a", breaker, NodeView(name="a")), line=side.line, colour=side.colour, size=size, **options
        )
        pools.append(pool)
        return pool

    yield made
    for pool in pools:
        await pool.close(0.1)
        assert not pool._jobs


async def taken(side: Any, pool: OwnPool) -> Any:
    return await asyncio.wait_for(side.run(pool.take()), SOON)


async def back(side: Any, pool: OwnPool, lease: Any, touched: Touch) -> None:
    """Give a lease back as a call does, on the call's own side."""

    async def settle() -> None:
        work = pool.settle(lease, touched)
        hand_on = None if work is None else await work
        if hand_on is not None:
            hand_on()

    await side.run(settle())


async def is_whole(side: Any, pool: OwnPool, size: int) -> None:
    """Nothing is out, and every place can be taken at once: no more of them, and no fewer."""
    await until(lambda: not pool._jobs)
    assert pool.node.load.in_use == len(pool.out) == 0
    leases = [await taken(side, pool) for _ in range(size)]
    assert len({lease.con.raw.info.backend_pid for lease in leases}) == size
    assert pool.full
    assert pool.node.load.in_use == size
    worker: list[Any] = []
    one_more = side.start(interruptible(side, pool, worker))
    await until(lambda: pool._waiters)
    worker[0].cancel()
    await asyncio.wait([one_more])
    assert not pool._waiters
    for lease in leases:
        pool.give(lease, Touch.NOTHING)
    assert pool.node.load.in_use == 0
    assert pool.idle == size


async def interruptible(side: Any, pool: OwnPool, worker: list[Any]) -> Any:
    """Take a lease as an attempt does, which the sweep may interrupt."""
    worker.append(side.colour.task())
    return await pool.take()


# ---------------------------------------------------------------------- handing over


async def test_the_lease_used_last_is_handed_out_first(side: Any, make: Any) -> None:
    pool = make(2)
    assert pool.take_now() is None
    one, other = await taken(side, pool), await taken(side, pool)
    pool.give(one, Touch.NOTHING)
    pool.give(other, Touch.NOTHING)

    assert pool.take_now() is other
    assert pool.take_now() is one
    assert pool.take_now() is None


async def test_what_is_taken_just_as_the_pool_ends_does_not_go_out(
    side: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that holds it between the two would go on with it for ever: nobody sweeps any more."""
    pool = make(1)
    lease = await taken(side, pool)
    pool.give(lease, Touch.NOTHING)

    def ends() -> bool:
        pool.terminate()
        return False

    monkeypatch.setattr(lease.con, "is_dead", ends)
    assert pool.take_now() is None
    assert lease.con.is_closed()
    assert not pool.out


@pytest.mark.parametrize("side", ["threads"], indirect=True)
async def test_what_is_done_in_time_is_not_ended_afterwards(make: Any) -> None:
    """Whoever has bounded a line and is done with it has handed it on: its end would be another caller's."""
    pool = make(1)
    done = threading.Event()
    done_meanwhile: list[bool] = []

    class Late:
        """A line whose time is over, and that somebody else is done with just as it is ended."""

        def terminate(self) -> None:
            threading.Thread(target=be_done).start()
            done_meanwhile.append(done.wait(0.2))

    line: Any = Late()

    def be_done() -> None:
        pool._unbound(line)
        done.set()

    pool._bound(line, -1.0)
    pool._look()
    assert done_meanwhile == [False]
    assert await asyncio.to_thread(done.wait, SOON)
    assert not pool._due


@pytest.mark.parametrize("side", ["threads"], indirect=True)
async def test_where_no_thread_can_be_started_the_place_is_not_lost(
    side: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(2)

    def full(_: Any, work: Any, name: str) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(type(side.colour), "spawn", full)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await taken(side, pool)
    assert not pool._waiters
    await is_whole(side, pool, 2)


async def test_a_full_pool_makes_who_comes_wait_and_wakes_them_in_their_order(side: Any, make: Any) -> None:
    pool = make(1)
    lease = await taken(side, pool)
    woken: list[int] = []

    async def client(number: int) -> None:
        mine = await pool.take()
        woken.append(number)
        pool.give(mine, Touch.NOTHING)

    clients = []
    for number in range(5):
        clients.append(side.start(client(number)))
        await until(lambda number=number: len(pool._waiters) == number + 1)

    assert pool.full
    assert woken == []
    pool.give(lease, Touch.NOTHING)
    await asyncio.gather(*clients)
    assert woken == [0, 1, 2, 3, 4]
    await is_whole(side, pool, 1)


async def test_a_waiter_that_is_called_off_loses_no_lease(side: Any, make: Any) -> None:
    pool = make(1)
    lease = await taken(side, pool)
    workers: list[Any] = []
    first = side.start(interruptible(side, pool, workers))
    await until(lambda: len(pool._waiters) == 1)
    second = side.start(pool.take())
    await until(lambda: len(pool._waiters) == 2)

    workers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    pool.give(lease, Touch.NOTHING)

    assert await asyncio.wait_for(second, SOON) is lease
    pool.give(lease, Touch.NOTHING)
    await is_whole(side, pool, 1)


@pytest.mark.parametrize("side", ["asyncio"], indirect=True)
async def test_a_waiter_that_is_called_off_with_the_lease_in_hand_passes_it_on(side: Any, make: Any) -> None:
    pool = make(1)
    lease = await taken(side, pool)
    first, second = side.start(pool.take()), side.start(pool.take())
    await until(lambda: len(pool._waiters) == 2)

    pool.give(lease, Touch.NOTHING)  # it is the first one's now, who has not run yet
    first.cancel()

    assert await asyncio.wait_for(second, SOON) is lease
    assert first.cancelled()
    pool.give(lease, Touch.NOTHING)
    await is_whole(side, pool, 1)


async def test_a_dial_outlives_the_call_that_it_was_begun_for(side: Any, make: Any, wire: Any) -> None:
    pool = make(1, port=wire.port)
    wire.mute()
    workers: list[Any] = []
    call = side.start(interruptible(side, pool, workers))
    await until(lambda: wire.opened)

    workers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    wire.unmute()

    await until(lambda: pool.idle == 1)
    await is_whole(side, pool, 1)
    assert wire.opened == 1


async def test_who_waits_gets_what_comes_first(side: Any, make: Any, wire: Any) -> None:
    pool = make(2, port=wire.port)
    lease = await taken(side, pool)
    wire.mute()
    call = side.start(pool.take())
    await until(lambda: wire.opened == 2)

    pool.give(lease, Touch.NOTHING)

    assert await asyncio.wait_for(call, SOON) is lease
    wire.unmute()
    pool.give(lease, Touch.NOTHING)
    await is_whole(side, pool, 2)


# ---------------------------------------------------------------------- giving back


async def after(side: Any, pool: OwnPool, touched: Touch, *statements: str) -> tuple[bool, Any]:
    """Run statements, give back, take again; return whether it is the same backend, and the lease."""
    lease = await taken(side, pool)
    before = lease.con.raw.info.backend_pid
    for statement in statements:
        await side.run(lease.con.execute(statement))
    await back(side, pool, lease, touched)
    again = await taken(side, pool)
    return before == again.con.raw.info.backend_pid, again


async def test_a_lease_that_left_nothing_is_handed_on_without_a_word_to_the_server(side: Any, make: Any) -> None:
    pool = make(1)

    same, lease = await after(side, pool, Touch.NOTHING, "SET statement_timeout = '77s'")

    assert same
    assert (
        await side.run(lease.con.fetchval("SHOW statement_timeout")) == "77s"
    )  # told that nothing was left, it asked nobody
    pool.give(lease, Touch.LOST)


LEFT = """
    SELECT concat_ws(' ', current_setting('statement_timeout'), current_user, session_user,
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_listening_channels()), pg_my_temp_schema() > 0
        AND EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema()))
"""


@pytest.mark.parametrize("touched", [Touch.SETTINGS, Touch.IDENTITY])
async def test_what_a_use_has_left_is_gone_before_the_next_one(side: Any, make: Any, touched: Touch) -> None:
    pool = make(1)
    lease = await taken(side, pool)
    clean = await side.run(lease.con.fetchval(LEFT))
    pool.give(lease, Touch.NOTHING)

    same, lease = await after(
        side,
        pool,
        touched,
        "SET statement_timeout = '77s'",
        "SELECT pg_advisory_lock(1)",
        "BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "LISTEN news",
        "CREATE TEMP TABLE secret (n serial); INSERT INTO secret DEFAULT VALUES",
        "SET ROLE pg_monitor",
    )

    assert same
    assert await side.run(lease.con.fetchval(LEFT)) == clean
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        await side.run(lease.con.fetchval("SELECT lastval()"))
    pool.give(lease, Touch.NOTHING)


@pytest.mark.parametrize("why", ["lost", "in a transaction", "closed", "too old", "used too often", "ended"])
async def test_what_must_not_be_handed_on_is_closed(why: str, side: Any, make: Any, clock: Clock) -> None:
    pool = make(1, max_lifetime=60.0, max_uses=3 if why == "used too often" else FOREVER)
    lease = await taken(side, pool)
    raw, pid = lease.con.raw, lease.backend[0]
    for _ in range(3):
        pool.give(lease, Touch.NOTHING)
        lease = await taken(side, pool)
    assert lease.backend[0] == pid

    if why == "in a transaction":
        await side.run(lease.con.execute("BEGIN"))
    elif why == "closed":
        lease.con.finish()
    elif why == "too old":
        clock.now += 61.0
    elif why == "ended":
        lease.end()
    await back(side, pool, lease, Touch.LOST if why == "lost" else Touch.NOTHING)

    assert raw.closed
    assert (await taken(side, pool)).backend[0] != pid


async def test_stale_plans_are_dropped_before_the_next_use(side: Any, make: Any, single: Cluster, table: str) -> None:
    pool = make(1)
    read = f"SELECT * FROM {table}"
    lease = await taken(side, pool)
    lease.con.raw.prepare_threshold = 0
    await side.run(lease.con.run(lease.con.raw.execute, read))
    single.sql("a", f"ALTER TABLE {table} ADD COLUMN new int")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        await side.run(lease.con.run(lease.con.raw.execute, read))
    await back(side, pool, lease, Touch.NOTHING)

    again = await taken(side, pool)
    assert again is lease
    await side.run(again.con.run(again.con.raw.execute, read))
    pool.give(again, Touch.NOTHING)


async def test_what_configure_has_set_is_there_in_each_use(side: Any, make: Any) -> None:
    configured: list[Any] = []

    def configure(con: Any) -> Any:
        configured.append(con)
        return con.execute("SET application_name = 'mine'")

    async def configure_async(con: Any) -> None:
        await configure(con)

    pool = make(1, configure=configure if side.threads else configure_async)

    same, lease = await after(side, pool, Touch.SETTINGS, "SET application_name = 'other'")

    assert same
    assert await side.run(lease.con.fetchval("SHOW application_name")) == "mine"
    assert configured == [lease.con.raw] * 2
    pool.give(lease, Touch.NOTHING)


async def test_a_session_that_configure_gave_another_role_is_not_reset_to_the_logins(side: Any, make: Any) -> None:
    def configure(con: Any) -> Any:
        return con.execute("SET ROLE pg_monitor")

    async def configure_async(con: Any) -> None:
        await configure(con)

    pool = make(1, configure=configure if side.threads else configure_async)

    same, lease = await after(side, pool, Touch.SETTINGS, "SET statement_timeout = '77s'")
    assert same
    assert await side.run(lease.con.fetchval("SELECT current_user")) == "pg_monitor"
    pool.give(lease, Touch.NOTHING)
    same, lease = await after(side, pool, Touch.IDENTITY)
    assert not same  # who it is now cannot be told apart from what configure made of it
    pool.give(lease, Touch.NOTHING)


async def test_the_applications_reset_and_check_run_at_each_use(side: Any, make: Any) -> None:
    said: list[str] = []
    fails: list[str] = []

    def hook(name: str) -> Any:
        def call(_: Any) -> None:
            said.append(name)
            if name in fails:
                fails.remove(name)
                raise ValueError(name)

        async def call_async(con: Any) -> None:
            call(con)

        return call if side.threads else call_async

    pool = make(1, reset=hook("reset"), checkout=hook("check"))
    assert pool.hooked
    lease = await taken(side, pool)
    assert said == ["check"]
    await back(side, pool, lease, Touch.NOTHING)
    await until(lambda: pool.idle)
    assert said == ["check", "reset"]
    assert pool.take_now() is None  # it has to be checked

    fails.append("check")
    other = await taken(side, pool)
    assert said == ["check", "reset", "check", "check"]
    assert lease.con.raw.closed
    fails.append("reset")
    await back(side, pool, other, Touch.NOTHING)
    await until(lambda: other.con.raw.closed)
    await is_whole(side, make(1), 1)


async def test_what_was_left_in_a_transaction_mode_of_the_applications_is_in_autocommit_again(
    side: Any, make: Any
) -> None:
    pool = make(1)
    lease = await taken(side, pool)
    await side.run(lease.con.run(lease.con.raw.set_autocommit, False))

    await back(side, pool, lease, Touch.NOTHING)

    again = await taken(side, pool)
    assert again is lease
    assert again.con.raw.autocommit
    pool.give(again, Touch.NOTHING)


async def test_a_reset_in_a_black_hole_ends_the_connection_in_time(
    side: Any, make: Any, wire: Any, clock: Clock
) -> None:
    pool = make(1, port=wire.port)
    lease = await taken(side, pool)
    wire.mute()

    pool.give(lease, Touch.SETTINGS)
    await until(lease.con.is_in_transaction)
    clock.now += 3.0

    await until(lambda: lease.con.raw.closed, SOON)
    assert wire.cancels == 0
    wire.unmute()
    await is_whole(side, pool, 1)


# ---------------------------------------------------------------------- epochs


async def test_what_was_born_under_an_older_epoch_is_not_handed_on(side: Any, make: Any) -> None:
    pool = make(2)
    out, idle = await taken(side, pool), await taken(side, pool)
    pool.give(idle, Touch.NOTHING)

    pool.node.epoch += 1
    assert pool.expire("return") == (1, 1)

    assert idle.con.raw.closed
    assert out.stale
    assert not out.con.is_closed()
    assert pool.take_now() is None
    assert pool.end_stale() == 1
    assert out.con.is_closed()
    pool.give(out, Touch.NOTHING)
    await is_whole(side, pool, 2)


async def test_a_fenced_nodes_leases_end_at_once(side: Any, make: Any) -> None:
    pool = make(1)
    lease = await taken(side, pool)
    blocked = side.start(lease.con.run(lease.con.raw.execute, "SELECT pg_sleep(60)"))
    await until(lease.con.is_in_transaction)

    pool.node.epoch += 1
    assert pool.expire("now") == (0, 1)

    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(blocked, SOON)
    assert lease.ours
    pool.give(lease, Touch.NOTHING)
    await is_whole(side, pool, 1)


async def test_a_dial_that_was_overtaken_by_a_new_epoch_is_made_again(side: Any, make: Any, wire: Any) -> None:
    pool = make(1, port=wire.port)
    wire.mute()
    call = side.start(pool.take())
    await until(lambda: wire.opened)

    pool.node.epoch += 1
    pool.expire("return")
    wire.unmute()

    lease = await asyncio.wait_for(call, SOON)
    assert not lease.stale
    assert wire.opened == 2
    pool.give(lease, Touch.NOTHING)
    await is_whole(side, pool, 1)


async def test_what_goes_on_is_kept_where_the_drain_says_so(side: Any, make: Any) -> None:
    pool = make(1)
    lease = await taken(side, pool)
    view = pool.node.view
    pool.give(lease, Touch.NOTHING)

    pool.node.view = replace(view, instance=lease.instance)
    pool.node.epoch += 1
    assert pool.expire("keep") == (0, 0)

    assert pool.take_now() is lease
    assert not lease.stale
    pool.give(lease, Touch.NOTHING)


async def test_a_connection_to_another_server_than_is_seen_there_is_not_used(side: Any, make: Any) -> None:
    pool = make(1)
    pool.node.view = replace(pool.node.view, role=Role.PRIMARY, instance=Instance("1", "2"))
    workers: list[Any] = []
    call = side.start(interruptible(side, pool, workers))
    dialled = pool._pacing.dialled
    count = Counter[str]()
    pool._pacing.dialled = lambda: (dialled(), count.update(["dial"]))

    await until(lambda: count["dial"] >= 2)

    assert not call.done()
    workers[0].cancel()
    await asyncio.wait([call])
    pool.node.view = replace(pool.node.view, instance=Instance())
    await is_whole(side, pool, 1)


# ---------------------------------------------------------------------- dials


class Door:
    """Where a pool dials: counts, and lets in as a test says."""

    def __init__(self, side: Any, port: int) -> None:
        self.side, self.port = side, port
        self.begun = self.now = self.most = 0
        self.open = threading.Event()
        self.error: Exception | None = None
        self._lock = threading.Lock()

    async def dial(self) -> Any:
        with self._lock:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if self.side.threads:
                assert self.open.wait(SOON)
            else:
                await until(self.open.is_set)
            if self.error is not None:
                raise self.error
            return await self.side.dial(self.port)
        finally:
            with self._lock:
                self.now -= 1


@pytest.fixture
def door(side: Any, single: Cluster) -> Door:
    return Door(side, single.primary.port)


async def test_a_few_are_dialled_at_a_time(side: Any, make: Any, door: Door) -> None:
    pool = make(20, dial=door.dial)
    calls = [side.start(pool.take()) for _ in range(20)]
    await until(lambda: len(pool._waiters) == 20)
    await until(lambda: door.now == AT_ONCE)
    door.open.set()

    leases = await asyncio.gather(*calls)

    assert len({lease.con for lease in leases}) == 20
    assert (door.begun, door.most) == (20, AT_ONCE)
    for lease in leases:
        pool.give(lease, Touch.NOTHING)


async def test_where_nothing_can_come_all_are_told_and_one_dial_is_tried_after_a_pause(
    side: Any, make: Any, door: Door, clock: Clock
) -> None:
    pool = make(20, dial=door.dial)
    calls = [side.start(pool.take()) for _ in range(20)]
    await until(lambda: len(pool._waiters) == 20)
    door.error = psycopg.OperationalError("connection refused")
    door.open.set()

    said = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(error) for error in said} == {psycopg.OperationalError, NotDialled}
    assert door.begun == AT_ONCE
    with pytest.raises(NotDialled):  # it pauses
        await taken(side, pool)
    assert door.begun == AT_ONCE
    door.open.clear()
    clock.now += 1.0
    calls = [side.start(pool.take()) for _ in range(3)]
    await until(lambda: len(pool._waiters) == 3)
    await until(lambda: door.now)
    assert door.begun == AT_ONCE + 1
    door.error = None
    door.open.set()
    for lease in await asyncio.gather(*calls):
        pool.give(lease, Touch.NOTHING)


async def test_who_waits_for_what_others_have_is_not_sent_away_by_a_dial_that_failed(
    side: Any, make: Any, door: Door, clock: Clock
) -> None:
    pool = make(3, dial=door.dial)
    door.open.set()
    lease = await taken(side, pool)
    door.error = psycopg.OperationalError("connection refused")

    with pytest.raises(psycopg.OperationalError):
        await taken(side, pool)
    call = side.start(pool.take())
    await until(lambda: pool._waiters)
    assert pool.full
    pool.give(lease, Touch.NOTHING)

    assert await asyncio.wait_for(call, SOON) is lease
    pool.give(lease, Touch.NOTHING)


async def test_a_full_server_makes_callers_wait_for_what_is_given_back(
    side: Any, make: Any, door: Door, clock: Clock
) -> None:
    pool = make(3, dial=door.dial)
    door.open.set()
    lease = await taken(side, pool)
    door.error = psycopg.OperationalError("connection failed: FATAL:  sorry, too many clients already")

    call = side.start(pool.take())
    await until(lambda: door.begun == 2 and not door.now)
    await until(lambda: not pool._dialling)
    assert not call.done()
    assert pool.node.soft_until > clock.now
    pool.give(lease, Touch.NOTHING)

    assert await asyncio.wait_for(call, SOON) is lease
    pool.give(lease, Touch.NOTHING)


async def test_the_wrong_server_is_refused_and_left(side: Any, make: Any, single: Cluster) -> None:
    raws: list[Any] = []

    async def dial() -> Any:
        raws.append(await side.dial(single.primary.port))
        return raws[-1]

    def check(_: Any) -> None:
        raise WrongNode("not this one")

    pool = make(1, dial=dial, check=check)

    with pytest.raises(WrongNode, match="not this one"):
        await taken(side, pool)

    assert raws[0].closed
    assert not pool._pacing.pauses  # the server has let us in
    assert not pool._taken


# ---------------------------------------------------------------------- at rest


async def test_an_idle_connection_that_was_lost_is_not_handed_out(side: Any, make: Any, single: Cluster) -> None:
    pool = make(2)
    one, other = await taken(side, pool), await taken(side, pool)
    pool.give(one, Touch.NOTHING)
    pool.give(other, Touch.NOTHING)
    single.sql("a", f"SELECT pg_terminate_backend({other.backend[0]})")
    await until(other.con.is_dead)

    assert pool.take_now() is one
    assert other.con.raw.closed
    pool.give(one, Touch.NOTHING)
    single.sql("a", f"SELECT pg_terminate_backend({one.backend[0]})")
    await until(one.con.is_dead)
    pool.rest()
    assert pool.idle == 0
    await is_whole(side, pool, 2)


async def test_unused_connections_are_closed_down_to_those_that_are_kept(side: Any, make: Any, clock: Clock) -> None:
    pool = make(3, keep=1, max_idle=60.0)
    leases = [await taken(side, pool) for _ in range(3)]
    for lease in leases:
        pool.give(lease, Touch.NOTHING)

    clock.now += 59.0
    pool.rest()
    assert pool.idle == 3
    clock.now += 2.0
    pool.rest()

    assert pool.idle == 1
    assert [lease.con.raw.closed for lease in leases] == [True, True, False]


async def test_what_is_missing_is_replaced_once_it_shall_stay_warm(
    side: Any, make: Any, clock: Clock, door: Door
) -> None:
    breaker = Breaker(BreakerPolicy(), random.Random(1))
    view = NodeView(name="a", role=Role.PRIMARY, reachable=True)
    pool = make(3, keep=2, dial=door.dial, node=Node("a", breaker, view))
    door.open.set()
    pool.rest()
    assert not pool._dialling
    await pool.warm(2, SOON)
    assert pool.idle == 2
    pool.stay_warm()
    pool._sift(lambda _: False)

    for expected in (1, 2):
        pool.rest()
        await until(lambda expected=expected: pool.idle == expected)
    pool.rest()
    assert len(pool._taken) == 2

    pool._sift(lambda _: False)
    door.error = psycopg.OperationalError("connection refused")
    began = door.begun
    pool.rest()
    await until(lambda: not pool._jobs)
    clock.now += 1.5  # the pause of a dial that failed is over
    pool.rest()
    assert door.begun == began + 1
    clock.now += REFILL_AGAIN
    door.error = None
    pool.rest()
    await until(lambda: pool.idle == 1)


async def test_warming_ends_with_a_dial_that_fails(side: Any, make: Any, door: Door) -> None:
    pool = make(3, dial=door.dial)
    door.error = psycopg.OperationalError("connection refused")
    door.open.set()

    began = time.monotonic()
    await pool.warm(3, 60.0)

    assert time.monotonic() - began < 30.0
    assert pool.idle == 0


# ---------------------------------------------------------------------- the end


async def test_a_closing_pool_waits_for_leases_and_lends_nothing(side: Any, make: Any) -> None:
    pool = make(2)
    out, idle = await taken(side, pool), await taken(side, pool)
    pool.give(idle, Touch.NOTHING)
    closing = asyncio.ensure_future(pool.close(SOON))
    await until(lambda: idle.con.raw.closed)
    assert not closing.done()
    assert not out.con.is_closed()

    with pytest.raises(GuardClosed):
        await taken(side, pool)
    pool.give(out, Touch.SETTINGS)

    await closing
    assert out.con.raw.closed


async def test_a_closing_pool_ends_what_does_not_come_back_and_sends_home_who_waits(
    side: Any, make: Any, wire: Any
) -> None:
    pool = make(1, port=wire.port)
    lease = await taken(side, pool)
    waiting = side.start(pool.take())
    await until(lambda: pool._waiters)

    async def use() -> None:
        try:
            await lease.con.run(lease.con.raw.execute, "SELECT pg_sleep(60)")
        finally:
            pool.give(lease, Touch.NOTHING)

    using = side.start(use())
    await until(lease.con.is_in_transaction)
    wire.mute()

    await pool.close(0.05)

    with pytest.raises(GuardClosed):
        await waiting
    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(using, SOON)
    assert lease.con.raw.closed
    assert pool.node.load.in_use == 0


async def test_terminating_ends_all_at_once(side: Any, make: Any, wire: Any) -> None:
    pool = make(2, port=wire.port)
    out, idle = await taken(side, pool), await taken(side, pool)
    pool.give(idle, Touch.NOTHING)
    closing = asyncio.ensure_future(pool.close(60.0))
    await asyncio.sleep(0)

    pool.terminate()

    await asyncio.wait_for(closing, SOON)
    assert out.con.is_closed()
    assert idle.con.raw.closed
    pool.give(out, Touch.NOTHING)
    assert out.con.raw.closed


# ---------------------------------------------------------------------- many at once


async def test_many_callers_over_few_connections_lose_none_and_share_none(side: Any, make: Any) -> None:
    pool = make(4)
    holders: Counter[int] = Counter()
    seen: set[int] = set()
    shared: list[int] = []

    async def client(number: int) -> int:
        done = 0
        for turn in range(25):
            lease = pool.take_now() or await pool.take()
            pid = lease.backend[0]
            holders[pid] += 1
            if holders[pid] > 1:
                shared.append(pid)
            seen.add(pid)
            assert await lease.con.fetchval("SELECT pg_backend_pid()") == pid
            holders[pid] -= 1
            worst = (
                Touch.LOST if (number, turn) in ((3, 11), (17, 5)) else Touch.SETTINGS if turn == 7 else Touch.NOTHING
            )
            work = pool.settle(lease, worst)
            hand_on = None if work is None else await work
            if hand_on is not None:
                hand_on()
            done += 1
        return done

    done = await asyncio.gather(*(side.start(client(number)) for number in range(32)))

    assert done == [25] * 32
    assert shared == []
    assert 4 <= len(seen) <= 6
    await is_whole(side, pool, 4)
