"""What a token costs: ratios to the same write without one, side by side on a server that syncs to disk.

    python tools/bench_outcome.py [--seconds 10] [--clients 1 8] [--base DIRECTORY] [--json]

Each client makes the two calls of a pair in turn, over connections held by hand, so that what else the machine does hits
both. Printed, never asserted; above 1.00 is dearer. Then sizes: bytes per token on disk, bytes of WAL per write, and what
the pruner takes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import secrets
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

import dbguard
from dbguard.drivers import outcome_sql
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[[int], Awaitable[Any]]

ROWS = 1000
UPDATE = "UPDATE account SET abalance = abalance + 1 WHERE aid = $1"
CARRIED = f"WITH {outcome_sql.cte_item('$2')} {UPDATE}"
READ = "SELECT abalance FROM account WHERE aid = $1"
WRITES = 3000
"""Writes over which WAL is counted."""
STORED = 200_000
"""Tokens over which bytes on disk are counted."""

_counter = itertools.count(secrets.randbits(40))


def token() -> UUID:
    """Make a UUIDv7, as cheaply as Python can."""
    return UUID(int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | 2 << 62 | next(_counter) & (1 << 62) - 1)


class Held:
    """Connections held by hand, one per client."""

    def __init__(self, connections: list[Any]) -> None:
        self._free = connections

    def call(self, work: Callable[[Any, int], Awaitable[Any]]) -> Callable[[int], Awaitable[Any]]:
        """Return *work* as a call that takes a free connection."""

        async def on_free(key: int) -> None:
            con = self._free.pop()
            try:
                await work(con, key)
            finally:
                self._free.append(con)

        return on_free


async def plain_update(con: Any, key: int) -> None:
    """Write in autocommit."""
    await con.execute(UPDATE, key)


async def again(con: Any, key: int) -> None:
    """Do the same, for a figure that should be 1.00."""
    await plain_update(con, key)


async def cte_update(con: Any, key: int) -> None:
    """Write in autocommit, with the token in the same statement."""
    await con.execute(CARRIED, key, token())


async def block_update(con: Any, key: int) -> None:
    """Write as a block of two round trips: what stands in where a statement takes no cte."""
    await con.execute("BEGIN")
    await con.execute(UPDATE, key)
    await con.execute(outcome_sql.joined(token(), direct=True, always=False))


def transaction(statement: str, end: Callable[[], str]) -> Callable[[Any, int], Awaitable[None]]:
    """Return a transaction of one statement, ended as *end* says."""

    async def work(con: Any, key: int) -> None:
        await con.execute("BEGIN")
        await con.fetch(statement, key)
        await con.execute(end())

    return work


def commit() -> str:
    """End a transaction without a token."""
    return "COMMIT"


def mark() -> str:
    """End it with a token that any role may store."""
    return outcome_sql.joined(token(), direct=False, always=False)


def direct() -> str:
    """End it with a token that the role itself stores."""
    return outcome_sql.joined(token(), direct=True, always=False)


PAIRS: dict[str, tuple[Callable[[Any, int], Awaitable[None]], Callable[[Any, int], Awaitable[None]]]] = {
    "noise: UPDATE": (plain_update, again),
    "UPDATE, cte": (cte_update, plain_update),
    "UPDATE, block": (block_update, plain_update),
    "transaction, direct": (transaction(UPDATE, direct), transaction(UPDATE, commit)),
    "transaction, mark": (transaction(UPDATE, mark), transaction(UPDATE, commit)),
    "read-only block, mark": (transaction(READ, mark), transaction(READ, commit)),
}


async def compare(one: Call, other: Call, clients: int, seconds: float) -> dict[str, float]:
    """Let each client alternate calls of *one* and *other*, so that both meet the same disk and the same neighbours.

    Returns the ratio of the median latencies, that of the means without the slowest hundredth (a checkpoint's, or a
    neighbour's), and both medians in us.
    """
    took: dict[Call, list[float]] = {one: [], other: []}
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        key = number
        while time.perf_counter() < until:
            key = key * 7 % 999 + 1
            for call in (one, other) if key % 2 else (other, one):
                began = time.perf_counter()
                await call(key)
                took[call].append(time.perf_counter() - began)

    await asyncio.gather(*(client(number) for number in range(1, clients + 1)))
    mine, theirs = (sorted(took[call]) for call in (one, other))
    medians = statistics.median(mine), statistics.median(theirs)
    means = [statistics.fmean(times[: len(times) * 99 // 100]) for times in (mine, theirs)]
    return {
        "p50": round(medians[0] / medians[1], 3),
        "mean": round(means[0] / means[1], 3),
        "us": round(medians[0] * 1e6, 1),
        "us_without": round(medians[1] * 1e6, 1),
    }


async def costs(cluster: Cluster, clients: int, seconds: float) -> dict[str, dict[str, float]]:
    """Measure every pair."""
    results: dict[str, dict[str, float]] = {}
    async with AsyncExitStack() as stack:
        connections = [await asyncpg.connect(cluster.dsn("a")) for _ in range(clients)]
        stack.push_async_callback(lambda: asyncio.gather(*(con.close() for con in connections)))
        held = Held(list(connections))
        for name, (one, other) in PAIRS.items():
            results[name] = show(name, clients, await compare(held.call(one), held.call(other), clients, seconds))
    return results


async def guarded(cluster: Cluster, clients: int, seconds: float) -> dict[str, dict[str, float]]:
    """Measure a guard with tokens against one without."""
    results: dict[str, dict[str, float]] = {}
    node = cluster.primary
    async with AsyncExitStack() as stack:

        async def opened(resolve: str) -> dbguard.Guard:
            settings = {
                "nodes": [{"host": node.host, "port": node.port}],
                "connection": {"user": "postgres", "database": "postgres"},
                "outcome": {"resolve": resolve},
            }
            return await stack.enter_async_context(dbguard.Guard(settings, min_size=clients, max_size=clients))

        with_, without = await opened("token-table"), await opened("none")
        await asyncio.sleep(1)  # both have read the catalogue

        async def write(con: dbguard.Connection, key: int) -> None:
            await con.execute(UPDATE, key)

        async def read(con: dbguard.Connection, key: int) -> None:
            await con.fetch(READ, key)

        def autocommit(guard: dbguard.Guard) -> Call:
            return lambda key: guard.execute(UPDATE, key)

        def in_transaction(guard: dbguard.Guard, work: Callable[[Any, int], Awaitable[None]]) -> Call:
            return lambda key: guard.run_in_transaction(partial(work, key=key))

        pairs = {
            "guard: UPDATE": (autocommit(with_), autocommit(without)),
            "guard: transaction": (in_transaction(with_, write), in_transaction(without, write)),
            "guard: read-only transaction": (in_transaction(with_, read), in_transaction(without, read)),
        }
        for name, (one, other) in pairs.items():
            results[name] = show(name, clients, await compare(one, other, clients, seconds))
    return results


def show(name: str, clients: int, row: dict[str, float]) -> dict[str, float]:
    """Print one row."""
    figures = f"{row['p50']:8.2f} {row['mean']:8.2f} {row['us']:8.0f} {row['us_without']:8.0f}"
    print(f"{name:28} {clients:7} {figures}", flush=True)
    return row


async def sizes(cluster: Cluster) -> dict[str, float]:
    """Measure what tokens take on disk and in the WAL, and what their deletion does."""
    con = await asyncpg.connect(cluster.dsn("a"))
    found: dict[str, float] = {}

    async def wal(work: Callable[[Any, int], Awaitable[None]]) -> float:
        for key in range(1, ROWS + 1):  # pages that the last checkpoint left are written in full once
            await work(con, key)
        before = await con.fetchval("SELECT pg_current_wal_insert_lsn()")
        for key in range(WRITES):
            await work(con, key % ROWS + 1)
        return float(await con.fetchval("SELECT pg_current_wal_insert_lsn() - $1", before)) / WRITES

    found["WAL bytes, UPDATE"] = await wal(plain_update)
    found["WAL bytes, UPDATE with cte"] = await wal(cte_update)
    found["WAL bytes, transaction"] = await wal(transaction(UPDATE, commit))
    found["WAL bytes, transaction with token"] = await wal(transaction(UPDATE, direct))
    found["WAL bytes, read-only block with mark"] = await wal(transaction(READ, mark))
    await con.execute("TRUNCATE dbguard.token")
    at = time.time_ns() // 1_000_000 - 7_200_000
    for _ in range(STORED // 10_000):
        at += 1
        await con.executemany(
            "INSERT INTO dbguard.token (token) VALUES ($1)",
            [(UUID(int=at << 80 | 7 << 76 | 2 << 62 | next(_counter) & (1 << 62) - 1),) for _ in range(10_000)],
        )
    found["table bytes per token"] = await con.fetchval("SELECT pg_relation_size('dbguard.token')") / STORED
    found["index bytes per token"] = await con.fetchval("SELECT pg_indexes_size('dbguard.token')") / STORED
    before = await con.fetchval("SELECT pg_current_wal_insert_lsn()")
    began = time.perf_counter()
    batches = 0
    while await con.fetchval(outcome_sql.PRUNE, 3600.0, outcome_sql.BATCH) == outcome_sql.BATCH:
        batches += 1
    found["ms per batch of the pruner"] = (time.perf_counter() - began) * 1000 / batches
    moved = await con.fetchval("SELECT pg_current_wal_insert_lsn() - $1", before)
    found["WAL bytes per token deleted"] = float(moved) / STORED
    await con.close()
    return found


async def prepare(cluster: Cluster) -> None:
    """Make the tables."""
    con = await asyncpg.connect(cluster.dsn("a"))
    async with con.transaction():
        await con.execute(outcome_sql.schema())
    await con.execute(
        "CREATE TABLE account (aid int PRIMARY KEY, abalance int NOT NULL DEFAULT 0) WITH (fillfactor = 50)"
    )
    await con.execute("INSERT INTO account SELECT i FROM generate_series(1, $1::int) i", ROWS)
    await con.execute("VACUUM ANALYZE account")
    await con.execute("CHECKPOINT")
    await con.close()


def main() -> None:
    """Parse the arguments, start a server that syncs, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="per pair (default 10)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="concurrent clients (default 1 8)")
    parser.add_argument("--base", type=Path, default=Path(tempfile.gettempdir()), help="a directory on a real disk")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    options = parser.parse_args()
    bytearray(16 << 20)  # asyncio's reads make a fresh process look a third dearer than it is
    results: dict[str, Any] = {}
    settings = {"fsync": "on", "max_wal_size": "4GB", "checkpoint_timeout": "1h"}
    with Cluster(replicas=0, base=options.base, settings=settings) as cluster:
        asyncio.run(prepare(cluster))
        print(f"ratios to the same without a token, fsync on, below {options.base}; alternating calls")
        print(f"{'':28} {'clients':>7} {'p50':>8} {'mean':>8} {'us':>8} {'without':>8}")
        for clients in options.clients:
            results[str(clients)] = asyncio.run(costs(cluster, clients, options.seconds))
            results[str(clients)] |= asyncio.run(guarded(cluster, clients, options.seconds))
        results["sizes"] = asyncio.run(sizes(cluster))
        for name, value in results["sizes"].items():
            print(f"{name:40} {value:8.1f}")
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
