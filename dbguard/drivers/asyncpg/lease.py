"""asyncpg's leases: what its driver adds to them, and the tasks that its pools run in the background."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.drivers import lease as drivers
from dbguard.drivers.lease import RETURN_WITHIN, SETTLE_WITHIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.route import Node

__all__ = ["RETURN_WITHIN", "SETTLE_WITHIN", "Books", "Lease", "Tag"]


class Tag(drivers.Tag):
    """What is known about one connection from its birth on.

    ending: what is sent in the place of the next COMMIT of asyncpg's `Transaction`; empty: that itself.
    last_status: what the last statement was answered with. before_reset: what is sent before asyncpg's own reset, and
    with it. listens: `hear` is told all its notices.
    """

    __slots__ = ("before_reset", "ending", "last_status")

    def __init__(self, epoch: int, born: float) -> None:
        super().__init__(epoch, born)
        self.before_reset = ""
        self.last_status = ""
        self.ending = ""

    def hear(self, _: Any, notice: Any) -> None:
        """Take in one of the server's notices."""
        self.heard(notice.server_source_function)


class Lease(drivers.Lease):
    """A connection in use."""

    __slots__ = ()

    def terminate(self) -> None:
        """Terminate the connection at once; whoever waits on it is woken with the driver's error."""
        # A proxy that its pool has taken back meanwhile refuses everything: then there is nothing to end.
        with contextlib.suppress(asyncpg.InterfaceError):
            super().terminate()


class Books(drivers.Books):
    """What both kinds of pool keep: leases out, and work in the background."""

    def __init__(self, node: Node, *, clock: Callable[[], float], size: int) -> None:
        super().__init__(node, clock=clock, size=size)
        self._tasks: set[asyncio.Future[Any]] = set()
        self._empty: asyncio.Event | None = None

    def _later(self, work: Awaitable[None], then: Callable[[], object] | None = None) -> None:
        task = asyncio.ensure_future(work)
        self._watch(task)
        if then is not None:
            task.add_done_callback(lambda _: then())

    def _watch(self, task: asyncio.Future[Any]) -> None:
        """Keep hold of a task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _returned(self, lease: Lease) -> None:
        """Note that a lease came back."""
        self.out.pop(lease, None)
        self.node.load.in_use -= 1
        if not self.out and self._empty is not None:
            self._empty.set()

    async def _drained(self, timeout: float) -> None:
        """Wait until no lease is out, or `_hurry` is called, for *timeout* seconds at most."""
        if self.out:
            self._empty = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._empty.wait()

    def _hurry(self) -> None:
        """Let nobody wait for leases to come back."""
        if self._empty is not None:
            self._empty.set()

    async def _quiet(self, timeout: float) -> None:
        """Wait until nothing is under way in the background, for *timeout* seconds at most.

        What ends may begin something else: a lease that was reset goes back to its pool.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while self._tasks and (left := end - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)

    async def _end_tasks(self) -> None:
        """Let what runs in the background end: its connections are terminated."""
        await self._quiet(SETTLE_WITHIN)
        for task in self._tasks:
            task.cancel()
        await self._quiet(SETTLE_WITHIN)
