"""What becomes of writes whose commits are broken: seeded faults on a real cluster, judged by what is in the table.

    python tools/outcome_faults.py [--faults 500] [--seed 1] [--client guard] [--clients 16] [--promotions 5]

Three nodes with synchronous replication, each behind a `Wire` that breaks connections at a chosen request. Every write
adds one row under a name of its own, so that the table says how often it was applied:

    lost         acknowledged, and not there            doubled   there twice
    lied         raised as not applied, and there       unknown   raised as OutcomeUnknown

Clients: ``guard`` (tokens), ``untold`` (a guard without tokens), ``naive`` (repeats whatever lost its connection),
``do-nothing`` (a guard that claims with ON CONFLICT DO NOTHING). The last two are there to be caught.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import random
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg

import dbguard
from dbguard.drivers import outcome_sql
from dbguard.testing.cluster import Cluster
from dbguard.testing.wire import Break, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DEADLINE = 10.0
JOINED = b"; COMMIT"
PLAIN_COMMIT = b"COMMIT"
WAYS = ("execute", "literal", "returning", "many", "copy", "several", "block", "function", "locking function")
OTHER = ("backend terminated", "claim cut", "claim cut and request cut")
DO_NOTHING = (
    "WITH claimed AS (INSERT INTO dbguard.token (token, kind) VALUES ($1, 'x') ON CONFLICT DO NOTHING RETURNING 'x')"
    " SELECT CASE WHEN EXISTS (SELECT FROM claimed) THEN 'x' ELSE 'w' END"
)
INSERT = "INSERT INTO ledger (op) VALUES ($1)"


@dataclass
class Book:
    """What was told to the clients."""

    said: dict[str, str] = field(default_factory=dict)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    unknown: list[str] = field(default_factory=list)
    slowest: float = 0.0


async def write(guard: Any, way: str, op: str, lane: int) -> None:
    """Add one row, in one of the ways."""
    match way:
        case "execute":
            await guard.execute(INSERT, op)
        case "literal":
            await guard.execute(f"INSERT INTO ledger (op) VALUES ('{op}')")  # noqa: S608  a name of our own
        case "returning":
            await guard.fetchval(INSERT + " RETURNING op", op)
        case "many":
            await guard.executemany(INSERT, [(op,)])
        case "copy":
            await guard.copy_records_to_table("ledger", records=[(op,)], columns=["op"])
        case "several":
            await guard.execute(f"INSERT INTO ledger (op) VALUES ('{op}'); UPDATE hot SET n = n + 1 WHERE id = -1")  # noqa: S608  same
        case "block":
            async with guard.transaction() as tx:
                await tx.execute(INSERT, op)
        case "function":
            await guard.run_in_transaction(lambda tx: tx.execute(INSERT, op))
        case "locking function":

            async def fn(tx: Any) -> None:
                await tx.execute("UPDATE hot SET n = n + 1 WHERE id = $1", lane)
                await tx.execute(INSERT, op)

            await guard.run_in_transaction(fn)


class Naive:
    """A client that repeats whatever lost its connection, as many do."""

    def __init__(self, pools: list[Any]) -> None:
        self.pools = pools

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do *work* on the primary, again and again."""
        until = time.monotonic() + DEADLINE
        lost = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.ReadOnlySQLTransactionError)
        while True:
            for pool in self.pools:
                try:
                    return await self.once(pool, work)
                except lost:
                    if time.monotonic() > until:
                        raise
            await asyncio.sleep(0.05)

    async def once(self, pool: Any, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do *work* on a connection of *pool*; one that fails is ended."""
        con = await pool.acquire(timeout=2)
        try:
            async with asyncio.timeout(2):
                return await work(con)
        except BaseException:
            con.terminate()
            raise
        finally:
            await pool.release(con, timeout=1)

    async def execute(self, *args: Any) -> Any:
        """As asyncpg's."""
        return await self.run(lambda con: con.execute(*args))

    async def fetchval(self, *args: Any) -> Any:
        """As asyncpg's."""
        return await self.run(lambda con: con.fetchval(*args))

    async def executemany(self, *args: Any) -> Any:
        """As asyncpg's."""
        return await self.run(lambda con: con.executemany(*args))

    async def copy_records_to_table(self, *args: Any, **kwargs: Any) -> Any:
        """As asyncpg's."""
        return await self.run(lambda con: con.copy_records_to_table(*args, **kwargs))

    async def run_in_transaction(self, fn: Any) -> Any:
        """As asyncpg's."""

        async def work(con: Any) -> Any:
            async with con.transaction():
                return await fn(con)

        return await self.run(work)

    @contextlib.asynccontextmanager
    async def transaction(self) -> Any:
        """A block cannot be repeated: it is what asyncpg makes of it."""
        for pool in self.pools:
            con = await pool.acquire(timeout=2)
            try:
                async with asyncio.timeout(2):
                    if await con.fetchval("SELECT pg_is_in_recovery()"):
                        continue
                    async with con.transaction():
                        yield con
                        return
            except BaseException:
                con.terminate()
                raise
            finally:
                await pool.release(con, timeout=1)


class Run:
    """One run: the cluster, its wires, and what was told."""

    def __init__(self, cluster: Cluster, wires: dict[str, Wire], options: argparse.Namespace) -> None:
        self.cluster = cluster
        self.wires = wires
        self.options = options
        self.chance = random.Random(options.seed)  # noqa: S311  a choice that can be repeated
        self.book = Book()
        self.left = options.faults
        self.number = 0
        self.whole = asyncio.Event()
        self.whole.set()

    def arm(self, way: str, op: str) -> str:
        """Choose a fault for this write, and arm it on all wires; returns what it is called."""
        how = self.chance.choice([*Break, *OTHER])
        mark = op.encode()
        commit = JOINED if self.options.client in ("guard", "do-nothing") else PLAIN_COMMIT
        at_once = way in ("execute", "literal", "returning") or (
            commit is PLAIN_COMMIT and way in ("many", "copy", "several")
        )
        for wire in self.wires.values():
            if isinstance(how, Break):
                wire.arm(mark, how, then=None if at_once else commit)
            elif how != "backend terminated":
                first = Break.ACK_CUT if how == "claim cut" else Break.REQUEST_CUT
                wire.arm(mark, first, then=None if at_once else commit)
                wire.arm(b"ISOLATION LEVEL READ COMMITTED READ WRITE", Break.ACK_CUT, then=b"COMMIT\x00")
        return how.value if isinstance(how, Break) else how

    def disarm(self, op: str) -> None:
        """Take back what did not strike."""
        for wire in self.wires.values():
            wire.disarm(op.encode())
            wire.deliver()

    async def client(self, guard: Any, lane: int) -> None:
        """Write, with a fault each time, until there are enough."""
        loop = asyncio.get_running_loop()
        while self.left > 0:
            self.left -= 1
            self.number += 1
            way = self.chance.choice(WAYS)
            op = f"op-{self.number:06}-{way[:4]}!"
            fault = self.arm(way, op)
            killing = asyncio.ensure_future(self.kill()) if fault == "backend terminated" else None
            began = loop.time()
            said = "applied"
            try:
                await write(guard, way, op, lane)
            except dbguard.OutcomeUnknown as error:
                said = "unknown"
                self.book.unknown.append(f"{op} ({fault}, {loop.time() - began:.2f} s): {error}")
            except dbguard.ResultLost:
                said = "result lost"
            except Exception as error:  # noqa: BLE001  whatever it is: the client takes it for "not applied"
                said = "not applied"
                self.book.errors[type(error).__name__] += 1
            self.book.said[op] = said
            self.book.faults[f"{fault}"] += 1
            self.book.slowest = max(self.book.slowest, loop.time() - began)
            if killing is not None:
                await killing
            self.disarm(op)

    async def kill(self) -> None:
        """Terminate the backends that write just now: this one's somewhere between its first byte and its last."""
        await asyncio.sleep(self.chance.uniform(0, 0.004))
        where = "application_name = 'writer' AND state <> 'idle'"
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self.cluster.terminate_backends, self.cluster.primary, where=where)

    async def promotions(self) -> None:
        """Kill the primary now and then, and promote the replica that has received most."""
        cluster = self.cluster
        step = self.options.faults / (self.options.promotions + 1)
        for number in range(1, self.options.promotions + 1):
            while self.options.faults - self.left < number * step and self.left > 0:  # noqa: ASYNC110  a tool may poll
                await asyncio.sleep(0.05)
            old = cluster.primary
            await asyncio.to_thread(cluster.kill, old)
            self.book.faults["primary killed"] += 1
            received = "SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint"
            lsns = {
                node: (await asyncio.to_thread(cluster.sql, node, received))[0][0]
                for node in cluster.nodes
                if node.name != old.name
            }
            new = max(lsns, key=lambda node: lsns[node] or 0)
            await asyncio.to_thread(cluster.promote, new)
            for node in lsns:
                if node is not new:
                    await asyncio.to_thread(cluster.follow, node, new)
            await asyncio.to_thread(cluster.rejoin, old)

    async def pruner(self) -> None:
        """Prune beside it all, as short as the calls allow."""
        while True:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self.cluster.sql, self.cluster.primary, outcome_sql.PRUNE, 3 * DEADLINE, 1000)
            await asyncio.sleep(0.2)

    async def judge(self) -> bool:
        """Read the table, and say what was told wrongly."""
        rows = dict(
            await asyncio.to_thread(
                self.cluster.sql, self.cluster.primary, "SELECT op, count(*) FROM ledger GROUP BY op"
            )
        )
        said = self.book.said
        lost = [op for op, what in said.items() if what in ("applied", "result lost") and op not in rows]
        doubled = [op for op, times in rows.items() if times > 1]
        lied = [op for op, what in said.items() if what == "not applied" and op in rows]
        counts = collections.Counter(said.values())
        print(f"faults: {dict(self.book.faults.most_common())}")
        print(f"told: {dict(counts)}; raised as not applied: {dict(self.book.errors.most_common(6))}")
        print(f"slowest call: {self.book.slowest:.2f} s of {DEADLINE:g}")
        print(
            f"lost {len(lost)} {lost[:5]}, doubled {len(doubled)} {doubled[:5]}, lied {len(lied)} {lied[:5]}, unknown {counts['unknown']}"
        )
        for line in self.book.unknown[:5]:
            print(f"  unknown: {line}")
        return not (lost or doubled or lied or (self.options.client == "guard" and counts["unknown"]))


