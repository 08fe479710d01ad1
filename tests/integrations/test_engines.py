"""Engines over a guard: their errors, their pools, and what they refuse."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys

import asyncpg
import pytest
from sqlalchemy import event, exc, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as plain_engine
from sqlalchemy.pool import NullPool, StaticPool

import dbguard
from dbguard.integrations.sqlalchemy import AsyncSession, NotARead, create_async_engine, replica_engine
from tests.integrations.shop import WHERE
from tests.waiting import until

PID = text("SELECT pg_backend_pid()")
WRITE = text("INSERT INTO written VALUES (:id)")


@pytest.fixture
async def written(calm_cluster):
    """A table, on the primary; a row of number 13 is committed so slowly that its commit can be caught."""
    for statement in (
        "CREATE TABLE written (id int)",
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$",
        """CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON written DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW WHEN (new.id = 13) EXECUTE FUNCTION dawdle()""",
    ):
        await asyncio.to_thread(calm_cluster.sql, "a", statement)
    yield
    await asyncio.to_thread(calm_cluster.sql, "a", "DROP TABLE written")
    await asyncio.to_thread(calm_cluster.sql, "a", "DROP FUNCTION dawdle")


async def end(cluster, pid, node="a"):
    """End a backend, as an administrator does, and wait until it is gone."""
    await asyncio.to_thread(cluster.sql, node, "SELECT pg_terminate_backend($1, 10000)", pid)


async def ended_while_it(does, cluster, task):
    """End the backend that sleeps in what *task* does; return what came of it."""
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query ~ $1"
    rows = await until(lambda: asyncio.to_thread(cluster.sql, "a", query, does))
    await end(cluster, rows[0][0])
    return (await asyncio.gather(task, return_exceptions=True))[0]


# ---------------------------------------------------------------------- connections


async def test_connection_that_ended_in_the_pool_is_replaced_before_it_is_used(calm_cluster, engine):
    async with engine.connect() as con:
        pid = await con.scalar(PID)
    await end(calm_cluster, pid)

    async with engine.begin() as con:
        assert await con.scalar(PID) != pid


async def test_connection_that_ends_in_a_transaction_is_sqlalchemys_disconnect(calm_cluster, engine):
    async with engine.connect() as con:
        await end(calm_cluster, await con.scalar(PID))
        with pytest.raises(exc.DBAPIError) as caught:
            await con.scalar(PID)
        assert caught.value.connection_invalidated
        assert not isinstance(caught.value, dbguard.DbGuardError)

        await con.rollback()
        assert await con.scalar(PID)


@pytest.mark.parametrize("sqlstate", ["57P01", "25006", "08006", "40001"])
async def test_sqlstate_raised_on_a_living_connection_ends_nothing(engine_of, guard, sqlstate):
    engine = engine_of(guard, pool_size=2, max_overflow=0)
    async with engine.connect() as one, engine.connect() as other:
        pids = {await one.scalar(PID), await other.scalar(PID)}
        raises = text(f"DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{sqlstate}'; END $$")
        with pytest.raises(exc.DBAPIError) as caught:
            await one.execute(raises)
        assert not caught.value.connection_invalidated
        await one.rollback()

    async with engine.connect() as one, engine.connect() as other:
        assert {await one.scalar(PID), await other.scalar(PID)} == pids


async def test_connections_that_are_lost_while_they_are_set_up_are_not_felt(engine, guard):
    dialled = 0

    @event.listens_for(engine.sync_engine, "connect")
    def lose(_con, record):
        nonlocal dialled
        dialled += 1
        if dialled < 5:  # SQLAlchemy itself dials three times
            record.driver_connection.terminate()
        if dialled == 1:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    async with engine.connect() as con:
        assert await con.scalar(WHERE) == "a"
    assert dialled == 5


async def test_connections_that_are_always_lost_are_an_error_of_sqlalchemys(engine):
    @event.listens_for(engine.sync_engine, "connect")
    def lose(_con, record):
        record.driver_connection.terminate()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    with pytest.raises(exc.OperationalError, match="closed in the middle") as caught:
        await engine.connect()
    assert isinstance(caught.value, dbguard.NotAttempted)


async def test_new_transactions_wait_while_the_guard_is_paused(engine, guard):
    async with engine.connect() as con:
        await con.scalar(PID)

    async def write():
        async with engine.begin() as con:
            return await con.scalar(WHERE)

    async with guard.paused():
        waiting = asyncio.ensure_future(write())
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
    assert await waiting == "a"


async def test_pools_of_every_kind_lead_to_the_primary(guard, engine_of):
    for arguments in ({"poolclass": NullPool}, {"poolclass": StaticPool}, {"pool_size": 1, "pool_pre_ping": True}):
        engine = engine_of(guard, **arguments)
        for _ in range(2):
            async with engine.connect() as con:
                assert await con.scalar(WHERE) == "a"


async def test_arguments_reach_the_driver(guard, engine_of):
    engine = engine_of(
        guard,
        isolation_level="SERIALIZABLE",
        connect_args={"server_settings": {"application_name": "mine"}, "prepared_statement_cache_size": 0},
    )
    for of, isolation in ((engine, "serializable"), (replica_engine(engine), "repeatable read")):
        async with of.connect() as con:
            assert await con.scalar(text("SHOW transaction_isolation")) == isolation
            assert await con.scalar(text("SHOW application_name")) == "mine"


async def test_replicas_are_disposed_of_with_their_engine(calm_cluster, guard, engine_of):
    engine = engine_of(guard, connect_args={"server_settings": {"application_name": "mine"}})
    async with replica_engine(engine).connect() as con:
        assert await con.scalar(WHERE) in {"b", "c"}

    await engine.dispose()

    def left():
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'"
        return sum(calm_cluster.sql(node, query)[0][0] for node in "abc")

    await until(lambda: asyncio.to_thread(lambda: left() == 0))
    async with replica_engine(engine).connect() as con:
        assert await con.scalar(WHERE) in {"b", "c"}


async def test_engine_over_replicas_refuses_what_is_for_the_primary(guard, engine_of):
    engine = engine_of(guard, role="replica")
    async with engine.connect() as con:
        assert await con.scalar(WHERE) in {"b", "c"}
        assert await con.scalar(text("SHOW transaction_read_only")) == "on"
        with pytest.raises(NotARead, match="pg_advisory_lock"):
            await con.execute(text("SELECT pg_advisory_lock(1)"))
        assert await con.scalar(WHERE) in {"b", "c"}
    with pytest.raises(exc.ArgumentError, match="to the primary, has one over replicas beside it"):
        replica_engine(engine)


# ---------------------------------------------------------------------- commits whose answer is lost


async def test_commit_whose_answer_is_lost_is_of_unknown_outcome(calm_cluster, engine, written):
    async def write():
        async with engine.begin() as con:
            await con.execute(WRITE, {"id": 13})

    error = await ended_while_it("COMMIT", calm_cluster, asyncio.ensure_future(write()))

    assert isinstance(error, dbguard.OutcomeUnknown)
    assert isinstance(error, exc.OperationalError)
    assert error.connection_invalidated
    assert (error.node, error.phase) == ("a", "sent")
    assert str(error).startswith("the COMMIT was sent and its answer was lost: it may have been applied")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.node) == (type(error), str(error), "a")


async def test_commit_of_a_session_whose_answer_is_lost_is_of_unknown_outcome(calm_cluster, engine, written):
    async def write():
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(WRITE, {"id": 13})

    assert isinstance(
        await ended_while_it("COMMIT", calm_cluster, asyncio.ensure_future(write())), dbguard.OutcomeUnknown
    )


async def of_the_drivers(con):
    return (await con.get_raw_connection()).driver_connection


async def of_the_adapter(con):
    return (await con.get_raw_connection()).dbapi_connection.driver_connection


async def of_a_session(con):
    async with AsyncSession(con) as session:
        return await of_the_drivers(await session.connection())


async def handed_out(con):
    """Have it run by what SQLAlchemy has around it."""

    class Raw:
        async def copy_records_to_table(self, *args, **given):
            adapter = con.sync_connection.connection.dbapi_connection
            await con.run_sync(lambda _: adapter.run_async(lambda raw: raw.copy_records_to_table(*args, **given)))

    return Raw()


@pytest.mark.parametrize("raw_of", [of_the_drivers, of_the_adapter, of_a_session, handed_out])
async def test_commit_of_what_was_copied_on_the_drivers_connection_is_of_unknown_outcome(
    calm_cluster, engine, written, raw_of
):
    async def copy():
        async with engine.begin() as con:
            await con.scalar(PID)  # which begins SQLAlchemy's transaction
            raw = await raw_of(con)
            await raw.copy_records_to_table("written", records=[(13,)])

    error = await ended_while_it("COMMIT", calm_cluster, asyncio.ensure_future(copy()))

    assert isinstance(error, dbguard.OutcomeUnknown)
    assert isinstance(error, exc.OperationalError)


async def test_commit_that_takes_too_long_is_of_unknown_outcome(guard, engine_of, written):
    engine = engine_of(guard, connect_args={"command_timeout": 1.5})
    with pytest.raises(dbguard.OutcomeUnknown):
        async with engine.begin() as con:
            await con.execute(WRITE, {"id": 13})
    with pytest.raises(TimeoutError):
        async with engine.begin() as con:
            await con.execute(text("SELECT pg_sleep(30)"))


async def test_commit_that_was_not_sent_or_had_nothing_to_apply_is_no_doubt(calm_cluster, engine, written):
    async with engine.connect() as con:
        await con.execute(WRITE, {"id": 1})
        pid = await con.scalar(PID)
        await end(calm_cluster, pid)
        await until(con.sync_connection.connection.driver_connection.is_closed)
        with pytest.raises(exc.DBAPIError) as unsent:
            await con.commit()
    assert unsent.value.connection_invalidated
    assert not isinstance(unsent.value, dbguard.OutcomeUnknown)
    async with engine.connect() as con:
        await con.execute(WRITE, {"id": 1})
        await con.commit()
        assert await con.scalar(text("SELECT count(*) FROM written")) == 1
        await asyncio.to_thread(calm_cluster.sql, "a", "SELECT pg_terminate_backend($1, 10000)", await con.scalar(PID))
        with pytest.raises(exc.DBAPIError) as read:
            await con.scalar(PID)
        assert not isinstance(read.value, dbguard.OutcomeUnknown)


async def lost_while_it_commits(con, backend, raw):
    """Lose the COMMIT of *con*, on the driver's connection *raw*, after it was sent; return what came of it."""
    os.kill(backend, signal.SIGSTOP)  # so that the COMMIT stays on its way
    try:
        committing = asyncio.ensure_future(con.commit())
        await asyncio.wait([committing], timeout=0.1)
        raw.terminate()
        with pytest.raises(exc.DBAPIError) as lost:
            await committing
    finally:
        os.kill(backend, signal.SIGCONT)
    return lost.value


