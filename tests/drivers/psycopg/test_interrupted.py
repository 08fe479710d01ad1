"""Threads that are interrupted at any step of a checkout, as by a Ctrl-C: every place stays there, and nothing hangs.

An exception is raised at one after the other of the places where Python looks for one: it does so when it enters a function,
after a call, and when it jumps back.
"""

from __future__ import annotations

import ctypes
import dis
import gc
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import pytest

import dbguard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from dbguard.testing.cluster import Cluster

# What was to be awaited or closed when the exception came, was not, as Python says then.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SOON = 10.0
"""Seconds for what takes milliseconds; a pool that is full for ever is found out by them."""

EACH = {"max_lifetime": 1e-9}
"""Settings of a pool in which every connection is dialled for one use."""

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]


@cache
def looks(code: CodeType) -> frozenset[int]:
    """The instructions of *code* after which Python looks whether its thread is interrupted."""
    return frozenset(
        one.offset for one in dis.get_instructions(code) if one.opname.startswith(("CALL", "JUMP_BACKWARD"))
    )


class Interruption:
    """A `KeyboardInterrupt` for this thread, as the block comes to the place number *at*. sent: it did."""

    MODULES = ("dbguard", "threading", "concurrent.", "contextlib")

    def __init__(self, at: int) -> None:
        self._left = at
        self.sent = ""

    def __enter__(self) -> Self:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_globals.get("__name__", "").startswith(self.MODULES):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step(frame, event, arg)

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        if not self.sent and (event == "call" or (event == "opcode" and frame.f_lasti in looks(frame.f_code))):
            if not self._left:
                self.sent = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                # Not by a call from here: this function would be where it is raised.
                [_] = map(_raise_in, [threading.get_ident()], [KeyboardInterrupt])
            self._left -= 1
        return self._step


@pytest.fixture(autouse=True)
def _quick_collection_that_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some of what is let go of refers to itself, and has to be collected: that shall not look at all that there is.

    What is raised in a `__del__`, or in a thread that has just begun, goes to a hook, and pytest's would keep it.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def interrupted(act: Callable[[], object]) -> Iterator[str]:
    """Interrupt *act* at one place after the other, each time that the next is asked for; yields where."""
    at = 0
    while True:
        one = Interruption(at)
        with suppress(KeyboardInterrupt), one:
            act()
        if not one.sent:
            return
        yield one.sent
        at += 1


def is_whole(guard: Any, size: int) -> None:
    """All places of the pool can be taken at once."""
    taken = [guard.getconn(timeout=SOON) for _ in range(size)]
    assert len({con.info.backend_pid for con in taken}) == size
    for con in taken:
        guard.putconn(con)


def statement(guard: Any) -> None:
    assert guard.fetchone("SELECT 1") == (1,)


def with_reset(guard: Any) -> None:
    guard.execute("SET work_mem = '1MB'")


def block(guard: Any) -> None:
    with guard.connection() as con:
        con.execute("SELECT 1")


def kept(guard: Any) -> None:
    guard.putconn(guard.getconn())


@pytest.mark.parametrize(
    ("act", "settings", "places"),
    [
        pytest.param(statement, {}, 100, id="what is at hand"),
        pytest.param(statement, EACH, 200, id="what is dialled"),
        pytest.param(with_reset, {}, 150, id="what is reset"),
        pytest.param(block, {}, 200, id="a block"),
        pytest.param(kept, {}, 200, id="a kept connection"),
    ],
)
def test_an_interruption_at_any_step_of_a_checkout_loses_no_place(
    act: Callable[[Any], None], settings: dict[str, float], places: int, single: Cluster
) -> None:
    with dbguard.SyncGuard(single.dsn("a"), min_size=0, max_size=1, **settings) as guard:
        count = 0
        for where in interrupted(lambda: act(guard)):
            count += 1
            gc.collect()
            try:
                guard.execute("SELECT 1", timeout=SOON)
            except dbguard.DbGuardError as error:
                pytest.fail(f"interrupted in {where}: {error}")
        assert count > places
        is_whole(guard, 1)
        assert guard.status().nodes[0].in_use == 0


def test_who_waits_gets_a_connection_though_who_gives_his_back_is_interrupted(single: Cluster) -> None:
    with dbguard.SyncGuard(single.dsn("a"), min_size=0, max_size=1) as guard:
        waiters = guard._inner._engine().pools[guard.status().nodes[0].name]._waiters
        at = 0
        while True:
            con = guard.getconn()
            got: list[Any] = []
            waits = threading.Thread(target=lambda got=got: got.append(guard.fetchone("SELECT 1", timeout=SOON)))
            waits.start()
            while not waiters:
                waits.join(0.001)
            one = Interruption(at)
            with suppress(KeyboardInterrupt), one:
                guard.putconn(con)
            del con
            gc.collect()
            waits.join(2 * SOON)
            assert got == [(1,)], one.sent
            if not one.sent:
                break
            at += 1
        assert at > 50
        is_whole(guard, 1)
