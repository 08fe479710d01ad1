"""What pacing the release of waiting calls does to a new primary: side by side with letting all go at once.

    python tools/bench_release.py [--callers 500] [--processes 1 10] [--rounds 3] [--seconds 2] [--json]

On a real cluster with passwords (SCRAM: a dial costs the server several milliseconds of CPU), in as many application
processes as asked for, each with a guard and pools of 20 connections, *callers* write one after the other. The primary is killed,
all wait, and a replica is promoted. Counted from the moment when it takes writes, for some seconds:

* dials: connection attempts per second that reach the new primary, and the most in any 100 ms (from its log);
* first: seconds until the first acknowledged write; all: until every caller that waited has been answered;
* writes: acknowledged per second; errors: of any kind, seen by callers.

Paced and unpaced runs take turns, each on a cluster of its own; medians of the rounds are printed. Takes some ten
seconds per run, and five minutes at most in all (`--rounds`). Exit code 1 if a paced run has shown an error to a caller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

import dbguard
from dbguard.core.gate import Gate
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Iterable
    from pathlib import Path

PASSWORD = "bench"  # noqa: S105  of a cluster that lives for seconds
WRITE = """
    WITH work AS (SELECT count(*) AS n FROM generate_series(1, 2000))
    UPDATE account SET n = account.n + 1 FROM work WHERE id = $1
