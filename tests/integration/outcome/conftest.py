"""Servers with the schema of tokens, spoken to over plain connections, and what resolvers do, step by step.

* `home`: one server; `pair`: a primary whose only standby is synchronous. Role `app` has a guard's rights, `stranger`
  has none and can be taken on by `app`.
* `connect(cluster, ...)`: a plain connection, closed at the end.
* `claim(con, token)`: a whole claim; ``Refused`` below the horizon.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from dbguard.drivers import outcome_sql
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dbguard.testing.binaries import Binaries

_numbers = itertools.count(1)


class Refused(Exception):
    """The token is older than the horizon."""


def new_token(age: float = 0.0) -> UUID:
    """Make a UUIDv7 of *age* seconds ago."""
    at = int((time.time() - age) * 1000)
    return UUID(int=at << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62))


async def begin_claim(con: Any, *, synchronous_commit: str = "on", lock_timeout: float = 30.0) -> None:
    await con.execute(outcome_sql.CLAIM_BEGIN)
    await con.execute(outcome_sql.settings(synchronous_commit=synchronous_commit, lock_timeout=lock_timeout))


async def ask_claim(con: Any, token: UUID) -> str:
    """Do the claim's middle part: horizon and answer."""
    if token < await con.fetchval(outcome_sql.CLAIM_HORIZON):
        raise Refused
    kind: str = await con.fetchval(outcome_sql.CLAIM, token)
    return kind


async def claim(con: Any, token: UUID, *, synchronous_commit: str = "on", lock_timeout: float = 30.0) -> str:
    """Claim *token*, and return its answer once the claim is committed."""
    await begin_claim(con, synchronous_commit=synchronous_commit, lock_timeout=lock_timeout)
    try:
        kind = await ask_claim(con, token)
    except (asyncpg.PostgresError, Refused):
        await con.execute("ROLLBACK")
        raise
    await con.execute("COMMIT")
    return kind


async def is_blocked(con: Any, other: Any) -> bool:
    """Whether the backend of *other* waits for a lock, as seen from *con*."""
    return bool(await con.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", other.get_server_pid()))


def install(cluster: Cluster, role: str = "app") -> None:
    """Install the schema as its DDL and grants say."""
    asyncio.run(_install(cluster.dsn(cluster.primary), role))


async def _install(dsn: str, role: str) -> None:
    con = await asyncpg.connect(dsn)
    try:
        async with con.transaction():
            await con.execute(outcome_sql.schema())
            await con.execute(outcome_sql.grants(role))
    finally:
        await con.close()


def _prepared(cluster: Cluster) -> Cluster:
    for statement in (
        "CREATE ROLE app LOGIN",
        "CREATE ROLE stranger",
        "GRANT stranger TO app",
        "CREATE TABLE item (id int PRIMARY KEY, n int)",
        "GRANT ALL ON item TO app, stranger",
    ):
        cluster.sql("a", statement)
    install(cluster)
    return cluster


@pytest.fixture(scope="session")
def home(binaries: Binaries) -> Iterator[Cluster]:
    with Cluster(binaries=binaries, replicas=0) as cluster:
        yield _prepared(cluster)


@pytest.fixture(scope="session")
def pair(binaries: Binaries) -> Iterator[Cluster]:
    with Cluster(binaries=binaries, replicas=1, synchronous=True) as cluster:
        yield _prepared(cluster)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    opened: list[Any] = []

    async def make(cluster: Cluster, node: str = "a", *, user: str = "app", port: int | None = None) -> Any:
        con = await asyncpg.connect(
            host="127.0.0.1", port=port or cluster.node(node).port, user=user, database="postgres"
        )
        opened.append(con)
        return con

    yield make
    for con in opened:
        con.terminate()
    await asyncio.sleep(0)


@pytest.fixture
def item() -> Callable[[Cluster], Awaitable[int]]:
    """Add a row ``(id, 0)`` to ``item``, and return its id."""

    async def make(cluster: Cluster) -> int:
        number = next(_numbers)
        await asyncio.to_thread(cluster.sql, "a", "INSERT INTO item VALUES ($1, 0)", number)
        return number

    return make
