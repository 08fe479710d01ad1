"""What of psycopg the facades are made of: its classes, its errors for misuse, and what it will send of a query."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import IsolationLevel, Rollback, Xid, sql
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format, TransactionStatus
from psycopg.transaction import OutOfOrderTransactionNesting

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import Dumper, Loader

__all__ = [
    "BINARY",
    "RAW_CURSORS",
    "DriverAsyncConnection",
    "DriverAsyncCopy",
    "DriverAsyncCursor",
    "DriverAsyncPipeline",
    "DriverAsyncServerCursor",
    "DriverAsyncTransaction",
    "DriverConnection",
    "DriverCopy",
    "DriverCursor",
    "DriverPipeline",
    "DriverServerCursor",
    "DriverTransaction",
    "InterfaceError",
    "IsolationLevel",
    "NotSupportedError",
    "OutOfOrderTransactionNesting",
    "ProgrammingError",
    "Rollback",
    "Unprepared",
    "WatchedAdapters",
    "Xid",
    "is_idle",
    "quoted",
    "released",
    "status_name",
    "taken_by_psycopg",
    "text_of",
    "two_phase",
]

DriverConnection = psycopg.Connection
DriverAsyncConnection = psycopg.AsyncConnection
DriverCursor = psycopg.Cursor
DriverAsyncCursor = psycopg.AsyncCursor
DriverServerCursor = psycopg.ServerCursor
DriverAsyncServerCursor = psycopg.AsyncServerCursor
DriverCopy = psycopg.Copy
DriverAsyncCopy = psycopg.AsyncCopy
DriverTransaction = psycopg.Transaction
DriverAsyncTransaction = psycopg.AsyncTransaction
DriverPipeline = psycopg.Pipeline
DriverAsyncPipeline = psycopg.AsyncPipeline
InterfaceError = psycopg.InterfaceError
NotSupportedError = psycopg.NotSupportedError
ProgrammingError = psycopg.ProgrammingError
BINARY = Format.BINARY
Unprepared = psycopg.errors.ObjectNotInPrerequisiteState

RAW_CURSORS = (
    psycopg.RawCursor,
    psycopg.RawServerCursor,
    psycopg.AsyncRawCursor,
    psycopg.AsyncRawServerCursor,
)
"""Cursors whose placeholders are the server's own, so that a percent sign is nothing but an operator's."""

_DOUBLED = re.compile("%%")
_LIKE_A_PLACE = re.compile(r"%(?=[sSbBtT(])")


def released() -> psycopg.InterfaceError:
    """Return the error for a connection that was given back and is used again."""
    return InterfaceError("the connection was given back: its block has ended")


def text_of(query: Any, context: Any = None, *, places: bool) -> str:
    """Return the text by which *query* is classified: what psycopg sends, its placeholders as they are written.

    query: a string, bytes, or something of `psycopg.sql`. context: the connection for which the latter is composed.
    places: psycopg reads placeholders in it, since it was given parameters. Without, it sends the text as it is: then
        ``%%`` is an operator, which can only be a user's, and ``%s`` is the operator ``%`` and a name. As the classifier
        knows placeholders alone, the first is made one that it does not know, and the second is taken apart.

    Raises `TypeError` for anything else.
    """
    if isinstance(query, str):
        text = query
    elif isinstance(query, sql.Composable):
        text = query.as_string(context)
    elif isinstance(query, bytes | bytearray | memoryview):
        encoding = "utf-8" if context is None else context.info.encoding
        text = bytes(query).decode(encoding, "surrogateescape")
    else:
        raise TypeError(f"a query is a string, bytes or a psycopg.sql object, not {type(query).__qualname__}")
    if places or "%" not in text:
        return text
    return _LIKE_A_PLACE.sub("% ", _DOUBLED.sub("%%%%", text))


def two_phase(action: str, xid: Any) -> str:
    """Return a command of a two-phase commit: ``PREPARE TRANSACTION``, ``COMMIT PREPARED`` or ``ROLLBACK PREPARED``."""
    return f"{action} {sql.quote(str(xid))}"


def quoted(name: str, raw: Any) -> str:
    """Return *name* as an identifier, for psycopg's connection *raw*."""
    return sql.Identifier(name).as_string(raw)


def is_idle(raw: Any) -> bool:
    """Whether no transaction is open on psycopg's connection *raw*, and nothing runs there."""
    return bool(raw.info.transaction_status == TransactionStatus.IDLE)


def status_name(raw: Any) -> str:
    """Return psycopg's name for the state that the transaction on *raw* is in."""
    return str(TransactionStatus(raw.info.transaction_status).name)


def taken_by_psycopg(depth: int = 2) -> bool:
    """Whether the function *depth* calls up is psycopg's own: it looks at a connection to quote, dump or describe.

    Whatever of psycopg waits for the server asks the connection for its lock, or to `wait`.
    """
    module: str = sys._getframe(depth).f_globals.get("__name__", "")  # noqa: SLF001  there is no other way to ask who calls
    return module.partition(".")[0] == "psycopg"


class WatchedAdapters(AdaptersMap):
    """The adapters of a connection that is lent: they read as its own, and say when something is registered.

    changed: called before each change, which the connection keeps for whoever uses it next.
    """

    def __init__(self, own: AdaptersMap, changed: Callable[[], None]) -> None:
        super().__init__(own)
        self.types = own.types
        self._own = own
        self._changed = changed

    def register_dumper(self, cls: type | str | None, dumper: type[Dumper]) -> None:
        """As `psycopg.adapt.AdaptersMap.register_dumper`. The connection is closed afterwards."""
        self._changed()
        self._own.register_dumper(cls, dumper)
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Loader]) -> None:
        """As `psycopg.adapt.AdaptersMap.register_loader`. The connection is closed afterwards."""
        self._changed()
        self._own.register_loader(oid, loader)
        super().register_loader(oid, loader)
