"""What an engine has to know of the driver below: its URL, its pool, and what its errors mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from dbguard.core.failure import Failure, Family
from dbguard.drivers.asyncpg import failures as asyncpg_failures
from dbguard.errors import ConfigError, DbGuardError

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool

__all__ = ["DOUBT", "FINAL", "AsyncPsycopg", "Asyncpg", "Driver", "Psycopg"]

DOUBT = 1.0
"""Seconds after a write was refused as read-only in which connections are asked before they are used: longer than the
guard's probes take to find out whether the primary was demoted behind them, as can be where a pooler keeps them open.
And seconds that the answer may take."""

FINAL = "dbguard_final"
"""The attribute of an error after which no other connection need be tried."""

NO_STANDBY = "SELECT WHERE NOT pg_is_in_recovery()"


class Driver(Protocol):
    """What is asked of each. poolclass: SQLAlchemy's default for it."""

    poolclass: type[Pool]

    def make(self, **arguments: Any) -> AsyncEngine | Engine:
        """Make the engine."""

    def connect(self, dialect: Dialect, connector: Any, args: Any, given: Any) -> Any:
        """Return a connection as *dialect* has them, made by *connector*. Raises the DB-API module's errors.

        What is of the application, or wrong in the configuration, is raised as it is.
        """

    def family(self, error: BaseException) -> Family:
        """Say what kind of failure it was that kept a connection from being made."""

    def in_standby(self, raw: Any) -> bool | None:
        """Whether the session last said that its server is a standby; None where it does not say, or is closed."""

    def failure(self, error: BaseException, raw: Any) -> Failure:
        """Name what went wrong on *raw*, the driver's connection; *error* as SQLAlchemy was given it."""

    def is_writable(self, con: Any) -> bool:
        """Ask the server behind a connection of SQLAlchemy's whether it is no standby; not, if it does not answer."""


class _Asyncio:
    """What SQLAlchemy has around drivers for asyncio."""

    url: str
    poolclass: type[Pool] = AsyncAdaptedQueuePool

    def make(self, **arguments: Any) -> AsyncEngine:
        """See `Driver`."""
        return sa_asyncio.create_async_engine(self.url, **arguments)

    def connect(self, dialect: Dialect, connector: Any, args: Any, given: Any) -> Any:
        """See `Driver`."""

        async def create(*args: Any, **given: Any) -> Any:
            try:
                return await connector(*args, **given)
            except Exception as error:
                told = _for_sqlalchemy(dialect, error, self.family(error))
                if told is error:
                    raise
                raise told from error

        return dialect.connect(*args, async_creator_fn=create, **given)

    def family(self, error: BaseException) -> Family:
        """See `Driver`."""
        raise NotImplementedError


class Asyncpg(_Asyncio):
    """SQLAlchemy's dialect for asyncpg, which wraps asyncpg's errors in errors of its own."""

    url = "postgresql+asyncpg://"

    def family(self, error: BaseException) -> Family:
        """See `Driver`."""
        return asyncpg_failures.name_dial(error, "").family

    def in_standby(self, raw: Any) -> bool | None:
        """See `Driver`."""
        said = None if raw.is_closed() else getattr(raw.get_settings(), "in_hot_standby", None)
        return None if said is None else bool(said == "on")

    def failure(self, error: BaseException, raw: Any) -> Failure:
        """See `Driver`. An interface error on a closed connection says that it was closed before anything was sent."""
        own = error.__cause__
        if own is None or not asyncpg_failures.is_drivers(own):
            own = error
        closed = raw.is_closed()
        unsent = closed and type(error).__name__ == "InterfaceError"
        return asyncpg_failures.name_failure(own, "", unsent=unsent, closed=closed, standby=self.in_standby(raw))

    def is_writable(self, con: Any) -> bool:
        """See `Driver`."""

        async def ask(raw: Any) -> bool:
            try:
                return bool(await raw.execute(NO_STANDBY, timeout=DOUBT) == "SELECT 1")
            except Exception as error:
                if self.family(error) is not Family.HARD:
                    raise
                return False

        return bool(con.run_async(ask))


class _PsycopgNames:
    """What psycopg's errors mean, which SQLAlchemy hands on as they are."""

    def __init__(self) -> None:
        from dbguard.drivers.psycopg import failures  # noqa: PLC0415  psycopg is for those who use it

        self._failures = failures

    def family(self, error: BaseException) -> Family:
        """See `Driver`."""
        return self._failures.name_dial(error, "").family

    def in_standby(self, raw: Any) -> bool | None:
        """See `Driver`."""
        said = None if raw.closed else raw.pgconn.parameter_status(b"in_hot_standby")
        return None if said is None else bool(said == b"on")

    def failure(self, error: BaseException, raw: Any) -> Failure:
        """See `Driver`. psycopg says of a connection that was closed before that it is."""
        unsent = bool(raw.closed) and str(error) == "the connection is closed"
        return self._failures.name_failure(error, "", unsent=unsent, closed=raw.closed, standby=self.in_standby(raw))


class Psycopg(_PsycopgNames):
    """SQLAlchemy's dialect for psycopg on threads."""

    poolclass: type[Pool] = QueuePool

    def make(self, **arguments: Any) -> Engine:
        """See `Driver`."""
        return sqlalchemy.create_engine("postgresql+psycopg://", **arguments)

    def connect(self, dialect: Dialect, connector: Any, args: Any, given: Any) -> Any:
        """See `Driver`."""
        try:
            return connector(*args, **given)
        except Exception as error:
            told = _for_sqlalchemy(dialect, error, self.family(error))
            if told is error:
                raise
            raise told from error

    def is_writable(self, con: Any) -> bool:
        """See `Driver`. psycopg has no limit for a statement: where nothing answers, the guard ends the connection."""
        try:
            found = con.execute(NO_STANDBY).rowcount == 1
            con.rollback()
        except Exception as error:
            if self.family(error) is not Family.HARD:
                raise
            return False
        return bool(found)


class AsyncPsycopg(_PsycopgNames, _Asyncio):
    """SQLAlchemy's dialect for psycopg on asyncio."""

    url = "postgresql+psycopg_async://"

    def is_writable(self, con: Any) -> bool:
        """See `Psycopg.is_writable`."""

        async def ask(raw: Any) -> bool:
            try:
                found = (await raw.execute(NO_STANDBY)).rowcount == 1
                await raw.rollback()
            except Exception as error:
                if self.family(error) is not Family.HARD:
                    raise
                return False
            return bool(found)

        return bool(con.run_async(ask))


def _for_sqlalchemy(dialect: Dialect, error: Exception, family: Family) -> Exception:
    """Return what SQLAlchemy is given of *error*, with which no connection was made.

    That nothing else need be tried is noted on it: the connector has tried as long as it may.
    """
    if isinstance(error, ConfigError) or (family is Family.NEUTRAL and not isinstance(error, DbGuardError)):
        return error
    module = dialect.loaded_dbapi
    own = error if isinstance(error, module.Error) else module.OperationalError(str(error) or type(error).__name__)
    vars(own)[FINAL] = True
    return own
