"""A node's table of tokens, asked by many at once."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

from dbguard.core.outcome import new_token
from dbguard.drivers import outcome_sql
from dbguard.drivers.psycopg.dial import own_dialer
from dbguard.drivers.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.testing.cluster import Cluster

NOBODY = (0, None)


class Door:
    """Opens connections for claims, and watches how. left: so many of them do not open."""

    def __init__(self, cluster: Cluster, driver: str) -> None:
        self.opened = self.at_once = self.most = 0
        self.left = 0
        self._dsn = cluster.dsn()
        self._driver = driver

    async def __call__(self, *, timeout: float) -> Any:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            if self.left:
                self.left -= 1
                await asyncio.sleep(0)
                raise ConnectionRefusedError("not yet")
            con: Any = (
                await asyncpg.connect(self._dsn, ssl=False, timeout=timeout)
                if self._driver == "asyncpg"
                else await own_dialer(conninfo_to_dict(self._dsn), {}).registry(timeout=timeout)
            )
        finally:
            self.at_once -= 1
        self.opened += 1
        return con


@pytest.fixture(params=["asyncpg", "psycopg"])
async def door(request: pytest.FixtureRequest, single: Cluster) -> AsyncIterator[Door]:
    con = await asyncpg.connect(single.dsn(), ssl=False)
    await con.execute(outcome_sql.schema())
    yield Door(single, request.param)
    await con.execute("DROP SCHEMA dbguard CASCADE")
    await con.close()


def registry_of(door: Door) -> Registry:
    return Registry("a", door, lambda _: None, clock=time.monotonic)


async def claim(registry: Registry) -> bool:
    return await registry.claim(new_token(time.time(), secrets.randbits(74)), NOBODY, 30.0)


async def test_claims_that_come_all_at_once_are_dialled_for_one_by_one(door: Door) -> None:
    registry = registry_of(door)

    committed = await asyncio.gather(*(claim(registry) for _ in range(20)))

    assert not any(committed)
    assert door.most == 1
    assert 1 <= door.opened <= 8
    registry.close()


async def test_a_dial_that_fails_is_felt_by_its_own_claim_alone(door: Door) -> None:
    door.left = 2
    registry = registry_of(door)

    async with asyncio.timeout(60):
        ends = await asyncio.gather(*(claim(registry) for _ in range(6)), return_exceptions=True)

    assert [type(end) for end in ends] == [ConnectionRefusedError] * 2 + [bool] * 4
    registry.close()


async def test_a_claim_that_is_given_up_while_it_dials_or_waits_lets_the_others_go_on(door: Door) -> None:
    registry = registry_of(door)
    claims = [asyncio.ensure_future(claim(registry)) for _ in range(4)]
    await asyncio.sleep(0)

    claims[0].cancel()
    claims[2].cancel()

    async with asyncio.timeout(60):
        ends = await asyncio.gather(*claims, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError, bool, asyncio.CancelledError, bool]
    registry.close()


async def test_a_claim_that_was_prepared_for_dials_nothing(door: Door) -> None:
    registry = registry_of(door)

    assert await registry.prepare(30.0)
    assert not await registry.prepare(30.0)  # it waits already
    assert not await claim(registry)

    assert door.opened == 1
    registry.close()


async def test_a_node_that_could_not_be_dialled_for_a_claim_to_come_is_left_alone_for_a_while(door: Door) -> None:
    door.left = 1
    registry = registry_of(door)

    with pytest.raises(ConnectionRefusedError):
        await registry.prepare(30.0)

    assert not await registry.prepare(30.0)
    assert not await claim(registry)  # whoever needs it dials
    registry.close()
