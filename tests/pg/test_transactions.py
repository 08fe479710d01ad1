"""Transactions on a leased connection: psycopg's meaning, by both colours, on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from tests.pg.colours import block, got

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.testing.cluster import Cluster

INSERT = "INSERT INTO kept VALUES (%s, 'x')"


def session_of(con: Any) -> Any:
    return con._held.session


async def test_the_first_statement_begins_a_transaction_and_leaving_commits_it(con: Any, kept: Any) -> None:
    async with block(con):
        await got(con.execute(INSERT, (1,)))
        assert con.info.transaction_status == TransactionStatus.INTRANS
        assert kept() == [(0,)]

    assert kept() == [(1,)]
    assert con.info.transaction_status == TransactionStatus.IDLE
    assert session_of(con).done[-1] is Stake.COMMIT


async def test_an_exception_rolls_back(con: Any, kept: Any) -> None:
    with pytest.raises(KeyError):  # noqa: PT012  the block is what is asked about
        async with block(con):
            await got(con.execute(INSERT, (1,)))
            raise KeyError

    assert kept() == [(0,)]
    assert not con.closed


async def test_commit_and_rollback_at_will(con: Any, kept: Any) -> None:
    await got(con.commit())  # nothing to do
    await got(con.execute(INSERT, (1,)))
    await got(con.commit())
    await got(con.execute(INSERT, (2,)))
    await got(con.rollback())

    assert kept() == [(1,)]


async def test_a_commit_of_a_failed_transaction_is_an_error(con: Any, kept: Any) -> None:
    await got(con.execute(INSERT, (1,)))
    with pytest.raises(psycopg.errors.UniqueViolation):
        await got(con.execute(INSERT, (1,)))

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await got(con.commit())
    assert kept() == [(0,)]
    await got(con.execute(INSERT, (1,)))
    await got(con.commit())
    assert kept() == [(1,)]


async def test_in_autocommit_nothing_begins(held: Any, kept: Any) -> None:
    con = await held(autocommit=True)
    await got(con.execute(INSERT, (1,)))

    assert kept() == [(1,)]
    assert session_of(con).begun == []


async def test_autocommit_is_set_outside_of_transactions(con: Any, kept: Any) -> None:
    assert con.autocommit is False
    await got(con.set_autocommit(True))
    assert con.autocommit is True
    await got(con.execute(INSERT, (1,)))
    await got(con.set_autocommit(False))
    await got(con.execute(INSERT, (2,)))

    assert kept() == [(1,)]
    with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit' now: connection in transaction"):
        await got(con.set_autocommit(True))
    async with block(con.transaction()):
        pass
    await got(con.rollback())
    async with block(con.transaction()):
        with pytest.raises(psycopg.ProgrammingError, match="context in progress"):
            await got(con.set_autocommit(True))


async def test_attributes_are_set_as_in_psycopg(con: Any) -> None:
    if isinstance(con, psycopg.AsyncConnection):
        with pytest.raises(AttributeError, match="set_read_only"):
            con.read_only = True
    else:
        con.read_only = True
        assert con.read_only is True


async def test_transactions_begin_as_was_set(con: Any) -> None:
    await got(con.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE))
    await got(con.set_read_only(True))
    await got(con.set_deferrable(True))

    cursor = await got(
        con.execute(
            "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
            " current_setting('transaction_deferrable')"
        )
    )

    assert await got(cursor.fetchone()) == ("serializable", "on", "on")
    assert session_of(con).begun == [True]


async def test_blocks_nest_as_savepoints(con: Any, kept: Any) -> None:
    async with block(con.transaction()) as outer:
        await got(con.execute(INSERT, (1,)))
        assert (outer.savepoint_name, outer.status) == ("", outer.Status.ACTIVE)
        with pytest.raises(psycopg.errors.UniqueViolation):  # noqa: PT012  the block is what is asked about
            async with block(con.transaction()) as inner:
                assert inner.savepoint_name == "_pg3_2"
                await got(con.execute(INSERT, (1,)))
        assert inner.status is inner.Status.ROLLED_BACK_WITH_ERROR
        async with block(con.transaction("mine")) as inner:
            await got(con.execute(INSERT, (2,)))
        assert inner.status is inner.Status.COMMITTED
    assert outer.status is outer.Status.COMMITTED

    assert kept() == [(2,)]
    assert con.info.transaction_status == TransactionStatus.IDLE


async def test_inside_an_implicit_transaction_a_block_is_a_savepoint(con: Any, kept: Any) -> None:
    await got(con.execute(INSERT, (1,)))
    async with block(con.transaction()) as inner:
        await got(con.execute(INSERT, (2,)))

    assert inner.savepoint_name == "_pg3_1"
    assert kept() == [(0,)]
    await got(con.commit())
    assert kept() == [(2,)]


async def test_a_rollback_raised_ends_its_block_quietly(con: Any, kept: Any) -> None:
    async with block(con.transaction()) as outer:
        await got(con.execute(INSERT, (1,)))
        async with block(con.transaction()):
            await got(con.execute(INSERT, (2,)))
            raise psycopg.Rollback
        async with block(con.transaction()):
            await got(con.execute(INSERT, (3,)))
    assert kept() == [(2,)]

    async with block(con.transaction()) as outer:
        await got(con.execute(INSERT, (4,)))
        async with block(con.transaction()):
            raise psycopg.Rollback(outer)
    assert outer.status is outer.Status.ROLLED_BACK_EXPLICITLY
    assert kept() == [(2,)]


async def test_force_rollback_keeps_nothing(con: Any, kept: Any) -> None:
    async with block(con.transaction(force_rollback=True)) as outer:
        await got(con.execute(INSERT, (1,)))

    assert outer.status is outer.Status.ROLLED_BACK_EXPLICITLY
    assert kept() == [(0,)]


async def test_in_a_block_commit_and_rollback_are_refused(con: Any, held: Any) -> None:
    async with block(con.transaction()):
        with pytest.raises(psycopg.ProgrammingError, match=r"Explicit commit\(\) forbidden"):
            await got(con.commit())
        with pytest.raises(psycopg.ProgrammingError, match=r"Explicit rollback\(\) forbidden"):
            await got(con.rollback())
    given = await held(transaction=True)
    with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
        await got(given.commit())


async def test_a_block_is_used_once_and_in_order(con: Any) -> None:
    outer, inner = con.transaction(), con.transaction()
    enter, leave = ("__aenter__", "__aexit__") if hasattr(outer, "__aenter__") else ("__enter__", "__exit__")
    first = await got(getattr(outer, enter)())
    await got(getattr(inner, enter)())

    for wrong in (outer, inner):
        with pytest.raises(psycopg.transaction.OutOfOrderTransactionNesting):
            await got(getattr(wrong, leave)(None, None, None))
    with pytest.raises(TypeError, match="only once"):
        await got(getattr(first, enter)())


async def test_a_lost_connection_is_no_commit(con: Any, kept: Any, calm_cluster: Cluster) -> None:
    with pytest.raises(psycopg.OperationalError):  # noqa: PT012  the block is what is asked about
        async with block(con):
            await got(con.execute(INSERT, (1,)))
            calm_cluster.sql("a", "SELECT pg_terminate_backend($1)", con.info.backend_pid)
            with pytest.raises(psycopg.OperationalError):
                await got(con.execute("SELECT 1"))
            assert (con.closed, con.broken) == (True, True)
    assert kept() == [(0,)]

    with pytest.raises(psycopg.OperationalError):
        async with block(con.transaction()):
            pass


async def test_a_lost_connection_on_which_nothing_was_written_is_left_quietly(con: Any, calm_cluster: Cluster) -> None:
    async with block(con), block(con.transaction()) as outer:
        await got(con.execute("SELECT 1"))
        calm_cluster.sql("a", "SELECT pg_terminate_backend($1)", con.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            await got(con.execute("SELECT 1"))

    assert outer.status is outer.Status.FAILED


async def test_an_interruption_ends_the_connection(con: Any, kept: Any) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  the block is what is asked about
        async with block(con.transaction()):
            await got(con.execute(INSERT, (1,)))
            raise KeyboardInterrupt

    assert con.closed
    assert kept() == [(0,)]


async def test_closing_commits_nothing_and_is_no_error(con: Any, kept: Any) -> None:
    async with block(con):
        await got(con.execute(INSERT, (1,)))
        await got(con.close())
        await got(con.close())

    assert (con.closed, con.broken) == (True, False)
    assert kept() == [(0,)]
    assert session_of(con).lease.touched is Touch.LOST


async def test_what_was_given_back_cannot_be_used(con: Any) -> None:
    cursor = await got(con.execute("SELECT 1"))
    fresh = con.cursor()
    session_of(con).over = True

    for use in (con.commit, con.rollback, con.tpc_recover, con.cursor, con.fileno, con.tpc_prepare):
        with pytest.raises(psycopg.InterfaceError, match="given back"):
            await got(use())
    for use in (lambda: con.execute("SELECT 1"), lambda: fresh.execute("SELECT 1"), fresh.fetchone):
        with pytest.raises(psycopg.InterfaceError, match="given back"):
            await got(use())
    for name in ("raw", "pgconn", "lock", "info"):
        with pytest.raises(psycopg.InterfaceError, match="given back"):
            getattr(con, name)
    with pytest.raises(psycopg.InterfaceError, match="given back"):
        async with block(con.transaction()):
            pass
    assert con.closed
    assert "given back" in repr(con)
    assert await got(cursor.fetchall()) == [(1,)]  # rows that are at hand are read as in psycopg
    await got(cursor.close())
    session_of(con).over = False


# ---------------------------------------------------------------------- two-phase commits


async def test_two_phase_commits(held: Callable[..., Awaitable[Any]]) -> None:
    con = await held()
    xid = con.xid(1, "gt'rid", "bqual")

    await got(con.tpc_begin(xid))
    with pytest.raises(psycopg.ProgrammingError, match="two-phase"):
        await got(con.commit())
    with pytest.raises(psycopg.ProgrammingError, match="two-phase"):
        await got(con.rollback())
    with pytest.raises(psycopg.NotSupportedError, match="prepared transactions are disabled"):
        await got(con.tpc_prepare())
    assert session_of(con).lease.touched is Touch.LOST
    assert session_of(con).done[-1] is Stake.COMMIT
    con._held.tpc = None
    await got(con.rollback())


async def test_a_two_phase_transaction_that_was_not_prepared_commits_plainly(con: Any, kept: Any) -> None:
    await got(con.tpc_begin("one"))
    await got(con.execute(INSERT, (1,)))
    await got(con.tpc_commit())
    await got(con.tpc_begin("two"))
    await got(con.execute(INSERT, (2,)))
    await got(con.tpc_rollback())

    assert kept() == [(1,)]
    assert await got(con.tpc_recover()) == []
    with pytest.raises(psycopg.ProgrammingError, match="inside a two-phase"):
        await got(con.tpc_commit())
