"""What probing costs, at rest and in a failover: CPU of servers and clients, dials, and how soon all know the new primary.

    python tools/bench_probes.py [--guards 200] [--processes 4] [--seconds 20] [--after 15] [--json]

A primary and two replicas of this machine, and as many guards as asked for, spread over a few processes, each with its
own connections as in a process of its own. First nobody calls anything, for *seconds*. Then each guard writes once a
second, the primary is killed and a replica promoted, and all is watched for *after* seconds. CPU is that of the processes
themselves (user and system), so that what else the machine does matters little to it; times are of this machine, with
all guards and servers on its cores.

Exit code 1 if a guard has not found the new primary, or an error reached a caller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

import dbguard
from dbguard.events import PrimaryChanged
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from dbguard.events import Event
    from dbguard.testing.cluster import ClusterNode

TICK = os.sysconf("SC_CLK_TCK")
OPEN_WITHIN = 240.0  # seconds for all guards to open and settle: they share the machine's cores
WRITE = "INSERT INTO written VALUES (1)"


class Crowd:
    """The guards of one process. dials: when, and to which port, each connection was begun, in seconds since the epoch."""

    def __init__(self, ports: list[int], count: int) -> None:
        settings = {
            "nodes": [{"host": "127.0.0.1", "port": port} for port in ports],
            "connection": {"user": "postgres", "database": "postgres"},
            "startup": {"wait": OPEN_WITHIN},
        }
        self.found: dict[int, tuple[float, str]] = {}
        self.wrote: dict[int, float] = {}
        self.errors: Counter[str] = Counter()
        self.dials: list[tuple[float, int]] = []
        self.guards = [
            dbguard.Guard(settings, min_size=0, max_size=2, on_event=self._listener(number)) for number in range(count)
        ]
        self._watching = False

    def _listener(self, number: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if isinstance(event, PrimaryChanged) and self._watching:
                self.found[number] = (time.time(), event.node)

        return hear

    async def open(self) -> None:
        """Open all, a few at a time, and wait until each knows a primary."""
        room = asyncio.Semaphore(4)

        async def one(guard: dbguard.Guard) -> None:
            async with room:
                await guard.open()
                await guard.ready(timeout=OPEN_WITHIN)

        await asyncio.gather(*(one(guard) for guard in self.guards))

    async def rest(self, seconds: float) -> dict[str, Any]:
        """Do nothing for a while."""
        self.dials.clear()
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        return {"cpu": time.process_time() - cpu, "seconds": time.monotonic() - began, "dials": self.dials[:]}

    async def work(self, seconds: float) -> dict[str, Any]:
        """Let each guard write once a second, and note when it has found another primary."""
        self.dials.clear()
        self._watching = True
        cpu, end = time.process_time(), time.monotonic() + seconds

        async def writer(number: int, guard: dbguard.Guard) -> None:
            await asyncio.sleep(random.random())  # noqa: S311  no secret
            while time.monotonic() < end:
                try:
                    await guard.execute(WRITE, timeout=seconds)
                except dbguard.OutcomeUnknown:
                    self.errors["OutcomeUnknown"] += 1
                except Exception as error:  # noqa: BLE001  counted, and printed at the end
                    self.errors[type(error).__name__] += 1
                else:
                    if number in self.found:
                        self.wrote.setdefault(number, time.time())
                await asyncio.sleep(1.0)

        await asyncio.gather(*(writer(number, guard) for number, guard in enumerate(self.guards)))
        return {
            "cpu": time.process_time() - cpu,
            "dials": self.dials[:],
            "found": list(self.found.values()),
            "wrote": list(self.wrote.values()),
            "errors": dict(self.errors),
        }

    async def close(self) -> None:
        """Close all."""
        await asyncio.gather(*(guard.close(timeout=1.0) for guard in self.guards))


def worker(pipe: Connection, ports: list[int], count: int) -> None:
    """One process with *count* guards, which does what it is told through *pipe*."""
    asyncio.run(_serve(pipe, ports, count))


async def _serve(pipe: Connection, ports: list[int], count: int) -> None:
    crowd = Crowd(ports, count)
    real = asyncpg.connect

    def counted(*args: Any, **more: Any) -> Any:
        crowd.dials.append((time.time(), more["port"]))
        return real(*args, **more)

    asyncpg.connect = counted
    async with asyncio.timeout(OPEN_WITHIN):
        await crowd.open()
    pipe.send("open")
    while (told := await asyncio.to_thread(pipe.recv)) != "end":
        what, seconds = told
        pipe.send(await (crowd.rest(seconds) if what == "rest" else crowd.work(seconds)))
    await crowd.close()


def server_cpu(node: ClusterNode) -> float:
    """Return the CPU seconds of a server and of all its processes, those that have ended among them."""
    postmaster = int((node.data / "postmaster.pid").read_text().split()[0])
    total = 0.0
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for pid in (postmaster, *map(int, children)):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(field) for field in fields[11 : 15 if pid == postmaster else 13]) / TICK
    return total


def told(pipes: list[Connection], what: tuple[str, float] | None, within: float) -> list[Any]:
    """Tell all processes *what*, and return what they answer. Raises TimeoutError."""
    if what is not None:
        for pipe in pipes:
            pipe.send(what)
    return [answer(pipe, within) for pipe in pipes]


def answer(pipe: Connection, within: float) -> Any:
    """Return what a process says within so many seconds."""
    if not pipe.poll(within):
        raise TimeoutError("a process with guards does not answer")
    return pipe.recv()


def per_second(dials: list[tuple[float, int]], names: dict[int, str], since: float) -> dict[str, list[int]]:
    """Return the dials of each node in each second since a moment."""
    counts: dict[str, Counter[int]] = {name: Counter() for name in names.values()}
    for at, port in dials:
        if at >= since:
            counts[names[port]][int(at - since)] += 1
    return {name: [count[second] for second in range(max(count, default=-1) + 1)] for name, count in counts.items()}


def late(times: list[float], since: float) -> dict[str, float]:
    """Return how long it took until a moment, for half of them, and for the last, in seconds."""
    took = [at - since for at in times] or [float("nan")]
    return {"median": round(statistics.median(took), 3), "last": round(max(took), 3)}


def measure(cluster: Cluster, options: argparse.Namespace) -> dict[str, Any]:
    """Open the guards, let them rest, take their primary away; return the figures."""
    cluster.sql("a", "CREATE TABLE written (n int)")
    names = {node.port: node.name for node in cluster.nodes}
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(options.processes)]
    share = [options.guards // options.processes] * options.processes
    share[0] += options.guards - sum(share)
    crowds = [
        context.Process(target=worker, args=(end[1], list(names), count), daemon=True)
        for end, count in zip(ends, share, strict=True)
    ]
    for crowd in crowds:
        crowd.start()
    pipes = [end[0] for end in ends]
    told(pipes, None, OPEN_WITHIN + 30)
    time.sleep(2.0)
    before = {node.name: server_cpu(node) for node in cluster.nodes}
    rest = told(pipes, ("rest", options.seconds), options.seconds + 60)
    after = {node.name: server_cpu(node) for node in cluster.nodes}
    seconds = statistics.fmean(one["seconds"] for one in rest)
    figures: dict[str, Any] = {
        "guards": options.guards,
        "rest": {
            "client_ms_per_guard_second": round(sum(one["cpu"] for one in rest) / seconds / options.guards * 1e3, 3),
            "server_ms_per_guard_second": {
                name: round((after[name] - before[name]) / seconds / options.guards * 1e3, 3) for name in before
            },
            "dials": sum(len(one["dials"]) for one in rest),
        },
    }
    for pipe in pipes:
        pipe.send(("work", options.after))
    time.sleep(3.0)
    before = {node.name: server_cpu(node) for node in cluster.replicas}
    killed = time.time()
    cluster.kill("a")
    cluster.promote("b")
    promoted = time.time()
    ended = [answer(pipe, options.after + 60) for pipe in pipes]
    after = {node.name: server_cpu(node) for node in (cluster.node("b"), cluster.node("c"))}
    found = [at for one in ended for at, node in one["found"] if node.startswith(f"127.0.0.1:{cluster.node('b').port}")]
    dials = [dial for one in ended for dial in one["dials"]]
    figures["failover"] = {
        "promotion": round(promoted - killed, 3),
        "found": len(found),
        "found_after_promotion": late(found, promoted),
        "wrote": sum(len(one["wrote"]) for one in ended),
        "wrote_after_promotion": late([at for one in ended for at in one["wrote"]], promoted),
        "dials_per_second_since_the_kill": per_second(dials, names, killed),
        "client_ms_per_guard": round(sum(one["cpu"] for one in ended) / options.guards * 1e3, 1),
        "server_ms_per_guard": {name: round((after[name] - before[name]) / options.guards * 1e3, 1) for name in before},
        "errors": dict(sum((Counter(one["errors"]) for one in ended), Counter())),
    }
    for pipe in pipes:
        pipe.send("end")
    for crowd in crowds:
        crowd.join(30)
    return figures


def main() -> int:
    """Parse the arguments, start a cluster, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guards", type=int, default=200, help="how many (default 200)")
    parser.add_argument("--processes", type=int, default=4, help="over how many processes (default 4)")
    parser.add_argument("--seconds", type=float, default=20.0, help="at rest (default 20)")
    parser.add_argument("--after", type=float, default=15.0, help="watched around the failover (default 15)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, in one line")
    options = parser.parse_args()
    with Cluster(settings={"max_connections": str(4 * options.guards + 50)}) as cluster:
        figures = measure(cluster, options)
    print(json.dumps(figures, indent=None if options.json else 2))
    failover = figures["failover"]
    return 0 if failover["found"] == options.guards and not set(failover["errors"]) - {"OutcomeUnknown"} else 1


if __name__ == "__main__":
    sys.exit(main())
