"""The web application on SQLAlchemy's sessions, asked through ASGI, over a failover."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from dbguard.testing.cluster import Cluster

APP = Path(__file__).parents[2] / "examples" / "fastapi_sqlalchemy.py"

assert APP.name == "fastapi_sqlalchemy.py"


@asynccontextmanager
async def serving(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """Import the application afresh, since it makes its guard when it is imported, and ask it."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    spec = importlib.util.spec_from_file_location("example_fastapi_sqlalchemy", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # FastAPI and SQLAlchemy look annotations up there
    spec.loader.exec_module(module)
    transport = httpx.ASGITransport(app=module.app)
    async with (
        module.app.router.lifespan_context(module.app),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        yield client


async def test_prices_come_from_a_replica_and_articles_from_the_primary_over_a_failover(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(cluster.dsn(), monkeypatch) as client:

        async def prices() -> Any:
            return (await client.get("/prices")).json()

        assert (await client.get("/articles/7")).status_code == 404
        assert (await client.put("/articles/7", json={"price": 3})).json() == {"id": 7, "price": 3}
        assert (await client.get("/articles/7")).json() == {"id": 7, "price": 3}
        for replica in cluster.replicas:
            await asyncio.to_thread(cluster.wait_for, replica, "SELECT count(*) = 1 FROM article")
        seen = await prices()
        assert seen in ({"node": node, "articles": 1, "total": 3} for node in "bc")

        await asyncio.to_thread(cluster.stop_node, "a")
        later = asyncio.ensure_future(client.put("/articles/7", json={"price": 4}))
        await asyncio.to_thread(cluster.promote, "b")
        assert (await later).json() == {"id": 7, "price": 4}
        await asyncio.to_thread(cluster.follow, "c", "b")
        await until(lambda: prices_are(prices, {"node": "c", "articles": 1, "total": 4}))

        await asyncio.to_thread(cluster.stop_node, "b")
        away = await client.put("/articles/7", json={"price": 5})
        assert (away.status_code, away.headers["Retry-After"]) == (503, "1")
        assert away.json() == {"detail": "The database is away for a moment. Nothing was changed."}


async def prices_are(ask: Any, wanted: Any) -> bool:
    return bool(await ask() == wanted)
