"""What becomes of writes whose commits are broken: seeded faults on a real cluster, judged by what is in the table.

    python tools/outcome_faults.py [--faults 500] [--seed 1] [--client guard] [--wrapped] [--clients 8] [--promotions 5]

Three nodes with synchronous replication. Toxiproxy resets and swallows what is on the network, both ways, while a write
is under way. What it cannot do is to break a link between two messages, before a COMMIT or behind it: a `Wire` in front
of it does that. Besides, backends are terminated, the primary is killed and a standby promoted, a pruner runs all the
time, and at the end commits wait for standbys that never come.

Every write adds one row under a name of its own, so that the table says how often it was applied:

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
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from dbguard.testing.wire import Break, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DEADLINE = 10.0
JOINED, PLAIN_COMMIT = b"; COMMIT", b"COMMIT"
WAYS = ("execute", "literal", "returning", "many", "copy", "several", "block", "function", "locking function")
AT_A_MESSAGE = (Break.ACK_CUT, Break.REQUEST_CUT, Break.ACK_HOLE, Break.REQUEST_HOLE, Break.LATE, Break.ORPHAN)
RESET, HOLE = "network reset both ways", "network black hole both ways"
KILLED = "backend terminated"
LOCKED = "orphan holds its locks"
CLAIM_CUT, ALL_CUT = "claim cut", "claim cut and request cut"
FAULTS = (*AT_A_MESSAGE, KILLED, LOCKED, CLAIM_CUT, ALL_CUT) * 2 + (RESET, HOLE)  # these two strike everybody
NEVER = "standby never comes"
DO_NOTHING = (
    "WITH claimed AS (INSERT INTO dbguard.token (token, kind) VALUES ($1, 'x') ON CONFLICT DO NOTHING RETURNING 'x')"
    " SELECT CASE WHEN EXISTS (SELECT FROM claimed) THEN 'x' ELSE 'w' END"
)
INSERT = "INSERT INTO ledger (op) VALUES ($1)"


@dataclass
class Book:
    """What was told; waited: by write, tokens of those that waited for a standby; wrong: of those."""

    said: dict[str, str] = field(default_factory=dict)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    unknown: list[str] = field(default_factory=list)
    waited: dict[str, str | None] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
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

    def __init__(self, cluster: ProxiedCluster, wires: dict[str, Wire], options: argparse.Namespace) -> None:
        self.cluster = cluster
        self.wires = wires
        self.options = options
        self.chance = random.Random(options.seed)  # noqa: S311  a choice that can be repeated
        self.book = Book()
        self.left = options.faults
        self.number = 0
        self.network = asyncio.Lock()

    def arm(self, how: Break | str, way: str, op: str) -> None:
        """Arm a fault for this write on all wires."""
        mark = op.encode()
        tokens = self.options.client in ("guard", "do-nothing")
        # Over a wrapped pool a block's token goes before its COMMIT, not with it.
        alone = self.options.wrapped and way in ("block", "function", "locking function")
        commit = JOINED if tokens and not alone else PLAIN_COMMIT
        at_once = way in ("execute", "literal", "returning") or (
            commit is PLAIN_COMMIT and way in ("many", "copy", "several")
        )
        for wire in self.wires.values():
            if isinstance(how, Break):
                wire.arm(mark, how, then=None if at_once else commit)
            elif how == LOCKED:
                wire.arm(mark, Break.REQUEST_HOLE, then=commit)
            elif how in (CLAIM_CUT, ALL_CUT):
                first = Break.ACK_CUT if how == CLAIM_CUT else Break.REQUEST_CUT
                wire.arm(mark, first, then=None if at_once else commit)
                wire.arm(b"ISOLATION LEVEL READ COMMITTED READ WRITE", Break.ACK_CUT, then=b"COMMIT\x00")

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
            how = self.chance.choice(FAULTS)
            way = "locking function" if how == LOCKED else self.chance.choice(WAYS)
            op = f"op-{self.number:06}-{way[:4]}!"
            fault = how.value if isinstance(how, Break) else how
            self.arm(how, way, op)
            striking = None
            if how in (RESET, HOLE):
                await self.network.acquire()
                striking = asyncio.ensure_future(self.strike(how))
            elif how == KILLED:
                striking = asyncio.ensure_future(self.kill())
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
            self.book.faults[fault] += 1
            self.book.slowest = max(self.book.slowest, loop.time() - began)
            if striking is not None:
                await striking
            self.disarm(op)

    async def strike(self, how: Break | str) -> None:
        """Break the link to the primary, both ways, somewhere between this write's first byte and its last."""
        link = self.cluster.link(APPLICATION, self.cluster.primary)
        seconds = 0.02 if how == RESET else self.chance.uniform(0.2, 1.0)

        def broken() -> None:
            with contextlib.ExitStack() as stack:
                if how == HOLE:
                    stack.enter_context(link.hole())
                else:
                    stack.enter_context(link.toxic("reset_peer", stream="upstream", timeout=0))
                    stack.enter_context(link.toxic("reset_peer", timeout=0))
                time.sleep(seconds)

        try:
            await asyncio.sleep(self.chance.uniform(0, 0.004))
            await asyncio.to_thread(broken)
            await asyncio.sleep(seconds)  # a network that is never there is another thing
        finally:
            self.network.release()

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
                self.book.faults["pruned"] += 1
            await asyncio.sleep(0.5)

    async def never(self, guard: Any) -> None:
        """Let commits wait for standbys that are cut off; ask for them again when the standbys are back."""
        cluster, book = self.cluster, self.book
        primary = cluster.primary
        links = [cluster.link(node, primary) for node in cluster.nodes if node.name != primary.name]
        for link in links:
            await asyncio.to_thread(link.disable)

        async def one(way: str, lane: int) -> None:
            op = f"never-{way.replace(' ', '-')}!"
            try:
                await write(guard.using(timeout=3), way, op, lane)
            except dbguard.OutcomeUnknown as error:
                book.waited[op] = error.token
            except Exception as error:  # noqa: BLE001  whatever it is: nothing else is true
                book.wrong.append(f"{op}: {type(error).__name__}")
            else:
                book.wrong.append(f"{op}: success")
            book.faults[NEVER] += 1

        await asyncio.gather(*(one(way, 50 + lane) for lane, way in enumerate(WAYS)))
        for link in links:
            await asyncio.to_thread(link.enable)
        for op, token in book.waited.items():
            if token is not None:
                book.said[op] = "applied" if await guard.resolve(token) else "not applied"

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
        print(
            f"faults: {dict(self.book.faults.most_common())}; struck at a message: {sum(w.struck for w in self.wires.values())}"
        )
        print(f"told: {dict(counts)}; raised as not applied: {dict(self.book.errors.most_common(6))}")
        print(f"slowest call: {self.book.slowest:.2f} s of {DEADLINE:g}")
        print(
            f"lost {len(lost)} {lost[:5]}, doubled {len(doubled)} {doubled[:5]}, lied {len(lied)} {lied[:5]}, unknown {counts['unknown']}"
        )
        for line in self.book.unknown[:5]:
            print(f"  unknown: {line}")
        if self.book.faults[NEVER]:
            asked = sum(token is not None for token in self.book.waited.values())
            print(
                f"{NEVER}: {len(self.book.waited)} of {self.book.faults[NEVER]} raised as unknown, {asked} of them told "
                f"by their tokens once the standbys were back; told wrongly: {self.book.wrong}"
            )
        wrong = lost or doubled or lied or self.book.wrong
        return not (wrong or (self.options.client == "guard" and counts["unknown"]))


