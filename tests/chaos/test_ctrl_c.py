"""Ctrl-C: the first heals and says so, another one ends at once and says what that means."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from chaos.ctrl_c import CtrlC
from chaos.progress import progress_on
from dbguard.testing import processes
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOW = "Ctrl-C again ends at once, without healing"
ENDED = (
    "ended at once: what was broken is not healed; the servers may run on for some 10 seconds, until their watchdogs have"
    " ended them and removed their files; no table, document or page was written"
)


class Desk:
    """Somebody at a terminal. left: the exit codes that the process was to end with."""

    def __init__(self) -> None:
        self.now = 100.0
        self.left: list[int] = []
        self.said = io.StringIO()
        self.ctrl_c = CtrlC(progress_on(self.said), now=lambda: self.now, leave=self.left.append)

    def press(self, after: float, number: signal.Signals = signal.SIGINT) -> None:
        self.now += after
        signal.raise_signal(number)


@pytest.fixture
def desk() -> Iterator[Desk]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    desk = Desk()
    with desk.ctrl_c:
        yield desk
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_first_cancels_what_runs_lets_it_heal_and_says_how_to_end_at_once(desk: Desk) -> None:
    healed: list[str] = []

    async def work() -> None:
        try:
            desk.press(0.0)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            healed.append("all")

    with pytest.raises(KeyboardInterrupt):
        desk.ctrl_c.run(work())

    assert (healed, desk.left) == (["all"], [])
    asyncio.run(until(lambda: HOW in desk.said.getvalue()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_interrupts_what_blocks(desk: Desk, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.press(0.0, number)

    assert desk.left == []
    asyncio.run(until(lambda: HOW in desk.said.getvalue()))


def test_one_that_comes_as_all_is_over_is_not_forgotten(desk: Desk) -> None:
    async def work() -> None:
        desk.press(0.0)

    with pytest.raises(KeyboardInterrupt):
        desk.ctrl_c.run(work())

    assert desk.ctrl_c.heard


def test_second_ends_at_once_and_says_what_that_means(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.press(0.0)

    desk.press(0.5, signal.SIGTERM)

    assert desk.left == [130]
    assert capfd.readouterr().err == f"{ENDED}\n"


def test_signal_that_is_passed_on_to_who_has_it_already_is_the_same_one(desk: Desk) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.press(0.0, signal.SIGTERM)

    desk.press(0.1)

    assert desk.left == []


def test_failure_to_heal_is_what_is_raised(desk: Desk) -> None:
    async def work() -> None:
        try:
            desk.press(0.0)
            await asyncio.Event().wait()
        finally:
            raise OSError("no proxy any more")

    with pytest.raises(OSError, match="no proxy any more"):
        desk.ctrl_c.run(work())

    assert desk.ctrl_c.heard


def test_terminal_keeps_the_hint_in_sight_and_gets_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    with (
        os.fdopen(ours, encoding="utf-8", newline="") as screen,
        os.fdopen(theirs, "w", encoding="utf-8") as stream,
        progress_on(stream) as progress,
    ):
        progress.begin("one (guard)", "what it shows", number=1, count=1, seconds=5.0, left=5.0)
        progress.warn(HOW)
        for number in range(20):
            progress.say(f"{number} s  healed")
        shown = ""
        while HOW not in shown:
            shown += screen.read(1)
        progress.let_go()
        while "\x1b[?25h\r\n" not in shown:
            shown += screen.read(1)


# --- for real


STUCK = """
import asyncio, threading
from chaos.clients.pools import Plain


class Stuck(Plain):
    "A client that cannot be closed."

    async def __aexit__(self, *args):
        await asyncio.to_thread(threading.Event().wait)
"""


@pytest.mark.chaos
def test_second_ends_the_command_while_it_heals_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(STUCK)
    command = [sys.executable, "-m", "chaos", "run", "replica-hole", "--client", "shop:Stuck"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        ) as process,
        contextlib.ExitStack() as exits,
    ):
        exits.callback(process.kill)  # whatever it was that did not end it
        assert process.stdout is not None
        assert any("broken: timeout" in line for line in process.stdout)
        everything = processes._tree([process.pid], processes._table())

        process.send_signal(signal.SIGINT)
        assert any(HOW in line for line in process.stdout)
        assert any("healed: timeout" in line for line in process.stdout)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)  # for the client
        asyncio.run(until(lambda: process.send_signal(signal.SIGINT) or process.poll() is not None))
        rest, complaints = process.communicate()

    assert process.returncode == 130
    assert complaints == f"{ENDED}\n"
    assert rest == ""
    asyncio.run(until(lambda: not alive(everything), 30.0))


def alive(pids: list[int]) -> list[int]:
    table = processes._table()
    return [pid for pid in pids if pid in table and table[pid].alive]
