"""What a call does with a lease, in asyncpg's words. Each is one `Job` of the runtime."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from dbguard.drivers.asyncpg.copying import opened
from dbguard.drivers.asyncpg.interrupt import interruptible
from dbguard.drivers.asyncpg.transaction import ended, heard, left_open
from dbguard.drivers.identity import forget_sequences
from dbguard.runtime.attempt import Application

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dbguard.core.statement import Touch
    from dbguard.drivers.asyncpg.sending import Sender

__all__ = ["Copy", "Feed", "Run", "Written", "again"]

MOST_KEPT = 10_000
"""Rows of an input that can be read once which are kept so that the call can be repeated; above that it is final."""

OPEN_EARLY = 0.1
"""Seconds before the call's end at which a file must be open: above a sweep's pace, so that it is known that nothing of the
COPY was sent."""


def again(source: Any) -> tuple[Any, bool]:
    """Return the input in a form that can be read again, and whether that succeeded.

    Readable again are exactly list, tuple, bytes and str. Anything else is made a list, up to `MOST_KEPT` items:
    ``iter(x) is x`` does not find a progress bar's wrapper, and a repeat over a used-up one reports success with 0 rows.
    """
    if type(source) in (list, tuple, bytes, str):
        return source, True
    if hasattr(source, "__aiter__"):
        return source, False
    items = iter(source)
    kept = list(islice(items, MOST_KEPT + 1))
    if len(kept) <= MOST_KEPT:
        return kept, True
    return chain(kept, items), False


@dataclass(slots=True)
class Run:
    """Run one statement by the driver's own method.

    method, args, extra: the driver's. touched: what it may leave on the session. writes: a commit hangs on it.
    controls: it holds transaction control, so that it can leave a transaction open.
    recalls: it may ask what was last drawn from sequences. until: when the call's time is up, on the guard's clock.
    """

    keeps = False
    cancels = False
    commits = False

    method: str
    args: tuple[Any, ...]
    extra: dict[str, Any]
    touched: Touch
    writes: bool
    controls: bool = False
    recalls: bool = False
    until: float = math.inf

    def run(self, lease: Any) -> Awaitable[Any]:
        """Run it: what only reads is awaited as the driver made it."""
        if self.writes or self.controls or self.recalls:
            return self._run_watched(lease)
        lease.drew = False
        return getattr(lease.con, self.method)(*self.args, **self.extra)  # type: ignore[no-any-return]  # the driver's methods that are run by name are awaited

    async def _run_watched(self, lease: Any) -> Any:
        """Run what leaves more behind; an autocommit write hears whether its standby was waited for."""
        con = lease.con
        if self.recalls:
            await forget_sequences(lease)
        lease.drew = self.writes
        work = getattr(con, self.method)(*self.args, **self.extra)
        value = await heard(con, lease, work) if self.writes else await work
        if self.controls and con.is_closed():
            raise ended()  # whether it had left a transaction open cannot be asked any more
        if self.controls and con.is_in_transaction():
            # The connection is closed by the pool, and the transaction with it: that must not pass for success.
            raise Application(left_open())
        return value


class Feed(Run):
    """Run what feeds the server with many rows, which takes more to interrupt."""

    __slots__ = ()
    cancels = True

    async def run(self, lease: Any) -> Any:
        """Run it."""
        return await self._run(lease, self.extra)

    async def _run(self, lease: Any, extra: dict[str, Any]) -> Any:
        if self.recalls:
            await forget_sequences(lease)
        lease.drew = self.writes
        work = interruptible(lease.con, getattr(lease.con, self.method)(*self.args, **extra))
        return await heard(lease.con, lease, work) if self.writes else await work


class Copy(Feed):
    """Run one COPY; a path is opened anew by each attempt, which says nothing about the node if that fails."""

    __slots__ = ()

    async def run(self, lease: Any) -> Any:
        """Run it."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                left = self.until - lease.pool.clock()
                files = await stack.enter_async_context(opened(self.extra, left - min(OPEN_EARLY, left / 2)))
            except OSError as error:
                raise Application(error) from error
            return await self._run(lease, files)


class Written:
    """Run a write that carries a token; *job* runs it without."""

    __slots__ = ("cancels", "job", "sender", "touched")
    keeps = False
    commits = True

    def __init__(self, job: Run, sender: Sender) -> None:
        self.job = job
        self.sender = sender
        self.touched = job.touched
        self.cancels = job.cancels

    async def run(self, lease: Any) -> Any:
        """Run it."""
        if self.job.recalls:
            self.sender.prepares()
            await forget_sequences(lease)
        lease.drew = True
        return await self.sender.send(lease, lambda: self.job.run(lease))
