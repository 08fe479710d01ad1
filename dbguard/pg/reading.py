"""`HeldCursor`, and what is read or written step by step: every wait for the server goes through the session."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.drivers.psycopg.connection import RAW_CURSORS, NotSupportedError, released, text_of
from dbguard.drivers.psycopg.transaction import ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.pg.held import Held

__all__ = ["END", "HeldCopy", "HeldCursor", "HeldServerCursor", "Steps"]

END: Any = object()
"""What `Steps.next` returns after the last."""

AT_ONCE = 0.002
"""Seconds for which what comes in is gathered in one step: the way through the session costs ten times as much as a row."""

MOST_AT_ONCE = 500
"""Rows, or pieces of a COPY, that are gathered in one step."""


class Gathering:
    """Takes what the driver hands out one by one; several in one step where they come fast. One that waits ends its step.

    one: the driver's way to get the next. is_last: says of one that it is the end.
    """

    def __init__(self, held: Held, one: Callable[[], Any], is_last: Callable[[Any], bool]) -> None:
        self._held = held
        self._one = one
        self._is_last = is_last
        self._ready: deque[Any] = deque()
        self._late: Exception | None = None

    async def next(self, stake: Stake) -> Any:
        """Return the next. Raises what the driver raised, once what had come before was returned."""
        line, ready = self._held.line, self._ready
        if ready:
            return ready.popleft()
        late, self._late = self._late, None
        if late is not None:
            raise late
        gather = self._gather if self._held.is_async else self._gather_here
        try:
            await self._held.do(lambda: line.run(gather), stake)
        except Exception as error:
            if not ready:
                raise
            self._late = error
        return ready.popleft()

    def _gather_here(self) -> None:
        until = monotonic() + AT_ONCE
        while self._wants(self._one(), until):
            pass

    async def _gather(self) -> None:
        until = monotonic() + AT_ONCE
        while self._wants(await self._one(), until):
            pass

    def _wants(self, came: Any, until: float) -> bool:
        """Take in what came, and say whether to go on."""
        self._ready.append(came)
        return not self._is_last(came) and len(self._ready) < MOST_AT_ONCE and monotonic() < until


class HeldCursor:
    """The driver's cursor *raw* on a connection in the application's hands."""

    def __init__(self, held: Held, raw: Any) -> None:
        self.held = held
        self.raw = raw
        self._native = isinstance(raw, RAW_CURSORS)

    def text(self, query: Any, params: Any) -> str:
        """Return the text by which *query* is classified."""
        return text_of(query, self.held.raw, places=params is not None and not self._native)

    async def execute(self, query: Any, params: Any, **extra: Any) -> None:
        """Run one query, or several commands."""
        await self.held.run(self.text(query, params), self.raw.execute, query, params, **extra)

    async def executemany(self, query: Any, rows: Any, *, returning: bool) -> None:
        """Run one query for each of *rows*."""
        await self.held.run(self.text(query, ()), self.raw.executemany, query, rows, returning=returning)

    async def fetch(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call one of the driver's methods that read rows: at hand, unless a pipeline has not brought them yet."""
        held = self.held
        if self.raw.pgresult is None:
            line = held.line
            if held.pipes.driver is not None:
                return await held.do(lambda: line.run(fn, *args), held.pipes.queued)
        return await _plainly(held, fn, *args)

    async def next(self) -> Any:
        """Return the next row; `END` after the last."""
        return await self.fetch(_advanced if self.held.is_async else next, self.raw, END)

    def stream(self, query: Any, params: Any, **extra: Any) -> Steps:
        """Return the rows of *query*, one by one as they come."""
        text = self.text(query, params)
        return Steps(self.held, "stream()", text, lambda: self.raw.stream(query, params, **extra))

    async def close(self) -> None:
        """Close it."""
        await _plainly(self.held, self.raw.close)


