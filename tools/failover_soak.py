"""Many failovers in one run, on one guard: whether anything is lost or doubled, and whether anything grows.

    python tools/failover_soak.py --failovers 50                       # some five minutes
    python tools/failover_soak.py --failovers 50 --system dbguard      # without tokens: writes in flight stay unknown

The primary is killed or stopped by turns, a replica promoted, and the old primary rewound to come back as a replica.
Writers and readers go on all the time. Memory, tasks, connections and sessions on the servers are counted with the
callers at rest: after `WARM` failovers, in between, and at the end. The exit code says whether nothing acknowledged was
lost, nothing was applied twice or told wrongly, no call failed, and nothing grew.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import statistics
import sys
import time
from typing import Any

from bench_failover import BEFORE, OPEN, Run, judge
from failover_rig import PASSWORD, Book, Client, Manager

from dbguard.testing.cluster import Cluster

WARM = 10
"""Failovers before the first count: by then every pool has had its connections, and every cache its entries."""

COUNT_EVERY = 10
"""Failovers between two counts."""

MEMORY_SLACK = 2048
"""KiB by which resident memory may differ between two counts without anything having grown: what allocators keep."""

OBJECTS_PER_FAILOVER = 20
"""Objects that may be left per failover: a few rows of bounded memories (past instances, reigns), and chance."""

SETTLE = 3.0
"""Seconds after a failover's end before a count: background work ends by then."""


async def count(manager: Manager, client: Client, done: int) -> dict[str, int]:
    """Count with the callers at rest, and let them go on."""
    await client.ask("counts")  # at rest from here on
    await asyncio.sleep(SETTLE)
    counted = await client.ask("counts")
    del counted["done"]
    counted = {"failovers": done} | counted | {"backends": await manager.backends()}
    await client.ask("go")
    return counted


async def soak(cluster: Cluster, options: argparse.Namespace) -> dict[str, Any]:
    """Make all failovers, and judge the whole."""
    manager = Manager(cluster)
    await manager.prepare()
    book, runs, counts = Book(), list[Run](), list[dict[str, int]]()
    began = time.monotonic()
    async with Client(cluster, options.system) as client:
        for number in range(1, options.failovers + 1):
            await asyncio.sleep(BEFORE)
            of_this = Book()
            await book.take(client)
            failover = await manager.fail_over(("kill", "stop")[number % 2], options.after)
            await manager.mend(failover)
            await asyncio.sleep(0.5)
            await of_this.take(client)
            runs.append(judge(failover, of_this, await manager.rows(cluster.primary)))
            book.calls += of_this.calls
            if options.verbose:
                first = runs[-1].first
                said = "never" if first is None else f"{1000 * first:.0f} ms"
                print(
                    f"  {number}: {failover.how} {failover.old} -> {failover.new}, {said}; {runs[-1].kinds}",
                    file=sys.stderr,
                )
            if number == min(WARM, options.failovers) or number % COUNT_EVERY == 0 or number == options.failovers:
                counts.append(await count(manager, client, number))
        await client.ask("counts")
        await book.take(client)
        rows = await manager.rows(cluster.primary)
    return told(book, runs, counts, rows) | {"seconds": round(time.monotonic() - began)}


def told(book: Book, runs: list[Run], counts: list[dict[str, int]], rows: list[tuple[int, str]]) -> dict[str, Any]:
    """Sum up what callers were told over the whole run, and what the last primary has."""
    times = collections.Counter(value for value, _ in rows)
    writes = [call for call in book.calls if call[0] == "write"]
    how = collections.Counter(f"{call[0]}: {call[4][:40]}" for call in book.calls)
    failed = [call for call in book.calls if call[4] not in ("ok", *OPEN)]
    firsts = sorted(1000 * run.first for run in runs if run.first is not None)
    return {
        "failovers": len(runs),
        "calls": dict(how),
        "failed": len(failed),
        "lost": sorted(value for _, value, *_, ending in writes if ending == "ok" and value not in times),
        "twice": sorted(value for value, number in times.items() if number > 1),
        "lied": sorted(call[1] for call in failed if call[1] in times),
        "first_ms": {
            "median": round(statistics.median(firsts)) if firsts else None,
            "worst": round(firsts[-1]) if firsts else None,
            "never": len(runs) - len(firsts),
        },
        "longest_read_ms": round(1000 * max((run.longest_read for run in runs), default=0.0)),
        "stall_ms": round(1000 * max((run.stall for run in runs), default=0.0)),
        "load": max((run.failover.load for run in runs), default=0.0),
        "counts": counts,
    }


def grown(counts: list[dict[str, int]]) -> list[str]:
    """Say what grew between the first count and the last; empty: nothing."""
    first, last = counts[0], counts[-1]
    failovers = last["failovers"] - first["failovers"]
    allowed = {
        "resident_kib": MEMORY_SLACK,
        "objects": OBJECTS_PER_FAILOVER * failovers,
        "tasks": 0,
        "in_use": 0,
        "descriptors": 0,
        "backends": 0,
    }
    # Pools and claims hold between few and many connections, as chance has it: what grows shows against the most seen.
    loose = {"descriptors", "backends"}
    grown = []
    for name, slack in allowed.items():
        before = max(count[name] for count in counts[: max(1, len(counts) // 2)]) if name in loose else first[name]
        if last[name] > before + slack:
            grown.append(f"{name} {before} -> {last[name]}")
    return grown


def main() -> int:
    """Parse the arguments, soak, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failovers", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--after", type=float, default=0.0, help="seconds between fault and promotion (default 0)")
    parser.add_argument("--system", default="dbguard with tokens", choices=("dbguard", "dbguard with tokens"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--verbose", action="store_true", help="print each failover on standard error")
    options = parser.parse_args()
    with Cluster(replicas=2, synchronous=True, password=PASSWORD) as cluster:
        result = asyncio.run(soak(cluster, options))
    result["grown"] = grown(result["counts"])
    harm = {name: result[name] for name in ("lost", "twice", "lied", "grown") if result[name]}
    fine = not harm and not result["failed"] and not result["first_ms"]["never"]
    if options.json:
        print(json.dumps(result, indent=1))
        return 0 if fine else 1
    for name, value in result.items():
        if name != "counts":
            print(f"{name}: {len(value) if name in ('lost', 'twice', 'lied') else value}")
    columns = list(result["counts"][0])
    print(" ".join(f"{name:>13}" for name in columns))
    for counted in result["counts"]:
        print(" ".join(f"{counted[name]:>13}" for name in columns))
    print("nothing lost, doubled, told wrongly or grown" if fine else f"CAUGHT: {harm or result['calls']}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
