"""Engines whose connections a guard makes: to the present primary, or to a replica that is fit.

SQLAlchemy keeps its own pool. A connection is looked at when it is checked out, without asking any server: one that the
guard has ended, or that leads elsewhere by now, is replaced before the application sees it.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event, exc
from sqlalchemy.ext import asyncio as sa_asyncio

from dbguard.core.failure import Family, Phase
from dbguard.errors import ConfigError, DbGuardError, NotAttempted, OutcomeUnknown
from dbguard.guard import Guard
from dbguard.integrations.sqlalchemy.drivers import DOUBT, FINAL, Asyncpg, AsyncPsycopg, Psycopg
from dbguard.integrations.sqlalchemy.errors import NotARead, dress
from dbguard.integrations.sqlalchemy.proxies import was_lent, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Connection, Dialect, Engine, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool, PoolProxiedConnection

    from dbguard.core.failure import Failure
    from dbguard.integrations.sqlalchemy.drivers import Driver
    from dbguard.pg.guard import PsycopgGuard
    from dbguard.pg.sync_guard import SyncGuard
    from dbguard.texts import Text, Texts

E = TypeVar("E", "AsyncEngine", "Engine")

__all__ = ["Lead", "create_async_engine", "create_engine", "lead_of", "replica_engine", "sync_engine"]

TRIES = 3
"""Connections tried for one checkout that are lost while SQLAlchemy sets them up: a failover may overtake two."""

ASKED = "dbguard_asked"
"""The option of a connection to a replica on which single statements run that asked for one."""

READ_ONLY = "25006"
"""A write refused as read-only: by a standby, or by a primary that was told to refuse them."""

ADDRESS = ("dsn", "conninfo", "host", "hostaddr", "port", "service")

OURS = {
    "creator": "the guard connects",
    "async_creator": "the guard connects",
    "pool": "give poolclass=, and the pool's arguments, so that a replica's engine gets one of its own",
}
"""Arguments of SQLAlchemy's that have no place here, and why."""


def create_async_engine(guard: Guard | PsycopgGuard, *, role: str = "primary", **arguments: Any) -> AsyncEngine:
    """Make an engine over *guard*, as `sqlalchemy.ext.asyncio.create_async_engine` does over a URL.

    guard: one with nodes of its own; it must be open whenever the engine connects. Who the application is, the database,
        TLS and the like are the guard's, and so is the driver.
    role: ``primary``: what a `Session` needs, with replicas beside it (`replica_engine`); or ``replica``: an engine over
        replicas alone, whose transactions are READ ONLY.
    arguments: any of SQLAlchemy's for engines and pools; ``connect_args`` go to the driver's `connect`, but no address.
        ``pool_pre_ping`` is not needed: it would ask a server that may be the wrong one.

    Raises `ConfigError` for a guard of wrapped pools, or an address; `sqlalchemy.exc.ArgumentError` for an argument that
    is the guard's to choose; `ValueError` for another role; `TypeError` for what is no guard for asyncio.
    """
    if isinstance(guard, Guard):
        return _make(guard, Asyncpg(), role, arguments)  # type: ignore[no-any-return]  # of the driver's colour
    if _is_of(guard, "guard", "PsycopgGuard"):
        return _make(guard, AsyncPsycopg(), role, arguments)  # type: ignore[no-any-return]  # same
    raise TypeError(
        f"create_async_engine() takes a dbguard.Guard or a dbguard.PsycopgGuard, not {type(guard).__name__}: for a "
        "dbguard.SyncGuard there is create_engine()"
    )


def create_engine(guard: SyncGuard, *, role: str = "primary", **arguments: Any) -> Engine:
    """Make an engine over a guard for threads, as `sqlalchemy.create_engine` does over a URL; see `create_async_engine`.

    Raises `TypeError` for what is no `dbguard.SyncGuard`; else as `create_async_engine`.
    """
    if not _is_of(guard, "sync_guard", "SyncGuard"):
        raise TypeError(
            f"create_engine() takes a dbguard.SyncGuard, not {type(guard).__name__}: for asyncio there is "
            "create_async_engine()"
        )
    return _make(guard, Psycopg(), role, arguments)  # type: ignore[no-any-return]  # of the driver's colour


