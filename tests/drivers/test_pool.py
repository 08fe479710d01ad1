"""The guard's own pool, alone: who gets which lease when, and that none is ever lost."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.core.breaker import Breaker, BreakerPolicy
from dbguard.core.route import Node
from dbguard.core.statement import Touch
from dbguard.core.topology import Instance, NodeView, Role
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.drivers.asyncpg.pool import REFILL_AGAIN, OwnPool
from dbguard.drivers.base import WrongNode
from dbguard.errors import GuardClosed
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dbguard.testing.cluster import Cluster

Make = "Callable[..., Awaitable[OwnPool]]"
FOREVER = 1e9


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
async def make(single: Cluster, clock: Clock) -> AsyncIterator[Callable[..., Awaitable[OwnPool]]]:
    """Make a pool; closed at the end."""
    pools: list[OwnPool] = []

    async def made(
        size: int = 2, hold: int | None = None, check: Callable[..., None] = lambda _: None, **given: Any
    ) -> OwnPool:
        keep = given.pop("keep", 0)
        limits = {name: given.pop(name, FOREVER) for name in ("max_lifetime", "max_idle", "max_uses")}
        where = {"host": "127.0.0.1", "port": single.primary.port, "user": "postgres", "database": "postgres"}
        dialer = Dialer(where, given)
        breaker: Any = None
        pool = OwnPool(
            Node("a", breaker, NodeView(name="a")),
            partial(dialer.pool, size),
            clock=clock,
            size=size,
            keep=keep,
            hold=size if hold is None else hold,
            dial=dialer.dial,
            check=check,
            ask_within=30.0,
            rng=random.Random(1),
            init=given.get("init"),
            setup=given.get("setup"),
            **limits,
        )
        await pool.open()
        pools.append(pool)
        return pool

    yield made
    for pool in pools:
        await pool.close(0.1)


async def is_whole(pool: OwnPool, size: int) -> None:
    """Nothing is out, and every place can be taken at once: no more of them, and no fewer."""
    assert pool.node.load.in_use == len(pool.out) == 0
    leases = [await asyncio.wait_for(pool.take(), 60) for _ in range(size)]
    assert len({lease.con for lease in leases}) == size
    assert pool.full
    assert pool.node.load.in_use == pool.pool.get_size() == size
    one_more = asyncio.ensure_future(pool.take())
    await asyncio.sleep(0)
    assert not one_more.done()
    one_more.cancel()
    await asyncio.wait([one_more])
    for lease in leases:
        pool.give(lease, Touch.NOTHING)
    assert pool.node.load.in_use == 0
    await until(lambda: not pool.full)


# ---------------------------------------------------------------------- handing over


async def test_the_lease_used_last_is_handed_out_first(make: Any) -> None:
    pool = await make(2)
    one, other = await pool.take(), await pool.take()
    pool.give(one, Touch.NOTHING)
    pool.give(other, Touch.NOTHING)

    assert pool.take_now() is other
    assert pool.take_now() is one
    assert pool.take_now() is None


async def test_a_full_pool_makes_who_comes_wait_and_wakes_them_in_their_order(make: Any) -> None:
    pool = await make(1)
    lease = await pool.take()
    woken: list[int] = []

    async def client(number: int) -> None:
        mine = await pool.take()
        woken.append(number)
        pool.give(mine, Touch.NOTHING)

    clients = [asyncio.ensure_future(client(number)) for number in range(5)]
    await asyncio.sleep(0)

    assert pool.full
    assert woken == []
    pool.give(lease, Touch.NOTHING)
    await asyncio.gather(*clients)
    assert woken == [0, 1, 2, 3, 4]
    assert pool.pool.get_size() == 1


@pytest.mark.parametrize("when", ["while it waits", "with the lease in hand"])
async def test_a_cancelled_waiter_passes_its_turn_on(when: str, make: Any) -> None:
    pool = await make(1)
    lease = await pool.take()
    first, second = asyncio.ensure_future(pool.take()), asyncio.ensure_future(pool.take())
    await asyncio.sleep(0)

    if when == "while it waits":
        first.cancel()
        await asyncio.wait([first])
        pool.give(lease, Touch.NOTHING)
    else:
        pool.give(lease, Touch.NOTHING)  # it is the first one's now, who has not run yet
        first.cancel()

    assert await asyncio.wait_for(second, 60) is lease
    assert first.cancelled()
    pool.give(lease, Touch.NOTHING)
    await is_whole(pool, 1)


async def test_a_cancelled_waiter_passes_on_the_right_to_dial(make: Any) -> None:
    pool = await make(1)
    lease = await pool.take()
    first, second = asyncio.ensure_future(pool.take()), asyncio.ensure_future(pool.take())
    await asyncio.sleep(0)
    lease.con.terminate()

    pool.give(lease, Touch.LOST)
    first.cancel()

    new = await asyncio.wait_for(second, 60)
    assert new.con is not lease.con
    pool.give(new, Touch.NOTHING)
    await is_whole(pool, 1)


# ---------------------------------------------------------------------- giving back


async def backend(pool: OwnPool) -> tuple[Any, int]:
    lease = await asyncio.wait_for(pool.take(), 60)
    return lease, await lease.con.fetchval("SELECT pg_backend_pid()")


async def after(pool: OwnPool, touched: Touch, *statements: str) -> tuple[bool, Any]:
    """Run statements, give back, take again; return whether it is the same backend, and the lease."""
    lease, before = await backend(pool)
    for statement in statements:
        await lease.con.execute(statement)
    pool.give(lease, touched)
    again, now = await backend(pool)
    return before == now, again


async def test_a_lease_that_left_nothing_is_handed_on_without_a_word_to_the_server(make: Any) -> None:
    pool = await make(1)
    same, lease = await after(pool, Touch.NOTHING, "SET statement_timeout = '77s'")

    assert same
    assert await lease.con.fetchval("SHOW statement_timeout") == "77s"  # told that nothing was left, it asked nobody
    pool.give(lease, Touch.LOST)


async def test_settings_cursors_and_locks_are_reset(make: Any) -> None:
    pool = await make(1)
    same, lease = await after(
        pool, Touch.SETTINGS, "SET statement_timeout = '77s'", "LISTEN x", "SELECT pg_advisory_lock(1)"
    )

    assert same
    assert await lease.con.fetchval("SHOW statement_timeout") == "0"
    assert await lease.con.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0
    assert await lease.con.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    pool.give(lease, Touch.NOTHING)


async def test_role_temporary_objects_and_sequences_are_reset_too(make: Any, single: Cluster) -> None:
    single.sql("a", "CREATE SEQUENCE IF NOT EXISTS pool_sequence")
    pool = await make(1)
    same, lease = await after(
        pool, Touch.IDENTITY, "SELECT nextval('pool_sequence')", "CREATE TEMP TABLE mine ()", "SET ROLE pg_monitor"
    )

    assert same
    assert await lease.con.fetchval("SELECT current_user") == "postgres"
    assert await lease.con.fetchval("SELECT to_regclass('mine')") is None
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await lease.con.fetchval("SELECT lastval()")
    pool.give(lease, Touch.NOTHING)


async def test_a_role_set_at_birth_is_never_reset_but_closed(make: Any) -> None:
    async def become(con: Any) -> None:
        await con.execute("SET ROLE pg_monitor")

    for how in ({"init": become}, {"server_settings": {"role": "pg_monitor"}}):
        pool = await make(1, **how)
        same, lease = await after(pool, Touch.IDENTITY)

        assert not same, how
        assert await lease.con.fetchval("SELECT current_user") == "pg_monitor"
        pool.give(lease, Touch.NOTHING)


async def test_what_no_reset_takes_back_is_closed(make: Any) -> None:
    pool = await make(1)
    same, lease = await after(pool, Touch.LOST)

    assert not same
    pool.give(lease, Touch.NOTHING)
    await is_whole(pool, 1)


async def test_a_lease_in_a_transaction_is_closed(make: Any) -> None:
    pool = await make(1)
    same, lease = await after(pool, Touch.NOTHING, "BEGIN")

    assert not same
    pool.give(lease, Touch.NOTHING)


async def test_a_lease_lost_meanwhile_is_replaced(make: Any, single: Cluster) -> None:
    pool = await make(1)
    lease, pid = await backend(pool)
    single.sql("a", "SELECT pg_terminate_backend($1)", pid)
    await until(lease.con.is_closed)

    pool.give(lease, Touch.NOTHING)

    await is_whole(pool, 1)


async def test_an_idle_lease_lost_meanwhile_is_not_handed_out(make: Any, single: Cluster) -> None:
    pool = await make(1)
    lease, pid = await backend(pool)
    pool.give(lease, Touch.NOTHING)
    single.sql("a", "SELECT pg_terminate_backend($1)", pid)
    await until(lease.con.is_closed)

    assert pool.take_now() is None
    await is_whole(pool, 1)


async def test_a_connection_has_a_lifetime_and_a_number_of_uses(make: Any, clock: Clock) -> None:
    old = await make(1, max_lifetime=60.0)
    used = await make(1, max_uses=2)

    assert (await after_time(old, clock, 59.0), await after_time(old, clock, 2.0)) == (True, False)
    assert [await after_time(used, clock, 0.0) for _ in range(5)] == [True, True, False, True, True]


async def after_time(pool: OwnPool, clock: Clock, seconds: float) -> bool:
    """Use, wait, give back, use again: is it the same backend?"""
    lease, before = await backend(pool)
    clock.now += seconds
    pool.give(lease, Touch.NOTHING)
    lease, now = await backend(pool)
    lease.tag.uses -= 1  # looking is no use
    pool.give(lease, Touch.NOTHING)
    return before == now


async def test_unused_connections_are_closed_after_a_while(make: Any, clock: Clock) -> None:
    pool = await make(2, max_idle=60.0)
    leases = [await pool.take() for _ in range(2)]
    pool.give(leases[0], Touch.NOTHING)
    clock.now += 40
    pool.give(leases[1], Touch.NOTHING)

    clock.now += 30
    pool.rest()
    await until(lambda: pool.pool.get_size() == 1)

    assert pool.idle == 1
    assert pool.take_now() is leases[1]
    pool.give(leases[1], Touch.NOTHING)


# ---------------------------------------------------------------------- not held: hooks of the application's


async def test_a_pool_that_holds_nothing_runs_the_hooks_at_every_use(make: Any) -> None:
    ran: list[str] = []

    async def setup(con: Any) -> None:
        ran.append("setup")

    async def reset(con: Any) -> None:
        ran.append("reset")

    pool = await make(1, hold=0, setup=setup, reset=reset)
    for _ in range(3):
        lease, _pid = await backend(pool)
        pool.give(lease, Touch.NOTHING)
        await until(lambda: pool.idle == 1)

    assert ran == ["setup", "reset"] * 3
    assert not pool.holds


@pytest.mark.parametrize("touched", [Touch.NOTHING, Touch.SETTINGS, Touch.IDENTITY])
async def test_who_waits_on_a_pool_that_holds_nothing_gets_the_hooks_too(touched: Touch, make: Any) -> None:
    """A `setup` that names the tenant: a lease handed over without it would be the tenant's before."""
    tenants = iter(["red", "blue", "green"])

    async def setup(con: Any) -> None:
        await con.execute(f"SET my.tenant = '{next(tenants)}'")

    pool = await make(1, hold=0, setup=setup)
    seen: list[str] = []

    async def client() -> None:
        lease = await pool.take()
        seen.append(await lease.con.fetchval("SHOW my.tenant"))
        pool.give(lease, touched)

    await asyncio.gather(client(), client(), client())

    assert seen == ["red", "blue", "green"]


