"""An order service, taken through a failover by test_orders_service.py.

DATABASE_URL=postgresql://app@db1,db2,db3/shop uvicorn --factory orders_service:create_app
"""

from __future__ import annotations

import math
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse

import dbguard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TABLES = """
    CREATE TABLE IF NOT EXISTS stock (article int PRIMARY KEY, left_over int NOT NULL);
    CREATE TABLE IF NOT EXISTS purchase (id bigserial PRIMARY KEY, number bigint NOT NULL, article int NOT NULL);
    INSERT INTO stock VALUES (1, 1000000) ON CONFLICT DO NOTHING
"""


def create_app(dsn: str | None = None) -> FastAPI:
    """Make the service. dsn: names all nodes of the cluster. Default: ``DATABASE_URL``."""
    guard = dbguard.Guard(dsn or os.environ["DATABASE_URL"])
    shop = guard.using(timeout=10)  # seconds for each call, waiting for a new primary included

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with guard:
            await shop.execute(TABLES)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders", status_code=201)
    async def order(number: Annotated[int, Body()], article: Annotated[int, Body()]) -> dict[str, Any]:
        """Take one from the stock for the order *number*, which the client chose."""

        async def take(tx: dbguard.Connection) -> int:
            await tx.execute("INSERT INTO purchase (number, article) VALUES ($1, $2)", number, article)
            left: int = await tx.fetchval(
                "UPDATE stock SET left_over = left_over - 1 WHERE article = $1 RETURNING left_over", article
            )
            return left

        return {"number": number, "left": await shop.run_in_transaction(take)}

    @app.exception_handler(dbguard.NotAttempted)
    @app.exception_handler(dbguard.DeadlineExceeded)
    async def not_applied(_request: object, error: dbguard.NotAttempted | dbguard.DeadlineExceeded) -> JSONResponse:
        """Nothing was ordered: Retry-After says that the client may come again."""
        headers = {"Retry-After": str(math.ceil(error.retry_after or 1))}
        return JSONResponse({"detail": "Nothing was ordered. Come again."}, 503, headers)

    @app.exception_handler(dbguard.OutcomeUnknown)
    async def outcome_unknown(_request: object, _error: dbguard.OutcomeUnknown) -> JSONResponse:
        """The answer to the commit was lost: no Retry-After, since a second order may be one too many."""
        return JSONResponse({"detail": "The order may have been taken. Look before you order again."}, 503)

    return app
