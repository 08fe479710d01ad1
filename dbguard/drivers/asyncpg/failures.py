"""asyncpg's exceptions, named: what failed, how far it had come, and what that says about the node.

The phase comes from what was recorded around the call, never from the class: a cut request and a cut acknowledgement
both raise `ConnectionDoesNotExistError` (08003).

dbguard's own errors leave this module *dressed*: they are also instances of asyncpg's connection error, so that
``except asyncpg.PostgresConnectionError`` goes on to match, and of `TimeoutError` where time ended them.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.sqlstates import RECOVERY_REFUSALS
from dbguard.core.sqlstates import family as family_of
from dbguard.drivers import base, named
from dbguard.drivers.base import WrongNode
from dbguard.drivers.named import NO_SNAPSHOT, REFUSALS, SERIALIZABLE_STANDBY, PoolExhausted

if TYPE_CHECKING:
    from dbguard.errors import DbGuardError

__all__ = [
    "AsyncpgDriver",
    "NotReplicated",
    "PoolClosed",
    "describe",
    "dress",
    "is_conflict",
    "is_drivers",
    "is_refusal",
    "name_dial",
    "name_failure",
]


class NotReplicated(base.NotReplicated, asyncpg.InterfaceError):
    """The same for a commit of the application's, which catches asyncpg's errors."""


class PoolClosed(asyncpg.InterfaceError):
    """The application has closed the pool that was wrapped: it will not open again."""


def name_dial(error: BaseException, node: str, *, full: bool = False) -> Failure:
    """Name what went wrong before the call had a connection: phase ``connect``, so nothing was applied.

    full: the pool had no connection left, so that a time-out was spent waiting for other callers.
    """
    return named.name_dial(error, node, full=full, judge=_judge, twin=asyncpg.PostgresConnectionError)


def _judge(error: BaseException) -> tuple[Family, str | None]:
    """Say what an error of a dial means for the node, with its SQLSTATE."""
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, PoolClosed):
        family = Family.SHUT
    elif isinstance(error, (ssl.SSLCertVerificationError, asyncpg.ClientConfigurationError)):
        family = Family.CONFIG
    elif isinstance(error, OSError) and "rejected SSL" in str(error):
        # asyncpg's plain ConnectionError says this, and as well that the line broke while it asked for TLS: that is hard.
        family = Family.CONFIG
    elif isinstance(error, (OSError, socket.gaierror, TimeoutError)):
        family = Family.HARD
    elif _is_serializable_standby(error):
        family = Family.CONFIG
    elif isinstance(error, asyncpg.PostgresError):
        family = family_of(sqlstate, connection_died=True)
    elif isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        family = Family.ROLE
    elif isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):
        family = Family.HARD
    else:
        family = Family.NEUTRAL  # a hook of the application: `init`, `setup`, a password callable
    return family, sqlstate


def _is_serializable_standby(error: BaseException) -> bool:
    """Say whether a standby refuses whatever it is asked, because of the isolation that it is set to."""
    refused = isinstance(error, asyncpg.FeatureNotSupportedError)
    return refused and getattr(error, "server_source_function", None) == NO_SNAPSHOT


def describe(error: BaseException) -> str:
    """Say what went wrong with a connection, and the way out where there is one; never the server's own text.

    What asyncpg itself says about TLS files and about its pools is passed on: it names files, and no secrets.
    """
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, PoolExhausted | WrongNode | base.NotReplicated):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, socket.gaierror):
        return "its name does not resolve"
    if isinstance(error, asyncpg.ClientConfigurationError | asyncpg.InterfaceError):
        return str(error)
    if _is_serializable_standby(error):
        return SERIALIZABLE_STANDBY
    if isinstance(error, asyncpg.PostgresError) and sqlstate:
        return f"{REFUSALS[sqlstate]} ({sqlstate})" if sqlstate in REFUSALS else f"{sqlstate} {type(error).__name__}"
    return type(error).__name__


def is_drivers(error: BaseException) -> bool:
    """Say whether *error* is asyncpg's, and so about the connection or what ran on it."""
    kinds = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, NotReplicated)
    return isinstance(error, kinds)


def is_conflict(error: BaseException) -> bool:
    """Say whether the transaction lost against another one, so that it is worth running again.

    Also against another's DDL: a statement whose result type changed since it was prepared is refused. asyncpg has
    forgotten what it had prepared then; outside a transaction it has tried once more by itself.
    """
    return isinstance(error, asyncpg.TransactionRollbackError | asyncpg.InvalidCachedStatementError)


