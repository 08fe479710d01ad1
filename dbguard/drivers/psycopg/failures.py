"""psycopg's exceptions, named: what failed, how far it had come, and what that says about the node.

The phase comes from what was recorded around the call, never from the class: a cut request and a cut acknowledgement
both raise `OperationalError` without an SQLSTATE. What ended a dial is read by `refusals`.

dbguard's own errors leave this module *dressed*: they are also instances of `psycopg.OperationalError`, so that
handlers for it go on to match, and of `TimeoutError` where time ended them.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import psycopg

from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.sqlstates import RECOVERY_REFUSALS
from dbguard.core.sqlstates import family as family_of
from dbguard.drivers import base, named
from dbguard.drivers.base import WrongNode
from dbguard.drivers.named import NO_SNAPSHOT, SERIALIZABLE_STANDBY, PoolExhausted
from dbguard.drivers.psycopg.refusals import heard

if TYPE_CHECKING:
    from dbguard.errors import DbGuardError

__all__ = [
    "NotReplicated",
    "PoolClosed",
    "PsycopgDriver",
    "describe",
    "dress",
    "is_conflict",
    "is_drivers",
    "is_refusal",
    "is_stale_plan",
    "name_dial",
    "name_failure",
]


class NotReplicated(base.NotReplicated, psycopg.InterfaceError):
    """The same for a commit of the application's, which catches psycopg's errors."""


class PoolClosed(psycopg.OperationalError):
    """The application has closed the pool that was wrapped: it will not open again."""


# ---------------------------------------------------------------------- before there is a connection


def name_dial(error: BaseException, node: str, *, full: bool = False) -> Failure:
    """Name what went wrong before the call had a connection: phase ``connect``, so nothing was applied.

    full: the pool had no connection left, so that a time-out was spent waiting for other callers.
    """
    return named.name_dial(
        error, node, full=full, judge=_judge, twin=psycopg.OperationalError, late=psycopg.errors.ConnectionTimeout
    )


def _judge(error: BaseException) -> tuple[Family, str | None]:
    """Say what an error of a dial means for the node, with its SQLSTATE as far as that is known."""
    if isinstance(error, PoolClosed):
        return Family.SHUT, None
    if isinstance(error, psycopg.Error):
        said = heard(error)
        return said.family, said.sqlstate
    if isinstance(error, OSError):  # a name that was looked up for psycopg, and time-outs of ours
        return Family.HARD, None
    return Family.NEUTRAL, None  # a hook of the application: `configure`, a password callable


def describe(error: BaseException) -> str:
    """Say what went wrong with a connection, and the way out where there is one; never the server's own text."""
    if isinstance(error, PoolExhausted | WrongNode | PoolClosed):
        return str(error)
    if isinstance(error, psycopg.Error):
        return SERIALIZABLE_STANDBY if error.diag.source_function == NO_SNAPSHOT else heard(error).words
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return "its name does not resolve" if isinstance(error, socket.gaierror) else type(error).__name__
    return type(error).__name__


# ---------------------------------------------------------------------- on a connection

STALE_PLAN = "RevalidateCachedQuery"
"""The server's function that refuses to run a statement prepared before its result type changed (0A000)."""

UNREADABLE = "scanner_yyerror"
"""The server's function that says of a whole text that it cannot be read; the message itself is localized."""

IDLE = frozenset({"25P03", "57P05"})
"""Codes of sessions that were ended for being idle. The server looks for them before it takes up the next command, and
stops looking before it runs that, so what met them never ran (`PostgresMain`, steps 4 and 5)."""

NEVER_SENT = (
    "the query has ",
    "query parameter missing: ",
    "incomplete placeholder: ",
    "only '%s', '%b', '%t' are allowed as placeholders",
    "positional and named placeholders cannot be mixed",
    "cannot adapt type ",
    "cannot dump ",
    "PostgreSQL text fields cannot contain NUL",
    "the cursor is closed",
)
"""How psycopg's errors begin with which it refuses to send something: parameters that do not fit.

Outside a transaction an executemany applies the rows before such a one, and only those; who runs it sees to that.
"""


def is_drivers(error: BaseException) -> bool:
    """Say whether *error* is psycopg's, and so about the connection or what ran on it."""
    return isinstance(error, psycopg.Error)


