"""One attempt: acquire, run, name the failure, settle, give back; on both colours (`dbguard.runtime.colour`).

The only place where a lease is taken, given back or ended, and where an interruption is met. On a time-out or a
cancellation the first thing done, before any await, is to terminate the connection: it keeps the driver from sending a
cancel request, which would end a commit's wait for its standby, and it wakes whoever waits on the connection.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from dbguard.core.causal import Orphan
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.outcome import commit_until
from dbguard.core.plan import Done
from dbguard.core.retry import READ, Stake
from dbguard.core.statement import Touch
from dbguard.runtime.flights import Flight

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dbguard.core.plan import Call
    from dbguard.core.route import Node
    from dbguard.core.topology import Reign
    from dbguard.drivers.base import Lease
    from dbguard.runtime.engine import Engine

__all__ = ["Application", "Job", "attempt", "name_failed"]


class Application(Exception):
    """Carries an exception of the application's own code out of an attempt: it is raised as it is, never judged."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


class Job(Protocol):
    """What one call does with a lease.

    touched: what it may leave on the session when it succeeds.
    keeps: the lease stays out when it succeeds (an acquired connection, a transaction block).
    cancels: the application's own code runs in it, so that ending it in time takes more than ending the connection.
    commits: it ends in a commit whose fate can be asked, for which it leaves the call's reserve.
    """

    touched: Touch
    keeps: bool
    cancels: bool
    commits: bool

    def run(self, lease: Any) -> Awaitable[Any]:
        """Do the work; raises what the driver raises. Its time is watched by the sweep."""


async def attempt(engine: Engine, call: Call, node: Node, job: Job) -> Done | Failure:
    """Make one attempt of *call* on *node*. A cancellation is passed on, with nothing left out."""
    state = engine.state
    clock = state.clock
    pool = engine.pools[node.name]
    generation = node.breaker.generation
    began = clock()
    lease = pool.take_now()
    # Who makes it is looked up only where the sweep may have to cancel it: a lease is ended without.
    task = engine.task() if lease is None or job.cancels else None
    flight = Flight(call.deadline, task, job.cancels, node.name, lease)
    engine.flights.add(flight)
    unsent = False
    if lease is None:
        until = flight.deadline = min(call.deadline, began + engine.acquire_timeout)
        epoch = node.epoch
        try:
            lease = await pool.take()
        except BaseException as error:
            engine.flights.remove(flight)
            said = None
            if until < call.deadline:
                said = f"no connection within {engine.acquire_timeout:g} s (pool.acquire_timeout)"
            late = _late(flight, error, said)
            if late is None:
                raise
            failure = engine.driver.name_dial(late, node.name, full=pool.full)
            if flight.dismissed:
                failure = replace(failure, ours=True)
            elif flight.over and until == call.deadline and failure.family is Family.HARD:
                # The caller had less time than a connection may take: that is no word about the node.
                failure = replace(failure, family=Family.SOFT)
            _spend(call, "acquire", clock() - began)
            state.failed(failure, generation)
            engine.flush()
            return failure
        taken = clock()
        call.spent["acquire"] = call.spent.get("acquire", 0.0) + taken - began
        began = taken
        overtaken = state.overtaken(call, node, epoch)
        if overtaken is not None:
            engine.flights.remove(flight)
            pool.give(lease, Touch.NOTHING)
            return overtaken
        flight.lease = lease
        unsent = lease.con.is_closed()
        if flight.over and not unsent:  # a thread is not interrupted in the middle of anything
            lease.end()
            unsent = True
        flight.deadline = call.deadline
    if job.commits:
        flight.deadline = commit_until(call.deadline, clock(), call.reserve)
    reign = state.view.reign
    text = call.text
    if text is not None and text.doubtful:
        call.work = replace(call.work, stake=Stake.WRITE if node is state.primary else Stake.READ)
    call.sent = began
    try:
        value = await job.run(lease)
        if job.keeps and flight.over:
            raise TimeoutError  # noqa: TRY301  it came as its time ended: what would be kept is closed
    except Application as own:
        engine.flights.remove(flight)
        pool.give(lease, job.touched)
        raise own.cause from own.cause.__cause__
    except BaseException as error:
        closed = lease.con.is_closed()
        if not closed and (isinstance(error, TimeoutError) or not isinstance(error, Exception)):
            lease.con.terminate()
        late = _late(flight, error)
        _spend(call, "execute", clock() - began)
        failure = name_failed(engine, call, node, lease, late or error, reign, unsent=unsent, closed=closed)
        engine.flights.remove(flight)
        pool.give(lease, Touch.LOST if failure.phase is Phase.SENT else job.touched)
        if late is None:
            raise
        if call.reads and failure.family is Family.ROLE and node is not state.primary:
            state.misread(call, failure)
        else:
            state.failed(failure, generation)
        engine.flush()
        return failure
    finally:
        engine.flights.remove(flight)
        if flight.over:
            flight.absorb()
    # What was not known to be a read and went to a replica by its caller's word has written nothing there.
    stake = call.work.stake
    if stake is not READ and not (call.reads and engine.driver.in_standby(lease)):
        state.wrote(call.box, reign, acknowledged=stake is not Stake.TRANSACTION)
    state.succeeded(node, generation)
    if not job.keeps:
        settling = pool.settle(lease, job.touched)
        if settling is not None:
            # The value is there: at the deadline, or where the node is lost, the lease is ended, and the call returns it.
            flight.deadline, flight.cancels = min(call.deadline, clock() + pool.return_within), False
            flight.settling = True
            engine.flights.add(flight)
            try:
                hand_on = await settling
            finally:
                engine.flights.remove(flight)
            if hand_on is not None:
                hand_on()
    return Done(value)


def _late(flight: Flight, error: BaseException, said: str | None = None) -> Exception | None:
    """Return the exception to judge: a `TimeoutError` where our own sweep ended the attempt; None: pass it on.

    said: whose time it was; None: the call's.
    """
    if not flight.over:
        return error if isinstance(error, Exception) else None
    ours = flight.absorb()
    if isinstance(error, asyncio.CancelledError) and not ours:
        return None
    if isinstance(error, Exception | asyncio.CancelledError):
        late = (
            ConnectionAbortedError("the node is gone")
            if flight.dismissed
            else TimeoutError(said or "the call's time was up")
        )
        late.__cause__ = error if isinstance(error, Exception) else None
        return late
    return None


def name_failed(
    engine: Engine,
    call: Call,
    node: Node,
    lease: Lease,
    error: BaseException,
    reign: Reign | None,
    *,
    unsent: bool,
    closed: bool,
) -> Failure:
    """Name the failure of a leased connection, and stamp the context's box; the lease stays where it is."""
    state = engine.state
    failure = engine.driver.name_failure(error, node.name, lease, unsent=unsent, closed=closed)
    stake = call.work.stake
    if stake is Stake.READ or failure.phase is Phase.UNSENT:
        return failure
    state.wrote(call.box, reign)
    if failure.phase is Phase.SENT and lease.con.is_closed():
        pid, started = lease.backend
        sent = stake is not Stake.TRANSACTION
        orphan = Orphan(node=node.name, instance=lease.instance, pid=pid, started=started, reign=reign, doomed=not sent)
        engine.orphaned(orphan)
        if sent:
            state.pin(call.box, orphan)
            call.orphan = orphan
    return failure


def _spend(call: Call, what: str, seconds: float) -> None:
    call.spent[what] = call.spent.get(what, 0.0) + seconds
