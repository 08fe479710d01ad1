"""What clients and servers of the simulation say to each other, and what servers write down."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Answer", "Commit", "Missing", "Request"]


class Commit(NamedTuple):
    """One record of the log: the position behind it, and what it commits (nothing, where a transaction only wrote)."""

    position: int
    values: tuple[str, ...]


class Request(NamedTuple):
    """What a client asks of its backend.

    kind: ``ask`` (who are you?), ``read``, ``write`` (in autocommit), ``begin``, ``change`` (in a transaction),
        ``commit``, ``rollback``, ``claim`` (a token), ``mark`` (a reign), ``blockers`` (of another backend) or ``end`` (one).
    value: what is written; of ``mark`` the timeline and the mark; of ``read`` the values that the reader expects; of ``blockers`` a pid; of ``end`` a pid, and
        whether it is doomed.
    key: the row that is locked; None: a new one. token: under which it commits; None: under none.
    """

    kind: str
    value: Any = None
    key: str | None = None
    token: str | None = None


class Missing(NamedTuple):
    """What a read should have seen.

    values: those that the primary by right has, and the one that the guard had accepted. twin: the timeline's number, where this server's history is another one
        than that primary's under the same number; None if it is not.
    """

    values: tuple[str, ...]
    twin: int | None


class Answer(NamedTuple):
    """What the server says.

    value: of a read what is `Missing`, or None; of a commit the timeline that it lies on; of a claim what it says; of one
        that met a lock (55P03) who holds it.
    code: the SQLSTATE of its error; None: it succeeded. dead: the connection ends with it.
    unproven: a commit's wait for its standby was cut short, and a notice says so.
    """

    value: Any = None
    code: str | None = None
    dead: bool = False
    unproven: bool = False
