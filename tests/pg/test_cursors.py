"""Cursors, COPY, pipelines, notifications and what a connection keeps: psycopg's meaning, by both colours."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb, set_json_dumps

from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.pg import reading
from tests.pg.colours import block, each, got
from tests.pg.test_transactions import INSERT, session_of

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster

SERIES = "SELECT n FROM generate_series(1, 5) AS g(n)"


async def test_a_cursor_runs_and_reads(con: Any) -> None:
    async with block(con.cursor(row_factory=dict_row)) as cursor:
        assert await got(cursor.execute(SERIES)) is cursor
        assert cursor.connection is con
        assert (cursor.rowcount, cursor.rownumber, cursor.statusmessage) == (5, 0, "SELECT 5")
        assert await got(cursor.fetchone()) == {"n": 1}
        assert await got(cursor.fetchmany(2)) == [{"n": 2}, {"n": 3}]
        await got(cursor.scroll(-1))
        assert await got(cursor.fetchall()) == [{"n": 3}, {"n": 4}, {"n": 5}]
        await got(cursor.scroll(0, "absolute"))
        cursor.row_factory = scalar_row
        assert await each(cursor) == [1, 2, 3, 4, 5]
        assert [column.name for column in cursor.description] == ["n"]
    assert cursor.closed
    with pytest.raises(psycopg.InterfaceError, match="closed"):
        await got(cursor.execute(SERIES))


async def test_parameters_prepare_and_formats(con: Any) -> None:
    cursor = await got(con.execute("SELECT %(a)s::int + 1, 7 %% 4", {"a": 3}, prepare=True, binary=True))

    assert await got(cursor.fetchone()) == (4, 3)
    assert cursor.pgresult.fformat(0) == 1
    prepared = await got(con.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%$1%'"))
    assert (await got(prepared.fetchone()))[0] >= 1


async def test_composed_queries(con: Any) -> None:
    query = sql.SQL("SELECT {} AS {}").format(sql.Literal("it's"), sql.Identifier('a"b'))

    for context in (con, con.cursor()):
        assert query.as_string(context) == "SELECT 'it''s' AS \"a\"\"b\""
    cursor = await got(con.execute(query))
    assert await got(cursor.fetchone()) == ("it's",)
    assert session_of(con).lease.touched is Touch.NOTHING


async def test_an_error_of_the_servers_is_psycopgs_own(con: Any) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable) as raised:
        await got(con.execute("SELECT * FROM nowhere"))

    assert raised.value.diag.sqlstate == "42P01"


async def test_executemany_and_its_results(con: Any, kept: Any) -> None:
    cursor = con.cursor()
    await got(cursor.executemany(INSERT, [(1,), (2,)]))
    assert cursor.rowcount == 2
    await got(cursor.executemany("INSERT INTO kept VALUES (%s, 'y') RETURNING n", [(3,), (4,)], returning=True))
    assert await got(cursor.fetchone()) == (3,)
    assert cursor.nextset()
    assert await got(cursor.fetchone()) == (4,)
    await got(cursor.set_result(0))
    assert await got(cursor.fetchone()) == (3,)
    await got(con.commit())

    assert kept() == [(4,)]


async def test_several_statements_have_several_results(con: Any) -> None:
    cursor = await got(con.execute("SELECT 1; SELECT 2"))
    found = []
    if hasattr(cursor, "__aiter__"):
        async for one in cursor.results():
            found.append(await one.fetchone())  # noqa: PERF401  one of both colours
    else:
        found = [one.fetchone() for one in cursor.results()]

    assert found == [(1,), (2,)]


async def test_rows_are_streamed(con: Any) -> None:
    assert await each(con.cursor().stream("SELECT n FROM generate_series(1, %s) AS g(n)", (3,))) == [(1,), (2,), (3,)]
    assert await each(con.cursor().stream(SERIES, size=2)) == [(n,) for n in range(1, 6)]
    await got(con.commit())


async def test_a_stream_that_is_left_lets_the_connection_go_on(con: Any) -> None:
    rows = con.cursor().stream("SELECT n FROM generate_series(1, 1000000) AS g(n)")
    first = await anext(rows) if hasattr(rows, "__anext__") else next(rows)
    assert first == (1,)
    assert session_of(con).running == 1
    await got(rows.aclose() if hasattr(rows, "aclose") else rows.close())

    assert session_of(con).running == 0
    await got(con.rollback())
    cursor = await got(con.execute("SELECT 1"))
    assert await got(cursor.fetchone()) == (1,)


async def test_in_a_threads_stream_nothing_else_can_run(con: Any) -> None:
    rows = con.cursor().stream(SERIES)
    if hasattr(rows, "__anext__"):
        await anext(rows)
        waits = asyncio.ensure_future(con.execute("SELECT 2"))
        await asyncio.sleep(0)
        assert not waits.done()
        await rows.aclose()
        assert await (await asyncio.wait_for(waits, 10)).fetchone() == (2,)
    else:
        next(rows)
        with pytest.raises(psycopg.InterfaceError, match=r"in the midst of stream\(\)"):
            con.execute("SELECT 2")
        rows.close()
        assert con.execute("SELECT 2").fetchone() == (2,)


async def test_a_cursor_on_the_server(con: Any) -> None:
    async with block(con.cursor("mine", row_factory=scalar_row, scrollable=True)) as cursor:
        assert (cursor.name, cursor.scrollable, cursor.withhold) == ("mine", True, False)
        cursor.itersize = 2
        await got(cursor.execute("SELECT n FROM generate_series(1, %s) AS g(n)", (7,)))
        assert await got(cursor.fetchone()) == 1
        assert await got(cursor.fetchmany(2)) == [2, 3]
        await got(cursor.scroll(-3))
        assert await each(cursor) == [1, 2, 3, 4, 5, 6, 7]
        assert cursor.rownumber == 7
        await got(cursor.scroll(5, "absolute"))
        assert await got(cursor.fetchall()) == [6, 7]
        with pytest.raises(psycopg.NotSupportedError):
            await got(cursor.executemany("SELECT 1", []))
    assert cursor.closed
    assert session_of(con).lease.touched is Touch.SETTINGS
    found = await got(con.execute("SELECT count(*) FROM pg_cursors"))
    assert await got(found.fetchone()) == (0,)


async def test_a_server_cursor_with_hold_outlives_its_transaction(con: Any) -> None:
    cursor = con.cursor("held", withhold=True)
    await got(cursor.execute(SERIES))
    await got(con.commit())

    assert await got(cursor.fetchmany(2)) == [(1,), (2,)]
    await got(cursor.close())


async def test_a_server_cursor_is_closed_after_the_connection_was_given_back(con: Any) -> None:
    cursor = con.cursor("mine")
    await got(cursor.execute(SERIES))
    session_of(con).over = True
    with pytest.raises(psycopg.InterfaceError, match="given back"):
        await got(cursor.fetchone())
    await got(cursor.close())

    assert cursor.closed
    assert not cursor._inner.raw.closed  # nothing was sent on what may be somebody else's
    session_of(con).over = False
    await got(cursor._inner.raw.close())


# ---------------------------------------------------------------------- COPY


async def test_copy_in_and_out(con: Any, kept: Any) -> None:
    cursor = con.cursor()
    async with block(cursor.copy("COPY kept (n, word) FROM STDIN")) as copy:
        await got(copy.write_row((1, "a")))
        await got(copy.write("2\tb\n3\tc\n"))
    assert cursor.rowcount == 3
    async with block(cursor.copy("COPY (SELECT n, word FROM kept ORDER BY n) TO STDOUT")) as copy:
        copy.set_types(["int4", "text"])
        assert await each(copy.rows()) == [(1, "a"), (2, "b"), (3, "c")]
    async with block(cursor.copy("COPY (SELECT n FROM kept ORDER BY n LIMIT %s) TO STDOUT", (2,))) as copy:
        assert b"".join([bytes(data) for data in await each(copy)]) == b"1\n2\n"
    assert copy.cursor is cursor
    assert copy.connection is con
    await got(con.commit())

    assert kept() == [(3,)]


@pytest.mark.parametrize("format_", ["text", "binary"])
async def test_many_rows_come_in_few_steps(con: Any, format_: str) -> None:
    query = f"COPY (SELECT n, n || 'é' FROM generate_series(1, 5000) AS g(n)) TO STDOUT (FORMAT {format_})"
    async with block(con.cursor().copy(query)) as copy:
        copy.set_types(["int4", "text"])
        assert await each(copy.rows()) == [(n, f"{n}é") for n in range(1, 5001)]
    async with block(con.cursor().copy(query)) as copy:
        await each(copy.rows())
        assert await got(copy.read_row()) is None
        assert not await got(copy.read())
    rows = con.cursor().stream("SELECT n FROM generate_series(0, 4999) AS g(n)")
    assert [n for (n,) in await each(rows)] == list(range(5000))

    assert len(session_of(con).done) < 2500


async def test_a_binary_copy_is_read_to_its_end(con: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_AT_ONCE", 1)
    async with block(con.cursor().copy("COPY (SELECT 1) TO STDOUT (FORMAT binary)")) as copy:
        assert len(await each(copy.rows())) == 1
    cursor = await got(con.execute("SELECT 1"))

    assert await got(cursor.fetchone()) == (1,)


async def test_rows_before_an_error_are_handed_out_first(con: Any) -> None:
    rows = con.cursor(row_factory=scalar_row).stream("SELECT 6 / (3 - n) FROM generate_series(0, 5) AS g(n)")
    found = []
    with pytest.raises(psycopg.errors.DivisionByZero):  # noqa: PT012  the loop is what is asked about
        while True:
            found.append(await anext(rows) if hasattr(rows, "__anext__") else next(rows))

    assert found == [2, 3, 6]


async def test_rows_that_come_slowly_are_handed_out_as_they_come(con: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(reading, "monotonic", lambda: next(clock) * reading.AT_ONCE)
    query = "SELECT n FROM generate_series(1, 4) AS g(n)"

    assert await each(con.cursor(row_factory=scalar_row).stream(query)) == [1, 2, 3, 4]
    assert len(session_of(con).done) == 7  # BEGIN, each row, the end, and the closing


async def test_many_rows_are_copied_in_pieces(con: Any, kept: Any) -> None:
    async with block(con.cursor().copy("COPY kept FROM STDIN (FORMAT binary)")) as copy:
        copy.set_types(["int4", "text"])
        for n in range(20_000):
            await got(copy.write_row((n, "word")))
    await got(con.commit())

    assert kept() == [(20_000,)]
    assert 2 < session_of(con).done.count(Stake.WRITE) < 2_000  # a tenth of one each


async def test_an_exception_in_a_copy_stores_nothing(held: Any, kept: Any) -> None:
    con = await held(autocommit=True)
    with pytest.raises(KeyError):  # noqa: PT012  the block is what is asked about
        async with block(con.cursor().copy("COPY kept FROM STDIN")) as copy:
            await got(copy.write_row((1, "a")))
            raise KeyError

    assert kept() == [(0,)]
    assert session_of(con).running == 0
    await got(con.execute(INSERT, (1,)))


async def test_what_takes_several_steps_in_autocommit_is_committed_in_one_of_its_own(held: Any, kept: Any) -> None:
    con = await held(autocommit=True)
    async with block(con.cursor().copy("COPY kept FROM STDIN")) as copy:
        await got(copy.write("1\ta\n"))
    assert kept() == [(1,)]
    assert session_of(con).done.count(Stake.COMMIT) == 1

    rows = con.cursor().stream("INSERT INTO kept VALUES (2, 'b'), (3, 'c') RETURNING n")
    assert await each(rows) == [(2,), (3,)]
    assert kept() == [(3,)]
    assert session_of(con).done.count(Stake.COMMIT) == 2

    rows = con.cursor().stream("INSERT INTO kept VALUES (4, 'd'), (5, 'e') RETURNING n")
    await (anext(rows) if hasattr(rows, "__anext__") else asyncio.to_thread(next, rows))
    await got(rows.aclose() if hasattr(rows, "aclose") else rows.close())
    assert kept() == [(3,)]
    assert session_of(con).done.count(Stake.COMMIT) == 2
    assert con.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def test_a_stream_is_one_transaction(held: Any) -> None:
    con = await held(autocommit=True)

    with pytest.raises(psycopg.NotSupportedError, match="one transaction by themselves"):
        await each(con.cursor().stream("CALL p()"))


async def test_a_copy_that_is_left_early_lets_the_connection_go_on(con: Any) -> None:
    with pytest.raises(KeyError):  # noqa: PT012  the block is what is asked about
        async with block(con.cursor().copy("COPY (SELECT * FROM generate_series(1, 1000000)) TO STDOUT")) as copy:
            await got(copy.read())
            raise KeyError

    await got(con.rollback())
    cursor = await got(con.execute("SELECT 1"))
    assert await got(cursor.fetchone()) == (1,)


async def test_a_copy_is_written_where_its_writer_says(con: Any, kept: Any) -> None:
    cursor = con.cursor()
    target = io.BytesIO()
    kind = psycopg.AsyncCopy if isinstance(con, psycopg.AsyncConnection) else psycopg.Copy

    class Writer(psycopg.copy.AsyncWriter):
        async def write(self, data: Any) -> None:
            target.write(data)

    writer: Any = Writer() if kind is psycopg.AsyncCopy else psycopg.copy.FileWriter(target)
    async with block(kind(cursor, binary=False, writer=writer)) as copy:
        await got(copy.write_row((1, "a")))

    assert target.getvalue() == b"1\ta\n"
    assert session_of(con).lease.touched is Touch.NOTHING


# ---------------------------------------------------------------------- pipelines


async def test_a_pipeline_runs_in_one_transaction(con: Any, kept: Any) -> None:
    async with block(con.pipeline()) as pipeline:
        await got(con.execute(INSERT, (1,)))
        cursor = await got(con.execute("SELECT count(*) FROM kept"))
        await got(pipeline.sync())
        assert pipeline.status == psycopg.pq.PipelineStatus.ON
        assert await got(cursor.fetchone()) == (1,)
        later = await got(con.execute("SELECT 7"))
        assert await got(later.fetchone()) == (7,)
    assert kept() == [(0,)]
    await got(con.commit())

    assert kept() == [(1,)]
    assert session_of(con).done.count(Stake.COMMIT) == 1


async def test_transactions_begin_and_end_in_a_pipeline(con: Any, kept: Any) -> None:
    async with block(con.pipeline()):
        async with block(con.transaction()):
            await got(con.execute(INSERT, (1,)))
            async with block(con.transaction()):
                await got(con.execute(INSERT, (2,)))
        assert kept() == [(2,)]
        await got(con.execute(INSERT, (3,)))
        await got(con.commit())
        assert kept() == [(3,)]
        await got(con.execute(INSERT, (4,)))
        await got(con.rollback())
    assert kept() == [(3,)]


async def test_what_fails_in_a_pipeline_takes_its_block_with_it(con: Any, kept: Any) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):  # noqa: PT012  the block is what is asked about
        async with block(con.pipeline()), block(con.transaction()):
            await got(con.execute(INSERT, (1,)))
            await got(con.execute(INSERT, (1,)))

    assert kept() == [(0,)]
    cursor = await got(con.execute("SELECT 1"))
    assert await got(cursor.fetchone()) == (1,)


async def test_in_autocommit_what_a_pipeline_wrote_is_at_stake_until_it_is_answered(held: Any, kept: Any) -> None:
    con = await held(autocommit=True)
    async with block(con.pipeline()) as pipeline:
        await got(con.execute("SELECT 1"))
        await got(con.execute(INSERT, (1,)))
        await got(con.execute("SELECT 1"))
        await got(pipeline.sync())
        await got(con.execute("SELECT 1"))

    assert kept() == [(1,)]
    assert session_of(con).done == [
        Stake.READ,
        Stake.COMMIT,
        Stake.COMMIT,
        Stake.COMMIT,
        Stake.READ,
        Stake.READ,
    ]


# ---------------------------------------------------------------------- what comes in by itself


async def test_notifications_come_in(con: Any, calm_cluster: Cluster) -> None:
    await got(con.execute("LISTEN here"))
    await got(con.commit())
    calm_cluster.sql("a", "NOTIFY here, 'one'")
    calm_cluster.sql("a", "NOTIFY here, 'two'")

    assert [note.payload for note in await each(con.notifies(timeout=10, stop_after=2))] == ["one", "two"]
    assert await each(con.notifies(timeout=0)) == []
    assert session_of(con).lease.touched is Touch.LOST
    cursor = await got(con.execute("SELECT 1"))
    assert await got(cursor.fetchone()) == (1,)


async def test_a_connection_that_listened_is_not_handed_on(con: Any) -> None:
    await got(con.execute("LISTEN here"))

    assert session_of(con).lease.touched is Touch.LOST


async def test_handlers_hear_notices_and_notifications(con: Any) -> None:
    heard: list[Any] = []
    con.add_notice_handler(lambda said: heard.append(said.message_primary))
    con.add_notify_handler(lambda note: heard.append(note.payload))
    assert session_of(con).lease.touched is Touch.LOST
    await got(con.execute("DO $$BEGIN RAISE NOTICE 'hear'; END$$"))
    await got(con.execute("LISTEN here"))
    await got(con.execute("NOTIFY here, 'this'"))
    await got(con.commit())

    assert heard == ["hear", "this"]


async def test_what_runs_can_be_cancelled(con: Any, calm_cluster: Cluster) -> None:
    pid = con.info.backend_pid
    asleep = f"SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'"

    async def cancel() -> None:
        await asyncio.to_thread(calm_cluster.wait_for, "a", asleep)
        await got(con.cancel_safe() if asyncio.iscoroutinefunction(con.cancel_safe) else None)
        if not asyncio.iscoroutinefunction(con.cancel_safe):
            await asyncio.to_thread(con.cancel)

    def sleep() -> Any:
        return con.execute("SELECT pg_sleep(60)")

    task = asyncio.ensure_future(cancel())
    with pytest.raises(psycopg.errors.QueryCanceled):
        await (sleep() if isinstance(con, psycopg.AsyncConnection) else asyncio.to_thread(sleep))
    await task
    assert not con.closed


# ---------------------------------------------------------------------- what a connection keeps


async def test_factories_count_until_the_connection_is_given_back(con: Any) -> None:
    raw = con._held.raw
    con.row_factory = dict_row
    con.cursor_factory = psycopg.AsyncClientCursor if isinstance(con, psycopg.AsyncConnection) else psycopg.ClientCursor
    cursor = await got(con.execute("SELECT %s AS a", ("it's",)))

    assert await got(cursor.fetchone()) == {"a": "it's"}
    assert cursor.mogrify("SELECT %s", [1]) == "SELECT 1"
    assert (raw.row_factory, raw.cursor_factory) != (con.row_factory, con.cursor_factory)
    assert session_of(con).lease.touched is Touch.NOTHING


async def test_raw_cursors_take_the_servers_placeholders(con: Any, kept: Any) -> None:
    is_async = isinstance(con, psycopg.AsyncConnection)
    con.cursor_factory = psycopg.AsyncRawCursor if is_async else psycopg.RawCursor
    cursor = await got(con.execute("SELECT $1::int % 4", (7,)))

    assert await got(cursor.fetchone()) == (3,)
    assert session_of(con).done == [Stake.READ, Stake.READ]


async def test_rows_are_made_by_any_factory(con: Any) -> None:
    class Point:
        def __init__(self, x: int, y: int) -> None:
            self.sum = x + y

    cursor = await got(con.cursor(row_factory=class_row(Point)).execute("SELECT 1 AS x, 2 AS y"))

    assert (await got(cursor.fetchone())).sum == 3


async def test_json_and_adapters(con: Any) -> None:
    cursor = await got(con.execute("SELECT %s || '{\"b\": 2}'", (Jsonb({"a": 1}),)))
    assert await got(cursor.fetchone()) == ({"a": 1, "b": 2},)
    assert con.adapters.get_loader(23, psycopg.pq.Format.TEXT) is not None
    assert session_of(con).lease.touched is Touch.NOTHING

    set_json_dumps(lambda value: json.dumps([value]), con)
    cursor = await got(con.execute("SELECT %s", (Jsonb(1),)))
    assert await got(cursor.fetchone()) == ([1],)
    assert session_of(con).lease.touched is Touch.LOST


async def test_types_are_fetched_and_registered(con: Any) -> None:
    found = await got(psycopg.types.TypeInfo.fetch(con, "int4"))
    assert found.oid == 23
    found.register(con)

    assert session_of(con).lease.touched is Touch.LOST
    cursor = await got(con.execute("SELECT 1"))
    assert await got(cursor.fetchone()) == (1,)


async def test_settings_of_prepared_statements_cost_the_connection(con: Any) -> None:
    assert (con.prepare_threshold, con.prepared_max) == (5, 100)
    con.prepare_threshold = None

    assert con.prepare_threshold is None
    assert session_of(con).lease.touched is Touch.LOST


@pytest.mark.parametrize("name", ["raw", "pgconn", "lock"])
async def test_the_drivers_own_marks_the_lease(con: Any, name: str) -> None:
    assert con.info.status == psycopg.pq.ConnStatus.OK
    assert con.fileno() > 0
    assert not session_of(con).lease.raw_touched
    getattr(con, name)

    assert session_of(con).lease.raw_touched


async def test_the_drivers_own_begins_transactions_as_this_does(con: Any, kept: Any) -> None:
    raw = con.raw
    await got(raw.execute(INSERT, (1,)))
    assert raw.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    await got(con.execute(INSERT, (2,)))
    await got(con.rollback())

    assert kept() == [(0,)]


async def test_a_cursor_of_psycopgs_own_works_and_marks_the_lease(con: Any, kept: Any) -> None:
    kind = psycopg.AsyncClientCursor if isinstance(con, psycopg.AsyncConnection) else psycopg.ClientCursor
    cursor = kind(con)
    await got(cursor.execute(INSERT, (1,)))
    await got(cursor.execute("SELECT n FROM kept"))

    assert await got(cursor.fetchall()) == [(1,)]
    assert session_of(con).lease.raw_touched
    assert kept() == [(0,)]
    async with block(con):
        pass
    assert kept() == [(1,)]


async def test_what_is_not_there_is_not_looked_for_elsewhere(con: Any) -> None:
    assert not hasattr(con, "_prepared")
    assert not hasattr(con, "nothing_of_the_kind")
    assert not session_of(con).lease.raw_touched


async def test_what_runs_by_wait_is_taken_for_anything(con: Any) -> None:
    raw = con._held.raw
    raw.pgconn.send_query(b"SELECT 7")
    (result,) = await got(con.wait(psycopg.generators.execute(raw.pgconn)))

    assert result.get_value(0, 0) == b"7"
    assert session_of(con).lease.raw_touched
    assert session_of(con).done == [Stake.COMMIT]


async def test_a_connection_is_made_by_the_guard(con: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"guard\.connection\(\)"):
        type(con).connect("")
