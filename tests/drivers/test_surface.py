"""Drop-in: every public name of asyncpg's classes, and every argument of its functions, is decided upon.

Each name has asyncpg's signature, and is used once on a plain pool, on a guard and on a guard that wraps a pool, with the
same result; or it raises and says the way out. What a new asyncpg brings fails here until it is decided upon: a name, a
parameter, a way to use an object (``async with``, ``await``, ``async for``), a class.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from asyncpg.cursor import Cursor, CursorFactory, CursorIterator
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy
from asyncpg.prepared_stmt import PreparedStatement

import dbguard
from dbguard import prepared
from dbguard.calls import Acquiring
from dbguard.drivers.asyncpg.dial import OWN_ARGUMENTS, POOL_ARGUMENTS, known_arguments
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from dbguard.testing.cluster import Cluster

PAIRS = [
    (asyncpg.Pool, dbguard.Guard),
    (asyncpg.Connection, dbguard.Connection),
    (asyncpg.transaction.Transaction, dbguard.Transaction),
    (PreparedStatement, prepared.PreparedStatement),
    (Cursor, prepared.Cursor),
]
USED = [
    *PAIRS,
    (CursorFactory, prepared.CursorFactory),
    (CursorIterator, prepared.CursorIterator),
    (PoolAcquireContext, Acquiring),
]
"""Those, and what their methods return: what can be done with it without a name."""
SYNTAX = {
    *(
        "__aenter__",
        "__aexit__",
        "__await__",
        "__aiter__",
        "__anext__",
        "__enter__",
        "__exit__",
        "__iter__",
        "__next__",
    ),
    *("__call__", "__len__", "__getitem__", "__contains__", "__bool__"),
}
OWN_BOOKS = {"connection", "done", "pool", "timeout"}
"""Attributes of what `Pool.acquire` returns, with which asyncpg keeps its books: they are not documented."""
MORE = {("Guard", "close"): {"timeout"}}
"""Parameters that dbguard adds: keyword-only, with a default."""


def public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(
    ("theirs", "ours", "name"),
    [pytest.param(a, b, name, id=f"{a.__name__}.{name}") for a, b in PAIRS for name in public(a)],
)
def test_every_name_has_the_drivers_own_signature(theirs: type, ours: type, name: str) -> None:
    more = MORE.get((ours.__name__, name), set())
    added = [p for p in parameters(getattr(ours, name)) if p[0] in more]

    assert [p for p in parameters(getattr(ours, name)) if p[0] not in more] == parameters(getattr(theirs, name))
    assert all(kind is inspect.Parameter.KEYWORD_ONLY and default is not inspect._empty for _, kind, default in added)
    assert inspect.iscoroutinefunction(getattr(ours, name)) == inspect.iscoroutinefunction(
        inspect.unwrap(getattr(theirs, name))
    )
    assert inspect.getdoc(getattr(ours, name))


def test_no_name_of_a_connection_is_inherited_from_the_driver() -> None:
    inherited = [
        name
        for name in public(asyncpg.Connection)
        if getattr(dbguard.Connection, name) is getattr(asyncpg.Connection, name)
    ]

    assert inherited == []


# ---------------------------------------------------------------------- each name, used once


async def first_note(call: Callable[[Callable[..., None]], Awaitable[None]]) -> Any:
    """Give *call* a listener, and return what it hears first, without the connection."""
    heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def listener(*said: Any) -> None:
        if not heard.done():
            heard.set_result(said[1:])

    await call(listener)
    async with asyncio.timeout(30):
        return await heard


class MyRecord(asyncpg.Record):
    pass


def plain(rows: Any) -> Any:
    return [tuple(row) for row in rows]


class Names:
    """What both pools and connections have. *db* is one of them; *t* a table with two rows."""

    @staticmethod
    async def execute(db: Any, t: str) -> Any:
        return [
            await db.execute(f"INSERT INTO {t} VALUES ($1, $2)", 3, "three", timeout=30),
            await db.execute(f"UPDATE {t} SET name = 'x'; DELETE FROM {t} WHERE id = 3"),
        ]

    @staticmethod
    async def executemany(db: Any, t: str) -> Any:
        await db.executemany(f"INSERT INTO {t} VALUES ($1, $2)", iter([(n, str(n)) for n in range(3, 30)]), timeout=30)
        return await db.fetchval(f"SELECT count(*) FROM {t}")

    @staticmethod
    async def fetch(db: Any, t: str) -> Any:
        rows = await db.fetch(f"SELECT * FROM {t} WHERE id > $1 ORDER BY id", 0, timeout=30, record_class=MyRecord)
        return [type(row) for row in rows], plain(rows), await db.fetch(f"SELECT * FROM {t} WHERE false")

    @staticmethod
    async def fetchmany(db: Any, t: str) -> Any:
        query = f"INSERT INTO {t} VALUES ($1, $2) RETURNING id, name"
        rows = await db.fetchmany(query, [(3, "three"), (4, "four")], timeout=30, record_class=MyRecord)
        return [type(row) for row in rows], plain(rows)

    @staticmethod
    async def fetchrow(db: Any, t: str) -> Any:
        row = await db.fetchrow(f"SELECT * FROM {t} ORDER BY id", timeout=30, record_class=MyRecord)
        return type(row), tuple(row), row["name"], await db.fetchrow(f"SELECT * FROM {t} WHERE false")

    @staticmethod
    async def fetchval(db: Any, t: str) -> Any:
        query = f"SELECT id, name FROM {t} WHERE id = $1"
        return [await db.fetchval(query, 2, column=n, timeout=30) for n in (0, 1, "name")]

    @staticmethod
    async def copy_from_query(db: Any, t: str) -> Any:
        out = io.BytesIO()
        query = f"SELECT * FROM {t} WHERE id > $1 ORDER BY id"
        return await db.copy_from_query(
            query, 0, output=out, format="csv", header=True, force_quote=["name"]
        ), out.getvalue()

    @staticmethod
    async def copy_from_table(db: Any, t: str) -> Any:
        chunks: list[bytes] = []

        async def keep(chunk: bytes) -> None:
            chunks.append(chunk)

        said = await db.copy_from_table(
            t, schema_name="public", columns=["name"], output=keep, format="csv", delimiter="|"
        )
        return said, b"".join(chunks)

    @staticmethod
    async def copy_to_table(db: Any, t: str) -> Any:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"6;six\n"
            yield b"7;NIL\n"

        said = [
            await db.copy_to_table(
                t, source=io.BytesIO(b"id,name\n3,three\n"), format="csv", header=True, where="id > 2"
            ),
            await db.copy_to_table(t, source=bytearray(b"4\tfour\n5\t\\N\n")),
            await db.copy_to_table(t, source=chunks(), format="csv", delimiter=";", null="NIL", columns=["id", "name"]),
        ]
        return said, plain(await db.fetch(f"SELECT * FROM {t} ORDER BY id"))

    @staticmethod
    async def copy_records_to_table(db: Any, t: str) -> Any:
        async def more() -> AsyncIterator[tuple[int, str]]:
            yield 5, "five"

        said = [
            await db.copy_records_to_table(t, records=iter([(3, "three"), (4, "four")]), columns=("id", "name")),
            await db.copy_records_to_table(t, records=more(), schema_name="public", where="id = 5", timeout=30),
        ]
        return said, plain(await db.fetch(f"SELECT * FROM {t} ORDER BY id"))


class PoolNames(Names):
    @staticmethod
    async def acquire(pool: Any, t: str) -> Any:
        con = await pool.acquire(timeout=30)
        await pool.release(con)
        async with pool.acquire() as con:
            return await con.fetchval(f"SELECT count(*) FROM {t}")

    @staticmethod
    async def release(pool: Any, t: str) -> Any:
        con = await pool.acquire()
        await pool.release(con, timeout=30)
        with pytest.raises(asyncpg.InterfaceError) as refused:
            await con.fetchval("SELECT 1")
        await pool.release(con)  # a second time does nothing
        return type(refused.value)

    @staticmethod
    async def expire_connections(pool: Any, t: str) -> Any:
        before = await pool.fetchval("SELECT pg_backend_pid()")
        await pool.expire_connections()
        return before == await pool.fetchval("SELECT pg_backend_pid()")

    @staticmethod
    async def get_size(pool: Any, t: str) -> Any:
        async with pool.acquire(), pool.acquire():
            inside = pool.get_size()
        await until(lambda: pool.get_idle_size() == 2)  # giving back may go on in the background
        return inside, pool.get_size()

    @staticmethod
    async def get_idle_size(pool: Any, t: str) -> Any:
        async with pool.acquire(), pool.acquire():
            inside = pool.get_idle_size()
        return inside, await until(lambda: pool.get_idle_size() == 2)

    @staticmethod
    async def get_min_size(pool: Any, t: str) -> Any:
        return pool.get_min_size()

    @staticmethod
    async def get_max_size(pool: Any, t: str) -> Any:
        return pool.get_max_size()

    @staticmethod
    async def get_init_size(pool: Any, t: str) -> Any:
        return pool.get_init_size()

    @staticmethod
    async def is_closing(pool: Any, t: str) -> Any:
        return pool.is_closing()

    @staticmethod
    async def close(pool: Any, t: str) -> Any:
        await pool.close()
        return pool.is_closing(), await refusal(pool)

    @staticmethod
    async def terminate(pool: Any, t: str) -> Any:
        pool.terminate()
        return pool.is_closing(), await refusal(pool)

    @staticmethod
    async def set_connect_args(pool: Any, t: str) -> Any:
        if isinstance(pool, asyncpg.Pool):
            return  # the name alone: where a guard's nodes are is the configuration's to say
        with pytest.raises(NotImplementedError, match="close it and open another one"):
            pool.set_connect_args("postgresql://elsewhere", user="other")


async def refusal(pool: Any) -> bool:
    with pytest.raises((asyncpg.InterfaceError, dbguard.GuardClosed)):
        await pool.fetchval("SELECT 1")
    return True


async def is_refused(con: Any) -> bool:
    with pytest.raises(asyncpg.InterfaceError):
        await con.fetchval("SELECT 1")
    return True


class ConnectionNames(Names):
    @staticmethod
    async def add_listener(con: Any, t: str) -> Any:
        async def call(listener: Any) -> None:
            await con.add_listener(f"channel_{t}", listener)
            await con.execute(f"NOTIFY channel_{t}, 'news'")

        pid, *said = await first_note(call)
        await con.reset()
        return pid == con.get_server_pid(), [word.replace(t, "") for word in said]

    @staticmethod
    async def remove_listener(con: Any, t: str) -> Any:
        heard: list[Any] = []
        await con.add_listener(t, heard.append)
        await con.remove_listener(t, heard.append)
        await con.execute(f"NOTIFY {t}, 'news'")
        return heard, await con.fetchval("SELECT count(*) FROM pg_listening_channels()")

    @staticmethod
    async def add_log_listener(con: Any, t: str) -> Any:
        async def call(listener: Any) -> None:
            con.add_log_listener(listener)
            await con.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")

        (note,) = await first_note(call)
        await con.reset()
        return type(note), note.message

    @staticmethod
    async def remove_log_listener(con: Any, t: str) -> Any:
        heard: list[Any] = []

        def listener(*said: Any) -> None:
            heard.append(said)

        con.add_log_listener(listener)
        con.remove_log_listener(listener)
        await con.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
        await asyncio.sleep(0)
        return heard

    @staticmethod
    async def add_query_logger(con: Any, t: str) -> Any:
        heard: list[Any] = []
        con.add_query_logger(heard.append)
        await con.fetchval("SELECT 11")
        await asyncio.sleep(0)
        con.remove_query_logger(heard.append)
        return [record.query for record in heard]

    remove_query_logger = add_query_logger

    @staticmethod
    async def query_logger(con: Any, t: str) -> Any:
        heard: list[Any] = []
        with con.query_logger(heard.append):
            await con.fetchval("SELECT 12")
        await con.fetchval("SELECT 13")
        await asyncio.sleep(0)
        return [record.query for record in heard]

    @staticmethod
    async def add_termination_listener(con: Any, t: str) -> Any:
        async def call(listener: Any) -> None:
            con.add_termination_listener(listener)
            con.terminate()

        return await first_note(call)

    @staticmethod
    async def remove_termination_listener(con: Any, t: str) -> Any:
        heard: list[Any] = []
        con.add_termination_listener(heard.append)
        con.remove_termination_listener(heard.append)
        con.terminate()
        await asyncio.sleep(0)
        return heard

    @staticmethod
    async def close(con: Any, t: str) -> Any:
        await con.close(timeout=30)
        return await is_refused(con)

    @staticmethod
    async def terminate(con: Any, t: str) -> Any:
        con.terminate()
        return await is_refused(con)

    @staticmethod
    async def is_closed(con: Any, t: str) -> Any:
        return con.is_closed()

    @staticmethod
    async def cursor(con: Any, t: str) -> Any:
        query = "SELECT generate_series(1, $1) AS n"
        async with con.transaction():
            rows = [row async for row in con.cursor(query, 120, prefetch=50, timeout=30, record_class=MyRecord)]
            exact = [row["n"] async for row in con.cursor(query, 100)]
            none = [row async for row in con.cursor(f"SELECT * FROM {t} WHERE false")]
            cursor = await con.cursor(query, 10)
            parts = [
                plain(await cursor.fetch(3)),
                await cursor.forward(2),
                tuple(await cursor.fetchrow()),
                await cursor.forward(99),
                await cursor.fetchrow(),
                await cursor.fetch(1),
            ]
            await con.execute(f"DROP TABLE {t}")  # an iterated cursor leaves nothing open
        with pytest.raises(asyncpg.NoActiveSQLTransactionError):
            await con.cursor(query, 1)
        with pytest.raises(asyncpg.InterfaceError, match="prefetch"):
            await con.cursor(query, 1, prefetch=2)
        return {type(row) for row in rows}, plain(rows), exact, none, parts

    @staticmethod
    async def prepare(con: Any, t: str) -> Any:
        put = await con.prepare(f"INSERT INTO {t} VALUES ($1, $2) RETURNING id", name="put", timeout=30)
        get = await con.prepare(f"SELECT * FROM {t} WHERE id > $1 ORDER BY id", record_class=MyRecord)
        said = [
            put.get_name(),
            put.get_query().replace(t, ""),
            put.get_statusmsg(),
            await put.fetchval(3, "three"),
            put.get_statusmsg(),
            plain(await put.fetchmany([(4, "four"), (5, "five")])),
            await put.executemany([(6, "six")]),
            [parameter.name for parameter in put.get_parameters()],
            [column.name for column in get.get_attributes()],
            plain(await get.fetch(0, timeout=30)),
            type(await get.fetchrow(0)),
            await get.fetchval(1, column=1),
            sorted(*await get.explain(0)),
        ]
        async with con.transaction():
            said.append([tuple(row) async for row in get.cursor(2, prefetch=2)])
            said.append(tuple(await (await get.cursor(2)).fetchrow()))
        return said

    @staticmethod
    async def transaction(con: Any, t: str) -> Any:
        async with con.transaction(isolation="repeatable_read", readonly=True, deferrable=True):
            level = await con.fetchval("SHOW transaction_isolation"), await con.fetchval("SHOW transaction_read_only")
        async with con.transaction():
            await con.execute(f"INSERT INTO {t} VALUES (3, 'three')")
            with contextlib.suppress(ZeroDivisionError):
                async with con.transaction():
                    await con.execute(f"INSERT INTO {t} VALUES (4, 'four')")
                    raise ZeroDivisionError
        by_hand = con.transaction()
        await by_hand.start()
        await con.execute(f"DELETE FROM {t}")
        await by_hand.rollback()
        again = con.transaction()
        await again.start()
        await con.execute(f"DELETE FROM {t} WHERE id = 1")
        await again.commit()
        with pytest.raises(asyncpg.InterfaceError):
            await again.commit()
        return level, plain(await con.fetch(f"SELECT * FROM {t} ORDER BY id"))

    @staticmethod
    async def is_in_transaction(con: Any, t: str) -> Any:
        async with con.transaction():
            inside = con.is_in_transaction()
        return inside, con.is_in_transaction()

    @staticmethod
    async def get_reset_query(con: Any, t: str) -> Any:
        return con.get_reset_query()

    @staticmethod
    async def get_server_pid(con: Any, t: str) -> Any:
        return con.get_server_pid() == await con.fetchval("SELECT pg_backend_pid()")

    @staticmethod
    async def get_server_version(con: Any, t: str) -> Any:
        return con.get_server_version()

    @staticmethod
    async def get_settings(con: Any, t: str) -> Any:
        return con.get_settings().server_version, con.get_settings().TimeZone

    @staticmethod
    async def reload_schema_state(con: Any, t: str) -> Any:
        return await con.reload_schema_state()

    @staticmethod
    async def reset(con: Any, t: str) -> Any:
        await con.execute("SET statement_timeout = '77s'")
        await con.reset(timeout=30)
        return await con.fetchval("SHOW statement_timeout")

    @staticmethod
    async def set_type_codec(con: Any, t: str) -> Any:
        codec = {"encoder": str, "decoder": lambda text: ("decoded", text), "format": "text"}
        await con.set_type_codec("int4", schema="pg_catalog", **codec)
        decoded = await con.fetchval("SELECT 5::int4")
        await con.reset_type_codec("int4", schema="pg_catalog")
        return decoded, await con.fetchval("SELECT 5::int4")

    reset_type_codec = set_type_codec

    @staticmethod
    async def set_builtin_type_codec(con: Any, t: str) -> Any:
        await con.set_builtin_type_codec("int8", schema="pg_catalog", codec_name="int8", format="binary")
        return await con.fetchval("SELECT 0::int8")


SIZES = {"min_size": 1, "max_size": 4}


@pytest.fixture(params=["own", "wrapped"])
async def ours(request: pytest.FixtureRequest, single: Cluster, open_guard: Any) -> AsyncIterator[dbguard.Guard]:
    """A guard that does nothing of its own meanwhile: a probe takes one of a wrapped pool's connections, too."""
    slow = {"probe": {"interval": "1h"}}
    if request.param == "own":
        guard = await open_guard(single.primary.port, config=slow, **SIZES)
        await until(lambda: guard.get_idle_size() == guard.get_size())
        yield guard
        return
    async with asyncpg.create_pool(single.dsn(), **SIZES) as pool, dbguard.Guard.wrap(pool, config=slow) as guard:
        await until(lambda: guard.get_idle_size() == guard.get_size())
        yield guard


