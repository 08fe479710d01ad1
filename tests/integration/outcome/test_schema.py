"""The schema as it is installed, used by a guard whose role has the least rights."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import dbguard
from tests.integration.outcome.conftest import install, new_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dbguard.testing.cluster import Cluster

pytestmark = pytest.mark.every_postgres

ADD = "UPDATE item SET n = n + 1 WHERE id = $1"


@pytest.fixture
async def guard(home: Cluster) -> AsyncIterator[dbguard.Guard]:
    settings = {
        "nodes": [{"host": "127.0.0.1", "port": home.primary.port}],
        "connection": {"user": "app", "database": "postgres"},
        "outcome": {"resolve": "token-table"},
    }
    async with dbguard.Guard(settings, min_size=1, max_size=4) as opened:
        await opened.ready()
        yield opened


def tokens(home: Cluster) -> int:
    count: int = home.sql("a", "SELECT count(*)::int FROM dbguard.token WHERE kind = 'w'")[0][0]
    return count


async def autocommit(guard: dbguard.Guard, row: int) -> None:
    await guard.execute(ADD, row)


async def returning(guard: dbguard.Guard, row: int) -> None:
    assert await guard.fetchval(f"{ADD} RETURNING n", row) == 1


async def many(guard: dbguard.Guard, row: int) -> None:
    await guard.executemany(ADD, [(row,)])


async def function(guard: dbguard.Guard, row: int) -> None:
    async def work(con: dbguard.Connection) -> None:
        await con.execute(ADD, row)

    await guard.run_in_transaction(work)


async def block(guard: dbguard.Guard, row: int) -> None:
    async with guard.transaction() as con:
        await con.execute(ADD, row)


async def under_another_role(guard: dbguard.Guard, row: int) -> None:
    async with guard.transaction() as con:
        await con.execute("SET LOCAL ROLE stranger")
        await con.execute(ADD, row)


CALLS = [autocommit, returning, many, function, block, under_another_role]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_the_least_rights_are_enough_for_every_form(
    call: Callable[[dbguard.Guard, int], Awaitable[None]], guard: dbguard.Guard, home: Cluster, item: Any
) -> None:
    row, before = await item(home), tokens(home)

    await call(guard, row)

    assert (tokens(home), home.sql("a", "SELECT n FROM item WHERE id = $1", row)) == (before + 1, [(1,)])


async def test_the_least_rights_are_enough_to_resolve(guard: dbguard.Guard, home: Cluster) -> None:
    stored, free = new_token(), new_token()
    home.sql("a", "SELECT dbguard.mark($1)", stored)

    assert [await guard.resolve(str(token)) for token in (stored, free, stored, free)] == [True, False, True, False]


async def test_a_read_only_transaction_leaves_nothing(guard: dbguard.Guard, home: Cluster, item: Any) -> None:
    row, before = await item(home), tokens(home)

    async with guard.transaction() as con:
        await con.fetch("SELECT n FROM item WHERE id = $1", row)
    async with guard.transaction(readonly=True) as con:
        await con.fetch("SELECT n FROM item WHERE id = $1", row)

    assert tokens(home) == before


async def test_a_schema_dropped_under_a_running_guard_ends_the_tokens_and_not_the_writes(
    guard: dbguard.Guard, home: Cluster, item: Any
) -> None:
    row = await item(home)
    await guard.execute(ADD, row)
    home.sql("a", "DROP SCHEMA dbguard CASCADE")
    try:
        for call in (autocommit, function, autocommit):
            await asyncio.wait_for(call(guard, row), 20)
    finally:
        await asyncio.to_thread(partial(install, home))

    assert home.sql("a", "SELECT n FROM item WHERE id = $1", row) == [(4,)]
