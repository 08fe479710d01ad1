"""What an engine has to know of the driver below: its URL, its pool, and what its errors mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import AsyncAdaptedQueuePool

from dbguard.core.failure import Failure, Family
from dbguard.drivers.asyncpg.failures import is_drivers, name_dial, name_failure

if TYPE_CHECKING:
    from sqlalchemy.pool import Pool

__all__ = ["DOUBT", "Asyncpg"]

DOUBT = 1.0
"""Seconds after a write was refused as read-only in which connections are asked before they are used: longer than the
guard's probes take to find out whether the primary was demoted behind them, as can be where a pooler keeps them open.
And seconds that the answer may take."""

NO_STANDBY = "SELECT WHERE NOT pg_is_in_recovery()"


class Asyncpg:
    """SQLAlchemy's dialect for asyncpg, which wraps asyncpg's errors in errors of its own."""

    url = "postgresql+asyncpg://"
    poolclass: type[Pool] = AsyncAdaptedQueuePool

    @staticmethod
    def family(error: BaseException) -> Family:
        """Say what kind of failure it was that kept a connection from being made."""
        return name_dial(error, "").family

    @staticmethod
    def in_standby(raw: Any) -> bool | None:
        """Whether the session last said that its server is a standby; None where it does not say, or is closed."""
        said = None if raw.is_closed() else getattr(raw.get_settings(), "in_hot_standby", None)
        return None if said is None else bool(said == "on")

    @classmethod
    def failure(cls, error: BaseException, raw: Any) -> Failure:
        """Name what went wrong on *raw*, asyncpg's connection; *error* as SQLAlchemy was given it.

        An interface error on a connection that is closed says that it was closed before anything was sent.
        """
        own = error.__cause__ if error.__cause__ is not None and is_drivers(error.__cause__) else error
        closed = raw.is_closed()
        unsent = closed and type(error).__name__ == "InterfaceError"
        return name_failure(own, "", unsent=unsent, closed=closed, standby=cls.in_standby(raw))

    @classmethod
    def is_writable(cls, con: Any) -> bool:
        """Ask the server behind a connection of SQLAlchemy's whether it is no standby; not, if it does not answer."""

        async def ask(raw: Any) -> bool:
            try:
                return bool(await raw.execute(NO_STANDBY, timeout=DOUBT) == "SELECT 1")
            except Exception as error:
                if cls.family(error) is not Family.HARD:
                    raise
                return False

        return bool(con.run_async(ask))
