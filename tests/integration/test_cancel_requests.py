"""No CancelRequest is ever sent: it would end a commit's wait for its standby, and acknowledge what no standby has."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Self

import asyncpg
import pytest

CANCEL = 80877102
"""The code in the first packet of a connection that is a CancelRequest (PostgreSQL's manual, 55.7)."""


class Proxy:
    """Passes everything on to a node, and counts what connections begin with."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lines: set[asyncio.Task[None]] = set()
        self.codes: list[int] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for line in list(self._lines):
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines.add(asyncio.current_task())
        writers = [writer]
        try:
            first = await reader.readexactly(8)
            self.codes.append(struct.unpack("!II", first)[1])
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(up_writer)
            up_writer.write(first)
            ways = [asyncio.ensure_future(pump(reader, up_writer)), asyncio.ensure_future(pump(up_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, EOFError):
            pass  # a connection that said nothing, or a node that is down: what it would be without the proxy
        finally:
            for end in writers:
                end.close()
            for end in writers:
                with contextlib.suppress(OSError):
                    await end.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@pytest.fixture
async def proxy(calm_cluster):
    async with Proxy(calm_cluster.primary.port) as proxy:
        yield proxy


@pytest.fixture
async def guard(proxy, open_guard, configured, calm_cluster, monkeypatch):
    """A guard that reaches the primary through the proxy alone."""
    monkeypatch.setattr(calm_cluster.primary, "port", proxy.port)
    config = {"connection": {"sslmode": "disable"}}
    guard = await open_guard(calm_cluster, "a", config=config, server_settings={"application_name": "doomed"})
    monkeypatch.undo()
    return guard


async def slow_rows():
    for n in range(10**6):
        await asyncio.sleep(0.05)
        yield (n, n)


def ways(guard, table, **limit):
    """Every way to wait for a server that takes its time."""

    async def with_connection(do):
        async with guard.acquire() as con:
            await do(con)

    async def in_block(do):
        async with guard.transaction() as tx:
            await do(tx)

    async def cursor(tx):
        async for _ in tx.cursor("SELECT pg_sleep(30) FROM generate_series(1, 3)", **limit):
            pass

    async def prepared(con):
        statement = await con.prepare("SELECT pg_sleep(30)")
        await statement.fetch(**limit)

    async def discard(_):
        await asyncio.sleep(0)

    sleep = "SELECT pg_sleep(30)"
    lock = f"INSERT INTO {table} SELECT 1, 1 FROM pg_sleep(30)"
    return {
        "fetch": lambda: guard.fetch(sleep, **limit),
        "fetchval": lambda: guard.fetchval(sleep, **limit),
        "fetchrow": lambda: guard.fetchrow(sleep, **limit),
        "fetchmany": lambda: guard.fetchmany(f"{sleep} WHERE $1 > 0", [(1,)], **limit),
        "execute": lambda: guard.execute(lock, **limit),
        "execute-arguments": lambda: guard.execute(lock + " WHERE $1 > 0", 1, **limit),
        "executemany": lambda: guard.executemany(lock + " WHERE $1 > 0", [(1,)], **limit),
        "copy-from-query": lambda: guard.copy_from_query(sleep, output=discard, **limit),
        "copy-records": lambda: guard.copy_records_to_table(table, records=slow_rows(), **limit),
        "acquired-copy": lambda: with_connection(
            lambda con: con.copy_records_to_table(table, records=slow_rows(), **limit)
        ),
        "acquired": lambda: with_connection(lambda con: con.fetch(sleep, **limit)),
        "acquired-write": lambda: with_connection(lambda con: con.execute(lock, **limit)),
        "block": lambda: in_block(lambda tx: tx.execute(lock, **limit)),
        "cursor": lambda: in_block(cursor),
        "prepared": lambda: with_connection(prepared),
        "function": lambda: guard.run_in_transaction(lambda tx: tx.execute(lock), **limit),
    }


NAMES = sorted(ways(None, ""))


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("end", ["timeout", "cancel"])
async def test_no_cancel_request_is_sent(guard, proxy, calm_cluster, table, until, way, end):
    task = asyncio.create_task(ways(guard, table, **({"timeout": 0.2} if end == "timeout" else {}))[way]())
    asked = (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'doomed'"
        " AND (wait_event = 'PgSleep' OR query LIKE 'COPY%')"
    )
    await until(lambda: asyncio.to_thread(lambda: calm_cluster.sql("a", asked)[0][0] or task.done()))

    if end == "cancel":
        task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    # Whatever is sent after the call has ended would have been sent by now: a new connection comes through behind it.
    con = await asyncpg.connect(host="127.0.0.1", port=proxy.port, user="postgres", database="postgres", ssl=False)
    await con.close()

    wanted = asyncio.CancelledError if end == "cancel" else (TimeoutError, asyncpg.PostgresConnectionError)
    assert isinstance(result, wanted)
    assert task.cancelling() == (end == "cancel")
    assert len(proxy.codes) >= 2
    assert CANCEL not in proxy.codes
    calm_cluster.terminate_backends("a", where="wait_event = 'PgSleep'")


async def test_a_commands_timeout_sends_none_either(proxy, open_guard, calm_cluster, monkeypatch):
    monkeypatch.setattr(calm_cluster.primary, "port", proxy.port)
    guard = await open_guard(
        calm_cluster,
        "a",
        config={"connection": {"sslmode": "disable"}, "retry": {"attempts": 1}},
        command_timeout=0.2,
    )
    monkeypatch.undo()

    with pytest.raises(TimeoutError):
        await guard.fetchval("SELECT pg_sleep(1)")
    async with guard.acquire() as con:
        with pytest.raises(TimeoutError):
            await con.fetchval("SELECT pg_sleep(1)")

    con = await asyncpg.connect(host="127.0.0.1", port=proxy.port, user="postgres", database="postgres", ssl=False)
    await con.close()
    assert CANCEL not in proxy.codes
