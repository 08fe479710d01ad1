"""One run: start the callers, break things on time, heal them, look what is left, read back, judge.

Whoever breaks something heals it: each fault is undone when its time is over, and also when the run is ended by an
exception, a cancellation or Ctrl-C, while it is being injected included.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from chaos import aftermath, sampling
from chaos.application import Application
from chaos.bench import Bench
from chaos.checkers.course import SHOWN
from chaos.clock import Clock
from chaos.faults import Switchover
from chaos.faults.base import Nothing
from chaos.history import History, Kind
from chaos.journal import Journal
from chaos.stage import Stage
from dbguard.testing.proxied import ProxiedCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from chaos.checkers import State, Verdict
    from chaos.clients import Client
    from chaos.faults import Breakage
    from chaos.scenario import Due, Scenario

__all__ = ["Result", "cluster_for", "judge", "play", "record"]

_PATIENCE = 10.0  # seconds of the timeline for somebody to have the role that a fault is for: others may have to heal
_LOOK = 0.05  # seconds between two looks
_AWAY = (LookupError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the harness meets where nobody has a role, or where something else is broken just then; TimeoutError is an OSError."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run showed."""

    history: History
    verdicts: Mapping[str, Verdict]

    @property
    def state(self) -> State:
        """The worst of the verdicts."""
        return max(verdict.state for verdict in self.verdicts.values())

    def __str__(self) -> str:
        head, history = self.history.head, self.history
        done = Counter(op.kind for op in history.operations)
        counts = f"{done[Kind.READ]} reads, {done[Kind.APPEND]} appends, faults: {len(history.faults)}"
        said = f"client {head['client']}, seed {head['seed']}; {counts}"
        lines = [f"{head['scenario']}: {self.state.name.lower()} ({said})"]
        width = max(map(len, self.verdicts))
        for name, verdict in self.verdicts.items():
            lines.append(f"  {name:{width}}  {verdict.state.name.lower():7}  {verdict.told}")
        return "\n".join(lines)


def cluster_for(scenario: Scenario, **options: Any) -> ProxiedCluster:
    """Return a cluster of the scenario's topology, not started. options: as for `ProxiedCluster`."""
    topology = scenario.topology
    return ProxiedCluster(replicas=topology.replicas, synchronous=topology.synchronous, **options)


