"""The real runtime in the simulation: engine, attempts, waiting room, monitor, own pools and transactions of dbguard.

Everything but the driver is what an application runs, on an event loop whose time is a manual clock; the driver is
`driver`. It is slower than the simulation's own engine, and covers what that one only imitates. Now and then a call is
cancelled, which must leave nothing behind.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from dbguard.blocks import Function
from dbguard.calls import AsyncpgDialect
from dbguard.core.outcome import RESERVE
from dbguard.core.statement import Token, Touch
from dbguard.drivers.asyncpg.driver import Asyncpg
from dbguard.drivers.asyncpg.outcome import CarriedTokens
from dbguard.drivers.asyncpg.pool import OwnPool
from dbguard.drivers.asyncpg.sending import Sender
from dbguard.drivers.base import WrongNode
from dbguard.drivers.control import OwnControl
from dbguard.drivers.marks import Marks
from dbguard.drivers.registry import Registry
from dbguard.errors import DbGuardError
from dbguard.jobs import Run, Written
from dbguard.runtime.engine import Engine
from dbguard.runtime.monitor import Monitor, Pace
from dbguard.runtime.resolve import resolve
from dbguard.testing.simulation.clients import Client
from dbguard.testing.simulation.driver import CHANGE, READ, WRITE, Dial, LoopAgenda, SimulatedPool
from dbguard.testing.simulation.guard import ACQUIRE_TIMEOUT, DRAIN_TIMEOUT
from dbguard.texts import Texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.connection import Connection
    from dbguard.core.plan import Call
    from dbguard.core.state import GuardState
    from dbguard.core.topology import Sighting
    from dbguard.events import Event
    from dbguard.runtime.attempt import Job
    from dbguard.testing.simulation.guard import Waits
    from dbguard.testing.simulation.judge import Judge
    from dbguard.testing.simulation.world import World

__all__ = ["EngineClient", "EngineGuard", "run_process"]

CANCELLED = 0.1
"""Share of calls that are cancelled."""


class EngineGuard:
    """The engine over a simulated world, where the clients expect a guard. From *calm_at* on nothing is cancelled."""

    def __init__(
        self,
        state: GuardState,
        world: World,
        agenda: LoopAgenda,
        judge: Judge,
        rng: Random,
        *,
        size: int,
        tokens: bool,
        fast: bool,
        calm_at: float,
        listen: Callable[[Event], None],
        tell: Callable[[int, str], None],
    ) -> None:
        self.state = state
        self.agenda = agenda
        self.judge = judge
        self.tokens = tokens
        self.tokens_of_writes = CarriedTokens(
            reserve=RESERVE,
            keep_result=False,
            clock=agenda.clock,
            say=_unheard,
            wall=agenda.clock,
            chance=rng.getrandbits,
        )
        self.texts = Texts()
        self._rng = rng
        self._calm_at = calm_at
        self._tell = tell
        numbers = count(1)
        dials = {name: Dial(link, lambda: next(numbers), world, judge, state) for name, link in world.links.items()}
        self.pools = {
            name: OwnPool(
                state.nodes[name],
                SimulatedPool,  # type: ignore[arg-type]  # as much of asyncpg's as is used
                clock=agenda.clock,
                size=size,
                keep=0,
                hold=size,
                max_lifetime=3_600.0,
                max_idle=300.0,
                max_uses=float("inf"),
                dial=dial,
                check=self._check,
                ask_within=1.0,
                rng=state.rng,
            )
            for name, dial in dials.items()
        }
        self.registries = {
            name: Registry(name, dial, self._check_claim, clock=agenda.clock) for name, dial in dials.items()
        }
        self.engine = Engine(
            state,
            self.pools,
            Asyncpg(),
            acquire_timeout=ACQUIRE_TIMEOUT,
            drain_timeout=DRAIN_TIMEOUT,
            registries=self.registries,
        )
        self.engine.fast = fast
        self.engine.listeners.append(listen)
        controls = {
            name: OwnControl(name, dial, clock=agenda.clock, marks=Marks(clock=agenda.clock) if tokens else None)
            for name, dial in dials.items()
        }
        pace = Pace(interval=0.5, jitter=0.2, limit=0.5, urgent=0.025)
        self.monitor = Monitor(self.engine, controls, pace, keeps_marks=tokens)

    def _check(self, seen: Sighting) -> None:
        self._heed(self.state.met(seen))

    def _check_claim(self, seen: Sighting) -> None:
        self._heed(self.state.met_to_claim(seen))

    def _heed(self, refusal: str | None) -> None:
        self.engine.flush()
        if refusal is not None:
            raise WrongNode(refusal)

    def open(self) -> None:
        """Begin."""
        self.engine.closed = False
        self.engine.flights.start()
        self.monitor.start()

    async def close(self) -> None:
        """End, and tell the judge what is left."""
        await self.monitor.stop()
        engine, now = self.engine, self.agenda.now
        left = [f"{len(pool.out)} leases of {name}" for name, pool in self.pools.items() if pool.out]
        left += [
            f"load {pool.node.load.in_use} of {name}" for name, pool in self.pools.items() if pool.node.load.in_use
        ]
        left += [f"{len(engine.room)} calls at the gate"] if len(engine.room) else []
        for what in left:
            self.judge.break_("unended", now, f"{what} left out at the end")
        for registry in self.registries.values():
            registry.close()
        for pool in self.pools.values():
            await pool.close(1.0)
        engine.flights.stop()
        engine.closed = True
        await asyncio.sleep(0.1)  # a connection on its way back into a pool that closes is waited for by nobody

    def call(self, number: int, call: Call, make: Callable[[Call], Job]) -> Waits:
        """Make one call in a task of its own; now and then it is cancelled on its way."""
        self.judge.begins(self.agenda.now)
        task = asyncio.ensure_future(self.engine.call(call, make(call)))
        if self._rng.random() < CANCELLED and self.agenda.now < self._calm_at:
            self.agenda.after(
                0.01 * self._rng.random() if self._rng.random() < 0.7 else 0.5, self._cancel, task, number
            )
        return (yield from self._wait(task))

    def resolve(self, token: str, until: float) -> Waits:
        """Ask what became of a write, as `Guard.resolve` does."""
        return (yield from self._wait(asyncio.ensure_future(resolve(self.engine, UUID(token), until, None))))

    def _wait(self, task: asyncio.Future[Any]) -> Waits:
        signal: Any = self.agenda.signal()
        task.add_done_callback(lambda _: signal.wake())
        yield signal
        return task.result()

    def _cancel(self, task: asyncio.Task[Any], number: int) -> None:
        if task.cancel():
            self._tell(number, "is cancelled")


class EngineClient(Client):
    """A client whose jobs are those of dbguard's facade."""

    guard: Any
    raises = (Exception, asyncio.CancelledError)
    known = (DbGuardError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncio.CancelledError)

    def _read(self, expected: tuple[str, ...]) -> Any:
        return lambda _: Run("fetch", (READ, expected), {}, Touch.NOTHING, writes=False)

    def _write(self, value: str, key: str | None) -> Any:
        run = Run("execute", (WRITE, value, key), {}, Touch.SETTINGS, writes=True)
        if not self.guard.tokens:
            return lambda _: run
        tokens: CarriedTokens = self.guard.tokens_of_writes
        args = value, key
        return lambda call: Written(
            run, Sender(tokens, call, WRITE, Token.CTE, rows=False, plain=True, method="execute", args=args, extra={})
        )

    def _resolve(self, token: str, until: float) -> Waits:
        return (yield from self.guard.resolve(token, until))

    def _transaction(self, value: str, key: str | None) -> Any:
        idle = self._idle()

        async def change(tx: Connection) -> None:
            await tx.execute(CHANGE, value, key)
            await asyncio.sleep(idle)

        begin = {"isolation": None, "readonly": False, "deferrable": False}
        guard = self.guard
        tokens = guard.tokens_of_writes if guard.tokens else None
        return lambda call: Function(AsyncpgDialect(), guard.engine, guard.texts, call, change, begin, tokens)


def _unheard(why: str) -> None:
    raise AssertionError(f"writes went without tokens: {why}")


async def run_process(process: Waits) -> None:
    """Run a process of the simulation as a task."""
    value: Any = None
    try:
        while True:
            signal: Any = process.send(value)
            value = await signal.future
    except StopIteration:
        return
