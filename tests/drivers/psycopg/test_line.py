"""One leased connection of psycopg's, alone: what runs on it, who may end it, and what it knows of itself."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row

from dbguard.drivers.identity import identify
from dbguard.drivers.probe import ask
from dbguard.drivers.psycopg.cord import Cord
from tests.waiting import until

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster

SOON = 3.0
"""Seconds within which a loaded machine gets to what takes it milliseconds; psycopg's own way takes five and more."""


async def test_a_method_of_the_drivers_runs_on_it(side: Any, make_line: Any, single: Cluster) -> None:
    line = await make_line(single.primary.port)

    cursor = await side.run(line.run(line.raw.execute, "SELECT %s::int + 1", (41,)))

    assert await side.run(line.run(cursor.fetchone)) == (42,)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await side.run(line.run(line.raw.execute, "SELECT 1 / 0"))
    assert not line.is_closed()


async def test_what_we_ask_knows_nothing_of_the_applications_factories(
    side: Any, make_line: Any, single: Cluster
) -> None:
    line = await make_line(single.primary.port, row_factory=dict_row)
    line.raw.cursor_factory = psycopg.AsyncServerCursor
    line.raw.adapters.register_loader("int4", psycopg.types.string.TextLoader)

    assert await side.run(line.fetchval("SELECT 7::int4")) == 7
    assert await side.run(line.fetchval("SELECT 1 WHERE false")) is None
    assert await side.run(line.fetchval("SELECT NULL")) is None
    assert await side.run(line.execute("CREATE TEMP TABLE p (n int); INSERT INTO p VALUES (1), (2)")) == "INSERT 0 2"
    row = await side.run(line.fetchrow("SELECT n, 'ü%s' AS said, true AS yes, 1.5::float8 AS half FROM p"))
    assert tuple(row) == (1, "ü%s", True, 1.5)
    assert (row["said"], row["half"]) == ("ü%s", 1.5)


async def test_it_can_be_asked_who_its_server_and_its_session_are(side: Any, make_line: Any, single: Cluster) -> None:
    line = await make_line(single.primary.port)

    row = await side.run(ask(line, timeout=None))
    who = await side.run(identify(line))

    assert row["pid"] == line.raw.info.backend_pid
    assert row["recovery"] is False
    assert isinstance(row["position"], int)
    assert isinstance(row["backend_start"], float)
    assert (who.session_user, who.plain) == ("postgres", True)
    assert line.in_standby() is False


@pytest.mark.parametrize("where", ["on the server", "in a black hole"])
async def test_who_waits_on_it_is_woken_when_it_is_ended_elsewhere(
    where: str, side: Any, make_line: Any, wire: Any
) -> None:
    line = await make_line(wire.port)
    if where == "in a black hole":
        wire.mute()
        wire.stall()
    blocked = side.start(line.run(line.raw.execute, "SELECT pg_sleep(60)"))
    await until(line.is_in_transaction)

    began = time.monotonic()
    ender = threading.Thread(target=line.terminate) if side.threads else None
    ender.start() if ender is not None else line.terminate()
    assert ender is not None or line.is_closed()
    with pytest.raises(psycopg.OperationalError):
        await blocked

    assert time.monotonic() - began < SOON
    assert line.is_closed()
    line.terminate()
    line.close()
    assert line.raw.closed
    assert wire.cancels == 0


tasks_alone = pytest.mark.parametrize("side", ["asyncio"], indirect=True)
"""A thread cannot be cancelled: the sweep ends its connection."""


@tasks_alone
async def test_a_cancelled_task_ends_it_and_asks_nobody_to_cancel(make_line: Any, wire: Any) -> None:
    line = await make_line(wire.port)
    wire.mute()
    blocked = asyncio.ensure_future(line.run(line.raw.execute, "SELECT 1"))
    await until(line.is_in_transaction)

    began = time.monotonic()
    blocked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blocked

    assert time.monotonic() - began < SOON
    assert line.is_closed()
    assert line.raw.closed
    assert wire.cancels == 0


@tasks_alone
async def test_one_that_is_cancelled_in_its_turn_leaves_the_socket_to_who_waits_on_it(
    make_line: Any, wire: Any, single: Cluster
) -> None:
    line = await make_line(wire.port)
    runs = asyncio.ensure_future(line.run(line.raw.execute, "SELECT pg_sleep(60)"))
    await until(line.is_in_transaction)
    waits = asyncio.ensure_future(line.run(line.raw.execute, "SELECT 1"))
    await asyncio.sleep(0)

    waits.cancel()
    await asyncio.wait([waits])

    assert waits.cancelled()
    assert line.is_closed()
    assert not line.raw.closed  # psycopg still reads from its socket
    with pytest.raises(psycopg.OperationalError):
        await asyncio.wait_for(runs, SOON)
    assert wire.cancels == 0


INTERRUPTED = """
import sys
import psycopg
from dbguard.drivers.psycopg.line import SyncLine
from dbguard.runtime.colour import now

line = SyncLine(psycopg.Connection.connect(sys.argv[1], autocommit=True), print)
try:
    now(line.run(line.raw.execute, "SELECT pg_sleep(61)"))
except KeyboardInterrupt:
    print("interrupted", line.is_closed())
"""


