"""What became of a commit whose connection broke, over pools of the application's: claims borrow a connection from them."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

import dbguard
from dbguard.testing.wire import Break, Wire

ADD = "UPDATE item SET n = n + 1 WHERE id = $1"
UNSEEN = {Break.REQUEST_CUT, Break.LATE}


@pytest.fixture
async def wire(home):
    async with Wire("127.0.0.1", home.node("a").port) as wire:
        yield wire
        wire.heal()


@pytest.fixture
async def wrapped(wire):
    """A guard over a pool of role app, through the wire, and the pool itself."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*, outcome=None, **arguments):
            sizes = {"min_size": 1, "max_size": 4}
            connection = {"host": "127.0.0.1", "port": wire.port, "user": "app", "database": "postgres"}
            pool = await asyncpg.create_pool(**connection, **(sizes | arguments))
            stack.callback(pool.terminate)
            config = {"outcome": outcome or {"resolve": "token-table"}, "timeout": "20s", "probe": {"timeout": "3s"}}
            guard = dbguard.Guard.wrap(pool, config=config)
            await guard.open()
            stack.push_async_callback(guard.close, timeout=0.5)
            return guard, pool

        yield make


async def n_of(home, number):
    return (await asyncio.to_thread(home.sql, "a", "SELECT n FROM item WHERE id = $1", number))[0][0]


async def write(guard, way, number):
    match way:
        case "cte":
            await guard.execute(f"UPDATE item SET n = n + 1 WHERE id = {number}")
        case "many":
            await guard.executemany(ADD, [(number,)])
        case "acquired":
            async with guard.acquire() as con:
                await con.execute(f"UPDATE item SET n = n + 1 WHERE id = {number}")
        case "block":
            async with guard.transaction() as tx, tx.transaction():
                await tx.execute(ADD, number)
        case "function":
            await guard.run_in_transaction(lambda tx: tx.execute(ADD, number))


COMMITS = {
    "cte": b"dbguard token",
    "many": b"; COMMIT",
    "acquired": b"dbguard token",
    "block": b"COMMIT;\x00",
    "function": b"COMMIT;\x00",
}


@pytest.mark.parametrize("how", [Break.REQUEST_CUT, Break.ACK_CUT, Break.LATE, Break.ORPHAN], ids=lambda how: how.value)
@pytest.mark.parametrize("way", COMMITS)
async def test_a_broken_commit_is_applied_once_or_said_not_to_be(home, wrapped, wire, item, way, how):
    guard, _ = await wrapped()
    number = await item(home)
    await write(guard, way, number)
    wire.arm(COMMITS[way], how)

    raised = None
    try:
        await write(guard, way, number)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raised = error

    assert wire.struck == 1
    wire.deliver()
    counts = guard.status().counts
    assert counts["unknown"] == 0
    assert counts["proved_applied"] + counts["proved_not_applied"] == 1
    assert counts["proved_not_applied"] == (how in UNSEEN)
    if raised is None:
        assert await n_of(home, number) == 2
    else:
        assert how in UNSEEN
        assert way in ("acquired", "block")
        assert "it was not applied" in "".join(getattr(raised, "__notes__", ()))
        assert await n_of(home, number) == 1


async def test_a_writes_own_backend_that_holds_its_locks_is_ended(home, wrapped, wire, item):
    guard, _ = await wrapped()
    number = await item(home)
    await write(guard, "function", number)
    wire.arm(b"COMMIT;\x00", Break.REQUEST_HOLE)

    await write(guard.using(timeout=6), "function", number)

    assert wire.struck == 1
    assert await n_of(home, number) == 2


async def test_a_pool_that_takes_on_a_role_at_each_checkout_claims_with_the_logins_rights(home, wrapped, wire, item):
    async def setup(con):
        await con.execute("SET ROLE stranger")

    guard, pool = await wrapped(setup=setup)
    number = await item(home)
    assert await pool.fetchval("SELECT current_user") == "stranger"

    for way in ("cte", "block"):
        await write(guard, way, number)
        wire.arm({"cte": b"; COMMIT", "block": b"COMMIT;\x00"}[way], Break.ACK_CUT)
        await write(guard, way, number)

    assert wire.struck == 2
    assert guard.status().counts["proved_applied"] == 2
    assert await n_of(home, number) == 4
    assert await pool.fetchval("SELECT current_user") == "stranger"


async def test_a_claim_leaves_the_applications_connection_as_it_was(home, wrapped, wire, item):
    guard, pool = await wrapped(max_size=1)
    number = await item(home)
    wire.arm(COMMITS["cte"], Break.ACK_CUT)

    await write(guard, "cte", number)

    assert guard.status().counts["proved_applied"] == 1
    async with asyncio.timeout(30):
        row = await pool.fetchrow("SELECT current_user::text, current_setting('synchronous_commit')")
    assert tuple(row) == ("app", "on")
    assert pool.get_size() == 1


async def test_where_the_application_holds_every_connection_the_outcome_is_told_later(
    home, wrapped, wire, item, connect
):
    guard, pool = await wrapped(max_size=2)
    number = await item(home)
    holder = await connect(home)
    locking = holder.transaction()
    await locking.start()
    await holder.execute(ADD, number)
    held = [await pool.acquire()]
    wire.arm(COMMITS["cte"], Break.ACK_CUT)
    writing = asyncio.create_task(write(guard.using(timeout=3), "cte", number))
    await wire.broken.wait()

    async def next_one():
        held.append(await pool.acquire())

    waiting = asyncio.create_task(next_one())  # before any claim can be
    await asyncio.sleep(0)
    await locking.commit()
    await waiting
    with pytest.raises(dbguard.OutcomeUnknown, match="not answered in time") as caught:
        await writing

    for con in held:
        await pool.release(con)
    assert await guard.resolve(caught.value.token) is True
    assert await n_of(home, number) == 2


async def test_without_tokens_every_unknown_is_raised_and_none_is_repeated(home, wrapped, wire, item):
    guard, _ = await wrapped(outcome={"resolve": "none"})
    for way, commit in {"cte": b"UPDATE item", "many": b"B\x00", "block": b"COMMIT;", "function": b"COMMIT;"}.items():
        for how, applied in ((Break.ACK_CUT, 1), (Break.REQUEST_CUT, 0)):
            number = await item(home)
            await guard.fetchval("SELECT 1")
            wire.arm(commit, how)

            with pytest.raises(dbguard.OutcomeUnknown) as caught:
                await write(guard, way, number)

            assert caught.value.token is None
            assert await n_of(home, number) == applied, (way, how)

    assert wire.struck == 8
    assert guard.status().counts["unknown"] == 8
    assert guard.status().counts["repeats"] == 0
