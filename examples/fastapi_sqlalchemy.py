"""A web application on SQLAlchemy's async sessions: writes on the primary, reports on a replica, honest answers.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop uvicorn fastapi_sqlalchemy:app

Everything reads from the primary, so that nothing is changed by what was old, unless a session is opened read-only.
"""

from __future__ import annotations

import math
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import dbguard
from dbguard.integrations.sqlalchemy import AsyncSession, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

guard = dbguard.Guard({"dsn": os.environ["DATABASE_URL"], "timeout": 5})  # seconds that a connection may be waited for
engine = create_async_engine(guard, pool_size=20)
Sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)


class Base(DeclarativeBase):
    """What the tables belong to."""


class Article(Base):
    """Something with a price."""

    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Open the guard before the first request; close the pools, then the guard, after the last."""
    async with guard:
        async with engine.begin() as con:
            await con.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()


async def shop() -> AsyncIterator[AsyncSession]:
    """Give a request a session on the primary, committed before the answer goes out."""
    async with Sessions.begin() as session:
        yield session


async def reports() -> AsyncIterator[AsyncSession]:
    """Give a request a session on a replica, which may be some seconds old; what it loads cannot be written."""
    async with Sessions(readonly=True) as session:
        yield session


app = FastAPI(lifespan=lifespan)


@app.put("/articles/{article}")
async def put_article(
    article: int,
    price: Annotated[int, Body(embed=True)],
    session: Annotated[AsyncSession, Depends(shop, scope="function")],
) -> dict[str, int]:
    """Write, by what the primary has: a PUT may be sent twice, so its client can repeat it after a 503."""
    found = await session.get(Article, article)
    if found is None:
        session.add(Article(id=article, price=price))
    else:
        found.price = price
    return {"id": article, "price": price}


@app.get("/articles/{article}")
async def get_article(
    article: int, session: Annotated[AsyncSession, Depends(shop, scope="function")]
) -> dict[str, int]:
    """Read what is written now."""
    found = await session.get(Article, article)
    if found is None:
        raise HTTPException(404, "no such article")
    return {"id": found.id, "price": found.price}


@app.get("/prices")
async def prices(session: Annotated[AsyncSession, Depends(reports)]) -> dict[str, Any]:
    """Read a great deal, without burdening the primary."""
    node, number, total = (
        await session.execute(
            select(
                func.current_setting("cluster_name"), func.count(Article.id), func.coalesce(func.sum(Article.price), 0)
            )
        )
    ).one()
    return {"node": node, "articles": number, "total": total}


@app.exception_handler(dbguard.NotAttempted)
async def not_attempted(_request: Request, error: dbguard.NotAttempted) -> JSONResponse:
    """Nothing was sent, so the client may simply come again."""
    headers = {"Retry-After": str(math.ceil(error.retry_after or 1))}
    return JSONResponse({"detail": "The database is away for a moment. Nothing was changed."}, 503, headers)


@app.exception_handler(dbguard.OutcomeUnknown)
async def outcome_unknown(_request: Request, _error: dbguard.OutcomeUnknown) -> JSONResponse:
    """The commit was sent and its answer lost: say so, and do not invite a blind repeat."""
    return JSONResponse({"detail": "The change may have been made. Look before you send it again."}, 503)
