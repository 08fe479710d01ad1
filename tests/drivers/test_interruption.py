"""Programs that are interrupted, or end without closing their guard: no hang, no noise, nothing left on the server.

Each runs in a process of its own, with all warnings on: what is left behind is said aloud.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from dbguard.testing.cluster import Cluster

ENDS_WITHIN = 60.0
"""Seconds for a process to end; a busy machine is slow to end one."""

PROGRAM = """
import asyncio, contextlib, signal, sys
import asyncpg, dbguard

dsn, name = sys.argv[1:]
settings = {"application_name": name, "client_connection_check_interval": "100ms"}
guard = dbguard.Guard(dsn, min_size=2, max_size=3, server_settings=settings)
asleep = "SELECT pg_sleep(600)"

def ready():
    print("ready", flush=True)

def soon():
    asyncio.get_running_loop().call_later(0.2, ready)

async def busy(*expected):
    "Others use the guard meanwhile, in every way; none is waited for. They expect its end, or to be cancelled."
    async def block():
        async with guard.transaction() as con:
            await con.execute("SELECT pg_advisory_xact_lock(1)")
            await con.execute(asleep)
    async def listen():
        con = await guard.acquire()
        await con.add_listener("news", print)
        await asyncio.sleep(60)
    async def rounds():
        while True:
            await guard.execute("SET work_mem = '1MB'")
            await guard.execute("SELECT 1")
            await asyncio.sleep(0.001)
    async def other(work):
        with contextlib.suppress(*expected):
            await work
    works = (block(), listen(), rounds(), rounds(), guard.fetch(asleep))
    return [asyncio.create_task(other(work)) for work in works]

ENDED = (dbguard.GuardClosed, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)

{body}
"""

INTERRUPTED = {
    "in a call": """
async def main():
    async with guard:
        soon()
        await guard.fetchval(asleep)
""",
    "in a transaction": """
async def main():
    async with guard, guard.transaction() as con:
        soon()
        await con.execute(asleep)
""",
    "in a transaction function": """
async def main():
    async with guard:
        soon()
        await guard.run_in_transaction(lambda con: con.execute(asleep))
""",
    "while others work": """
async def main():
    async with guard:
        tasks = await busy()
        soon()
        await asyncio.sleep(60)
""",
    "in a task group": """
async def main():
    async with guard, asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(guard.fetchval(asleep))
        soon()
""",
    "without a block": """
async def main():
    await guard.open()
    tasks = await busy()
    soon()
    await asyncio.sleep(60)
""",
    "while it closes": """
async def main():
    await guard.open()
    con = await guard.acquire()
    soon()
    await guard.close(timeout=60)
""",
}

LEFT = {
    "a block, with others at work": """
async def main():
    async with guard:
        tasks = await busy(*ENDED)
        await asyncio.sleep(0.2)
        guard.terminate()
""",
    "an open guard": """
async def main():
    await guard.open()
    await guard.fetchval("SELECT 1")
""",
    "an open guard, with others at work": """
async def main():
    await guard.open()
    tasks = await busy()
    await asyncio.sleep(0.2)
""",
    "an open guard, twice": """
async def main():
    await guard.open()
    await guard.fetchval("SELECT 1")

asyncio.run(main())
""",
    "a guard that is being opened": """
async def main():
    opening = asyncio.create_task(guard.open())
    await asyncio.sleep(0.01)
""",
    "a guard that is being closed": """
async def main():
    await guard.open()
    tasks = await busy(*ENDED)
    await asyncio.sleep(0.1)
    closing = asyncio.create_task(guard.close(timeout=60))
    await asyncio.sleep(0.05)
""",
    "a terminated guard": """
async def main():
    await guard.open()
    tasks = await busy(*ENDED)
    await asyncio.sleep(0.1)
    guard.terminate()
""",
    "an error": """
async def main():
    async with guard:
        await guard.fetchval("SELECT 1")
        raise SystemExit(0)
