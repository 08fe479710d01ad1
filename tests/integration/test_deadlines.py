"""Every call ends by its deadline, in a black hole too; a cancelled one at once; and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import re
import sys
import time

import asyncpg
import pytest

import dbguard
from dbguard.testing.cluster import Cluster
from tests import waiting

PRECISION = 10.0
"""Seconds by which a call may overstay its deadline here: 0.1 is promised (`tools/bench_deadlines.py` measures that), and a
machine that runs tests may stand still for some. Whatever else could end these calls comes later: SILENT and the default
timeout, of 30 s."""

SILENT = {"probe": {"timeout": "1min"}}
"""No probe finds out in time that a node is frozen."""


@contextlib.contextmanager
def takes(at_least: float, at_most: float):
    began = time.monotonic()
    yield
    spent = time.monotonic() - began
    assert at_least <= spent <= at_most, f"took {spent:.3f} s"


@pytest.fixture(scope="module")
def freezable(binaries):
    """A cluster whose nodes are frozen by tests, and thawed at their ends."""
    with Cluster(binaries=binaries) as cluster:
        cluster.sql("a", "CREATE TABLE written AS SELECT 1 AS id")
        yield cluster


async def freeze(cluster, guard, node="a"):
    """Let the guard have connections at hand, and freeze the node."""
    await asyncio.gather(*(guard.fetchval("SELECT 1") for _ in range(20)))
    await waiting.until(lambda: sum(leases(guard).values()) == 0)
    await asyncio.to_thread(cluster.freeze, node)


@pytest.fixture
async def frozen(freezable, open_guard):
    """A guard whose primary answers nothing any more; its connections stay open."""
    guard = await open_guard(freezable, config=SILENT, server_settings={"application_name": "doomed"})
    await freeze(freezable, guard)
    yield guard
    await asyncio.to_thread(freezable.thaw, "a")


def leases(guard):
    return {node.name: node.in_use for node in guard.status().nodes}


@pytest.mark.parametrize("kind", ["read", "write", "many", "copy", "acquire", "block", "function"])
async def test_a_call_to_a_frozen_primary_ends_by_its_deadline(frozen, kind):
    guard = frozen
    primary = guard.using(role="primary", timeout=0.5)

    async def block():
        async with primary.transaction() as tx:
            await tx.execute("INSERT INTO written VALUES (1)")

    async def acquire():
        async with primary.acquire() as con:
            await con.fetchval("SELECT 1", timeout=0.3)

    calls = {
        "read": lambda: primary.fetch("SELECT 1"),
        "write": lambda: guard.execute("INSERT INTO written VALUES (1)", timeout=0.5),
        "many": lambda: guard.executemany("INSERT INTO written VALUES ($1)", [(1,)], timeout=0.5),
        "copy": lambda: guard.copy_records_to_table("written", records=[(1,)], timeout=0.5),
        "acquire": acquire,
        "block": block,
        "function": lambda: primary.run_in_transaction(lambda tx: tx.execute("INSERT INTO written VALUES (1)")),
    }
    with takes(0.0, 0.5 + PRECISION), pytest.raises((TimeoutError, asyncpg.PostgresConnectionError)) as caught:
        await calls[kind]()

    assert not isinstance(caught.value, asyncio.CancelledError)
    assert leases(guard) == {"a": 0, "b": 0, "c": 0}


async def test_reads_move_on_from_a_frozen_replica(freezable, open_guard, request):
    guard = await open_guard(freezable)
    request.addfinalizer(lambda: freezable.thaw("b"))
    await freeze(freezable, guard, "b")

    # Those on their way to it, with a connection or waiting for one, go elsewhere once a probe finds it silent.
    with takes(0.0, 20.0):  # not by the default timeout
        assert await asyncio.gather(*(guard.fetchval("SELECT 1") for _ in range(50))) == [1] * 50
    with takes(0.0, 10.0):
        assert await asyncio.gather(*(guard.fetchval("SELECT 1") for _ in range(50))) == [1] * 50


async def test_writes_pass_over_to_a_promoted_node_when_the_primary_freezes(cluster, open_guard, until):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (id int)")
    guard = await open_guard(cluster, min_size=3)
    await asyncio.to_thread(cluster.freeze, "a")
    writes = [asyncio.create_task(guard.execute("INSERT INTO written VALUES ($1)", n)) for n in range(12)]
    await until(lambda: guard.status().writes != "open")
    await asyncio.to_thread(cluster.promote, "b")

    with takes(0.0, 20.0):  # not by the default timeout
        results = await asyncio.gather(*writes, return_exceptions=True)

    # Those that had a connection had been sent; those that waited for one were not, and go to b.
    unknown = [n for n, result in enumerate(results) if isinstance(result, dbguard.OutcomeUnknown)]
    done = [(n,) for n, result in enumerate(results) if result == "INSERT 0 1"]
    assert 1 <= len(unknown) <= 4
    assert len(done) == 12 - len(unknown)
    assert await asyncio.to_thread(cluster.sql, "b", "SELECT id FROM written ORDER BY id") == done


@pytest.mark.parametrize("kind", ["read", "write", "acquire", "block", "function", "waiting"])
async def test_a_cancelled_call_passes_its_cancellation_on_at_once_and_leaves_no_lease_out(
    freezable, open_guard, until, kind
):
    doomed = {"application_name": "doomed"}
    guard = await open_guard(freezable, config=SILENT, max_size=2, min_size=0, server_settings=doomed)
    primary = guard.using(role="primary")
    await primary.fetchval("SELECT 1")
    holders = []
    if kind == "waiting":
        await until(lambda: sum(leases(guard).values()) == 0)
        holders = [await guard.acquire() for _ in range(2)]
    else:
        await asyncio.to_thread(freezable.freeze, "a")
    entered = []

    async def block():
        async with primary.transaction():
            entered.append(1)

    async def acquired():
        async with primary.acquire() as con:
            entered.append(1)
            await con.fetchval("SELECT 1")

    calls = {
        "read": lambda: primary.fetch("SELECT 1"),
        "write": lambda: guard.execute("INSERT INTO written VALUES (1)"),
        "acquire": acquired,
        "block": block,
        "function": lambda: primary.run_in_transaction(lambda tx: tx.execute("INSERT INTO written VALUES (1)")),
        "waiting": lambda: guard.execute("INSERT INTO written VALUES (1)"),
    }
    task = asyncio.create_task(calls[kind]())
    for _ in range(20):
        await asyncio.sleep(0)

    task.cancel("mine")
    with takes(0.0, PRECISION), pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert caught.value.args == ("mine",)
    for con in holders:
        await guard.release(con)
    await until(lambda: sum(leases(guard).values()) == 0)
    if kind != "waiting":
        await asyncio.to_thread(freezable.thaw, "a")
    await until(lambda: guard.status().writes == "open")
    assert await primary.fetchval("SELECT 1") == 1


async def test_a_cancelled_block_leaves_no_lock_behind_after_a_thaw(freezable, open_guard, until):
    guard = await open_guard(freezable, config=SILENT, server_settings={"application_name": "doomed"})
    locked = asyncio.Event()

    async def block():
        async with guard.transaction() as tx:
            await tx.execute("UPDATE written SET id = id + 1")
            await asyncio.to_thread(freezable.freeze, "a")
            locked.set()
            await tx.execute("UPDATE written SET id = id + 1")

    task = asyncio.create_task(block())
    await locked.wait()
    await asyncio.sleep(0)
    task.cancel()
    with takes(0.0, PRECISION), pytest.raises(asyncio.CancelledError):
        await task
    assert sum(leases(guard).values()) == 0

    await asyncio.to_thread(freezable.thaw, "a")

    async def unlocked() -> bool:
        rows = await asyncio.to_thread(
            freezable.sql,
            "a",
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity s USING (pid)"
            " WHERE s.application_name = 'doomed' AND l.relation = 'written'::regclass",
        )
        return rows == [(0,)]

    await until(unlocked)
    assert await asyncio.to_thread(freezable.sql, "a", "SELECT min(id) FROM written") == [(1,)]


async def test_a_block_out_of_time_leaves_no_lock_behind(calm_cluster, open_guard, table, until):
    """The backend goes on with its statement after its client has gone; it is ended, so that a repeat need not wait."""
    calm_cluster.sql("a", f"INSERT INTO {table} VALUES (1, 1)")
    guard = await open_guard(calm_cluster)

    async def block():
        async with guard.transaction() as tx:
            await tx.execute(f"UPDATE {table} SET n = 2")
            await tx.execute("SELECT pg_sleep(60)", timeout=0.2)

    with pytest.raises((TimeoutError, asyncpg.PostgresConnectionError)):
        await block()

    with takes(0.0, 30.0):  # of 60
        await guard.execute(f"UPDATE {table} SET n = 3", timeout=30.0)
    assert calm_cluster.sql("a", f"SELECT n FROM {table}") == [(3,)]


async def test_an_ambient_timeout_of_asyncio_ends_a_call(frozen):
    with takes(0.29, 0.3 + PRECISION), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await frozen.using(role="primary").fetchval("SELECT 1")

    assert sum(leases(frozen).values()) == 0


async def test_close_ends_within_its_time_with_a_frozen_node(frozen):
    calls = [asyncio.create_task(frozen.execute("INSERT INTO written VALUES (1)")) for _ in range(3)]
    await asyncio.sleep(0)

    with takes(0.0, 1.0 + PRECISION):
        await frozen.close(timeout=1.0)

    for result in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PRECISION):
        assert isinstance(result, asyncpg.PostgresConnectionError)


async def test_close_lets_calls_end(calm_cluster, open_guard, all_given_back, until):
    guard = await open_guard(calm_cluster)
    await all_given_back(guard)
    other = await asyncpg.connect(calm_cluster.dsn("a"))
    await other.execute("SELECT pg_advisory_lock(1)")
    call = asyncio.create_task(guard.fetchval("SELECT 1 FROM pg_advisory_xact_lock(1)"))
    await until(lambda: sum(leases(guard).values()) == 1)

    closing = asyncio.create_task(guard.close(timeout=20.0))
    done, _ = await asyncio.wait({call, closing}, timeout=0.3)
    assert not done
    with takes(0.0, 15.0):  # not by its limit
        await other.close()
        await closing

    assert await call == 1


async def test_terminate_ends_calls_at_once(calm_cluster, open_guard, all_given_back, until):
    guard = await open_guard(calm_cluster)
    await all_given_back(guard)
    call = asyncio.create_task(guard.fetchval("SELECT 1 FROM pg_sleep(30)"))
    await until(lambda: sum(leases(guard).values()) == 1)

    guard.terminate()

    with takes(0.0, PRECISION), pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
        await call


async def test_a_functions_repeats_share_one_deadline(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)
    attempts = []

    async def conflict(tx):
        attempts.append(tx.attempt)
        await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with takes(0.2, 3.0 + PRECISION), pytest.raises((asyncpg.SerializationError, dbguard.DeadlineExceeded)):
        await guard.run_in_transaction(conflict, timeout=3.0)

    assert len(attempts) > 1


async def test_a_function_that_waits_for_something_else_is_ended_too(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    with takes(0.29, 0.3 + PRECISION), pytest.raises(dbguard.DeadlineExceeded):
        await guard.run_in_transaction(lambda tx: asyncio.sleep(30), timeout=0.3)

    assert sum(leases(guard).values()) == 0


# ---------------------------------------------------------------------- whose limit it was, and where the time went

WHOSE = ["timeout=", "using(timeout=)", "deadline()", "the default timeout"]


class Bounded:
    """A guard's calls, bounded to a second in one of the ways there are."""

    def __init__(self, guard, whose):
        calls = guard.using(timeout=1.0) if whose == "using(timeout=)" else guard
        self.calls = calls.using(role="primary")
        self.given = {"timeout": 1.0} if whose == "timeout=" else {}
        self.whose = whose

    def ambient(self):
        return dbguard.deadline(1.0) if self.whose == "deadline()" else contextlib.nullcontext()

    async def ended(self, make):
        """Make a call, which must end by its time, and return its error."""
        with self.ambient(), pytest.raises(TimeoutError) as caught:
            await make()
        return caught.value