# ---------------------------------------------------------------------- epochs


async def test_a_stale_lease_is_not_handed_out_again(make: Any) -> None:
    pool = await make(2)
    idle, used = await pool.take(), await pool.take()
    pool.give(idle, Touch.NOTHING)

    pool.node.epoch += 1
    assert pool.expire("drain") == (1, 1)
    assert await used.con.fetchval("SELECT 1") == 1  # it may end its work
    pool.give(used, Touch.NOTHING)

    new = await pool.take()
    assert new not in (idle, used)
    assert not new.stale
    await until(lambda: idle.con.is_closed() and used.con.is_closed())
    pool.give(new, Touch.NOTHING)
    await is_whole(pool, 2)


def see(pool: OwnPool, instance: Instance | None, role: Role = Role.REPLICA, *, group: bool = False) -> None:
    """Let the pool's node be seen, under its next epoch."""
    pool.node.epoch += 1
    pool.node.view = NodeView(name="a", role=role, instance=instance or Instance(), group=group)


async def test_connections_to_a_server_that_was_promoted_are_kept_idle_or_in_use(make: Any) -> None:
    pool = await make(2)
    idle, used = await pool.take(), await pool.take()
    pool.give(idle, Touch.NOTHING)

    see(pool, idle.tag.instance, Role.PRIMARY)
    assert pool.expire("keep") == (0, 1)
    pool.give(used, Touch.NOTHING)

    assert {pool.take_now(), pool.take_now()} == {idle, used}
    assert pool.end_stale() == 0
    for lease in (idle, used):
        pool.give(lease, Touch.NOTHING)
    await is_whole(pool, 2)


