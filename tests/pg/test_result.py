"""`Result`: rows that are there, whatever becomes of the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row, scalar_row

from dbguard.pg.result import Result
from tests.pg.colours import got

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dbguard.testing.cluster import Cluster

THREE = "SELECT n, 'é' || n AS word FROM generate_series(1, 3) AS g(n)"


@pytest.fixture(params=["tasks", "threads"])
async def raw(request: pytest.FixtureRequest, calm_cluster: Cluster) -> AsyncIterator[Any]:
    kind = psycopg.AsyncConnection if request.param == "tasks" else psycopg.Connection
    con = await got(kind.connect(calm_cluster.dsn("a"), autocommit=True))
    yield con
    await got(con.close())


@pytest.fixture
def ran(raw: Any) -> Callable[..., Awaitable[Result[Any]]]:
    """Run a query, close the connection, and return the result."""

    async def run(query: str, *args: Any, row_factory: Any = None, close: bool = True) -> Result[Any]:
        cursor = raw.cursor(row_factory=row_factory or raw.row_factory)
        await got(cursor.execute(query, *args))
        if close:
            await got(raw.close())
        return Result(cursor)

    return run


async def test_rows_outlive_the_connection(ran: Any) -> None:
    result = await ran(THREE)

    assert result.fetchone() == (1, "é1")
    assert result.fetchmany(1) == [(2, "é2")]
    assert result.fetchall() == [(3, "é3")]
    assert result.fetchone() is None
    assert (result.rowcount, result.rownumber, result.statusmessage) == (3, 3, "SELECT 3")
    assert [column.name for column in result.description or []] == ["n", "word"]


async def test_it_is_gone_through_and_moved_in(ran: Any) -> None:
    result = await ran(THREE, row_factory=scalar_row)

    assert list(result) == [1, 2, 3]
    result.scroll(-2)
    assert result.fetchone() == 2
    result.scroll(0, "absolute")
    assert list(result) == [1, 2, 3]
    with pytest.raises(IndexError):
        result.scroll(9)


async def test_a_row_that_is_none_does_not_end_it(ran: Any) -> None:
    result = await ran("SELECT nullif(n, 2) FROM generate_series(1, 3) AS g(n)", row_factory=scalar_row)

    assert list(result) == [1, None, 3]


async def test_fetchmany_returns_as_many_as_arraysize_says(ran: Any) -> None:
    result = await ran(THREE)
    result.arraysize = 2

    assert len(result.fetchmany()) == 2


async def test_the_results_of_several_statements_are_there(ran: Any) -> None:
    result = await ran("SELECT 1 AS a; SELECT 2 AS b; SELECT 'é' AS c", row_factory=dict_row)

    assert result.fetchall() == [{"a": 1}]
    assert result.nextset()
    assert result.fetchall() == [{"b": 2}]
    assert result.set_result(-1) is result
    assert result.fetchall() == [{"c": "é"}]
    assert result.nextset() is None
    result.set_result(0)
    assert [one.fetchone() for one in result.results()] == [{"a": 1}, {"b": 2}, {"c": "é"}]


async def test_a_statement_without_rows_has_none(ran: Any) -> None:
    result = await ran("SET work_mem = '4MB'")

    assert (result.description, result.rownumber, result.statusmessage) == (None, None, "SET")
    with pytest.raises(psycopg.ProgrammingError, match="didn't produce records"):
        result.fetchone()
    assert list(result.results()) == [result]


async def test_it_can_be_closed(ran: Any) -> None:
    with await ran("SELECT 1") as result:
        assert not result.closed

    assert result.closed
    with pytest.raises(psycopg.InterfaceError, match="closed"):
        result.fetchall()


async def test_it_sends_nothing_to_a_connection_that_others_use(raw: Any, ran: Any) -> None:
    result = await ran(THREE, close=False)
    empty = Result(raw.cursor())
    manager = raw.pipeline()
    await got(manager.__aenter__() if hasattr(manager, "__aenter__") else manager.__enter__())

    cursor = raw.cursor()
    await got(cursor.execute("SELECT 7"))  # queued, and not asked for before its owner does

    assert len(result.fetchall()) == 3
    with pytest.raises(psycopg.ProgrammingError, match="no result available"):
        empty.fetchone()
    assert cursor.pgresult is None
    leave = manager.__aexit__ if hasattr(manager, "__aexit__") else manager.__exit__
    await got(leave(None, None, None))
    assert await got(cursor.fetchone()) == (7,)
