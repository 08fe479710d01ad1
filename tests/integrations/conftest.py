"""Guards over real clusters, with SQLAlchemy's engines on them.

* `guard`: over the calm cluster, settled; `open_guard(cluster, ...)` opens others. Closed at the end.
* `engine_of(guard, ...)`: an engine, disposed of at the end.
* `shop`: the tables of `tests/integrations/shop.py` on the calm cluster, empty, on all nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

import dbguard
from dbguard.integrations.sqlalchemy import create_async_engine
from tests.integrations.shop import Base
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from dbguard.testing.cluster import Cluster


def is_settled(guard: dbguard.Guard) -> bool:
    status = guard.status()
    replicas = [node for node in status.nodes if node.role == "replica" and node.proven and node.lag is not None]
    return status.writes == "open" and len(replicas) == len(status.nodes) - 1


@pytest.fixture
async def open_guard(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Awaitable[dbguard.Guard]]]:
    """Open guards that bear a machine, and its servers, which stand still for a second or two."""
    monkeypatch.setattr("dbguard.refresh.FIRST_WITHIN", 30.0)
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            cluster: Cluster, *, settle: bool = True, ports: dict[str, int] | None = None, **given: Any
        ) -> dbguard.Guard:
            nodes = [
                {"name": node.name, "host": "127.0.0.1", "port": (ports or {}).get(node.name, node.port)}
                for node in cluster.nodes
            ]
            connection = {"user": "postgres", "database": "postgres"}
            config = {"nodes": nodes, "connection": connection, "probe": {"timeout": "3s"}}
            config |= {name: given.pop(name) for name in ("timeout", "probe") if name in given}
            guard = await dbguard.Guard(config, **given).open()
            stack.push_async_callback(guard.close, timeout=1.0)
            if settle:
                await until(lambda: is_settled(guard))
            return guard

        yield make


@pytest.fixture
async def engine_of() -> AsyncIterator[Callable[..., AsyncEngine]]:
    async with contextlib.AsyncExitStack() as stack:

        def make(guard: dbguard.Guard, **arguments: Any) -> AsyncEngine:
            engine = create_async_engine(guard, **arguments)
            stack.push_async_callback(engine.dispose)
            return engine

        yield make


@pytest.fixture
async def guard(calm_cluster: Cluster, open_guard: Callable[..., Awaitable[dbguard.Guard]]) -> dbguard.Guard:
    return await open_guard(calm_cluster)


@pytest.fixture
async def engine(guard: dbguard.Guard, engine_of: Callable[..., AsyncEngine]) -> AsyncEngine:
    return engine_of(guard)


@pytest.fixture
async def shop(calm_cluster: Cluster, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """The engine, with the tables there on all nodes."""
    async with engine.begin() as con:
        await con.run_sync(Base.metadata.drop_all)
        await con.run_sync(Base.metadata.create_all)
    for replica in calm_cluster.replicas:
        await asyncio.to_thread(calm_cluster.wait_for, replica, "SELECT to_regclass('part') IS NOT NULL")
    yield engine
    async with engine.begin() as con:
        await con.run_sync(Base.metadata.drop_all)
