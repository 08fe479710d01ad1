"""Dials of own pools: a few at a time, one after a failure, at a pace; and who waits is served or sent away."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.core.breaker import Breaker, BreakerPolicy
from dbguard.core.failure import Family
from dbguard.core.route import Node
from dbguard.core.statement import Touch
from dbguard.core.topology import NodeView
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.drivers.asyncpg.failures import name_dial
from dbguard.drivers.asyncpg.pool import OwnPool
from dbguard.drivers.named import NotDialled
from dbguard.drivers.pacing import AT_ONCE
from dbguard.testing.clock import ManualClock
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.testing.cluster import Cluster

SIZE = 12


class Line:
    """What dials go through. fails: what each raises now; None: none. begun: dials so far. most: at one time."""

    def __init__(self, dial: Any) -> None:
        self._dial = dial
        self.fails: Exception | None = None
        self.begun = self.busy = self.most = 0
        self.open = asyncio.Event()
        self.open.set()

    async def dial(self, *args: Any, **kwargs: Any) -> Any:
        self.begun += 1
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            await self.open.wait()
            await asyncio.sleep(0.001)
            if self.fails is not None:
                raise self.fails
            return await self._dial(*args, **kwargs)
        finally:
            self.busy -= 1


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def line(single: Cluster) -> Line:
    where = {"host": "127.0.0.1", "port": single.primary.port, "user": "postgres", "database": "postgres"}
    line = Line(None)
    dialer = Dialer(where, {})
    line._dial = dialer.dial
    line.make = partial(dialer.pool, SIZE)  # type: ignore[attr-defined]
    return line


@pytest.fixture
async def pool(line: Any, clock: ManualClock) -> AsyncIterator[OwnPool]:
    rng = random.Random(1)
    pool = OwnPool(
        Node("a", Breaker(BreakerPolicy(), rng), NodeView(name="a")),
        line.make,
        clock=clock,
        size=SIZE,
        keep=0,
        hold=SIZE,
        max_lifetime=1e9,
        max_idle=1e9,
        max_uses=1e9,
        dial=line.dial,
        check=lambda _: None,
        ask_within=30.0,
        rng=rng,
    )
    await pool.open()
    yield pool
    await pool.close(0.1)


async def callers(pool: OwnPool, count: int) -> list[asyncio.Future[Any]]:
    """Let *count* callers ask for a connection; returns once the first dials have begun, and failed where they do."""
    takes = [asyncio.ensure_future(pool.take()) for _ in range(count)]
    await asyncio.sleep(0.005)
    return takes


async def test_many_callers_dial_a_few_at_a_time_and_all_are_served(pool: OwnPool, line: Line) -> None:
    takes = await callers(pool, 5 * SIZE)

    for take in asyncio.as_completed(takes):
        pool.give(await take, Touch.NOTHING)

    assert line.most == AT_ONCE
    assert line.begun <= SIZE


async def test_a_connection_that_comes_back_is_handed_on_while_dials_hang(pool: OwnPool, line: Line) -> None:
    lease = await pool.take()
    line.open.clear()
    takes = await callers(pool, AT_ONCE + 1)

    pool.give(lease, Touch.NOTHING)

    assert await asyncio.wait_for(takes[-1], 60) is lease
    assert line.begun == 1 + AT_ONCE
    line.open.set()
    await asyncio.gather(*takes)


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), asyncpg.TooManyConnectionsError("full")])
async def test_after_a_failure_who_waits_in_vain_is_told_why_and_nobody_dials(
    pool: OwnPool, line: Line, error: Exception
) -> None:
    line.fails = error

    ends = await asyncio.gather(*(await callers(pool, 50)), return_exceptions=True)
    ends += await asyncio.gather(*(await callers(pool, 50)), return_exceptions=True)

    assert line.begun == AT_ONCE
    refused = [end for end in ends if isinstance(end, NotDialled)]
    assert 100 - AT_ONCE <= len(refused) < 100
    failure = name_dial(refused[0], "a")
    assert (type(failure.cause), failure.cause.args) == (type(error), error.args)
    assert failure.cause is not error, "each caller has one of its own"
    assert failure.family is name_dial(error, "a").family
    assert failure.ours, "one failure is not counted a hundred times"


async def test_dials_after_failures_are_one_at_a_time_and_further_and_further_apart(
    pool: OwnPool, line: Line, clock: ManualClock
) -> None:
    line.fails = ConnectionRefusedError()
    dialled_at = []
    while clock.now < 130.0:
        before = line.begun
        await asyncio.gather(*(await callers(pool, 10)), return_exceptions=True)
        if line.begun != before:
            dialled_at.append((clock.now, line.begun - before))
        clock.advance(0.01)

    assert dialled_at[0] == (100.0, AT_ONCE)
    assert {count for _, count in dialled_at[1:]} == {1}
    assert 30 <= len(dialled_at) <= 90  # full jitter up to 1 s: one in half a second


async def test_a_probe_that_was_answered_since_ends_the_pause_of_a_node_that_was_down(
    pool: OwnPool, line: Line, clock: ManualClock
) -> None:
    line.fails = ConnectionRefusedError()
    await asyncio.gather(*(await callers(pool, 1)), return_exceptions=True)
    line.fails = None

    pool.node.seen_at = clock.now + 0.001

    assert await pool.take()


async def test_a_full_server_is_not_dialled_again_because_a_probe_was_answered(
    pool: OwnPool, line: Line, clock: ManualClock
) -> None:
    line.fails = asyncpg.TooManyConnectionsError("full")
    await asyncio.gather(*(await callers(pool, 1)), return_exceptions=True)
    line.fails = None

    pool.node.seen_at = clock.now + 0.001

    with pytest.raises(NotDialled):
        await pool.take()
    clock.advance(0.05)
    assert await pool.take()


async def test_who_meets_a_full_server_waits_for_what_is_handed_on(
    pool: OwnPool, line: Line, clock: ManualClock
) -> None:
    lease = await pool.take()
    line.fails = asyncpg.TooManyConnectionsError("full")
    takes = await callers(pool, 3)
    await until(lambda: pool.full)  # to wait in vain says nothing about the node
    assert not any(take.done() for take in takes)
    assert name_dial(TimeoutError(), "a", full=pool.full).family is Family.NEUTRAL
    assert pool.node.soft_until > clock.now

    for take in takes:
        pool.give(lease, Touch.NOTHING)
        assert await asyncio.wait_for(take, 60) is lease

    assert line.begun <= 1 + AT_ONCE


async def test_who_waits_dials_when_the_pause_is_over(pool: OwnPool, line: Line, clock: ManualClock) -> None:
    lease = await pool.take()
    line.fails = asyncpg.TooManyConnectionsError("full")
    takes = await callers(pool, 2)
    line.fails = None
    assert not any(take.done() for take in takes)

    clock.advance(0.05)  # the pause itself is waited for on the loop: some milliseconds
    done = [await asyncio.wait_for(take, 60) for take in takes]

    assert lease not in done


async def test_who_waits_is_sent_away_when_the_last_connection_is_gone(pool: OwnPool, line: Line) -> None:
    lease = await pool.take()
    line.fails = asyncpg.TooManyConnectionsError("full")
    takes = await callers(pool, 3)

    lease.terminate()
    pool.give(lease, Touch.NOTHING)

    ends = await asyncio.wait_for(asyncio.gather(*takes, return_exceptions=True), 60)
    assert all(isinstance(end, NotDialled | asyncpg.TooManyConnectionsError) for end in ends)


async def test_a_caller_that_goes_away_leaves_its_turn_to_the_next(pool: OwnPool, line: Line) -> None:
    line.open.clear()
    takes = await callers(pool, AT_ONCE + 1)

    takes[0].cancel()
    await until(lambda: line.begun == AT_ONCE + 1)

    line.open.set()
    assert await asyncio.wait_for(takes[-1], 60)
    await asyncio.gather(*takes, return_exceptions=True)
