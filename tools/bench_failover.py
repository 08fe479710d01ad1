"""From a promotion to the first acknowledged write: dbguard, and what is used without it, on one machine.

    python tools/bench_failover.py                                     # killed, promoted at once, 20 runs of each system
    python tools/bench_failover.py --how kill stop --after 0 3 --systems dbguard "dbguard with tokens"
    python tools/bench_failover.py --how freeze hole demote --systems dbguard

Each run is one failover of a primary with two replicas and synchronous replication, under 8 writers and 4 readers that
rest 20 ms between two calls. On a machine that does other work, `chrt -r 1 python tools/bench_failover.py` (Linux, as
root) measures as if it did not. Frozen and cut off primaries are measured without synchronous replication: with it, an
old primary that its replicas have left could acknowledge nothing. Printed:

* first write: from the moment at which the new primary says that it is out of recovery, to the first acknowledgement of
  a write that it took; beside it, floor: the same for a connection to it that was open already; and, for dbguard, seen:
  to the moment at which the guard took it for the primary. From the failure: the same write, since the fault.
* errors, by what was asked: writes that failed, writes left open (in flight when the primary went), reads; and, of all
  these, those that came after the promotion, unless they were left open and had been sent before it.
* lost: acknowledged and not there; twice: applied twice; lied: there, though told to be not applied; old: acknowledged
  by the old primary after the guard had taken another for it.
* load: the machine's load average, and the longest stall of the client's event loop around the promotion: what a noisy
  run is explained by.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from failover_rig import CONFIG, PASSWORD, Book, Client, Failover, Manager

from dbguard.testing.cluster import Cluster
from dbguard.testing.proxied import ProxiedCluster

if TYPE_CHECKING:
    from collections.abc import Iterable

OPEN = ("unknown", "rows lost")
"""How calls end of which nobody said that they failed."""

FAULTS = ("kill", "stop", "freeze", "hole", "demote")
BEFORE = 0.7
"""Seconds between two failovers: longer than a round of probes, so that the replica that came back is known."""
LINGER = 1.0
"""Seconds that callers go on for after the first write, so that late errors are seen."""
GIVE_UP = 15.0
"""Seconds to wait for the first write: more than any call may take."""
OLD_LIVES = 1.5
"""Seconds for which an old primary that was frozen or cut off lives on beside the new one: three rounds of probes."""


@dataclass
class Run:
    """What one failover meant. Seconds; None: it did not come."""

    failover: Failover
    first: float | None = None
    since_fault: float | None = None
    seen: float | None = None
    stall: float = 0.0
    failed_writes: int = 0
    open_writes: int = 0
    failed_reads: int = 0
    after: int = 0
    longest_read: float = 0.0
    lost: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    lied: list[int] = field(default_factory=list)
    old: list[int] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)


def judge(failover: Failover, book: Book, rows: list[tuple[int, str]], on_old: Iterable[tuple[int, str]] = ()) -> Run:
    """Read one failover from what the callers were told, and from the rows on the new primary, and on the old one."""
    run = Run(failover)
    where = dict(rows)
    times = collections.Counter(value for value, _ in rows)
    taken = [
        event["at"] for event in book.events if event["event"] == "PrimaryChanged" and event["node"] == failover.new
    ]
    run.seen = taken[-1] - failover.promoted if taken else None
    writes = [call for call in book.calls if call[0] == "write"]
    acknowledged = [call for call in writes if call[4] == "ok"]
    news = [
        ended for _, value, _, ended, _ in acknowledged if where.get(value) == failover.new and ended > failover.gone
    ]
    if news:
        run.first = min(news) - failover.promoted
        run.since_fault = min(news) - failover.begun
    for kind, value, began, ended, how in book.calls:
        if kind == "read":
            run.longest_read = max(run.longest_read, ended - began)
        if how == "ok":
            continue
        run.kinds[f"{kind}: {how}"] = run.kinds.get(f"{kind}: {how}", 0) + 1
        in_flight = how in OPEN and began < failover.promoted
        run.after += ended > failover.promoted and not in_flight
        if kind == "read":
            run.failed_reads += 1
        elif how in OPEN:
            run.open_writes += 1
        else:
            run.failed_writes += 1
            if value in times:
                run.lied.append(value)
    run.lost = [value for _, value, *_ in acknowledged if value not in times]
    run.twice = [value for value, number in times.items() if number > 1]
    if taken:
        ends = {value: ended for _, value, _, ended, _ in acknowledged}
        run.old = [
            value
            for value, node in on_old
            # What is on both was sent to the old one, never answered there, and repeated on the new one.
            if node == failover.old and value not in times and ends.get(value, 0.0) > taken[-1]
        ]
    around = [
        gap for at, gap in book.stalls if failover.begun < at and at - gap < failover.promoted + (run.first or 0.0)
    ]
    run.stall = max(around, default=0.0)
    return run


async def once(manager: Manager, client: Client, how: str, after: float) -> Run:
    """Make one failover, wait until writes flow and a little longer, and judge; the cluster is whole again then."""
    book = Book()
    await asyncio.sleep(BEFORE)
    await client.ask("take")
    failover = await manager.fail_over(how, after)
    new = manager.cluster.node(failover.new)
    run = Run(failover)
    loop = asyncio.get_running_loop()
    until = loop.time() + GIVE_UP
    while run.first is None and loop.time() < until:
        await asyncio.sleep(0.2)
        await book.take(client)
        run = judge(failover, book, await manager.rows(new))
    on_old: list[tuple[int, str]] = []
    if how in ("freeze", "hole"):
        await manager.heal(failover)
        await asyncio.sleep(OLD_LIVES)
        on_old = await manager.rows(manager.cluster.node(failover.old))
    await asyncio.sleep(LINGER)
    await book.take(client)
    # What is acknowledged while the rows are read is no loss: the calls were taken before.
    run = judge(failover, book, await manager.rows(new), on_old)
    await manager.mend(failover)
    return run


async def measure(cluster: Cluster, system: str, how: str, options: argparse.Namespace, after: float) -> list[Run]:
    """Make all runs of one system with one fault."""
    # An old primary whose commits wait for replicas that left it acknowledges nothing by itself: it must be able to.
    synchronous = how not in ("freeze", "hole")
    manager = Manager(cluster, synchronous=synchronous, strict=options.strict)
    await manager.prepare()
    runs = []
    async with Client(cluster, system) as client:
        await asyncio.sleep(1.0)
        for number in range(options.runs):
            runs.append(await once(manager, client, how, after))
            if options.verbose:
                print(f"  {number + 1}: {line(runs[-1:])}; {runs[-1].kinds}", file=sys.stderr, flush=True)
    return runs


def line(runs: list[Run]) -> str:
    """Write one row of the table."""
    ms = [1000 * run.first for run in runs if run.first is not None]
    fault = [1000 * run.since_fault for run in runs if run.since_fault is not None]
    seen = [1000 * run.seen for run in runs if run.seen is not None]
    floors = [1000 * run.failover.floor for run in runs]
    never = f" never {len(runs) - len(ms)}" if len(ms) < len(runs) else ""

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})" if values else "-"

    def total(name: str) -> int:
        return sum(len(value) if isinstance(value := getattr(run, name), list) else value for run in runs)

    errors = f"{total('failed_writes')} / {total('open_writes')} / {total('failed_reads')} / {total('after')}"
    harm = " / ".join(str(total(name)) for name in ("lost", "twice", "lied", "old"))
    load = statistics.median(run.failover.load for run in runs)
    return (
        f"{spread(ms) + never:>18} | {spread(floors):>12} | {spread(seen):>12} | {spread(fault):>18} | {errors:>18} | {harm:>13} |"
        f" {1000 * max(run.longest_read for run in runs):>6.0f} | {load:.1f}, {1000 * max(run.stall for run in runs):.0f}"
    )


HEAD = (
    f"{'':36} | {'first write, ms':>18} | {'floor, ms':>12} | {'seen, ms':>12} | {'from the fault, ms':>18} |"
    " errors: writes / open / reads / after the promotion | lost / twice / lied / old | longest read, ms | load, stall ms"
)


def main() -> int:
    """Parse the arguments, measure, print; the exit code says whether nothing was lost, doubled or told wrongly by a guard."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="failovers of each system (default 20)")
    parser.add_argument(
        "--how", nargs="+", choices=FAULTS, default=["kill"], help="what becomes of the primary (default kill)"
    )
    parser.add_argument(
        "--after", nargs="+", type=float, default=[0.0], help="seconds from there to the promotion (default 0)"
    )
    parser.add_argument("--systems", nargs="+", choices=tuple(CONFIG), default=list(CONFIG), help="default: all")
    parser.add_argument(
        "--strict", action="store_true", help="a promoted replica waits for another one from the first commit on"
    )
    parser.add_argument("--json", action="store_true", help="print every run as JSON")
    parser.add_argument("--verbose", action="store_true", help="print each run on standard error as it ends")
    options = parser.parse_args()
    told: list[dict[str, Any]] = []
    fine = True
    if not options.json:
        print(HEAD, flush=True)
    for how in options.how:
        for after in options.after:
            for system in options.systems:
                kind = ProxiedCluster if how == "hole" else Cluster
                with contextlib.ExitStack() as stack:
                    cluster = stack.enter_context(kind(replicas=2, synchronous=True, password=PASSWORD))
                    runs = asyncio.run(measure(cluster, system, how, options, after))
                told += [{"system": system, "how": how, "after": after} | asdict(run) for run in runs]
                if system.startswith("dbguard"):
                    fine &= not any(run.lost or run.twice or run.lied or run.old or run.first is None for run in runs)
                if not options.json:
                    print(f"{f'{how}, {after:g} s, {system}':36} | {line(runs)}", flush=True)
    if options.json:
        print(json.dumps(told, indent=1))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