def is_stale_plan(error: BaseException) -> bool:
    """Say whether a prepared statement was refused because its result type has changed.

    psycopg goes on to run what it has prepared, so it is refused each time, until ``DEALLOCATE ALL`` on that connection.
    """
    return isinstance(error, psycopg.errors.FeatureNotSupported) and error.diag.source_function == STALE_PLAN


def is_conflict(error: BaseException) -> bool:
    """Say whether the transaction lost against another one, so that it is worth running again."""
    return isinstance(error, psycopg.Error) and ((error.sqlstate or "").startswith("40") or is_stale_plan(error))


def is_refusal(error: BaseException) -> bool:
    """Say whether the server answered with an error, which aborts an open transaction."""
    return isinstance(error, psycopg.Error) and error.sqlstate is not None and not _is_last_word(error)


def _is_last_word(error: psycopg.Error) -> bool:
    """Say whether the server ended the session with this error, which no function can bring about."""
    return error.diag.severity_nonlocalized in ("FATAL", "PANIC")


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
    sqlstate = error.sqlstate if isinstance(error, psycopg.Error) else None
    timed_out = isinstance(error, TimeoutError)
    unproven = isinstance(error, NotReplicated)
    died = closed or (isinstance(error, psycopg.Error) and _is_last_word(error))
    refused = unparsed = False
    if unsent:
        phase, family = Phase.UNSENT, Family.HARD
    elif unproven:
        phase, family = Phase.SENT, Family.NEUTRAL
    elif timed_out:
        phase, family = Phase.SENT, Family.SOFT
    elif died:
        # psycopg does not notice that an idle connection ended; the next call meets the server's last word.
        phase = Phase.UNSENT if sqlstate in IDLE else Phase.SENT
        family = family_of(sqlstate, connection_died=True)
    elif isinstance(error, psycopg.Error) and sqlstate is not None:
        phase, family = Phase.ERROR, _answered(error, sqlstate, standby=standby)
        # An error that points into the text, and not from within a function, was found before its statement ran.
        refused = sqlstate.startswith("42") and error.diag.statement_position is not None and not error.diag.context
        unparsed = refused and error.diag.source_function == UNREADABLE
    elif isinstance(error, psycopg.Error) and str(error).startswith(NEVER_SENT):
        phase, family = Phase.ERROR, Family.NEUTRAL
    else:
        # Raised by the client on a living connection: a loader, a row factory, misuse.
        phase, family = Phase.SENT, Family.NEUTRAL
    return Failure(
        node=node,
        phase=phase,
        family=family,
        cause=error,
        sqlstate=sqlstate,
        broken=died or unsent or timed_out or unproven,
        timed_out=timed_out,
        ours=ours,
        unparsed=unparsed,
        refused=refused,
    )


def _answered(error: psycopg.Error, sqlstate: str, *, standby: bool | None) -> Family:
    """Say what an error means that the server raised in a session that lives on."""
    if is_stale_plan(error):
        return Family.CONTENTION  # with another's DDL: on another connection, or after DEALLOCATE ALL, it will run
    if sqlstate in RECOVERY_REFUSALS if standby else (standby is None and sqlstate == "25006"):
        return Family.ROLE  # with the setting off, 25006 speaks of a read-only session, not of the node
    return family_of(sqlstate, connection_died=False)


# ---------------------------------------------------------------------- for the runtime


def dress(error: DbGuardError) -> DbGuardError:
    """Return *error* as one that psycopg's users catch already; itself where it is one, or is not for their handlers."""
    return named.dress(error, psycopg.OperationalError)


class PsycopgDriver:
    """psycopg's names for failures, as the runtime asks for them."""

    name_dial = staticmethod(name_dial)
    describe = staticmethod(describe)
    dress = staticmethod(dress)

    @staticmethod
    def name_failure(error: BaseException, node: str, lease: Any, *, unsent: bool, closed: bool) -> Failure:
        """Name what went wrong on a leased connection."""
        standby = None if closed else PsycopgDriver.in_standby(lease)
        return name_failure(error, node, unsent=unsent, closed=closed, standby=standby, ours=lease.ours)

    @staticmethod
    def in_standby(lease: Any) -> bool | None:
        """Whether the server says that it is a standby; None where it does not say (before version 14, or closed)."""
        if lease.con.is_closed():
            return None
        said: bool | None = lease.con.in_standby()
        return said
