"""Sending a write's token, and claiming it: `dbguard.core.outcome` in asyncpg's words.

An autocommit statement carries its token as the first item of its own WITH. The token is one more parameter, so that the
text stays the same and asyncpg's prepared statement serves every call; where the statement has no parameters and is
sent as a simple query, as a literal. What the application sees is as without: rows, tag and notices are the main
statement's, and an error's position is counted in its own text.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.lexer import BLANK, HEAD, tokens
from dbguard.core.outcome import Mark, new_token
from dbguard.core.statement import Token, Touch
from dbguard.drivers import outcome_sql

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from dbguard.drivers.asyncpg.lease import Lease

__all__ = ["Carried", "Tokens", "burnt", "claimed", "ending_of", "is_missing", "lesser_form", "refused_ending"]

MOST_FORMS = 4_096
"""Texts whose form is remembered; above that all are forgotten at once."""

OFF_FOR = 30.0
"""Seconds for which nothing carries a token once the server has said that there is no table for it."""

_RECURSIVE = re.compile(rf"{BLANK}recursive(?![\w$])", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"\$\d+")


@dataclass(frozen=True, slots=True)
class Carried:
    """A statement's text with room for a token as the first item of its WITH.

    before, after: its own text, on both sides of the item. parameters: how many it has.
    text: with the token as a parameter.
    """

    before: str
    after: str
    with_: str
    comma: str
    parameters: int
    text: str

    @staticmethod
    def of(query: str) -> Carried | None:
        """Find the room in one INSERT, UPDATE, DELETE or MERGE; None if the text is not understood."""
        head = HEAD.match(query)
        words = tokens(query)
        if head is None or not head[1] or "" in words:
            return None
        places = [int(word[1:]) for word in words if _NUMBER.fullmatch(word)]
        parameters = max(places, default=0)
        if head[1].lower() == "with":
            recursive = _RECURSIVE.match(query, head.end(1))
            at = recursive.end() if recursive else head.end(1)
            with_, comma = " ", ","
        else:
            at, with_, comma = head.start(1), "WITH ", " "
        item = outcome_sql.cte_item(f"${parameters + 1}::pg_catalog.text::pg_catalog.uuid")
        before, after = query[:at], query[at:]
        return Carried(before, after, with_, comma, parameters, f"{before}{with_}{item}{comma}{after}")

    def literal(self, token: UUID) -> str:
        """Return the text with *token* written into it."""
        item = outcome_sql.cte_item(f"'{token}'")
        return f"{self.before}{self.with_}{item}{self.comma}{self.after}"

    def restore(self, error: asyncpg.PostgresError, sent: str) -> None:
        """Let *error*, which the server raised about *sent*, speak of the application's own text."""
        added = len(sent) - len(self.before) - len(self.after)
        position: Any = error.position
        if position is not None and int(position) > len(self.before) + added:
            error.position = str(int(position) - added)
        if getattr(error, "query", None) == sent:
            vars(error)["query"] = self.before + self.after

    def is_within(self, error: asyncpg.PostgresError, sent: str) -> bool:
        """Say whether *error* points at what was added."""
        position: Any = error.position
        added = len(sent) - len(self.before) - len(self.after)
        return position is not None and len(self.before) < int(position) <= len(self.before) + added