async def compare(
    single: Cluster, guard: Any, t: str, use: Callable[[Any, str], Awaitable[Any]], *, connection: bool
) -> None:
    """Use both, each over a fresh copy of the table, and compare."""
    said = []
    pool = await asyncpg.create_pool(single.dsn(), **SIZES)
    for number, thing in enumerate((pool, guard)):
        copy = f"{t}_{number}"
        single.sql("a", f"CREATE TABLE {copy} (LIKE {t} INCLUDING ALL)")
        single.sql("a", f"INSERT INTO {copy} SELECT * FROM {t}")
        try:
            if connection:
                async with thing.acquire() as con:
                    said.append(await use(con, copy))
            else:
                said.append(await use(thing, copy))
        finally:
            pool.terminate()
        single.sql("a", f"DROP TABLE IF EXISTS {copy}")
    assert said[1] == said[0]


@pytest.mark.parametrize("name", public(asyncpg.Pool))
async def test_every_name_of_a_pool_works_as_on_a_plain_one(
    name: str, single: Cluster, ours: dbguard.Guard, table: str
) -> None:
    use = getattr(PoolNames, name, None)
    assert use is not None, f"asyncpg.Pool.{name} is new: decide what a guard does with it"

    await compare(single, ours, table, use, connection=False)


@pytest.mark.parametrize("name", public(asyncpg.Connection))
async def test_every_name_of_a_connection_works_as_on_a_plain_one(
    name: str, single: Cluster, ours: dbguard.Guard, table: str
) -> None:
    use = getattr(ConnectionNames, name, None)
    assert use is not None, f"asyncpg.Connection.{name} is new: decide what dbguard.Connection does with it"

    await compare(single, ours, table, use, connection=True)


