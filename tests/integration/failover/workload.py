"""Steady work over a guard while the primary changes, and a judgement by reading the database back.

    work = Workload(guard, cluster)
    work.begin()
    ...                                   # the form of failover
    await work.flows()                    # writes that begin from now on are acknowledged
    await work.judge()

It works over each facade (`tests.integration.facades`): over `SyncGuard` its writers and readers are threads.

Four writers write values that nobody else writes (0 is left to tests), each in a way of its own: a call, a transaction function, a block, and
COPY. Each reads what it wrote. Two readers read. What each was told is a history, which the checkers of `chaos` judge:
nothing lost, nothing twice, nothing that was said to have failed, no writer that misses its own write. Beside that no
call may raise, unless the form is one that refuses calls; and no more writes may be of unknown fate than were in flight.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dbguard
from chaos.checkers import Duplicated, Lost, Phantom, Stale, State
from chaos.history import Kind, Operation, Outcome
from chaos.journal import Journal
from tests.integration.facades import words_of
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from chaos.checkers import Checker
    from chaos.history import History
    from dbguard.testing.cluster import Cluster

__all__ = ["WRITERS", "Workload", "acknowledge_alone", "mend", "promote"]

WRITERS = 4
READERS = 2
ENOUGH = 20  # acknowledged writes, and reads, that show that work goes on
SOON = 30.0  # seconds for that: generous, for a machine that does much else

SCHEMA = "CREATE TABLE written (value int, note text)"
INSERT = "INSERT INTO written VALUES ($1, $2) RETURNING current_setting('cluster_name')"
RENAME = "UPDATE written SET value = $1 WHERE value = $2 RETURNING current_setting('cluster_name')"
MINE = "SELECT current_setting('cluster_name') AS node, array_agg(value) AS seen FROM written WHERE value = $1"
ALL = "SELECT current_setting('cluster_name') FROM (SELECT count(*) FROM written) AS counted"


class Workload:
    """Writers and readers, and what each was told.

    words: the guard's, for what a test asks itself. reads: arguments of `guard.using` for the reads of readers. Default none.
    """

    def __init__(self, guard: Any, cluster: Cluster, **reads: str) -> None:
        self.guard = guard
        self.cluster = cluster
        self.words = words_of(guard)
        self._reads = words_of(guard.using(**reads))
        # Its times are those of the guard's events. Nothing is written to a file, so that threads may share it.
        self._journal = Journal(0.0)
        self._tasks: list[asyncio.Future[None]] = []
        self._over = False

    # ------------------------------------------------------------------ working

    def begin(self) -> None:
        """Let all work; needs a running loop."""
        ways = (self._call, self._function, self._block, self._copy)
        works = [self._write_on(number, way) for number, way in enumerate(ways)]
        self._tasks = self.words.work(works + [self._read_on(number) for number in range(READERS)])

    async def end(self) -> None:
        """Let each call under way end."""
        self._over = True
        await asyncio.gather(*self._tasks)

    def cancel(self) -> None:
        """End all that is still under way; for tests that have failed. Threads end with the guard."""
        self._over = True
        for task in self._tasks:
            task.cancel()

    async def _call(self, value: int) -> Any:
        return await self.words.value(INSERT, value, "call")

    async def _function(self, value: int) -> Any:
        return await self.words.function((INSERT, -value, "function"), (RENAME, value, -value))

    async def _block(self, value: int) -> Any:
        return await self._again(value, self.words.block((INSERT, -value, "block"), (RENAME, value, -value)))

    async def _copy(self, value: int) -> Any:
        return await self._again(value, self.words.copy("written", [(value, "copy")]))

    async def _again(self, value: int, once: Coroutine[Any, Any, Any]) -> Any:
        """Do what is not repeated. The driver's error says that nothing was committed: so it may be done again."""
        try:
            return await once
        except dbguard.DbGuardError:
            raise
        except self.words.gone:
            return await self._call(value)

    async def _write_on(self, number: int, way: Callable[[int], Awaitable[Any]]) -> None:
        value = number
        while not self._over:
            value += WRITERS
            async with self.words.causal():
                if await self._do(f"writer {number}", Kind.APPEND, value, lambda value=value: way(value)):
                    await self._do(f"writer {number}", Kind.READ, value, lambda value=value: self._mine(value))
            await self.words.rest(0.005)

    async def _mine(self, value: int) -> tuple[Any, ...]:
        return tuple(await self.words.row(MINE, value))

    async def _read_on(self, number: int) -> None:
        while not self._over:
            async with self.words.causal():
                await self._do(f"reader {number}", Kind.READ, None, lambda: self._reads.value(ALL))
            await self.words.rest(0.005)

    async def _do(self, client: str, kind: Kind, value: int | None, call: Callable[[], Awaitable[object]]) -> bool:
        """Make one call and write down what it was told; return whether it was done."""
        node = error = seen = None
        outcome, start = Outcome.OK, self._journal.now()
        try:
            said = await call()
        except dbguard.OutcomeUnknown as e:
            outcome, error = Outcome.UNKNOWN, f"{type(e).__name__}: {e}"
        except Exception as e:  # noqa: BLE001  judged by the test
            outcome, error = Outcome.FAILED, f"{type(e).__name__}: {e}"
        else:
            if isinstance(said, tuple):
                node, seen = said[0], tuple(said[1] or ())
            elif isinstance(said, str):
                node = said
        self._journal.operation(
            Operation(
                client=client,
                kind=kind,
                start=start,
                end=self._journal.now(),
                outcome=outcome,
                key=value,
                value=value if kind is Kind.APPEND else None,
                seen=seen,
                node=node,
                error=error,
            )
        )
        return outcome is Outcome.OK

    # ------------------------------------------------------------------ looking at it

    def operations(self, kind: Kind, outcome: Outcome, *, since: float = 0.0) -> list[Operation]:
        """List what ended so, of what began at *since* on the monotonic clock, or later."""
        found = self._journal.history().operations
        return [op for op in found if op.kind is kind and op.outcome is outcome and op.start >= since]

    def writers_at(self, *, since: float) -> set[str | None]:
        """Return the nodes that have acknowledged writes begun since then (COPY does not tell where it was)."""
        return {op.node for op in self.operations(Kind.APPEND, Outcome.OK, since=since)} - {None}

    def refused(self) -> list[Operation]:
        """List the writes that raised, other than `OutcomeUnknown`."""
        return self.operations(Kind.APPEND, Outcome.FAILED)

    def reads(self) -> list[Operation]:
        """List the reads that were answered."""
        return self.operations(Kind.READ, Outcome.OK)

    async def acknowledged_by(self, node: str, *, since: float) -> set[int | None]:
        """Return the values of acknowledged writes, begun since then, that are on *node*; of an old primary, there is none."""
        rows = await asyncio.to_thread(self.cluster.sql, node, "SELECT value FROM written")
        return {op.value for op in self.operations(Kind.APPEND, Outcome.OK, since=since)} & {value for (value,) in rows}

    async def flows(self, seconds: float = SOON) -> float:
        """Wait until writes that begin from now on are acknowledged; return what time it was when this was asked for."""
        now = time.monotonic()
        await until(lambda: len(self.operations(Kind.APPEND, Outcome.OK, since=now)) > ENOUGH, seconds)
        return now

    async def reads_go_on(self, seconds: float = SOON) -> None:
        """Wait until reads that begin from now on have been answered."""
        now = time.monotonic()
        await until(lambda: len(self.operations(Kind.READ, Outcome.OK, since=now)) > ENOUGH, seconds)

    async def stands_still(self) -> None:
        """Wait until every writer waits for a primary."""
        await until(lambda: self.guard.status().waiting >= WRITERS)

    async def value(self, query: str, *args: Any) -> Any:
        """Ask the guard for one value, from the test's own task."""
        return await self.words.asked(self.words.value(query, *args))

    async def judge(self, *, unknown: int = WRITERS, refused: str | None = None, exposed: float = 0.0) -> None:
        """End the work, and hold what was told against what the primary has.

        unknown: how many writes may be of unknown fate: those in flight. Default: one per writer.
        refused: how the errors of writers may begin, where the form is one that refuses what needs the primary: writes,
            and reads of what has just been written. Default: there is none.
        exposed: until when an old primary acknowledged what it was to lose, as nobody could know of the new one; times
            are monotonic. Default: never.
        """
        await self.end()
        rows = await asyncio.to_thread(
            self.cluster.sql, self.cluster.primary, "SELECT value FROM written WHERE value <> 0"
        )
        self._journal.final({0: [value for (value,) in rows]})
        history = self._journal.history()
        safe = replace(history, operations=tuple(op for op in history.operations if op.start >= exposed))
        _hold(safe, Lost(least=ENOUGH), Stale(least=ENOUGH))
        _hold(history, Duplicated(least=ENOUGH), Phantom(least=ENOUGH))
        failed = [op for op in history.operations if op.outcome is Outcome.FAILED]
        by_form = [
            op for op in failed if refused and op.client.startswith("writer") and str(op.error).startswith(refused)
        ]
        strange = [str(op) for op in failed if op not in by_form]
        assert not strange, strange
        left_open = [str(op) for op in self.operations(Kind.APPEND, Outcome.UNKNOWN)]
        assert len(left_open) <= unknown, left_open


