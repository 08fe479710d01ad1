"""What callers were told, compared with the table; and callers that go on calling meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from dbguard.testing.callers import Callers
from dbguard.testing.clock import ManualClock
from dbguard.testing.ledger import Ledger, Refused


class Lost(Exception):
    """The answer did not come."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(clock: ManualClock) -> Ledger:
    return Ledger(refused=(ConnectionRefusedError,), clock=clock)


def note(ledger: Ledger, value: Any, error: BaseException | None = None, *, clock: ManualClock | None = None) -> None:
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected, ledger.entry(value):  # the exception goes on to the caller
        if clock:
            clock.advance(0.25)
        if error:
            raise error


def test_writes_that_are_there_once_keep_every_promise(ledger: Ledger) -> None:
    note(ledger, 1)
    note(ledger, 2, Lost())
    note(ledger, 3, Lost())
    note(ledger, 4, Refused("503"))
    note(ledger, 5, ConnectionRefusedError())

    audit = ledger.audit([1, 3])

    audit.check()
    assert (audit.acknowledged, audit.refused, audit.unknown, audit.applied) == (1, 2, 2, 1)
    assert audit.errors == {"Lost": 2, "Refused: 503": 1, "ConnectionRefusedError": 1}


@pytest.mark.parametrize(
    ("found", "broken", "said"),
    [
        ([1], {"lost": (2,)}, "lost: acknowledged, and not there: 2"),
        ([1, 2, 2], {"duplicated": (2,)}, "duplicated: there more than once: 2"),
        ([1, 2, 3, 3], {"duplicated": (3,)}, "duplicated: there more than once: 3"),
        ([1, 2, 4], {"denied": (4,)}, "denied: refused, and there all the same: 4"),
        ([1, 2, 9], {"strange": (9,)}, "strange: there, and in no entry: 9"),
    ],
    ids=["lost", "acknowledged twice", "unknown twice", "refused and applied", "of nobody"],
)
def test_broken_promise_is_named_with_its_value(
    found: list[int], broken: dict[str, tuple[int, ...]], said: str, ledger: Ledger
) -> None:
    note(ledger, 1)
    note(ledger, 2)
    note(ledger, 3, Lost())
    note(ledger, 4, Refused())

    audit = ledger.audit(found)

    assert {name: getattr(audit, name) for name in ("lost", "duplicated", "denied", "strange")} == {
        "lost": (),
        "duplicated": (),
        "denied": (),
        "strange": (),
    } | broken
    assert audit.broken == [said]
    with pytest.raises(AssertionError, match=said):
        audit.check()


def test_ledger_without_a_success_proves_nothing(ledger: Ledger) -> None:
    note(ledger, 1, Lost())

    with pytest.raises(AssertionError, match="nothing was acknowledged"):
        ledger.audit([]).check()


def test_many_broken_values_are_counted_not_listed(ledger: Ledger) -> None:
    for value in range(9):
        note(ledger, value)

    assert ledger.audit([]).broken == ["lost: acknowledged, and not there: 0, 1, 2, 3, 4 and 4 more"]


def test_one_value_for_two_writes_is_refused(ledger: Ledger) -> None:
    note(ledger, 1)
    note(ledger, 1)

    with pytest.raises(ValueError, match="value of its own; there are several of 1"):
        ledger.audit([1])


def test_cancelled_write_is_unknown(ledger: Ledger) -> None:
    note(ledger, 1, asyncio.CancelledError())

    assert ledger.audit([1]).unknown == 1


def test_silence_is_the_longest_time_without_an_acknowledgement(ledger: Ledger, clock: ManualClock) -> None:
    assert ledger.longest_silence() == 0
    clock.advance(100)  # before the first call nobody waits
    note(ledger, 1, clock=clock)
    clock.advance(1)
    note(ledger, 2, Lost(), clock=clock)
    clock.advance(1)
    note(ledger, 3, clock=clock)
    assert ledger.longest_silence() == 2.5

    clock.advance(3)
    note(ledger, 4, Lost(), clock=clock)
    assert ledger.longest_silence() == 3.25, "an outage that lasts to the end counts"
    assert "longest time without an acknowledgement: 3.25 s" in str(ledger.audit([1, 3]))


# ---------------------------------------------------------------------- callers


async def test_tasks_call_each_with_a_number_of_its_own_until_the_block_is_left() -> None:
    ledger, seen = Ledger(), []

    async def call(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)
        if number % 3 == 0:
            raise Lost

    async with Callers(call, ledger, count=3, pause=0) as callers:
        await callers.acknowledged(20)
        await callers.acknowledged(20)
    called = len(seen)
    await asyncio.sleep(0)

    assert sorted(seen) == list(range(1, called + 1))
    assert len(seen) == called == len(ledger.entries)
    assert ledger.acknowledged >= 40
    assert ledger.errors == {"Lost": called // 3}


def test_threads_call_each_with_a_number_of_its_own_until_the_block_is_left() -> None:
    ledger, names, both = Ledger(), set(), threading.Barrier(2)

    def call(number: int) -> None:
        if (name := threading.current_thread().name) not in names:
            names.add(name)
            both.wait(60)
        if number % 3 == 0:
            raise Lost

    with Callers(call, ledger, count=2, pause=0.001) as callers:
        callers.wait_acknowledged(20)
    entries = ledger.entries

    assert names == {"caller-0", "caller-1"}
    assert not names & {thread.name for thread in threading.enumerate()}
    assert sorted(entry.value for entry in entries) == list(range(1, len(entries) + 1))  # type: ignore[type-var]
    assert ledger.errors == {"Lost": len(entries) // 3}


async def test_task_that_hangs_is_cancelled_and_told_of() -> None:
    ledger = Ledger()

    async def call(_number: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="2 of 2 callers were still in a call"):
        async with Callers(call, ledger, count=2, patience=0.01):
            await asyncio.sleep(0)

    assert ledger.errors == {"CancelledError": 2}


def test_thread_that_hangs_is_told_of() -> None:
    called, free = threading.Event(), threading.Event()

    def call(_number: int) -> None:
        called.set()
        free.wait()

    with (
        pytest.raises(TimeoutError, match="1 of 1 callers were still in a call"),
        Callers(call, Ledger(), count=1, patience=0.01),
    ):
        called.wait()
    free.set()


async def test_waiting_for_what_never_succeeds_names_the_errors() -> None:
    async def call(_number: int) -> None:
        raise Lost

    async with Callers(call, Ledger(), count=1) as callers:
        with pytest.raises(TimeoutError, match=r"0 calls acknowledged, not 1, after 0\.05 s; errors: Lost"):
            await callers.acknowledged(1, timeout=0.05)


async def nothing(_number: int) -> None:
    pass


async def test_wrong_colour_is_refused() -> None:
    with pytest.raises(TypeError, match="nothing is a coroutine function: write `async with"):
        Callers(nothing, Ledger()).__enter__()
    with pytest.raises(TypeError, match="print> is no coroutine function: write `with"):
        await Callers(print, Ledger()).__aenter__()
