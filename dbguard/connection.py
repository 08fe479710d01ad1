"""`Connection` and `Transaction`: one leased connection, in asyncpg's words.

Every public method of `asyncpg.Connection` is here with its signature. Nothing on an acquired connection is repeated:
only the application knows what it did before. What dbguard adds is truth about failures: a write or a COMMIT whose
answer was lost raises `OutcomeUnknown`, and a time-out or a cancellation ends the connection before anything else, so
that no cancel request is sent and no exit hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from dbguard.core.failure import Phase
from dbguard.core.retry import Act, Stake, Work, judge
from dbguard.core.statement import Kind, Touch
from dbguard.drivers.asyncpg.connection import DriverConnection, released
from dbguard.drivers.asyncpg.failures import is_refusal
from dbguard.drivers.asyncpg.transaction import commit, rollback, rolled_back
from dbguard.runtime.attempt import name_failed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from dbguard.core.plan import Call
    from dbguard.core.route import Node
    from dbguard.runtime.engine import Engine
    from dbguard.texts import Texts

__all__ = ["Connection", "Transaction"]

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

    def __init__(self, engine: Engine, texts: Texts, call: Call, node: Node, lease: Any) -> None:
        # asyncpg's own constructor wants a protocol; this object has none, it stands before one that has.
        self._engine = engine
        self._texts = texts
        self._call = call
        self._node = node
        self.lease = lease
        self._con = lease.con
        self.failed = False
        self._ddl = False
        self.released = False
        self.until: float | None = None
        self.within_function = False
        self.whole = True
        self.attempt = 1

    def __del__(self) -> None:
        """Do nothing: the lease's connection belongs to its pool."""

    def __repr__(self) -> str:
        state = "released" if self.released else ("closed" if self.is_closed() else "open")
        return f"<dbguard.Connection to {self._node.name} {state}>"

    @property
    def node(self) -> str:
        """The name of the node it is connected to."""
        return self._node.name

    @property
    def raw(self) -> Any:
        """The driver's own connection. Touching it marks the lease: nothing is known any more of what was done."""
        self._mark(Touch.IDENTITY)
        self.lease.raw_touched = True
        self._call.box.wrote(self._engine.state.view.reign, self._engine.state.clock())
        return self._usable()

    # ------------------------------------------------------------------ statements

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Execute an SQL command or commands; as `asyncpg.Connection.execute`."""
        return await self._run("execute", query, (query, *args), timeout)  # type: ignore[no-any-return]

    async def executemany(self, command: str, args: Any, *, timeout: float | None = None) -> None:
        """Execute a command for each sequence of arguments; as `asyncpg.Connection.executemany`."""
        await self._run("executemany", command, (command, args), timeout)

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> list[Any]:
        """Run a query and return its rows; as `asyncpg.Connection.fetch`."""
        return await self._run("fetch", query, (query, *args), timeout, record_class=record_class)  # type: ignore[no-any-return]

    async def fetchmany(
        self, query: str, args: Any, *, timeout: float | None = None, record_class: Any = None
    ) -> list[Any]:
        """Run a query for each sequence of arguments and return all rows; as `asyncpg.Connection.fetchmany`."""
        return await self._run("fetchmany", query, (query, args), timeout, record_class=record_class)  # type: ignore[no-any-return]

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Any:
        """Run a query and return its first row or None; as `asyncpg.Connection.fetchrow`."""
        return await self._run("fetchrow", query, (query, *args), timeout, record_class=record_class)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """Run a query and return one value of its first row; as `asyncpg.Connection.fetchval`."""
        return await self._run("fetchval", query, (query, *args), timeout, column=column)

    async def copy_from_query(self, query: str, *args: Any, output: Any, timeout: Any = None, **options: Any) -> str:
        """Copy the results of a query to a file; as `asyncpg.Connection.copy_from_query`."""
        return await self._run("copy_from_query", query, (query, *args), timeout, output=output, **options)  # type: ignore[no-any-return]

    async def copy_from_table(self, table_name: str, *, output: Any, timeout: Any = None, **options: Any) -> str:
        """Copy a table to a file; as `asyncpg.Connection.copy_from_table`."""
        return await self._run("copy_from_table", None, (table_name,), timeout, output=output, **options)  # type: ignore[no-any-return]

    async def copy_to_table(self, table_name: str, *, source: Any, timeout: Any = None, **options: Any) -> str:
        """Copy a file to a table; as `asyncpg.Connection.copy_to_table`."""
        return await self._run("copy_to_table", None, (table_name,), timeout, source=source, **options)  # type: ignore[no-any-return]

    async def copy_records_to_table(self, table_name: str, *, records: Any, timeout: Any = None, **options: Any) -> str:
        """Copy records to a table; as `asyncpg.Connection.copy_records_to_table`."""
        return await self._run("copy_records_to_table", None, (table_name,), timeout, records=records, **options)  # type: ignore[no-any-return]

    def cursor(self, query: str, *args: Any, **options: Any) -> Any:
        """Return a cursor factory; as `asyncpg.Connection.cursor`. Needs a transaction."""
        self._mark(Touch.SETTINGS)
        self._wrote(query)
        return self._usable().cursor(query, *args, **options)

    async def prepare(self, query: str, **options: Any) -> Any:
        """Prepare a statement; as `asyncpg.Connection.prepare`. What it runs is the driver's, without dbguard."""
        self._mark(Touch.SETTINGS)
        self._wrote(query)
        return await self.guarded_do(lambda con: con.prepare(query, **options), Stake.READ)

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """Return a transaction block, or a savepoint where one is open; as `asyncpg.Connection.transaction`."""
        inner = self._usable().transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        return Transaction(self, inner)

    # ------------------------------------------------------------------ the session

    async def add_listener(self, channel: str, callback: Any) -> None:
        """Listen to a channel; as `asyncpg.Connection.add_listener`."""
        self._mark(Touch.SETTINGS)
        await self.guarded_do(lambda con: con.add_listener(channel, callback), Stake.READ)

    async def remove_listener(self, channel: str, callback: Any) -> None:
        """Stop listening; as `asyncpg.Connection.remove_listener`."""
        await self.guarded_do(lambda con: con.remove_listener(channel, callback), Stake.READ)

    def add_log_listener(self, callback: Any) -> None:
        """Hear of the server's notices; as `asyncpg.Connection.add_log_listener`."""
        self._mark(Touch.SETTINGS)
        self._usable().add_log_listener(callback)

    def remove_log_listener(self, callback: Any) -> None:
        """As `asyncpg.Connection.remove_log_listener`."""
        self._usable().remove_log_listener(callback)

    def add_query_logger(self, callback: Any) -> None:
        """As `asyncpg.Connection.add_query_logger`."""
        self._mark(Touch.SETTINGS)
        self._usable().add_query_logger(callback)

    def remove_query_logger(self, callback: Any) -> None:
        """As `asyncpg.Connection.remove_query_logger`."""
        self._usable().remove_query_logger(callback)

    def query_logger(self, callback: Any) -> Any:
        """As `asyncpg.Connection.query_logger`."""
        return self._usable().query_logger(callback)

    def add_termination_listener(self, callback: Any) -> None:
        """As `asyncpg.Connection.add_termination_listener`."""
        self._mark(Touch.LOST)
        self._usable().add_termination_listener(callback)

    def remove_termination_listener(self, callback: Any) -> None:
        """As `asyncpg.Connection.remove_termination_listener`."""
        self._usable().remove_termination_listener(callback)

    async def set_type_codec(self, typename: str, **options: Any) -> None:
        """As `asyncpg.Connection.set_type_codec`. The connection is closed afterwards: for all, use ``init=``."""
        self._mark(Touch.LOST)
        await self.guarded_do(lambda con: con.set_type_codec(typename, **options), Stake.READ)

    async def reset_type_codec(self, typename: str, **options: Any) -> None:
        """As `asyncpg.Connection.reset_type_codec`."""
        self._mark(Touch.LOST)
        await self.guarded_do(lambda con: con.reset_type_codec(typename, **options), Stake.READ)

    async def set_builtin_type_codec(self, typename: str, **options: Any) -> None:
        """As `asyncpg.Connection.set_builtin_type_codec`. The connection is closed afterwards."""
        self._mark(Touch.LOST)
        await self.guarded_do(lambda con: con.set_builtin_type_codec(typename, **options), Stake.READ)

    async def reload_schema_state(self) -> None:
        """As `asyncpg.Connection.reload_schema_state`."""
        await self.guarded_do(lambda con: con.reload_schema_state(), Stake.READ)

    async def reset(self, *, timeout: float | None = None) -> None:
        """As `asyncpg.Connection.reset`."""
        await self.guarded_do(lambda con: con.reset(timeout=timeout), Stake.READ)

    def get_reset_query(self) -> str:
        """As `asyncpg.Connection.get_reset_query`."""
        return self._usable().get_reset_query()  # type: ignore[no-any-return]

    def get_server_pid(self) -> int:
        """As `asyncpg.Connection.get_server_pid`."""
        return self._usable().get_server_pid()  # type: ignore[no-any-return]

    def get_server_version(self) -> Any:
        """As `asyncpg.Connection.get_server_version`."""
        return self._usable().get_server_version()

    def get_settings(self) -> Any:
        """As `asyncpg.Connection.get_settings`."""
        return self._usable().get_settings()

    def is_closed(self) -> bool:
        """Whether the connection is closed, or was given back."""
        return self.released or self._con.is_closed()

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return not self.is_closed() and self._con.is_in_transaction()

    async def close(self, *, timeout: float | None = None) -> None:
        """Close the connection; its place in the pool is filled by a new one."""
        self._mark(Touch.LOST)
        if not self.is_closed():
            await self._con.close(timeout=timeout)

    def terminate(self) -> None:
        """Terminate the connection at once, without waiting for the server."""
        self._mark(Touch.LOST)
        if not self.is_closed():
            self._con.terminate()

    # ------------------------------------------------------------------ within

    def _usable(self) -> Any:
        if self.released:
            raise released()
        return self._con

    def _mark(self, touched: Touch) -> None:
        self.lease.touched = max(self.lease.touched, touched)

    def _wrote(self, query: str) -> None:
        """Note what a statement that the driver runs by itself may do."""
        statement = self._texts.learn(query).statement
        self._mark(statement.touch)
        if statement.kind is not Kind.READ:
            state = self._engine.state
            self._call.box.wrote(state.view.reign, state.clock())

    async def _run(
        self, method: str, query: str | None, args: tuple[Any, ...], limit: float | None, **extra: Any
    ) -> Any:
        """Run one statement by the driver's own method."""
        con = self._usable()
        if query is None:
            stake, touched = (Stake.READ if method == "copy_from_table" else Stake.WRITE), Touch.SETTINGS
            whole = True
        else:
            text = self._texts.learn(query)
            stake = Stake.READ if text.statement.kind is Kind.READ else Stake.WRITE
            touched, whole = text.touched, text.statement.one_transaction
            self._ddl = self._ddl or text.ddl
        self._mark(touched)
        return await self.guarded_do(
            lambda _: getattr(con, method)(*args, timeout=self._within(limit), **extra), stake, whole=whole
        )

    def _within(self, limit: float | None) -> float | None:
        """Return the seconds one statement may take: the caller's limit, cut to the block's own."""
        left = self.seconds_left()
        return left if limit is None or (left is not None and left < limit) else limit

    def seconds_left(self) -> float | None:
        """Return the seconds left of the block's own deadline; None if it has none."""
        return None if self.until is None else max(0.001, self.until - self._engine.state.clock())

    async def guarded_do(self, do: Callable[[Any], Any], stake: Stake, *, whole: bool = True) -> Any:
        """Do one thing on the connection, and tell the truth if it fails."""
        con = self._usable()
        state = self._engine.state
        reign = state.view.reign
        inside = con.is_in_transaction() if not con.is_closed() else False
        if inside and stake is Stake.WRITE:
            stake = Stake.TRANSACTION
        unsent = con.is_closed()
        generation = self._node.breaker.generation
        try:
            value = await do(con)
        except BaseException as error:
            closed = con.is_closed()
            if not closed and (isinstance(error, TimeoutError) or not isinstance(error, Exception)):
                con.terminate()
            if self.within_function:
                self.failed = self.failed or is_refusal(error)
                raise
            self._call.work = work = Work(stake=stake, one_transaction=whole or inside, block=True)
            failure = name_failed(
                self._engine, self._call, self._node, self.lease, error, reign, unsent=unsent, closed=closed
            )
            self.failed = self.failed or (inside and failure.phase is Phase.ERROR)
            if not isinstance(error, Exception):
                raise
            state.failed(failure, generation)
            self._engine.flush()
            verdict = judge(failure, work)
            if verdict.act is Act.UNKNOWN:
                raise self._engine.driver.dress(state.left_open(self._call, failure)) from error
            if verdict.note:
                error.add_note(f"dbguard: {verdict.note}")
            raise
        if self.within_function:
            self.whole = self.whole and con.is_in_transaction()
        elif stake is not Stake.READ:
            self._call.box.wrote(reign, state.clock())
        return value

    def note_ddl(self) -> None:
        """Let the catalogue be read again if DDL was run in this block."""
        if self._ddl:
            self._texts.changed()

    def check_whole(self) -> None:
        """Raise if the open transaction has failed unseen by the function that ran in it."""
        if self.failed:
            raise rolled_back()

    def give_back(self) -> None:
        """End the lease."""
        if not self.released:
            self.released = True
            self.note_ddl()
            self._engine.pools[self._node.name].give(self.lease, self.lease.touched)


