"""What guarding costs: ratios to a plain `asyncpg.Pool`, measured side by side.

    python tools/bench.py [--seconds 6] [--clients 8] [--only NAME] [--json]

Each contender alternates short slices with the plain pool in one process and one loop, so that what else the machine
does hits both. Printed, never asserted: a ratio below 1 in `CPU` and above 1 in `calls` is better than the plain pool.
The allocator is warmed first: asyncio's reads make a fresh process look a third dearer than it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg

import dbguard
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SLICE = 0.15
READ = "SELECT abalance FROM account WHERE aid = $1"
WRITE = "UPDATE account SET abalance = abalance + 1 WHERE aid = $1"


async def load(call: Callable[[int], Awaitable[Any]], clients: int, seconds: float) -> tuple[float, float, float]:
    """Run closed-loop clients; return calls per second, CPU microseconds per call, and the median latency in us."""
    until = time.perf_counter() + seconds
    took: list[float] = []

    async def client(number: int) -> None:
        key = number
        while (began := time.perf_counter()) < until:
            key = key * 7 % 999 + 1
            await call(key)
            took.append(time.perf_counter() - began)

    cpu = time.process_time()
    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(1, clients + 1)))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return len(took) / wall, cpu / len(took) * 1e6, statistics.median(took) * 1e6


async def compare(
    one: Callable[[int], Awaitable[Any]], other: Callable[[int], Awaitable[Any]], clients: int, seconds: float
) -> dict[str, float]:
    """Alternate slices of *one* and *other*; return the medians of the ratios."""
    await load(one, clients, SLICE)
    await load(other, clients, SLICE)
    ratios: list[tuple[float, float, float]] = []
    for turn in range(max(2, int(seconds / SLICE / 2))):
        pair = [one, other] if turn % 2 else [other, one]
        seen = {call: await load(call, clients, SLICE) for call in pair}
        mine, theirs = seen[one], seen[other]
        ratios.append((mine[0] / theirs[0], mine[1] / theirs[1], mine[2] / theirs[2]))
    return {
        name: round(statistics.median(row[i] for row in ratios), 3) for i, name in enumerate(("calls", "cpu", "p50"))
    }


async def run(cluster: Cluster, clients: int, seconds: float, only: str) -> dict[str, dict[str, float]]:
    """Measure every contender whose name holds *only*."""
    bytearray(16 << 20)
    dsn = cluster.dsn(cluster.primary)
    results: dict[str, dict[str, float]] = {}
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=16, max_size=16))
        await plain.execute("CREATE TABLE account (aid int primary key, abalance int not null default 0)")
        await plain.execute("INSERT INTO account SELECT i FROM generate_series(1, 1000) i")
        guard = await stack.enter_async_context(dbguard.connect(dsn, min_size=16, max_size=16))
        wrapped_pools = [
            await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=16, max_size=16)) for _ in range(2)
        ]
        wrapped = await stack.enter_async_context(dbguard.Guard.wrap(wrapped_pools[0]))
        lasting = await stack.enter_async_context(dbguard.Guard.wrap(wrapped_pools[1], hold=15))
        held = [await asyncpg.connect(dsn) for _ in range(clients)]
        stack.push_async_callback(lambda: asyncio.gather(*(con.close() for con in held)))
        await asyncio.sleep(1)  # the guards read the catalogue

        free = list(held)

        async def on_held(key: int) -> Any:
            con = free.pop()
            try:
                return await con.fetchval(READ, key)
            finally:
                free.append(con)

        contenders = {
            "plain pool (noise)": (lambda key: plain.fetchval(READ, key), lambda key: plain.fetchval(READ, key)),
            "held connection, point read": (on_held, lambda key: plain.fetchval(READ, key)),
            "guard, point read": (lambda key: guard.fetchval(READ, key), lambda key: plain.fetchval(READ, key)),
            "guard, SELECT 1": (lambda _: guard.fetchval("SELECT 1"), lambda _: plain.fetchval("SELECT 1")),
            "guard, update": (lambda key: guard.execute(WRITE, key), lambda key: plain.execute(WRITE, key)),
            "wrapped pool, point read": (
                lambda key: wrapped.fetchval(READ, key),
                lambda key: plain.fetchval(READ, key),
            ),
            "wrapped pool, hold=15, point read": (
                lambda key: lasting.fetchval(READ, key),
                lambda key: plain.fetchval(READ, key),
            ),
        }
        for name, (one, other) in contenders.items():
            if only not in name:
                continue
            results[name] = await compare(one, other, clients, seconds)
            row = results[name]
            print(f"{name:32} {row['calls']:8.2f} {row['cpu']:8.2f} {row['p50']:8.2f}", flush=True)
    return results


def main() -> None:
    """Parse the arguments, start a node, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="per contender (default 6)")
    parser.add_argument("--clients", type=int, default=8, help="concurrent clients (default 8)")
    parser.add_argument("--only", default="", help="contenders whose name holds this (default all)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    options = parser.parse_args()
    print(f"ratios to a plain asyncpg.Pool, {options.clients} clients; medians of alternating slices")
    print(f"{'':32} {'calls':>8} {'CPU':>8} {'p50':>8}")
    with Cluster(replicas=0) as cluster:
        results = asyncio.run(run(cluster, options.clients, options.seconds, options.only))
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