async def test_what_is_kept_after_the_return_cannot_be_used(single: Cluster, ours: dbguard.Guard, table: str) -> None:
    async with ours.acquire() as con, con.transaction():
        statement = await con.prepare(f"INSERT INTO {table} VALUES (3, 'three')")
        cursor = await con.cursor(f"SELECT * FROM {table}")
        rows = aiter(con.cursor(f"SELECT * FROM {table}"))

    for use in (statement.fetch, statement.get_name, lambda: cursor.fetch(1), lambda: anext(rows), lambda: con.raw):
        with pytest.raises(asyncpg.InterfaceError, match="given back"):
            await use()  # type: ignore[misc]
    assert [row["id"] for row in await ours.fetch(f"SELECT id FROM {table} ORDER BY id")] == [1, 2]


async def test_a_connection_is_one_for_isinstance(ours: dbguard.Guard) -> None:
    async with ours.acquire() as con:
        assert isinstance(con, asyncpg.Connection)
        assert isinstance(con, dbguard.Connection)


async def test_a_path_can_be_copied_to_and_from(ours: dbguard.Guard, table: str, tmp_path: Path) -> None:
    for name, path in (("text", str(tmp_path / "a")), ("path", tmp_path / "b"), ("bytes", bytes(tmp_path / "c"))):
        assert await ours.copy_from_query(f"SELECT id + 10, name FROM {table} WHERE id = 1", output=path) == "COPY 1", (
            name
        )
        assert await ours.copy_to_table(table, source=path) == "COPY 1", name
        await ours.execute(f"DELETE FROM {table} WHERE id > 10")


