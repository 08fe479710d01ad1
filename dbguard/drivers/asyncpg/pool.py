"""Pools that the guard opened itself.

An own pool is an `asyncpg.Pool` of which connections stay leased between calls and are handed over by a deque; all
checkouts go through the guard, so it knows its own waiters. Giving back is one of three: hand on (proven to have left
nothing on the session), reset (asyncpg's own, and a deeper one), or close.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.dials import Turns
from dbguard.drivers.asyncpg.failures import dress
from dbguard.drivers.asyncpg.lease import RETURN_WITHIN, SETTLE_WITHIN, Books, Lease, Tag
from dbguard.drivers.identity import DEEP_RESET, FORGET_SEQUENCES, identify
from dbguard.drivers.probe import ask, sighting
from dbguard.errors import GuardClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.route import Node, Rng
    from dbguard.core.topology import Drain, Sighting
    from dbguard.errors import DbGuardError

__all__ = ["OwnPool"]

REFILL_AGAIN = 2.0
"""Seconds from an attempt to have a connection in reserve that failed, or a look that found the node unfit, to the next."""

log = logging.getLogger("dbguard")


class OwnPool(Books):
    """A pool that the guard opened itself, for one node.

    make: makes the `asyncpg.Pool`, given the hooks that it shall call. hold: how many leases stay out between calls at most. keep: how many at least.
    max_lifetime, max_uses: seconds and calls after which a connection is not handed on any more.
    max_idle: seconds after which an unused connection is closed.
    check: what a new connection must pass; raises `WrongNode`.
    rng: for the jitter between dials. init, setup: the application's hooks. foreign: it makes the connections, too.
    """

    def __init__(
        self,
        node: Node,
        make: Callable[..., asyncpg.Pool[Any]],
        *,
        clock: Callable[[], float],
        size: int,
        keep: int,
        hold: int,
        max_lifetime: float,
        max_idle: float,
        max_uses: float,
        dial: Callable[..., Awaitable[Any]],
        check: Callable[[Sighting], None],
        ask_within: float,
        rng: Rng,
        init: Callable[[Any], Awaitable[Any]] | None = None,
        setup: Callable[[Any], Awaitable[Any]] | None = None,
        foreign: bool = False,
    ) -> None:
        super().__init__(node, clock=clock, size=size)
        self._keep = keep
        self._hold = hold
        self._max_lifetime = max_lifetime
        self._max_idle = max_idle
        self._max_uses = max_uses
        self._dial = dial
        self._check = check
        self._ask_within = ask_within
        self._init = init
        self._setup = setup
        self.hooked = setup is not None
        self._free: deque[Lease] = deque()
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        self._ready = False
        self._closing = False
        self._refill_at = math.inf
        hooks: dict[str, Callable[[Any], Awaitable[Any]]] = {}
        if init is not None or foreign:
            hooks["init"] = self._begin
        if setup is not None:
            hooks["setup"] = self._set_up
        self._begins = "init" in hooks
        self.pool = make(self._connect, **hooks)
        self._turns = Turns(node, size, self.pool.get_idle_size, self._pass, clock=clock, rng=rng)

    @property
    def holds(self) -> bool:
        """Whether leases may stay out between calls."""
        return self._hold > 0

    @property
    def idle(self) -> int:
        """Connections at hand."""
        return len(self._free) + self.pool.get_idle_size()

    async def open(self) -> None:
        """Make the pool ready; nothing is dialled."""
        await self.pool
        self._ready = True

    async def _connect(self, *args: Any, **kwargs: Any) -> Any:
        """Dial, and ask the server once who it is."""
        tag = Tag(self.node.epoch, self.clock())
        con, row, at = await self._reach(tag, *args, **kwargs)
        try:
            seen = sighting(row, self.node.name, at, fresh=True)
            tag.learn(row, seen.instance)
            self._check(seen)
            if not (tag.plain_role or self._begins):
                tag.identity = await identify(con)
            if self._closing:
                raise _closed("it was being dialled")  # noqa: TRY301  not to be held by anybody any more
        except BaseException:
            con.terminate()
            raise
        self._known[con] = None
        return con

    async def _reach(self, tag: Tag, *args: Any, **kwargs: Any) -> tuple[Any, Any, float]:
        """Dial and ask; returns the connection, what its server said, and when it was asked."""
        con: Any = None
        try:
            con = await self._dial(*args, **kwargs)
            con.guard_tag = tag
            at = self.clock()
            row = await ask(con, timeout=self._ask_within)
        except BaseException as error:
            if con is not None:
                con.terminate()
            if isinstance(error, Exception):
                self._turns.refused(error, tag.born)
            raise
        self._turns.dialled()
        return con, row, at

    async def _begin(self, con: Any) -> None:
        """Let the application's `init` run, and see who the session is from then on."""
        if self._init is not None:
            await self._init(con)
        tag = con.guard_tag
        tag.identity = await identify(con)
        tag.plain_role = bool(tag.identity.plain)

    async def _set_up(self, proxy: Any) -> None:
        """Let the application's `setup` run; where it may build upon what `init` made of the session, see who that is."""
        assert self._setup is not None  # noqa: S101  else this is no hook of the pool's
        await self._setup(proxy)
        tag = proxy.guarded.guard_tag
        if not tag.plain_role:
            tag.identity = await identify(proxy)

    def take_now(self) -> Lease | None:
        """Return a held lease, the one used last first."""
        free = self._free
        while free:
            lease = free.pop()
            tag = lease.tag
            if tag.epoch == self.node.epoch and not lease.con.is_closed():
                self.node.load.in_use += 1
                self.out[lease] = None
                lease.ours = False
                return lease
            self._close(lease)
        return None

    async def take(self) -> Lease:
        """Return a lease; dials where none is free and the pool is not full. The caller bounds it, by cancelling."""
        while (lease := self.take_now() or await self._take_new()) is None:
            continue
        return lease

    async def _take_new(self) -> Lease | None:
        """Return a lease that was not at hand; None if the node has changed while it was dialled."""
        lease = await self._checkout()
        tag = lease.tag
        if self.fits(tag) and self.node.is_here(tag.instance) and not lease.con.is_closed():
            self.node.load.in_use += 1
            self.out[lease] = None
            return lease
        self._close(lease)
        return None

    @property
    def full(self) -> bool:
        """Whether every connection there may be now is out: who waits, waits for another caller."""
        return self._turns.full and not self._free

    async def _checkout(self) -> Lease:
        """Check a connection out, or wait until one is handed over: so, too, where the server takes no more."""
        turns = self._turns
        while True:
            handed = await turns.get()
            if handed is not None:
                return handed
            try:
                proxy = await self.pool.acquire()
            except asyncpg.TooManyConnectionsError:
                self.node.soften(self.clock())
                turns.failed()
                if not (turns.taken and turns.full):
                    raise
                continue
            except BaseException:
                turns.failed()
                raise
            turns.succeeded()
            break
        con: Any = proxy.guarded  # type: ignore[attr-defined]  # the proxy passes it on
        tag: Tag = con.guard_tag
        con.add_log_listener(tag.hear)
        tag.listens = True
        return Lease(self, con, proxy, tag)

    def _pass(self, lease: Lease) -> None:
        """Hand a clean lease on: to who waits longest, to the deque, or back to the pool.

        Where nothing is held, it goes back to the pool though somebody waits: hooks of the application's run there
        between two uses, and its `setup` may have named a tenant.
        """
        if self._hold and self._turns.hand(lease):
            return
        if len(self._free) < self._hold and not self._closing:
            self._free.append(lease)
        else:
            self._later(self._return(lease))

    def give(self, lease: Lease, touched: Touch) -> None:
        """Take a lease back: hand on, reset or close."""
        self._returned(lease)
        tag, con = lease.tag, lease.con
        worst = max(lease.touched, touched) if lease.touched else touched
        now = lease.used_at = self.clock()
        tag.uses += 1
        if lease.drew:
            tag.drew = True
        lease.forget()
        if (
            (tag.epoch != self.node.epoch and not self.fits(tag))
            or self._closing
            or now - tag.born > self._max_lifetime
            or tag.uses > self._max_uses
            or con.is_closed()
            or con.is_in_transaction()
        ):
            self._close(lease)
        elif not worst:
            self._pass(lease)
        elif worst is Touch.LOST or (worst is Touch.IDENTITY and not tag.plain_role):
            self._close(lease)
        else:
            # Deep for settings too: what only may have been touched was touched by functions of the application's, in
            # triggers and policies, and they can set a role or make a temporary table as well.
            self._later(self._reset(lease))

    settle = give

    async def _reset(self, lease: Lease) -> None:
        """Reset the session, more deeply than asyncpg does between two uses, and hand the connection on.

        Where that could undo the application's `init`, a session that is not who it was is closed instead.
        """
        con, tag = lease.con, lease.tag
        timer = asyncio.get_running_loop().call_later(RETURN_WITHIN, con.terminate)
        first = DEEP_RESET if tag.plain_role else FORGET_SEQUENCES
        try:
            if self._hold:
                tag.before_reset = first
                await con.reset()
            else:
                await con.execute(first)
            changed = not tag.plain_role and (await identify(con)).differs(tag.identity)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  whatever it was, it is not used again
            con.terminate()  # no new task to hang up with: cancelled is this one where the loop comes to its end
            self._close(lease)
        else:
            tag.drew = False
            (self._close if changed else self._pass)(lease)
        finally:
            tag.before_reset = ""
            timer.cancel()

    async def _return(self, lease: Lease) -> None:
        """Give a connection back to asyncpg's pool, which resets it in its own way, hooks included."""
        if not lease.con.is_closed():
            lease.con.remove_log_listener(lease.tag.hear)  # asyncpg would warn of it
        try:
            await self.pool.release(lease.loan, timeout=RETURN_WITHIN)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  whatever it was, the connection is not used again
            lease.con.terminate()
        finally:
            self._turns.gone()

    def _close(self, lease: Lease) -> None:
        if lease.con.is_closed():
            # The pool has freed its place by itself, or does so now.
            lease.con.terminate()
            self._turns.gone()
        else:
            self._later(self._hang_up(lease))

    async def _hang_up(self, lease: Lease) -> None:
        try:
            await lease.con.close(timeout=RETURN_WITHIN)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  asyncpg has aborted it; it is gone either way
            lease.con.terminate()
        finally:
            self._turns.gone()

    def expire(self, how: Drain) -> tuple[int, int]:
        """End what was born under an older epoch."""
        if how != "keep":
            self._kept_from = self.node.epoch
        idle = 0
        skip = {lease.con for lease in (*self.out, *self._free)}
        for lease in list(self._free):
            if not self.fits(lease.tag):
                self._free.remove(lease)
                self._close(lease)
                idle += 1
        for con in list(self._known):
            if con not in skip and not con.is_closed() and not self.fits(con.guard_tag):
                con.terminate()
                idle += 1
        in_use = len(self.out)
        if how == "now":
            self.end_in_use()
        return idle, in_use

    def rest(self) -> None:
        """Close held leases that were not used for *max_idle* seconds, down to *keep*; called after each round of probes.

        Once it shall stay warm, it dials up to *keep* as well: a node that came back has them again before it is needed,
        and a replica that is promoted takes its first write without a dial. One at a time.
        """
        self._turns.wake()
        now = self.clock()
        while len(self._free) > self._keep and now - self._free[0].used_at > self._max_idle:
            self._close(self._free.popleft())
        if self._turns.taken < min(self._keep, self._hold) and now >= self._refill_at and not self._closing:
            self._refill_at = math.inf
            self._later(self._refill())

    def stay_warm(self) -> None:
        """From now on replace what is missing."""
        self._refill_at = 0.0

    async def _refill(self) -> None:
        again = self.clock() + REFILL_AGAIN
        try:
            if self.node.serves(self.clock()) and (lease := await self._take_new()) is not None:
                self.give(lease, Touch.NOTHING)
                again = 0.0
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  nobody needs it yet: who does is told
            log.debug("%s: no connection in reserve: %s", self.node.name, type(error).__name__)
        finally:
            self._refill_at = again

    async def warm(self, count: int, timeout: float) -> None:
        """Dial until *count* connections are held, so that the first calls need not."""
        missing = min(count, self._hold) - len(self._free)
        if missing <= 0 or self._closing:
            return
        takes = [asyncio.ensure_future(self.take()) for _ in range(missing)]
        for take in takes:
            self._watch(take)
            take.add_done_callback(self._keep_warm)
        try:
            await asyncio.wait(takes, timeout=timeout)
        finally:
            for take in takes:
                take.cancel()

    def _keep_warm(self, take: asyncio.Future[Lease]) -> None:
        if not take.cancelled() and take.exception() is None:
            self.give(take.result(), Touch.NOTHING)

    async def close(self, timeout: float) -> None:
        """Close all connections: idle ones now, those in use when they come back.

        After *timeout* seconds what is left is terminated; that takes some tenths of a second more at most.
        """
        self._shut()
        end = asyncio.get_running_loop().time() + timeout
        while self._free:
            self._close(self._free.pop())
        await self._drained(timeout)
        self.end_in_use()
        await self._drained(SETTLE_WITHIN)
        await self._quiet(end - asyncio.get_running_loop().time())
        self._end_all()
        await self._end_tasks()

    def terminate(self) -> None:
        """Terminate all connections now."""
        self._shut()
        self.end_in_use()
        while self._free:
            lease = self._free.pop()
            lease.terminate()
            self._close(lease)
        self._end_all()
        self._hurry()

    def _shut(self) -> None:
        """Lend nothing any more, and send those home who wait."""
        self._closing = True
        self._turns.shut(lambda: _closed("this call waited for a connection"))

    def _end_all(self) -> None:
        if self._ready:
            self.pool.terminate()


def _closed(when: str) -> DbGuardError:
    return dress(GuardClosed(f"the guard was closed while {when}"))