def _hold(history: History, *checkers: Checker) -> None:
    for checker in checkers:
        verdict = checker.judge(history)
        assert verdict.state is State.OK, f"{type(checker).__name__}: {verdict}"


def promote(cluster: Cluster) -> str:
    """Promote the replica that has received most, as a cluster manager does, and let the others follow it. Blocks.

    All are parted from the old primary before they are compared: if it lives, or something of it was still on its way,
    another one could get more than the best has, and could not follow it then.
    """
    replicas = [node for node in cluster.replicas if node.running and not node.frozen]
    for node in replicas:
        cluster.sql(node, "ALTER SYSTEM SET primary_conninfo = ''")
        cluster.sql(node, "SELECT pg_reload_conf()")
    received = {}
    for node in replicas:
        cluster.wait_for(node, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')")
        query = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn"
        received[node.name] = cluster.sql(node, query)[0][0]
    best = max(received, key=lambda name: received[name])
    cluster.promote(best)
    for name in received:
        if name != best:
            cluster.follow(name, best)
    return best


def acknowledge_alone(cluster: Cluster, node: str) -> None:
    """Let a primary acknowledge what no replica has: an old one could not hide otherwise that nobody follows it. Blocks."""
    cluster.sql(node, "ALTER SYSTEM SET synchronous_standby_names = ''")
    cluster.sql(node, "SELECT pg_reload_conf()")
    cluster.wait_for(node, "SELECT current_setting('synchronous_standby_names') = ''")


def mend(cluster: Cluster) -> None:
    """Bring back whatever a form has left broken: the primary runs, and all others stream from it. Blocks."""
    primary = cluster.primary
    if primary.frozen:
        cluster.thaw(primary)
    if not primary.running:
        cluster.start_node(primary)
    query = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
    streaming = {name for (name,) in cluster.sql(primary, query)}
    for node in cluster.nodes:
        if node is not primary and (node.name not in streaming or not node.running or node.frozen):
            cluster.rejoin(node)
    cluster.wait_streaming()
