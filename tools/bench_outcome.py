"""What tokens cost: a guard with them beside the same guard without, on a server that syncs to disk.

    python tools/bench_outcome.py [--seconds 8] [--clients 1]

Both alternate short slices in one process, so that what else the machine does hits both. Printed, never asserted:
medians of the ratios with to without tokens, for calls per second and for the median latency; and how long it takes to
find out what became of a write on a living primary. With it the machine's load, without which no figure means much.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from bench import compare

import dbguard
from dbguard.core.outcome import new_token
from dbguard.drivers import outcome_sql
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

UPDATE = "UPDATE account SET abalance = abalance + 1 WHERE aid = $1"
INSERT = "INSERT INTO history (aid) VALUES ($1)"
READ = "SELECT abalance FROM account WHERE aid = $1"
RESOLVED = 100


def ways(guard: dbguard.Guard) -> dict[str, Callable[[int], Awaitable[Any]]]:
    """Return what is measured, each as a function of a key."""

    async def writes(key: int) -> None:
        async with guard.transaction() as tx:
            await tx.execute(UPDATE, key)
            await tx.execute(INSERT, key)

    async def reads(key: int) -> None:
        async with guard.transaction() as tx:
            await tx.fetchval(READ, key)
            await tx.fetchval(READ, key + 1)

    return {
        "autocommit UPDATE": lambda key: guard.execute(UPDATE, key),
        "autocommit UPDATE ... RETURNING": lambda key: guard.fetchval(UPDATE + " RETURNING abalance", key),
        "transaction of two writes": writes,
        "block that only read": reads,
        "read": lambda key: guard.fetchval(READ, key),
    }


async def run(cluster: Cluster, seconds: float, clients: int) -> None:
    """Measure every way."""
    node = cluster.node(cluster.primary)
    con = await asyncpg.connect(cluster.dsn(cluster.primary))
    await con.execute(outcome_sql.schema())
    await con.execute("CREATE TABLE account (aid int PRIMARY KEY, abalance int NOT NULL DEFAULT 0)")
    await con.execute("CREATE TABLE history (aid int)")
    await con.execute("INSERT INTO account SELECT i FROM generate_series(1, 1000) i")
    print(
        "fsync", await con.fetchval("SHOW fsync"), "synchronous_commit", await con.fetchval("SHOW synchronous_commit")
    )
    await con.close()
    config = {
        "nodes": [{"host": node.host, "port": node.port}],
        "connection": {"user": "postgres", "database": "postgres"},
    }
    async with (
        dbguard.connect(config) as without,
        dbguard.connect(config | {"outcome": {"resolve": "token-table"}}) as with_,
    ):
        await asyncio.sleep(1)
        plain = ways(without)
        print(f"with tokens to without, {clients} clients; medians of alternating slices; {machine()}")
        print(f"{'':34} {'calls':>8} {'CPU':>8} {'p50':>8}")
        for name, way in ways(with_).items():
            row = await compare(way, plain[name], clients, seconds)
            print(f"{name:34} {row['calls']:8.2f} {row['cpu']:8.2f} {row['p50']:8.2f}", flush=True)
        for name, dialled in (("with a connection at hand", False), ("with one dialled each time", True)):
            took = await resolved(with_, dialled=dialled)
            print(
                f"resolving on a living primary, {name}: median {statistics.median(took):.1f} ms, most {max(took):.1f}"
            )
        print(machine())


def machine() -> str:
    """Say how busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


async def resolved(guard: dbguard.Guard, *, dialled: bool) -> list[float]:
    """Return how long it took to resolve each of some tokens, in milliseconds."""
    engine = guard._engine()  # noqa: SLF001  the connections for claims are nobody's business
    took = []
    for _ in range(RESOLVED):
        for registry in engine.registries.values() if dialled else ():
            registry.rest()
        token = str(new_token(time.time(), secrets.randbits(74)))
        began = time.perf_counter()
        await guard.resolve(token)
        took.append(1e3 * (time.perf_counter() - began))
    return took


def main() -> None:
    """Parse the arguments, start a node, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="per way (default 8)")
    parser.add_argument("--clients", type=int, default=1, help="concurrent clients (default 1)")
    options = parser.parse_args()
    settings = {"fsync": "on", "synchronous_commit": "on"}
    with Cluster(replicas=0, settings=settings, base=Path(tempfile.gettempdir())) as cluster:
        asyncio.run(run(cluster, options.seconds, options.clients))


if __name__ == "__main__":
    main()
