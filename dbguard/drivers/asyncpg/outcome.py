"""Sending a write's token, and claiming it: `dbguard.core.outcome` in asyncpg's words.

An autocommit statement carries its token as the first item of its own WITH. The token is one more parameter, so that the
text stays the same and asyncpg's prepared statement serves every call; where the statement has no parameters and is
sent as a simple query, as a literal. What the application sees is as without: rows, tag and notices are the main
statement's, and an error's position is counted in its own text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.lexer import BLANK, HEAD, tokens
from dbguard.core.outcome import Mark
from dbguard.core.statement import Token
from dbguard.drivers import outcome_sql
from dbguard.drivers.tokens import MOST_FORMS, Tokens

if TYPE_CHECKING:
    from uuid import UUID


__all__ = ["Carried", "CarriedTokens", "burnt", "claimed", "ending_of", "judge_ending", "lesser_form", "refused_ending"]

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


class CarriedTokens(Tokens):
    """`Tokens` of which some go in the WITH of their statement."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._carried: dict[str, Carried | None] = {}

    def carried(self, query: str) -> Carried | None:
        """Return *query* with room for a token; None where none was found."""
        if query not in self._carried:
            if len(self._carried) >= MOST_FORMS:
                self._carried.clear()
            self._carried[query] = Carried.of(query)
        return self._carried[query]


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
    if isinstance(error, asyncpg.PostgresError) and judge_ending(tokens, error) is not None:
        return asyncpg.SerializationError(f"nothing was committed: the token could not be stored ({error.sqlstate})")
    return None


def judge_ending(tokens: Tokens, error: asyncpg.PostgresError) -> Token | None:
    """Return in which form the end of a block, refused with *error*, may pass. See `Tokens.judge_ending`."""
    return tokens.judge_ending(error.sqlstate, within=error.context is not None, pointed=error.position is not None)


def ending_of(token: UUID, mark: Mark, *, direct: bool) -> str:
    """Return the token and COMMIT as one simple query; *direct*: by an INSERT of the present role."""
    return outcome_sql.joined(token, direct=direct, always=mark is Mark.ALWAYS)
