"""Guards over real clusters, and bounded waiting.

* `open_guard(cluster, ...)`: a guard over all nodes of a cluster, closed at the end; their names are the cluster's.
  A machine that runs tests stands still for a second now and then, and so do its servers: a probe waits 3 s for an answer,
  and the opening as long as it takes for the catalogue, unless the test says otherwise. So what is told of a node is told
  for its own sake, and texts are known for what they are.
* `facade`: which kind of guard that is (`facades`); asyncpg's, unless a test is for others as well.
* `events`: what all guards of the test have told, in order.
* `until(condition)`: waits for a condition, plain or async; fails after some seconds.
* `settled(guard)`: waits until the guard knows a primary and every other node is a replica that serves reads.
* `all_given_back(guard)`: waits until no lease is out.
* `table`: the name of a table with columns `id int primary key, n int`, on the calm cluster, replicated.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from tests import waiting
from tests.integration.facades import FACADES, kind_of, waited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import dbguard
    from dbguard.events import Event
    from dbguard.testing.cluster import Cluster

_numbers = itertools.count(1)

PATIENT = {"probe": {"timeout": 3.0}}


def nodes_of(cluster: Cluster, *names: str) -> list[dict[str, Any]]:
    wanted = names or tuple(node.name for node in cluster.nodes)
    return [{"name": name, "host": "127.0.0.1", "port": cluster.node(name).port} for name in wanted]


async def _settled(guard: dbguard.Guard, replicas: int | None = None, timeout: float = 60.0) -> None:
    def is_settled() -> bool:
        status = guard.status()
        serving = [node for node in status.nodes if node.role == "replica" and node.proven and node.lag is not None]
        wanted = len(status.nodes) - 1 if replicas is None else replicas
        return status.writes == "open" and len(serving) >= wanted

    try:
        await waiting.until(is_settled, timeout)
    except TimeoutError:
        pytest.fail(f"not settled: {guard.status()}")


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    return waiting.until


@pytest.fixture
def settled() -> Callable[..., Awaitable[None]]:
    return _settled


@pytest.fixture
def all_given_back() -> Callable[[dbguard.Guard], Awaitable[None]]:
    """Wait until no lease is out (the guard's own reading of the catalogue takes one now and then)."""

    async def wait(guard: dbguard.Guard) -> None:
        await waiting.until(lambda: all(node.in_use == 0 for node in guard.status().nodes))

    return wait


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def configured() -> Callable[..., dict[str, Any]]:
    """Make the configuration of a guard over a cluster, with sections added."""

    def make(cluster: Cluster, *names: str, **sections: Any) -> dict[str, Any]:
        connection = {"user": "postgres", "database": "postgres"} | sections.pop("connection", {})
        return {"nodes": nodes_of(cluster, *names), "connection": connection, **PATIENT, **sections}

    return make


@pytest.fixture
def facade(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", FACADES[0])


@pytest.fixture
async def open_guard(
    configured: Callable[..., dict[str, Any]], events: list[Event], facade: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    monkeypatch.setattr("dbguard.refresh.FIRST_WITHIN", 30.0)
    kind = kind_of(facade)
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            cluster: Cluster,
            *names: str,
            config: dict[str, Any] | None = None,
            settle: bool = True,
            **arguments: Any,
        ) -> Any:
            guard = kind(configured(cluster, *names, **(config or {})), on_event=events.append, **arguments)
            await waited(guard.open)
            stack.push_async_callback(waited, guard.close, timeout=1.0)
            if settle:
                await _settled(guard)
            return guard

        yield make


@pytest.fixture
def table(calm_cluster: Cluster) -> Iterator[str]:
    name = f"t{next(_numbers)}"
    calm_cluster.sql("a", f"CREATE TABLE {name} (id int PRIMARY KEY, n int)")
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, f"SELECT to_regclass('{name}') IS NOT NULL")
    yield name
    calm_cluster.sql("a", f"DROP TABLE IF EXISTS {name} CASCADE")