@pytest.fixture
async def bounded(freezable, open_guard, request):
    config = {"timeout": "1s"} if request.param == "the default timeout" else {}
    guard = await open_guard(freezable, config=config, max_size=5, min_size=0)
    yield guard, Bounded(guard, request.param)
    await asyncio.to_thread(freezable.thaw, "a")


@pytest.mark.parametrize("bounded", WHOSE, indirect=True)
async def test_the_error_names_whose_time_it_was_and_where_it_went(freezable, bounded, until):
    guard, way = bounded
    calls, given = way.calls, way.given
    for con in [await guard.acquire(timeout=20) for _ in range(3)]:
        await guard.release(con)
    await asyncio.to_thread(freezable.freeze, "a")

    errors = await asyncio.gather(
        way.ended(lambda: calls.fetch("SELECT 1", **given)),
        way.ended(lambda: calls.execute("INSERT INTO written VALUES (1)", **given)),
        way.ended(lambda: calls.run_in_transaction(lambda tx: tx.fetchval("SELECT 1"), **given)),
    )
    await until(lambda: guard.status().nodes[0].breaker != "closed")
    errors.append(await way.ended(lambda: calls.execute("INSERT INTO written VALUES (1)", **given)))

    kinds = [dbguard.DeadlineExceeded, dbguard.OutcomeUnknown, dbguard.DeadlineExceeded, dbguard.NoPrimary]
    for error, kind, what in zip(errors, kinds, ["execute", "execute", "execute", "wait"], strict=True):
        assert isinstance(error, kind)
        assert error.limit == way.whose
        assert f"({way.whose}; " in str(error)
        assert re.search(rf"{what} \d+\.\d", str(error))
        assert 0.2 < error.spent[what] < 10
        again = pickle.loads(pickle.dumps(error))
        assert (again.limit, again.spent) == (error.limit, error.spent)


