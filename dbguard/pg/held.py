"""`Held`: a leased connection in the application's hands, in psycopg's meaning, for tasks and for threads alike.

The driver's connection is in autocommit; the BEGIN that psycopg would send before a statement is sent here, so that what is
at stake is known of every statement before it leaves. A write in autocommit that takes several steps (COPY, `stream`), or
that carries a token, is put into a transaction of its own.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dbguard.core.lexer import lower, written
from dbguard.core.retry import Stake
from dbguard.core.statement import Token, Touch
from dbguard.drivers.psycopg.connection import (
    BINARY,
    DriverAsyncConnection,
    InterfaceError,
    IsolationLevel,
    ProgrammingError,
    WatchedAdapters,
    is_idle,
    status_name,
)
from dbguard.drivers.psycopg.transaction import Block
from dbguard.pg.pipes import Pipes
from dbguard.pg.reading import HeldCursor, HeldServerCursor, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.session import Session

__all__ = ["Held"]


def listened(text: str, before: set[str]) -> set[str]:
    """Return the channels that a session listens to after *text*, which begins with LISTEN or UNLISTEN."""
    channels = set(before)
    words = written(text)
    for verb, name in pairwise(words):
        channel = name[1:-1].replace('""', '"') if name.startswith('"') else lower(name)
        if verb.upper() == "LISTEN":
            channels.add(channel)
        elif verb.upper() == "UNLISTEN":
            channels = set() if name == "*" else channels - {channel}
    return channels


def _driven(work: Any) -> None:
    """Run *work* of psycopg's, which waits for nothing; it may want to let the event loop have a turn."""
    try:
        while True:
            work.send(None)
    except StopIteration:
        return