async def opened(stack: contextlib.AsyncExitStack, wires: dict[str, Wire], options: argparse.Namespace) -> Any:
    """Open the client."""
    login = {"user": "postgres", "database": "postgres"}
    named: dict[str, Any] = {"server_settings": {"application_name": "writer"}}
    pools = []
    if options.client == "naive" or options.wrapped:
        for wire in wires.values():
            pool = asyncpg.create_pool(host="127.0.0.1", port=wire.port, min_size=0, max_size=32, **login, **named)
            pools.append(await pool)
            stack.callback(pool.terminate)
    if options.client == "naive":
        return Naive(pools)
    if options.client == "do-nothing":
        outcome_sql.CLAIM = DO_NOTHING
    config: dict[str, Any] = {
        "outcome": {"resolve": "none" if options.client == "untold" else "token-table", "reserve": options.reserve},
        "timeout": DEADLINE,
    }
    if options.wrapped:
        guard = await dbguard.Guard.wrap(pools[0], pools[1:], config=config).open()
    else:
        config["nodes"] = [{"host": "127.0.0.1", "port": wire.port, "name": name} for name, wire in wires.items()]
        guard = await dbguard.connect(config | {"connection": login, "pool": {"max_size": 32}}, **named)
    stack.push_async_callback(guard.close, timeout=1.0)
    await guard.ready()
    return guard