def _is_of(guard: object, module: str, name: str) -> bool:
    """Whether *guard* is of a class over psycopg, which is not imported for asking."""
    loaded = sys.modules.get(f"dbguard.pg.{module}")
    return loaded is not None and isinstance(guard, getattr(loaded, name))


def _make(guard: Any, driver: Driver, role: str, arguments: Mapping[str, Any]) -> Any:
    for name, why in OURS.items():
        if arguments.get(name) is not None:
            raise exc.ArgumentError(f"{name} has no place in an engine over a guard: {why}")
    addressed = [name for name in ADDRESS if name in arguments.get("connect_args", {})]
    if addressed:
        raise ConfigError(f"the guard chooses the address: connect_args should not give {' and '.join(addressed)}")
    lead = Lead(guard, driver, role, arguments)
    poolclass = lead.poolclass(arguments.get("poolclass", driver.poolclass))
    engine = driver.make(**{**lead.arguments, "poolclass": poolclass})
    lead.take(sync_engine(engine))
    return engine.execution_options(postgresql_readonly=True) if role == "replica" else engine


def sync_engine(engine: AsyncEngine | Engine) -> Engine:
    """Return SQLAlchemy's own engine, of which one for asyncio is a wrapper."""
    return engine.sync_engine if isinstance(engine, sa_asyncio.AsyncEngine) else engine


def replica_engine(engine: E) -> E:
    """Return the engine over replicas that the sessions of *engine* use; made, with the same arguments, when first asked for.

    Its transactions are READ ONLY, and it refuses statements that must go to the primary. It is disposed of with *engine*.

    Raises `sqlalchemy.exc.ArgumentError` if *engine* was not made over a guard, or leads to replicas itself.
    """
    lead = lead_of(engine)
    if lead is None or lead.role == "replica":
        raise exc.ArgumentError("only an engine over a guard, to the primary, has one over replicas beside it")
    return lead.beside()  # type: ignore[no-any-return]  # of the same colour


_leads: weakref.WeakKeyDictionary[Dialect, Lead] = weakref.WeakKeyDictionary()


def lead_of(bind: AsyncEngine | Engine | Connection) -> Lead | None:
    """Return what leads an engine, or one derived from it by execution options; None if no guard does."""
    return _leads.get(bind.dialect)


