"""The same over psycopg: engines and sessions for threads over a `SyncGuard`, and for asyncio over a `PsycopgGuard`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from alembic import command
from alembic.config import Config
from psycopg.pq import TransactionStatus
from sqlalchemy import event, exc, func, select, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool

import dbguard
from dbguard.integrations.sqlalchemy import (
    AsyncSession,
    LoadedFromReplica,
    NotARead,
    Session,
    create_async_engine,
    create_engine,
    replica_engine,
)
from dbguard.integrations.sqlalchemy.engines import lead_of
from tests.integrations.shop import WHERE, Base, Item

PID = text("SELECT pg_backend_pid()")
INSERT = text("INSERT INTO written VALUES (:id) RETURNING current_setting('cluster_name')")
POOLED = 20


def on_replica(statement):
    return statement.execution_options(dbguard_role="replica")


def wait(condition, seconds=60):
    """Wait until *condition* is true; a thread's `until`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def is_settled(guard):
    status = guard.status()
    replicas = [node for node in status.nodes if node.role == "replica" and node.proven and node.lag is not None]
    return status.writes == "open" and len(replicas) == len(status.nodes) - 1


@pytest.fixture
def open_sync():
    """Open a guard and an engine over it, on a cluster."""
    with contextlib.ExitStack() as stack:

        def make(cluster, timeout=30, **arguments):
            nodes = [{"name": node.name, "host": "127.0.0.1", "port": node.port} for node in cluster.nodes]
            login = {"user": "postgres", "database": "postgres"}
            guard = dbguard.SyncGuard(
                {"nodes": nodes, "connection": login, "timeout": timeout, "probe": {"timeout": 3}}
            )
            stack.enter_context(guard)
            wait(lambda: is_settled(guard))
            engine = create_engine(guard, **arguments)
            stack.callback(engine.dispose)
            return guard, engine

        yield make


@pytest.fixture
def engine(calm_cluster, open_sync):
    return open_sync(calm_cluster)[1]


@pytest.fixture
def shop(calm_cluster, engine):
    """An item on all nodes."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Item(id=1, stock=10))
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, "SELECT count(*) = 1 FROM item")
    yield sessionmaker(engine, class_=Session)
    Base.metadata.drop_all(engine)


def test_sessions_read_from_the_primary_unless_they_are_asked_otherwise(shop):
    with shop() as session:
        assert session.scalar(WHERE) == "a"
        assert session.scalar(on_replica(WHERE)) in {"b", "c"}
        assert session.execute(on_replica(WHERE), execution_options={"stream_results": True}).scalar() in {"b", "c"}
        assert session.scalar(on_replica(select(func.current_setting("cluster_name"), Item).with_for_update())) == "a"
        item = session.scalar(on_replica(select(Item)))
        item.stock = 1
        with pytest.raises(LoadedFromReplica):
            session.commit()
    with shop(readonly=True) as session:
        assert session.scalar(WHERE) in {"b", "c"}
        assert session.scalar(text("SHOW transaction_read_only")) == "on"
        with pytest.raises(NotARead):
            session.execute(text("SELECT pg_advisory_lock(1)"))
    with shop() as session:
        session.get_one(Item, 1).stock -= 1
        session.commit()
        assert session.scalar(select(Item.stock)) == 9


def test_connection_that_ended_in_the_pool_is_replaced_before_it_is_used(calm_cluster, engine):
    """psycopg does not notice by itself."""
    with engine.connect() as con:
        pid = con.scalar(PID)
    calm_cluster.sql("a", "SELECT pg_terminate_backend($1, 10000)", pid)

    with engine.begin() as con:
        assert con.scalar(PID) != pid


def test_errors_are_sqlalchemys_and_say_what_is_known(calm_cluster, open_sync):
    guard, engine = open_sync(calm_cluster, timeout=2, pool_size=1, max_overflow=0)
    with engine.connect() as con:
        pid = con.scalar(PID)
        with pytest.raises(exc.DBAPIError) as raised:
            con.execute(text("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '57P01'; END $$"))
        assert not raised.value.connection_invalidated
        con.rollback()
        assert con.scalar(PID) == pid
        calm_cluster.sql("a", "SELECT pg_terminate_backend($1, 10000)", pid)
        with pytest.raises(exc.OperationalError) as ended:
            con.scalar(PID)
        assert ended.value.connection_invalidated
        assert not isinstance(ended.value, dbguard.DbGuardError)
    lead = lead_of(engine)
    lead.connector = counted = Mock(wraps=lead.connector)
    with guard.paused():
        with pytest.raises(dbguard.NoPrimary, match="no primary within") as nobody:
            engine.connect()
        assert isinstance(nobody.value, exc.OperationalError)
    counted.assert_called_once()  # it was waited for once
    engine.dispose()
    guard.close()
    with pytest.raises(dbguard.GuardClosed):
        engine.connect()


@pytest.fixture
def written(calm_cluster):
    """A table, on the primary; its rows are committed so slowly that a commit can be caught."""
    for statement in (
        "CREATE TABLE written (id int)",
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$",
        """CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON written DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION dawdle()""",
    ):
        calm_cluster.sql("a", statement)
    yield
    calm_cluster.sql("a", "DROP TABLE written")
    calm_cluster.sql("a", "DROP FUNCTION dawdle")


def end_what_sleeps(cluster):
    """End the backend that sleeps over the table, once there is one; what another test has left asleep is not meant."""
    query = """SELECT DISTINCT pid FROM pg_stat_activity JOIN pg_locks USING (pid)
        WHERE wait_event = 'PgSleep' AND relation = 'written'::regclass"""
    ((pid,),) = wait(lambda: cluster.sql("a", query))
    cluster.sql("a", "SELECT pg_terminate_backend($1, 10000)", pid)


def inserted(con):
    con.execute(INSERT, {"id": 1})


def copied(con):
    """As psycopg's manual has it."""
    with con.connection.cursor() as cursor, cursor.copy("COPY written FROM STDIN") as copy:
        copy.write_row([1])


