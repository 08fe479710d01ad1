"""What needs no waiting of a connection's names in psycopg, and so is the same for tasks and for threads."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn, Self

from dbguard.core.statement import Touch
from dbguard.drivers.psycopg.connection import taken_by_psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import ConnectionInfo, IsolationLevel, Xid
    from psycopg.adapt import AdaptersMap

    from dbguard.pg.held import Held
    from dbguard.pg.nested import Nested

__all__ = ["ConnectionNames", "PipelineNames", "TransactionNames"]


class ConnectionNames:
    """Of `psycopg.Connection` and `psycopg.AsyncConnection`.

    attempt: counts from 1; above 1 where `run_in_transaction` repeats.
    """

    _held: Held
    _loose = False
    attempt: int

    def __init__(self, held: Held, attempt: int = 1) -> None:
        # psycopg's own constructor wants a connection of libpq's; this object has none, it stands before one that has.
        self._held = held
        self.attempt = attempt

    @classmethod
    def _out_of_blocks(cls, held: Held) -> Self:
        """Return one that belongs to no block, so that it is given back with ``putconn``."""
        made = cls(held)
        made._loose = True
        return made

    def __del__(self, warn: Any = None, /) -> None:
        """Do nothing: the lease's connection belongs to its pool."""

    def __repr__(self) -> str:
        session = self._held.session
        state = "given back" if session.over else ("closed" if session.closed else "open")
        return f"<dbguard.{type(self).__name__} to {session.node.name}, {state}>"

    def __getattr__(self, name: str) -> Any:
        # What psycopg keeps for itself: asked for by a cursor of its own that was made on this connection by hand, as
        # TypeInfo.fetch() does. Such a cursor works on the driver's connection, and marks the lease.
        if name.startswith("_") and not name.startswith("__") and name != "_held" and taken_by_psycopg():
            return getattr(self._held.lay_bare(), name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> NoReturn:
        """Not supported: raises `NotImplementedError`. A guard makes its connections itself."""
        raise NotImplementedError("a connection of dbguard's is taken with guard.connection()")

    # ------------------------------------------------------------------ what it is

    @property
    def node(self) -> str:
        """The name of the node it is connected to."""
        return self._held.session.node.name

    @property
    def raw(self) -> Any:
        """The driver's own connection. Touching it marks the lease: nothing is known any more of what was done."""
        return self._held.lay_bare()

    @property
    def pgconn(self) -> Any:
        """What psycopg knows as the connection of libpq's. Touching it marks the lease, as `raw` does."""
        _ = self._held.line
        if not taken_by_psycopg():
            self._held.session.touch_raw()
        return self._held.raw.pgconn

    @property
    def lock(self) -> Any:
        """The driver's own lock. Touching it marks the lease, as `raw` does."""
        return self._held.lay_bare().lock

    @property
    def connection(self) -> Any:
        """This connection."""
        return self

    @property
    def closed(self) -> bool:
        """Whether it is closed, or was given back."""
        return self._held.session.closed

    @property
    def broken(self) -> bool:
        """Whether it was lost, not closed by the application."""
        held = self._held
        return held.session.closed and not held.session.over and not held.quit

    @property
    def info(self) -> ConnectionInfo:
        """What is known of the connection; as `psycopg.Connection.info`."""
        _ = self._held.line
        return self._held.raw.info  # type: ignore[no-any-return]  # psycopg's own value

    @property
    def adapters(self) -> AdaptersMap:
        """How values are adapted. To register something here costs the connection: for all, do it as they are opened."""
        return self._held.adapters

    def fileno(self) -> int:
        """Return the number of its socket, to wait until something comes in."""
        _ = self._held.line
        return self._held.raw.fileno()  # type: ignore[no-any-return]  # psycopg's own value

    def cancel(self) -> None:
        """Ask the server to cancel what runs on it. A COMMIT that waits for its standby is better left alone."""
        if not self._held.session.closed:
            self._held.check_cancel()
            self._held.raw.cancel()

    def xid(self, format_id: int, gtrid: str, bqual: str) -> Xid:
        """Return a name for a two-phase transaction."""
        return self._held.raw.xid(format_id, gtrid, bqual)  # type: ignore[no-any-return]  # psycopg's own value

    # ------------------------------------------------------------------ what it does with transactions

    @abstractmethod
    def _assign(self, name: str, value: Any) -> None:
        """Set an attribute that psycopg lets be set outside of transactions alone."""

    @property
    def autocommit(self) -> bool:
        """Whether nothing begins a transaction but the application. In a block it does not, unless set so."""
        return self._held.autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._assign("autocommit", value)

    @property
    def isolation_level(self) -> IsolationLevel | None:
        """The isolation of the transactions that begin here; None: the server's default."""
        return self._held.isolation_level  # type: ignore[no-any-return]  # psycopg's own value

    @isolation_level.setter
    def isolation_level(self, value: IsolationLevel | None) -> None:
        self._assign("isolation_level", value)

    @property
    def read_only(self) -> bool | None:
        """Whether the transactions that begin here only read; None: the server's default."""
        return self._held.read_only

    @read_only.setter
    def read_only(self, value: bool | None) -> None:
        self._assign("read_only", value)

    @property
    def deferrable(self) -> bool | None:
        """Whether the transactions that begin here are deferrable; None: the server's default."""
        return self._held.deferrable  # type: ignore[no-any-return]  # psycopg's own value

    @deferrable.setter
    def deferrable(self, value: bool | None) -> None:
        self._assign("deferrable", value)

    # ------------------------------------------------------------------ what it makes, and keeps

    @property
    def row_factory(self) -> Any:
        """What makes the rows of the cursors that are made here. Counts until the connection is given back."""
        return self._held.row_factory

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self._held.row_factory = value

    @property
    def cursor_factory(self) -> Any:
        """The driver's class of the cursors that are made here. Counts until the connection is given back."""
        return self._held.cursor_factory

    @cursor_factory.setter
    def cursor_factory(self, value: Any) -> None:
        self._held.cursor_factory = value

    @property
    def server_cursor_factory(self) -> Any:
        """The driver's class of the named cursors that are made here. Counts until the connection is given back."""
        return self._held.server_cursor_factory

    @server_cursor_factory.setter
    def server_cursor_factory(self, value: Any) -> None:
        self._held.server_cursor_factory = value

    @property
    def prepare_threshold(self) -> int | None:
        """After how many times a statement is prepared; None: never. To set it costs the connection."""
        return self._held.raw.prepare_threshold  # type: ignore[no-any-return]  # psycopg's own value

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self._lost().prepare_threshold = value

    @property
    def prepared_max(self) -> int | None:
        """How many statements are prepared at most; None: no limit. To set it costs the connection."""
        return self._held.raw.prepared_max  # type: ignore[no-any-return]  # psycopg's own value

    @prepared_max.setter
    def prepared_max(self, value: int | None) -> None:
        self._lost().prepared_max = value

    def add_notice_handler(self, callback: Callable[[Any], None]) -> None:
        """As `psycopg.Connection.add_notice_handler`. The connection is closed afterwards."""
        self._lost().add_notice_handler(callback)

    def remove_notice_handler(self, callback: Callable[[Any], None]) -> None:
        """As `psycopg.Connection.remove_notice_handler`."""
        self._lost().remove_notice_handler(callback)

    def add_notify_handler(self, callback: Callable[[Any], None]) -> None:
        """As `psycopg.Connection.add_notify_handler`. The connection is closed afterwards."""
        self._lost().add_notify_handler(callback)

    def remove_notify_handler(self, callback: Callable[[Any], None]) -> None:
        """As `psycopg.Connection.remove_notify_handler`."""
        self._lost().remove_notify_handler(callback)

    def _lost(self) -> Any:
        """Return the driver's connection, which is changed for good: it is not handed on."""
        held = self._held
        _ = held.line
        held.session.touch(Touch.LOST)
        return held.raw


class TransactionNames:
    """Of `psycopg.Transaction` and `psycopg.AsyncTransaction`."""

    _inner: Nested
    _made_by: Any

    def __init__(self, connection: Any, inner: Nested) -> None:
        self._made_by = connection
        self._inner = inner

    def __repr__(self) -> str:
        name = f"{self.savepoint_name!r} " if self.savepoint_name else ""
        return f"<dbguard.{type(self).__name__} {name}({self.status.value}) on {self._made_by!r}>"

    @property
    def connection(self) -> Any:
        """The connection it was made by."""
        return self._made_by

    @property
    def pgconn(self) -> Any:
        """As the connection's."""
        return self._made_by.pgconn

    @property
    def savepoint_name(self) -> str | None:
        """The name of its savepoint; empty: it is the outermost block."""
        return self._inner.savepoint_name

    @property
    def status(self) -> Any:
        """How far it is."""
        return self._inner.status

    @status.setter
    def status(self, value: Any) -> None:
        self._inner.status = value

    @property
    def force_rollback(self) -> bool:
        """Whether it is rolled back whatever happens."""
        return self._inner.force_rollback

    @force_rollback.setter
    def force_rollback(self, value: bool) -> None:
        self._inner.force_rollback = value


class PipelineNames:
    """Of `psycopg.Pipeline` and `psycopg.AsyncPipeline`."""

    _held: Held
    _made_by: Any

    def __init__(self, connection: Any, held: Held) -> None:
        self._made_by = connection
        self._held = held

    def __repr__(self) -> str:
        return f"<dbguard.{type(self).__name__} on {self._made_by!r}>"

    @property
    def pgconn(self) -> Any:
        """As the connection's."""
        return self._made_by.pgconn

    @property
    def status(self) -> Any:
        """Whether it is on, off, or aborted by an error."""
        return self._held.pipes.driver.status

    @property
    def level(self) -> int:
        """How many blocks of it are open."""
        return self._held.pipes.levels