async def play(
    scenario: Scenario,
    cluster: ProxiedCluster,
    *,
    client: str = "guard",
    seed: int = 1,
    path: Path | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Result:
    """Run *scenario* on a running *cluster* of its topology, and leave nothing behind there.

    client: who is put to the test, by its name in `CLIENTS`.
    seed: of the faults' times and the callers' choices.
    path: where to write the history while it happens. Default: nowhere.
    say: told in one line what happens.
    """
    size, faults = scenario.workload.callers, [step.fault for step in scenario.timeline]
    async with Bench(cluster, client, size=size, guard=scenario.guard, faults=faults, say=say) as bench:
        return judge(scenario, await record(bench, scenario, seed=seed, path=path))


def judge(scenario: Scenario, history: History) -> Result:
    """Let the scenario's checkers judge what happened."""
    return Result(history, {name: checker.judge(history) for name, checker in scenario.checkers.items()})


async def record(
    bench: Bench,
    scenario: Scenario,
    *,
    seed: int = 1,
    path: Path | None = None,
    keep: bool = True,
    last: bool = True,
    leave_out: bool = False,
) -> History:
    """Run *scenario* with the client of *bench*, which has room for its callers and the settings that it asks for.

    keep: whether to keep in memory, and return, what *path* has as well; otherwise next to nothing of it.
    last: close the client in the end, so that what it leaves behind is judged, too. Otherwise it can go on.
    leave_out: leave out a fault for which nobody has the role within some seconds, or which another one that is under way
        does not let be made; otherwise that is an error.
    seed, path: as for `play`.
    """
    run = _Run(scenario, bench, seed, leave_out=leave_out)
    await run.prepare()
    try:
        return await run.play(path, keep=keep, last=last)
    except ExceptionGroup as errors:  # the harness's own: what callers are told never comes here
        raise _first(errors) from None
    finally:
        if last:
            await bench.close()  # first, as its locks may be in the way
        await run.tidy_up()


class _Run:
    """One run under way."""

    def __init__(self, scenario: Scenario, bench: Bench, seed: int, *, leave_out: bool) -> None:
        self._scenario = scenario
        self._workload = scenario.workload
        self._bench = bench
        self._cluster = bench.cluster
        application = Application(asyncio.get_running_loop(), scenario.workload.table, bench.wires, bench.calls)
        self._stage = Stage(bench.cluster, seed, application)
        self._seed = seed
        self._leave_out = leave_out
        self._do = bench.do

    async def prepare(self) -> None:
        """Make the table on all nodes."""
        cluster, work = self._cluster, self._workload
        await self.tidy_up()
        for statement in work.create:
            await self._do(cluster.sql, cluster.primary, statement)
        # the last statement is there once a row that was written after it is
        await self._do(cluster.sql, cluster.primary, f"COMMENT ON TABLE {work.table} IS 'ready'")
        ready = f"SELECT obj_description(to_regclass('{work.table}'), 'pg_class') = 'ready'"
        for node in cluster.nodes:
            await self._do(cluster.wait_for, node, ready)

    async def tidy_up(self) -> None:
        """Remove the table, and let the first node be the primary again, as scenarios name nodes by letter, too."""
        if self._cluster.primary is not self._cluster.nodes[0]:
            await self._do(self._put_back)
        await self._do(self._cluster.sql, self._cluster.primary, f"DROP TABLE IF EXISTS {self._workload.table}")

    def _put_back(self) -> None:
        for node in self._cluster.replicas:
            self._cluster.wait_linked(node, self._cluster.primary)
        with Switchover(node=self._cluster.nodes[0].name).inject(self._stage):
            pass

    async def play(self, path: Path | None, *, keep: bool, last: bool) -> History:
        """Let the callers work while things break; return what happened."""
        scenario, bench, cluster = self._scenario, self._bench, self._cluster
        head = {"scenario": scenario.name, "client": bench.name, "seed": self._seed, "about": scenario.about}
        if bench.left_off:
            head["without"] = bench.left_off
        with (
            Journal(time.monotonic() + scenario.warm_up, path=path, keep=keep, **head) as journal,
            bench.heard_by(lambda event: journal.event({**event, "at": event["at"] - journal.zero})),
        ):
            await self._work(bench.client, journal)
            self._tell(journal, "callers have ended; looking for what is left")
            leaks = await aftermath.leases(bench.client) + await self._do(aftermath.locks, cluster)
            if last:
                await bench.close()
                leaks += await bench.left()
            journal.leaks(leaks)
            read = aftermath.read_back if last else aftermath.read_between
            try:
                journal.final(await self._do(read, cluster, self._workload))
            except aftermath.FinalTableError as e:
                self._tell(journal, f"the table cannot be read: {e}")
            return journal.history()

    async def _work(self, client: Client, journal: Journal) -> None:
        """Let the callers work until the time is over and all is healed."""
        scenario, stop = self._scenario, asyncio.Event()
        self._tell(journal, f"warming up for {scenario.warm_up:g} s")
        async with asyncio.TaskGroup() as tasks:
            callers = tasks.create_task(self._workload.run(client, journal, stop, self._seed))
            sampler = tasks.create_task(sampling.watch(client, journal))
            clock = Clock(journal.now)
            breaking = [tasks.create_task(self._break(due, journal, clock)) for due in scenario.schedule(self._seed)]
            await clock.until(scenario.duration)
            await asyncio.gather(*breaking)
            journal.stopped(journal.now())
            stop.set()
            await callers
            sampler.cancel()

    async def _break(self, due: Due, journal: Journal, clock: Clock) -> None:
        """Break one thing when its time has come, and heal it when its time is over, or when all is over."""
        await clock.until(due.at)
        # The thread that injects a fault also notes how to heal it: a cancellation in between finds it here.
        healing = contextlib.ExitStack()
        number, what, began, shown = None, str(due.fault), journal.now(), None
        try:
            fault, entered = await self._inject(due.fault, healing, clock)
            what = entered if isinstance(entered, str) else str(fault)
            start = journal.now()
            number = journal.broke(what, start, began=began)
            self._tell(journal, f"broken: {what}")
            await clock.until(clock.now() + due.seconds)
            effect = await self._effect(fault, journal)
            if effect:
                journal.event({"event": SHOWN, "at": journal.now(), "fault": what, "what": effect})
            if isinstance(entered, Nothing):
                shown = False
            elif effect or fault.tells:
                shown = effect is not None
        except _AWAY as e:
            if number is not None or not self._leave_out:
                raise
            self._tell(journal, f"left out: {due.fault}: {type(e).__name__}: {e}")
        finally:
            end = journal.now()
            with clock.standing():
                await self._do(healing.close)
            if number is not None:
                journal.healed(number, end, done=journal.now(), shown=shown)
                self._tell(journal, f"{'over' if due.fault.momentary else 'healed'}: {what}")

    async def _effect(self, fault: Breakage, journal: Journal) -> str | None:
        """Ask what a fault shows on the nodes. What cannot be asked, since something else is broken there, shows nothing."""
        try:
            return await self._do(fault.effect, self._stage)
        except _AWAY as e:
            self._tell(journal, f"not seen whether it shows: {fault}: {type(e).__name__}: {e}")
            return None

    async def _inject(self, fault: Breakage, healing: contextlib.ExitStack, clock: Clock) -> tuple[Breakage, object]:
        """Break something as soon as there is who has the roles for it; return it with them, and what it says of itself."""
        until = clock.now() + _PATIENCE
        while True:
            try:
                with clock.standing():
                    resolved = await self._do(fault.resolved, self._stage)
                    return resolved, await self._do(_enter, healing, resolved, self._stage)
            except LookupError:
                if clock.now() > until:
                    raise
                await clock.until(clock.now() + _LOOK)

    def _tell(self, journal: Journal, what: str) -> None:
        self._bench.say(f"{journal.now():6.1f} s  {what}")


def _enter(healing: contextlib.ExitStack, fault: Breakage, stage: Stage) -> object:
    return healing.enter_context(fault.inject(stage))


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """Return the first of several exceptions, however deep in groups it is."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
