"""What is held at rest, and whether that grows."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from chaos.checkers import State
from chaos.resting import Growth, Rest, growth, measure

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
REST = Rest(memory=100 * MIB, tasks=20, threads=3, files=60, leases=0, backends=24)


def judged(make: Callable[[int], Rest], count: int = 30) -> dict[str, Growth]:
    return {one.what: one for one in growth([make(number) for number in range(count)])}


def test_what_comes_and_goes_does_not_grow() -> None:
    found = judged(lambda n: replace(REST, files=60 + n * 7 % 5, backends=20 + n * 3 % 8, memory=REST.memory + n % 3))

    assert {one.state for one in found.values()} == {State.OK}
    assert set(found) == {"memory", "tasks", "threads", "files", "leases", "backends"}


@pytest.mark.parametrize("what", ["tasks", "threads", "files", "leases", "backends"])
def test_one_that_is_left_now_and_then_is_growth(what: str) -> None:
    found = judged(lambda n: replace(REST, **{what: getattr(REST, what) + n // 5}))

    assert [name for name, one in found.items() if one.state is State.BROKEN] == [what]


@pytest.mark.parametrize(("share", "state"), [(0.019, State.OK), (0.021, State.BROKEN), (-0.1, State.OK)])
def test_memory_may_grow_by_less_than_two_hundredths(share: float, state: State) -> None:
    found = judged(lambda n: replace(REST, memory=round(REST.memory * (1 + share * (n >= 15)))))

    assert found["memory"].state is state
    assert f"({share:+.1%})" in str(found["memory"])


def test_what_grows_in_the_first_fifth_alone_is_not_judged() -> None:
    found = judged(lambda n: replace(REST, memory=REST.memory * min(n, 6), tasks=min(n, 6)))

    assert {one.state for one in found.values()} == {State.OK}


def pooled(n: int, rng: random.Random, **leaks: int) -> Rest:
    """A rest as soaks have them: pools of any size, and for each session three tasks and files."""
    sessions = rng.randrange(8, 36) + leaks.get("backends", 0)
    held = {"backends": sessions, "tasks": 3 * sessions + 3, "files": 3 * sessions + 31}
    return replace(REST, **{what: held[what] + (leaks.get(what, 0) if what != "backends" else 0) for what in held})


def test_pools_that_come_and_go_are_no_growth() -> None:
    found = [
        growth([pooled(n, rng) for n in range(count)])
        for count in (30, 50, 80)
        for rng in map(random.Random, range(25))
    ]

    assert {one.state for judged in found for one in judged} == {State.OK}


@pytest.mark.parametrize("what", ["tasks", "files", "backends"])
def test_one_more_with_each_segment_is_found_among_pools_that_come_and_go(what: str) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        found = growth([pooled(n, rng, **{what: n}) for n in range(75)])
        assert what in {one.what for one in found if one.state is State.BROKEN}
    (grown,) = (one for one in found if one.what == what)
    assert grown.trend > 40
    assert "along the way" in str(grown)


@pytest.mark.parametrize("what", ["tasks", "files"])
def test_one_more_now_and_then_is_found_beside_what_sessions_account_for(what: str) -> None:
    rng = random.Random(1)
    found = growth([pooled(n, rng, **{what: n // 10}) for n in range(75)])

    assert [one.what for one in found if one.state is State.BROKEN] == [what]


def test_few_rests_prove_nothing() -> None:
    found = judged(lambda n: replace(REST, tasks=n), count=8)

    assert {one.state for one in found.values()} == {State.UNKNOWN}


async def test_what_is_left_behind_is_measured() -> None:
    bench: Any = SimpleNamespace(
        client=SimpleNamespace(leases=lambda: 2), cluster=SimpleNamespace(nodes=["a", "b"], sql=None), do=answered
    )
    ends, over = os.pipe(), threading.Event()

    before = await measure(bench)
    task = asyncio.create_task(asyncio.Event().wait())
    thread = threading.Thread(target=over.wait)
    thread.start()
    ballast = bytearray(os.urandom(MIB)) * 32
    more = os.pipe()
    try:
        after = await measure(bench)
    finally:
        over.set()
        thread.join()
        task.cancel()
        for end in (*ends, *more):
            os.close(end)

    assert (after.tasks, after.threads, after.files) == (before.tasks + 1, before.threads + 1, before.files + 2)
    assert (after.leases, after.backends) == (2, 14)
    assert after.memory - before.memory >= 0.9 * len(ballast)


async def answered(work: Any, node: str, query: str) -> list[tuple[int]]:
    return [(7,)]


PIECES = """
import ctypes, sys
from chaos.resting import give_back_large_pieces

if sys.argv[1:]:
    give_back_large_pieces()
bytearray(8 * 2**20)  # freed at once: glibc raises its limit
piece = bytearray(2**20)
at = ctypes.addressof(ctypes.c_char.from_buffer(piece))
print(bool(ctypes.c_size_t.from_address(at - ctypes.sizeof(ctypes.c_size_t)).value & 2))  # IS_MMAPPED
"""


@pytest.mark.parametrize("words", [[], ["set"]], ids=["glibc's own way", "as a soak has it"])
def test_large_pieces_are_given_back_whatever_came_before(words: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-c", PIECES, *words], check=True, capture_output=True, text=True)

    assert ran.stdout == f"{bool(words)}\n" or platform.libc_ver()[0] != "glibc"  # others have no such setting