@pytest.mark.parametrize("other", ["another server", "a server that does not tell", "one of several"])
async def test_connections_that_may_lead_elsewhere_are_not_kept(other: str, make: Any) -> None:
    pool = await make(2)
    idle, used = await pool.take(), await pool.take()
    pool.give(idle, Touch.NOTHING)
    own = idle.tag.instance
    seen = {"another server": replace(own, started="1.5"), "a server that does not tell": replace(own, system_id=None)}

    see(pool, seen.get(other, own), group=other == "one of several")
    assert pool.expire("keep") == (1, 1)
    pool.give(used, Touch.NOTHING)

    assert pool.take_now() is None
    await until(lambda: idle.con.is_closed() and used.con.is_closed())
    pool.node.view = NodeView(name="a")
    await is_whole(pool, 2)


async def test_a_connection_that_had_to_go_is_not_kept_by_a_milder_drain_after_it(make: Any) -> None:
    pool = await make(1)
    used = await pool.take()
    see(pool, used.tag.instance)
    pool.expire("drain")
    see(pool, used.tag.instance)
    pool.expire("keep")

    pool.give(used, Touch.NOTHING)

    assert pool.take_now() is None
    await until(used.con.is_closed)
    await is_whole(pool, 1)


async def test_expiring_now_ends_what_is_in_use_and_says_whose_doing_it_was(make: Any) -> None:
    pool = await make(1)
    lease = await pool.take()
    call = asyncio.ensure_future(lease.con.execute("SELECT pg_sleep(60)"))
    await asyncio.sleep(0)

    pool.node.epoch += 1
    assert pool.expire("now") == (0, 1)

    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await call
    assert lease.ours
    pool.give(lease, Touch.LOST)
    await is_whole(pool, 1)


