"""RULES 1.6, tried: an original that comes late, behind its own repeat, and what keeps it out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.drivers import outcome_sql
from tests.drivers.conftest import Wire
from tests.integration.outcome.conftest import claim, new_token
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.testing.cluster import Cluster

pytestmark = pytest.mark.every_postgres

SET = "UPDATE item SET n = $2 WHERE id = $1"
GONE = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $1"


@pytest.fixture
async def wire(home: Cluster) -> AsyncIterator[Wire]:
    async with Wire("127.0.0.1", home.primary.port) as wire:
        yield wire


async def test_an_idempotent_repeat_is_overtaken_by_its_late_original(
    home: Cluster, wire: Wire, connect: Any, item: Any
) -> None:
    """Set to 1, twice, and then to 2: each acknowledged, in this order, and 1 is what is left."""
    row = await item(home)
    slow, con = await connect(home, port=wire.port), await connect(home)
    statement = await slow.prepare(SET)
    wire.stall()
    original = asyncio.ensure_future(statement.fetch(row, 1))
    await asyncio.sleep(0)

    assert await con.execute(SET, row, 1) == "UPDATE 1"  # the repeat
    assert await con.execute(SET, row, 2) == "UPDATE 1"  # a newer write
    wire.unstall()
    await original

    assert await con.fetchval("SELECT n FROM item WHERE id = $1", row) == 1


async def test_once_the_old_backend_is_gone_no_original_can_come_late(
    home: Cluster, wire: Wire, connect: Any, item: Any
) -> None:
    row = await item(home)
    slow, con = await connect(home, port=wire.port), await connect(home)
    statement = await slow.prepare(SET)
    wire.stall()
    original = asyncio.ensure_future(statement.fetch(row, 1))
    await asyncio.sleep(0)

    await con.fetchval("SELECT pg_terminate_backend($1)", slow.get_server_pid())
    await until(lambda: con.fetchval(GONE, slow.get_server_pid()))
    assert await con.execute(SET, row, 1) == "UPDATE 1"
    assert await con.execute(SET, row, 2) == "UPDATE 1"
    wire.unstall()
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await original

    assert await con.fetchval("SELECT n FROM item WHERE id = $1", row) == 2


async def test_a_claimed_token_keeps_the_late_original_out_without_ending_its_backend(
    home: Cluster, wire: Wire, connect: Any, item: Any
) -> None:
    row, token = await item(home), new_token()
    slow, con = await connect(home, port=wire.port), await connect(home)
    statement = await slow.prepare(f"WITH {outcome_sql.cte_item('$3')} {SET}")
    wire.stall()
    original = asyncio.ensure_future(statement.fetch(row, 1, token))
    await asyncio.sleep(0)

    assert await claim(con, token) == "x"
    assert await con.execute(SET, row, 1) == "UPDATE 1"
    assert await con.execute(SET, row, 2) == "UPDATE 1"
    wire.unstall()
    with pytest.raises(asyncpg.UniqueViolationError):
        await original

    assert await con.fetchval("SELECT n FROM item WHERE id = $1", row) == 2