@pytest.mark.parametrize("bounded", WHOSE, indirect=True)
@pytest.mark.parametrize("kind", ["statement", "write", "commit", "acquired"])
async def test_in_a_block_it_is_named_as_well(freezable, bounded, kind):
    guard, way = bounded
    calls, given = way.calls, way.given
    if kind == "commit" and given:
        given = {}
        way = Bounded(guard.using(timeout=1.0), "using(timeout=)")  # COMMIT takes no timeout of its own
        calls = way.calls

    async def block():
        async with calls.acquire() if kind == "acquired" else calls.transaction() as tx:
            if kind in ("write", "commit"):
                await tx.execute("INSERT INTO written VALUES (2)")
            await asyncio.to_thread(freezable.freeze, "a")
            if kind != "commit":
                await tx.fetchval("SELECT 1", **given)

    if way.whose == "deadline()":  # freezing takes time of it
        way.ambient = lambda: dbguard.deadline(3.0)
    error = await way.ended(block)

    assert isinstance(error, dbguard.OutcomeUnknown if kind == "commit" else dbguard.DeadlineExceeded)
    assert error.limit == way.whose
    assert way.whose in str(error)
    assert error.spent["execute"] > 0.2
    if kind in ("statement", "write"):
        assert ("nothing of this transaction" in "".join(getattr(error, "__notes__", ()))) == (kind == "write")


