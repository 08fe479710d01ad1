"""One attempt on asyncio: acquire, run, name the failure, settle, give back.

The only place where a lease is taken, given back or ended, and where an interruption is met. On a time-out or a
cancellation the first thing done, before any await, is to terminate the connection: it keeps the driver from sending a
cancel request, which would end a commit's wait for its standby, and it wakes whoever waits on the connection.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from dbguard.core.causal import Orphan
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.plan import Done
from dbguard.core.retry import Stake
from dbguard.core.statement import Touch

if TYPE_CHECKING:
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
    """

    touched: Touch
    keeps: bool

    async def run(self, lease: Any, timeout: float | None) -> Any:
        """Do the work within *timeout* seconds, None: no limit; raises what the driver raises."""


async def attempt(engine: Engine, call: Call, name: str, job: Job) -> Done | Failure:
    """Make one attempt of *call* on the node *name*. A cancellation is passed on, with nothing left out."""
    state = engine.state
    clock = state.clock
    node = state.nodes[name]
    pool = engine.pools[name]
    generation = node.breaker.generation
    began = clock()
    lease = pool.take_now()
    if lease is None:
        try:
            lease = await pool.take(max(0.0, min(call.deadline - began, engine.acquire_timeout)))
        except Exception as error:  # noqa: BLE001  whatever a dial or a hook raises is named, and judged by the plan
            failure = engine.driver.name_dial(error, name)
            _spend(call, "acquire", clock() - began)
            state.failed(failure, generation)
            engine.flush()
            return failure
    taken = clock()
    if taken - began > 0.001:
        _spend(call, "acquire", taken - began)
    reign = state.view.reign
    unsent = lease.con.is_closed()
    try:
        value = await job.run(lease, None if call.deadline == inf else max(0.001, call.deadline - taken))
    except Application as own:
        pool.give(lease, job.touched)
        raise own.cause from own.cause.__cause__
    except BaseException as error:
        closed = lease.con.is_closed()
        if not closed and (isinstance(error, TimeoutError) or not isinstance(error, Exception)):
            lease.con.terminate()
        _spend(call, "execute", clock() - taken)
        failure = name_failed(engine, call, node, lease, error, reign, unsent=unsent, closed=closed)
        pool.give(lease, Touch.LOST if failure.phase is Phase.SENT else job.touched)
        if not isinstance(error, Exception):
            raise
        if call.reads and failure.family is Family.ROLE and node is not state.primary:
            state.misread(call, failure)
        else:
            state.failed(failure, generation)
        engine.flush()
        return failure
    _spend(call, "execute", clock() - taken)
    if call.work.stake is not Stake.READ:
        call.box.wrote(reign, clock())
    if not job.keeps:
        pool.give(lease, job.touched)
    state.succeeded(node)
    return Done(value)


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
    call.box.wrote(reign, state.clock())
    if failure.phase is Phase.SENT and lease.con.is_closed():
        pid, started = lease.backend
        sent = stake is not Stake.TRANSACTION
        orphan = Orphan(node=node.name, pid=pid, started=started, doomed=not sent)
        engine.orphaned(orphan)
        if sent:
            call.box.pin(orphan)
    return failure


def _spend(call: Call, what: str, seconds: float) -> None:
    call.spent[what] = call.spent.get(what, 0.0) + seconds