class HeldServerCursor(HeldCursor):
    """A cursor on the server: its rows are asked for in steps, and it lives until its transaction ends."""

    def __init__(self, held: Held, raw: Any) -> None:
        super().__init__(held, raw)
        self.given_up = False
        self._query: str | None = None
        self._at_hand = 0
        held.session.touch(Touch.SETTINGS)

    async def execute(self, query: Any, params: Any, **extra: Any) -> None:
        """Declare it for a query."""
        text = self.text(query, params)
        self._at_hand = 0
        await self.held.run(text, self.raw.execute, query, params, **extra)
        self._query = text

    async def fetch(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call one of the driver's methods that ask for rows, or move."""
        declared = self._query is not None
        return await self.held.run(self._query or "FETCH ALL FROM c", fn, *args, begins=not declared)

    async def next(self) -> Any:
        """Return the next row; `END` after the last. Rows that came with an earlier one cost no way through the session."""
        raw, is_async = self.raw, self.held.is_async
        if self._at_hand > 0:
            _ = self.held.line
            self._at_hand -= 1
            return await anext(raw, END) if is_async else next(raw, END)
        row = await self.fetch(_advanced if is_async else next, raw, END)
        self._at_hand = raw.itersize - 1
        return row

    async def close(self) -> None:
        """Close it on the server, too, unless it has gone already."""
        held, raw = self.held, self.raw
        if held.session.over:
            self.given_up = True
        elif held.session.closed:
            await _plainly(held, raw.close)
        else:
            line = held.line
            await held.free()
            await held.do(lambda: line.run(raw.close), Stake.READ)


async def _advanced(rows: Any, end: Any) -> Any:
    return await anext(rows, end)


class Steps:
    """Something that the driver hands out one by one while it has the connection for itself.

    what: its name for the application. text: what it sends; empty: it sends nothing.
    limit: seconds for each step; None: what the guard gives a call.
    """

    def __init__(
        self, held: Held, what: str, text: str, make: Callable[[], Any], *, limit: float | None = None
    ) -> None:
        self._held = held
        self._what = what
        self._text = text
        self._make = make
        self._limit = limit
        self._stake = Stake.READ
        self._own = False
        self._rows: Any = None
        self._gathering: Gathering | None = None

    async def next(self) -> Any:
        """Return the next one; `END` after the last."""
        held = self._held
        line = held.line
        if self._rows is None:
            await self._begin()
        if self._gathering is not None:
            row = await self._gathering.next(self._stake)
        else:
            advance, rows = _advanced if held.is_async else next, self._rows
            row = await held.do(lambda: line.run(advance, rows, END), self._stake, self._limit)
        if row is END:
            own, self._own = self._own, False
            await self.close()
            if own:
                await held.end()
        return row

    async def _begin(self) -> None:
        """Begin a transaction, as psycopg would, and in autocommit for a write: what ends it comes in a step of its own."""
        held = self._held
        await held.free()
        if self._text:
            if not held.autocommit:
                await held.begin()
            self._stake, whole, _ = held.noted(self._text)
            if not whole and held.autocommit:
                raise NotSupportedError(f"{self._what} is for statements that are one transaction by themselves")
            if held.writes_alone(self._stake):
                await held.begin_alone(self._text)
                self._own = True
        rows = self._rows = self._make()
        if self._text:
            one = (lambda: anext(rows, END)) if held.is_async else (lambda: next(rows, END))
            self._gathering = Gathering(held, one, lambda row: row is END)
        held.occupy(self._what)

    async def close(self) -> None:
        """End it: what the server still sends is cancelled, and what was written by itself is rolled back."""
        held, rows = self._held, self._rows
        if rows is None:
            return
        self._rows = None
        close = rows.aclose if held.is_async else rows.close
        session = held.session
        try:
            if session.closed:
                held.finish()
                await _plainly(held, close)
            else:
                line = held.line
                await held.do(lambda: line.run(close), Stake.READ)
        finally:
            held.vacate()
            own, self._own = self._own, False
            if own and not session.closed:
                await held.give_up(held.undo)


async def _plainly(held: Held, fn: Callable[..., Any], *args: Any) -> Any:
    """Call the driver's *fn*, which does not wait for the server."""
    value = fn(*args)
    return await value if held.is_async else value


class HeldCopy:
    """A COPY. raw: the driver's own object for it. In autocommit, what it writes is committed in a step of its own."""

    def __init__(self, cursor: HeldCursor, statement: Any, params: Any, writer: Any) -> None:
        self._held = cursor.held
        self._text = cursor.text(statement, params)
        self._block = cursor.raw.copy(statement, params, writer=writer)
        self._stake = Stake.READ
        self._own = False
        self._gathering: Gathering | None = None
        self.raw: Any = None

    async def enter(self) -> None:
        """Send the COPY."""
        held, block = self._held, self._block
        line = held.line
        await held.free()
        if not held.autocommit:
            await held.begin()
        self._stake, _, _ = held.noted(self._text)
        if held.writes_alone(self._stake):
            await held.begin_alone(self._text)
            self._own = True
        held.occupy("copy()")
        try:
            opened = block.__aenter__ if held.is_async else block.__enter__
            self.raw = await held.do(lambda: line.run(opened), self._stake)
        except BaseException as error:
            held.vacate()
            await self._end(error)
            raise

    async def step(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Read or write a part of it, or end it."""
        line = self._held.line
        return await self._held.do(lambda: line.run(fn, *args), self._stake)

    async def read(self) -> Any:
        """Return the next piece of data; empty after the last."""
        if self._gathering is None:
            self._gathering = Gathering(self._held, self.raw.read, lambda data: not data)
        return await self._gathering.next(self._stake)

    async def read_row(self) -> tuple[Any, ...] | None:
        """Return the next row; None after the last."""
        data = await self.read()
        row: tuple[Any, ...] | None = self.raw.formatter.parse_row(data) if data else None
        if row is None and data:
            await self.read()  # behind the trailer of the binary format comes the end
        return row

    async def write(self, data: Any) -> None:
        """Write data that was formatted."""
        if data:
            line = self._held.line
            await self._held.session.do(lambda: self._put(line, data), self._stake)

    async def _put(self, line: Any, data: Any) -> None:
        await line.run(self.raw.writer.write, data)
        if line.is_closed():
            raise ended()  # libpq takes what it cannot send any more, and says nothing of it

    async def leave(self, error: BaseException | None) -> None:
        """End it: with all that was written, or with nothing because of *error*."""
        try:
            await self._finish(error)
        except BaseException as late:
            self._held.vacate()
            await self._end(late)
            raise
        self._held.vacate()
        await self._end(error)

    async def _finish(self, error: BaseException | None) -> None:
        held, block = self._held, self._block
        session = held.session
        leave = block.__aexit__ if held.is_async else block.__exit__
        if session.over:
            raise released()
        if error is None:
            await self.step(leave, None, None, None)
            return
        why = (type(error), error, error.__traceback__)
        if not isinstance(error, Exception) and not session.closed:
            held.line.terminate()
        if session.closed:
            held.finish()
            await _plainly(held, leave, *why)
        else:
            line = held.line
            await held.do(lambda: line.run(leave, *why), Stake.READ)

    async def _end(self, error: BaseException | None) -> None:
        """End the transaction around it, if it is its own."""
        held = self._held
        own, self._own = self._own, False
        if own and error is None:
            await held.end()
        elif own and error is not None:
            await held.abandon(error, held.undo)
