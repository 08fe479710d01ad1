"""By how much calls overstay their deadlines in a black hole: on a real server, behind the real Toxiproxy.

    python tools/bench_deadlines.py [--calls 1000] [--batch 20] [--limit 0.5] [--fault NAME] [--case NAME] [--net] [--json]

Three faults: *replies* are swallowed, *requests* are swallowed, the server is *frozen* (all its processes stopped). Each
opens where a case says: before a dial, in mid-stream of a large result, between the last statement and COMMIT. Printed
per case: calls, the median and the largest overshoot, and how the calls ended. A task that only sleeps runs beside them:
the time by which it is woken late although this thread had nothing to compute is the machine's, and so is that of the
calls which it hit. *Net* is the largest overshoot without it.

Exit code 1 if a call overstayed its deadline by more than 100 ms; with ``--net`` that which the machine did to it does
not count, for machines that do something else as well.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import tenacity

import dbguard
from dbguard.testing.proxied import APPLICATION, ProxiedCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    Case = Callable[["Stage", dbguard.Guard], Awaitable[None]]

PROMISED = 0.1
"""Seconds by which a call may overstay its deadline."""

TICK = 0.005
"""Seconds between two looks at how late a sleeping task is woken."""

TRUTHFUL = {"done", "DeadlineExceeded", "OutcomeUnknown", "NoPrimary", "KeyError"}
"""How calls may end here, by the names of their errors. KeyError is the application's own."""

FAULTS = ("replies", "requests", "frozen")

LARGE = "SELECT repeat('x', 2000), pg_sleep(0.002) FROM generate_series(1, 100000)"
"""A result of 200 MB that comes at a megabyte a second."""

CONFLICT = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"


@dataclass
class Seen:
    """What the calls of one case have shown, in seconds."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    """Deadline and end of each call, on the monotonic clock."""
    stolen: list[tuple[float, float, float]] = field(default_factory=list)
    """From when to when a sleeping task was woken late, and the share of it in which this thread computed nothing."""
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)

    def net(self) -> float:
        """Return the largest overshoot without the machine's share."""
        return max(
            end - until - sum(share * max(0.0, min(end, to) - max(until, since)) for since, to, share in self.stolen)
            for until, end in self.ends
        )


