"""`AsyncConnection`: one leased connection, in psycopg's words, for tasks.

Every public name of `psycopg.AsyncConnection` is here with its signature. Nothing on it is repeated: only the application
knows what it did before. What dbguard adds is truth about failures: a write or a COMMIT whose answer was lost raises
`OutcomeUnknown`, a COMMIT that the server answers with ROLLBACK is an error, and a time-out or a cancellation ends the
connection before anything else, so that no cancel request is sent and no exit hangs.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from dbguard.drivers.psycopg.connection import DriverAsyncConnection, DriverAsyncPipeline, DriverAsyncTransaction
from dbguard.pg import two_phase
from dbguard.pg.cursor import AsyncCursor, AsyncServerCursor
from dbguard.pg.names import ConnectionNames, PipelineNames, TransactionNames
from dbguard.pg.nested import Nested
from dbguard.pg.reading import END

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from types import TracebackType

    from psycopg import IsolationLevel, Notify, Xid
    from psycopg.abc import Params, PQGen, Query
    from psycopg.rows import AsyncRowFactory

__all__ = ["AsyncConnection", "AsyncPipeline", "AsyncTransaction"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105  psycopg's own name for it
CursorRow = TypeVar("CursorRow")
T = TypeVar("T")

INTERVAL = 0.1
"""psycopg's own: seconds after which it looks up from waiting."""