class Tokens:
    """The tokens of one guard's writes.

    reserve: seconds that commits leave for asking. keep_result: writes that return rows are sent as blocks.
    say: told, as one phrase, when writes go without a token that should have one.
    wall, chance: the time in seconds since the epoch, and random bits.
    """

    def __init__(
        self,
        *,
        reserve: float,
        keep_result: bool,
        clock: Callable[[], float],
        say: Callable[[str], object],
        wall: Callable[[], float] = time.time,
        chance: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self.reserve = reserve
        self.keep_result = keep_result
        self._clock = clock
        self._say = say
        self._wall = wall
        self._chance = chance
        self._off_until = 0.0
        self._direct = True
        self._forms: dict[str, Token] = {}
        self._carried: dict[str, Carried | None] = {}

    @property
    def on(self) -> bool:
        """Whether writes carry tokens now."""
        return not self._off_until or self._clock() >= self._off_until

    def fresh(self) -> UUID:
        """Return the token of one attempt."""
        return new_token(self._wall(), self._chance(74))

    def form(self, query: str, form: Token, *, rows: bool) -> Token:
        """Return the form in which *query* carries a token. form: what its text allows. rows: it returns some."""
        if not self.on:
            return Token.NONE
        form = self._forms.get(query, form)
        if form is Token.CTE and rows and self.keep_result:
            return Token.BLOCK
        return form

    def carried(self, query: str) -> Carried | None:
        """Return *query* with room for a token; None where none was found."""
        if query not in self._carried:
            if len(self._carried) >= MOST_FORMS:
                self._carried.clear()
            self._carried[query] = Carried.of(query)
        return self._carried[query]

    def may_insert(self, lease: Lease, touched: Touch) -> bool:
        """Whether the role on *lease* may write to the table itself; *touched*: the worst done to its session."""
        return self._direct and touched is Touch.NOTHING and lease.tag.plain_role and not lease.pool.hooked

    def judge_ending(self, error: asyncpg.PostgresError) -> Token | None:
        """Take in that the end of a block was refused; return in which form it may pass; None: for another reason."""
        if error.context is not None:
            return None  # a deferred trigger's, or a function's
        if error.sqlstate == "42501":
            form = Token.BLOCK if self._direct else Token.NONE
            self._direct = False
            return form
        if is_missing(error) and error.position is not None:
            self.missing(error)
            return Token.NONE
        return None

    def remember(self, query: str, form: Token, error: asyncpg.PostgresError) -> None:
        """Note that the server has taken *query* in this form, after it had refused another one with *error*."""
        if len(self._forms) >= MOST_FORMS:
            self._forms.clear()
        self._forms[query] = form
        if form is Token.NONE:
            self._say(f"a statement whose token was refused ({error.sqlstate}) goes without")

    def missing(self, error: asyncpg.PostgresError) -> None:
        """Note that the table is not there."""
        self._off_until = self._clock() + OFF_FOR
        self._say(f"there is no table for tokens ({error.sqlstate}): run `dbguard outcome install`")


def is_missing(error: asyncpg.PostgresError) -> bool:
    """Say whether *error*, raised by our own part of a statement, means that the schema is not installed."""
    return error.sqlstate in ("42P01", "3F000", "42883", "42704")


def lesser_form(error: asyncpg.PostgresError, form: Token) -> Token | None:
    """Return the form to try next where the server has refused a statement in *form*; None: the error is its own.

    0A000: a rule makes several statements of it, which cannot have a WITH. 42501: the present role must not write to the
    table, but may call `dbguard.mark`. 25001: it cannot run in a block.
    """
    if type(error) is asyncpg.FeatureNotSupportedError or error.sqlstate == "42501":
        return Token.BLOCK if form is Token.CTE else None
    return Token.NONE if error.sqlstate == "25001" and form is Token.BLOCK else None


def burnt(error: BaseException) -> bool:
    """Say whether a write met its own token in the table: somebody has claimed it, so that nothing was applied."""
    return (
        isinstance(error, asyncpg.UniqueViolationError)
        and (error.schema_name, error.table_name, error.constraint_name) == outcome_sql.CONSTRAINT
    )


def claimed() -> asyncpg.SerializationError:
    """Return the error for a write whose token was claimed before it could commit. It may be repeated as it is."""
    return asyncpg.SerializationError("nothing was committed: somebody asked for the fate of this write while it ran")


def refused_ending(tokens: Tokens, error: Exception) -> asyncpg.SerializationError | None:
    """Return the error for a block whose end was refused because of its token; None: for another reason.

    It may be repeated as it is, and is raised as what can be: a transaction that met another one.
    """
    if burnt(error):
        return claimed()
    if isinstance(error, asyncpg.PostgresError) and tokens.judge_ending(error) is not None:
        return asyncpg.SerializationError(f"nothing was committed: the token could not be stored ({error.sqlstate})")
    return None


def ending_of(token: UUID, mark: Mark, *, direct: bool) -> str:
    """Return the token and COMMIT as one simple query; *direct*: by an INSERT of the present role."""
    return outcome_sql.joined(token, direct=direct, always=mark is Mark.ALWAYS)