"""
STEP = 0.1
FIGURES = ("dials", "most", "first", "all", "writes", "errors")


# ---------------------------------------------------------------- one application process


async def worker(dsn: str, numbers: Iterable[int], *, paced: bool) -> None:
    """Write without pause; tell on standard output how things stand, and at the end what was seen."""
    if not paced:
        found = Gate.primary_found
        Gate.primary_found = lambda gate, *args, **more: found(gate, *args, **more | {"pace": False})  # type: ignore[method-assign]  # in this process alone, to see what the pace is worth
    answered: list[float] = []
    errors: list[str] = []
    served: dict[int, float] = {}
    writing: set[int] = set()
    until = float("inf")
    promoted = float("inf")

    async def caller(guard: dbguard.Guard, number: int) -> None:
        while time.monotonic() < until:
            try:
                await guard.execute(WRITE, number)
            except dbguard.OutcomeUnknown:
                continue  # it was under way when the primary was killed
            except Exception as error:  # noqa: BLE001  counted
                errors.append(f"{type(error).__name__}: {error}")
                continue
            now = time.monotonic()
            answered.append(now)
            writing.add(number)
            if now >= promoted:
                served.setdefault(number, now)

    loop = asyncio.get_running_loop()
    async with dbguard.connect(dsn, min_size=0) as guard:
        numbers = list(numbers)
        tasks = [asyncio.ensure_future(caller(guard, number)) for number in numbers]
        while len(writing) < len(numbers):  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(0.02)
        print("writing", flush=True)
        while guard.status().waiting < len(numbers):  # noqa: ASYNC110  same
            await asyncio.sleep(0.02)
        promoted = time.monotonic()
        print("waiting", flush=True)
        begin, until = map(float, (await loop.run_in_executor(None, sys.stdin.readline)).split())
        await asyncio.gather(*tasks)
    print(json.dumps({
        "answered": [at - begin for at in answered if at >= promoted],
        "served": [served.get(number, until) - begin for number in numbers],
        "errors": errors,
    }))  # fmt: skip


# ---------------------------------------------------------------- one run


async def measure(callers: int, processes: int, seconds: float, *, paced: bool) -> dict[str, float]:
    """Make a cluster, break it, and return the figures."""
    settings = {"log_connections": "on", "max_connections": str(100 + 25 * processes)}
    cluster = Cluster(replicas=1, password=PASSWORD, settings=settings)
    await asyncio.to_thread(cluster.start)
    workers: list[Process] = []
    try:
        await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL)")
        await asyncio.to_thread(
            cluster.sql, "a", "INSERT INTO account SELECT i, 0 FROM generate_series(1, $1) i", callers
        )
        await asyncio.to_thread(cluster.wait_for, "b", "SELECT EXISTS (SELECT FROM account)")
        for place in range(processes):
            own = ",".join(str(number) for number in range(1 + place, callers + 1, processes))
            argv = [
                sys.executable,
                __file__,
                "--worker",
                cluster.dsn(),
                "--numbers",
                own,
                *([] if paced else ["--unpaced"]),
            ]
            pipe = asyncio.subprocess.PIPE
            workers.append(await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, limit=2**26))
        await asyncio.gather(*(heard(process, "writing") for process in workers))
        await asyncio.sleep(1.0)
        await asyncio.to_thread(cluster.kill, "a")
        await asyncio.gather(*(heard(process, "waiting") for process in workers))
        began = time.monotonic()
        begin = began + await asyncio.to_thread(cluster.promote, "b")
        at = time.time() - (time.monotonic() - begin)
        for process in workers:
            assert process.stdin is not None  # noqa: S101  it is a pipe
            process.stdin.write(f"{begin} {begin + seconds}\n".encode())
        told = [json.loads(await said(process)) for process in workers]
        for process in workers:
            await process.wait()
        dialled = [when - at for when in dials(cluster.node("b").log) if 0 <= when - at < seconds]
    finally:
        for process in workers:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await asyncio.to_thread(cluster.stop)
    answered = sorted(when for worker in told for when in worker["answered"] if when < seconds)
    errors = [error for worker in told for error in worker["errors"]]
    for error in sorted(set(errors))[:3]:
        print(f"  seen by a caller: {error}", file=sys.stderr)
    return {
        "dials": len(dialled) / seconds,
        "most": max((sum(1 for when in dialled if step * STEP <= when < (step + 1) * STEP)
                     for step in range(round(seconds / STEP))), default=0),
        "first": min(answered, default=seconds),
        "all": max(when for worker in told for when in worker["served"]),
        "writes": len(answered) / seconds,
        "errors": len(errors),
    }  # fmt: skip


def dials(log: Path) -> list[float]:
    """Return when connections were received, in seconds since the epoch."""
    lines = log.read_text(errors="replace").splitlines()
    heads = (line.split(" [", 1)[0] for line in lines if "connection received" in line)
    return [
        datetime.fromisoformat(head.removesuffix(" GMT").removesuffix(" UTC") + "+00:00").timestamp() for head in heads
    ]


async def heard(process: Process, word: str) -> None:
    """Wait until a worker has said *word*."""
    line = await said(process)
    if line.strip() != word:
        raise SystemExit(f"a worker said {line!r}, not {word!r}")


async def said(process: Process) -> str:
    """Return the next line of a worker."""
    assert process.stdout is not None  # noqa: S101  it is a pipe
    async with asyncio.timeout(120):
        return (await process.stdout.readline()).decode()


async def compare(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure all that was asked for, in turns."""
    results: dict[str, dict[str, float]] = {}
    for processes in options.processes:
        rows: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for turn in range(options.rounds):
            for paced in (True, False) if turn % 2 else (False, True):
                rows[paced].append(await measure(options.callers, processes, options.seconds, paced=paced))
        for paced, seen in rows.items():
            name = f"{processes} process{'es' if processes > 1 else ''}, {'paced' if paced else 'all at once'}"
            row = results[name] = {figure: statistics.median(one[figure] for one in seen) for figure in FIGURES}
            row["errors"] = sum(one["errors"] for one in seen)
            print(
                f"{name:28} {row['dials']:8.1f} {row['most']:8.0f} {row['first']:8.3f} {row['all']:8.3f}"
                f" {row['writes']:8.0f} {row['errors']:8.0f}",
                flush=True,
            )
    return results


def main() -> int:
    """Parse the arguments; measure, or be one of the applications that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, default=500, help="that wait, over all processes (default 500)")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 10], help="of the application (default 1 and 10)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="after the promotion that count (default 2)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    parser.add_argument("--unpaced", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(worker(options.worker, map(int, options.numbers.split(",")), paced=not options.unpaced))
        return 0
    print(
        f"{options.callers} waiting callers; the first {options.seconds:g} s after the promotion, medians of {options.rounds}"
    )
    print(f"{'':28} {'dials/s':>8} {'/100 ms':>8} {'first s':>8} {'all s':>8} {'writes/s':>8} {'errors':>8}")
    results = asyncio.run(compare(options))
    if options.json:
        print(json.dumps(results))
    return int(any(row["errors"] for name, row in results.items() if name.endswith(", paced")))


if __name__ == "__main__":
    sys.exit(main())
