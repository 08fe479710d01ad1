"""The two colours: what waits is given to, refused and interrupted alike, and a thread's coroutine never suspends."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.runtime.colour import ASYNCIO, Threads, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def threads() -> Iterator[Threads]:
    """The colour of a guard whose loop runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert thread.ident is not None
    yield Threads(loop, thread.ident)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["asyncio", "threads"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[Any, Callable[..., None]], Any]], Any]:
    """Run an async scene, given its colour and what lets something happen while it waits."""

    def tasks(scene: Any) -> Any:
        async def main() -> Any:
            loop = asyncio.get_running_loop()
            return await scene(ASYNCIO, loop.call_soon)

        return asyncio.run(main())

    def on_threads(scene: Any) -> Any:
        colour = request.getfixturevalue("threads")
        return now(scene(colour, colour.loop.call_soon_threadsafe))

    return tasks if request.param == "asyncio" else on_threads


def test_who_waits_gets_what_is_given(run: Any) -> None:
    async def scene(colour: Any, soon: Any) -> Any:
        waiter = colour.waiter()
        assert not waiter.done()
        soon(waiter.give, "a lease")
        value = await waiter.wait()
        assert waiter.done()
        assert not waiter.give("another one")
        assert not waiter.fail(OSError())
        return value

    assert run(scene) == "a lease"


def test_who_waits_hears_of_an_error(run: Any) -> None:
    async def scene(colour: Any, soon: Any) -> None:
        waiter = colour.waiter()
        soon(waiter.fail, ConnectionRefusedError("nobody there"))
        await waiter.wait()

    with pytest.raises(ConnectionRefusedError):
        run(scene)


def test_who_waits_can_be_interrupted(run: Any) -> None:
    async def scene(colour: Any, soon: Any) -> None:
        task = colour.task()
        waiter = colour.waiter()
        soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiter.wait()
        assert task.uncancel() == 0
        assert waiter.taken() is None
        assert not waiter.give("too late")

    run(scene)


def test_what_was_given_to_who_is_interrupted_is_not_lost(run: Any) -> None:
    async def scene(colour: Any, soon: Any) -> Any:
        waiter = colour.waiter()
        assert waiter.give("a lease")
        return waiter.taken()

    assert run(scene) == "a lease"


def test_an_interruption_is_felt_at_the_next_wait_and_at_no_later_attempt(threads: Threads) -> None:
    async def attempt(*, interrupted: bool) -> Any:
        task = threads.task()
        if interrupted:
            task.cancel()
        waiter = threads.waiter()
        waiter.give("a lease") if not interrupted else None
        return await waiter.wait()

    with pytest.raises(asyncio.CancelledError):
        now(attempt(interrupted=True))
    assert now(attempt(interrupted=False)) == "a lease"


def test_what_needs_the_loop_runs_there(threads: Threads) -> None:
    async def where() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    assert now(threads.elsewhere(where())) != threading.get_ident()

    async def breaks() -> None:
        raise LookupError("not there")

    with pytest.raises(LookupError):
        now(threads.elsewhere(breaks()))


def test_a_call_from_the_guards_own_thread_says_what_to_do(threads: Threads) -> None:
    async def inside() -> None:
        threads.check_thread()

    with pytest.raises(RuntimeError, match="another thread"):
        now(threads.elsewhere(inside()))


def test_what_suspends_on_a_thread_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="waited for an event loop"):
        now(asyncio.sleep(0))
