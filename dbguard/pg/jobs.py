"""What a call does with a lease of psycopg's: one statement, by the driver's own `execute`, whose rows are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dbguard.core.outcome import Mark
from dbguard.core.plan import Done
from dbguard.core.retry import Stake
from dbguard.core.statement import Token, Touch
from dbguard.drivers import outcome_sql
from dbguard.drivers.identity import forget_sequences
from dbguard.drivers.psycopg.outcome import burnt, claimed, judge_ending
from dbguard.drivers.psycopg.transaction import ended, heard, left_open, roll_back, rolled_back
from dbguard.pg.result import Result
from dbguard.runtime.attempt import Application

if TYPE_CHECKING:
    from dbguard.core.plan import Call
    from dbguard.drivers.tokens import Tokens

__all__ = ["InBlock", "Statement"]


class Statement:
    """Run one statement.

    query, params, extra: psycopg's. touched: what it may leave on the session. writes: a commit hangs on it.
    controls: it holds transaction control, so that it can leave a transaction open.
    recalls: it may ask what was last drawn from sequences.
    """

    __slots__ = ("controls", "extra", "params", "query", "recalls", "touched", "writes")
    keeps = False
    cancels = False
    commits = False

    def __init__(
        self,
        query: Any,
        params: Any,
        extra: dict[str, Any],
        touched: Touch,
        *,
        writes: bool,
        controls: bool,
        recalls: bool,
    ) -> None:
        self.query = query
        self.params = params
        self.extra = extra
        self.touched = touched
        self.writes = writes
        self.controls = controls
        self.recalls = recalls

    async def run(self, lease: Any) -> Result[Any]:
        """Run it; an autocommit write hears whether its standby was waited for."""
        line = lease.con
        if self.recalls:
            await forget_sequences(lease)
        lease.drew = self.writes
        work = self.send(line)
        cursor = await heard(lease, work) if self.writes else await work
        if self.controls:
            if line.is_closed():
                raise ended()  # whether it had left a transaction open cannot be asked any more
            if line.is_in_transaction():
                # The connection is closed by the pool, and the transaction with it: that must not pass for success.
                raise Application(left_open())
        return Result(cursor)

    def send(self, line: Any) -> Any:
        """Send it as it is; returns a coroutine of the cursor."""
        return line.run(line.raw.execute, self.query, self.params, **self.extra)


class InBlock:
    """Run a write that carries a token: BEGIN, the statement, then the token and COMMIT in one.

    plain: it does nothing that matters unless it writes rows. What the server refuses because of the token is sent without.
    """

    __slots__ = ("call", "plain", "statement", "text", "tokens", "touched", "work")
    keeps = False
    cancels = False
    commits = True

    def __init__(self, statement: Statement, call: Call, tokens: Tokens, text: str, *, plain: bool) -> None:
        self.statement = statement
        self.call = call
        self.work = call.work
        self.tokens = tokens
        self.text = text
        self.plain = plain
        self.touched = statement.touched

    async def run(self, lease: Any) -> Result[Any]:
        """Run it."""
        call, tokens, text = self.call, self.tokens, self.text
        call.work, call.token, call.result = self.work, None, None
        if tokens.form(text, Token.BLOCK, rows=True) is Token.NONE:
            return await self.statement.run(lease)
        if self.statement.recalls:
            call.work = replace(self.work, stake=Stake.TRANSACTION, leaves_nothing=False)
            await forget_sequences(lease)
        lease.drew = True
        try:
            return await self._around(lease)
        except Exception as error:
            if burnt(error):
                raise claimed() from error
            state = self._refused(lease, error)
            if state is None:
                raise
            call.work, call.token, call.result = self.work, None, None
            result = await self.statement.run(lease)
            if tokens.on:
                tokens.remember(text, Token.NONE, state)
            return result

    def _refused(self, lease: Any, error: Exception) -> str | None:
        """Return the SQLSTATE with which the server has refused the block because it was one, or had a token."""
        state: str | None = getattr(error, "sqlstate", None)
        if state is None or lease.con.is_closed() or lease.con.is_in_transaction():
            return None
        if self.call.token is None:
            return state if state == "25001" else None  # it cannot run in a block
        return state if judge_ending(self.tokens, error) is not None else None

    async def _around(self, lease: Any) -> Result[Any]:
        """Send it as a block. Until its COMMIT is sent, a lost connection means that nothing was applied."""
        line, call, work = lease.con, self.call, self.work
        touched = Touch.NOTHING if self.plain else Touch.SETTINGS
        mark = Mark.of(writes=True, read_only=lease.pool.node.view.read_only, touched=touched, unseen=False)
        call.work = replace(work, stake=Stake.TRANSACTION, leaves_nothing=False)
        try:
            await line.execute("BEGIN")
            result: Result[Any] = Result(await self.statement.send(line))
            ending = "COMMIT"
            call.work, call.result = work, Done(result)
            if mark is not Mark.NONE:
                token = self.tokens.fresh()
                call.token = str(token)
                direct = self.tokens.may_insert(lease, touched)
                ending = outcome_sql.joined(token, direct=direct, always=mark is Mark.ALWAYS)
            status = await heard(lease, line.execute(ending))
        except Exception:
            await roll_back(line)
            raise
        if status != "COMMIT":
            raise rolled_back()
        return result