async def run(cluster: ProxiedCluster, options: argparse.Namespace) -> bool:
    """Make the run, and judge it."""
    node = cluster.primary
    con = await asyncpg.connect(host=node.host, port=node.port, user="postgres", database="postgres")
    await con.execute(outcome_sql.schema())
    await con.execute("CREATE TABLE ledger (op text); CREATE TABLE hot (id int, n int)")
    await con.execute("INSERT INTO hot SELECT i, 0 FROM generate_series(0, 99) i")
    await con.close()
    async with contextlib.AsyncExitStack() as stack:
        links = {node.name: cluster.link(APPLICATION, node) for node in cluster.nodes}
        wires = {name: await stack.enter_async_context(Wire(link.host, link.port)) for name, link in links.items()}
        told = Run(cluster, wires, options)
        guard = await opened(stack, wires, options)
        pruning = asyncio.ensure_future(told.pruner())
        promoting = asyncio.ensure_future(told.promotions())
        await asyncio.gather(*(told.client(guard, lane) for lane in range(options.clients)))
        await promoting
        for wire in wires.values():
            wire.heal()
        if options.client in ("guard", "untold"):
            await asyncio.to_thread(cluster.wait_streaming, 60.0)
            await guard.ready()
            await told.never(guard)
        pruning.cancel()
        await asyncio.sleep(1.0)  # what was held up has arrived
        return await told.judge()


def main() -> int:
    """Parse the arguments, start the cluster, run; the exit code says whether nothing was told wrongly."""
    about, _, rest = __doc__.partition("\n\n")
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=rest.partition("\n\n")[2], formatter_class=kind)
    parser.add_argument("--faults", type=int, default=500, help="writes, each with a fault (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of faults (default 1)")
    parser.add_argument("--client", choices=("guard", "untold", "naive", "do-nothing"), default="guard")
    parser.add_argument("--wrapped", action="store_true", help="over pools of the application's, not the guard's own")
    parser.add_argument("--reserve", type=float, default=2.0, help="outcome.reserve, in seconds (default 2)")
    parser.add_argument("--clients", type=int, default=8, help="writing at one time (default 8)")
    parser.add_argument("--promotions", type=int, default=5, help="times that the primary is killed (default 5)")
    options = parser.parse_args()
    began = time.monotonic()
    # A black hole leaves its connection open on the server, and there are some hundred of them.
    with ProxiedCluster(replicas=2, synchronous=True, settings={"max_connections": "600"}) as cluster:
        fine = asyncio.run(run(cluster, options))
    print(
        f"client {options.client}{' over wrapped pools' if options.wrapped else ''}, seed {options.seed}: {'nothing told wrongly' if fine else 'CAUGHT'} in {time.monotonic() - began:.0f} s"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
