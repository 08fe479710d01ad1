"""What stands between a leased connection and the application: every statement on it goes through here.

Nothing is repeated here. What is added is truth about failures: a write or a COMMIT whose answer was lost raises
`OutcomeUnknown`; a time-out or a cancellation ends the connection before anything else, so that no cancel request is
sent and no exit hangs; what may have been left on the session is noted for the pool.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dbguard.core.failure import Phase
from dbguard.core.outcome import Mark, commit_until, is_plain, turns_read_only
from dbguard.core.plan import Done
from dbguard.core.retry import Act, Stake, Work, judge
from dbguard.core.statement import Kind, Touch
from dbguard.deadlines import ambient, check_seconds
from dbguard.drivers import outcome_sql
from dbguard.drivers.identity import forget_sequences
from dbguard.dropped import caller, dropped
from dbguard.errors import DeadlineExceeded, GuardClosed
from dbguard.events import NotificationGap
from dbguard.runtime.attempt import name_failed
from dbguard.runtime.flights import Flight
from dbguard.runtime.resolve import settled

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from dbguard.core.causal import Box, Orphan
    from dbguard.core.plan import Call
    from dbguard.core.route import Node
    from dbguard.core.topology import Reign
    from dbguard.drivers.tokens import Tokens
    from dbguard.runtime.engine import Engine
    from dbguard.texts import Text, Texts

__all__ = ["ROLLBACK_WITHIN", "Session"]

ROLLBACK_WITHIN = 1.0
"""Seconds a ROLLBACK may take before the connection is terminated instead, which rolls back as well."""

COMMIT_NOTHING = frozenset({"BEGIN", "START", "SAVEPOINT", "RELEASE", "ROLLBACK", "ABORT", "SET"})
"""First words of transaction control that, alone, commits nothing. (ROLLBACK PREPARED ends what outlives its session.)"""

_PREPARED = re.compile(r"\bprepared\b", re.IGNORECASE)


class Session:
    """One lease in the application's hands.

    limit: seconds that each thing done on it may take, unless the application says less, and whose limit that is.
    within: it belongs to `run_in_transaction`, which judges what fails.
    tokens: of the guard's writes; None: they carry none.
    read_only: the open transaction is READ ONLY, or may have been turned so.
    plain: nothing but reads, and writes in which no function of the user's can run, was noted in the open transaction.
    failed: the server has refused a statement of the open transaction, so that it can only be rolled back.
    writes: something in the open transaction may have written. whole: nothing in it has ended the transaction.
    recalls: what is done next may ask what was last drawn from sequences.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _taken_at: str | None = None
    _box: Callable[[], Box] | None = None

    def __init__(
        self,
        engine: Engine,
        texts: Texts,
        call: Call,
        node: Node,
        lease: Any,
        *,
        limit: tuple[float, str],
        within: bool = False,
        tokens: Tokens | None = None,
    ) -> None:
        self.engine = engine
        self.texts = texts
        self.call = call
        self.node = node
        self.lease = lease
        self.limit = limit
        self.within = within
        self.tokens = tokens
        self.read_only = False
        self.plain = True
        self.failed = False
        self.writes = False
        self.whole = True
        self.recalls = False
        self.over = False
        self.running = 0
        self._ddl = False

    def lend(self, box: Callable[[], Box]) -> None:
        """Note that the application has it. Dropped without being given back, its lease is ended, and that is told.

        box: returns the box of the context that asks.
        """
        self._box = box
        self._loop = self.engine.colour.loop
        self._taken_at = caller() if self._loop.get_debug() else None

    def __del__(self) -> None:
        """Give up a lease that nobody can give back any more; on whatever thread the collector runs."""
        if self._loop is not None and not (self.over or self.engine.forked or self._loop.is_closed()):
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(dropped, self.engine, self.node.name, self.lease, self._taken_at)

    @property
    def con(self) -> Any:
        """The driver's connection. Raises the driver's `InterfaceError` once it was given back; `GuardClosed` in a fork."""
        if self.over:
            raise self.engine.driver.released()
        if self.engine.forked:
            raise self.engine.driver.dress(GuardClosed(self.engine.forked))
        return self.lease.con

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more."""
        return bool(self.over or self.engine.forked) or self.lease.con.is_closed()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return not self.closed and self.lease.con.is_in_transaction()

    def touch(self, touched: Touch) -> None:
        """Note what may have been left on the session."""
        self.lease.touched = max(self.lease.touched, touched)

    def touch_raw(self) -> None:
        """Note that the application has the driver's own connection: nothing is known of what is done with it."""
        self.touch(Touch.LOST)  # no reset takes back PREPARE, LOAD, a codec, or the application's own reference to it
        self.lease.raw_touched = self.lease.doubtful = self.writes = True
        self._stamp(self.engine.state.view.reign)

    def note(self, query: str) -> tuple[Stake, bool]:
        """Note what *query* may do; return what is at stake when it runs, and whether it is one transaction.

        COMMIT: it may end the open transaction; where none is open, it is a write as any other.
        """
        text = self.texts.learn(query)
        self._ddl = self._ddl or text.ddl
        self.recalls = text.recalls
        self.touch(text.touched)
        if self.tokens is not None and text.work.stake is not Stake.READ:
            self.plain = self.plain and is_plain(text.statement, query, text.touched)
            self.read_only = self.read_only or turns_read_only(text.statement, query)
        if text.doubtful and self.node is self.engine.state.primary:
            return Stake.WRITE, True
        return _stake_of(text, query), text.statement.one_transaction

    def begins(self, *, read_only: bool) -> None:
        """Note that a transaction begins."""
        self.read_only = read_only or self.node.view.read_only
        self.plain = self.whole = True

    def ending(self) -> str:
        """Return how the open transaction stores its token and ends; empty: by COMMIT alone, without a token."""
        self.call.token = None
        if self.tokens is None or not self.tokens.on or not self.whole:
            return ""
        lease = self.lease
        touched = lease.touched if self.plain else max(lease.touched, Touch.SETTINGS)
        mark = Mark.of(writes=self.writes, read_only=self.read_only, touched=touched, unseen=lease.raw_touched)
        if mark is Mark.NONE:
            return ""
        token = self.tokens.fresh()
        self.call.token = str(token)
        return outcome_sql.joined(token, direct=self.tokens.may_insert(lease, touched), always=mark is Mark.ALWAYS)

    async def end(self, inner: Any, ending: str) -> None:
        """Store the token and COMMIT."""
        tokens = self.tokens
        try:
            await self.engine.driver.commit(self.lease, inner, ending)
        except Exception as error:
            if tokens is None or not ending:
                raise
            refusal = self.engine.driver.refused_ending(tokens, error)
            if refusal is None:
                raise
            raise refusal from error

    def _until(self, limit: float | None, whose: str) -> tuple[float, str]:
        """Return when what begins now must have ended, on the guard's clock, and by whose word. See `do`."""
        if limit is not None:
            check_seconds(limit)
        seconds, whose = self.limit if limit is None else (limit, whose)
        until, outer = self.engine.state.clock() + seconds, ambient()
        return (until, whose) if outer is None or outer >= until else (outer, "deadline()")

    async def do(
        self,
        act: Callable[[], Awaitable[Any]],
        stake: Stake,
        limit: float | None = None,
        *,
        whole: bool = True,
        single: bool = False,
        cancels: bool = False,
        whose: str = "timeout=",
        reserve: float = 0.0,
    ) -> Any:
        """Do one thing on the connection, and tell the truth if it fails.

        limit: seconds; None: what there is for each thing done on the connection. whose: whose limit it is.
        reserve: seconds of it that are kept for asking what became of a commit.
        whole, single: it is one transaction by itself; it is known to be one statement.
        cancels: *act* is a call that feeds the server, or the application's own code is awaited in it (a COPY's source or
            output), so that ending it in time takes more than ending the connection.
        """
        until, whose = self._until(limit, whose)
        engine, lease = self.engine, self.lease
        con, state = self.con, engine.state
        reign = state.view.reign
        unsent = con.is_closed()
        inside = not unsent and con.is_in_transaction()
        if inside and (stake is Stake.WRITE or (stake is Stake.READ and self.writes)):
            stake = Stake.TRANSACTION  # what goes with the connection is all that the transaction did
        elif stake is Stake.COMMIT and not (inside or unsent):
            stake = Stake.WRITE
        self.writes = self.writes or stake is not Stake.READ
        self.whole = self.whole and stake is not Stake.COMMIT
        generation = self.node.breaker.generation
        began = state.clock()
        task = engine.task() if cancels else None
        flight = Flight(commit_until(until, began, reserve), task, cancels=cancels)
        flight.lease = lease
        engine.flights.add(flight)
        self.running += 1
        try:
            if self.recalls and not self.failed:
                await forget_sequences(lease)
            self.recalls = False
            lease.drew = lease.drew or stake is not Stake.READ
            commits = stake is Stake.WRITE or stake is Stake.COMMIT
            work: Any = engine.driver.fed(con, act()) if cancels else act()
            value = await (engine.driver.heard(lease, work) if commits else work)
        except BaseException as raised:
            closed = con.is_closed()
            if not closed and (isinstance(raised, TimeoutError) or not isinstance(raised, Exception)):
                lease.end()
            error = raised
            if flight.over and (flight.absorb() or isinstance(raised, Exception)):
                error = TimeoutError(f"no answer within {until - began:.3g} s ({whose})")
                error.__cause__ = raised if isinstance(raised, Exception) else None
            if inside:
                refused = engine.driver.is_refusal(error)
                self.failed = self.failed or refused
                lease.doubtful = lease.doubtful or not refused
            if self.within:
                raise error from error.__cause__
            at_stake = Work(stake=stake, one_transaction=whole or inside, single=single, block=True)
            spent = {"execute": state.clock() - began}
            self.call = call = replace(
                self.call, work=at_stake, began=began, sent=began, deadline=until, limit=whose, spent=spent, orphan=None
            )
            failure = name_failed(engine, call, self.node, lease, error, reign, unsent=unsent, closed=closed)
            if stake is not Stake.READ and failure.phase is not Phase.UNSENT:
                self._stamp(reign, call.orphan)
            if not isinstance(error, Exception):
                raise
            state.failed(failure, generation)
            verdict = judge(failure, at_stake)
            if verdict.act is Act.UNKNOWN:
                found = await settled(engine, call, failure)
                if isinstance(found, Done):
                    return found.value
                verdict = found
            engine.flush()
            if flight.over and type(error) is TimeoutError:
                late = call.ended(DeadlineExceeded(str(error)))
                late.__cause__ = error.__cause__
                error = engine.driver.dress(late)
            if verdict.note and failure.phase is not Phase.ERROR:
                error.add_note(f"dbguard: {verdict.note}")
            raise error from error.__cause__
        finally:
            self.running -= 1
            engine.flights.remove(flight)
        if inside or self.within:
            self.whole = self.whole and self.in_transaction  # it may have been ended just as the answer came
        if not self.within and stake is not Stake.READ:
            self._stamp(reign, acknowledged=commits)
        return value

    async def commit(self, inner: Any) -> None:
        """End the transaction with COMMIT. One that only read is no commit: nothing hangs on its answer."""
        if self.cut_off():
            raise self.engine.driver.cut_off()
        if self.failed and self.in_transaction:
            await self.rollback(inner)
            raise self.engine.driver.rolled_back()
        if not self.writes:
            await self.do(lambda: self.engine.driver.commit(self.lease, inner), Stake.READ)
            return
        ending = self.ending()
        self.call.result = Done(None)
        reserve = self.tokens.reserve if self.tokens is not None and ending else 0.0
        try:
            await self.do(lambda: self.end(inner, ending), Stake.COMMIT, reserve=reserve)
        finally:
            self.call.token = self.call.result = None
        self.writes = False

    async def rollback(self, inner: Any) -> None:
        """End the transaction, or go back to the savepoint. A connection that does not answer is terminated instead."""
        if not (self.closed or self.cut_off()):
            await self.do(inner.rollback, Stake.READ, ROLLBACK_WITHIN, whose="for a ROLLBACK")
            self.failed = False

    def cut_off(self) -> bool:
        """End the connection if a task that nobody waited for still uses it; say whether. It must not be handed on."""
        busy = self.running > 0 and not self.closed
        if busy:
            self.lease.end()
        return busy

    def missed(self, channels: tuple[str, ...]) -> None:
        """Tell that the connection was lost while it listened to *channels*. Who closes the guard is not told."""
        engine, lease = self.engine, self.lease
        if engine.closed:
            return
        at, why = engine.state.clock(), "ended by the guard" if lease.ours else "lost"
        gap = NotificationGap(at=at, node=self.node.name, channels=channels, pid=lease.backend[0], why=why)
        with engine.colour.lock:
            due = engine.state.chronicle.fold([gap], at)
        for told in due:
            engine.tell(told)

    def finish(self) -> None:
        """Let nothing more be done; what was done to the catalogue is noted."""
        self.over = True
        if self.lease.raw_touched:
            self._stamp(
                self.engine.state.view.reign
            )  # of what the application did there, nothing is known but that it has ended now
        if self._ddl:
            self.texts.changed()

    def give_back(self) -> None:
        """End the lease. In a fork of the process that took it there is nothing to end."""
        if self.engine.forked:
            self.over = True
        elif not self.over:
            self.cut_off()
            self.finish()
            self.engine.pools[self.node.name].give(self.lease, self.lease.touched)

    def _stamp(self, reign: Reign | None, orphan: Orphan | None = None, *, acknowledged: bool = False) -> None:
        """Note a write in the box of the context that took the connection, and of the one that uses it now.

        orphan: pins the second's reads; the first has it already. acknowledged: by a commit.
        """
        state = self.engine.state
        state.wrote(self.call.box, reign, acknowledged=acknowledged)
        here = self._box() if self._box is not None else self.call.box
        if here is not self.call.box:
            state.wrote(here, reign)
            if orphan is not None:
                state.pin(here, orphan)


def _stake_of(text: Text, query: str) -> Stake:
    statement = text.statement
    if statement.kind is Kind.READ:
        return text.work.stake  # of a view that runs a volatile function, and of what a replica has refused: a write
    alone = not statement.several
    control = statement.kind is Kind.TRANSACTION and statement.verb in COMMIT_NOTHING and not _PREPARED.search(query)
    if alone and (statement.sets_only or control):
        return Stake.READ  # it lives and dies with its session
    may_commit = statement.kind in {Kind.TRANSACTION, Kind.UNKNOWN} and not statement.one_transaction
    return Stake.COMMIT if may_commit else Stake.WRITE