async def test_a_ctrl_c_ends_it_and_asks_nobody_to_cancel(wire: Any, single: Cluster) -> None:
    dsn = f"host=127.0.0.1 port={wire.port} user=postgres dbname=postgres"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", INTERRUPTED, dsn, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    sleeps = "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(61)' AND state = 'active'"
    await until(lambda: asyncio.to_thread(single.sql, "a", sleeps))

    process.send_signal(signal.SIGINT)
    said, _ = await process.communicate()

    assert said.split() == [b"interrupted", b"True"]
    assert wire.cancels == 0


async def test_it_is_closed_only_when_nothing_runs_on_it(side: Any, make_line: Any, wire: Any) -> None:
    line = await make_line(wire.port)
    raw, said = line.raw, []
    wire.mute()

    def blocks() -> None:
        try:
            raw.execute("SELECT 1")
        finally:
            said.append(("over", raw.closed))

    async def waits() -> None:
        try:
            await raw.execute("SELECT 1")
        finally:
            said.append(("over", raw.closed))

    def finish() -> None:
        said.append(("left", line.is_closed()))
        line.finish()

    blocked = side.start(line.run(blocks if side.threads else waits))
    await until(line.is_in_transaction)
    assert not line.leave(finish)
    assert not line.leave(lambda: said.append("twice"))
    with pytest.raises(psycopg.OperationalError):
        await blocked

    assert [word for word, _ in said] == ["over", "left"]
    assert raw.closed


async def test_one_that_was_left_is_not_ended_any_more(side: Any, make_line: Any, single: Cluster) -> None:
    line = await make_line(single.primary.port)
    raw = line.raw

    assert line.leave(lambda: None)
    line.terminate()

    assert line.is_closed()
    again = side.line(raw, lambda _: None)
    assert await side.run(again.fetchval("SELECT 1")) == 1
    again.close()
    assert raw.closed


async def test_that_its_server_ended_it_is_seen_without_asking(side: Any, make_line: Any, single: Cluster) -> None:
    line = await make_line(single.primary.port)
    await side.run(line.execute("LISTEN news"))
    single.sql("a", "NOTIFY news")
    await until(lambda: select.select([line.raw], [], [], 0)[0])
    assert not line.is_dead()  # though there is something to read
    assert await side.run(line.fetchval("SELECT 1")) == 1
    assert not line.is_dead()

    single.sql("a", f"SELECT pg_terminate_backend({line.raw.info.backend_pid})")

    await until(line.is_dead)
    assert not line.raw.closed  # psycopg has not noticed


async def test_a_servers_last_word_is_seen_before_the_end_of_the_stream() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)  # as libpq's are
    cord = Cord(ours.fileno())

    def message(kind: bytes, text: bytes) -> bytes:
        return kind + (len(text) + 4).to_bytes(4) + text

    theirs.sendall(
        message(b"A", b"E and so on") + message(b"S", b"in_hot_standby\0off\0") + message(b"N", b"by the way")
    )
    await until(lambda: select.select([ours], [], [], 0)[0])
    assert not cord.hangs_loose()
    theirs.sendall(message(b"E", b"57P01"))

    await until(cord.hangs_loose)
    cord.close()
    ours.close()
    theirs.close()


async def test_it_says_whether_a_transaction_is_open_and_whether_it_has_failed(
    side: Any, make_line: Any, single: Cluster
) -> None:
    line = await make_line(single.primary.port)
    assert (line.is_in_transaction(), line.failed) == (False, False)

    await side.run(line.execute("BEGIN"))
    assert (line.is_in_transaction(), line.failed) == (True, False)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await side.run(line.execute("SELECT 1 / 0"))
    assert (line.is_in_transaction(), line.failed) == (True, True)
    assert await side.run(line.execute("COMMIT")) == "ROLLBACK"
    assert (line.is_in_transaction(), line.failed) == (False, False)


async def test_notices_are_heard_beside_the_applications_own_handlers(
    side: Any, make_line: Any, single: Cluster
) -> None:
    ours: list[str | None] = []
    theirs: list[str | None] = []
    line = await make_line(single.primary.port, hear=ours.append)
    line.raw.add_notice_handler(lambda said: theirs.append(said.source_function))

    await side.run(line.run(line.raw.execute, "DROP TABLE IF EXISTS nothing"))
    raw = line.raw
    line.leave(lambda: None)
    again = side.line(raw, lambda _: None)
    await side.run(again.execute("DROP TABLE IF EXISTS nothing"))
    again.close()

    assert ours == ["DropErrorMsgNonExistent"]
    assert theirs == ["DropErrorMsgNonExistent"] * 2


async def test_it_remembers_that_what_is_prepared_on_it_is_stale(
    side: Any, make_line: Any, single: Cluster, table: str
) -> None:
    line = await make_line(single.primary.port, prepare_threshold=0)
    read = f"SELECT * FROM {table}"
    await side.run(line.run(line.raw.execute, read))
    single.sql("a", f"ALTER TABLE {table} ADD COLUMN new int")
    assert not line.stale_plans

    with pytest.raises(psycopg.errors.FeatureNotSupported):
        await side.run(line.run(line.raw.execute, read))

    assert line.stale_plans
    await side.run(line.execute("DEALLOCATE ALL"))
    await side.run(line.run(line.raw.execute, read))
