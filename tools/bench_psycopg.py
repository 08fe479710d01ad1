"""What guarding costs over psycopg: client CPU per point read, as a ratio to a bare pool of psycopg_pool's, side by side.

    python tools/bench_psycopg.py [--seconds 6] [--threads 8] [--json]

Each contender alternates short slices with the bare pool in one process, so that what else the machine does hits both.
The bare pool is taken as it comes, with its transaction around the statement (BEGIN, SELECT, COMMIT), and with
``kwargs={"autocommit": True}``, which sends the SELECT alone, as a guard does. Printed, never asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

import psycopg_pool

import dbguard
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[[int], Any]
    Figures = dict[str, dict[str, float]]

SLICE = 0.15
SIZE = 16
READ = "SELECT abalance FROM account WHERE aid = %s"
KINDS = {"its transaction": False, "autocommit": True}
"""How a bare pool is used, and what its connections are set to."""


class Load:
    """Closed-loop clients, each in a thread that lives as long as this; begun and stopped by slices."""

    def __init__(self, clients: int) -> None:
        self.clients = clients

    def __call__(self, call: Call, seconds: float) -> tuple[float, float]:
        """Return calls per second, and CPU microseconds per call."""
        done = [0] * self.clients
        ready = threading.Barrier(self.clients + 1)
        until = 0.0

        def client(number: int) -> None:
            key, count = number + 1, 0
            ready.wait()
            while time.perf_counter() < until:
                key = key * 7 % 999 + 1
                call(key)
                count += 1
            done[number] = count

        threads = [threading.Thread(target=client, args=(number,)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        until = time.perf_counter() + seconds
        cpu, began = time.process_time(), time.perf_counter()
        ready.wait()
        for thread in threads:
            thread.join()
        return self._figures(sum(done), time.perf_counter() - began, time.process_time() - cpu)

    @staticmethod
    def _figures(calls: int, wall: float, cpu: float) -> tuple[float, float]:
        return calls / wall, cpu / calls * 1e6


async def load_tasks(call: Callable[[int], Awaitable[Any]], clients: int, seconds: float) -> tuple[float, float]:
    """As `Load`, with tasks for clients."""
    until = time.perf_counter() + seconds
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        key = number
        while time.perf_counter() < until:
            key = key * 7 % 999 + 1
            await call(key)
            done += 1

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(1, clients + 1)))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return done / wall, cpu / done * 1e6


class Seen:
    """Slices of a contender and of the bare pool, by turns."""

    def __init__(self) -> None:
        self.rows: list[tuple[tuple[float, float], tuple[float, float]]] = []

    def figures(self) -> dict[str, float]:
        """Return the medians: of both ratios, and of the CPU of both in microseconds per call."""
        rows = self.rows
        return {
            "calls": round(statistics.median(one[0] / other[0] for one, other in rows), 3),
            "cpu": round(statistics.median(one[1] / other[1] for one, other in rows), 3),
            "us": round(statistics.median(one[1] for one, _ in rows), 1),
            "bare_us": round(statistics.median(other[1] for _, other in rows), 1),
        }


def compare(one: Call, other: Call, clients: int, seconds: float) -> dict[str, float]:
    """Alternate slices of *one* and *other*."""
    load, seen = Load(clients), Seen()
    load(one, SLICE)
    load(other, SLICE)
    for turn in range(max(2, int(seconds / SLICE / 2))):
        first, second = (one, other) if turn % 2 else (other, one)
        figures = {first: load(first, SLICE)}
        figures[second] = load(second, SLICE)
        seen.rows.append((figures[one], figures[other]))
    return seen.figures()


async def compare_tasks(one: Call, other: Call, clients: int, seconds: float) -> dict[str, float]:
    """Alternate slices of *one* and *other*."""
    seen = Seen()
    await load_tasks(one, clients, SLICE)
    await load_tasks(other, clients, SLICE)
    for turn in range(max(2, int(seconds / SLICE / 2))):
        first, second = (one, other) if turn % 2 else (other, one)
        figures = {first: await load_tasks(first, clients, SLICE)}
        figures[second] = await load_tasks(second, clients, SLICE)
        seen.rows.append((figures[one], figures[other]))
    return seen.figures()


def show(results: Figures, name: str, row: dict[str, float]) -> None:
    """Print one row, and keep it."""
    results[name] = row
    print(f"{name:58} {row['calls']:8.2f} {row['cpu']:8.2f} {row['us']:8.1f} {row['bare_us']:8.1f}", flush=True)


def run_threads(dsn: str, results: Figures, clients: list[int], seconds: float) -> None:
    """Measure `SyncGuard`, with one client and with several threads."""
    with ExitStack() as stack:

        def pool(**options: Any) -> Any:
            return stack.enter_context(
                psycopg_pool.ConnectionPool(dsn, min_size=SIZE, max_size=SIZE, open=True, **options)
            )

        bare = {name: pool(kwargs={"autocommit": autocommit}) for name, autocommit in KINDS.items()}
        contenders: dict[str, Any] = {
            "SyncGuard": stack.enter_context(dbguard.SyncGuard(dsn, min_size=SIZE, max_size=SIZE)),
            "wrapped ConnectionPool": stack.enter_context(dbguard.SyncGuard.wrap(pool())),
            "wrapped ConnectionPool, hold=15": stack.enter_context(dbguard.SyncGuard.wrap(pool(), hold=SIZE - 1)),
        }
        time.sleep(1)  # the guards read the catalogue

        def reads(used: Any) -> Call:
            def read(key: int) -> Any:
                with used.connection() as con:
                    return con.execute(READ, (key,)).fetchone()

            return read

        for count in clients:
            for name, guard in contenders.items():
                for how, used in bare.items():
                    row = compare(lambda key, guard=guard: guard.fetchone(READ, (key,)), reads(used), count, seconds)
                    show(results, f"{name}, {count} threads, to a bare pool in {how}", row)


async def run_tasks(dsn: str, results: Figures, clients: list[int], seconds: float) -> None:
    """Measure `PsycopgGuard`, with one client and with several tasks."""
    async with AsyncExitStack() as stack:

        async def pool(**options: Any) -> Any:
            made = psycopg_pool.AsyncConnectionPool(dsn, min_size=SIZE, max_size=SIZE, open=False, **options)
            return await stack.enter_async_context(made)

        bare = {name: await pool(kwargs={"autocommit": autocommit}) for name, autocommit in KINDS.items()}
        enter = stack.enter_async_context
        contenders: dict[str, Any] = {
            "PsycopgGuard": await enter(dbguard.PsycopgGuard(dsn, min_size=SIZE, max_size=SIZE)),
            "wrapped AsyncConnectionPool": await enter(dbguard.PsycopgGuard.wrap(await pool())),
            "wrapped AsyncConnectionPool, hold=15": await enter(dbguard.PsycopgGuard.wrap(await pool(), hold=SIZE - 1)),
        }
        await asyncio.sleep(1)  # the guards read the catalogue

        def reads(used: Any) -> Call:
            async def read(key: int) -> Any:
                async with used.connection() as con:
                    return await (await con.execute(READ, (key,))).fetchone()

            return read

        for count in clients:
            for name, guard in contenders.items():
                for how, used in bare.items():
                    row = await compare_tasks(
                        lambda key, guard=guard: guard.fetchone(READ, (key,)), reads(used), count, seconds
                    )
                    show(results, f"{name}, {count} tasks, to a bare pool in {how}", row)


def main() -> None:
    """Parse the arguments, start a node, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="per row (default 6)")
    parser.add_argument("--threads", type=int, default=8, help="concurrent clients beside one (default 8)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    options = parser.parse_args()
    bytearray(16 << 20)  # a fresh process's allocator makes asyncio's reads look dearer than they are
    print("ratios to a bare pool of psycopg_pool's; medians of alternating slices; CPU of both in us per call")
    print(f"{'':58} {'calls':>8} {'CPU':>8} {'us':>8} {'bare us':>8}")
    results: Figures = {}
    clients = [1, options.threads]
    with Cluster(replicas=0) as cluster:
        dsn = cluster.dsn(cluster.primary)
        cluster.sql("a", "CREATE TABLE account (aid int primary key, abalance int not null default 0)")
        cluster.sql("a", "INSERT INTO account SELECT i FROM generate_series(1, 1000) i")
        run_threads(dsn, results, clients, options.seconds)
        asyncio.run(run_tasks(dsn, results, clients, options.seconds))
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