async def test_commit_of_what_only_read_is_no_doubt(engine, written):
    dialled = []
    event.listen(engine.sync_engine, "connect", lambda _, record: dialled.append(record.driver_connection))

    async with engine.connect() as con:  # what an earlier user did with the connection does not count
        await (await of_the_drivers(con)).execute("SELECT")
    async with engine.execution_options(logging_token="mine").connect() as con:
        await con.execution_options(isolation_level="REPEATABLE READ")
        async with con.begin():
            backend = await con.scalar(PID)
            assert await (await con.stream(PID)).scalar() == backend
            assert con.info == {}
            error = await lost_while_it_commits(con, backend, *dialled)

    assert error.connection_invalidated
    assert not isinstance(error, dbguard.OutcomeUnknown)


async def test_write_in_autocommit_whose_answer_is_lost_is_of_unknown_outcome(calm_cluster, guard, engine_of, written):
    engine = engine_of(guard, isolation_level="AUTOCOMMIT")

    async def run(sql):
        async with engine.connect() as con:
            await con.execute(text(sql))

    writes = asyncio.ensure_future(run("INSERT INTO written SELECT 1 FROM pg_sleep(30)"))
    error = await ended_while_it("INSERT", calm_cluster, writes)
    assert isinstance(error, dbguard.OutcomeUnknown)
    assert str(error).startswith("the statement was sent and its answer was lost")

    reads = asyncio.ensure_future(run("SELECT FROM pg_sleep(30)"))
    error = await ended_while_it("SELECT FROM", calm_cluster, reads)
    assert isinstance(error, exc.DBAPIError)
    assert not isinstance(error, dbguard.OutcomeUnknown)