class AsyncConnection(ConnectionNames, DriverAsyncConnection[Row]):  # type: ignore[override]  # what psycopg's own lets be set is the driver's here
    """A leased connection; with the methods of `psycopg.AsyncConnection`. Given back when its block ends."""

    def _assign(self, name: str, value: Any) -> None:
        del value
        raise AttributeError(
            f"the {name!r} property is read-only on async connections: please use 'await .set_{name}()' instead."
        )

    # ------------------------------------------------------------------ statements

    @overload
    def cursor(self, *, binary: bool = False) -> AsyncCursor[Row]: ...
    @overload
    def cursor(self, *, binary: bool = False, row_factory: AsyncRowFactory[CursorRow]) -> AsyncCursor[CursorRow]: ...
    @overload
    def cursor(
        self, name: str, *, binary: bool = False, scrollable: bool | None = None, withhold: bool = False
    ) -> AsyncServerCursor[Row]: ...
    @overload
    def cursor(
        self,
        name: str,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[CursorRow],
        scrollable: bool | None = None,
        withhold: bool = False,
    ) -> AsyncServerCursor[CursorRow]: ...
    def cursor(
        self,
        name: str = "",
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
        scrollable: bool | None = None,
        withhold: bool = False,
    ) -> AsyncCursor[Any] | AsyncServerCursor[Any]:
        """Return a new cursor; with *name*, one on the server. As `psycopg.AsyncConnection.cursor`."""
        inner = self._held.cursor(
            name, binary=binary, row_factory=row_factory, scrollable=scrollable, withhold=withhold
        )
        return AsyncServerCursor(self, inner) if name else AsyncCursor(self, inner)

    async def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool = False
    ) -> AsyncCursor[Row]:
        """Execute a query on a new cursor, and return that."""
        return await self.cursor(binary=binary).execute(query, params, prepare=prepare)

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[AsyncPipeline]:
        """Send without waiting for answers; as `psycopg.AsyncConnection.pipeline`.

        What is queued fails together; transactions begin and end outside of it. In autocommit, what was written and not
        answered is of open fate when the connection is lost.
        """
        async with AsyncPipeline(self, self._held) as pipeline:
            yield pipeline

    async def notifies(
        self, *, timeout: float | None = None, stop_after: int | None = None
    ) -> AsyncGenerator[Notify, None]:
        """Go through notifications as they come; as `psycopg.AsyncConnection.notifies`.

        After a failover those of the time between are missing: whoever listens reads what he watches once more.
        """
        steps = self._held.notifies(timeout, stop_after)
        try:
            while (notify := await steps.next()) is not END:
                yield notify
        finally:
            await steps.close()

    async def wait(self, gen: PQGen[T], interval: float = INTERVAL, timeout: float | None = None) -> T:
        """Let psycopg run a generator of its own on the connection. Marks the lease, as `raw` does."""
        return await self._held.wait(gen, interval=interval, timeout=timeout)  # type: ignore[no-any-return]  # what *gen* returns

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to cancel what runs on it. A COMMIT that waits for its standby is better left alone."""
        if not self.closed:
            self._held.check_cancel()
            await self._held.raw.cancel_safe(timeout=timeout)

    # ------------------------------------------------------------------ transactions

    async def commit(self) -> None:
        """Commit the open transaction.

        Raises `OutcomeUnknown` if the answer was lost, or if a promised standby was not waited for;
        `psycopg.errors.InFailedSqlTransaction` if the transaction had failed, so that nothing was committed.
        """
        await self._held.commit()

    async def rollback(self) -> None:
        """Roll the open transaction back. A connection that does not answer is terminated instead."""
        await self._held.rollback()

    @asynccontextmanager
    async def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,  # noqa: FBT001, FBT002  psycopg's signature
    ) -> AsyncIterator[AsyncTransaction]:
        """Open a transaction block or, inside another one, a savepoint; as `psycopg.AsyncConnection.transaction`."""
        block = AsyncTransaction(self, Nested(self._held, savepoint_name, force_rollback=force_rollback))
        async with block:
            yield block

    async def set_autocommit(self, value: bool) -> None:  # noqa: FBT001  psycopg's signature
        """Set `autocommit`; outside a transaction."""
        await self._held.assign("autocommit", value)

    async def set_isolation_level(self, value: IsolationLevel | None) -> None:
        """Set `isolation_level`; outside a transaction."""
        await self._held.assign("isolation_level", value)

    async def set_read_only(self, value: bool | None) -> None:  # noqa: FBT001  psycopg's signature
        """Set `read_only`; outside a transaction."""
        await self._held.assign("read_only", value)

    async def set_deferrable(self, value: bool | None) -> None:  # noqa: FBT001  psycopg's signature
        """Set `deferrable`; outside a transaction."""
        await self._held.assign("deferrable", value)

    async def tpc_begin(self, xid: Xid | str) -> None:
        """Begin a two-phase transaction. The connection is closed afterwards."""
        await two_phase.begin(self._held, xid)

    async def tpc_prepare(self) -> None:
        """Prepare it: what was prepared outlives its session. Raises `OutcomeUnknown` if the answer was lost."""
        await two_phase.prepare(self._held)

    async def tpc_commit(self, xid: Xid | str | None = None) -> None:
        """Commit what was prepared. Raises `OutcomeUnknown` if the answer was lost."""
        await two_phase.commit(self._held, xid)

    async def tpc_rollback(self, xid: Xid | str | None = None) -> None:
        """Roll back what was prepared."""
        await two_phase.rollback(self._held, xid)

    async def tpc_recover(self) -> list[Xid]:
        """Return what is prepared on the server."""
        return await two_phase.recover(self._held)  # type: ignore[no-any-return]  # what psycopg's own returns

    # ------------------------------------------------------------------ the end

    async def close(self) -> None:
        """Close the connection, and with it what was not committed; its place in the pool is filled by a new one."""
        await self._held.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.leave(error)


class AsyncTransaction(TransactionNames, DriverAsyncTransaction):  # type: ignore[override]  # as above
    """A transaction block or, inside another one, a savepoint; with the names of `psycopg.AsyncTransaction`."""

    async def __aenter__(self) -> Self:
        await self._inner.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return await self._inner.leave(error, self)


class AsyncPipeline(PipelineNames, DriverAsyncPipeline):  # type: ignore[override]  # as above
    """A pipeline; with the names of `psycopg.AsyncPipeline`."""

    async def sync(self) -> None:
        """Wait until the server has answered all that was queued."""
        await self._held.pipes.synchronize()

    async def __aenter__(self) -> Self:
        await self._held.pipes.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.pipes.leave(error)
