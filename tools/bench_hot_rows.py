"""Whether transaction functions get through on hot rows: the sum is exact, and no error reaches the caller.

    python tools/bench_hot_rows.py [--workers 16] [--seconds 5] [--deadline 30] [--rows 1] [--json]

On a real server, at REPEATABLE READ and at SERIALIZABLE, as many concurrent callers as asked for, each with one
transaction function after the other:

* *counter*: read a row, add one, write it back (40001 wherever two meet);
* *transfer*: move one from a row to another of ten, in any order (40001 and 40P01).

Prints transactions, attempts per transaction, and latencies. Exit code 1 if a sum is not exact, or an error reached a
caller.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import dbguard
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LEVELS = ("repeatable_read", "serializable")
ACCOUNTS = 10


class Tally:
    """What the callers of one case have seen."""

    def __init__(self) -> None:
        self.attempts: list[int] = []
        self.took: list[float] = []
        self.errors: collections.Counter[str] = collections.Counter()

    def row(self, seconds: float, *, exact: bool) -> dict[str, Any]:
        """Return the figures; times in seconds."""
        took = sorted(self.took) or [0.0]
        return {
            "transactions": len(self.attempts),
            "per_second": round(len(self.attempts) / seconds, 1),
            "attempts_mean": round(statistics.fmean(self.attempts or [0]), 2),
            "attempts_most": max(self.attempts, default=0),
            "p50": round(took[len(took) // 2], 4),
            "p99": round(took[int(len(took) * 0.99)], 4),
            "longest": round(took[-1], 4),
            "errors": dict(self.errors),
            "exact": exact,
        }


def counter(rng: random.Random, rows: int) -> Callable[[Any], Awaitable[None]]:
    """Return a function that adds one to a row of *rows*."""
    row = rng.randrange(rows)

    async def add(tx: Any) -> None:
        n = await tx.fetchval("SELECT n FROM counter WHERE id = $1", row)
        await tx.execute("UPDATE counter SET n = $2 WHERE id = $1", row, n + 1)

    return add


def transfer(rng: random.Random, _: int) -> Callable[[Any], Awaitable[None]]:
    """Return a function that moves one from one account to another."""
    payer, payee = rng.sample(range(ACCOUNTS), 2)

    async def move(tx: Any) -> None:
        await tx.execute("UPDATE account SET n = n - 1 WHERE id = $1", payer)
        await tx.execute("UPDATE account SET n = n + 1 WHERE id = $1", payee)

    return move


KINDS = {"counter": counter, "transfer": transfer}


async def case(guard: dbguard.Guard, kind: str, level: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one case, and judge it."""
    await guard.execute("UPDATE counter SET n = 0")
    await guard.execute("UPDATE account SET n = 100")
    tally = Tally()
    rng = random.Random(options.seed)  # noqa: S311  which rows, no secrets
    until = time.monotonic() + options.seconds

    async def worker() -> None:
        while (began := time.monotonic()) < until:
            work = KINDS[kind](rng, options.rows)
            attempts = 0

            async def counted(tx: Any, work: Callable[[Any], Awaitable[None]] = work) -> None:
                nonlocal attempts
                attempts = tx.attempt
                await work(tx)

            try:
                await guard.run_in_transaction(counted, isolation=level, timeout=options.deadline)
            except Exception as error:  # noqa: BLE001  each is a finding, and counted as one
                tally.errors[f"{type(error).__name__}: {'; '.join(getattr(error, '__notes__', [str(error)]))}"] += 1
            else:
                tally.attempts.append(attempts)
                tally.took.append(time.monotonic() - began)

    began = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(options.workers)))
    seconds = time.monotonic() - began
    if kind == "counter":
        exact = await guard.fetchval("SELECT sum(n) FROM counter") == len(tally.attempts)
    else:
        exact = await guard.fetchval("SELECT sum(n) FROM account") == 100 * ACCOUNTS
    return tally.row(seconds, exact=exact)


async def run(cluster: Cluster, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run all cases."""
    results: dict[str, dict[str, Any]] = {}
    async with dbguard.connect(cluster.dsn(cluster.primary)) as guard:
        await guard.execute("CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL)")
        await guard.execute("CREATE TABLE account (id int PRIMARY KEY, n bigint NOT NULL)")
        await guard.execute("INSERT INTO counter SELECT i, 0 FROM generate_series(0, $1 - 1) i", options.rows)
        await guard.execute("INSERT INTO account SELECT i, 100 FROM generate_series(0, $1 - 1) i", ACCOUNTS)
        for kind in KINDS:
            for level in LEVELS:
                row = results[f"{kind}, {level}"] = await case(guard, kind, level, options)
                print(
                    f"{kind:9} {level:16} {row['transactions']:6} tx {row['per_second']:7.1f}/s"
                    f"  attempts {row['attempts_mean']:5.2f} (most {row['attempts_most']})"
                    f"  p50 {row['p50']:.3f} p99 {row['p99']:.3f} longest {row['longest']:.3f} s"
                    f"  errors {sum(row['errors'].values())}  {'exact' if row['exact'] else 'NOT EXACT'}",
                    flush=True,
                )
                for error, times in row["errors"].items():
                    print(f"    {times} x {error}")
    return results


def main() -> int:
    """Parse the arguments, start a node, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=16, help="concurrent callers (default 16)")
    parser.add_argument("--seconds", type=float, default=5.0, help="per case (default 5)")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds per transaction (default 30)")
    parser.add_argument("--rows", type=int, default=1, help="rows that the counter is spread over (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="for the choice of rows (default 1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    options = parser.parse_args()
    with Cluster(replicas=0) as cluster:
        results = asyncio.run(run(cluster, options))
    if options.json:
        print(json.dumps(results))
    return 0 if all(row["exact"] and not row["errors"] and row["transactions"] for row in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
