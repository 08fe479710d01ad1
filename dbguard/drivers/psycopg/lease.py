"""psycopg's leases, and what its pools do beside the calls: in tasks, or in short threads.

A pool's books are changed under the colour's lock, which nothing holds while it waits.

A thread can be interrupted between any two steps of Python's, by a Ctrl-C above all, and more than once, so that no
``finally`` can promise that a lease is given back. So who holds a lease is not counted: the books only refer to it weakly,
and a lease that nobody holds any more is found by that, and given up (`Place`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from dbguard.drivers import lease as drivers
from dbguard.drivers.lease import RETURN_WITHIN, SETTLE_WITHIN, Tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.route import Node
    from dbguard.drivers.base import Colour, Interruptible
    from dbguard.drivers.psycopg.line import Line

__all__ = ["RETURN_WITHIN", "SETTLE_WITHIN", "Books", "Lease", "Place", "Settling", "Tag"]

Settling = Coroutine[Any, Any, "Callable[[], object] | None"]
"""What is done to a lease that was given back, and returns what hands it on: to be called once nobody can end it any more."""

LOOK = 0.1
"""Seconds between two looks at what runs in the background: by so much it may overstay its time."""


class Place(ref["Lease"]):
    """A place in a pool: the lease that takes it, for as long as anybody holds that. line: its connection's, once there is one."""

    __slots__ = ("line",)

    line: Line | None


class Lease(drivers.Lease):
    """A lease, and the place that it takes, which does not hold it. con, tag: None while it is dialled."""

    __slots__ = ("__weakref__", "place")

    def __init__(self, pool: Books, con: Line | None = None, loan: Any = None, tag: Any = None) -> None:
        super().__init__(pool, con, loan, tag)
        self.place = Place(self)
        self.place.line = con

    def begin(self, line: Line, tag: Tag) -> None:
        """Take in that it was dialled."""
        self.place.line = self.con = line
        self.loan, self.tag = line.raw, tag


