"""Transaction blocks and transaction functions: what is committed, what is not, and what is repeated."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import dbguard


async def count(guard, table):
    return await guard.using(role="primary").fetchval(f"SELECT count(*) FROM {table}")


@pytest.mark.every_postgres
async def test_a_block_commits_at_its_end_and_rolls_back_on_an_exception(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async with guard.transaction() as tx:
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        assert await count(guard, table) == 0

    async def fail():
        async with guard.transaction() as tx:
            await tx.execute(f"INSERT INTO {table} VALUES (2, 2)")
            raise KeyError("the application's own")

    with pytest.raises(KeyError):
        await fail()
    assert await count(guard, table) == 1


async def test_a_savepoint_is_undone_alone(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async with guard.transaction() as tx:
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with tx.transaction():
                await tx.executemany(f"INSERT INTO {table} VALUES ($1, $1)", [(2,), (1,)])
        async with tx.transaction():
            await tx.execute(f"INSERT INTO {table} VALUES (3, 3)")
            async with tx.transaction():
                await tx.execute(f"INSERT INTO {table} VALUES (4, 4)")

    assert [row["id"] for row in await guard.fetch(f"SELECT id FROM {table} ORDER BY id")] == [1, 3, 4]


async def test_a_savepoint_by_hand_is_undone_alone(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async with guard.transaction() as tx:
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        await tx.execute("SAVEPOINT here")
        with pytest.raises(asyncpg.UniqueViolationError):
            await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        await tx.execute("ROLLBACK TO here")
        await tx.execute(f"INSERT INTO {table} VALUES (2, 2)")

    assert await count(guard, table) == 2


async def test_leaving_a_block_after_a_swallowed_error_raises_and_commits_nothing(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async def swallow():
        async with guard.transaction() as tx:
            await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
            with pytest.raises(asyncpg.UniqueViolationError):
                await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")

    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="nothing was committed"):
        await swallow()

    assert await count(guard, table) == 0
    assert guard.status().counts["unknown"] == 0


async def test_a_function_that_swallows_an_error_raises_and_commits_nothing(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)
    attempts = []

    async def swallow(tx):
        attempts.append(tx.attempt)
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        with pytest.raises(asyncpg.UniqueViolationError):
            await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")

    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await guard.run_in_transaction(swallow)

    assert attempts == [1]
    assert await count(guard, table) == 0


async def test_a_failed_transaction_hidden_in_raw_commits_nothing(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async def hide():
        async with guard.transaction() as tx:
            await tx.raw.execute(f"INSERT INTO {table} VALUES (1, 1)")
            with pytest.raises(asyncpg.UniqueViolationError):
                await tx.raw.execute(f"INSERT INTO {table} VALUES (1, 1)")

    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await hide()

    assert await count(guard, table) == 0


async def test_a_function_is_repeated_on_a_serialization_failure_and_counts(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)
    await guard.execute(f"INSERT INTO {table} VALUES (1, 0)")
    both_have_read = asyncio.Barrier(2)
    attempts = []

    async def add(tx):
        attempts.append(tx.attempt)
        n = await tx.fetchval(f"SELECT n FROM {table} WHERE id = 1")
        if tx.attempt == 1:
            await both_have_read.wait()
        await tx.execute(f"UPDATE {table} SET n = $1 WHERE id = 1", n + 1)
        return n + 1

    values = await asyncio.gather(*(guard.run_in_transaction(add, isolation="repeatable_read") for _ in range(2)))

    assert sorted(values) == [1, 2]
    assert sorted(attempts) == [1, 1, 2]
    assert await guard.fetchval(f"SELECT n FROM {table} WHERE id = 1") == 2
    assert guard.status().counts["repeats"] == 1


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_on_a_hot_row_no_update_is_lost_and_no_error_reaches_a_caller(calm_cluster, open_guard, table, isolation):
    guard = await open_guard(calm_cluster)
    await guard.execute(f"INSERT INTO {table} VALUES (1, 0)")

    async def add(tx):
        n = await tx.fetchval(f"SELECT n FROM {table} WHERE id = 1")
        await tx.execute(f"UPDATE {table} SET n = $1 WHERE id = 1", n + 1)

    async def caller():
        for _ in range(10):
            await guard.run_in_transaction(add, isolation=isolation, timeout=120.0)

    await asyncio.gather(*(caller() for _ in range(16)))

    assert await guard.fetchval(f"SELECT n FROM {table} WHERE id = 1") == 160


async def test_a_deadlock_victim_is_repeated(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster, server_settings={"deadlock_timeout": "20ms"})
    await guard.executemany(f"INSERT INTO {table} VALUES ($1, 0)", [(1,), (2,)])
    both_have_locked = asyncio.Barrier(2)

    async def add(tx, first, second):
        await tx.execute(f"UPDATE {table} SET n = n + 1 WHERE id = $1", first)
        if tx.attempt == 1:
            await both_have_locked.wait()
        await tx.execute(f"UPDATE {table} SET n = n + 1 WHERE id = $1", second)

    await asyncio.gather(
        guard.run_in_transaction(lambda tx: add(tx, 1, 2)), guard.run_in_transaction(lambda tx: add(tx, 2, 1))
    )

    assert [row["n"] for row in await guard.fetch(f"SELECT n FROM {table}")] == [2, 2]
    assert guard.status().counts["repeats"] == 1


async def test_a_functions_own_exception_passes_unchanged_and_rolls_back(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)
    own = KeyError("the application's own")
    cause = OSError("its cause")
    attempts = []

    async def fail(tx):
        attempts.append(tx.attempt)
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        raise own from cause

    with pytest.raises(KeyError) as caught:
        await guard.run_in_transaction(fail)

    assert caught.value is own
    assert own.__cause__ is cause
    assert attempts == [1]
    assert await count(guard, table) == 0


async def test_a_transaction_function_whose_statement_was_planned_before_ddl_is_run_again(
    calm_cluster, open_guard, table
):
    guard = await open_guard(calm_cluster, config={"pool": {"min_size": 1, "max_size": 1}})
    attempts = []

    async def read(tx):
        attempts.append(tx.attempt)
        return await tx.fetchval(f"SELECT max(n) FROM {table}")

    await guard.execute(f"INSERT INTO {table} VALUES (1, 7)")
    await guard.run_in_transaction(read)
    attempts.clear()
    calm_cluster.sql("a", f"ALTER TABLE {table} ALTER n TYPE text")

    assert await guard.run_in_transaction(read) == "7"
    assert attempts == [1, 2]


@pytest.mark.parametrize("form", ["block", "function"])
async def test_a_deferred_violation_at_commit_reaches_the_caller_as_asyncpgs(calm_cluster, open_guard, table, form):
    calm_cluster.sql("a", f"ALTER TABLE {table} ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    guard = await open_guard(calm_cluster)
    attempts = []

    async def twice(tx):
        attempts.append(tx.attempt)
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1), (2, 1)")

    async def block():
        async with guard.transaction() as tx:
            await twice(tx)

    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        await (block() if form == "block" else guard.run_in_transaction(twice))

    assert not isinstance(caught.value, dbguard.DbGuardError)
    assert attempts == [1]
    assert await count(guard, table) == 0
    assert guard.status().counts["unknown"] == 0


async def test_readonly_blocks_go_to_a_replica_unless_serializable(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async with guard.transaction(readonly=True) as tx:
        assert tx.node in {"b", "c"}
        assert await tx.fetchval("SELECT current_setting('transaction_read_only')") == "on"
    async with guard.transaction(readonly=True, isolation="repeatable_read") as tx:
        assert tx.node in {"b", "c"}
    async with guard.transaction(readonly=True, isolation="serializable", deferrable=True) as tx:
        assert tx.node == "a"
    assert await guard.run_in_transaction(lambda tx: tx.fetchval("SELECT pg_is_in_recovery()"), readonly=True)


async def test_a_write_in_a_readonly_block_on_a_replica_is_the_callers_error(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with guard.transaction(readonly=True) as tx:
            await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
    status = guard.status()
    assert status.writes == "open"
    assert status.primary == "a"
    assert {node.role for node in status.nodes if node.name != "a"} == {"replica"}
    assert await count(guard, table) == 0


async def test_a_function_may_end_its_transaction_but_is_then_not_repeated(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)
    attempts = []

    async def commits_by_itself(tx):
        attempts.append(tx.attempt)
        await tx.execute(f"INSERT INTO {table} VALUES ($1, 0)", len(attempts))
        await tx.execute("COMMIT")
        await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with pytest.raises(asyncpg.SerializationError) as caught:
        await guard.run_in_transaction(commits_by_itself)

    assert attempts == [1]
    assert "parts may have been applied" in "".join(caught.value.__notes__)


async def test_awaited_acquire_is_given_back_by_release(calm_cluster, open_guard, table, all_given_back):
    guard = await open_guard(calm_cluster)

    con = await guard.acquire()
    async with con.transaction():
        await con.execute(f"INSERT INTO {table} VALUES (1, 1)")
    await guard.release(con)

    assert await count(guard, table) == 1
    await all_given_back(guard)
    with pytest.raises(asyncpg.InterfaceError, match="given back"):
        await con.fetchval("SELECT 1")


async def test_a_cursor_works_in_a_block(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async with guard.transaction() as tx:
        rows = [row[0] async for row in tx.cursor("SELECT generate_series(1, 7)", prefetch=2)]

    assert rows == [1, 2, 3, 4, 5, 6, 7]


async def test_sizes_are_those_of_a_pool(calm_cluster, open_guard, all_given_back):
    guard = await open_guard(calm_cluster, "a", min_size=2, max_size=5)
    await all_given_back(guard)

    async with guard.acquire():
        in_use = guard.get_size() - guard.get_idle_size()

    assert in_use == 1
    assert guard.get_size() >= guard.get_min_size() == 2
    assert guard.get_max_size() == 5


# ---------------------------------------------------------------------- a conflict at COMMIT, and a change of roles


@pytest.fixture
def late_conflict(calm_cluster, table):
    """A table whose COMMIT fails with a serialization failure where a row says so."""
    calm_cluster.sql(
        "a",
        f"CREATE FUNCTION conflict_of_{table}() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.n < 0 THEN RAISE SQLSTATE '40001'; END IF; RETURN NULL; END $$",
    )
    calm_cluster.sql(
        "a",
        f"CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED"
        f" FOR EACH ROW EXECUTE FUNCTION conflict_of_{table}()",
    )
    yield table
    calm_cluster.sql("a", f"DROP FUNCTION conflict_of_{table}() CASCADE")


async def test_a_function_refused_at_commit_is_repeated_and_what_it_had_returned_is_never_seen(
    calm_cluster, open_guard, late_conflict
):
    guard = await open_guard(calm_cluster)
    returned = []

    async def insert(tx):
        await tx.execute(f"INSERT INTO {late_conflict} VALUES ($1, $2)", tx.attempt, -1 if tx.attempt < 3 else 1)
        returned.append(tx.attempt)
        return tx.attempt

    value = await guard.run_in_transaction(insert)

    assert returned == [1, 2, 3]
    assert value == 3
    assert calm_cluster.sql("a", f"SELECT id FROM {late_conflict}") == [(3,)]
    assert guard.status().counts["unknown"] == 0


@pytest.mark.parametrize("when", ["statement", "commit"])
async def test_a_block_that_meets_a_conflict_is_not_repeated(calm_cluster, open_guard, late_conflict, when):
    guard = await open_guard(calm_cluster)
    bodies = []

    async def block():
        async with guard.transaction() as tx:
            bodies.append(tx.attempt)
            await tx.execute(f"INSERT INTO {late_conflict} VALUES (1, -1)")
            if when == "statement":
                await tx.execute("SET CONSTRAINTS ALL IMMEDIATE")

    with pytest.raises(asyncpg.SerializationError) as caught:
        await block()

    assert not isinstance(caught.value, dbguard.DbGuardError)
    assert bodies == [1]
    assert await count(guard, late_conflict) == 0
    assert guard.status().counts == guard.status().counts | {"repeats": 0, "unknown": 0}


async def test_a_function_in_a_failover_is_repeated_on_the_new_primary(cluster, open_guard):
    await asyncio.to_thread(cluster.sql, "a", "CREATE TABLE written (attempt int, node text)")
    await asyncio.to_thread(cluster.wait_for, "b", "SELECT to_regclass('written') IS NOT NULL")
    guard = await open_guard(cluster)
    attempts = []

    async def insert(tx):
        attempts.append((tx.attempt, tx.node))
        await tx.execute("INSERT INTO written VALUES ($1, $2)", tx.attempt, tx.node)
        if tx.attempt == 1:
            await asyncio.to_thread(cluster.kill, "a")
            await asyncio.to_thread(cluster.promote, "b")
        await tx.execute("UPDATE written SET node = node || '!'")
        return tx.node

    value = await guard.run_in_transaction(insert, timeout=60.0)

    assert value == "b"
    assert attempts[0] == (1, "a")
    assert attempts[-1] == (len(attempts), "b")
    rows = await asyncio.to_thread(cluster.sql, "b", "SELECT attempt, node FROM written")
    assert rows == [(len(attempts), "b!")]


async def test_a_savepoint_inside_a_function_is_undone_alone(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async def insert(tx):
        await tx.execute(f"INSERT INTO {table} VALUES (1, 1)")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with tx.transaction():
                await tx.executemany(f"INSERT INTO {table} VALUES ($1, $1)", [(2,), (1,)])
        async with tx.transaction():
            await tx.execute(f"INSERT INTO {table} VALUES (3, 3)")
        return tx.attempt

    assert await guard.run_in_transaction(insert) == 1

    assert [row["id"] for row in await guard.fetch(f"SELECT id FROM {table} ORDER BY id")] == [1, 3]


async def test_a_conflict_inside_a_savepoint_repeats_the_whole_function(calm_cluster, open_guard, table):
    guard = await open_guard(calm_cluster)

    async def insert(tx):
        await tx.execute(f"INSERT INTO {table} VALUES ($1, 0)", tx.attempt)
        async with tx.transaction():
            if tx.attempt == 1:
                await tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        return tx.attempt

    assert await guard.run_in_transaction(insert) == 2

    assert calm_cluster.sql("a", f"SELECT id FROM {table}") == [(2,)]


def test_the_first_line_about_functions_says_what_they_must_not_do():
    first = dbguard.Guard.run_in_transaction.__doc__.splitlines()[0]

    assert "must have no effect outside the transaction" in first
