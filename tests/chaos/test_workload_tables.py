"""Hot rows and bulk: what their calls do, and what their tables tell of an application that was done twice or in part."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from chaos import aftermath
from chaos.checkers import Duplicated, Lost, Order, Phantom, State
from chaos.clients import CLIENTS, Client, Place
from chaos.clients.pools import Plain
from chaos.history import History, Kind, Operation, Outcome
from chaos.journal import Journal
from chaos.workloads import WORKLOADS, Bulk, HotRows, Workload
from chaos.workloads.base import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbguard.testing.cluster import Cluster

BULK = Bulk(batch=3, ballast=4)  # type: ignore[arg-type]  # plain numbers, as from a file


# --- what is made of an answer


def rows(n: int, *parts: int) -> list[dict[str, Any]]:
    return [{"n": n, "part": part, "node": "b" if n == part == 0 else None} for part in parts]


BALLAST = rows(0, 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        (BALLAST, ()),
        ([*BALLAST, *rows(7, 0, 1, 2), *rows(8, 2, 1, 0)], (7, 8)),
        ([*BALLAST, *rows(7, 0, 1, 2), *rows(7, 0, 1, 2)], (7, 7)),
        ([*BALLAST, *rows(7, 0, 1), *rows(8, 0, 1, 2)], (-7, 8)),
        ([*BALLAST, *rows(7, 0, 1, 2, 0)], (-7,)),
        ([*BALLAST, *rows(7, 0, 0, 2)], (7, 0)),
        (BALLAST[:3], (0,)),
        ([*BALLAST[:3], *rows(7, 0, 1)], (-7,)),
        ([*BALLAST, *BALLAST], (0,)),
        (rows(7, 0, 1, 2), (7, 0)),
    ],
)
def test_batch_or_result_that_is_there_in_part_is_a_value_that_nobody_sent(
    answer: list[dict[str, Any]], values: tuple[int, ...]
) -> None:
    assert BULK.seen(answer).values == values


def test_large_result_tells_who_served_it() -> None:
    assert BULK.seen([*rows(7, 0, 1, 2), *BALLAST]) == Seen("b", (7,))


# --- transaction functions, driven by hand


class Transactions(Client):
    """Runs each transaction's function twice, as if the first had met another one; remembers what was sent."""

    takes_tokens = False

    def __init__(self) -> None:
        super().__init__(Place(addresses={}, size=1, guard={}, tell=print))
        self.rows: dict[object, Any] = {5: [1, 2], -1: 40, -2: 50}
        self.sent: list[tuple[str, object]] = []
        self.isolation: list[str | None] = []

    async def transaction(self, work: Any, *, isolation: str | None, timeout: float) -> Any:
        self.isolation.append(isolation)
        aborted = work()
        next(aborted)
        aborted.close()
        steps, reply = work(), None
        while True:
            try:
                query, args = steps.send(reply)
            except StopIteration as end:
                return end.value
            self.sent.append((query, args[0]))
            if query.startswith("SELECT"):
                reply = {query.split()[1]: self.rows[args[0]]}
            else:
                self.rows[args[0]], reply = args[1], {"node": "a"}

    async def unused(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    __aenter__ = __aexit__ = call = fetch = copy = unused  # type: ignore[assignment]

    def context(self) -> Any:
        return contextlib.nullcontext()

    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        return Outcome.FAILED

    def leases(self) -> int:
        return 0


async def test_transaction_writes_back_what_it_made_of_what_it_read_however_often_it_is_run() -> None:
    client = Transactions()

    node, attempts = await HotRows().append(client, 5, 7)

    assert (node, attempts) == ("a", 2)
    assert client.rows == {5: [1, 2, 7], -1: 40, -2: 51}
    assert client.isolation == ["repeatable_read"]
    assert not any("FOR UPDATE" in query for query, _ in client.sent)


async def test_transaction_under_read_committed_locks_what_it_reads() -> None:
    client = Transactions()

    await HotRows(isolation="read_committed").append(client, 5, 7)

    assert client.isolation == ["read_committed"]
    assert [query.endswith(" FOR UPDATE") for query, _ in client.sent] == [True, True, False, False]


async def test_some_transactions_take_their_rows_the_other_way_round() -> None:
    client = Transactions()

    for value in (8, 9):
        await HotRows(crossing=8).append(client, 5, value)  # type: ignore[arg-type]  # as from a file
        await HotRows(crossing=0).append(client, 5, value)  # type: ignore[arg-type]

    assert [row for _, row in client.sent] == [-1, 5] * 2 + [5, -1] * 2 + [5, -2] * 4


# --- tables, on a server


@pytest.fixture
def tables(calm_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with the tables of all workloads, which are empty."""
    primary = calm_cluster.primary
    try:
        for kind in WORKLOADS.values():
            for statement in kind.create:
                calm_cluster.sql(primary, statement)
        yield calm_cluster
    finally:
        for table in ["chaos_kept", *(kind.table for kind in WORKLOADS.values())]:
            calm_cluster.sql(primary, f"DROP TABLE IF EXISTS {table}")


class Until(Journal):
    """Says when so many operations have ended."""

    reached: Callable[[], object]

    def __init__(self, operations: int) -> None:
        super().__init__(0.0)
        self.left = operations

    def operation(self, op: Operation) -> None:
        super().operation(op)
        self.left -= 1
        if self.left == 0:
            self.reached()


def work(workload: Workload, cluster: Cluster, client: str = "guard", calls: int = 150) -> History:
    """Let callers work, without any faults, and read back."""

    async def run() -> Journal:
        place = Place(
            addresses={node.name: (node.host, node.port) for node in cluster.nodes},
            size=workload.callers,
            guard={},
            tell=lambda _: None,
        )
        journal, stop = Until(calls), asyncio.Event()
        journal.reached = stop.set
        async with CLIENTS[client](place) as opened:
            await workload.run(opened, journal, stop, 1)
        return journal

    journal = asyncio.run(run())
    journal.final(aftermath.read_back(cluster, workload))  # type: ignore[arg-type]  # asks the primary, which it has, too
    return journal.history()


def judged(history: History, cluster: Cluster, workload: Workload) -> dict[str, State]:
    """Judge a history by what the table holds now."""
    journal = Journal(0.0)
    for op in history.operations:
        journal.operation(op)
    journal.final(aftermath.read_back(cluster, workload))  # type: ignore[arg-type]
    checkers = {"lost": Lost(least=1), "duplicated": Duplicated(least=1), "phantom": Phantom(least=1)}
    if workload.ordered:
        checkers["order"] = Order(least=1)  # type: ignore[assignment]
    return {name: checker.judge(journal.history()).state for name, checker in checkers.items()}


@pytest.mark.parametrize(
    ("name", "damages"),
    [
        (
            "hot-rows",
            {
                "UPDATE chaos_hot SET items = items[1:1] WHERE cardinality(items) > 1": {"lost", "phantom", "order"},
                "UPDATE chaos_hot SET items = items || items[1] WHERE cardinality(items) > 0": {"duplicated", "phantom", "order"},
                "UPDATE chaos_hot SET count = count - 1 WHERE key = -1": {"phantom"},
            },
        ),
        (
            "bulk",
            {
                "DELETE FROM chaos_bulk WHERE n = (SELECT min(n) FROM chaos_bulk)": {"lost"},
                "DELETE FROM chaos_bulk WHERE part = 17": {"lost", "phantom"},
                "INSERT INTO chaos_bulk SELECT * FROM chaos_bulk": {"duplicated"},
                "INSERT INTO chaos_bulk SELECT * FROM chaos_bulk WHERE part = 0": {"lost", "phantom"},
            },
        ),
    ],
)  # fmt: skip
def test_table_tells_of_what_is_lost_doubled_or_torn(name: str, damages: dict[str, set[str]], tables: Cluster) -> None:
    workload = WORKLOADS[name](readers=1, writers=2, owners=1, pause=0, linger=0.05, timeout=30, **SMALL[name])  # type: ignore[arg-type]
    history = work(workload, tables)

    assert {op.outcome for op in history.operations} == {Outcome.OK}
    assert set(judged(history, tables, workload).values()) == {State.OK}
    for damage, finders in damages.items():
        tables.sql(tables.primary, f"CREATE TABLE chaos_kept AS SELECT * FROM {workload.table}")
        tables.sql(tables.primary, damage)
        states = judged(history, tables, workload)
        assert {name for name, state in states.items() if state is State.BROKEN} == finders, damage
        tables.sql(tables.primary, f"TRUNCATE {workload.table}")
        tables.sql(tables.primary, f"INSERT INTO {workload.table} SELECT * FROM chaos_kept")
        tables.sql(tables.primary, "DROP TABLE chaos_kept")


SMALL: dict[str, dict[str, Any]] = {"hot-rows": {}, "bulk": {"batch": 50, "ballast": 100}}


@pytest.mark.parametrize("isolation", ["read_committed", "serializable"])
def test_transactions_of_each_isolation_contend_and_lose_nothing(isolation: str, tables: Cluster) -> None:
    workload = HotRows(isolation=isolation, readers=0, writers=4, owners=0, counters=1, pause=0, timeout=30)  # type: ignore[arg-type]

    history = work(workload, tables, calls=60)

    assert {op.outcome for op in history.operations} == {Outcome.OK}
    assert set(judged(history, tables, workload).values()) <= {State.OK, State.UNKNOWN}
    assert any((op.attempts or 0) > 1 for op in history.operations) is (isolation == "serializable")


class Careless(Plain):
    """Forgets about isolation, and locks nothing."""

    async def transaction(self, work: Any, *, isolation: str | None, timeout: float) -> Any:
        return await super().transaction(work, isolation=None, timeout=timeout)


def test_transactions_that_are_not_isolated_are_caught_losing_updates(
    tables: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CLIENTS, "careless", Careless)
    workload = HotRows(readers=0, writers=4, owners=0, keys=1, counters=1, pause=0)  # type: ignore[arg-type]

    history = work(workload, tables, "careless", calls=100)

    states = judged(history, tables, workload)
    assert {name for name, state in states.items() if state is State.BROKEN} >= {"lost", "phantom"}


def test_results_are_large() -> None:
    assert Bulk().ballast >= 10_000