class Books(drivers.Books):
    """What both kinds of pool keep: leases out, and work in the background.

    colour: what calls run on. `close` and what else waits here runs on the guard's loop, whatever that is.
    """

    def __init__(self, node: Node, *, colour: Colour, clock: Callable[[], float], size: int) -> None:
        super().__init__(node, clock=clock, size=size)
        self._colour = colour
        self._lock = colour.lock
        self._taken: set[Place] = (
            set()
        )  # of all connections that there are or will be: out, free, being reset or dialled
        self._jobs: WeakSet[Coroutine[Any, Any, None]] = WeakSet()
        self._workers: dict[Interruptible, None] = {}
        self._due: dict[Line, float] = {}
        self._looks = False
        self._watchers: list[asyncio.Event] = []
        self._hurried = False
        self._closing = False

    # ------------------------------------------------------------------ leases

    def _lend(self, lease: Lease) -> bool:
        """Note that a lease goes out; False if it must not: it was born under an older epoch, or the pool is closed."""
        with self._lock:
            if self._closing or not (self.fits(lease.tag) and self.node.is_here(lease.tag.instance)):
                return False
            lease.ours = False
            self.out[lease.place] = None
            self.node.load.in_use = len(self.out)
        return True

    def _returned(self, lease: Lease) -> None:
        """Note that a lease came back."""
        with self._lock:
            self.out.pop(lease.place, None)
            self.node.load.in_use = len(self.out)
            if lease.drew:
                lease.tag.drew = True
        self._tell()

    def _leases_out(self) -> list[Lease]:
        return [lease for place in list(self.out) if (lease := place()) is not None]

    def _reap(self) -> None:
        """Give up the places of leases that nobody holds any more. Interrupted, it goes on with the rest the next time."""
        with self._lock:
            for place in [place for place in self._taken if place() is None]:
                self._lose(place)
                self.out.pop(place, None)
                self._taken.discard(place)
            self.node.load.in_use = len(self.out)

    def _lose(self, place: Place) -> None:
        """End the connection of a place that nobody holds; also if that was done before."""
        raise NotImplementedError  # an abstract method: pools of our own and wrapped ones end theirs differently

    def end_in_use(self) -> int:
        """Terminate every lease in use."""
        with self._lock:  # what is given back meanwhile may be somebody else's a moment later
            return super().end_in_use()

    def end_stale(self) -> int:
        """Terminate the leases in use that were born under an older epoch."""
        with self._lock:
            return super().end_stale()

    # ------------------------------------------------------------------ in the background

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Let *work* run beside the caller. Raises `RuntimeError` where the system has no thread for it."""
        with self._lock:
            self._jobs.add(work)
        job = self._job(work)
        try:
            self._colour.spawn(job, f"dbguard {name} {self.node.name}")
        except RuntimeError:
            job.close()
            work.close()
            with self._lock:
                self._jobs.discard(work)
            raise

    async def _job(self, work: Coroutine[Any, Any, None]) -> None:
        me = self._colour.task()
        assert me is not None  # noqa: S101  it runs in a task, or on a thread
        self._workers[me] = None
        try:
            await work
        finally:
            del self._workers[me]
            with self._lock:
                self._jobs.discard(work)
            self._tell()

    async def _in_time(self, line: Line, work: Settling) -> None:
        """Await *work* on *line*, which is terminated if that takes too long, and do then what it says."""
        self._bound(line, RETURN_WITHIN)
        try:
            hand_on = await work
        finally:
            self._unbound(line)
        if hand_on is not None:
            hand_on()

    def _bound(self, line: Line, seconds: float) -> None:
        """Terminate *line* after *seconds* of the pool's clock, unless `_unbound` is called for it before."""
        with self._lock:
            self._due[line] = self.clock() + seconds
            first, self._looks = not self._looks, True
        if first:
            self._colour.on_loop(self._look_later)

    def _unbound(self, line: Line) -> None:
        """Leave *line* alone from now on: it may be somebody else's a moment later."""
        with self._lock:
            self._due.pop(line, None)

    def _look_later(self) -> None:
        self._colour.loop.call_later(LOOK, self._look)

    def _look(self) -> None:
        now = self.clock()
        with self._lock:
            late = [line for line, at in self._due.items() if at <= now]
            for line in late:
                del self._due[line]
                line.terminate()
            self._looks = bool(self._due)
        if self._looks:
            self._look_later()

    # ------------------------------------------------------------------ waiting, on the guard's loop

    async def _until(self, condition: Callable[[], object], timeout: float) -> None:
        """Wait until *condition* holds, or `_hurry` was called, for *timeout* seconds at most."""
        changed = asyncio.Event()
        self._watchers.append(changed)
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                while not (condition() or self._hurried):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return
        finally:
            self._watchers.remove(changed)

    def _tell(self) -> None:
        """Let who waits look again."""
        if self._watchers:
            self._colour.on_loop(self._wake_watchers)

    def _wake_watchers(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _hurry(self) -> None:
        """Let nobody wait for leases to come back."""
        self._hurried = True
        self._tell()

    async def _drained(self, timeout: float) -> None:
        """Wait until no lease is out, or it shall be done at once, for *timeout* seconds at most."""
        self._reap()
        await self._until(lambda: not self.out, timeout)

    async def _end_jobs(self, timeout: float) -> None:
        """Let what runs in the background end, for *timeout* seconds; what is left then is interrupted."""
        await self._until(lambda: not self._jobs, timeout)
        self._interrupt()
        self._hurried = False
        await self._until(lambda: not self._jobs, SETTLE_WITHIN)

    def _interrupt(self) -> None:
        """End what runs in the background. A thread that dials goes on until its dial has failed, which is bounded."""
        with self._lock:
            for line in self._due:
                line.terminate()
        for worker in list(self._workers):
            worker.cancel()