async def test_only_the_stale_are_ended_when_a_drain_takes_too_long(make: Any) -> None:
    pool = await make(2)
    stale = await pool.take()
    pool.node.epoch += 1
    fresh = await pool.take()

    assert pool.end_stale() == 1

    assert stale.con.is_closed()
    assert not fresh.con.is_closed()
    pool.give(stale, Touch.NOTHING)
    pool.give(fresh, Touch.NOTHING)
    await is_whole(pool, 2)


async def test_a_connection_dialled_under_an_older_epoch_is_not_used(make: Any) -> None:
    async def slow(con: Any) -> None:
        if not turned:
            pool.node.epoch += 1
            turned.append(True)

    turned: list[bool] = []
    pool = await make(1, init=slow)

    lease = await pool.take()

    assert lease.tag.epoch == pool.node.epoch == 1
    pool.give(lease, Touch.NOTHING)
    await is_whole(pool, 1)


async def test_a_connection_to_the_wrong_node_is_refused_and_its_place_is_free(make: Any) -> None:
    wrong = [True]

    def check(seen: Any) -> None:
        if wrong.pop():
            wrong.append(False)
            raise WrongNode("an old primary")

    pool = await make(1, check=lambda seen: check(seen) if wrong[0] else None)

    with pytest.raises(WrongNode):
        await pool.take()
    await is_whole(pool, 1)


# ---------------------------------------------------------------------- closing


async def test_closing_waits_for_leases_out_and_then_ends_them(make: Any) -> None:
    pool = await make(3)
    polite, stubborn, idle = [await pool.take() for _ in range(3)]
    pool.give(idle, Touch.NOTHING)
    waiter = asyncio.ensure_future(pool.take())
    taken = await waiter  # the idle one
    waiter = asyncio.ensure_future(pool.take())
    await asyncio.sleep(0)

    closing = asyncio.ensure_future(pool.close(0.2))
    with pytest.raises(GuardClosed):
        await waiter
    pool.give(taken, Touch.NOTHING)
    pool.give(polite, Touch.NOTHING)
    await closing

    assert stubborn.con.is_closed()
    assert stubborn.ours
    pool.give(stubborn, Touch.LOST)
    assert pool.pool.get_size() == 0
    assert pool.node.load.in_use == 0


async def test_warming_holds_connections_and_no_more_than_asked(make: Any) -> None:
    pool = await make(4)

    await pool.warm(3, 5.0)
    await pool.warm(2, 5.0)

    assert pool.idle == pool.pool.get_size() == 3
    await is_whole(pool, 4)


# ---------------------------------------------------------------------- in reserve