async def run(cluster: Cluster, options: argparse.Namespace) -> bool:
    """Make the run, and judge it."""
    con = await asyncpg.connect(cluster.dsn(cluster.primary))
    await con.execute(outcome_sql.schema())
    await con.execute("CREATE TABLE ledger (op text); CREATE TABLE hot (id int, n int)")
    await con.execute("INSERT INTO hot SELECT i, 0 FROM generate_series(0, 99) i")
    await con.close()
    async with contextlib.AsyncExitStack() as stack:
        wires = {node.name: await stack.enter_async_context(Wire(node.host, node.port)) for node in cluster.nodes}
        told = Run(cluster, wires, options)
        guard: Any
        if options.client == "naive":
            pools = [
                await stack.enter_async_context(
                    asyncpg.create_pool(
                        host="127.0.0.1",
                        port=wire.port,
                        user="postgres",
                        database="postgres",
                        min_size=0,
                        max_size=32,
                        server_settings={"application_name": "writer"},
                    )
                )
                for wire in wires.values()
            ]
            guard = Naive(pools)
        else:
            if options.client == "do-nothing":
                outcome_sql.CLAIM = DO_NOTHING
            nodes = [{"host": "127.0.0.1", "port": wire.port, "name": name} for name, wire in wires.items()]
            config = {
                "nodes": nodes,
                "connection": {"user": "postgres", "database": "postgres"},
                "outcome": {"resolve": "none" if options.client == "untold" else "token-table"},
                "timeout": DEADLINE,
                "pool": {"max_size": 32},
            }
            guard = await stack.enter_async_context(
                dbguard.connect(config, server_settings={"application_name": "writer"})
            )
            await guard.ready()
        pruning = asyncio.ensure_future(told.pruner())
        promoting = asyncio.ensure_future(told.promotions())
        await asyncio.gather(*(told.client(guard, lane) for lane in range(options.clients)))
        await promoting
        pruning.cancel()
        for wire in wires.values():
            wire.heal()
        await asyncio.sleep(1.0)  # what was held up has arrived
        return await told.judge()


def main() -> int:
    """Parse the arguments, start the cluster, run; the exit code says whether nothing was told wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=500, help="writes, each with a fault (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of faults (default 1)")
    parser.add_argument("--client", choices=("guard", "untold", "naive", "do-nothing"), default="guard")
    parser.add_argument("--clients", type=int, default=16, help="writing at one time (default 16)")
    parser.add_argument("--promotions", type=int, default=5, help="times that the primary is killed (default 5)")
    options = parser.parse_args()
    began = time.monotonic()
    # A black hole leaves its connection open on the server, and there are some hundred of them.
    with Cluster(replicas=2, synchronous=True, settings={"max_connections": "600"}) as cluster:
        fine = asyncio.run(run(cluster, options))
    print(
        f"client {options.client}, seed {options.seed}: {'nothing told wrongly' if fine else 'CAUGHT'} in {time.monotonic() - began:.0f} s"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