def is_refusal(error: BaseException) -> bool:
    """Say whether the server answered with an error, which aborts an open transaction."""
    if isinstance(error, asyncpg.DataError) and error.severity is None:
        return False  # asyncpg's own, before anything was sent: an argument that does not fit
    return isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError)


UNREADABLE = "scanner_yyerror"
"""The server's function that says of a whole text that it cannot be read; the message itself is localized."""

NEVER_SENT = (
    "the server expects ",
    "the number of query arguments ",
    "query argument $",
    "cannot perform operation: another operation is in progress",
)
"""How asyncpg's errors begin with which it refuses to send something; an executemany that has begun is rolled back."""


def name_failure(
    error: BaseException,
    node: str,
    *,
    unsent: bool,
    closed: bool,
    standby: bool | None,
    ours: bool = False,
) -> Failure:
    """Name what went wrong on a leased connection.

    unsent: the connection was closed before the call began.
    closed: it is closed now, before anybody called `terminate`.
    standby: what the session last said of ``in_hot_standby``; None where it says nothing (before version 14).
    ours: the lease had been ended by a drain, a fence or a `terminate` of our own.
    """
    sqlstate = getattr(error, "sqlstate", None) if isinstance(error, asyncpg.PostgresError) else None
    timed_out = isinstance(error, TimeoutError)
    unproven = isinstance(error, NotReplicated)
    # An error that points into the text, and not from within a function, was found before its statement ran.
    refused = isinstance(error, asyncpg.SyntaxOrAccessError) and error.position is not None and not error.context
    # The server's last word arrived as the call began: the connection dies, though a COPY says so before it is closed.
    torn = isinstance(error, asyncpg.InternalClientError) and str(error).startswith("cannot switch to state")
    if unsent:
        phase, family = Phase.UNSENT, Family.HARD
    elif unproven:
        phase, family = Phase.SENT, Family.NEUTRAL
    elif (timed_out and not isinstance(error, OSError | asyncpg.PostgresError)) or type(error) is TimeoutError:
        phase, family = Phase.SENT, Family.SOFT
    elif isinstance(error, asyncpg.PostgresError) and not closed:
        phase, family = Phase.ERROR, family_of(sqlstate, connection_died=False)
        if isinstance(error, asyncpg.InvalidCachedStatementError):
            family = Family.CONTENTION  # with another's DDL; of its code, a replica's refusals are another matter
        elif sqlstate in RECOVERY_REFUSALS if standby else (standby is None and sqlstate == "25006"):
            family = Family.ROLE  # with the setting off, 25006 speaks of a read-only session, not of the node
    elif closed or torn:
        phase, family = Phase.SENT, Family.HARD
    elif isinstance(error, asyncpg.InterfaceError) and str(error).startswith(NEVER_SENT):
        phase, family = Phase.ERROR, Family.NEUTRAL
    else:
        # Raised by the client on a living connection: a decoder, an argument that does not fit, misuse.
        phase, family = Phase.SENT, Family.NEUTRAL
    return Failure(
        node=node,
        phase=phase,
        family=family,
        cause=error,
        sqlstate=sqlstate,
        broken=closed or unsent or timed_out or unproven or torn,
        timed_out=timed_out,
        ours=ours,
        unparsed=refused and getattr(error, "server_source_function", None) == UNREADABLE,
        refused=refused,
    )


def dress(error: DbGuardError) -> DbGuardError:
    """Return *error* as one that asyncpg's users catch already; itself where it is one, or is not for their handlers."""
    return named.dress(error, asyncpg.PostgresConnectionError)


class AsyncpgDriver:
    """asyncpg's names for failures, as the runtime asks for them."""

    name_dial = staticmethod(name_dial)
    describe = staticmethod(describe)
    dress = staticmethod(dress)

    @staticmethod
    def name_failure(error: BaseException, node: str, lease: Any, *, unsent: bool, closed: bool) -> Failure:
        """Name what went wrong on a leased connection."""
        standby = None if closed else AsyncpgDriver.in_standby(lease)
        return name_failure(error, node, unsent=unsent, closed=closed, standby=standby, ours=lease.ours)

    @staticmethod
    def in_standby(lease: Any) -> bool | None:
        """Whether the server says that it is a standby; None where it does not say (before version 14, or closed)."""
        if lease.con.is_closed():
            return None
        said = getattr(lease.con.get_settings(), "in_hot_standby", None)
        return None if said is None else said == "on"
