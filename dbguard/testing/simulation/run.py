"""One run: a seed, or a schedule, from beginning to end."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from dbguard.core.breaker import BreakerPolicy
from dbguard.core.gate import Gate
from dbguard.core.merge import Topology
from dbguard.core.retry import RetryPolicy
from dbguard.core.state import GuardState, ReadPolicy
from dbguard.events import PrimaryChanged
from dbguard.testing.simulation.agenda import Agenda
from dbguard.testing.simulation.clients import Client, Context
from dbguard.testing.simulation.defects import DEFECTS
from dbguard.testing.simulation.guard import SimulatedGuard
from dbguard.testing.simulation.judge import Judge, Violation
from dbguard.testing.simulation.monitor import SimulatedMonitor
from dbguard.testing.simulation.schedule import LASTS, Schedule, draw
from dbguard.testing.simulation.world import World

if TYPE_CHECKING:
    from dbguard.events import Event

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
    happened: int
    seconds: float

    @property
    def digest(self) -> str:
        """Short, and the same for the same history alone."""
        return blake2b("\n".join(self.history).encode(), digest_size=8).hexdigest()


def simulate(what: int | Schedule, *, defect: str | None = None, fast: bool = True, trace: bool = False) -> Run:
    """Run one seed or schedule.

    defect: a name in `defects.DEFECTS`: one rule of no harm is switched off, to see that the judge notices.
    fast: the first attempt of a call is made without a plan; the history is the same either way.
    trace: keep the history; without it only the violations are kept.
    """
    schedule = what if isinstance(what, Schedule) else draw(what)
    broken = DEFECTS[defect] if defect is not None else None
    with broken.patch() if broken is not None and broken.patch is not None else nullcontext():
        return _run(schedule, broken.state if broken is not None and broken.state else GuardState, fast, trace)


def _time_of(line: str) -> float:
    return float(line[:8])


def _run(schedule: Schedule, kind: type[GuardState], fast: bool, trace: bool) -> Run:  # noqa: FBT001  from above
    agenda = Agenda()
    history: list[str] = []

    def tell(what: str) -> None:
        if trace:
            history.append(f"{agenda.now - 1_000.0:8.4f}  {what}")

    def tell_call(number: int, what: str) -> None:
        if trace:
            history.append(f"{agenda.now - 1_000.0:8.4f}  call {number}: {what}")

    def listen(event: Event) -> None:
        if isinstance(event, PrimaryChanged) and state.view.reign is not None:
            judge.accepted.append((agenda.now, state.view.reign.timeline))
        if trace:
            history.append(f"{event.at - 1_000.0:8.4f}  guard: {event.text()}")

    chance = Random(schedule.seed)  # noqa: S311  a simulation, not a secret
    world = World(schedule, agenda, Random(chance.random()), tell)  # noqa: S311  same
    jitter = Random(chance.random())  # noqa: S311  same
    marks = count(1)
    retry = RetryPolicy(
        budget=schedule.budget,
        floor=schedule.floor,
        wait=lambda asked: 0.002 + min(0.5, 0.02 * 2**asked.attempt_number) * jitter.random(),
    )
    state = kind(
        Topology(list(world.servers), new_mark=lambda: f"m{next(marks)}"),
        clock=agenda.clock,
        rng=jitter,
        retry=retry,
        breaker=BreakerPolicy(),
        gate=Gate(slots=schedule.size),
        reads=ReadPolicy(),
    )
    judge = Judge(retry)
    for server in world.servers.values():
        server.applied = judge.applied
    guard = SimulatedGuard(
        state, world.links, agenda, judge, size=schedule.size, fast=fast, listen=listen, tell=tell_call
    )
    monitor = SimulatedMonitor(guard, world.links)
    shared = Context()
    numbers = count(1)
    clients = [
        Client(
            "uvwxyzst"[place],
            guard,
            world,
            judge,
            Random(chance.random()),  # noqa: S311  same
            shared if place < schedule.shared else Context(),
            count=lambda: next(numbers),
            tell=tell_call,
        )
        for place in range(schedule.clients)
    ]
    began = agenda.now
    agenda.spawn(monitor.run())
    for client in clients:
        agenda.spawn(client.run(schedule.calls, LASTS + 0.5, began + LASTS + SETTLED))
    world.schedule(schedule.faults, LASTS)
    agenda.run(began + ENDED, lambda: all(client.over for client in clients))

    for client in clients:
        if not client.over:
            judge.break_("unended", agenda.now, f"client {client.name} waits for ever")
    for left in guard.leftovers():
        judge.break_("unended", agenda.now, f"{left} left out at the end")
    judge.finish(world.truth, agenda.now)
    return Run(
        schedule=schedule,
        violations=tuple(judge.violations),
        history=tuple(sorted(history, key=_time_of)),
        calls=sum(client.calls for client in clients),
        failed=sum(client.failed for client in clients),
        repeats=state.counts["repeats"],
        unknown=state.counts["unknown"],
        promotions=world.promotions,
        faults=world.faults,
        happened=agenda.happened,
        seconds=agenda.now - began,
    )