async def test_constraint_that_refuses_a_commit_is_no_doubt(calm_cluster, engine, written):
    unique = text("ALTER TABLE written ADD CONSTRAINT one UNIQUE (id) DEFERRABLE INITIALLY DEFERRED")
    async with engine.begin() as con:
        await con.execute(unique)

    with pytest.raises(exc.IntegrityError):
        async with engine.begin() as con:
            await con.execute(WRITE, [{"id": 1}, {"id": 1}])


# ---------------------------------------------------------------------- errors


async def test_no_primary_in_time_is_an_error_of_both_kinds(calm_cluster, open_guard, engine_of):
    guard = await open_guard(calm_cluster, settle=False, timeout=0.3)
    engine = engine_of(guard)
    async with guard.paused():
        with pytest.raises(dbguard.NoPrimary, match=r"no primary within 0\.3 s") as caught:
            async with engine.connect():
                pass
    assert isinstance(caught.value, exc.OperationalError)
    assert caught.value.retry_after == 1.0
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


async def test_engine_of_a_closed_guard_says_so(calm_cluster, engine_of):
    guard = dbguard.Guard(calm_cluster.dsn())
    engine = engine_of(guard)
    with pytest.raises(dbguard.GuardClosed) as unopened:
        await engine.connect()
    assert isinstance(unopened.value, exc.OperationalError)

    async with guard, engine.connect() as con:
        assert await con.scalar(WHERE) == "a"
    with pytest.raises(dbguard.GuardClosed):
        await engine.connect()


