"""What a guard costs under SQLAlchemy, and what a demotion costs those who use it.

    python tools/bench_sqlalchemy.py [--seconds 12] [--clients 8] [--demotions 3] [--json]

The first half compares point reads and small writes: a session of ours over an engine of ours with SQLAlchemy's own over
its own, on one server, in short slices that alternate in one process, so that what else the machine does hits both.
Printed, never asserted: a ratio above 1 in `cpu` is what a guard costs.

The second half demotes a primary as a manager does (it is stopped, a replica promoted, and it comes back as a replica on
its old address) under 20 pooled connections, each in one transaction after the other, and counts their errors. What is
called new began after the old primary was gone; the first write is timed from when the new primary took writes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncSession as PlainSession
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as plain_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import dbguard
from dbguard.integrations.sqlalchemy import AsyncSession, create_async_engine
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

SLICE = 0.15
ROWS = 1000
POOLED = 20
POOLING = {"pool_size": POOLED, "max_overflow": 0}


class Base(DeclarativeBase):
    """What the tables belong to."""


class Account(Base):
    """A row to be read and written."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


async def load(call: Callable[[int], Awaitable[Any]], clients: int, seconds: float) -> float:
    """Run closed-loop clients; return CPU microseconds per call."""
    until = time.perf_counter() + seconds
    calls = 0

    async def client(number: int) -> None:
        nonlocal calls
        key = number
        while time.perf_counter() < until:
            key = key * 7 % (ROWS - 1) + 1
            await call(key)
            calls += 1

    cpu = time.process_time()
    await asyncio.gather(*(client(number) for number in range(1, clients + 1)))
    return (time.process_time() - cpu) / calls * 1e6


async def compare(
    ours: Callable[[int], Awaitable[Any]], plain: Callable[[int], Awaitable[Any]], clients: int, seconds: float
) -> dict[str, float]:
    """Alternate slices of both; return the median of the ratio, and that of what each took at its best.

    What else the machine does can only add to a slice, so the best ones tell most on a busy machine.
    """
    await load(ours, clients, SLICE)
    await load(plain, clients, SLICE)
    ratios, mine, alone = [], [], []
    for turn in range(max(4, int(seconds / SLICE / 2))):
        seen = {}
        for call in (ours, plain) if turn % 2 else (plain, ours):
            seen[call] = await load(call, clients, SLICE)
        ratios.append(seen[ours] / seen[plain])
        mine.append(seen[ours])
        alone.append(seen[plain])
    few = max(1, len(alone) // 10)
    best = [statistics.mean(sorted(taken)[:few]) for taken in (mine, alone)]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "cpu": round(statistics.median(ratios), 3),
        "from": round(quarters[0], 3),
        "to": round(quarters[2], 3),
        "best": round(best[0] / best[1], 3),
        "plain_us": round(best[1]),
    }


def calls(sessions: async_sessionmaker[Any]) -> dict[str, Callable[[int], Awaitable[Any]]]:
    """Return the calls that are compared, by name."""

    async def get(key: int) -> None:
        async with sessions() as session:
            await session.get_one(Account, key)

    async def scalar(key: int) -> None:
        async with sessions() as session:
            await session.scalar(text("SELECT balance FROM account WHERE id = :id"), {"id": key})

    async def update(key: int) -> None:
        async with sessions.begin() as session:
            (await session.get_one(Account, key)).balance += 1

    return {"get by key": get, "text": scalar, "get and flush": update}


async def costs(cluster: Cluster, clients: int, seconds: float) -> dict[str, dict[str, float]]:
    """Compare every call."""
    bytearray(16 << 20)  # asyncio's reads make a fresh process look dearer than it is
    dsn = cluster.dsn("a")
    plain = plain_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"), **POOLING)
    async with dbguard.connect(dsn) as guard:
        ours = create_async_engine(guard, **POOLING)
        async with plain.begin() as con:
            await con.run_sync(Base.metadata.create_all)
            await con.execute(text(f"INSERT INTO account SELECT i, 0 FROM generate_series(1, {ROWS}) i"))  # noqa: S608  a number
        await asyncio.sleep(1)  # the guard reads the catalogue
        mine = calls(async_sessionmaker(ours, class_=AsyncSession))
        theirs = calls(async_sessionmaker(plain, class_=PlainSession))
        another = plain_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"), **POOLING)
        again = calls(async_sessionmaker(another, class_=PlainSession))
        each = seconds / (len(mine) + 1)
        results = {"plain (noise)": await compare(again["text"], theirs["text"], clients, each)}
        results |= {name: await compare(mine[name], theirs[name], clients, each) for name in mine}
        await ours.dispose()
        await another.dispose()
    await plain.dispose()
    return results


# ---------------------------------------------------------------------- a demotion


async def demotion() -> dict[str, float]:
    """Demote a primary under transactions; return what they met."""
    with Cluster() as cluster:
        async with dbguard.connect(cluster.dsn()) as guard:
            engine = create_async_engine(guard, **POOLING)
            async with engine.begin() as con:
                await con.execute(text("CREATE TABLE written (id int PRIMARY KEY)"))
            seen = await _demoted(cluster, engine)
            await engine.dispose()
        return seen


async def _demoted(cluster: Cluster, engine: AsyncEngine) -> dict[str, float]:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(POOLED):
            await (await held.enter_async_context(engine.connect())).execute(text("SELECT 1"))
    over = False
    errors: list[tuple[float, int]] = []
    written: list[tuple[float, int, str]] = []

    async def client(number: int) -> None:
        row = number
        insert = text("INSERT INTO written VALUES (:id) RETURNING current_setting('cluster_name')")
        while not over:
            began = time.monotonic()
            row += POOLED
            try:
                async with AsyncSession(engine) as session, session.begin():
                    node = await session.scalar(insert, {"id": row})
                    await asyncio.sleep(0.005)
            except exc.DBAPIError:
                errors.append((began, number))
            else:
                written.append((time.monotonic(), row, node))

    tasks = [asyncio.create_task(client(number)) for number in range(POOLED)]
    await asyncio.sleep(1.0)
    await asyncio.to_thread(cluster.stop_node, "a")
    stopped = time.monotonic()
    await asyncio.to_thread(cluster.promote, "b")
    promoted = time.monotonic()
    await asyncio.to_thread(cluster.rejoin, "a")
    await asyncio.sleep(2.0)
    over = True
    await asyncio.gather(*tasks)
    kept = {row for (row,) in await asyncio.to_thread(cluster.sql, "b", "SELECT id FROM written")}
    of_each = [sum(number == one for _, number in errors) for one in range(POOLED)]
    return {
        "errors": len(errors),
        "most_of_one_client": max(of_each),
        "of_new_transactions": sum(began > stopped for began, _ in errors),
        "acknowledged": len(written),
        "lost": len({row for _, row, _ in written} - kept),
        "first_write_ms": round((min(at for at, _, node in written if node == "b") - promoted) * 1e3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of comparing, in all")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--demotions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with Cluster(replicas=0) as cluster:
        cost = asyncio.run(costs(cluster, given.clients, given.seconds))
    demotions = [asyncio.run(demotion()) for _ in range(given.demotions)]
    if given.json:
        print(json.dumps({"cost": cost, "demotions": demotions}))
        return
    for name, row in cost.items():
        print(
            f"{name:15} CPU {row['cpu']:.3f} ({row['from']:.3f} to {row['to']:.3f}), at best {row['best']:.3f} of {row['plain_us']} us plain"
        )
    for one in demotions:
        print("demotion:       " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in one.items()))


if __name__ == "__main__":
    main()