class Stage:
    """One guard over one node behind a proxy, the fault to come, and what the calls show.

    size: calls at a time. limit: seconds that each has. hole: set once the fault is there. resets_wait: a wrapped pool's
    reset comes to where the hole opens.
    """

    def __init__(self, cluster: ProxiedCluster, fault: str, size: int, limit: float) -> None:
        self.cluster = cluster
        self.fault = fault
        self.size = size
        self.limit = limit
        self.seen = Seen()
        self.hole = asyncio.Event()
        self.arrived = 0
        self.all_there = asyncio.Event()
        self.resets_wait = False
        self._toxic: Any = None

    # ------------------------------------------------------------------ the fault

    async def open_hole(self) -> None:
        """Let the fault begin."""
        link = self.cluster.link(APPLICATION, self.cluster.primary)
        if self.fault == "frozen":
            await asyncio.to_thread(self.cluster.freeze, self.cluster.primary)
        else:
            stream: Any = "downstream" if self.fault == "replies" else "upstream"
            self._toxic = await asyncio.to_thread(lambda: link.toxic("timeout", stream=stream, timeout=0))
        self.hole.set()

    async def heal(self) -> None:
        """Let it end."""
        if self.fault == "frozen":
            if self.cluster.primary.frozen:
                await asyncio.to_thread(self.cluster.thaw, self.cluster.primary)
        elif self._toxic is not None:
            await asyncio.to_thread(self._toxic.remove)
            self._toxic = None
        self.hole = asyncio.Event()
        self.all_there = asyncio.Event()
        self.arrived = 0
        self.resets_wait = False

    async def reach(self) -> None:
        """Come to where the hole opens once all are there, and wait for it."""
        self.note()
        await self.hole.wait()

    def note(self) -> None:
        """Come to where the hole opens, and go on."""
        self.arrived += 1
        if self.arrived >= self.size:
            self.all_there.set()

    # ------------------------------------------------------------------ the calls

    async def timed(self, work: Callable[[], Awaitable[Any]], limit: float | None = None) -> None:
        """Do *work*, which must end by *limit*, and note by how much it did not."""
        until = time.monotonic() + (self.limit if limit is None else limit)
        try:
            await work()
        except Exception as error:  # noqa: BLE001  how calls end is what is looked at
            name = type(error).__name__
        else:
            name = "done"
        self.seen.ends.append((until, time.monotonic()))
        self.seen.outcomes[name] += 1

    async def within(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Do *work* under an ambient deadline."""

        async def bounded() -> None:
            with dbguard.deadline(self.limit):
                await work()

        await self.timed(bounded)

    async def all(self, work: Callable[[], Awaitable[Any]], *, ambient: bool = False) -> None:
        """Do it as often as calls go at a time, spread over 20 ms, so that not all end in one turn of the loop."""

        async def one(number: int) -> None:
            await asyncio.sleep(0.02 * number / self.size)
            await (self.within(work) if ambient else self.timed(work))

        await asyncio.gather(*(one(number) for number in range(self.size)))

    async def into_hole(self, work: Callable[[], Awaitable[Any]], *, ambient: bool = False) -> None:
        """Open the hole, then do it."""
        await self.open_hole()
        await self.all(work, ambient=ambient)

    async def until_hole(self, work: Callable[[], Awaitable[Any]], *, ambient: bool = False) -> None:
        """Do it, and open the hole once all have come to it, or half of the time is over."""

        async def opener() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.limit / 2):
                    await self.all_there.wait()
            await self.open_hole()

        await asyncio.gather(opener(), self.all(work, ambient=ambient))

    # ------------------------------------------------------------------ guards

    def config(self, **sections: Any) -> dict[str, Any]:
        """Return the configuration of a guard that reaches the node through its proxy."""
        link = self.cluster.link(APPLICATION, self.cluster.primary)
        return {
            "nodes": [{"name": "a", "host": link.host, "port": link.port}],
            "connection": {"user": "postgres", "database": "postgres"},
            **sections,
        }

    @contextlib.asynccontextmanager
    async def guard(self, config: dict[str, Any] | None = None, **arguments: Any) -> AsyncIterator[dbguard.Guard]:
        """Open a guard whose pool has room for all calls."""
        arguments = {"min_size": 0, "max_size": self.size} | arguments
        guard = dbguard.Guard(self.config(**(config or {})), **arguments)
        await guard.open()
        try:
            yield guard
        finally:
            await guard.close(timeout=0.1)


async def settled(guard: dbguard.Guard) -> None:
    """Wait until the guard has its primary again, and nothing is out."""
    async with asyncio.timeout(30):
        while True:
            status = guard.status()
            node = status.nodes[0]
            if status.writes == "open" and node.breaker == "closed" and node.in_use == 0:
                with contextlib.suppress(Exception):
                    await guard.fetchval("SELECT 1", timeout=5)
                    return
            await asyncio.sleep(0.01)


async def warm(guard: dbguard.Guard, count: int) -> None:
    """Let *count* connections be at hand. The server may still be busy with burying those of the last batch."""
    async with asyncio.timeout(60):
        while True:
            taken = await asyncio.gather(*(guard.acquire(timeout=10) for _ in range(count)), return_exceptions=True)
            for con in taken:
                if not isinstance(con, BaseException):
                    await guard.release(con)
            if not any(isinstance(con, BaseException) for con in taken):
                return
            await asyncio.sleep(0.2)


# ---------------------------------------------------------------------- the cases

CASES: dict[str, tuple[Case, dict[str, Any]]] = {}


def case(name: str, **guard: Any) -> Callable[[Case], Case]:
    """Enter a case; *guard*: arguments of `Stage.guard`."""

    def enter(function: Case) -> Case:
        CASES[name] = function, guard
        return function

    return enter


@case("dial")
async def dial(stage: Stage, guard: dbguard.Guard) -> None:
    """No connection is at hand, and none comes about."""
    await guard.expire_connections()
    await stage.into_hole(lambda: guard.fetchval("SELECT 1", timeout=stage.limit))


@case("checkout", max_size=2)
async def checkout(stage: Stage, guard: dbguard.Guard) -> None:
    """All connections are out, and nobody gives one back."""
    held = [await guard.acquire() for _ in range(2)]
    await stage.into_hole(lambda: guard.fetchval("SELECT 1", timeout=stage.limit))
    for con in held:
        await guard.release(con)


@case("execute, a write")
async def write(stage: Stage, guard: dbguard.Guard) -> None:
    """An autocommit write gets no answer."""
    await warm(guard, stage.size)
    await stage.into_hole(lambda: guard.execute("INSERT INTO written VALUES (1)", timeout=stage.limit))


@case("fetch, a read")
async def read(stage: Stage, guard: dbguard.Guard) -> None:
    """A read gets no answer; there is no other node."""
    await warm(guard, stage.size)
    await stage.into_hole(lambda: guard.fetch("SELECT 1", timeout=stage.limit))


@case("fetch of a large result")
async def large(stage: Stage, guard: dbguard.Guard) -> None:
    """The rows stop coming."""
    await warm(guard, stage.size)
    await stage.until_hole(lambda: guard.fetch(LARGE, timeout=stage.limit))


@case("COPY in")
async def copy_in(stage: Stage, guard: dbguard.Guard) -> None:
    """The server stops reading an endless source."""
    await warm(guard, stage.size)

    async def source() -> AsyncIterator[bytes]:
        for number in range(10_000):
            if number == 20:
                stage.note()
            yield b"1\n" * 8_000
            await asyncio.sleep(0.001)

    await stage.until_hole(lambda: guard.copy_to_table("written", source=source(), timeout=stage.limit))


@case("COPY of records")
async def copy_records(stage: Stage, guard: dbguard.Guard) -> None:
    """The server takes no more records."""
    await warm(guard, stage.size)

    async def records() -> AsyncIterator[tuple[int]]:
        for number in range(10_000_000):
            if number == 200:
                stage.note()
            if number % 20 == 0:
                await asyncio.sleep(0.001)
            yield (number,)

    await stage.until_hole(
        lambda: guard.copy_records_to_table("written", records=records(), columns=["id"], timeout=stage.limit)
    )


@case("COPY out")
async def copy_out(stage: Stage, guard: dbguard.Guard) -> None:
    """The rows stop coming."""
    await warm(guard, stage.size)

    async def call() -> None:
        first = True

        async def output(_: bytes) -> None:
            nonlocal first
            if first:
                first = False
                stage.note()

        await guard.copy_from_query(LARGE, output=output, timeout=stage.limit)

    await stage.until_hole(call)


@case("executemany")
async def many(stage: Stage, guard: dbguard.Guard) -> None:
    """The server stops in the middle of many rows."""
    await warm(guard, stage.size)
    rows = [("x" * 1_000,)] * 20_000

    async def call() -> None:
        stage.note()
        await guard.executemany("INSERT INTO texts SELECT $1 FROM pg_sleep(0.001)", rows, timeout=stage.limit)

    await stage.until_hole(call)


@case("BEGIN")
async def begin(stage: Stage, guard: dbguard.Guard) -> None:
    """A block cannot be entered."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.transaction(timeout=stage.limit):
            pass

    await stage.into_hole(block)


@case("COMMIT of a block")
async def commit_block(stage: Stage, guard: dbguard.Guard) -> None:
    """The answer to COMMIT does not come."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.transaction() as tx:
            await tx.execute("INSERT INTO written VALUES (1)")
            await stage.reach()

    await stage.until_hole(block, ambient=True)


@case("ROLLBACK of a block")
async def rollback_block(stage: Stage, guard: dbguard.Guard) -> None:
    """The application's own exception leaves a block, and ROLLBACK is not answered."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.transaction() as tx:
            await tx.execute("INSERT INTO written VALUES (1)")
            await stage.reach()
            raise KeyError("the application's own")

    await stage.until_hole(block, ambient=True)


@case("statement in a block")
async def in_block(stage: Stage, guard: dbguard.Guard) -> None:
    """A statement in a block gets no answer."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.transaction() as tx:
            await stage.reach()
            await tx.execute("INSERT INTO written VALUES (1)")

    await stage.until_hole(block, ambient=True)


@case("COMMIT of a function")
async def commit_function(stage: Stage, guard: dbguard.Guard) -> None:
    """The answer to a transaction function's COMMIT does not come."""
    await warm(guard, stage.size)

    async def work(tx: Any) -> None:
        await tx.execute("INSERT INTO written VALUES (1)")
        await stage.reach()

    await stage.until_hole(lambda: guard.run_in_transaction(work, timeout=stage.limit))


@case("statement of a function")
async def in_function(stage: Stage, guard: dbguard.Guard) -> None:
    """A statement in a transaction function gets no answer."""
    await warm(guard, stage.size)

    async def work(tx: Any) -> None:
        await stage.reach()
        await tx.execute("INSERT INTO written VALUES (1)")

    await stage.until_hole(lambda: guard.run_in_transaction(work, timeout=stage.limit))


@case("a function's own waiting")
async def own_waiting(stage: Stage, guard: dbguard.Guard) -> None:
    """A transaction function waits for something else than the database."""
    await warm(guard, stage.size)

    async def work(_: Any) -> None:
        await asyncio.sleep(60)

    await stage.into_hole(lambda: guard.run_in_transaction(work, timeout=stage.limit))


@case("acquire and statement")
async def acquired(stage: Stage, guard: dbguard.Guard) -> None:
    """A statement on an acquired connection gets no answer."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.acquire() as con:
            await stage.reach()
            await con.fetchval("SELECT 1")

    await stage.until_hole(block, ambient=True)


@case("prepared statement")
async def prepared(stage: Stage, guard: dbguard.Guard) -> None:
    """A prepared statement gets no answer."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.acquire() as con:
            statement = await con.prepare("SELECT $1::int")
            await stage.reach()
            await statement.fetch(1)

    await stage.until_hole(block, ambient=True)


@case("cursor")
async def cursor(stage: Stage, guard: dbguard.Guard) -> None:
    """A cursor's rows stop coming."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.transaction() as tx:
            number = 0
            async for _ in tx.cursor("SELECT generate_series(1, 10000)", prefetch=10):
                number += 1
                if number == 10:
                    await stage.reach()

    await stage.until_hole(block, ambient=True)


@case("giving back, which resets")
async def give_back(stage: Stage, guard: dbguard.Guard) -> None:
    """A connection whose session must be reset goes back."""
    await warm(guard, stage.size)

    async def block() -> None:
        async with guard.acquire() as con:
            await con.execute("SET application_name = 'touched'")
            await stage.reach()

    await stage.until_hole(block, ambient=True)


@case("waiting for a primary")
async def waiting(stage: Stage, guard: dbguard.Guard) -> None:
    """The primary is gone, and none is found."""
    await stage.open_hole()
    async with asyncio.timeout(20):
        while guard.status().nodes[0].breaker == "closed":  # noqa: ASYNC110  the guard's state, and no event tells it
            await asyncio.sleep(0.01)
    await stage.all(lambda: guard.execute("INSERT INTO written VALUES (1)", timeout=stage.limit))


@case("backoff", retry_wait=tenacity.wait_fixed(60))
async def backoff(stage: Stage, guard: dbguard.Guard) -> None:
    """Time ends while a call backs off, or in the hole that it finds afterwards."""
    await warm(guard, stage.size)

    async def work(tx: Any) -> None:
        stage.note()
        await tx.execute(CONFLICT)

    await stage.until_hole(lambda: guard.run_in_transaction(work, timeout=stage.limit))


@case("close of the guard")
async def close(stage: Stage, _: dbguard.Guard) -> None:
    """Guards with calls under way and connections at hand are closed."""
    guards = [
        dbguard.Guard(stage.config(), min_size=2, max_size=2, server_settings={"application_name": "closing"})
        for _ in range(min(stage.size, 10))
    ]
    await asyncio.gather(*(guard.open() for guard in guards))
    await asyncio.gather(*(warm(guard, 2) for guard in guards))
    await stage.open_hole()
    calls = [asyncio.create_task(guard.fetchval("SELECT 1")) for guard in guards]
    await asyncio.sleep(0)
    await asyncio.gather(*(stage.timed(lambda g=guard: g.close(timeout=stage.limit)) for guard in guards))
    for ended in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(ended, Exception), "a call got an answer out of a black hole"  # noqa: S101  else the figures are of nothing


@case("opening a guard")
async def opening(stage: Stage, _: dbguard.Guard) -> None:
    """Guards are opened while nobody answers."""
    await stage.open_hole()
    config = stage.config(startup={"wait": stage.limit})
    guards = [dbguard.Guard(config) for _ in range(min(stage.size, 10))]
    await asyncio.gather(*(stage.timed(guard.open) for guard in guards))


# ---------------------------------------------------------------------- a pool of the application's


@case("wrapped: fetch, a read", wrapped=True)
async def wrapped_read(stage: Stage, guard: dbguard.Guard) -> None:
    """A read over the application's pool gets no answer."""
    await warm(guard, stage.size)
    await stage.into_hole(lambda: guard.fetch("SELECT 1", timeout=stage.limit))


@case("wrapped: dial", wrapped=True)
async def wrapped_dial(stage: Stage, guard: dbguard.Guard) -> None:
    """The application's pool has no connection, and gets none."""
    await guard.expire_connections()
    await stage.into_hole(lambda: guard.fetchval("SELECT 1", timeout=stage.limit))


@case("wrapped: giving back, which resets", wrapped=True)
async def wrapped_give_back(stage: Stage, guard: dbguard.Guard) -> None:
    """The statement is answered, and asyncpg's reset before the connection goes back is not."""
    await warm(guard, stage.size)
    stage.resets_wait = True
    await stage.until_hole(lambda: guard.fetchval("SELECT 1", timeout=stage.limit))


@contextlib.asynccontextmanager
async def over_pool(stage: Stage) -> AsyncIterator[dbguard.Guard]:
    """Guard a pool of the application's, whose reset waits for the hole where one is about to open."""

    async def reset(con: Any) -> None:
        if stage.resets_wait:
            await stage.reach()
        await con.execute(con.get_reset_query())

    link = stage.cluster.link(APPLICATION, stage.cluster.primary)
    dsn = f"postgresql://postgres@{link.host}:{link.port}/postgres"
    pool = await asyncpg.create_pool(dsn, min_size=0, max_size=stage.size + 1, reset=reset)
    guard = dbguard.Guard.wrap(pool)
    try:
        await guard.open()
        try:
            yield guard
        finally:
            await guard.close(timeout=0.1)
    finally:
        pool.terminate()


# ---------------------------------------------------------------------- running them


async def watch(seen: Seen) -> None:
    """Note when a task that only sleeps is woken late, by more than this thread has computed meanwhile."""
    while True:
        due, computed = time.monotonic() + TICK, time.thread_time()
        await asyncio.sleep(TICK)
        late = (now := time.monotonic()) - due
        if late > 0.001:
            seen.stolen.append((due, now, max(0.0, 1 - (time.thread_time() - computed) / late)))


def prepare(cluster: ProxiedCluster) -> None:
    """Make the tables that the cases write to."""
    cluster.sql("a", "CREATE TABLE written (id int)")
    cluster.sql("a", "CREATE TABLE texts (body text)")


async def run_case(cluster: ProxiedCluster, fault: str, name: str, options: argparse.Namespace) -> Seen:
    """Make the calls of one case, batch after batch."""
    function, wants = CASES[name]
    stage = Stage(cluster, fault, options.batch, options.limit)
    wanted = dict(wants)
    make = over_pool(stage) if wanted.pop("wrapped", False) else stage.guard(**wanted)
    async with make as guard:
        while len(stage.seen.ends) < options.calls:
            await settled(guard)
            probe = asyncio.create_task(watch(stage.seen))
            try:
                await function(stage, guard)
            finally:
                probe.cancel()
                await stage.heal()
    return stage.seen


def figures(seen: Seen) -> dict[str, Any]:
    """Return what is printed of one case; times in seconds."""
    over = [end - until for until, end in seen.ends]
    return {
        "calls": len(over),
        "median": round(statistics.median(over), 4),
        "largest": round(max(over), 4),
        "net": round(seen.net(), 4),
        "outcomes": dict(seen.outcomes.most_common()),
    }


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Give the faults and cases that were asked for."""
    for name in CASES:
        for fault in FAULTS:
            if (options.case or "") in name and (options.fault or fault) == fault:
                yield fault, name


async def run(cluster: ProxiedCluster, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run what was asked for."""
    results = {}
    judged = "net" if options.net else "largest"
    for fault, name in chosen(options):
        began = time.monotonic()
        row = results[f"{name}, {fault}"] = figures(await run_case(cluster, fault, name, options))
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items())
        print(
            f"{name:34} {fault:9} {row['calls']:5} calls  median {row['median'] * 1e3:7.1f} ms"
            f"  largest {row['largest'] * 1e3:7.1f} ms  net {row['net'] * 1e3:7.1f} ms"
            f"{'  TOO LATE' if row[judged] > PROMISED else ''}  {outcomes}  [{time.monotonic() - began:.0f} s]",
            flush=True,
        )
    return results


def main() -> int:
    """Parse the arguments, start a node behind a proxy, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1_000, help="per case and fault (default 1000)")
    parser.add_argument("--batch", type=int, default=20, help="calls at a time (default 20)")
    parser.add_argument("--limit", type=float, default=0.5, help="seconds that each call has (default 0.5)")
    parser.add_argument("--case", help="only cases whose name has this in it")
    parser.add_argument("--fault", choices=FAULTS, help="only this fault")
    parser.add_argument("--net", action="store_true", help="judge without the delays that are the machine's own")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:34} {function.__doc__}" for name, (function, _) in CASES.items()))
        return 0
    with ProxiedCluster(replicas=0) as cluster:
        prepare(cluster)
        results = asyncio.run(run(cluster, options))
    late = [name for name, row in results.items() if row["net" if options.net else "largest"] > PROMISED]
    if options.json:
        print(json.dumps(results))
    print(f"{len(results)} cases, {len(late)} of them with a call more than {PROMISED * 1e3:g} ms late")
    return 1 if late or not results else 0


if __name__ == "__main__":
    sys.exit(main())
