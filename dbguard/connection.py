"""`Connection` and `Transaction`: one leased connection, in asyncpg's words.

Every public method of `asyncpg.Connection` is here with its signature. Nothing on an acquired connection is repeated:
only the application knows what it did before. What dbguard adds is truth about failures: a write or a COMMIT whose
answer was lost raises `OutcomeUnknown`, and a time-out or a cancellation ends the connection before anything else, so
that no cancel request is sent and no exit hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.connection import DriverConnection

if TYPE_CHECKING:
    from types import TracebackType

    from dbguard.session import Session

__all__ = ["Connection", "Transaction"]

_COPY = {
    "copy_from_table": "COPY t TO STDOUT",
    "copy_to_table": "COPY t FROM STDIN",
    "copy_records_to_table": "COPY t FROM STDIN",
}
"""What asyncpg's methods that take a table's name send, as far as the classifier is concerned."""

ROLLBACK_WITHIN = 1.0
"""Seconds a ROLLBACK may take before the connection is terminated instead, which rolls back as well."""


class Connection(DriverConnection):  # type: ignore[misc]  # asyncpg's class, by way of the driver
    """A leased connection. Made by `Guard.acquire` and `Guard.transaction`, and given back when their block ends.

    attempt: counts from 1; above 1 where `run_in_transaction` repeats.
    until: the deadline of the block, on the guard's clock; None: each statement has its own limit.
    failed: the server has refused a statement of the open transaction, so that it can only be rolled back.
    within_function: it belongs to `run_in_transaction`, which judges what fails; whole: nothing in it has ended the
        transaction.
    """

    def __init__(self, session: Session, attempt: int = 1) -> None:
        # asyncpg's own constructor wants a protocol; this object has none, it stands before one that has.
        self._session = session
        self.attempt = attempt

    def __del__(self) -> None:
        """Do nothing: the lease's connection belongs to its pool."""

    def __repr__(self) -> str:
        session = self._session
        state = "given back" if session.over else ("closed" if session.closed else "open")
        return f"<dbguard.Connection to {session.node.name}, {state}>"

    @property
    def node(self) -> str:
        """The name of the node it is connected to."""
        return self._session.node.name

    @property
    def raw(self) -> Any:
        """The driver's own connection. Touching it marks the lease: nothing is known any more of what was done."""
        self._session.touch_raw()
        return self._session.con

    # ------------------------------------------------------------------ statements

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Execute an SQL command or commands; as `asyncpg.Connection.execute`."""
        return await self._session.run(query, "execute", (query, *args), timeout)  # type: ignore[no-any-return]

    async def executemany(self, command: str, args: Any, *, timeout: float | None = None) -> None:
        """Execute a command for each sequence of arguments; as `asyncpg.Connection.executemany`."""
        await self._session.run(command, "executemany", (command, args), timeout)

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> list[Any]:
        """Run a query and return its rows; as `asyncpg.Connection.fetch`."""
        return await self._session.run(query, "fetch", (query, *args), timeout, record_class=record_class)  # type: ignore[no-any-return]

    async def fetchmany(
        self, query: str, args: Any, *, timeout: float | None = None, record_class: Any = None
    ) -> list[Any]:
        """Run a query for each sequence of arguments and return all rows; as `asyncpg.Connection.fetchmany`."""
        return await self._session.run(query, "fetchmany", (query, args), timeout, record_class=record_class)  # type: ignore[no-any-return]

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Any:
        """Run a query and return its first row or None; as `asyncpg.Connection.fetchrow`."""
        return await self._session.run(query, "fetchrow", (query, *args), timeout, record_class=record_class)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """Run a query and return one value of its first row; as `asyncpg.Connection.fetchval`."""
        return await self._session.run(query, "fetchval", (query, *args), timeout, column=column)

    async def copy_from_query(self, query: str, *args: Any, output: Any, timeout: Any = None, **options: Any) -> str:
        """Copy the results of a query to a file; as `asyncpg.Connection.copy_from_query`."""
        return await self._session.run(query, "copy_from_query", (query, *args), timeout, output=output, **options)  # type: ignore[no-any-return]

    async def copy_from_table(self, table_name: str, *, output: Any, timeout: Any = None, **options: Any) -> str:
        """Copy a table to a file; as `asyncpg.Connection.copy_from_table`."""
        return await self._session.run(  # type: ignore[no-any-return]
            _COPY["copy_from_table"], "copy_from_table", (table_name,), timeout, output=output, **options
        )

    async def copy_to_table(self, table_name: str, *, source: Any, timeout: Any = None, **options: Any) -> str:
        """Copy a file to a table; as `asyncpg.Connection.copy_to_table`."""
        return await self._session.run(  # type: ignore[no-any-return]
            _COPY["copy_to_table"], "copy_to_table", (table_name,), timeout, source=source, **options
        )

    async def copy_records_to_table(self, table_name: str, *, records: Any, timeout: Any = None, **options: Any) -> str:
        """Copy records to a table; as `asyncpg.Connection.copy_records_to_table`."""
        return await self._session.run(  # type: ignore[no-any-return]
            _COPY["copy_records_to_table"], "copy_records_to_table", (table_name,), timeout, records=records, **options
        )

    def cursor(self, query: str, *args: Any, **options: Any) -> Any:
        """Return a cursor factory; as `asyncpg.Connection.cursor`. Needs a transaction."""
        self._session.touch(Touch.SETTINGS)
        self._session.note(query)
        return self._session.con.cursor(query, *args, **options)

    async def prepare(self, query: str, **options: Any) -> Any:
        """Prepare a statement; as `asyncpg.Connection.prepare`. What it runs is the driver's, without dbguard."""
        self._session.touch(Touch.SETTINGS)
        self._session.note(query)
        return await self._session.do(lambda: self._session.con.prepare(query, **options), Stake.READ)

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """Return a transaction block, or a savepoint where one is open; as `asyncpg.Connection.transaction`."""
        inner = self._session.con.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        return Transaction(self._session, inner)

    # ------------------------------------------------------------------ the session

    async def add_listener(self, channel: str, callback: Any) -> None:
        """Listen to a channel; as `asyncpg.Connection.add_listener`."""
        self._session.touch(Touch.SETTINGS)
        await self._session.do(lambda: self._session.con.add_listener(channel, callback), Stake.READ)

    async def remove_listener(self, channel: str, callback: Any) -> None:
        """Stop listening; as `asyncpg.Connection.remove_listener`."""
        await self._session.do(lambda: self._session.con.remove_listener(channel, callback), Stake.READ)

    def add_log_listener(self, callback: Any) -> None:
        """Hear of the server's notices; as `asyncpg.Connection.add_log_listener`."""
        self._session.touch(Touch.SETTINGS)
        self._session.con.add_log_listener(callback)

    def remove_log_listener(self, callback: Any) -> None:
        """As `asyncpg.Connection.remove_log_listener`."""
        self._session.con.remove_log_listener(callback)

    def add_query_logger(self, callback: Any) -> None:
        """As `asyncpg.Connection.add_query_logger`."""
        self._session.touch(Touch.SETTINGS)
        self._session.con.add_query_logger(callback)

    def remove_query_logger(self, callback: Any) -> None:
        """As `asyncpg.Connection.remove_query_logger`."""
        self._session.con.remove_query_logger(callback)

    def query_logger(self, callback: Any) -> Any:
        """As `asyncpg.Connection.query_logger`."""
        return self._session.con.query_logger(callback)

    def add_termination_listener(self, callback: Any) -> None:
        """As `asyncpg.Connection.add_termination_listener`."""
        self._session.touch(Touch.LOST)
        self._session.con.add_termination_listener(callback)

    def remove_termination_listener(self, callback: Any) -> None:
        """As `asyncpg.Connection.remove_termination_listener`."""
        self._session.con.remove_termination_listener(callback)

    async def set_type_codec(self, typename: str, **options: Any) -> None:
        """As `asyncpg.Connection.set_type_codec`. The connection is closed afterwards: for all, use ``init=``."""
        self._session.touch(Touch.LOST)
        await self._session.do(lambda: self._session.con.set_type_codec(typename, **options), Stake.READ)

    async def reset_type_codec(self, typename: str, **options: Any) -> None:
        """As `asyncpg.Connection.reset_type_codec`."""
        self._session.touch(Touch.LOST)
        await self._session.do(lambda: self._session.con.reset_type_codec(typename, **options), Stake.READ)

    async def set_builtin_type_codec(self, typename: str, **options: Any) -> None:
        """As `asyncpg.Connection.set_builtin_type_codec`. The connection is closed afterwards."""
        self._session.touch(Touch.LOST)
        await self._session.do(lambda: self._session.con.set_builtin_type_codec(typename, **options), Stake.READ)

    async def reload_schema_state(self) -> None:
        """As `asyncpg.Connection.reload_schema_state`."""
        await self._session.do(self._session.con.reload_schema_state, Stake.READ)

    async def reset(self, *, timeout: float | None = None) -> None:
        """As `asyncpg.Connection.reset`."""
        await self._session.do(lambda: self._session.con.reset(timeout=timeout), Stake.READ)

    def get_reset_query(self) -> str:
        """As `asyncpg.Connection.get_reset_query`."""
        return self._session.con.get_reset_query()  # type: ignore[no-any-return]

    def get_server_pid(self) -> int:
        """As `asyncpg.Connection.get_server_pid`."""
        return self._session.con.get_server_pid()  # type: ignore[no-any-return]

    def get_server_version(self) -> Any:
        """As `asyncpg.Connection.get_server_version`."""
        return self._session.con.get_server_version()

    def get_settings(self) -> Any:
        """As `asyncpg.Connection.get_settings`."""
        return self._session.con.get_settings()

    def is_closed(self) -> bool:
        """Whether the connection is closed, or was given back."""
        return self._session.closed

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._session.in_transaction

    async def close(self, *, timeout: float | None = None) -> None:
        """Close the connection; its place in the pool is filled by a new one."""
        self._session.touch(Touch.LOST)
        if not self.is_closed():
            await self._session.con.close(timeout=timeout)

    def terminate(self) -> None:
        """Terminate the connection at once, without waiting for the server."""
        self._session.touch(Touch.LOST)
        if not self.is_closed():
            self._session.con.terminate()