""",
}


class Program:
    """A program under way; its standard output and error go to files."""

    def __init__(self, body: str, dsn: str, name: str, folder: Path) -> None:
        path = folder / "program.py"
        path.write_text(PROGRAM.replace("{body}", body) + "\nasyncio.run(main())\n")
        self._said = folder / "stderr"
        with self._said.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "default", os.fspath(path), dsn, name], stdout=subprocess.PIPE, stderr=stderr
            )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        can_read, _, _ = select.select([self.process.stdout], [], [], 60.0)
        assert can_read
        assert self.process.stdout.readline() == b"ready\n", self.said

    def ends(self) -> int:
        """Wait for its end; return the code."""
        try:
            return self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running: {self.said}")
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def errors(self) -> set[str]:
        """The names of the exceptions and warnings in what it said, and everything that looks like a complaint."""
        lines = self.said.splitlines()
        raised = {line.partition(":")[0].rpartition(".")[2] for line in lines if re.match(r"[\w.]+(:|$)", line)}
        noise = (
            "was destroyed",
            "never retrieved",
            "never awaited",
            "Exception ignored",
            "Warning",
            "unhandled",
            "<Task",
        )
        return raised | {line for line in lines if any(word in line for word in noise)}


def no_sessions(single: Cluster, name: str) -> None:
    """Wait until the server has none of the program's sessions any more: what sleeps there looks for its client."""
    until = time.monotonic() + 60.0
    asked = "SELECT state, query FROM pg_stat_activity WHERE application_name = $1"
    while left := single.sql("a", asked, name):
        assert time.monotonic() < until, left
        time.sleep(0.05)


@pytest.mark.parametrize("where", INTERRUPTED)
def test_ctrl_c_ends_the_program_and_says_no_more_than_that(where: str, single: Cluster, tmp_path: Path) -> None:
    program = Program(INTERRUPTED[where], single.dsn("a"), "ctrl-c", tmp_path)
    program.wait_until_ready()

    program.process.send_signal(signal.SIGINT)

    assert program.ends() == -signal.SIGINT
    assert program.errors == {"KeyboardInterrupt", "CancelledError"}, program.said
    no_sessions(single, "ctrl-c")


def test_ctrl_c_ends_a_program_that_waits_for_its_cluster(tmp_path: Path) -> None:
    """Nobody answers: a socket that takes connections in and never says a word."""
    body = """
async def main():
    soon()
    async with guard:
        pass
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        program = Program(body, f"postgresql://postgres@127.0.0.1:{port}/postgres", "silent", tmp_path)
        program.wait_until_ready()

        program.process.send_signal(signal.SIGINT)

        assert program.ends() == -signal.SIGINT
    assert program.errors == {"KeyboardInterrupt", "CancelledError"}, program.said


@pytest.mark.parametrize("what", LEFT)
def test_a_program_that_ends_leaves_nothing_and_says_nothing(what: str, single: Cluster, tmp_path: Path) -> None:
    program = Program(LEFT[what], single.dsn("a"), "left", tmp_path)

    assert program.ends() == 0, program.said
    assert program.said == ""
    no_sessions(single, "left")


SIGTERM = {
    "nobody listens": (
        """
async def main():
    async with guard:
        tasks = await busy()
        soon()
        await asyncio.sleep(60)
""",
        -signal.SIGTERM,
    ),
    "the block is left": (
        """
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with guard:
        last = asyncio.create_task(guard.fetchval("SELECT 7 FROM pg_sleep(1)"))
        soon()
        await stop.wait()
    assert await last == 7
""",
        0,
    ),
    "the task is cancelled": (
        """
async def work():
    async with guard:
        tasks = await busy(*ENDED)
        soon()
        await asyncio.sleep(60)

async def main():
    task = asyncio.create_task(work())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await asyncio.wait([task])
    assert task.cancelled()
""",
        0,
    ),
}


@pytest.mark.parametrize("how", SIGTERM)
def test_sigterm_ends_the_program_as_it_wishes(how: str, single: Cluster, tmp_path: Path) -> None:
    body, code = SIGTERM[how]
    program = Program(body, single.dsn("a"), "sigterm", tmp_path)
    program.wait_until_ready()

    program.process.send_signal(signal.SIGTERM)

    assert program.ends() == code, program.said
    assert program.said == ""
    no_sessions(single, "sigterm")
