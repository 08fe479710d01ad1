"""`using(idempotent=True)`: a lost write is repeated at the caller's word, and only once nothing can come after it."""

from __future__ import annotations

import asyncio

import pytest

import dbguard
from dbguard.testing.wire import Break, Wire

SLOW = "UPDATE item SET n = 7 WHERE id = {number} AND (SELECT count(*) FROM (SELECT pg_advisory_xact_lock(815)) AS held) > 0"


@pytest.fixture
async def wire(home):
    async with Wire("127.0.0.1", home.node("a").port) as wire:
        yield wire
        wire.heal()


@pytest.fixture
async def guard(wire):
    config = {
        "nodes": [{"host": "127.0.0.1", "port": wire.port, "name": "a"}],
        "connection": {"user": "app", "database": "postgres"},
        "timeout": "20s",
        "probe": {"timeout": "3s"},
    }
    async with dbguard.connect(config, server_settings={"application_name": "writer"}) as guard:
        yield guard


def looked(home, query, *args):
    return asyncio.to_thread(home.sql, "a", query, *args)


async def test_a_lost_write_is_repeated_at_the_callers_word(home, guard, wire, item):
    number = await item(home)
    wire.arm(b"SET n = 7", Break.ACK_CUT)

    assert await guard.using(idempotent=True).execute(f"UPDATE item SET n = 7 WHERE id = {number}") == "UPDATE 1"

    assert wire.struck == 1
    assert guard.status().counts["repeats"] == 1
    assert await looked(home, "SELECT n FROM item WHERE id = $1", number) == [(7,)]


async def test_without_that_word_it_is_unknown(home, guard, wire, item):
    number = await item(home)
    wire.arm(b"SET n = 7", Break.ACK_CUT)

    with pytest.raises(dbguard.OutcomeUnknown):
        await guard.execute(f"UPDATE item SET n = 7 WHERE id = {number}")

    assert guard.status().counts["repeats"] == 0


async def test_its_old_backend_is_ended_before_the_repeat(home, guard, wire, item, connect, until):
    """It waits for a lock: without its end it would overwrite, once it gets it, what was written since."""
    number = await item(home)
    holder = await connect(home)
    await holder.execute("SELECT pg_advisory_lock(815)")
    wire.arm(b"815", Break.ORPHAN)

    writing = asyncio.create_task(guard.using(idempotent=True).execute(SLOW.format(number=number)))
    await until(lambda: guard.status().counts["repeats"])
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writer' AND wait_event = 'advisory'"
    await until(lambda: holder.fetchval(waiting))

    assert await holder.fetchval(waiting) == 1, "the repeat alone"
    await holder.execute("SELECT pg_advisory_unlock(815)")
    assert await writing == "UPDATE 1"


async def test_a_backend_that_must_not_be_ended_leaves_the_write_unknown(pair, open_guard, item, until):
    """It waits for a standby: its end would show a commit that no standby has."""
    number = await item(pair)
    guard = await open_guard(pair, settle=False, server_settings={"application_name": "doomed"})
    await asyncio.to_thread(pair.stop_node, "b")
    try:
        with pytest.raises(dbguard.OutcomeUnknown, match="may still be applied later"):
            await guard.using(idempotent=True, timeout=3).execute("UPDATE item SET n = 7 WHERE id = $1", number)

        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'doomed' AND wait_event = 'SyncRep'"
        assert await looked(pair, left) == [(1,)]
        assert guard.status().counts["repeats"] == 0
    finally:
        await asyncio.to_thread(pair.start_node, "b")


async def test_an_operators_trust_in_the_server_is_no_end_of_its_backends(pair, item, until):
    """It begins another reign there, and what waits for a standby goes on: a repeat would come before it."""
    number = await item(pair)
    left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'left' AND wait_event = 'SyncRep'"
    async with Wire("127.0.0.1", pair.node("a").port) as wire:
        config = {
            "nodes": [{"host": "127.0.0.1", "port": wire.port, "name": "a"}],
            "connection": {"user": "app", "database": "postgres"},
        }
        async with dbguard.connect(config, server_settings={"application_name": "left"}) as guard:
            await asyncio.to_thread(pair.stop_node, "b")
            try:
                wire.arm(b"SET n = 7", Break.ORPHAN)
                write = f"UPDATE item SET n = 7 WHERE id = {number}"
                writing = asyncio.create_task(guard.using(idempotent=True, timeout=10).execute(write))
                await until(lambda: wire.struck)
                before = guard.status().reign
                guard.trust("a")
                await until(lambda: guard.status().reign not in {None, before})
                with pytest.raises(dbguard.OutcomeUnknown, match="may still be applied later"):
                    await writing
                assert await looked(pair, left) == [(1,)]
                assert guard.status().counts["repeats"] == 0
            finally:
                await asyncio.to_thread(pair.start_node, "b")
                wire.heal()