def serve(pool: OwnPool, **seen: Any) -> None:
    """Let the pool's node be seen by a probe as one that serves, but for what is *seen* otherwise."""
    pool.node.breaker = Breaker(BreakerPolicy(), random.Random(1))
    pool.node.seen_at = pool.clock()
    pool.node.view = NodeView(name="a", **({"role": Role.REPLICA, "reachable": True} | seen))


async def rested(pool: OwnPool) -> int:
    """Let the pool rest as each round of probes does, until nothing is under way; returns how many are at hand."""
    for _ in range(5):
        pool.rest()
        await until(lambda: not pool._tasks)
    return pool.idle


async def test_connections_that_were_lost_are_replaced_up_to_the_least_number(make: Any) -> None:
    pool = await make(4, keep=2)
    serve(pool)
    await pool.warm(2, 5.0)
    pool.stay_warm()
    lost = [await pool.take(), await pool.take()]

    for lease in lost:
        lease.terminate()
        pool.give(lease, Touch.LOST)

    assert await rested(pool) == 2
    await is_whole(pool, 4)


async def test_nothing_is_dialled_in_reserve_before_the_pool_was_opened(make: Any) -> None:
    pool = await make(4, keep=2)
    serve(pool)

    assert await rested(pool) == 0


@pytest.mark.parametrize(
    "seen",
    [{"reachable": False}, {"fenced": True}, {"misconfigured": "no"}, {"role": Role.UNKNOWN}],
    ids=lambda seen: next(iter(seen)),
)
async def test_nothing_is_dialled_in_reserve_on_a_node_that_does_not_serve(seen: Any, make: Any, clock: Clock) -> None:
    pool = await make(4, keep=2)
    pool.stay_warm()
    serve(pool, **seen)
    assert await rested(pool) == 0

    serve(pool)
    clock.now += REFILL_AGAIN

    assert await rested(pool) == 2


async def test_a_dial_in_reserve_that_fails_is_not_made_again_at_once(make: Any, clock: Clock) -> None:
    refusals = iter([WrongNode("of an older reign")])
    asked = 0

    def check(_: Any) -> None:
        nonlocal asked
        asked += 1
        for refusal in refusals:
            raise refusal

    pool = await make(4, keep=2, check=check)
    pool.stay_warm()
    serve(pool)
    assert await rested(pool) == 0
    assert asked == 1

    clock.now += REFILL_AGAIN

    assert await rested(pool) == 2
    assert asked == 3


# ---------------------------------------------------------------------- and none is lost

TOUCHES = [Touch.NOTHING] * 12 + [Touch.SETTINGS] * 3 + [Touch.IDENTITY, Touch.LOST]


@pytest.mark.parametrize("hold", [3, 1, 0])
@pytest.mark.parametrize("seed", range(3))
async def test_no_lease_is_lost_whatever_happens(seed: int, hold: int, make: Any) -> None:
    chance = random.Random(seed)
    pool = await make(3, hold=hold, max_uses=40)
    in_hands: set[int] = set()

    async def client() -> None:
        lease = await pool.take()
        try:
            assert id(lease.con) not in in_hands  # nobody else has it
            in_hands.add(id(lease.con))
            assert pool.node.load.in_use == len(pool.out) <= 3
            if chance.random() < 0.3:
                await lease.con.fetchval("SELECT 1")
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            lease.con.terminate()
            raise
        except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, AttributeError):
            # AttributeError: asyncpg's, on a connection that was terminated between Parse and Bind
            assert lease.con.is_closed()
        finally:
            in_hands.discard(id(lease.con))
            pool.give(lease, chance.choice(TOUCHES))

    clients: set[asyncio.Task[None]] = set()
    for _ in range(1500):
        clients = {task for task in clients if not task.done() or task.cancelled() or task.result()}
        while len(clients) < 8:
            clients.add(asyncio.ensure_future(client()))
        dice = chance.random()
        if dice < 0.08:
            chance.choice(sorted(clients, key=id)).cancel()
        elif dice < 0.10:
            pool.node.epoch += 1
            pool.expire(chance.choice(["keep", "drain", "now"]))
        elif dice < 0.12:
            pool.end_stale()
        await asyncio.sleep(0)
        if chance.random() < 0.3:
            await asyncio.sleep(0.001)
    await asyncio.wait_for(asyncio.wait(clients), 60)
    for task in clients:
        assert task.cancelled() or task.exception() is None

    await until(lambda: pool.pool.get_size() == pool.idle)
    await is_whole(pool, 3)