class Lead:
    """What leads one engine's connections to the role that it was made for.

    written: connections on which something was sent that is not known to be a read; a session takes a new one for each
        transaction.
    """

    def __init__(self, guard: Any, driver: Driver, role: str, arguments: Mapping[str, Any]) -> None:
        self.role = role
        self.driver = driver
        self.connector = guard.connector(role)
        self.arguments = dict(arguments) if role == "primary" else _for_replicas(arguments)
        self.written: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._guard = guard
        self._texts: Texts = getattr(guard, "_inner", guard)._core.texts  # noqa: SLF001  of the same house
        self._beside: Any = None
        self._apart: dict[str, Engine] = {}
        self._doubted_until = 0.0
        self._lock = threading.Lock()  # guards the making of the engine beside it

    def beside(self) -> Any:
        """Return the engine over replicas, of the same colour."""
        with self._lock:
            if self._beside is None:
                self._beside = _make(self._guard, self.driver, "replica", self.arguments)
            return self._beside

    def apart(self, how: str) -> Engine:
        """Return the engine for single statements that ask for a replica; one for each way, as a session needs them.

        how: ``replica``, in autocommit; ``stream``, in transactions, which cursors need.
        """
        if how not in self._apart:
            options = {ASKED: True} if how == "stream" else {ASKED: True, "isolation_level": "AUTOCOMMIT"}
            self._apart[how] = sync_engine(self.beside()).execution_options(**options)
        return self._apart[how]

    def take(self, engine: Engine) -> None:
        """Lead *engine*."""
        _leads[engine.dialect] = self
        event.listen(engine, "do_connect", self._dial)
        event.listen(engine, "checkout", self._look)
        event.listen(engine, "handle_error", self._name)
        # No events of connections or engines, such as `before_cursor_execute`: any one makes every call a little dearer.
        for name in ("do_execute", "do_executemany"):
            event.listen(engine, name, self._note if self.role == "primary" else self._judge)
        event.listen(engine, "do_execute_no_params", self._note_bare if self.role == "primary" else self._judge_bare)

    def poolclass(self, base: type[Pool]) -> type[Pool]:
        """Return *base*, so that a checkout begins anew where the connection is lost while SQLAlchemy sets it up.

        And so that what is disposed of takes the pool over replicas with it; where the parent's pool is left alone, after
        a fork, the one over replicas is, too.
        """
        lead = self

        class Led(base):  # type: ignore[valid-type,misc]  # any pool class of the application's
            def connect(self) -> PoolProxiedConnection:
                return lead._connect(super().connect, self._dialect)

            def dispose(self) -> None:
                super().dispose()
                lead._dispose(close=True)

            def recreate(self) -> Pool:
                lead._dispose(close=False)
                return super().recreate()  # type: ignore[no-any-return]  # as above

        Led.__name__ = Led.__qualname__ = f"Led{base.__name__}"
        return Led

    # ------------------------------------------------------------------ connections

    def _connect(self, connect: Callable[[], PoolProxiedConnection], dialect: Dialect) -> PoolProxiedConnection:
        """Call *connect* until it gives a connection that was not lost meanwhile, `TRIES` times at most."""
        for tried in range(1, TRIES + 1):
            try:
                proxy = connect()
            except (exc.InvalidRequestError, exc.DBAPIError) as error:
                # "This connection is closed": SQLAlchemy has dialled twice what was lost at once. Or asking its version failed.
                lost = isinstance(error, exc.InvalidRequestError) or error.connection_invalidated
                if not lost or tried == TRIES:
                    raise
            except Exception as error:
                if FINAL in vars(error) or self.driver.family(error) is not Family.HARD:
                    raise
                if tried == TRIES:
                    raise dialect.loaded_dbapi.OperationalError(str(error)) from error
            else:
                if self.role == "primary":  # nothing is written elsewhere
                    watch(proxy)
                return proxy
        raise AssertionError("the last try has returned or raised")

    def _dial(self, dialect: Dialect, _record: object, args: Any, given: Any) -> Any:
        return self.driver.connect(dialect, self.connector, args, given)

    def _look(self, con: Any, record: Any, _proxy: object) -> None:
        """Let nothing out of the pool that has ended or leads elsewhere: SQLAlchemy dials anew then."""
        if not self.connector.serves(record.driver_connection):
            raise exc.DisconnectionError(f"ended, or led elsewhere than to a {self.role}")
        if time.monotonic() < self._doubted_until and not self.driver.is_writable(con):
            raise exc.DisconnectionError("leads to a standby by now")

    def _dispose(self, *, close: bool) -> None:
        """Dispose of the engine over replicas as well."""
        if self._beside is not None:
            sync_engine(self._beside).dispose(close=close)

    # ------------------------------------------------------------------ statements

    def _text(self, sql: str) -> Text:
        return self._texts.get(sql) or self._texts.learn(sql)

    def _note(self, _cursor: object, sql: str, _parameters: object, context: Any) -> None:
        """Note what may have written."""
        if not self._text(sql).reads:
            self.written.add(context.root_connection)

    def _note_bare(self, _cursor: object, sql: str, context: Any) -> None:
        self._note(None, sql, None, context)

    def _judge(self, _cursor: object, sql: str, _parameters: object, context: Any) -> None:
        """Refuse what must not run on a replica."""
        text = self._text(sql)
        if text.reads:
            return
        con = context.root_connection
        lenient = not (con.get_execution_options().get(ASKED) or _is_autocommit(con))
        if lenient and (text.liftable or text.statement.sets_only):
            return
        raise NotARead(f"this is for the primary, not for a replica: {text.why}")

    def _judge_bare(self, _cursor: object, sql: str, context: Any) -> None:
        self._judge(None, sql, None, context)

    # ------------------------------------------------------------------ errors

    def _name(self, context: ExceptionContext) -> BaseException | None:
        """Say what an error means: to the guard, to the pool, and to the application."""
        con, original = context.connection, context.original_exception
        if con is None or con.closed or con.invalidated or not isinstance(original, Exception):
            return self._not_connected(context, original) if con is None and not context.is_pre_ping else None
        raw = con.connection.driver_connection
        failure = self.driver.failure(original, raw)
        unknown = self._is_unknown(context, con, failure)
        if self.role == "primary":
            refused = failure.sqlstate == READ_ONLY and failure.phase is Phase.ERROR
            demoted = failure.family is Family.ROLE and self.driver.in_standby(raw)
            if refused and not demoted:
                self._doubted_until = time.monotonic() + DOUBT
        else:
            refused = demoted = False  # what is refused there is no news of the node
        if unknown or demoted or (failure.broken and not failure.timed_out):
            context.is_disconnect = True
        if context.is_disconnect or refused:
            self.connector.doubt()
        if context.is_disconnect and not self.connector.is_news(raw):
            # The guard has ended what led there, or will: connections made since then are good.
            context.invalidate_pool_on_disconnect = False
        if not unknown:
            return _wrapped(context, original) if failure.broken and not failure.timed_out else None
        what = "the COMMIT" if context.statement is None else "the statement"
        error = OutcomeUnknown(
            f"{what} was sent and its answer was lost: it may have been applied; look before repeating it",
            node=self.connector.node_of(raw) or "the primary",
            phase="sent",
        )
        return dress(error, original, invalidated=True)

    def may_have_written(self, con: Connection) -> bool:
        """Whether *con*, which is open, has sent what is not known to be a read, or was lent to do so."""
        return con in self.written or (not con.invalidated and was_lent(con.connection))

    def _is_unknown(self, context: ExceptionContext, con: Connection, failure: Failure) -> bool:
        """Whether nobody knows whether something was applied that was lost: a commit, or what commits by itself.

        What is known to have read alone leaves no doubt.
        """
        if failure.phase is not Phase.SENT or not (failure.broken or context.is_disconnect):
            return False
        if not self.may_have_written(con):
            return False
        if context.statement is None:
            return _is_of_a_commit(context.original_exception)
        text = self._text(context.statement)
        return not text.reads and (_is_autocommit(con) or text.controls)

    def _not_connected(self, context: ExceptionContext, original: BaseException) -> BaseException | None:
        """Return the error of a connection that was not made, as what it is: nothing was sent."""
        cause = original if isinstance(original, DbGuardError) else original.__cause__ or original
        if isinstance(cause, DbGuardError):
            return dress(cause, original, invalidated=False)
        if context.sqlalchemy_exception is None or self.driver.family(cause) in (Family.CONFIG, Family.NEUTRAL):
            return None
        error = NotAttempted(f"no connection to a {self.role}: {original}", retry_after=1.0)
        return dress(error, original, invalidated=False)