@pytest.mark.parametrize(("theirs", "ours"), [pytest.param(a, b, id=a.__name__) for a, b in USED])
def test_whatever_can_be_done_with_theirs_can_be_done_with_ours(theirs: type, ours: type) -> None:
    assert SYNTAX.intersection(dir(theirs)) <= set(dir(ours))


def test_what_a_method_returns_has_no_names_that_were_not_decided_upon() -> None:
    assert public(CursorFactory) == public(CursorIterator) == []
    assert set(public(PoolAcquireContext)) == OWN_BOOKS
    assert set(public(PoolConnectionProxy)) == set(public(asyncpg.Connection))


def test_every_argument_of_their_functions_is_decided_upon() -> None:
    of_connect = set(inspect.signature(asyncpg.connect).parameters)
    of_pools = set(inspect.signature(asyncpg.create_pool).parameters) - of_connect - {"connect_kwargs"}

    # What is new for connections is passed on; what is new for pools must be given to the pool, or answered by the guard.
    assert of_pools == (POOL_ARGUMENTS | OWN_ARGUMENTS) - of_connect
    assert known_arguments() == of_connect | of_pools


def test_no_class_of_theirs_is_new() -> None:
    plain = [name for name in asyncpg.__all__ if not issubclass_of_error(getattr(asyncpg, name))]

    assert sorted(plain) == ["Connection", "Pool", "Record", "connect", "create_pool"]


def issubclass_of_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Exception | asyncpg.PostgresLogMessage)