class Held:
    """What psycopg's words do on a leased connection.

    autocommit: nothing begins a transaction but the application.
    depth: how many transaction blocks are open around what is done; in one, `commit` and `rollback` are refused.
    read_only, if it is given, holds in autocommit, too: what may write there has a READ ONLY transaction of its own.
    isolation_level, read_only, deferrable: of the transactions that begin here; None: the server's defaults.
    row_factory, cursor_factory, server_cursor_factory: of the cursors made here. What the application sets stays here.
    channels: what it listens to, by statements of the application's. quit: the application has closed it.
    open: a transaction was begun here and has not ended. tpc: of a two-phase transaction, its name, and whether it is prepared.
    """

    def __init__(
        self, session: Session, *, autocommit: bool = False, read_only: bool | None = None, depth: int = 0
    ) -> None:
        raw = session.con.raw
        self.session = session
        self.raw = raw
        self.is_async = isinstance(raw, DriverAsyncConnection)
        self.autocommit = autocommit
        self.isolation_level = raw.isolation_level
        self.read_only = raw.read_only if read_only is None else read_only
        self.deferrable = raw.deferrable
        self._only_reads = bool(read_only)
        self.row_factory = raw.row_factory
        self.cursor_factory = raw.cursor_factory
        self.server_cursor_factory = raw.server_cursor_factory
        self.depth = depth
        self.open = depth > 0
        self.tpc: tuple[Any, bool] | None = None
        self.busy = ""
        self.quit = False
        self.channels: set[str] = set()
        self.pipes = Pipes(self)
        self._adapters: WatchedAdapters | None = None
        self._block = self._new_block()

    def _new_block(self) -> Block:
        level = self.isolation_level
        return Block(
            self.line,
            isolation=None if level is None else level.name,
            readonly=self.read_only,
            deferrable=self.deferrable,
        )

    @property
    def line(self) -> Any:
        """The line to the server. Raises `psycopg.InterfaceError` once the connection was given back."""
        return self.session.con

    @property
    def adapters(self) -> WatchedAdapters:
        """The connection's adapters; to register something there costs the connection when it is given back."""
        if self._adapters is None:
            self._adapters = WatchedAdapters(self.raw.adapters, lambda: self.session.touch(Touch.LOST))
        return self._adapters

    # ------------------------------------------------------------------ statements

    async def run(self, text: str, fn: Callable[..., Any], *args: Any, begins: bool = True, **kwargs: Any) -> Any:
        """Call the driver's *fn*, which sends *text*; in a transaction, unless the connection is in autocommit."""
        line = self.line
        await self.free()
        if begins and not self.autocommit:
            await self.begin()
        stake, whole, single = self.noted(text)
        session = self.session
        if self.writes_alone(stake) and (self._has_token(text) or (self._only_reads and self.read_only)):
            await self.begin_alone(text)
            try:
                value = await self.do(lambda: line.run(fn, *args, **kwargs), stake)
            except BaseException as error:
                await self.abandon(error, self.undo)
                raise
            await self.end()
            return value
        value = await self.do(lambda: line.run(fn, *args, **kwargs), stake, whole=whole, single=single)
        if session.failed and not self.pipes.levels and session.texts.learn(text).statement.verb:
            session.failed = False  # a failed transaction answers nothing but errors, unless that was ROLLBACK TO
        return value

    def noted(self, text: str) -> tuple[Stake, bool, bool]:
        """Note what *text* may do; return what is at stake, whether it is one transaction, and whether one statement.

        In a pipeline nothing is answered before it is synchronized, and what is queued fails or ends together.
        """
        session = self.session
        stake, whole = session.note(text)
        statement = session.texts.learn(text).statement
        if statement.verb in ("LISTEN", "UNLISTEN"):
            session.touch(Touch.LOST)  # psycopg keeps what came in for whoever asks next
            self.channels = listened(text, self.channels)
        if self.pipes.levels:
            if stake is not Stake.READ:
                self.pipes.queued = Stake.TRANSACTION if self.open and stake is not Stake.COMMIT else Stake.COMMIT
            return self.pipes.queued, whole, False
        return stake, whole, not statement.several

    def writes_alone(self, stake: Stake) -> bool:
        """Whether what is at stake is a write in autocommit."""
        return stake is Stake.WRITE and self.autocommit and not self.pipes.levels and is_idle(self.raw)

    def _has_token(self, text: str) -> bool:
        tokens = self.session.tokens
        return tokens is not None and tokens.on and self.session.texts.learn(text).token is not Token.NONE

    async def begin_alone(self, text: str) -> None:
        """Begin a transaction for one write in autocommit: for its token, or since it takes several steps."""
        await self.begin()
        self.noted(text)

    async def do(self, act: Callable[[], Any], stake: Stake, *args: Any, **extra: Any) -> Any:
        """Do one thing on the connection; see `Session.do`. If that is how it is seen to be lost, listeners are told."""
        try:
            return await self.session.do(act, stake, *args, **extra)
        except BaseException:
            self.tell_loss()
            raise

    def tell_loss(self) -> None:
        """Tell of a connection that is lost and had listened: what is notified meanwhile is not heard."""
        if self.channels and self.session.closed and not (self.session.over or self.quit):
            channels, self.channels = tuple(sorted(self.channels)), set()
            self.session.missed(channels)

    async def command(self, text: str) -> None:
        """Send a command of ours that neither ends the transaction nor writes."""
        line = self.line
        async with self.pipes.outside():
            await self.do(lambda: line.execute(text), Stake.READ)

    async def free(self) -> None:
        """Wait until nothing else has the connection for itself: a COPY, `stream` or `notifies`.

        For threads that is an error at once, as who waits would wait for himself; for tasks the guard's time is the limit.
        """
        if not self.busy:
            return
        if not self.is_async:
            raise InterfaceError(f"the connection is in the midst of {self.busy}: finish that first")
        lock = self.raw.lock

        async def waited() -> None:
            async with lock:
                pass

        await self.do(waited, Stake.READ, cancels=True)

    def occupy(self, what: str) -> None:
        """Note that something has the connection for itself; if it is given back so, it is ended."""
        self.busy = what
        self.session.running += 1

    def finish(self) -> None:
        """Let the driver know of a connection that was ended while something had it for itself: it asks nobody to cancel."""
        if self.busy:
            self.raw.pgconn.finish()

    def vacate(self) -> None:
        """Note the end of that."""
        if self.busy:
            self.busy = ""
            self.session.running -= 1

    def cursor(
        self, name: str, *, binary: bool, row_factory: Any, scrollable: bool | None, withhold: bool
    ) -> HeldCursor:
        """Make a cursor; with *name*, on the server. row_factory: None: the connection's."""
        raw = self.line.raw
        if self.session.closed:
            raw.cursor()  # the driver says that it is closed
        factory = row_factory or self.row_factory
        if name:
            made = self.server_cursor_factory(
                raw, name=name, row_factory=factory, scrollable=scrollable, withhold=withhold
            )
        else:
            made = self.cursor_factory(raw, row_factory=factory)
        if binary:
            made.format = BINARY
        return HeldServerCursor(self, made) if name else HeldCursor(self, made)

    def notifies(self, timeout: float | None, stop_after: int | None) -> Steps:
        """Return the notifications as they come. timeout: seconds for all of them; None: as long as it takes."""
        limit = math.inf if timeout is None else timeout + self.session.limit[0]
        self.session.touch(Touch.LOST)
        make = self.raw.notifies
        return Steps(self, "notifies()", "", lambda: make(timeout=timeout, stop_after=stop_after), limit=limit)

    async def wait(self, gen: Any, **extra: Any) -> Any:
        """Let the driver run a generator of its own, of which nothing is known."""
        raw, line = self.lay_bare(), self.line
        return await self.do(lambda: line.run(raw.wait, gen, **extra), Stake.COMMIT, whole=False)

    async def assign(self, name: str, value: Any) -> None:
        """See `set`."""
        await self.free()
        async with self.pipes.outside():
            self.set(name, value)

    # ------------------------------------------------------------------ transactions

    async def begin(self) -> None:
        """Send BEGIN if no transaction is open."""
        raw = self.raw
        if not is_idle(raw) or not raw.autocommit:  # psycopg itself begins on a connection that was laid bare
            return
        session = self.session
        async with self.pipes.outside():
            session.begins(read_only=bool(self.read_only))
            session.failed = False
            session.writes = session.lease.raw_touched  # what came before has ended, as far as that is known
            self._block = self._new_block()
            await self.do(self._block.start, Stake.READ)
        self.open = True

    async def commit(self) -> None:
        """End the open transaction with COMMIT. Raises `psycopg.ProgrammingError` in a transaction block."""
        self._check_ending("commit", "Transaction will be automatically committed on successful exit from context")
        await self.end()

    async def end(self) -> None:
        """COMMIT, if a transaction is open. See `Session.commit`."""
        await self.free()
        async with self.pipes.outside():
            if is_idle(self.raw):
                self.open = False
                return
            await self.session.commit(self._block)
            self.open = False

    async def rollback(self) -> None:
        """End the open transaction with ROLLBACK. Raises `psycopg.ProgrammingError` in a transaction block."""
        self._check_ending("rollback", "Either raise Rollback() or allow an exception to propagate out of the context")
        await self.undo()

    async def undo(self) -> None:
        """ROLLBACK, if a transaction is open."""
        line, session = self.line, self.session
        await self.free()
        async with self.pipes.outside():
            if session.closed:
                await self.do(lambda: line.run(self.raw.rollback), Stake.READ)  # the driver says that it is closed
            elif not is_idle(self.raw):
                await session.rollback(self._block)
            self.open = False

    def _check_ending(self, what: str, instead: str) -> None:
        _ = self.line
        if self.depth:
            raise ProgrammingError(f"Explicit {what}() forbidden within a Transaction context. ({instead}.)")
        if self.tpc:
            raise ProgrammingError(f"{what}() cannot be used during a two-phase transaction")

    async def leave(self, error: BaseException | None) -> None:
        """End the block in which the application had the connection: COMMIT, or ROLLBACK because of *error*.

        Raises what a commit raises; what a rollback meets ends the connection instead.
        """
        session = self.session
        if session.over or self.quit:
            return
        self.tell_loss()
        if error is None:
            await self.out_of_pipelines()
            if self.tpc:
                session.con.terminate()
                raise ProgrammingError("the block ended in a two-phase transaction: end it with tpc_commit() first")
            if not self.lost_nothing() and (self.open or not (session.closed or is_idle(self.raw))):
                await self.end()
            return
        await self.abandon(error, self.undo)

    def lost_nothing(self) -> bool:
        """Whether the connection is closed, and nothing was written on it that could have been committed."""
        return self.session.closed and not self.session.writes

    async def abandon(self, error: BaseException, undo: Callable[[], Any]) -> None:
        """Roll back because of *error*, which goes on; what fails on the way ends the connection, and so rolls back."""
        session = self.session
        if session.closed:
            return
        if isinstance(error, Exception) or (isinstance(error, GeneratorExit) and not self.is_async):
            await self.give_up(undo)
        else:
            session.con.terminate()

    async def give_up(self, undo: Callable[[], Any]) -> None:
        """Call *undo*; what fails on the way ends the connection."""
        session = self.session
        try:
            await undo()
        except Exception:  # noqa: BLE001  the connection goes and the transaction with it; what led here counts
            if not session.closed:
                session.con.terminate()

    def check_cancel(self) -> None:
        """Raise `psycopg.ProgrammingError` where a cancellation would have nothing to end."""
        if self.tpc and self.tpc[1]:
            raise ProgrammingError("cancel() cannot be used with a prepared two-phase transaction")

    def set(self, name: str, value: Any) -> None:
        """Set ``autocommit``, ``isolation_level``, ``read_only`` or ``deferrable``, as psycopg does: outside a transaction."""
        _ = self.line
        if not is_idle(self.raw):
            where = (
                "connection.transaction() context in progress"
                if self.depth
                else f"connection in transaction status {status_name(self.raw)}"
            )
            raise ProgrammingError(f"can't change {name!r} now: {where}")
        if name == "isolation_level":
            value = IsolationLevel(value) if value is not None else None
        elif name == "autocommit" or value is not None:
            value = bool(value)
        setattr(self, name, value)
        self._lay_bare_again()

    def lay_bare(self) -> Any:
        """Return the driver's connection, marked: it begins transactions as the application asked for, and all is possible."""
        raw = self.line.raw
        self.session.touch_raw()
        self._lay_bare_again()
        return raw

    def _lay_bare_again(self) -> None:
        """Let a connection that was laid bare behave as it was set; in a transaction, it does after its end."""
        raw = self.raw
        if not self.session.lease.raw_touched or raw.lock.locked() or not is_idle(raw):
            return
        names = ("autocommit", "isolation_level", "read_only", "deferrable")
        for name in names:
            done = getattr(raw, f"set_{name}")(getattr(self, name))
            if self.is_async:
                _driven(done)

    # ------------------------------------------------------------------ the end

    async def out_of_pipelines(self) -> None:
        """Leave pipeline mode where the application has not, as its block ends."""
        await self.pipes.end()

    async def close(self) -> None:
        """Close the connection, and with it what was not committed; its place in the pool is filled by a new one."""
        session = self.session
        if session.over:
            return
        self.quit = True
        session.touch(Touch.LOST)
        if not session.closed:
            await self.line.run(self.raw.close)
