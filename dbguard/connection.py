"""`Connection`: one leased connection, in asyncpg's words.

Every public method of `asyncpg.Connection` is here with its signature. Nothing on an acquired connection is repeated:
only the application knows what it did before. What dbguard adds is truth about failures: a write or a COMMIT whose
answer was lost raises `OutcomeUnknown`, and a time-out or a cancellation ends the connection before anything else, so
that no cancel request is sent and no exit hangs.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, overload

from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.dialect import Statements
from dbguard.drivers.asyncpg.connection import DriverConnection
from dbguard.prepared import CursorFactory, PreparedStatement
from dbguard.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from asyncpg import Record
    from asyncpg.types import ServerVersion

    from dbguard.asyncpg_session import AsyncpgSession

__all__ = ["Connection"]

R = TypeVar("R")

COPIES = {
    "copy_from_table": "COPY t TO STDOUT",
    "copy_to_table": "COPY t FROM STDIN",
    "copy_records_to_table": "COPY t FROM STDIN",
}
"""What asyncpg's methods that take a table's name send, as far as the classifier is concerned."""


class Connection(Statements, DriverConnection):  # type: ignore[misc]  # asyncpg's class, by way of the driver
    """A leased connection. Made by `Guard.acquire` and `Guard.transaction`, and given back when their block ends.

    attempt: counts from 1; above 1 where `run_in_transaction` repeats.
    """

    def __init__(self, session: AsyncpgSession, attempt: int = 1) -> None:
        # asyncpg's own constructor wants a protocol; this object has none, it stands before one that has.
        self._session = session
        self.attempt = attempt
        self._callbacks: dict[Any, Any] = {}

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
        con = self._session.con
        self._session.touch_raw()
        return getattr(con, "lent", con)

    # ------------------------------------------------------------------ statements

    def _run(self, method: str, query: str, args: tuple[Any, ...], limit: float | None, **extra: Any) -> Awaitable[Any]:
        return self._session.run(query, method, args, limit, **extra)

    def _many(self, method: str, query: str, args: Any, limit: float | None, **extra: Any) -> Awaitable[Any]:
        return self._session.run(query, method, (query, args), limit, **extra)

    def _copy_query(
        self, method: str, query: str, args: tuple[Any, ...], limit: float | None, **extra: Any
    ) -> Awaitable[Any]:
        return self._session.run(query, method, args, limit, **extra)

    def _copy(self, method: str, table: str, limit: float | None, **extra: Any) -> Awaitable[Any]:
        return self._session.run(COPIES[method], method, (table,), limit, **extra)

    @overload  # type: ignore[override]  # dbguard's own cursors
    def cursor(
        self,
        query: str,
        *args: Any,
        prefetch: int | None = None,
        timeout: float | None = None,
        record_class: None = None,
    ) -> CursorFactory[Record]: ...
    @overload
    def cursor(
        self,
        query: str,
        *args: Any,
        prefetch: int | None = None,
        timeout: float | None = None,
        record_class: type[R],
    ) -> CursorFactory[R]: ...
    def cursor(
        self,
        query: str,
        *args: Any,
        prefetch: int | None = None,
        timeout: float | None = None,
        record_class: type[Any] | None = None,
    ) -> CursorFactory[Any]:
        """Return a cursor factory; as `asyncpg.Connection.cursor`. Needs a transaction."""
        session = self._session
        session.touch(Touch.SETTINGS)
        inner = session.con.cursor(query, *args, prefetch=prefetch, record_class=record_class)
        return CursorFactory(session, query, inner, timeout, prefetch)

    @overload  # type: ignore[override]  # dbguard's own statements
    async def prepare(
        self, query: str, *, name: str | None = None, timeout: float | None = None, record_class: None = None
    ) -> PreparedStatement[Record]: ...
    @overload
    async def prepare(
        self, query: str, *, name: str | None = None, timeout: float | None = None, record_class: type[R]
    ) -> PreparedStatement[R]: ...
    async def prepare(
        self,
        query: str,
        *,
        name: str | None = None,
        timeout: float | None = None,
        record_class: type[Any] | None = None,
    ) -> PreparedStatement[Any]:
        """Prepare a statement; as `asyncpg.Connection.prepare`."""
        session = self._session
        session.touch(Touch.SETTINGS)
        prepare = session.con.prepare
        inner = await session.do(lambda: prepare(query, name=name, record_class=record_class), Stake.READ, timeout)
        return PreparedStatement(session, query, inner)

    def transaction(  # type: ignore[override]  # dbguard's own
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """Return a transaction block, or a savepoint where one is open; as `asyncpg.Connection.transaction`."""
        inner = self._session.con.transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)
        return Transaction(self._session, inner, read_only=readonly)

    # ------------------------------------------------------------------ the session

    def _handed(self, callback: Any) -> Any:
        """Return what calls *callback* with this connection, not the driver's own; the same for the same callback."""
        if callback not in self._callbacks and callable(callback):
            self._callbacks[callback] = with_connection(self, callback)
        return self._callbacks.get(callback, callback)

    async def add_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        """Listen to a channel; as `asyncpg.Connection.add_listener`. *callback* gets this connection.

        If the connection is lost, as in a failover, `dbguard.events.NotificationGap` tells that some may be missed.
        """
        session = self._session
        session.touch(Touch.SETTINGS)
        call = self._handed(callback)
        await session.do(lambda: session.con.add_listener(channel, call), Stake.READ)
        session.listening.begin(channel, callback)

    async def remove_listener(self, channel: str, callback: Callable[..., Any]) -> None:
        """Stop listening; as `asyncpg.Connection.remove_listener`."""
        session = self._session
        await session.do(lambda: session.con.remove_listener(channel, self._handed(callback)), Stake.READ)
        session.listening.end(channel, callback)

    def add_log_listener(self, callback: Callable[..., Any]) -> None:
        """Hear of the server's notices; as `asyncpg.Connection.add_log_listener`."""
        self._session.touch(Touch.SETTINGS)
        self._session.con.add_log_listener(self._handed(callback))

    def remove_log_listener(self, callback: Callable[..., Any]) -> None:
        """As `asyncpg.Connection.remove_log_listener`."""
        self._session.con.remove_log_listener(self._handed(callback))

    def add_query_logger(self, callback: Callable[..., Any]) -> None:
        """As `asyncpg.Connection.add_query_logger`. The connection is closed afterwards: no reset removes a logger."""
        self._session.touch(Touch.LOST)
        self._session.con.add_query_logger(callback)

    def remove_query_logger(self, callback: Callable[..., Any]) -> None:
        """As `asyncpg.Connection.remove_query_logger`."""
        self._session.con.remove_query_logger(callback)

    def query_logger(self, callback: Callable[[Any], Any]) -> AbstractContextManager[None]:  # type: ignore[override]  # wider
        """As `asyncpg.Connection.query_logger`. The connection is closed afterwards: it may be given back before the end."""
        self._session.touch(Touch.LOST)
        return self._session.con.query_logger(callback)  # type: ignore[no-any-return]  # what asyncpg's own returns

    def add_termination_listener(self, callback: Callable[..., Any]) -> None:
        """As `asyncpg.Connection.add_termination_listener`."""
        self._session.touch(Touch.LOST)
        self._session.con.add_termination_listener(self._handed(callback))

    def remove_termination_listener(self, callback: Callable[..., Any]) -> None:
        """As `asyncpg.Connection.remove_termination_listener`."""
        self._session.con.remove_termination_listener(self._handed(callback))

    async def set_type_codec(
        self,
        typename: str,
        *,
        schema: str = "public",
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        format: str = "text",  # noqa: A002  asyncpg's word
    ) -> None:
        """As `asyncpg.Connection.set_type_codec`. The connection is closed afterwards: for all, use ``init=``."""
        self._session.touch(Touch.LOST)
        set_codec = self._session.con.set_type_codec
        await self._session.do(
            lambda: set_codec(typename, schema=schema, encoder=encoder, decoder=decoder, format=format), Stake.READ
        )

    async def reset_type_codec(self, typename: str, *, schema: str = "public") -> None:
        """As `asyncpg.Connection.reset_type_codec`."""
        self._session.touch(Touch.LOST)
        await self._session.do(lambda: self._session.con.reset_type_codec(typename, schema=schema), Stake.READ)

    async def set_builtin_type_codec(
        self,
        typename: str,
        *,
        schema: str = "public",
        codec_name: str,
        format: str | None = None,  # noqa: A002  asyncpg's word
    ) -> None:
        """As `asyncpg.Connection.set_builtin_type_codec`. The connection is closed afterwards."""
        self._session.touch(Touch.LOST)
        set_codec = self._session.con.set_builtin_type_codec
        await self._session.do(
            lambda: set_codec(typename, schema=schema, codec_name=codec_name, format=format), Stake.READ
        )

    async def reload_schema_state(self) -> None:
        """As `asyncpg.Connection.reload_schema_state`."""
        await self._session.do(self._session.con.reload_schema_state, Stake.READ)

    async def reset(self, *, timeout: float | None = None) -> None:
        """As `asyncpg.Connection.reset`."""
        await self._session.do(lambda: self._session.con.reset(timeout=timeout), Stake.READ)
        self._session.stop_listening()

    def get_reset_query(self) -> str:
        """As `asyncpg.Connection.get_reset_query`."""
        return self._session.con.get_reset_query()  # type: ignore[no-any-return]  # what asyncpg's own returns

    def get_server_pid(self) -> int:
        """As `asyncpg.Connection.get_server_pid`."""
        return self._session.con.get_server_pid()  # type: ignore[no-any-return]  # what asyncpg's own returns

    def get_server_version(self) -> ServerVersion:
        """As `asyncpg.Connection.get_server_version`."""
        return self._session.con.get_server_version()  # type: ignore[no-any-return]  # what asyncpg's own returns

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
            self._session.stop_listening()
            await self._session.do(self._session.con.close, Stake.READ, timeout)

    def terminate(self) -> None:
        """Terminate the connection at once, without waiting for the server."""
        self._session.touch(Touch.LOST)
        if not self.is_closed():
            self._session.stop_listening()
            self._session.con.terminate()


def with_connection(connection: Connection, callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return *callback* with *connection* in the place of its first argument; awaited by the driver if it must be."""
    if inspect.iscoroutinefunction(callback):

        async def handed_over(_: Any, *rest: Any) -> None:
            await callback(connection, *rest)

        return handed_over

    def called(_: Any, *rest: Any) -> None:
        callback(connection, *rest)

    return called
