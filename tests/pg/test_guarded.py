"""What a guard adds to psycopg's connections: truth about what fails, an end to what waits, and clean sessions."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import scalar_row

import dbguard
from dbguard.core.retry import Stake
from dbguard.drivers import outcome_sql
from dbguard.events import NotificationGap
from tests.pg.colours import block, each, got, noted
from tests.pg.test_transactions import INSERT, session_of
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dbguard.testing.cluster import Cluster

PID = "SELECT pg_backend_pid()"


async def pid_of(guard: Any, use: Callable[[Any], Any] | None = None) -> int:
    """Take a connection, let *use* use it, and return the process of its server."""
    async with block(guard.connection()) as con:
        pid = int(con.info.backend_pid)
        if use is not None:
            await got(use(con))
        return pid


@pytest.fixture
async def slow_commits(kept: Any, calm_cluster: Cluster) -> AsyncIterator[Any]:
    """Let each COMMIT with a new row in `kept` take a minute, or until the end of the test."""
    calm_cluster.sql(
        "a",
        "CREATE OR REPLACE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'",
    )
    calm_cluster.sql(
        "a",
        "CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON kept DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION nap()",
    )
    yield kept
    end_what_sleeps(calm_cluster)


def end_what_sleeps(cluster: Cluster) -> None:
    """End what goes on without its client, and would hold its locks."""
    cluster.terminate_backends("a", where="wait_event = 'PgSleep'")


# ---------------------------------------------------------------------- what became of it


async def test_a_commit_whose_answer_is_lost_is_of_unknown_outcome(guard: Any, slow_commits: Any) -> None:
    with pytest.raises(dbguard.OutcomeUnknown) as raised:
        async with block(guard.using(timeout=1.5).connection()) as con:
            await got(con.execute(INSERT, (1,)))

    assert isinstance(raised.value, psycopg.OperationalError)
    assert isinstance(raised.value, TimeoutError)


async def test_so_is_what_a_copy_in_autocommit_commits(guard: Any, slow_commits: Any) -> None:
    with pytest.raises(dbguard.OutcomeUnknown):  # noqa: PT012  the block is what is asked about
        async with block(guard.using(timeout=1.5).connection()) as con:
            await got(con.set_autocommit(True))
            async with block(con.cursor().copy("COPY kept FROM STDIN")) as copy:
                await got(copy.write("1\ta\n"))


async def test_so_is_what_a_pipeline_in_autocommit_commits(guard: Any, slow_commits: Any) -> None:
    with pytest.raises(dbguard.OutcomeUnknown):  # noqa: PT012  the block is what is asked about
        async with block(guard.using(timeout=1.5).connection()) as con:
            await got(con.set_autocommit(True))
            async with block(con.pipeline()):
                await got(con.execute(INSERT, (1,)))


async def test_what_was_lost_before_its_commit_is_not(guard: Any, kept: Any, calm_cluster: Cluster) -> None:
    with pytest.raises(psycopg.OperationalError) as raised:  # noqa: PT012  the block is what is asked about
        async with block(guard.connection()) as con:
            await got(con.execute(INSERT, (1,)))
            calm_cluster.sql("a", "SELECT pg_terminate_backend($1)", con.info.backend_pid)
            await got(con.execute(INSERT, (2,)))

    assert not isinstance(raised.value, dbguard.OutcomeUnknown)
    assert kept() == [(0,)]


async def test_what_was_swallowed_is_raised_again_at_the_end(guard: Any, kept: Any, calm_cluster: Cluster) -> None:
    with pytest.raises(psycopg.OperationalError) as raised:  # noqa: PT012  the block is what is asked about
        async with block(guard.connection()) as con:
            await got(con.execute(INSERT, (1,)))
            calm_cluster.sql("a", "SELECT pg_terminate_backend($1)", con.info.backend_pid)
            with pytest.raises(psycopg.OperationalError):
                await got(con.execute("SELECT 1"))

    assert not isinstance(raised.value, dbguard.OutcomeUnknown)
    assert kept() == [(0,)]


async def test_a_write_in_autocommit_is_of_unknown_outcome_when_it_is_lost(
    guard: Any, kept: Any, calm_cluster: Cluster
) -> None:
    with pytest.raises(dbguard.OutcomeUnknown):  # noqa: PT012  the block is what is asked about
        async with block(guard.using(timeout=1.5).connection()) as con:
            await got(con.set_autocommit(True))
            await got(con.execute("INSERT INTO kept SELECT 1, pg_sleep(60)::text"))
    end_what_sleeps(calm_cluster)


async def test_a_mistake_of_the_callers_is_psycopgs_own_error(guard: Any, kept: Any) -> None:
    async with block(guard.connection()) as con:
        for autocommit in (True, False):
            await got(con.set_autocommit(autocommit))
            with pytest.raises(psycopg.ProgrammingError, match="1 placeholders but 2 parameters"):
                await got(con.execute(INSERT, (1, 2)))
            with pytest.raises(TypeError, match="a query is a string"):
                await got(con.execute(3))
            await got(con.rollback())
        await got(con.execute(INSERT, (1,)))

    assert kept() == [(1,)]


# ---------------------------------------------------------------------- what takes too long


async def endless(con: Any) -> None:
    await got(con.execute("SELECT pg_sleep(60)"))


async def endless_rows(con: Any) -> None:
    await each(con.cursor().stream("SELECT pg_sleep(60) FROM generate_series(1, 3)"))


async def endless_copy(con: Any) -> None:
    async with block(con.cursor().copy("COPY (SELECT pg_sleep(60)) TO STDOUT")) as copy:
        await each(copy)


async def endless_pipeline(con: Any) -> None:
    async with block(con.pipeline()):
        await got(con.execute("SELECT pg_sleep(60)"))


async def endless_fetch(con: Any) -> None:
    async with block(con.cursor("mine")) as cursor:
        await got(cursor.execute("SELECT pg_sleep(60)"))
        await got(cursor.fetchone())


@pytest.mark.parametrize("use", [endless, endless_rows, endless_copy, endless_pipeline, endless_fetch])
async def test_what_takes_too_long_is_ended_in_time(guard: Any, use: Any, calm_cluster: Cluster) -> None:
    began = time.monotonic()
    with pytest.raises(dbguard.DeadlineExceeded) as raised:
        async with block(guard.using(timeout=1.5).connection()) as con:
            await use(con)

    assert isinstance(raised.value, psycopg.OperationalError)
    assert time.monotonic() - began < 20  # of 60
    assert con.closed
    assert await got(guard.fetchone("SELECT 1")) == (1,)
    end_what_sleeps(calm_cluster)  # that takes the guard a while


async def test_notifications_are_waited_for_as_long_as_it_takes(guard: Any, calm_cluster: Cluster) -> None:
    async with block(guard.using(timeout=2.0).connection()) as con:
        await got(con.set_autocommit(True))
        await got(con.execute("LISTEN here"))
        later = threading.Timer(3.0, lambda: calm_cluster.sql("a", "NOTIFY here, 'at last'"))
        later.start()

        assert [note.payload for note in await each(con.notifies(stop_after=1))] == ["at last"]
        later.join()
        assert await each(con.notifies(timeout=0.5)) == []
        assert not con.closed


@pytest.mark.parametrize(
    ("texts", "channels"),
    [
        (["LISTEN One", 'LISTEN "Two"'], {"one", "Two"}),
        (["listen a; LISTEN b", "UNLISTEN a"], {"b"}),
        (["LISTEN a", "UNLISTEN *"], set()),
        (["LISTEN a", "unlisten *; listen b"], {"b"}),
        (["SELECT 'LISTEN a'"], set()),
    ],
)
async def test_what_a_connection_listens_to_is_known(held: Any, texts: list[str], channels: set[str]) -> None:
    con = await held(autocommit=True)
    for text in texts:
        await got(con.execute(text))

    assert con._held.channels == channels


async def test_a_connection_that_listened_and_is_lost_is_told_of(
    guard: Any, told: list[Any], calm_cluster: Cluster
) -> None:
    async with block(guard.connection()) as con:
        await got(con.set_autocommit(True))
        await got(con.execute("LISTEN two"))
        await got(con.execute("LISTEN one"))
        pid = con.info.backend_pid
        end = threading.Timer(0.2, lambda: calm_cluster.sql("a", "SELECT pg_terminate_backend($1)", pid))
        end.start()
        with pytest.raises(psycopg.OperationalError):
            await each(con.notifies())
        end.join()

    def gaps() -> list[tuple[Any, ...]]:
        return [(event.node, event.channels, event.pid) for event in told if isinstance(event, NotificationGap)]

    await until(gaps)
    assert gaps() == [("a", ("one", "two"), pid)]


async def test_in_a_failover_who_listens_is_told_and_hears_again_on_the_new_primary(cluster: Cluster) -> None:
    told: list[Any] = []
    nodes = [{"name": node.name, "host": "127.0.0.1", "port": node.port} for node in cluster.nodes]
    config = {"nodes": nodes, "connection": {"user": "postgres", "database": "postgres"}}
    listens = threading.Event()

    def listen() -> str:
        with dbguard.SyncGuard(config, on_event=told.append) as guard:
            with guard.connection() as con:
                con.autocommit = True
                con.execute("LISTEN news")
                listens.set()
                with pytest.raises(psycopg.OperationalError):
                    list(con.notifies())
            with guard.connection() as con:
                con.autocommit = True
                con.execute("LISTEN news")
                guard.execute("NOTIFY news, 'again'")
                return f"{con.node}: {next(con.notifies(timeout=60)).payload}"

    hears = asyncio.ensure_future(asyncio.to_thread(listen))
    await until(listens.is_set)
    await asyncio.to_thread(cluster.freeze, "a")  # nothing is heard of it any more: psycopg alone would wait for ever
    await asyncio.to_thread(cluster.promote, "b")

    assert await asyncio.wait_for(hears, 120) == "b: again"
    gaps = [event for event in told if isinstance(event, NotificationGap)]
    assert [(gap.node, gap.channels, gap.why) for gap in gaps] == [("a", ("news",), "ended by the guard")]
    cluster.thaw("a")


async def test_who_closes_a_connection_that_listened_misses_nothing(guard: Any, told: list[Any]) -> None:
    async with block(guard.connection()) as con:
        await got(con.execute("LISTEN one"))
        await got(con.close())
    await got(guard.close(timeout=1.0))

    assert not [event for event in told if isinstance(event, NotificationGap)]


async def test_a_cancellation_ends_the_connection_at_once(guard: Any, kept: Any, calm_cluster: Cluster) -> None:
    if isinstance(guard, dbguard.SyncGuard):
        return
    entered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with guard.connection() as con:
            await con.execute(INSERT, (1,))
            entered.set_result(con.info.backend_pid)
            await con.execute("SELECT pg_sleep(60)")

    task = asyncio.ensure_future(work())
    await entered
    await asyncio.sleep(0)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - began < 20  # of 60
    assert kept() == [(0,)]
    gone = f"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {await entered}"
    await asyncio.to_thread(calm_cluster.wait_for, "a", gone)  # what it held is free again


# ---------------------------------------------------------------------- handing on


async def test_a_connection_is_handed_on_clean(guard: Any) -> None:
    async def use(con: Any) -> None:
        con.row_factory = scalar_row
        await got(con.set_autocommit(True))
        await got(con.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE))
        await got(con.execute("SET work_mem = '7MB'"))
        async with block(con.cursor("mine", withhold=True)) as cursor:
            await got(cursor.execute("SELECT 1"))

    first = await pid_of(guard, use)
    async with block(guard.connection()) as con:
        assert con.info.backend_pid == first
        assert (con.autocommit, con.isolation_level) == (False, None)
        cursor = await got(con.execute("SELECT current_setting('work_mem'), current_setting('transaction_isolation')"))
        assert await got(cursor.fetchone()) == ("4MB", "read committed")


async def two_phase(con: Any) -> None:
    await got(con.tpc_begin("one"))
    await got(con.tpc_commit())


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda con: con.raw and None, id="raw"),
        pytest.param(lambda con: con.execute("LISTEN here"), id="listen"),
        pytest.param(lambda con: con.add_notice_handler(print), id="notice handler"),
        pytest.param(lambda con: con.adapters.register_loader("int4", psycopg.types.string.TextLoader), id="adapters"),
        pytest.param(two_phase, id="two-phase"),
        pytest.param(lambda con: con.close(), id="close"),
    ],
)
async def test_a_connection_that_no_reset_makes_clean_is_not_handed_on(guard: Any, use: Any) -> None:
    assert await pid_of(guard, use) != await pid_of(guard)


async def test_a_block_that_ends_in_the_midst_of_a_stream_ends_the_connection(guard: Any) -> None:
    rows: list[Any] = []
    pids: list[int] = []

    async def use(con: Any) -> None:
        pids.append(con.info.backend_pid)
        rows.append(con.cursor().stream("SELECT n FROM generate_series(1, 1000000) AS g(n)"))
        await (anext(rows[0]) if hasattr(rows[0], "__anext__") else got(next(rows[0])))

    with pytest.raises(psycopg.Error):
        await pid_of(guard.using(timeout=2.0), use)

    for _ in range(3):
        assert await pid_of(guard, lambda con: con.execute("SELECT 1")) not in pids
    await got(rows[0].aclose() if hasattr(rows[0], "aclose") else rows[0].close())


async def test_a_loop_over_a_stream_can_be_left(guard: Any, kept: Any) -> None:
    query = "SELECT n FROM generate_series(1, 1000000) AS g(n)"
    async with block(guard.connection()) as con:
        if isinstance(guard, dbguard.PsycopgGuard):
            async for _ in con.cursor().stream(query):
                break
        else:
            for _ in con.cursor().stream(query):
                break
        await got(con.rollback())  # the stream was cancelled, and the transaction has failed
        await got(con.execute(INSERT, (1,)))

    assert kept() == [(1,)]


async def test_a_refusal_in_autocommit_is_not_counted_against_a_later_transaction(guard: Any, kept: Any) -> None:
    async with block(guard.connection()) as con:
        await got(con.set_autocommit(True))
        with pytest.raises(psycopg.errors.DivisionByZero):
            await each(con.cursor().stream("SELECT 1 / (n - 900) FROM generate_series(1, 2000) AS g(n)"))
        async with block(con.transaction()):
            pass
        async with block(con.transaction()):
            await got(con.execute(INSERT, (1,)))

    assert kept() == [(1,)]


async def test_what_the_guard_ends_between_two_steps_is_left_at_once(
    guard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[Any] = []  # psycopg would ask the server to cancel, and wait for what comes of it
    async with block(guard.connection()) as con:
        rows = con.cursor().stream("SELECT n FROM generate_series(1, 1000000) AS g(n)")
        await (anext(rows) if hasattr(rows, "__anext__") else got(next(rows)))
        monkeypatch.setattr(con._held.raw, "_try_cancel", cancelled.append)
        session_of(con).lease.end()
        began = time.monotonic()
        await got(rows.aclose() if hasattr(rows, "aclose") else rows.close())
        assert con.closed
    with pytest.raises(psycopg.OperationalError):  # noqa: PT012  the block is what is asked about
        series = "COPY (SELECT generate_series(1, 1000000)) TO STDOUT"
        async with block(guard.connection()) as con, block(con.cursor().copy(series)) as copy:
            await got(copy.read())
            session_of(con).lease.end()
            while await got(copy.read()):
                pass

    assert time.monotonic() - began < 20
    assert cancelled == []


async def test_a_copy_into_a_frozen_server_ends_in_time(
    cluster_factory: Callable[..., Cluster], configured: dict[str, Any]
) -> None:
    cluster = cluster_factory(replicas=0)
    cluster.sql("a", "CREATE TABLE big (line text)")
    config = configured | {"nodes": [{"name": "a", "host": "127.0.0.1", "port": cluster.node("a").port}]}

    took: list[float] = []

    def copy() -> None:
        with (
            dbguard.SyncGuard(config) as guard,
            guard.using(timeout=3.0).connection() as con,
            con.cursor().copy("COPY big FROM STDIN") as big,
        ):
            big.write("x\n")
            cluster.freeze("a")
            began = time.monotonic()
            try:
                while True:
                    big.write("x" * 1_000_000 + "\n")
            finally:
                took.append(time.monotonic() - began)
                cluster.thaw("a")

    with pytest.raises(psycopg.OperationalError) as raised:
        await asyncio.to_thread(copy)

    assert isinstance(raised.value, TimeoutError)
    assert took[0] < 20  # by default it is 30


async def test_threads_share_a_connection_one_after_the_other(guard: Any, kept: Any) -> None:
    async with block(guard.connection()) as con:
        await got(con.execute("SELECT 1"))
        if isinstance(guard, dbguard.SyncGuard):
            threads = [threading.Thread(target=con.execute, args=(INSERT, (n,))) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            await asyncio.gather(*(con.execute(INSERT, (n,)) for n in range(8)))

    assert kept() == [(8,)]


# ---------------------------------------------------------------------- replicas, and blocks of the guard's


async def test_a_connection_to_a_replica_reads_alone(guard: Any, kept: Any) -> None:
    async with block(guard.connection(role="replica")) as con:  # there is none: it is the primary's
        assert con.read_only is True
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await got(con.execute(INSERT, (1,)))
        await got(con.rollback())
        await got(con.set_autocommit(True))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await got(con.execute(INSERT, (1,)))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await each(con.cursor().stream(INSERT + " RETURNING n", (1,)))
        cursor = await got(con.execute("SELECT count(*) FROM kept"))
        assert await got(cursor.fetchone()) == (0,)


async def test_blocks_of_the_guards_hold_savepoints_and_no_commit(guard: Any, kept: Any) -> None:
    async with block(guard.transaction(isolation="serializable")) as con:
        await got(con.execute(INSERT, (1,)))
        with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
            await got(con.commit())
        async with block(con.transaction()) as inner:
            await got(con.execute(INSERT, (2,)))
            raise psycopg.Rollback(inner)
        cursor = await got(con.execute("SELECT current_setting('transaction_isolation')"))
        assert await got(cursor.fetchone()) == ("serializable",)

    assert kept() == [(1,)]


async def test_a_function_gets_such_a_connection(guard: Any, kept: Any) -> None:
    is_async = isinstance(guard, dbguard.PsycopgGuard)

    def thread(con: Any) -> int:
        with con.cursor() as cursor:
            cursor.executemany(INSERT, [(1,), (2,)])
            return int(cursor.rowcount)

    async def task(con: Any) -> int:
        async with con.cursor() as cursor:
            await cursor.executemany(INSERT, [(1,), (2,)])
            return int(cursor.rowcount)

    assert await got(guard.run_in_transaction(task if is_async else thread)) == 2
    assert kept() == [(2,)]


async def test_a_write_in_autocommit_carries_a_token_in_a_block(
    kept: Any, calm_cluster: Cluster, configured: dict[str, Any]
) -> None:
    calm_cluster.sql("a", "DROP SCHEMA IF EXISTS dbguard CASCADE")
    with psycopg.connect(calm_cluster.dsn("a")) as own:
        own.execute(outcome_sql.schema().encode())
        own.execute(outcome_sql.grants("postgres").encode())
    try:
        async with (
            dbguard.PsycopgGuard(configured | {"outcome": {"resolve": "token-table"}}) as guard,
            guard.connection() as con,
        ):
            await con.set_autocommit(True)
            noted(session_of(con))
            await con.execute(INSERT, (1,))
            done = session_of(con).done

        assert done == [Stake.READ, Stake.WRITE, Stake.COMMIT]
        assert calm_cluster.sql("a", "SELECT count(*) FROM dbguard.token WHERE kind = 'w'") == [(1,)]
        assert kept() == [(1,)]
    finally:
        calm_cluster.sql("a", "DROP SCHEMA dbguard CASCADE")


async def test_a_lease_is_handed_on_only_when_nothing_of_its_use_can_end_it(guard: Any) -> None:
    """The sweep would end what is another caller's by then."""
    engine = guard._core.engine if hasattr(guard, "_core") else guard._inner._core.engine
    (pool,) = engine.pools.values()
    watched: list[bool] = []
    hand_on = pool._pass

    def passed(lease: Any) -> None:
        watched.append(any(flight.lease is lease for flight in engine.flights._all) or lease.con in pool._due)
        hand_on(lease)

    pool._pass = passed
    await got(guard.execute("SELECT set_config('application_name', 'another', false)"))
    await until(lambda: watched)
    assert watched == [False]


async def test_a_listener_that_takes_itself_off_keeps_nothing_from_the_next(guard: Any) -> None:
    told: list[tuple[str, Any]] = []
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()

    def once(event: Any) -> None:
        off()
        told.append(("once", event))

    def always(event: Any) -> None:
        told.append(("always", event))
        loop.call_soon_threadsafe(heard.set)

    off = guard.on_event(once)
    guard.on_event(always)
    await asyncio.to_thread(guard.pause) if isinstance(guard, dbguard.SyncGuard) else await guard.pause()
    await asyncio.wait_for(heard.wait(), 60)
    guard.resume()
    assert [who for who, _ in told[:3]].count("once") == 1
    assert told[1] == ("always", told[0][1])