def copied_out(con):
    with con.connection.cursor() as cursor, cursor.copy("COPY (SELECT) TO STDOUT") as rows:
        assert len(list(rows)) == 1


def executed(con):
    con.connection.execute("INSERT INTO written VALUES (1)")  # psycopg's, by SQLAlchemy's proxy


def on_the_drivers(con):
    con.connection.driver_connection.execute("INSERT INTO written VALUES (1)")


def on_the_databases(con):
    con.connection.dbapi_connection.execute("INSERT INTO written VALUES (1)")


@pytest.mark.parametrize("write", [inserted, copied, executed, on_the_drivers, on_the_databases])
def test_commit_whose_answer_is_lost_is_of_unknown_outcome(calm_cluster, engine, written, write):
    def run():
        with engine.begin() as con:
            write(con)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(run)
        end_what_sleeps(calm_cluster)
        error = writing.exception()

    assert isinstance(error, dbguard.OutcomeUnknown)
    assert isinstance(error, exc.OperationalError)


def test_statement_that_was_not_sent_is_no_doubt(calm_cluster, engine):
    with engine.connect() as con:
        con.execute(text("CREATE TEMP TABLE mine (id int)"))
        calm_cluster.sql("a", "SELECT pg_terminate_backend($1, 10000)", con.scalar(PID))
        with pytest.raises(exc.OperationalError) as unsent:
            con.scalar(PID)
        assert not isinstance(unsent.value, dbguard.OutcomeUnknown)


