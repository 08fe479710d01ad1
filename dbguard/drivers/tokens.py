"""The tokens of one guard's writes, whichever driver sends them: what a write carries, and where that was refused."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from dbguard.core.outcome import new_token
from dbguard.core.statement import Token, Touch

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from dbguard.drivers.lease import Lease

__all__ = ["MOST_FORMS", "Tokens", "is_missing"]

MOST_FORMS = 4_096
"""Texts whose form is remembered; above that all are forgotten at once."""

OFF_FOR = 30.0
"""Seconds for which nothing carries a token once the server has said that there is no table for it."""


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

    def may_insert(self, lease: Lease, touched: Touch) -> bool:
        """Whether the role on *lease* may write to the table itself; *touched*: the worst done to its session."""
        return self._direct and touched is Touch.NOTHING and lease.tag.plain_role and not lease.pool.hooked

    def judge_ending(self, sqlstate: str | None, *, within: bool, pointed: bool) -> Token | None:
        """Take in that the end of a block was refused; return in which form it may pass; None: for another reason.

        within: raised inside a function or a trigger. pointed: it points into the text.
        """
        if within:
            return None  # a deferred trigger's, or a function's
        if sqlstate == "42501":
            form = Token.BLOCK if self._direct else Token.NONE
            self._direct = False
            return form
        if is_missing(sqlstate) and pointed:
            self.missing(sqlstate)
            return Token.NONE
        return None

    def remember(self, query: str, form: Token, sqlstate: str | None) -> None:
        """Note that the server has taken *query* in this form, after it had refused another one with *sqlstate*."""
        if len(self._forms) >= MOST_FORMS:
            self._forms.clear()
        self._forms[query] = form
        if form is Token.NONE:
            self._say(f"a statement whose token was refused ({sqlstate}) goes without")

    def missing(self, sqlstate: str | None) -> None:
        """Note that the table is not there."""
        self._off_until = self._clock() + OFF_FOR
        self._say(f"there is no table for tokens ({sqlstate}): run `dbguard outcome install`")


def is_missing(sqlstate: str | None) -> bool:
    """Say whether *sqlstate*, of an error raised by our own part of a statement, means that the schema is not installed."""
    return sqlstate in ("42P01", "3F000", "42883", "42704")
