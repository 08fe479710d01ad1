"""Sending an autocommit write with its token, in the form that its text and the server allow.

*cte*: in the statement's own WITH. *block*: BEGIN, the statement by the driver's own method, then the token and COMMIT in
one. *none*: as it is. What the server refuses in one form, because of the form, is sent in a lesser one: a refused
statement was one transaction, so nothing of it was applied. What it was refused for is remembered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.lexer import tokens as words_of
from dbguard.core.outcome import Mark
from dbguard.core.plan import Done
from dbguard.core.retry import Stake
from dbguard.core.statement import Token, Touch
from dbguard.core.verbs import DML
from dbguard.drivers.asyncpg.outcome import burnt, claimed, ending_of, judge_ending, lesser_form
from dbguard.drivers.asyncpg.transaction import heard, roll_back, rolled_back
from dbguard.drivers.tokens import is_missing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.plan import Call
    from dbguard.drivers.asyncpg.lease import Lease
    from dbguard.drivers.asyncpg.outcome import CarriedTokens

__all__ = ["Sender"]


class Sender:
    """Sends one write with a token.

    form: what its text allows. rows: it returns some. plain: it does nothing that matters unless it writes rows.
    method, args, extra: the driver's; *args* without the text.
    """

    __slots__ = ("_refused", "args", "call", "extra", "form", "method", "query", "rows", "tokens", "touched", "work")

    def __init__(
        self,
        tokens: CarriedTokens,
        call: Call,
        query: str,
        form: Token,
        *,
        rows: bool,
        plain: bool,
        method: str,
        args: tuple[Any, ...],
        extra: dict[str, Any],
    ) -> None:
        self._refused: Token | None = None
        self.tokens = tokens
        self.call = call
        self.work = call.work
        self.query = query
        self.form = form
        self.rows = rows
        self.touched = Touch.NOTHING if plain else Touch.SETTINGS
        self.method = method
        self.args = args
        self.extra = extra

    def prepares(self) -> None:
        """Note that what is sent until `send` is nothing of the write: lost there, it was not applied."""
        self.call.work = replace(self.work, stake=Stake.TRANSACTION, leaves_nothing=False)

    async def send(self, lease: Lease, plain: Callable[[], Awaitable[Any]]) -> Any:
        """Send it; *plain* sends it as it is, by the driver's own method. Raises what the driver raises."""
        form = self.tokens.form(self.query, self.form, rows=self.rows)
        refusal: asyncpg.PostgresError | None = None
        planned_anew = False
        while True:
            self.call.work = self.work
            self.call.token = self.call.result = self._refused = None
            try:
                if form is Token.CTE:
                    value = await self._with(lease, plain)
                elif form is Token.BLOCK:
                    value = await self._around(lease, plain)
                else:
                    value = await plain()
            except asyncpg.PostgresError as error:
                if burnt(error):
                    raise claimed() from error
                if form is Token.BLOCK and not planned_anew and isinstance(error, asyncpg.InvalidCachedStatementError):
                    planned_anew = True  # as asyncpg does by itself where no transaction is open
                    continue
                lesser = self._lesser(error, form, lease)
                if lesser is None:
                    raise
                form, refusal = lesser, error
                continue
            if refusal is not None and self.tokens.on:
                self.tokens.remember(self.query, form, refusal.sqlstate)
            return value

    def _lesser(self, error: asyncpg.PostgresError, form: Token, lease: Lease) -> Token | None:
        if form is Token.NONE or lease.con.is_closed() or lease.con.is_in_transaction():
            return None
        if self._refused is not None:
            return self._refused
        return Token.NONE if not self.tokens.on else lesser_form(error, form)

    async def _with(self, lease: Lease, plain: Callable[[], Awaitable[Any]]) -> Any:
        """Send it with the token in its WITH."""
        carried = self.tokens.carried(self.query)
        if carried is None:
            return await self._around(lease, plain)
        if carried.parameters != len(self.args):
            return await plain()  # the driver refuses it in its own words, before anything is sent
        token = self.tokens.fresh()
        if self.method == "execute" and not self.args:
            sent, args = carried.literal(token), self.args
        else:
            sent, args = carried.text, (*self.args, str(token))
        self.call.token = str(token)
        if not self.rows:
            self.call.result = Done(_without_rows(self.method, self.query))
        con: Any = lease.con
        try:
            return await heard(con, lease, getattr(con, self.method)(sent, *args, **self.extra))
        except asyncpg.PostgresError as error:
            if is_missing(error.sqlstate) and carried.is_within(error, sent):
                self.tokens.missing(error.sqlstate)
            carried.restore(error, sent)
            raise

    async def _around(self, lease: Lease, plain: Callable[[], Awaitable[Any]]) -> Any:
        """Send it as a block. Until its COMMIT is sent, a lost connection means that nothing was applied."""
        con: Any = lease.con
        call, work = self.call, self.work
        read_only = lease.pool.node.view.read_only
        mark = Mark.of(writes=True, read_only=read_only, touched=self.touched, unseen=False)
        call.work = replace(work, stake=Stake.TRANSACTION, leaves_nothing=False)
        try:
            await con.execute("BEGIN")
            value = await plain()
            ending = "COMMIT"
            call.work, call.result = work, Done(value)
            if mark is not Mark.NONE:
                token = self.tokens.fresh()
                call.token = str(token)
                ending = ending_of(token, mark, direct=self.tokens.may_insert(lease, self.touched))
            status = await heard(con, lease, con.execute(ending))
        except asyncpg.PostgresError as error:
            if call.token is not None:
                self._refused = judge_ending(self.tokens, error)
            await roll_back(con)
            raise
        except Exception:
            await roll_back(con)
            raise
        if status != "COMMIT":
            raise rolled_back()
        return value


def _without_rows(method: str, query: str) -> Any:
    """Return what *method* returns for a write without rows; of the command tag what is sure: all but the count."""
    if method != "execute":
        return [] if method == "fetch" else None
    depth = 0
    for word in words_of(query):
        depth += (word == "(") - (word == ")")
        if depth == 0 and word in DML:
            return word.upper()
    return ""