@pytest.mark.parametrize("poolclass", [QueuePool, SingletonThreadPool])
def test_commit_of_what_only_read_is_no_doubt(calm_cluster, open_sync, poolclass):
    _guard, engine = open_sync(calm_cluster, poolclass=poolclass)
    dialled = []
    event.listen(engine, "connect", lambda _, record: dialled.append(record.driver_connection))
    with engine.connect() as con:  # what an earlier user did with the connection does not count
        copied_out(con)
    with engine.connect() as con, ThreadPoolExecutor(1) as pool:
        backend = con.scalar(PID)
        (raw,) = dialled
        os.kill(backend, signal.SIGSTOP)  # so that the COMMIT stays on its way
        try:
            committing = pool.submit(con.commit)
            wait(lambda: raw.pgconn.transaction_status == TransactionStatus.ACTIVE)
            with socket.socket(fileno=os.dup(raw.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
            error = committing.exception()
        finally:
            os.kill(backend, signal.SIGCONT)
    assert isinstance(error, exc.OperationalError)
    assert not isinstance(error, dbguard.OutcomeUnknown)


def test_demoted_primary_that_came_back_as_a_replica_is_left_without_an_error_for_new_transactions(cluster, open_sync):
    cluster.sql("a", "CREATE TABLE written (id int PRIMARY KEY)")
    _guard, engine = open_sync(cluster, pool_size=POOLED, max_overflow=0)
    with contextlib.ExitStack() as held:
        for _ in range(POOLED):
            assert held.enter_context(engine.connect()).scalar(WHERE) == "a"
    over = threading.Event()
    met, told = [], []

    def write(number):
        row = number
        while not over.is_set():
            began = time.monotonic()
            row += POOLED
            try:
                with Session(engine) as session, session.begin():
                    node = session.scalar(INSERT, {"id": row})
                    session.execute(text("SELECT pg_sleep(0.02)"))
            except exc.DBAPIError as error:
                met.append((began, number, error))
            else:
                told.append((row, node))

    def all_on(node):
        return lambda: len({row % POOLED for row, at in list(told) if at == node}) == POOLED

    with ThreadPoolExecutor(POOLED) as pool:
        writing = [pool.submit(write, number) for number in range(POOLED)]
        try:
            wait(all_on("a"))
            cluster.stop_node("a")
            stopped = time.monotonic()
            cluster.promote("b")
            cluster.rejoin("a")
            wait(all_on("b"), 60)
        finally:
            over.set()
    for one in writing:
        one.result()

    assert met
    assert sorted({number for _, number, _ in met}) == sorted(number for _, number, _ in met)
    assert [(began - stopped, error) for began, _, error in met if began > stopped] == []
    assert {row for row, _ in told} <= {row for (row,) in cluster.sql("b", "SELECT id FROM written")}


ENVIRONMENT = """
from alembic import context
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool
import dbguard
from dbguard.integrations.sqlalchemy import create_engine

with dbguard.SyncGuard(context.config.get_main_option("dsn")) as guard:
    with create_engine(guard, poolclass=NullPool).connect() as connection:
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()
"""
REVISION = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "1", None

def upgrade():
    op.create_table("migrated", sa.Column("id", sa.Integer, primary_key=True))
"""


def test_migrations_run_on_the_primary(calm_cluster, tmp_path):
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    (tmp_path / "versions" / "1.py").write_text(REVISION)
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    config.set_main_option("dsn", calm_cluster.dsn("c", "b", "a"))

    command.upgrade(config, "head")

    assert calm_cluster.sql("a", "SELECT to_regclass('migrated')::text") == [("migrated",)]
    calm_cluster.sql("a", "DROP TABLE migrated, alembic_version")


def test_pools_and_arguments_are_sqlalchemys(calm_cluster, open_sync):
    guard, engine = open_sync(calm_cluster, poolclass=NullPool, connect_args={"application_name": "mine"})
    for of in (engine, replica_engine(engine)):
        with of.connect() as con:
            assert con.scalar(text("SHOW application_name")) == "mine"
    with pytest.raises(dbguard.ConfigError, match="connect_args should not give host"):
        create_engine(guard, connect_args={"host": "elsewhere"})
    with pytest.raises(TypeError, match=r"takes a dbguard\.SyncGuard, not Guard: for asyncio there is"):
        create_engine(dbguard.Guard("postgresql://h/d"))
    with pytest.raises(TypeError, match=r"not SyncGuard: for a dbguard\.SyncGuard there is create_engine"):
        create_async_engine(guard)


async def test_asyncio_over_psycopg_is_led_as_well(calm_cluster):
    async with dbguard.PsycopgGuard(calm_cluster.dsn()) as guard:
        engine = create_async_engine(guard, pool_size=1, max_overflow=0)
        async with engine.connect() as con:
            pid = await con.scalar(PID)
            assert await con.scalar(WHERE) == "a"
        calm_cluster.sql("a", "SELECT pg_terminate_backend($1, 10000)", pid)
        async with AsyncSession(engine) as session:
            assert await session.scalar(PID) != pid
            calm_cluster.sql("a", "SELECT pg_terminate_backend($1, 10000)", await session.scalar(PID))
            with pytest.raises(exc.DBAPIError) as lost:
                await session.scalar(PID)
            assert lost.value.connection_invalidated
        async with AsyncSession(engine, readonly=True) as session:
            assert await session.scalar(text("SHOW transaction_read_only")) == "on"
            with pytest.raises(NotARead):
                await session.execute(text("SELECT pg_advisory_lock(1)"))
        await engine.dispose()


@pytest.mark.parametrize("way", ["driver_connection", "dbapi_connection"])
async def test_commit_of_what_was_copied_over_psycopg_on_asyncio_is_of_unknown_outcome(calm_cluster, written, way):
    async def copy(engine):
        async with engine.begin() as con:
            raw = getattr(await con.get_raw_connection(), way)
            cursor = getattr(raw, "driver_connection", raw).cursor()
            async with cursor, cursor.copy("COPY written FROM STDIN") as rows:
                await rows.write_row([1])

    async with dbguard.PsycopgGuard(calm_cluster.dsn()) as guard:
        engine = create_async_engine(guard)
        copying = asyncio.ensure_future(copy(engine))
        await asyncio.to_thread(end_what_sleeps, calm_cluster)
        with pytest.raises(dbguard.OutcomeUnknown):
            await copying
        await engine.dispose()