class Transaction:
    """A transaction block or, inside another one, a savepoint; with the methods of asyncpg's `Transaction`.

    A COMMIT is an acknowledgement only if the server says so: after an error in the block it answers ROLLBACK, and
    leaving the block then raises `asyncpg.InFailedSQLTransactionError` instead of passing silently.
    """

    def __init__(self, connection: Connection, inner: Any) -> None:
        self._connection = connection
        self._inner = inner
        self._nested = False

    async def start(self) -> None:
        """Send BEGIN or SAVEPOINT."""
        con = self._connection
        self._nested = con.is_in_transaction()
        await con.guarded_do(lambda _: self._inner.start(), Stake.READ)

    async def commit(self) -> None:
        """Send COMMIT, or release the savepoint.

        Raises `OutcomeUnknown` if the answer was lost, or if a promised standby was not waited for;
        `asyncpg.InFailedSQLTransactionError` if the transaction had failed, so that nothing was committed.
        """
        con = self._connection
        if self._nested:
            await con.guarded_do(lambda _: self._inner.commit(), Stake.READ)
        elif con.failed and con.is_in_transaction():
            await self.rollback()
            raise rolled_back()
        else:
            limit = con.seconds_left()
            await con.guarded_do(lambda raw: commit(raw, self._inner, con.lease, limit), Stake.COMMIT)

    async def rollback(self) -> None:
        """Send ROLLBACK, or roll back to the savepoint. A connection that does not answer is terminated instead."""
        con = self._connection
        if not con.is_closed():
            await con.guarded_do(lambda raw: rollback(raw, self._inner, ROLLBACK_WITHIN), Stake.READ)
            con.failed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        con = self._connection
        if error is None:
            await self.commit()
        elif not isinstance(error, Exception):
            con.terminate()
        else:
            try:
                await self.rollback()
            except Exception:  # noqa: BLE001  the connection goes and the transaction with it; the block's error counts
                con.terminate()