class Transaction:
    """A transaction block or, inside another one, a savepoint; with the methods of asyncpg's `Transaction`.

    A COMMIT is an acknowledgement only if the server says so: after an error in the block it answers ROLLBACK, and
    leaving the block then raises `asyncpg.InFailedSQLTransactionError` instead of passing silently.
    """

    def __init__(self, session: Session, inner: Any) -> None:
        self._session = session
        self._inner = inner
        self._nested = False

    async def start(self) -> None:
        """Send BEGIN or SAVEPOINT."""
        self._nested = self._session.in_transaction
        await self._session.do(self._inner.start, Stake.READ)

    async def commit(self) -> None:
        """Send COMMIT, or release the savepoint.

        Raises `OutcomeUnknown` if the answer was lost, or if a promised standby was not waited for;
        `asyncpg.InFailedSQLTransactionError` if the transaction had failed, so that nothing was committed.
        """
        if self._nested:
            await self._session.do(self._inner.commit, Stake.READ)
        else:
            await self._session.commit(self._inner)

    async def rollback(self) -> None:
        """Send ROLLBACK, or roll back to the savepoint. A connection that does not answer is terminated instead."""
        await self._session.rollback(self._inner)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.commit()
        else:
            await self.abandon(error)

    async def abandon(self, error: BaseException) -> None:
        """Roll back because of *error*, which goes on; what fails on the way ends the connection, and so rolls back."""
        session = self._session
        if session.closed:
            return
        if not isinstance(error, Exception):
            session.con.terminate()
            return
        try:
            await self.rollback()
        except Exception:  # noqa: BLE001  the connection goes and the transaction with it; the block's error counts
            if not session.closed:
                session.con.terminate()
