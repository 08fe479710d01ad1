"""What the rest of dbguard needs to know about one SQL text, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import cached_property
from typing import NamedTuple, Self

from dbguard.core.lexer import line_of

__all__ = ["NOTHING", "Effects", "Kind", "Statement", "Token", "Touch", "about"]


class Kind(Enum):
    """What a statement is to the router."""

    READ = "read"
    """Leaves nothing behind, on any node."""
    WRITE = "write"
    """Changes data or the server, locks, or is refused by a replica for another reason."""
    SESSION = "session"
    """Sets or needs something that lives on its session: SET, LISTEN, PREPARE, cursors, advisory locks."""
    TRANSACTION = "transaction"
    """Begins, ends or shapes a transaction."""
    UNKNOWN = "unknown"
    """Not understood, or it calls a function that is not known. Treated as a write."""


class Touch(IntEnum):
    """What a statement may have left on the session, by what takes it away again."""

    NOTHING = 0
    """Nothing."""
    SETTINGS = 1
    """Settings, cursors, LISTEN, advisory locks: asyncpg's own reset suffices."""
    IDENTITY = 2
    """Role, session authorization, temporary objects, sequence state: the deep reset."""
    LOST = 3
    """PREPARE, LOAD, DISCARD ALL, DEALLOCATE, setseed, dblink, or what is not understood: close the connection."""


NOTHING = Touch.NOTHING
"""The member itself, for what runs on every call: to look it up through its class costs three times as much."""


class Token(Enum):
    """In which form a write can carry a token that proves whether it was applied."""

    CTE = "cte"
    """As the first item of the statement's own WITH: one INSERT, UPDATE, DELETE or MERGE."""
    BLOCK = "block"
    """In a transaction block around it."""
    NONE = "none"
    """Not at all: it cannot run in a block, ends one itself, or needs no proof."""


class Effects(NamedTuple):
    """What a text leaves on the session and hands back.

    touch: what it may have left on the session.
    user_functions: it can run a function that is not PostgreSQL's own.
    returns_rows: it can return rows.
    """

    touch: Touch = Touch.NOTHING
    user_functions: bool = False
    returns_rows: bool = False


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One SQL text (it may hold several statements), classified. Shared by all who ask for the same text.

    Everything here is about the text alone: what relations, views, defaults and triggers do beyond it is for the
    catalogue to add. `touch`, `user_functions`, `returns_rows` and `relations` of an INSERT, UPDATE, DELETE or MERGE are
    worked out when they are first asked for, since its kind is known by its first word.

    kind: see `Kind`.
    reason: the word or function that decided. at: the index of its token, -1 if it is the first word.
    verb: the first word in upper case; empty if there is none.
    one_transaction: it is one transaction by itself, so a server's refusal means that nothing of it was applied.
    token: the form in which it can carry a token, if it is sent as a write.
    locks_only: it locks rows or tables and changes nothing.
    locks_rows: it has a locking clause (FOR UPDATE and the like).
    sets_only: it only sets (or resets) the session.
    several: it holds more than one statement.
    pins_session: what it sets or needs lives on its session, so it makes sense only on a connection that is kept.
    ddl: it may change what the catalogue says.
    hint: "primary" or "replica", from a leading comment; None without one.
    """

    kind: Kind
    reason: str
    at: int = -1
    verb: str = ""
    one_transaction: bool = False
    token: Token = Token.NONE
    locks_only: bool = False
    locks_rows: bool = False
    sets_only: bool = False
    several: bool = False
    pins_session: bool = False
    ddl: bool = False
    hint: str | None = None
    text: str | None = field(default=None, repr=False, compare=False)
    known: Effects | None = field(default=None, repr=False)

    @classmethod
    def of(cls, **values: object) -> Self:
        """Make one of what differs from the defaults, 8 us faster than the constructor, which sets all frozen fields."""
        new = object.__new__(cls)
        object.__setattr__(new, "__dict__", values)
        return new

    def but(self, **changes: object) -> Self:
        """Return a copy with other values; for statements of which nothing was worked out yet."""
        new = object.__new__(type(self))
        object.__setattr__(new, "__dict__", {**vars(self), **changes})
        return new

    @property
    def why(self) -> str:
        """One short phrase that names the word or function that decided, and its line."""
        if self.at < 0 or self.text is None:
            return self.reason
        return f"{self.reason} at line {line_of(self.text, self.at)}"

    @property
    def effects(self) -> Effects:
        """What the text leaves on the session and hands back."""
        return self.known if self.known is not None else self._worked_out

    @cached_property
    def _worked_out(self) -> Effects:
        from dbguard.core.details import effects_of  # noqa: PLC0415  # asked rarely; the other way round on import

        return effects_of(self.text or "")

    @cached_property
    def relations(self) -> frozenset[str] | None:
        """The relations it names; None if they are not known.

        As written, unquoted names lower-cased, with their schema if there is one, joined by a dot; a name that is not a
        plain lower-case word keeps its quotes. Names of its own WITH items are left out.
        """
        from dbguard.core.details import relations_of  # noqa: PLC0415  # as above

        return relations_of(self.text) if self.text is not None else None

    @property
    def touch(self) -> Touch:
        """What it may have left on the session."""
        return self.effects.touch

    @property
    def user_functions(self) -> bool:
        """Whether the text can run a function that is not PostgreSQL's own."""
        return self.effects.user_functions

    @property
    def returns_rows(self) -> bool:
        """Whether it can return rows."""
        return self.effects.returns_rows

    @property
    def is_read(self) -> bool:
        """Whether it may go to a replica: a read, or not understood and called one by its author's hint."""
        return self.kind is Kind.READ or (self.kind is Kind.UNKNOWN and self.hint == "replica")

    @property
    def repeatable(self) -> bool:
        """Whether it leaves nothing behind in autocommit, so that it may be sent again however the first one ended.

        Session advisory locks, LISTEN, prepared statements and cursors stay with their backend, so they do not count.
        """
        return self.kind is Kind.READ or self.locks_only or self.sets_only


def about(text: str, pattern: Statement) -> Statement:
    """Return a copy of *pattern* for this text; what `Statement.but` does, at half the cost."""
    new = object.__new__(Statement)
    object.__setattr__(new, "__dict__", {**vars(pattern), "text": text})
    return new