async def test_configuration_that_the_server_refuses_is_sqlalchemys_error_and_bears_no_secret(guard, engine_of):
    engine = engine_of(guard, connect_args={"database": "nowhere", "password": "pa55word"})
    with pytest.raises(exc.OperationalError, match='database "nowhere" does not exist') as caught:
        await engine.connect()
    assert not isinstance(caught.value, dbguard.NotAttempted)
    assert "pa55word" not in f"{caught.value!r} {caught.value} {engine!r}"


async def test_parameters_stay_hidden(calm_cluster, guard, engine_of, written):
    engine = engine_of(guard, hide_parameters=True)

    async def write():
        async with async_sessionmaker(engine, class_=AsyncSession)() as session, session.begin():
            await session.execute(text("INSERT INTO written SELECT 13 WHERE 's3cret' = :word"), {"word": "s3cret"})

    unknown = await ended_while_it("COMMIT", calm_cluster, asyncio.ensure_future(write()))
    async with replica_engine(engine).connect() as con:
        with pytest.raises(NotARead) as refused:
            await con.execute(WRITE, {"id": "s3cret"})
    async with engine.connect() as con:
        with pytest.raises(exc.DBAPIError) as failed:
            await con.execute(text("SELECT 1 / 0 WHERE 's3cret' = :word"), {"word": "s3cret"})

    for error in (unknown, refused.value, failed.value):
        assert "s3cret" not in str(error).replace("WHERE 's3cret'", "")


async def test_what_cannot_be_made_says_why(calm_cluster, guard):
    with pytest.raises(TypeError, match=r"takes a dbguard\.Guard or a dbguard\.PsycopgGuard, not str"):
        create_async_engine(calm_cluster.dsn())
    with pytest.raises(ValueError, match="role must be primary or replica"):
        create_async_engine(guard, role="standby")
    with pytest.raises(exc.ArgumentError, match="async_creator has no place in an engine over a guard"):
        create_async_engine(guard, async_creator=guard.connector())
    with pytest.raises(dbguard.ConfigError, match="connect_args should not give host and port"):
        create_async_engine(guard, connect_args={"port": 1, "host": "elsewhere"})
    with pytest.raises(TypeError, match="pool_sise"):
        create_async_engine(guard, pool_sise=3)
    plain = plain_engine("postgresql+asyncpg://nowhere.invalid/")
    with pytest.raises(exc.ArgumentError, match="only an engine over a guard"):
        replica_engine(plain)
    async with asyncpg.create_pool(calm_cluster.dsn("a"), min_size=1) as pool:
        with pytest.raises(dbguard.ConfigError, match="wrapped pools connect by themselves"):
            create_async_engine(dbguard.Guard.wrap(pool))


# ---------------------------------------------------------------------- the extra


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.strip().rsplit("\n", 1)[-1]


def test_guard_alone_does_not_need_sqlalchemy():
    assert (
        python("import dbguard, sys; dbguard.Guard('postgresql://h/d'); sys.exit('sqlalchemy' in sys.modules)")[0] == 0
    )


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("None", "ModuleNotFoundError: dbguard.integrations.sqlalchemy needs SQLAlchemy 2: pip install"),
        ("type(sys)('sqlalchemy')", "ImportError: dbguard.integrations.sqlalchemy needs SQLAlchemy 2, and 1.4.54 is"),
    ],
    ids=["missing", "too old"],
)
def test_missing_extra_says_what_to_install(there, said):
    code = f"import sys; m = sys.modules['sqlalchemy'] = {there}\nif m: m.__version__ = '1.4.54'\n"

    code, last = python(code + "import dbguard.integrations.sqlalchemy")

    assert (code, last[: len(said)]) == (1, said)
