"""One run: a seed, or a schedule, from beginning to end."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from dbguard.core.breaker import BreakerPolicy
from dbguard.core.gate import Gate
from dbguard.core.merge import Topology
from dbguard.core.retry import RetryPolicy
from dbguard.core.router import ReadPolicy
from dbguard.core.state import GuardState
from dbguard.core.topology import Sighting
from dbguard.events import PrimaryChanged, WriteMayBeLost
from dbguard.testing.clock import ClockLoop, ManualClock
from dbguard.testing.simulation.agenda import Agenda
from dbguard.testing.simulation.clients import Client, Context
from dbguard.testing.simulation.defects import DEFECTS
from dbguard.testing.simulation.driver import LoopAgenda
from dbguard.testing.simulation.engine import EngineClient, EngineGuard, run_process
from dbguard.testing.simulation.guard import SimulatedGuard
from dbguard.testing.simulation.judge import Judge, Violation
from dbguard.testing.simulation.monitor import SimulatedMonitor
from dbguard.testing.simulation.schedule import LASTS, Schedule, draw
from dbguard.testing.simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbguard.core.topology import Changes, Missed
    from dbguard.events import Event
    from dbguard.testing.simulation.guard import Waits

__all__ = ["Run", "simulate"]

SETTLED = 3.0
"""Seconds after the healing at which every call has to succeed again."""

ENDED = 40.0
"""Seconds after which every call has ended, whatever happened."""


@dataclass(frozen=True, slots=True)
class Run:
    """What happened in one run.

    violations: the promises that were broken. history: every step of every call and every event, in order of time.
    calls, failed, repeats, unknown: of the clients. promotions, faults: of the world. happened: events of the agenda.
    unprovable: stale reads that nobody could have known to be stale (see `judge.Judge`).
    seconds: virtual ones.
    """

    schedule: Schedule
    violations: tuple[Violation, ...]
    history: tuple[str, ...]
    calls: int
    failed: int
    repeats: int
    unknown: int
    promotions: int
    faults: int
    unprovable: int
    happened: int
    seconds: float

    @property
    def digest(self) -> str:
        """Short, and the same for the same history alone."""
        return blake2b("\n".join(self.history).encode(), digest_size=8).hexdigest()


def simulate(
    what: int | Schedule, *, defect: str | None = None, fast: bool = True, trace: bool = False, engine: bool = False
) -> Run:
    """Run one seed or schedule.

    defect: a name in `defects.DEFECTS`: one rule of no harm is switched off, to see that the judge notices.
    fast: the first attempt of a call is made without a plan; the history is the same either way.
    trace: keep the history; without it only the violations are kept.
    engine: run dbguard's own runtime on an event loop, not the simulation's; slower, and calls are cancelled too.
    """
    run = _simulate(what if isinstance(what, Schedule) else draw(what), defect, fast=fast, trace=trace, engine=engine)
    if not isinstance(what, Schedule) and (run.calls < 50 or run.promotions < 1 or run.faults < 3):
        thin = f"{run.calls} calls, {run.promotions} promotions, {run.faults} other faults are not a seed's worth"
        return replace(run, violations=(*run.violations, Violation("thin", run.seconds, thin)))
    return run


def _simulate(schedule: Schedule, defect: str | None, *, fast: bool, trace: bool, engine: bool) -> Run:
    broken = DEFECTS[defect] if defect is not None else None
    kind = broken.state if broken is not None and broken.state else GuardState
    with broken.patch() if broken is not None and broken.patch is not None else nullcontext():
        if not engine:
            stage = _Stage(schedule, Agenda(), kind, trace=trace)
            _run_simulated(stage, fast=fast)
            return stage.end()
        loop = ClockLoop(ManualClock())
        try:
            stage = _Stage(schedule, LoopAgenda(loop), kind, trace=trace)
            loop.run_until_complete(_run_engine(stage, fast=fast))
            return stage.end()
        finally:
            loop.close()


class _Watched(Topology):
    """The guard's memory of the cluster; the judge reads along what it is told."""

    def __init__(self, names: Sequence[str], judge: Judge, *, new_mark: Callable[[], str]) -> None:
        super().__init__(names, new_mark=new_mark)
        self._judge_of_it = judge

    def merge(self, results: Sequence[Sighting | Missed], now: float, *, full: bool) -> Changes:
        """Take in what probes and calls said."""
        for result in results:
            if isinstance(result, Sighting):
                self._judge_of_it.sees(result)
        changes = super().merge(results, now, full=full)
        reign = self.view.reign
        for result in results:
            if reign is None or not isinstance(result, Sighting) or self.view.primary != result.node:
                continue
            if self._nodes[result.node].claim is result:
                self._judge_of_it.bounds(result, reign)
        return changes