def _wrapped(context: ExceptionContext, original: Exception) -> BaseException | None:
    """Return SQLAlchemy's error for one that ended a connection and that its dialect does not know; None if it does."""
    if context.sqlalchemy_exception is not None:
        return None
    hide = context.engine is not None and context.engine.hide_parameters
    return exc.OperationalError(
        context.statement, context.parameters, original, hide_parameters=hide, connection_invalidated=True
    )


def _is_of_a_commit(original: BaseException) -> bool:
    """Whether it was a COMMIT that failed, and not a ROLLBACK or a BEGIN: SQLAlchemy names no statement for either.

    `Dialect.do_commit` is what it calls for one. An event before each commit would tell as well, at a cost for all.
    """
    frames = traceback.walk_tb(original.__traceback__)
    return any(frame.f_code.co_name.startswith(("do_commit", "do_prepare")) for frame, _ in frames)


def _is_autocommit(con: Connection) -> bool:
    """Whether each statement on *con* is a transaction by itself."""
    return bool(getattr(con.connection.dbapi_connection, "autocommit", False))


_ISOLATION = {"SERIALIZABLE": "REPEATABLE READ", "AUTOCOMMIT": "READ COMMITTED"}
"""What a replica's transactions have in the place of what a standby refuses, or of what would not be READ ONLY."""


def _for_replicas(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine's arguments as the one over replicas can have them."""
    made = dict(arguments)
    if "isolation_level" in made:
        made["isolation_level"] = _ISOLATION.get(made["isolation_level"], made["isolation_level"])
    options = dict(made.get("execution_options", {}))
    if "isolation_level" in options:
        options["isolation_level"] = _ISOLATION.get(options["isolation_level"], options["isolation_level"])
        made["execution_options"] = options
    return made
