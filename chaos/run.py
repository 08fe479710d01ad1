"""Run a scenario: start the clients, break things on time, heal them, read back, judge.

Whoever breaks something heals it: each fault is undone when its time is over, and also when the run is ended by an
exception, a cancellation or Ctrl-C, while it is being injected included.

``python -m chaos.run replica-hole`` runs it on a cluster of its own. Exit code 0: all checkers say ok; 1: they do not; 2:
the scenario cannot be run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dbguard
from chaos.checkers import State, Verdict
from chaos.history import Fault, History
from chaos.scenario import every, find
from chaos.workload import CREATE, DROP, READ_BACK, TABLE, Recorder
from dbguard.testing.cluster import ClusterError
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from dbguard.testing.toxiproxy_server import ToxiproxyUnavailable, server_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chaos.scenario import Scenario, Step
    from dbguard.events import Event

__all__ = ["CLIENTS_NAME", "Result", "cluster_for", "run"]

CLIENTS_NAME = "dbguard-chaos"
"""The clients' application_name: once no backend bears it, nothing more can be written."""

_GONE = 15.0  # seconds for the servers to notice that the clients are gone

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run showed."""

    scenario: str
    history: History
    verdicts: Mapping[str, Verdict]

    @property
    def state(self) -> State:
        """The worst of the verdicts."""
        return max(verdict.state for verdict in self.verdicts.values())

    def __str__(self) -> str:
        lines = [f"{self.scenario}: {self.state.name.lower()}"]
        lines += [f"  {name}: {verdict}" for name, verdict in self.verdicts.items()]
        return "\n".join(lines)


def cluster_for(scenario: Scenario, **options: Any) -> ProxiedCluster:
    """Return a cluster of the scenario's topology, not started. options: as for `ProxiedCluster`."""
    topology = scenario.topology
    return ProxiedCluster(replicas=topology.replicas, synchronous=topology.synchronous, **options)


async def run(scenario: Scenario, cluster: ProxiedCluster, *, say: Callable[[str], object] = lambda _: None) -> Result:
    """Run *scenario* on a running *cluster* of its topology, and leave nothing behind there.

    say: told in one line what happens.
    """
    with ThreadPoolExecutor(8, "chaos") as threads:
        one = _Run(scenario, cluster, threads, say)
        await one.prepare()
        try:
            history = await one.play()
        except ExceptionGroup as errors:  # the harness's own: what clients are told never comes here
            raise _first(errors) from None
        finally:
            await one.do(cluster.sql, cluster.primary, DROP)
    verdicts = {name: checker.judge(history) for name, checker in scenario.checkers.items()}
    return Result(scenario.name, history, verdicts)


class _Run:
    """One run under way."""

    def __init__(
        self, scenario: Scenario, cluster: ProxiedCluster, threads: ThreadPoolExecutor, say: Callable[[str], object]
    ) -> None:
        self._scenario = scenario
        self._cluster = cluster
        self._threads = threads
        self._say = say
        self._faults: list[Fault] = []
        self._events: list[Event] = []

    async def do(self, work: Callable[..., T], *args: object) -> T:
        """Do what blocks, in a thread. A cancellation waits for its end, since it cannot be stopped halfway."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def prepare(self) -> None:
        """Make the table on all nodes."""
        cluster = self._cluster
        for statement in (DROP, *CREATE.split("; ")):
            await self.do(cluster.sql, cluster.primary, statement)
        index = f"SELECT count(*) > 0 FROM pg_index WHERE indrelid = to_regclass('{TABLE}')"
        for node in cluster.nodes:
            await self.do(cluster.wait_for, node, index)

    async def play(self) -> History:
        """Let the clients work while things break; return what happened."""
        scenario, recorder, stop = self._scenario, Recorder(), asyncio.Event()
        async with dbguard.connect(self._config(), on_event=self._events.append) as guard:
            await guard.ready()
            async with asyncio.TaskGroup() as tasks:
                clients = tasks.create_task(scenario.workload.run(guard, recorder, stop))
                self._say(f"{scenario.name}: warming up for {scenario.warm_up:g} s")
                await asyncio.sleep(scenario.warm_up)
                zero = time.monotonic()
                for step in scenario.timeline:
                    tasks.create_task(self._break(step, zero))
                await _until(zero + scenario.duration)
                stop.set()
                await clients
        final = await self.do(self._read_back)
        return History(
            operations=tuple(replace(op, start=op.start - zero, end=op.end - zero) for op in recorder.operations),
            faults=tuple(
                replace(fault, start=fault.start - zero, end=fault.end - zero)
                for fault in sorted(self._faults, key=lambda fault: fault.start)
            ),
            final=final,
            events=tuple(event.as_dict() | {"at": event.at - zero} for event in self._events),
        )

    def _config(self) -> dict[str, Any]:
        links = {node.name: self._cluster.link(APPLICATION, node) for node in self._cluster.nodes}
        return {
            "nodes": [{"name": name, "host": link.host, "port": link.port} for name, link in links.items()],
            "connection": {
                "user": "postgres",
                "database": "postgres",
                "sslmode": "disable",
                "server_settings": {"application_name": CLIENTS_NAME},
            },
            **self._scenario.guard,
        }

    async def _break(self, step: Step, zero: float) -> None:
        """Break one thing when its time has come, and heal it when its time is over, or when all is over."""
        await _until(zero + step.at)
        # The thread that injects a fault also notes how to heal it: a cancellation in between finds it here.
        healing = contextlib.ExitStack()
        start: float | None = None
        try:
            await self.do(lambda: healing.enter_context(step.fault.inject(self._cluster)))
            start = time.monotonic()
            self._say(f"{step.at:g} s: {step.fault}")
            await _until(start + step.for_)
        finally:
            end = time.monotonic()
            await self.do(healing.close)
            if start is not None:
                self._faults.append(Fault(what=str(step.fault), start=start, end=end))
                self._say(f"{end - zero:.1f} s: healed {step.fault}")

    def _read_back(self) -> tuple[int, ...] | None:
        """Read the table of the primary once no client can write to it any more; None if that is not to be had."""
        gone = f"SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}'"
        cluster = self._cluster
        try:
            cluster.wait_for(cluster.primary, gone, _GONE)
            return tuple(n for (n,) in cluster.sql(cluster.primary, READ_BACK))
        except (OSError, TimeoutError) as e:
            self._say(f"the table cannot be read: {e}")
            return None


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """Return the first of several exceptions, however deep in groups it is."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run scenarios from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos.run", description="Run scenarios on a cluster behind Toxiproxy."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(p.stem for p in every())}")
    parser.add_argument(
        "--history", type=Path, metavar="FOLDER", help="keep the history of each run there, as JSON lines"
    )
    given = parser.parse_args(argv)
    say = partial(print, flush=True)  # also into a pipe
    results = []
    try:
        scenarios = [find(name) for name in given.names or [path.stem for path in every()]]
        binary = server_binary(say=say)
        for scenario in scenarios:
            with cluster_for(scenario, proxy_binary=binary) as cluster:
                result = asyncio.run(run(scenario, cluster, say=say))
            say(str(result))
            results.append(result)
            if given.history:
                given.history.mkdir(parents=True, exist_ok=True)
                file = given.history / f"{scenario.name}.jsonl"
                file.write_text("\n".join(result.history.lines()) + "\n")
    except (dbguard.ConfigError, ToxiproxyUnavailable, ClusterError) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return int(any(result.state is not State.OK for result in results))


if __name__ == "__main__":
    sys.exit(main())
