"""A web application: one guard, one causal context per request, and honest answers when the database is away.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop uvicorn fastapi_app:app

A request reads what it has written itself. What another request wrote may reach a replica a moment later; where that
matters, read with `shop.using(consistency="primary")`.
"""

from __future__ import annotations

import math
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

import dbguard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

guard = dbguard.Guard(os.environ["DATABASE_URL"])  # no I/O yet, so it can live here
shop = guard.using(timeout=5)  # seconds for each call, waiting for a new primary included


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Open the guard before the first request, close it after the last."""
    async with guard:
        await shop.execute("CREATE TABLE IF NOT EXISTS article (id int PRIMARY KEY, price int NOT NULL)")
        yield


async def own_context() -> AsyncIterator[None]:
    """Give each request a causal context: its writes hold nobody else's reads on the primary."""
    async with guard.causal():
        yield


app = FastAPI(lifespan=lifespan, dependencies=[Depends(own_context)])


@app.put("/articles/{article}")
async def put_article(article: int, price: Annotated[int, Body(embed=True)]) -> dict[str, Any]:
    """Write, and read it back: a PUT may be sent twice, so its client can repeat it after a 503."""
    await shop.execute(
        "INSERT INTO article VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET price = excluded.price", article, price
    )
    return await get_article(article)


@app.get("/articles/{article}")
async def get_article(article: int) -> dict[str, Any]:
    """Read from a replica, or from the primary if this request has written."""
    row = await shop.fetchrow("SELECT id, price FROM article WHERE id = $1", article)
    if row is None:
        raise HTTPException(404, "no such article")
    return dict(row)


@app.get("/health")
async def health() -> JSONResponse:
    """Show what the guard knows, and send nothing. In a failover reads go on, so only a silent cluster is a 503."""
    status = guard.status()
    nodes = {node.name: node.role if node.reachable else "does not answer" for node in status.nodes}
    serves = any(node.reachable for node in status.nodes)
    return JSONResponse({"writes": status.writes, "why": status.why, "nodes": nodes}, 200 if serves else 503)


@app.exception_handler(dbguard.NotAttempted)
@app.exception_handler(dbguard.DeadlineExceeded)
async def not_applied(_request: Request, error: dbguard.NotAttempted | dbguard.DeadlineExceeded) -> JSONResponse:
    """Nothing was changed, so the client may simply come again."""
    headers = {"Retry-After": str(math.ceil(error.retry_after or 1))}
    return JSONResponse({"detail": "The database is away for a moment. Nothing was changed."}, 503, headers)


@app.exception_handler(dbguard.OutcomeUnknown)
async def outcome_unknown(_request: Request, _error: dbguard.OutcomeUnknown) -> JSONResponse:
    """The write was sent and its answer lost: say so, and do not invite a blind repeat."""
    return JSONResponse({"detail": "The change may have been made. Look before you send it again."}, 503)