class _Stage:
    """What both engines run on: the world, the state, the judge, and what is written down."""

    def __init__(self, schedule: Schedule, agenda: Any, kind: type[GuardState], *, trace: bool) -> None:
        self.schedule = schedule
        self.agenda = agenda
        self.began: float = agenda.now
        self.history: list[str] = []
        self._trace = trace
        self.chance = Random(schedule.seed)  # noqa: S311  a simulation, not a secret
        self.world = World(schedule, agenda, self.rng(), self.tell)
        self.jitter = self.rng()
        self.clients: list[Client] = []
        marks = count(1)
        retry = RetryPolicy(budget=schedule.budget, floor=schedule.floor, wait=self._wait)
        self.judge = Judge(retry, self.world.servers)
        self.state = kind(
            _Watched(list(self.world.links), self.judge, new_mark=lambda: f"{next(marks):032x}"),
            clock=agenda.clock,
            rng=self.jitter,
            retry=retry,
            breaker=BreakerPolicy(),
            gate=Gate(),
            reads=ReadPolicy(),
        )
        self.world.applied = self.judge.applied
        self.judge.marked = lambda: self.state.view.reign is not None and self.state.view.reign.agreed is not None
        self.world.accepted = lambda: self.judge.watches(self.state.view)

    def rng(self) -> Random:
        """Return another source of chance."""
        return Random(self.chance.random())  # noqa: S311  a simulation, not a secret

    def _wait(self, asked: Any) -> float:
        """Seconds to back off: full jitter, from chance that is seeded."""
        return 0.002 + min(0.5, 0.02 * 2**asked.attempt_number) * self.jitter.random()  # type: ignore[no-any-return]  # tenacity counts in whole numbers

    def write(self, at: float, what: str) -> None:
        """Write one line of the history."""
        if self._trace:
            self.history.append(f"{at - self.began:8.4f}  {what}")

    def tell(self, what: str) -> None:
        """Something happened in the world."""
        self.write(self.agenda.now, what)

    def tell_call(self, number: int, what: str) -> None:
        """Something happened in a call."""
        if self._trace:
            self.write(self.agenda.now, f"call {number}: {what}")

    def listen(self, event: Event) -> None:
        """The guard told of something."""
        if isinstance(event, WriteMayBeLost):
            self.judge.alarms(event.at)
        if isinstance(event, PrimaryChanged):
            self.judge.succeeds(self.state.view, event.at)
        if self._trace:
            self.write(event.at, f"guard: {event.text()}")

    def engage(self, kind: type[Client], guard: Any) -> None:
        """Make the clients."""
        shared, numbers = Context(), count(1)
        self.clients = [
            kind(
                "uvwxyzst"[place],
                guard,
                self.world,
                self.judge,
                self.rng(),
                shared if place < self.schedule.shared else Context(),
                count=lambda: next(numbers),
                tell=self.tell_call,
            )
            for place in range(self.schedule.clients)
        ]

    def processes(self) -> list[Any]:
        """Return what the clients do."""
        settled = self.began + LASTS + SETTLED
        return [
            self._last_one_ends_it(client.run(self.schedule.calls, LASTS + 0.5, settled)) for client in self.clients
        ]

    def _last_one_ends_it(self, process: Waits) -> Waits:
        yield from process
        self.agenda.over = all(client.over for client in self.clients)

    def end(self) -> Run:
        """Let the judge have the last word."""
        now = self.agenda.now
        for client in self.clients:
            if not client.over:
                self.judge.break_("unended", now, f"client {client.name} waits for ever")
        self.judge.finish(self.world.truth, now, lossless=self.world.lossless)
        return Run(
            schedule=self.schedule,
            violations=tuple(self.judge.violations),
            history=tuple(sorted(self.history, key=_time_of)),
            calls=sum(client.calls for client in self.clients),
            failed=sum(client.failed for client in self.clients),
            repeats=self.state.counts["repeats"],
            unknown=self.state.counts["unknown"],
            promotions=self.world.promotions,
            faults=self.world.faults,
            unprovable=self.judge.unprovable,
            happened=self.agenda.happened,
            seconds=now - self.began,
        )


def _time_of(line: str) -> float:
    return float(line[:8])


def _run_simulated(stage: _Stage, *, fast: bool) -> None:
    """Run on the simulation's own engine."""
    agenda, schedule = stage.agenda, stage.schedule
    guard = SimulatedGuard(
        stage.state,
        stage.world.links,
        agenda,
        stage.judge,
        size=schedule.size,
        tokens=schedule.tokens,
        fast=fast,
        listen=stage.listen,
        tell=stage.tell_call,
    )
    stage.engage(Client, guard)
    agenda.spawn(SimulatedMonitor(guard, stage.world.links).run())
    for process in stage.processes():
        agenda.spawn(process)
    stage.world.schedule(schedule.faults, LASTS)
    agenda.run(stage.began + ENDED)
    for left in guard.leftovers():
        stage.judge.break_("unended", agenda.now, f"{left} left out at the end")


async def _run_engine(stage: _Stage, *, fast: bool) -> None:
    """Run on dbguard's own engine."""
    guard = EngineGuard(
        stage.state,
        stage.world,
        stage.agenda,
        stage.judge,
        Random(-1 - stage.schedule.seed),  # noqa: S311  its own, so that the clients are the same with either engine
        size=stage.schedule.size,
        tokens=stage.schedule.tokens,
        fast=fast,
        calm_at=stage.began + LASTS,
        listen=stage.listen,
        tell=stage.tell_call,
    )
    stage.engage(EngineClient, guard)
    guard.open()
    tasks = [asyncio.ensure_future(run_process(process)) for process in stage.processes()]
    stage.world.schedule(stage.schedule.faults, LASTS)
    _, late = await asyncio.wait(tasks, timeout=ENDED)
    for task in late:
        task.cancel()
    for task in tasks:
        if task.done():
            task.result()
    await guard.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        stage.judge.break_("unended", stage.agenda.now, f"{task.get_name()} still runs at the end: {task.get_coro()}")
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
