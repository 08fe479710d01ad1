"""Guards of both colours over psycopg, and connections taken from them, on a real server.

`guard`: open on one node. `held(...)`: a connection of its, in a block that ends with the test. What is at stake in what
is done on it is noted, in order, as its session's `done`.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import dbguard
from tests.pg.colours import block, got, noted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dbguard.testing.cluster import Cluster


@pytest.fixture
def configured(calm_cluster: Cluster) -> dict[str, Any]:
    node = calm_cluster.node("a")
    connection = {"user": "postgres", "database": "postgres"}
    nodes = [{"name": "a", "host": "127.0.0.1", "port": node.port}]
    # A machine that stands still for a second or two, and its servers with it, is none that is down.
    return {"nodes": nodes, "connection": connection, "probe": {"timeout": 3.0}}


@pytest.fixture
def told() -> list[Any]:
    """What the guard has told, in order."""
    return []


@pytest.fixture(params=["tasks", "threads"])
async def guard(
    request: pytest.FixtureRequest, configured: dict[str, Any], told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    monkeypatch.setattr("dbguard.refresh.FIRST_WITHIN", 30.0)  # no connection is out for the catalogue's sake
    kind = dbguard.PsycopgGuard if request.param == "tasks" else dbguard.SyncGuard
    made: Any = kind(configured, on_event=told.append, min_size=1, max_size=4)
    with warnings.catch_warnings():
        # These tests run on an event loop, which may stand still.
        warnings.filterwarnings("ignore", "a SyncGuard is used in the thread of a running event loop", RuntimeWarning)
        await got(made.open())
    yield made
    await got(made.close(timeout=1.0))


@pytest.fixture
async def held(guard: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Take a connection. autocommit: set it so. transaction: take it with `guard.transaction()`."""
    stack = contextlib.AsyncExitStack()
    with contextlib.suppress(psycopg.Error):  # a test may leave a transaction that has failed
        async with stack:

            async def make(*, autocommit: bool = False, transaction: bool = False) -> Any:
                con = await stack.enter_async_context(block(guard.transaction() if transaction else guard.connection()))
                if autocommit:
                    await got(con.set_autocommit(True))
                noted(con._held.session)
                return con

            yield make


@pytest.fixture
async def con(held: Callable[..., Awaitable[Any]]) -> Any:
    return await held()


@pytest.fixture
def kept(calm_cluster: Cluster) -> Any:
    """Make an empty table `kept (n int, word text)`; returns what counts its rows from another connection."""
    calm_cluster.sql("a", "DROP TABLE IF EXISTS kept")
    calm_cluster.sql("a", "CREATE TABLE kept (n int PRIMARY KEY, word text)")
    return lambda: calm_cluster.sql("a", "SELECT count(*) FROM kept")
