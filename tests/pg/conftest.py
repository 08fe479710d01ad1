"""Connections of both colours, in the application's hands, on a real server.

`held(...)` gives one over a session that does what it is told and no more: no guard, no engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.drivers.psycopg.connection import released
from dbguard.drivers.psycopg.line import AsyncLine, SyncLine
from dbguard.pg.connection import AsyncConnection
from dbguard.pg.held import Held
from dbguard.pg.sync_connection import Connection
from dbguard.session import _stake_of
from dbguard.texts import Texts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dbguard.testing.cluster import Cluster


class PlainSession:
    """What `Held` asks of a session, without a guard: it does what it is told, and remembers at what stake."""

    def __init__(self, line: Any) -> None:
        self._line = line
        self.texts = Texts()
        self.lease = SimpleNamespace(touched=Touch.NOTHING, raw_touched=False)
        self.node = SimpleNamespace(name="a")
        self.limit = (30.0, "the default timeout")
        self.tokens: Any = None
        self.over = self.failed = self.writes = False
        self.running = 0
        self.done: list[Stake] = []
        self.begun: list[bool] = []

    @property
    def con(self) -> Any:
        if self.over:
            raise released()
        return self._line

    @property
    def closed(self) -> bool:
        return self.over or self._line.is_closed()

    @property
    def touched(self) -> Touch:
        return self.lease.touched

    def touch(self, touched: Touch) -> None:
        self.lease.touched = max(self.lease.touched, touched)

    def touch_raw(self) -> None:
        self.touch(Touch.LOST)
        self.lease.raw_touched = True

    def note(self, query: str) -> tuple[Stake, bool]:
        text = self.texts.learn(query)
        self.touch(text.statement.touch)
        return _stake_of(text, query), text.statement.one_transaction

    def begins(self, *, read_only: bool) -> None:
        self.begun.append(read_only)

    async def do(self, act: Callable[[], Awaitable[Any]], stake: Stake, limit: float | None = None, **_: Any) -> Any:
        inside = self._line.is_in_transaction()
        self.done.append(stake)
        self.running += 1
        try:
            return await act()
        except psycopg.Error as error:
            self.failed = self.failed or (inside and error.sqlstate is not None)
            raise
        finally:
            self.running -= 1

    async def commit(self, inner: Any) -> None:
        if self.failed:
            await self.rollback(inner)
            raise psycopg.errors.InFailedSqlTransaction("rolled back")
        tag = await self.do(lambda: self._line.execute("COMMIT"), Stake.COMMIT)
        assert tag == "COMMIT"

    async def rollback(self, inner: Any) -> None:
        await self.do(inner.rollback, Stake.READ)
        self.failed = False


@pytest.fixture(params=["tasks", "threads"])
async def held(request: pytest.FixtureRequest, calm_cluster: Cluster) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Return a connection, made with the arguments of `Held`; its session is at ``._held.session``."""
    opened: list[Any] = []

    async def make(**arguments: Any) -> Any:
        dsn = calm_cluster.dsn("a")
        if request.param == "tasks":
            raw: Any = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            line: Any = AsyncLine(raw, lambda _: None)
        else:
            raw = psycopg.Connection.connect(dsn, autocommit=True)
            line = SyncLine(raw, lambda _: None)
        opened.append(line)
        inner = Held(PlainSession(line), **arguments)  # type: ignore[arg-type]
        return AsyncConnection(inner) if request.param == "tasks" else Connection(inner)

    yield make
    for line in opened:
        line.close()


@pytest.fixture
async def con(held: Callable[..., Awaitable[Any]]) -> Any:
    return await held()


@pytest.fixture
def kept(calm_cluster: Cluster) -> Any:
    """Make an empty table `kept (n int, word text)`; returns what counts its rows from another connection."""
    calm_cluster.sql("a", "DROP TABLE IF EXISTS kept")
    calm_cluster.sql("a", "CREATE TABLE kept (n int PRIMARY KEY, word text)")
    return lambda: calm_cluster.sql("a", "SELECT count(*) FROM kept")
