"""What the names for failures have in common, whichever driver raised them: our own reasons, and dbguard's errors dressed.

dbguard's own errors leave a driver *dressed*: they are also instances of the error with which that driver says that a
connection was lost, so that what an application catches already goes on to match, and of `TimeoutError` where time
ended them. A traceback shows the name that handlers have, ``dbguard.NoPrimary``, whatever else the error is.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType, new_class
from typing import TYPE_CHECKING, Any

from dbguard import errors
from dbguard.core.failure import Failure, Family, Phase
from dbguard.drivers.base import WrongNode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NO_SNAPSHOT", "REFUSALS", "SERIALIZABLE_STANDBY", "NotDialled", "PoolExhausted", "dress", "name_dial"]


class PoolExhausted(TimeoutError):
    """No connection of the node's pool came free in time. Says nothing about the node."""


class NotDialled(Exception):
    """No connection was dialled, since one has failed a moment ago. cause: that one's error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "28P01": "the password was refused: look at connection.user and connection.password",
        "28000": "the login was refused: look at connection.user, at pg_hba.conf, and whether TLS is asked for",
        "3D000": "there is no such database: look at connection.database",
        "55000": "the database takes no connections",
        "53300": "too many connections",
        "57P03": "starting up or shutting down",
    }
)
"""What a server means that refuses a connection, by SQLSTATE, and the way out where there is one."""

NO_SNAPSHOT = "GetSerializableTransactionSnapshot"
"""The server's function that refuses every statement of a serializable transaction on a standby."""

SERIALIZABLE_STANDBY = (
    "default_transaction_isolation is serializable, which a standby cannot serve (0A000): "
    "set it to 'repeatable read' on the replicas"
)
"""What is said of a standby that refuses whatever it is asked, because of the isolation that it is set to."""


def name_dial(
    error: BaseException,
    node: str,
    *,
    full: bool,
    judge: Callable[[BaseException], tuple[Family, str | None]],
    twin: type[Exception],
    late: type[Exception] = TimeoutError,
) -> Failure:
    """Name what went wrong before the call had a connection: phase ``connect``, so nothing was applied.

    full: the pool had no connection left, so that a time-out was spent waiting for other callers.
    judge: says what a driver's error means for the node, with its SQLSTATE where that is known.
    twin: the driver's error for lost connections, as `dress` takes it. late: its error for a dial that took too long.
    """
    if isinstance(error, NotDialled):
        # Of our own making: nothing that the node's breaker, or the count of attempts, should hear of once more.
        return replace(name_dial(error.cause, node, full=False, judge=judge, twin=twin, late=late), ours=True)
    if full and type(error) is TimeoutError:
        error = PoolExhausted(f"all connections of {node} are in use: {error or 'none came free in time'}")
    cause: BaseException = error
    sqlstate: str | None = None
    if isinstance(error, PoolExhausted):
        family = Family.NEUTRAL
    elif isinstance(error, WrongNode):
        family = Family.ROLE
        # Where no attempt is left the application sees it: as what dbguard decided, and as the driver's users catch it.
        cause = dress(errors.NoPrimary(f"no primary to go to: {error}", retry_after=1.0), twin)
        cause.__cause__ = error
    else:
        family, sqlstate = judge(error)
    return Failure(
        node=node,
        phase=Phase.CONNECT,
        family=family,
        cause=cause,
        sqlstate=sqlstate,
        broken=family is not Family.NEUTRAL or isinstance(error, PoolExhausted),
        timed_out=isinstance(error, (TimeoutError, late)),
    )


# ---------------------------------------------------------------------- dbguard's errors, as a driver's

_DRESSED: Mapping[type[errors.DbGuardError], bool] = MappingProxyType(
    {
        errors.NoPrimary: True,
        errors.SplitBrain: False,
        errors.NoReplica: True,
        errors.Overloaded: False,
        errors.GuardClosed: False,
        errors.OutcomeUnknown: True,
        errors.DeadlineExceeded: False,
    }
)
"""The errors that are dressed, and whether time may have ended them although their class does not say so."""


def dress(error: errors.DbGuardError, twin: type[Exception]) -> errors.DbGuardError:
    """Return *error* as one that is also a *twin*; itself where it is one, or is not for the driver's handlers."""
    kind = type(error)
    if kind not in _DRESSED:
        return error
    late = _DRESSED[kind] and bool(error.__dict__.get("timed_out"))
    dressed = _made(kind, twin, late, error.args, error.__dict__)
    dressed.__cause__ = error.__cause__
    return dressed


_MADE: dict[tuple[type[errors.DbGuardError], type[Exception], bool], type[errors.DbGuardError]] = {}


def _dressed(kind: type[errors.DbGuardError], twin: type[Exception], late: bool) -> type[errors.DbGuardError]:  # noqa: FBT001  a key
    """Return the class of *kind* that is also a *twin*, and a `TimeoutError` if *late*."""
    key = (kind, twin, late)
    if key in _MADE:
        return _MADE[key]
    bases: tuple[type[Exception], ...] = (kind, twin, TimeoutError) if late else (kind, twin)
    body = {
        "__module__": "dbguard",
        "__doc__": f"`dbguard.{kind.__name__}`, also {twin.__name__}.",
        # It is not found under the name that it shows, so pickle is told how to make it.
        "__reduce__": lambda self: (_made, (*key, self.args, self.__dict__.copy())),
    }
    # Two threads may both make it: a handler knows it by its bases, and which of the two it is makes no difference.
    return _MADE.setdefault(key, new_class(kind.__name__, bases, exec_body=lambda namespace: namespace.update(body)))


def _made(
    kind: type[errors.DbGuardError],
    twin: type[Exception],
    late: bool,  # noqa: FBT001  pickle gives by position
    args: tuple[Any, ...],
    state: dict[str, Any],
) -> errors.DbGuardError:
    """Make a dressed error; also how one is unpickled."""
    made = _dressed(kind, twin, late)
    dressed = made.__new__(made, *args)
    twin.__init__(dressed, *args)  # what the driver's handlers look at; kind's own __init__ has set *state*
    dressed.__dict__.update(state)
    return dressed
