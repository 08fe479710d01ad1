"""The loop beside a guard for threads: whoever waits for it hears of its end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from dbguard.errors import GuardClosed
from dbguard.runtime.colour import now
from dbguard.runtime.home import Home

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON = 10.0


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.stop()


@pytest.fixture
def others() -> Iterator[ThreadPoolExecutor]:
    """Other threads."""
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.mark.parametrize("way", ["a call's", "the guard's"])
def test_who_waits_for_the_loop_is_sent_home_as_it_ends(home: Home, others: ThreadPoolExecutor, way: str) -> None:
    begun = threading.Event()

    async def for_ever() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    if way == "a call's":
        waits = others.submit(lambda: now(home.colour.elsewhere(for_ever())))
    else:
        waits = others.submit(lambda: home.run(for_ever()))
    assert begun.wait(SOON)
    home.stop()
    with pytest.raises(GuardClosed):
        waits.result(SOON)


def test_who_comes_after_its_end_is_told_so(home: Home) -> None:
    home.stop()
    with pytest.raises(GuardClosed):
        now(home.colour.elsewhere(asyncio.sleep(0)))
    with pytest.raises(GuardClosed):
        home.run(asyncio.sleep(0))


def test_what_is_asked_as_it_ends_is_answered_or_refused(home: Home, others: ThreadPoolExecutor) -> None:
    stopped = threading.Event()

    def ask() -> int:
        asked = 0
        while not stopped.is_set():
            now(home.colour.elsewhere(asyncio.sleep(0)))
            asked += 1
        return asked

    waits = [others.submit(ask) for _ in range(4)]
    home.stop()
    stopped.set()
    for one in waits:
        assert isinstance(one.exception(SOON), GuardClosed | None)
