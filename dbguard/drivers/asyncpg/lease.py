"""Leases: connections in use, and what is known of each from its birth on.

A lease remembers the epoch it was born under: the one current when its dial *began*. Draining a node is a comparison of
two numbers, not a search.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.statement import Touch
from dbguard.core.topology import Instance
from dbguard.drivers.identity import Identity
from dbguard.drivers.probe import Backend
from dbguard.drivers.speaker import WAIT_FOR_STANDBY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.route import Node
    from dbguard.core.topology import NodeView

__all__ = ["RETURN_WITHIN", "SETTLE_WITHIN", "Books", "Lease", "Tag"]

RETURN_WITHIN = 2.0
"""Seconds a reset or a close may take in the background before the connection is terminated."""

SETTLE_WITHIN = 0.1
"""Seconds for what needs no answer from the server any more: for who was woken or cancelled to end."""


NOBODY = Identity(None, None, None, None)
"""Who a session is that was not asked."""


class Tag:
    """What is known about one connection from its birth on.

    epoch: its node's when the dial began. instance: the running server behind it. backend: its process there.
    born: on the monotonic clock. synchronous: whether commits there waited for a standby then.
    quiet: the session's own setting keeps warnings back, and with them the notice that such a wait was cut short.
    plain_role: at birth, `init` included, the role was the login's and nothing temporary was there: all of that can be
        reset. identity: who it was then, where that is not so. uses: calls so far.
    ending: what is sent in the place of the next COMMIT of asyncpg's `Transaction`; empty: that itself.
    before_reset: what is sent before asyncpg's own reset, and with it. drew: an earlier use may have drawn from sequences.
    found: the view of its node under which it was found to lead there; None: it was not asked yet.
    listens: `hear` is told all its notices, for as long as it lives. cut_short: how many waits for a standby were.
    """

    __slots__ = (
        "backend",
        "before_reset",
        "born",
        "cut_short",
        "drew",
        "ending",
        "epoch",
        "found",
        "identity",
        "instance",
        "last_status",
        "listens",
        "plain_role",
        "quiet",
        "synchronous",
        "uses",
    )

    def __init__(self, epoch: int, born: float) -> None:
        self.epoch = epoch
        self.born = born
        self.instance: Instance | None = None
        self.backend = Backend(0, None)
        self.synchronous = False
        self.quiet = False
        self.plain_role = True
        self.identity = NOBODY
        self.before_reset = ""
        self.drew = False
        self.found: NodeView | None = None
        self.last_status = ""
        self.ending = ""
        self.listens = False
        self.cut_short = 0
        self.uses = 0

    def hear(self, _: Any, notice: Any) -> None:
        """Take in one of the server's notices."""
        self.cut_short += notice.server_source_function == WAIT_FOR_STANDBY


class Lease:
    """A connection in use.

    con: what statements are run on. tag: its birth. touched: the worst that was done to its session so far.
    ours: it was ended by a drain, a fence or a terminate of ours.
    raw_touched: the application was handed the driver's own connection.
    doubtful: an open transaction on it may have failed without the server's refusal having been seen: in the
        application's own use of the connection, or under an exception of its own, as when a COPY's source raises.
    drew: it may have drawn from sequences in this use, as any write may.
    """

    __slots__ = ("con", "doubtful", "drew", "loan", "ours", "pool", "raw_touched", "tag", "touched", "used_at")

    def __init__(self, pool: Books, con: Any, loan: Any, tag: Tag) -> None:
        self.pool = pool
        self.con = con
        self.loan = loan
        self.tag = tag
        self.touched = Touch.NOTHING
        self.ours = False
        self.raw_touched = False
        self.doubtful = False
        self.drew = False
        self.used_at = 0.0

    @property
    def stale(self) -> bool:
        """Whether it was born under an older epoch than its node's present one."""
        return self.tag.epoch != self.pool.node.epoch

    @property
    def synchronous(self) -> bool:
        """Whether commits on it wait for a standby: since its birth, or since the server was told so later."""
        return self.tag.synchronous or self.pool.node.view.synchronous

    @property
    def instance(self) -> Instance:
        """The running server behind it."""
        return self.tag.instance or Instance()

    @property
    def backend(self) -> tuple[int, float | None]:
        """The server's process, and when it began."""
        return self.tag.backend.pid, self.tag.backend.started

    def end(self) -> None:
        """End it because it must not be used any more; what fails by that is our own doing."""
        self.ours = True
        self.terminate()

    def terminate(self) -> None:
        """Terminate the connection at once; whoever waits on it is woken with the driver's error."""
        # A proxy that its pool has taken back meanwhile refuses everything: then there is nothing to end.
        with contextlib.suppress(asyncpg.InterfaceError):
            if not self.con.is_closed():
                self.con.terminate()


class Books:
    """What both kinds of pool keep: leases out, and work in the background.

    hooked: code of the application's may run at each checkout, so that nothing is known of the role.
    """

    return_within = RETURN_WITHIN
    hooked = False

    def __init__(self, node: Node, *, clock: Callable[[], float], size: int) -> None:
        self.node = node
        self.node.load.size = max(1, size)
        self.clock = clock
        self.out: dict[Lease, None] = {}  # in the order of leaving, so that a run can be replayed
        self._tasks: set[asyncio.Future[Any]] = set()
        self._empty: asyncio.Event | None = None
        self._kept_from = node.epoch  # the epoch of the last drain that kept none

    def fits(self, tag: Tag) -> bool:
        """Whether a connection may be handed on under the node's present epoch.

        One of an older epoch is taken over into it, if every drain since its birth keeps connections to an instance that
        goes on, and it is known to lead to the one that is seen there now.
        """
        if tag.epoch == self.node.epoch:
            return True
        if tag.epoch < self._kept_from or not self.node.is_surely_here(tag.instance):
            return False
        tag.epoch = self.node.epoch
        return True

    def end_in_use(self) -> int:
        """Terminate every lease in use."""
        ended = 0
        for lease in list(self.out):
            lease.end()
            ended += 1
        return ended

    def end_stale(self) -> int:
        """Terminate the leases in use that were born under an older epoch."""
        stale = [lease for lease in self.out if lease.stale]
        for lease in stale:
            lease.end()
        return len(stale)

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
