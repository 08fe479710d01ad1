"""Blocks: a connection in the application's hands, a transaction around it, a function that is run in one.

Each is one `Job` of the runtime, whichever driver and colour it is for; what differs is said by a `Dialect`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from dbguard.core.outcome import commit_until
from dbguard.core.plan import Done
from dbguard.core.retry import Stake, Work
from dbguard.core.statement import Touch
from dbguard.runtime.attempt import Application
from dbguard.runtime.flights import Flight
from dbguard.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.plan import Call
    from dbguard.drivers.tokens import Tokens
    from dbguard.errors import DbGuardError
    from dbguard.runtime.engine import Engine
    from dbguard.session import Session
    from dbguard.texts import Texts

__all__ = ["Checkout", "Dialect", "Function"]


class Dialect(Protocol):
    """What the facade of one driver and colour calls things."""

    @property
    def session(self) -> Callable[..., Session]:
        """What makes a session, with the arguments of `dbguard.session.Session`."""

    def dress(self, error: DbGuardError) -> DbGuardError:
        """Return dbguard's own error as one that the driver's users catch already."""

    def block(self, lease: Any, *, isolation: str | None, readonly: bool, deferrable: bool) -> Any:
        """Return a transaction on *lease* that has not begun: ``await`` its ``start``, ``commit`` or ``rollback``."""

    async def apply(self, fn: Callable[[Any], Any], session: Session, attempt: int) -> Any:
        """Run the application's *fn* with a connection of this dialect. *attempt* counts from 1.

        Raises what it raises; `TypeError` if it is no function of the right kind.
        """


class Checkout:
    """Take a connection out for the application; with *begin*, in a transaction.

    limit: seconds that each thing done on it may take, and whose limit that is.
    tokens: of the guard's writes; None: they carry none.
    """

    __slots__ = ("begin", "call", "dialect", "engine", "limit", "texts", "tokens", "touched")
    keeps = True
    cancels = False
    commits = False

    def __init__(
        self,
        dialect: Dialect,
        engine: Engine,
        texts: Texts,
        call: Call,
        limit: tuple[float, str],
        begin: dict[str, Any] | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self.dialect = dialect
        self.limit = limit
        self.tokens = tokens
        self.engine = engine
        self.texts = texts
        self.call = call
        self.begin = begin
        self.touched = Touch.NOTHING

    async def run(self, lease: Any) -> Any:
        """Return the connection and, with *begin*, its started transaction."""
        node = self.engine.state.nodes[lease.pool.node.name]
        session = self.dialect.session(
            self.engine, self.texts, self.call, node, lease, limit=self.limit, tokens=self.tokens
        )
        if self.begin is None:
            return session, None
        session.begins(read_only=self.begin["readonly"])
        inner = self.dialect.block(lease, **self.begin)
        await inner.start()
        return session, Transaction(session, inner)


class Function:
    """Run a whole transaction: BEGIN, the application's function, COMMIT."""

    __slots__ = ("begin", "call", "dialect", "engine", "made", "number", "texts", "tokens", "touched")
    keeps = False
    cancels = True
    commits = False

    def __init__(
        self,
        dialect: Dialect,
        engine: Engine,
        texts: Texts,
        call: Call,
        made: Callable[[Any], Any],
        begin: dict[str, Any],
        tokens: Tokens | None = None,
    ) -> None:
        self.dialect = dialect
        self.tokens = tokens
        self.engine = engine
        self.texts = texts
        self.call = call
        self.made = made
        self.begin = begin
        self.number = 0
        self.touched = Touch.NOTHING

    async def run(self, lease: Any) -> Any:
        """Run it once. An exception of the function's own ends it, rolled back, without another attempt."""
        call, driver = self.call, self.engine.driver
        stake = Stake.READ if self.begin["readonly"] else Stake.TRANSACTION
        call.work = Work(stake=stake, idempotent=call.work.idempotent)
        self.number += 1
        node = self.engine.state.nodes[lease.pool.node.name]
        left = max(0.001, call.deadline - self.engine.state.clock())
        session = self.dialect.session(
            self.engine, self.texts, call, node, lease, limit=(left, call.limit), within=True, tokens=self.tokens
        )
        session.begins(read_only=self.begin["readonly"])
        inner = self.dialect.block(lease, **self.begin)
        await inner.start()
        transaction = Transaction(session, inner)
        try:
            value = await self.dialect.apply(self.made, session, self.number)
        except BaseException as error:
            call.work = replace(call.work, one_transaction=session.whole)
            if not isinstance(error, Exception):
                raise
            # What the function raised was raised on a connection that lived: it is not to be taken for a lost one.
            alive = session.cut_off() and not driver.is_conflict(error)
            await transaction.abandon(error)
            if alive:
                raise Application(error) from error
            if driver.is_drivers(error) or (isinstance(error, TimeoutError) and session.closed):
                raise
            raise Application(error) from error
        finally:
            self.touched = lease.touched
            busy = session.cut_off()
            session.finish()
        if busy:
            raise Application(driver.cut_off())
        if session.failed:
            await inner.rollback()
            raise Application(driver.rolled_back())
        ending = ""
        if session.writes and not lease.con.is_closed():  # on a closed one, COMMIT cannot be sent any more
            call.work = Work(stake=Stake.COMMIT, one_transaction=session.whole, idempotent=call.work.idempotent)
            ending = session.ending()
            call.result = Done(value)
            call.sent = self.engine.state.clock()
        if not ending:
            await driver.commit(lease, inner)
            return value
        # What the commit leaves of the call's time is for asking what became of it.
        flights, now = self.engine.flights, self.engine.state.clock()
        flight = Flight(commit_until(call.deadline, now, call.reserve), None, cancels=False)
        flight.lease = lease
        flights.add(flight)
        try:
            await session.end(inner, ending)
        except Exception as error:
            if flight.over:
                raise TimeoutError("no answer in time") from error
            raise
        finally:
            flights.remove(flight)
        return value
