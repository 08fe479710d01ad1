"""The web application of the examples, asked through ASGI: contexts, health, and what its clients get in trouble."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dbguard.testing.cluster import Cluster

APP = Path(__file__).parents[2] / "examples" / "fastapi_app.py"

assert APP.name == "fastapi_app.py"


@pytest.fixture
def load_app(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import the application afresh: it makes its guard when it is imported."""

    def load(dsn: str) -> Any:
        monkeypatch.setenv("DATABASE_URL", dsn)
        spec = importlib.util.spec_from_file_location("example_fastapi_app", APP)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # FastAPI looks its annotations up there
        spec.loader.exec_module(module)
        return module

    return load


def client_of(module: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=module.app), base_url="http://shop")


@asynccontextmanager
async def serving(module: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with module.app.router.lifespan_context(module.app), client_of(module) as client:
        yield client


def answer(response: httpx.Response) -> tuple[int, Any, str | None]:
    return response.status_code, response.json(), response.headers.get("Retry-After")


NOT_CHANGED = {"detail": "The database is away for a moment. Nothing was changed."}
PERHAPS = {"detail": "The change may have been made. Look before you send it again."}


async def replayed(client: httpx.AsyncClient) -> None:
    """Wait until the replicas have the table: a request has written nothing, so that its reads do not wait for it."""
    for _ in range(200):
        try:
            await client.get("/articles/7")
        except asyncpg.UndefinedTableError:
            await asyncio.sleep(0.02)


async def test_request_reads_its_own_write_and_holds_nobody_elses_reads_on_the_primary(
    cluster: Cluster, load_app: Callable[[str], Any]
) -> None:
    module = load_app(cluster.dsn())

    @module.app.get("/where")
    async def where() -> str:
        return str(module.guard.route("SELECT id FROM article").role)

    @module.app.post("/write-and-where")
    async def write_and_where() -> str:
        await module.shop.execute("INSERT INTO article VALUES (8, 1)")
        return await where()

    async with serving(module) as client:
        await replayed(client)
        assert answer(await client.get("/articles/7")) == (404, {"detail": "no such article"}, None)
        assert answer(await client.put("/articles/7", json={"price": 3})) == (200, {"id": 7, "price": 3}, None)
        assert (await client.post("/write-and-where")).json() == "primary"
        assert (await client.get("/where")).json() == "replica"


async def test_health_shows_the_nodes_by_role(cluster: Cluster, load_app: Callable[[str], Any]) -> None:
    a, b, c = (f"127.0.0.1:{node.port}" for node in cluster.nodes)
    module = load_app(cluster.dsn())

    async with serving(module) as client:

        async def all_are_seen() -> tuple[int, Any] | None:
            status, told, _ = answer(await client.get("/health"))
            return (status, told) if "unknown" not in told["nodes"].values() else None

        status, told = await until(all_are_seen)

    assert status == 200
    assert told == {"writes": "open", "why": told["why"], "nodes": {a: "primary", b: "replica", c: "replica"}}


async def test_client_of_a_write_that_was_cut_short_is_told_that_it_may_have_been_made(
    cluster: Cluster, load_app: Callable[[str], Any]
) -> None:
    module = load_app(cluster.dsn())
    async with serving(module) as client:
        await client.put("/articles/7", json={"price": 3})
        module.shop = module.guard.using(timeout=2)
        async with module.guard.transaction() as other:
            await other.execute("SELECT FROM article FOR UPDATE")  # the write is sent, and waits for the row

            assert answer(await client.put("/articles/7", json={"price": 4})) == (503, PERHAPS, None)


async def test_without_a_primary_writes_are_told_to_come_again_and_reads_go_on(
    cluster: Cluster, load_app: Callable[[str], Any]
) -> None:
    module = load_app(cluster.dsn())
    async with serving(module) as client:
        await client.put("/articles/7", json={"price": 3})
        for replica in cluster.replicas:
            cluster.wait_for(replica, "SELECT count(*) = 1 FROM article")
        module.shop = module.guard.using(timeout=2)
        cluster.kill("a")
        await client.put("/articles/7", json={"price": 4})  # its connection may die under it

        assert answer(await client.put("/articles/7", json={"price": 4})) == (503, NOT_CHANGED, "1")
        assert answer(await client.get("/articles/7")) == (200, {"id": 7, "price": 3}, None)
        status, told, _ = answer(await client.get("/health"))
        assert (status, told["writes"]) == (200, "failover")

        cluster.promote("b")
        module.shop = module.guard.using(timeout=60)
        assert answer(await client.put("/articles/7", json={"price": 5})) == (200, {"id": 7, "price": 5}, None)


async def test_request_before_the_guard_is_open_is_told_to_come_again(load_app: Callable[[str], Any]) -> None:
    module = load_app("postgresql://app@127.0.0.1:1/shop")

    async with client_of(module) as client:
        assert answer(await client.get("/articles/7")) == (503, NOT_CHANGED, "1")
