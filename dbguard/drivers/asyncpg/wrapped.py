"""Pools that the application has already: one checkout and one return per call, by asyncpg's public API.

What a use through the guard may have left on a session is taken back, or the connection is ended, before its pool has it
again. What cannot be done from outside: hear of what the application leaves there in uses of its own, and see its hooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.borrow import Borrowed, refused
from dbguard.drivers.asyncpg.lease import RETURN_WITHIN, SETTLE_WITHIN, Books, Lease, Tag
from dbguard.drivers.identity import DEEP_RESET, identify
from dbguard.drivers.probe import ask, sighting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.route import Node
    from dbguard.core.topology import Drain, Sighting

__all__ = ["WrappedPool"]

LOOK = 0.05
"""Seconds between two looks at a pool of which leases are held: whether its owner is closing it, and waits for them."""


class WrappedPool(Books):
    """A pool of the application's: one checkout and one return per call, by its public API, and never closed by us.

    hold: how many leases stay out between calls at most, by the owner's word that no hook need run there. They are given
    back when they were not used for *max_idle* seconds, after *max_lifetime*, while somebody waits for the pool, and when
    its owner closes it.
    """

    hooked = True

    def __init__(
        self,
        node: Node,
        pool: asyncpg.Pool[Any],
        *,
        clock: Callable[[], float],
        check: Callable[[Sighting], None],
        ask_within: float,
        hold: int = 0,
        max_lifetime: float = math.inf,
        max_idle: float = math.inf,
    ) -> None:
        super().__init__(node, clock=clock, size=pool.get_max_size())
        self.pool = pool
        self._check = check
        self._ask_within = ask_within
        # A connection is known by its settings object, which lives as long as it does: asyncpg's pools give a new
        # proxy at each checkout, and two servers can give the same process number.
        self._tags: dict[int, tuple[Any, Tag]] = {}
        self._expiry: asyncio.Task[None] | None = None
        self._varies = False
        self._hold = hold
        self._max_lifetime = max_lifetime
        self._max_idle = max_idle
        self._free: deque[Lease] = deque()
        self._waiting = 0
        self._looks: asyncio.TimerHandle | None = None

    def take_now(self) -> Lease | None:
        """Return a held lease, the one used last first."""
        free = self._free
        while free:
            lease = free.pop()
            if self.fits(lease.tag) and not lease.con.is_closed():
                self.node.load.in_use += 1
                self.out[lease] = None
                lease.ours = False
                return lease
            lease.terminate()
            self._give_back(lease)
        return None

    async def take(self) -> Lease:
        """Check a connection out; one that was never seen before is asked who it is. The caller bounds it."""
        if self._expiry is not None:
            await asyncio.shield(self._expiry)
            self._expiry = None
        node = self.node
        while True:
            self._waiting += 1
            try:
                lent = await self.pool.acquire()
            except asyncpg.InterfaceError as error:
                closed = refused(self.pool, node.name, error)
                if closed is None:
                    raise
                raise closed from error
            finally:
                self._waiting -= 1
            con = Borrowed(lent)
            known = self._tags.get(id(lent.get_settings()))
            try:
                tag = await self._meet(con) if known is None else known[1]
                if self._varies and not tag.plain_role:
                    tag.identity = await identify(con)
            except BaseException:
                con.terminate()
                self._later(self._return(con))
                raise
            # What was found of this connection holds while nothing new is known of its node.
            if tag.found is node.view and tag.epoch == node.epoch:
                break
            if self.fits(tag) and node.is_here(tag.instance):
                tag.found = node.view
                break
            con.terminate()
            self._later(self._return(con))
        lease = Lease(self, con, con.lent, tag)
        node.load.in_use += 1
        self.out[lease] = None
        return lease

    @property
    def full(self) -> bool:
        """Whether every connection there may be is out."""
        return not self._free and self.pool.get_idle_size() == 0 and self.pool.get_size() >= self.pool.get_max_size()

    @property
    def idle(self) -> int:
        """Connections at hand."""
        return len(self._free) + self.pool.get_idle_size()

    async def _meet(self, con: Borrowed) -> Tag:
        """Ask a connection that was not seen before who it is."""
        settings = con.get_settings()
        tag = Tag(self.node.epoch, self.clock())
        at = self.clock()
        row = await ask(con, timeout=self._ask_within)
        seen = sighting(row, self.node.name, at, fresh=True)
        tag.learn(row, seen.instance)
        self._check(seen)
        tag.identity = await identify(con)
        tag.plain_role = bool(tag.identity.plain)
        self._tags[id(settings)] = (settings, tag)
        if len(self._tags) > 2 * self.pool.get_max_size() + 16:
            self._tags = dict(list(self._tags.items())[-self.pool.get_max_size() - 8 :])
        return tag

    def give(self, lease: Lease, touched: Touch) -> None:
        """Give it back to the pool in the background, or hold it."""
        settling = self.settle(lease, touched)
        if settling is not None:
            self._bounded(lease, settling)

    def settle(self, lease: Lease, touched: Touch) -> Awaitable[None] | None:
        """Give it back to the pool, which resets it in its own way: role and temporary objects stay. So they go before.

        Where leases are held, one that nothing was left on stays out.
        """
        self._returned(lease)
        tag = lease.tag
        if lease.drew:
            tag.drew = True
        worst = max(touched, lease.touched) if lease.touched else touched
        if tag.epoch != self.node.epoch and not self.fits(tag):
            lease.terminate()
        elif worst:
            if worst is not Touch.LOST and (worst is not Touch.IDENTITY or tag.plain_role):
                return self._cleaned(lease)
            lease.terminate()
        elif self._hold and self._holds(lease):
            return None
        return self._return(lease.con)

    def _holds(self, lease: Lease) -> bool:
        """Keep a clean lease at hand, if that keeps nobody waiting; say whether."""
        now, con = self.clock(), lease.con
        if (
            len(self._free) >= self._hold
            or self._waiting
            or self.pool.is_closing()
            or now - lease.tag.born > self._max_lifetime
            or con.is_closed()
            or con.is_in_transaction()
        ):
            return False
        lease.forget()
        lease.used_at = now
        self._free.append(lease)
        if self._looks is None:
            self._looks = asyncio.get_running_loop().call_later(LOOK, self._look)
        return True

    def _look(self) -> None:
        """Give back what is held if the pool's owner is closing it: `close` waits until all are there."""
        self._looks = None
        if self.pool.is_closing():
            self._give_back_all()
        elif self._free:
            self._looks = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _give_back_all(self) -> None:
        while self._free:
            self._give_back(self._free.pop())

    def _give_back(self, lease: Lease) -> None:
        self._bounded(lease, self._return(lease.con))

    def _bounded(self, lease: Lease, work: Awaitable[None]) -> None:
        """Do *work* on a lease in the background, which ends with it if it takes too long."""
        timer = asyncio.get_running_loop().call_later(RETURN_WITHIN, lease.terminate)
        self._later(work, timer.cancel)

    async def _cleaned(self, lease: Lease) -> None:
        """Take back what a function of users' may have made of the session, or end it; then give it back.

        Where a `setup` names a role at each checkout, that is found out at the first connection that looks changed; from
        then on each is asked who it is when it is taken.
        """
        con, tag = lease.con, lease.tag
        try:
            if con.is_closed() or con.is_in_transaction():
                con.terminate()
            elif tag.plain_role:
                await con.execute(DEEP_RESET)
                tag.drew = False
            elif (await identify(con)).differs(tag.identity):
                self._varies = True
                con.terminate()
        except asyncio.CancelledError:
            con.terminate()
            raise
        except Exception:  # noqa: BLE001  whatever it was, it is not used again
            con.terminate()
        finally:
            await self._return(con)

    async def _return(self, con: Borrowed) -> None:
        """Release *con*. Cancelled meanwhile, it is terminated: asyncpg would go on with its reset, without a limit."""
        lent = con.lent
        try:
            if lent.is_closed():
                lent.terminate()  # so that asyncpg is done with it, its listeners included
            await self.pool.release(lent)
        except asyncio.CancelledError:
            con.terminate()
            raise
        except Exception:  # noqa: BLE001  whatever it was, it is not used again; asyncpg's own warnings may be errors, too
            con.terminate()

    def expire(self, how: Drain) -> tuple[int, int]:
        """End what was born under an older epoch; where some may be kept, each is looked at when it is checked out."""
        if how == "keep":
            return 0, len(self.out)
        self._kept_from = self.node.epoch
        idle = self.idle
        for lease in self._free:
            lease.terminate()
        self._give_back_all()
        self._expiry = asyncio.ensure_future(self._expire())
        self._watch(self._expiry)
        self._tags.clear()
        in_use = len(self.out)
        if how == "now":
            self.end_in_use()
        return idle, in_use

    async def _expire(self) -> None:
        with contextlib.suppress(asyncpg.InterfaceError):  # its owner has closed it: there is nothing to expire
            await self.pool.expire_connections()

    def rest(self) -> None:
        """Give back held leases that were not used for a while; called now and then."""
        now = self.clock()
        while self._free and now - self._free[0].used_at > self._max_idle:
            self._give_back(self._free.popleft())

    async def warm(self, count: int, timeout: float) -> None:
        """The application's pool warms itself."""

    async def close(self, timeout: float) -> None:
        """Give back what is out, for *timeout* seconds; the pool itself stays open, it is the application's."""
        end = asyncio.get_running_loop().time() + timeout
        self._let_go()
        await self._drained(timeout)
        self.end_in_use()
        await self._drained(SETTLE_WITHIN)
        await self._quiet(end - asyncio.get_running_loop().time())
        await self._end_tasks()

    def terminate(self) -> None:
        """End what is out now; the pool itself stays open."""
        self._let_go()
        self.end_in_use()
        self._hurry()

    def _let_go(self) -> None:
        """Hold nothing any more."""
        self._hold = 0
        self._give_back_all()
        if self._looks is not None:
            self._looks.cancel()
            self._looks = None
