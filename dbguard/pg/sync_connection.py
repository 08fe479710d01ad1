"""`Connection`: one leased connection, in psycopg's words, for threads.

Every public name of `psycopg.Connection` is here with its signature. Nothing on it is repeated: only the application
knows what it did before. What dbguard adds is truth about failures: a write or a COMMIT whose answer was lost raises
`OutcomeUnknown`, a COMMIT that the server answers with ROLLBACK is an error, and a time-out ends the
connection before anything else, so that no cancel request is sent and no exit hangs.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from dbguard.drivers.psycopg.connection import DriverConnection, DriverPipeline, DriverTransaction
from dbguard.pg import two_phase
from dbguard.pg.names import ConnectionNames, PipelineNames, TransactionNames
from dbguard.pg.nested import Nested
from dbguard.pg.reading import END
from dbguard.pg.sync_cursor import Cursor, ServerCursor
from dbguard.runtime.colour import now

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import TracebackType

    from psycopg import IsolationLevel, Notify, Xid
    from psycopg.abc import Params, PQGen, Query
    from psycopg.rows import RowFactory

__all__ = ["Connection", "Pipeline", "Transaction"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105  psycopg's own name for it
CursorRow = TypeVar("CursorRow")
T = TypeVar("T")

INTERVAL = 0.1
"""psycopg's own: seconds after which it looks up from waiting."""


class Connection(ConnectionNames, DriverConnection[Row]):  # type: ignore[override]  # what psycopg's own lets be set is the driver's here
    """A leased connection; with the methods of `psycopg.Connection`. Given back when its block ends."""

    def _assign(self, name: str, value: Any) -> None:
        now(self._held.assign(name, value))

    # ------------------------------------------------------------------ statements

    @overload
    def cursor(self, *, binary: bool = False) -> Cursor[Row]: ...
    @overload
    def cursor(self, *, binary: bool = False, row_factory: RowFactory[CursorRow]) -> Cursor[CursorRow]: ...
    @overload
    def cursor(
        self, name: str, *, binary: bool = False, scrollable: bool | None = None, withhold: bool = False
    ) -> ServerCursor[Row]: ...
    @overload
    def cursor(
        self,
        name: str,
        *,
        binary: bool = False,
        row_factory: RowFactory[CursorRow],
        scrollable: bool | None = None,
        withhold: bool = False,
    ) -> ServerCursor[CursorRow]: ...
    def cursor(
        self,
        name: str = "",
        *,
        binary: bool = False,
        row_factory: RowFactory[Any] | None = None,
        scrollable: bool | None = None,
        withhold: bool = False,
    ) -> Cursor[Any] | ServerCursor[Any]:
        """Return a new cursor; with *name*, one on the server. As `psycopg.Connection.cursor`."""
        inner = self._held.cursor(
            name, binary=binary, row_factory=row_factory, scrollable=scrollable, withhold=withhold
        )
        return ServerCursor(self, inner) if name else Cursor(self, inner)

    def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool = False
    ) -> Cursor[Row]:
        """Execute a query on a new cursor, and return that."""
        return self.cursor(binary=binary).execute(query, params, prepare=prepare)

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Send without waiting for answers; as `psycopg.Connection.pipeline`.

        What is queued fails together; transactions begin and end outside of it. In autocommit, what was written and not
        answered is of open fate when the connection is lost.
        """
        with Pipeline(self, self._held) as pipeline:
            yield pipeline

    def notifies(self, *, timeout: float | None = None, stop_after: int | None = None) -> Generator[Notify, None, None]:
        """Go through notifications as they come; as `psycopg.Connection.notifies`.

        After a failover those of the time between are missing: whoever listens reads what he watches once more.
        """
        steps = self._held.notifies(timeout, stop_after)
        try:
            while (notify := now(steps.next())) is not END:
                yield notify
        finally:
            now(steps.close())

    def wait(self, gen: PQGen[T], interval: float = INTERVAL, timeout: float | None = None) -> T:
        """Let psycopg run a generator of its own on the connection. Marks the lease, as `raw` does."""
        return now(self._held.wait(gen, interval=interval, timeout=timeout))  # type: ignore[no-any-return]  # what *gen* returns

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to cancel what runs on it. A COMMIT that waits for its standby is better left alone."""
        if not self.closed:
            self._held.check_cancel()
            self._held.raw.cancel_safe(timeout=timeout)

    # ------------------------------------------------------------------ transactions

    def commit(self) -> None:
        """Commit the open transaction.

        Raises `OutcomeUnknown` if the answer was lost, or if a promised standby was not waited for;
        `psycopg.errors.InFailedSqlTransaction` if the transaction had failed, so that nothing was committed.
        """
        now(self._held.commit())

    def rollback(self) -> None:
        """Roll the open transaction back. A connection that does not answer is terminated instead."""
        now(self._held.rollback())

    @contextmanager
    def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,  # noqa: FBT001, FBT002  psycopg's signature
    ) -> Iterator[Transaction]:
        """Open a transaction block or, inside another one, a savepoint; as `psycopg.Connection.transaction`."""
        block = Transaction(self, Nested(self._held, savepoint_name, force_rollback=force_rollback))
        with block:
            yield block

    def set_autocommit(self, value: bool) -> None:  # noqa: FBT001  psycopg's signature
        """Set `autocommit`; outside a transaction."""
        now(self._held.assign("autocommit", value))

    def set_isolation_level(self, value: IsolationLevel | None) -> None:
        """Set `isolation_level`; outside a transaction."""
        now(self._held.assign("isolation_level", value))

    def set_read_only(self, value: bool | None) -> None:  # noqa: FBT001  psycopg's signature
        """Set `read_only`; outside a transaction."""
        now(self._held.assign("read_only", value))

    def set_deferrable(self, value: bool | None) -> None:  # noqa: FBT001  psycopg's signature
        """Set `deferrable`; outside a transaction."""
        now(self._held.assign("deferrable", value))

    def tpc_begin(self, xid: Xid | str) -> None:
        """Begin a two-phase transaction. The connection is closed afterwards."""
        now(two_phase.begin(self._held, xid))

    def tpc_prepare(self) -> None:
        """Prepare it: what was prepared outlives its session. Raises `OutcomeUnknown` if the answer was lost."""
        now(two_phase.prepare(self._held))

    def tpc_commit(self, xid: Xid | str | None = None) -> None:
        """Commit what was prepared. Raises `OutcomeUnknown` if the answer was lost."""
        now(two_phase.commit(self._held, xid))

    def tpc_rollback(self, xid: Xid | str | None = None) -> None:
        """Roll back what was prepared."""
        now(two_phase.rollback(self._held, xid))

    def tpc_recover(self) -> list[Xid]:
        """Return what is prepared on the server."""
        return now(two_phase.recover(self._held))

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Close the connection, and with it what was not committed; its place in the pool is filled by a new one."""
        now(self._held.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now(self._held.leave(error))


class Transaction(TransactionNames, DriverTransaction):  # type: ignore[override]  # as above
    """A transaction block or, inside another one, a savepoint; with the names of `psycopg.Transaction`."""

    def __enter__(self) -> Self:
        now(self._inner.enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return now(self._inner.leave(error, self))


class Pipeline(PipelineNames, DriverPipeline):  # type: ignore[override]  # as above
    """A pipeline; with the names of `psycopg.Pipeline`."""

    def sync(self) -> None:
        """Wait until the server has answered all that was queued."""
        now(self._held.pipes.synchronize())

    def __enter__(self) -> Self:
        now(self._held.pipes.enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now(self._held.pipes.leave(error))
