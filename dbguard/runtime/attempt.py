"""One attempt on asyncio: acquire, run, name the failure, settle, give back.

The only place where a lease is taken, given back or ended, and where an interruption is met. On a time-out or a
cancellation the first thing done, before any await, is to terminate the connection: it keeps the driver from sending a
cancel request, which would end a commit's wait for its standby, and it wakes whoever waits on the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dbguard.core.causal import Orphan
from dbguard.core.classify import Touch
from dbguard.core.failure import Failure, Phase
from dbguard.core.plan import Done
from dbguard.core.retry import Stake

if TYPE_CHECKING:
    from dbguard.core.plan import Call
    from dbguard.core.route import Node
    from dbguard.drivers.base import Lease
    from dbguard.runtime.engine import Engine

__all__ = ["Job", "attempt", "settle_failure"]


class Job(Protocol):
    """What one call does with a lease.

    touched: what it may leave on the session when it succeeds.
    keeps: the lease stays out when it succeeds (an acquired connection, a transaction block).
    """

    touched: Touch
    keeps: bool

    async def run(self, lease: Any, timeout: float) -> Any:  # noqa: ASYNC109  handed to the driver
        """Do the work within *timeout* seconds; raises what the driver raises."""


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
        value = await job.run(lease, max(0.0, min(call.deadline - taken, engine.attempt_timeout)))
    except BaseException as error:
        closed = lease.con.is_closed()
        if not closed and (isinstance(error, TimeoutError) or not isinstance(error, Exception)):
            lease.con.terminate()
        _spend(call, "execute", clock() - taken)
        failure = settle_failure(engine, call, node, lease, error, reign, unsent=unsent, closed=closed)
        if not isinstance(error, Exception):
            raise
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


def settle_failure(
    engine: Engine,
    call: Call,
    node: Node,
    lease: Lease,
    error: BaseException,
    reign: Any,
    *,
    unsent: bool,
    closed: bool,
) -> Failure:
    """Name the failure of a leased connection, stamp the context's box, and give the lease back."""
    state = engine.state
    failure = engine.driver.name_failure(error, node.name, lease, unsent=unsent, closed=closed)
    stake = call.work.stake
    if stake is not Stake.READ and failure.phase is not Phase.UNSENT:
        call.box.wrote(reign, state.clock())
        if failure.phase is Phase.SENT and (failure.broken or lease.con.is_closed()):
            pid, started = lease.backend
            sent = stake in (Stake.WRITE, Stake.COMMIT)
            orphan = Orphan(node=node.name, pid=pid, started=started, doomed=not sent)
            engine.orphaned(orphan)
            if sent:
                call.box.pin(orphan)
    engine.pools[node.name].give(lease, Touch.LOST if failure.phase is Phase.SENT else Touch.SETTINGS)
    return failure


def _spend(call: Call, what: str, seconds: float) -> None:
    call.spent[what] = call.spent.get(what, 0.0) + seconds
