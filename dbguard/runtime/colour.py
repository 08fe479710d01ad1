"""What calls run on: tasks of an event loop, or threads beside a loop of the guard's own.

Everything above the drivers is written once, as coroutines. On asyncio they are awaited. For threads the very same
coroutines run on the caller's thread, by `now`: the driver's calls block there instead of suspending, and whatever waits
for others (a turn at the gate, a pause, a claim) is handed to the guard's loop, on which the monitor runs, too. So nothing
is decided in two places, and neither colour can drift from the other.

What is bound to the loop, whichever thread asks for it, goes through `Colour.on_loop` and `Colour.elsewhere`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from dbguard.errors import GuardClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractContextManager

__all__ = ["ASYNCIO", "Asyncio", "Threads", "now"]

T = TypeVar("T")


def now(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* on this thread to its end: what it awaits blocks, and never suspends.

    Raises what it raises; `RuntimeError` if it did suspend, which is a defect of dbguard.
    """
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # what *work* returns
    work.close()
    raise RuntimeError(f"{work!r} waited for an event loop on a thread that has none")


# ---------------------------------------------------------------------- tasks


class _FutureWaiter:
    """A task that waits."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        return self._future.done()

    def give(self, value: Any) -> bool:
        if self._future.done():
            return False
        self._future.set_result(value)
        return True

    def fail(self, error: Exception) -> bool:
        if self._future.done():
            return False
        self._future.set_exception(error)
        return True

    async def wait(self) -> Any:
        return await self._future

    def taken(self) -> Any:
        future = self._future
        if not future.done():
            future.cancel()
        return None if future.cancelled() or future.exception() is not None else future.result()


class Asyncio:
    """Calls are tasks of the loop that everything else runs on as well."""

    lock: AbstractContextManager[object] = nullcontext()
    task = staticmethod(asyncio.current_task)
    waiter = _FutureWaiter

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """See `Colour.loop`."""
        return asyncio.get_running_loop()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """See `Colour.spawn`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_loop(self, act: Callable[..., object], *args: Any) -> None:
        """See `Colour.on_loop`."""
        act(*args)

    async def elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """See `Colour.elsewhere`."""
        return await work


ASYNCIO = Asyncio()
"""The colour of every guard whose calls are tasks: it holds nothing of any of them but what runs in the background."""


# ---------------------------------------------------------------------- threads


class _ThreadWaiter:
    """A thread that waits: at a lock, which costs a third of a `threading.Event`."""

    __slots__ = ("_decided", "_error", "_gate", "_state", "_value", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._decided = threading.Lock()
        self._gate = threading.Lock()
        self._gate.acquire()
        self._state = ""
        self._value: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        return bool(self._state)

    def give(self, value: Any) -> bool:
        return self._end("given", value, None)

    def fail(self, error: BaseException) -> bool:
        return self._end("failed", None, error)

    def _end(self, state: str, value: Any, error: BaseException | None) -> bool:
        with self._decided:
            if self._state:
                return False
            self._state, self._value, self._error = state, value, error
            self._gate.release()  # at once: interrupted in between, it would have left who waits there for ever
        return True

    async def wait(self) -> Any:
        worker = self._worker
        worker.waits_at = self
        try:
            if worker.interrupted:
                self.fail(asyncio.CancelledError())
            self._gate.acquire()
        finally:
            worker.waits_at = None
        if self._error is not None:
            raise self._error
        return self._value

    def taken(self) -> Any:
        self._end("failed", None, asyncio.CancelledError())
        return self._value


class Worker:
    """One attempt that a thread makes, as the sweep sees it. Interrupted where it waits nowhere, it feels that at its next wait."""

    __slots__ = ("interrupted", "waits_at")

    def __init__(self) -> None:
        self.interrupted = False
        self.waits_at: _ThreadWaiter | None = None

    def cancel(self) -> bool:
        """See `Interruptible.cancel`."""
        self.interrupted = True
        waiter = self.waits_at
        if waiter is not None:
            waiter.fail(asyncio.CancelledError())
        return True

    def uncancel(self) -> int:
        """See `Interruptible.uncancel`."""
        self.interrupted = False
        return 0


class _Present(threading.local):
    """The attempt that this thread makes just now."""

    worker: Worker | None = None


class Threads:
    """Calls are made on any thread; *loop* runs on one of the guard's own, which makes none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        self.loop = loop
        self._ident = ident
        self._present = _Present()
        self._asked: set[concurrent.futures.Future[Any]] = set()  # what threads wait for on the loop
        self.lock: AbstractContextManager[object] = threading.RLock()

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the guard's own thread."""
        return threading.get_ident() == self._ident

    def check_thread(self) -> None:
        """Raise `RuntimeError` on the guard's own thread: a call there would wait for itself."""
        if threading.get_ident() == self._ident:
            raise RuntimeError(
                "this is the guard's own thread, on which listeners for events run: hand the call to another thread"
            )

    def task(self) -> Worker:
        """See `Colour.task`."""
        worker = self._present.worker = Worker()
        return worker

    def waiter(self) -> _ThreadWaiter:
        """See `Colour.waiter`."""
        return _ThreadWaiter(self._present.worker or self.task())

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """See `Colour.spawn`."""

        def start() -> None:
            threading.Thread(target=now, args=(work,), name=name, daemon=True).start()

        # By the loop's own thread, which Ctrl-C leaves alone: one whose starter is interrupted may never run.
        try:
            self.loop.call_soon_threadsafe(start)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            start()

    def on_loop(self, act: Callable[..., object], *args: Any) -> None:
        """See `Colour.on_loop`."""
        if threading.get_ident() == self._ident:
            act(*args)
            return
        try:
            self.loop.call_soon_threadsafe(act, *args)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            # The guard has ended, and nobody is left who could be told.

    async def elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """See `Colour.elsewhere`."""
        return self.ask(work)

    def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for *work*, which runs on the loop. Raises what it raises; `GuardClosed` if the loop ends before."""
        if self.is_own_thread:
            work.close()
            self.check_thread()
        try:
            answer = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            if not self.loop.is_closed():
                raise
            raise _ended() from None
        self._asked.add(answer)
        try:
            if self.loop.is_closed():  # before it could see that this one waits
                answer.cancel()
            return answer.result()
        except concurrent.futures.CancelledError:
            raise _ended() from None
        except BaseException:
            answer.cancel()  # Ctrl-C on this thread: nobody waits for it any more
            raise
        finally:
            self._asked.discard(answer)

    def ended(self) -> None:
        """Send those home who wait for the loop, which is closed: it may never have begun with what they wait for."""
        for answer in list(self._asked):
            answer.cancel()


def _ended() -> GuardClosed:
    return GuardClosed("the guard was closed while this was waited for")