async def test_a_statements_own_limit_in_a_function_is_not_taken_for_the_calls(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)
    attempts = []

    async def slow(tx):
        attempts.append(tx.attempt)
        with dbguard.deadline(20):
            await tx.execute("SELECT pg_sleep(30)", timeout=0.1)

    with pytest.raises(dbguard.DeadlineExceeded, match=r"no answer within 0\.1 s \(timeout=\)") as caught:
        await guard.run_in_transaction(slow, timeout=20.0)

    assert attempts == [1, 2, 3]
    assert caught.value.limit is None
    assert "after 3 attempts" in str(caught.value)
    assert caught.value.spent["execute"] >= 0.3


async def test_a_deadline_inside_a_function_bounds_its_statements(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    async def slow(tx):
        with dbguard.deadline(0.1):
            await tx.execute("SELECT pg_sleep(30)")

    with takes(0.2, 20.0), pytest.raises(dbguard.DeadlineExceeded, match=r"deadline\(\)"):
        await guard.run_in_transaction(slow, timeout=20.0)


async def test_the_pools_own_limit_is_named_where_it_ended_the_call(calm_cluster, open_guard, all_given_back):
    config = {"pool": {"acquire_timeout": "100ms", "max_size": 1, "min_size": 1}}
    guard = await open_guard(calm_cluster, "a", config=config)
    await all_given_back(guard)

    async with guard.acquire():
        with (
            takes(0.1, 10.0),
            pytest.raises(dbguard.DeadlineExceeded, match=r"0\.1 s \(pool\.acquire_timeout\)") as caught,
        ):
            await guard.fetchval("SELECT 1", timeout=20.0)

    assert caught.value.limit is None
    assert list(caught.value.spent) == ["acquire", "backoff"]
    assert caught.value.spent["acquire"] >= 0.1


async def test_time_spent_backing_off_is_told(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    async def conflict(tx):
        await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with pytest.raises(dbguard.DeadlineExceeded, match=r"backoff \d+\.\d+ s") as caught:
        await guard.run_in_transaction(conflict, timeout=3.0)

    assert 0 < caught.value.spent["backoff"] < 10
    assert caught.value.spent["execute"] > 0


@pytest.mark.parametrize("by", ["guard", "acquire"])
async def test_a_copy_of_a_file_that_cannot_be_opened_ends_in_time_and_nothing_waits_for_it(
    calm_cluster, table, tmp_path, by
):
    """A FIFO that nobody writes to: opening it blocks for ever. In a program of its own, whose end must not wait either."""
    os.mkfifo(tmp_path / "fifo")
    program = f"""
import asyncio, dbguard
async def main():
    async with dbguard.connect({calm_cluster.dsn("a")!r}) as guard:
        async with guard.acquire() as con:
            try:
                await {"guard" if by == "guard" else "con"}.copy_to_table({table!r}, source={str(tmp_path / "fifo")!r}, timeout=0.5)
            except dbguard.DeadlineExceeded as error:
                print("in time:", error)
        assert await guard.fetchval("SELECT 1") == 1
asyncio.run(main())
"""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(60):
            said, _ = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()

    assert said.startswith(b"in time: "), said.decode()
    assert b"was not opened within" in said
    assert running.returncode == 0
