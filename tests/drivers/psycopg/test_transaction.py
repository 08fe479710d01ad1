"""How a transaction ends on a line of psycopg's: an acknowledgement is the server's word, with what was promised for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from dbguard.core.route import Node
from dbguard.core.statement import Touch
from dbguard.core.topology import NodeView
from dbguard.drivers.lease import Books, Lease, Tag
from dbguard.drivers.psycopg.failures import NotReplicated
from dbguard.drivers.psycopg.transaction import Block, begin, commit, heard
from dbguard.testing.cluster import Cluster
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbguard.testing.binaries import Binaries

WAITS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def frozen(binaries: Binaries) -> Iterator[Cluster]:
    """A primary whose only, synchronous, standby does not answer."""
    with Cluster(binaries=binaries, replicas=1, synchronous=True) as cluster:
        cluster.sql("a", "CREATE TABLE t (id int)")
        cluster.freeze("b")
        yield cluster
        cluster.thaw("b")


@pytest.fixture
def make_lease(make_line: Any) -> Callable[..., Any]:
    """Dial a connection to a port, and take it out."""

    async def make(port: int, *, synchronous: bool = False) -> Lease:
        breaker: Any = None
        tag = Tag(0, 0.0)
        tag.synchronous = synchronous
        line = await make_line(port, hear=tag.heard)
        pool = Books(Node("a", breaker, NodeView(name="a")), clock=lambda: 0.0, size=1)
        return Lease(pool, line, line.raw, tag)

    return make


def test_a_transaction_begins_by_its_text() -> None:
    assert begin() == "BEGIN"
    assert begin(isolation="repeatable_read", readonly=True) == "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    assert begin(readonly=False, deferrable=False) == "BEGIN READ WRITE NOT DEFERRABLE"
    assert begin(isolation="SERIALIZABLE", readonly=True, deferrable=True) == (
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE"
    )
    with pytest.raises(ValueError, match="isolation is one of"):
        begin(isolation="serializable; DROP TABLE t")


async def test_a_commit_that_the_server_answered_with_rollback_is_none(
    side: Any, make_lease: Any, single: Cluster, table: str
) -> None:
    lease = await make_lease(single.primary.port)
    line, block = lease.con, Block(lease.con)

    async def failing() -> None:
        await block.start()
        await line.execute(f"INSERT INTO {table} VALUES (3, 'three')")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await line.execute("SELECT 1 / 0")
        await commit(lease)

    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing was committed"):
        await side.run(failing())
    assert not line.is_in_transaction()
    await side.run(block.start())
    await side.run(line.execute(f"INSERT INTO {table} VALUES (4, 'four')"))
    await side.run(commit(lease))

    assert single.sql("a", f"SELECT id FROM {table} ORDER BY id") == [(1,), (2,), (4,)]


@pytest.mark.parametrize("ending", ["", "SELECT 1; COMMIT"])
async def test_a_block_that_has_failed_unseen_is_not_committed(
    ending: str, side: Any, make_lease: Any, single: Cluster
) -> None:
    lease = await make_lease(single.primary.port)

    async def failing() -> None:
        await Block(lease.con).start()
        with pytest.raises(psycopg.errors.DivisionByZero):
            await lease.con.execute("SELECT 1 / 0")
        await commit(lease, ending)

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await side.run(failing())
    assert not lease.con.is_in_transaction()


async def test_what_the_end_of_a_block_brings_is_committed_with_it_or_not_at_all(
    side: Any, make_lease: Any, single: Cluster, table: str
) -> None:
    lease = await make_lease(single.primary.port)
    line = lease.con

    async def ends(number: int, ending: str) -> None:
        await Block(line).start()
        await line.execute(f"INSERT INTO {table} VALUES ({number}, 'in the block')")
        await commit(lease, ending)

    await side.run(ends(3, f"INSERT INTO {table} VALUES (30, 'the end'); COMMIT"))
    with pytest.raises(psycopg.errors.UniqueViolation):
        await side.run(ends(4, f"INSERT INTO {table} VALUES (30, 'the end'); COMMIT"))

    assert not line.is_in_transaction()
    assert single.sql("a", f"SELECT id FROM {table} ORDER BY id") == [(1,), (2,), (3,), (30,)]


async def test_a_block_inside_another_one_is_a_savepoint(
    side: Any, make_lease: Any, single: Cluster, table: str
) -> None:
    lease = await make_lease(single.primary.port)
    line = lease.con

    async def nested() -> None:
        await Block(line).start()
        kept, lost = Block(line), Block(line)
        await kept.start()
        await line.execute(f"INSERT INTO {table} VALUES (3, 'kept')")
        await lost.start()
        with pytest.raises(psycopg.errors.UniqueViolation):
            await line.execute(f"INSERT INTO {table} VALUES (3, 'again')")
        await lost.rollback()
        await kept.commit()
        await commit(lease)

    await side.run(nested())

    assert single.sql("a", f"SELECT id, name FROM {table} WHERE id > 2") == [(3, "kept")]


async def test_a_commit_whose_wait_for_its_standby_was_cut_short_is_no_acknowledgement(
    side: Any, make_lease: Any, frozen: Cluster
) -> None:
    lease = await make_lease(frozen.primary.port, synchronous=True)
    await side.run(Block(lease.con).start())
    await side.run(lease.con.execute("INSERT INTO t VALUES (1)"))

    under_way = side.start(commit(lease))
    (pid,) = (await until(lambda: asyncio.to_thread(frozen.sql, "a", WAITS)))[0]
    await asyncio.to_thread(frozen.sql, "a", "SELECT pg_cancel_backend($1)", pid)

    with pytest.raises(NotReplicated, match="cut short"):
        await under_way


@pytest.mark.parametrize("when", ["at birth", "in this use"])
async def test_a_commit_of_which_nothing_could_be_heard_is_no_acknowledgement(
    when: str, side: Any, make_lease: Any, single: Cluster
) -> None:
    lease = await make_lease(single.primary.port, synchronous=True)
    if when == "at birth":
        lease.tag.quiet = True
    else:
        await side.run(lease.con.execute("SET client_min_messages = error"))
        lease.touched = Touch.SETTINGS

    with pytest.raises(NotReplicated, match="client_min_messages"):
        await side.run(heard(lease, lease.con.execute("SELECT 1")))

    lease.tag.synchronous = False
    assert await side.run(heard(lease, lease.con.execute("SELECT 1"))) == "SELECT 1"
