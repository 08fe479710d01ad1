"""What each SQLSTATE says about a node, as one table with a reason per row.

The rules, from which the table follows:

* A code speaks about the node only if the connection died with it. Any function can raise any code, and dblink or a
  foreign table relays another server's: 57P01, 08006, 53300 and 25006 on a connection that lives were all seen to be
  just that. So the column `alive` knows only three answers: answered, contention, neutral.
* A code that ended the connection while it was being set up says why the node cannot be used; one that ended a session
  says who ended it. A code of which nothing is known there means that nobody answers on this connection any more.
* That a node has become a replica is never read off a code: `RECOVERY_REFUSALS` names the codes by which a replica
  refuses, and only `in_hot_standby` on that connection, or a probe, makes a role signal (`Family.ROLE`) of one.

Codes are those of PostgreSQL's appendix A, versions 13 to 18. An addition is one row.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from dbguard.core.failure import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CLASSES", "CODES", "RECOVERY_REFUSALS", "Row", "family", "row"]


class Row(NamedTuple):
    """What one SQLSTATE, or one class of them, says.

    alive: the family if the connection lives on.
    dead: the family if the connection ended with it, or was refused by it.
    why: the reason, for people.
    """

    alive: Family
    dead: Family
    why: str


def _own(why: str) -> Row:
    """Return the row of what the statement brought upon itself; no session is known to end with it."""
    return Row(Family.ANSWERED, Family.HARD, why)


def _setup(why: str) -> Row:
    """Return the row of what the statement brought upon itself, and what refuses a connection by its settings."""
    return Row(Family.ANSWERED, Family.CONFIG, why)


CODES: Mapping[str, Row] = MappingProxyType(
    {
        "25P03": Row(Family.ANSWERED, Family.NEUTRAL, "idle_in_transaction_session_timeout: the client was too slow"),
        "25P04": Row(Family.ANSWERED, Family.NEUTRAL, "transaction_timeout: the transaction was too long"),
        "40001": Row(Family.CONTENTION, Family.CONTENTION, "met another transaction, or WAL replay on a replica"),
        "40P01": Row(Family.CONTENTION, Family.CONTENTION, "deadlock: one of the transactions had to give way"),
        "53100": _own("disk full: ends a session only when the server panics"),
        "53400": _setup("a configured limit was reached, which waiting does not lift"),
        "55000": _setup("wrong state for it; refuses connections to a database that allows none"),
        "57014": Row(
            Family.NEUTRAL, Family.NEUTRAL, "cancelled by a user or by statement_timeout: whoever did it wins"
        ),
        "57P04": _setup("the database was dropped"),
        "57P05": Row(Family.ANSWERED, Family.NEUTRAL, "idle_session_timeout: the connection was idle for too long"),
    }
)
"""Rows of single codes: where a code differs from its class."""

CLASSES: Mapping[str, Row] = MappingProxyType(
    {
        "00": _own("success"),
        "01": _own("warning"),
        "02": _own("no data"),
        "03": _own("SQL statement not yet complete"),
        "08": _own("connection exception: this connection's if it died, else one that dblink or a function had"),
        "09": _own("triggered action exception"),
        "0A": _setup("feature not supported; refuses an unknown protocol version or option"),
        "0B": _own("invalid transaction initiation"),
        "0F": _own("locator exception"),
        "0L": _own("invalid grantor"),
        "0P": _own("invalid role specification"),
        "0Z": _own("diagnostics exception"),
        "10": _own("XQuery error"),
        "20": _own("CASE not found"),
        "21": _own("cardinality violation"),
        "22": _setup("data exception; refuses a connection with an invalid setting"),
        "23": _own("integrity constraint violation"),
        "24": _own("invalid cursor state"),
        "25": _own("invalid transaction state; 25006 is a role signal only with proof of recovery"),
        "26": _own("invalid prepared statement name"),
        "27": _own("triggered data change violation"),
        "28": _setup("invalid authorization: password, role or pg_hba"),
        "2B": _own("dependent privilege descriptors still exist"),
        "2D": _own("invalid transaction termination"),
        "2F": _own("SQL routine exception"),
        "34": _own("invalid cursor name"),
        "38": _own("external routine exception"),
        "39": _own("external routine invocation exception"),
        "3B": _own("savepoint exception"),
        "3D": _setup("no such database"),
        "3F": _own("invalid schema name"),
        "40": _own("transaction rollback for a reason that a repeat does not remove"),
        "42": _setup("syntax, name or right; refuses a connection without CONNECT or with an unknown setting"),
        "44": _own("WITH CHECK OPTION violation"),
        "53": Row(Family.ANSWERED, Family.SOFT, "insufficient resources: the node is alive and has too much to do"),
        "54": _own("program limit exceeded"),
        "55": _own("object in the wrong state, or locked"),
        "57": _own("operator intervention: the server ends, crashed or starts if the connection died with it"),
        "58": _own("system error: files, input and output"),
        "72": _own("snapshot too old"),
        "F0": _setup("configuration file error"),
        "HV": _own("foreign data wrapper: about another server"),
        "P0": _own("raised by PL/pgSQL"),
        "XX": _own("internal error"),
    }
)
"""Rows of whole classes: the first two characters of a code."""

_UNLISTED = _own("not in the table: answered if the connection lives, hard if it died")
_SILENT = Row(Family.NEUTRAL, Family.HARD, "the server said nothing: the client's own exception, or a lost connection")

RECOVERY_REFUSALS: frozenset[str] = frozenset(
    {
        "25006",  # any write in a session of a replica
        "XX000",  # large objects, messages, transaction ids: "cannot assign TransactionIds during recovery"
        "55000",  # WAL positions and switches, index maintenance: "recovery is in progress"
        "0A000",  # BEGIN READ WRITE and SERIALIZABLE: "cannot set transaction read-write mode during recovery"
    }
)
"""Codes by which a replica refuses what only a primary can do.

Necessary, never sufficient: all four have other meanings, and their texts are localized. The connection itself must say
that it is in recovery.
"""


def row(sqlstate: str | None) -> Row:
    """Return the row for *sqlstate*: that of the code, else that of its class, else a default. None: no code came."""
    if sqlstate is None:
        return _SILENT
    return CODES.get(sqlstate) or CLASSES.get(sqlstate[:2]) or _UNLISTED


def family(sqlstate: str | None, *, connection_died: bool) -> Family:
    """Return what *sqlstate* says about node and call. Answers for every string.

    sqlstate: five characters from the server; None if the server said nothing.
    connection_died: the connection ended with this error, or was never established because of it.
    """
    found = row(sqlstate)
    return found.dead if connection_died else found.alive
