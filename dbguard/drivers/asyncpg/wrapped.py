"""Pools that the application has already: one checkout and one return per call, by asyncpg's public API.

What a use through the guard may have left on a session is taken back, or the connection is ended, before its pool has it
again. What cannot be done from outside: hear of what the application leaves there in uses of its own, and see its hooks.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.borrow import Borrowed, borrow
from dbguard.drivers.asyncpg.identity import DEEP_RESET, identify
from dbguard.drivers.asyncpg.lease import RETURN_WITHIN, SETTLE_WITHIN, Books, Lease, Tag
from dbguard.drivers.asyncpg.probe import Backend, ask, sighting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.route import Node
    from dbguard.core.topology import Drain, Sighting

__all__ = ["WrappedPool"]


class WrappedPool(Books):
    """A pool of the application's: one checkout and one return per call, by its public API, and never closed by us."""

    hooked = True

    def __init__(
        self,
        node: Node,
        pool: asyncpg.Pool[Any],
        *,
        clock: Callable[[], float],
        check: Callable[[Sighting], None],
        ask_within: float,
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

    def take_now(self) -> Lease | None:
        """A wrapped pool has nothing at hand."""
        return None

    async def take(self) -> Lease:
        """Check a connection out; one that was never seen before is asked who it is. The caller bounds it."""
        if self._expiry is not None:
            await asyncio.shield(self._expiry)
            self._expiry = None
        while True:
            con = Borrowed(await borrow(self.pool, self.node.name))
            known = self._tags.get(id(con.get_settings()))
            try:
                tag = await self._meet(con) if known is None else known[1]
                if self._varies and not tag.plain_role:
                    tag.identity = await identify(con)
            except BaseException:
                con.terminate()
                self._later(self._return(con))
                raise
            if self.fits(tag) and self.node.is_here(tag.instance):
                break
            con.terminate()
            self._later(self._return(con))
        lease = Lease(self, con, con.lent, tag)
        self.node.load.in_use += 1
        self.out[lease] = None
        return lease

    @property
    def full(self) -> bool:
        """Whether every connection there may be is out."""
        return self.pool.get_idle_size() == 0 and self.pool.get_size() >= self.pool.get_max_size()

    @property
    def idle(self) -> int:
        """Connections at hand."""
        return self.pool.get_idle_size()

    async def _meet(self, con: Borrowed) -> Tag:
        """Ask a connection that was not seen before who it is."""
        settings = con.get_settings()
        tag = Tag(self.node.epoch, self.clock())
        at = self.clock()
        row = await ask(con, timeout=self._ask_within)
        seen = sighting(row, self.node.name, at, fresh=True)
        tag.instance = seen.instance
        tag.backend = Backend(row["pid"], row["backend_start"])
        tag.synchronous = bool(row["synchronous"])
        tag.quiet = bool(row["quiet"])
        self._check(seen)
        tag.identity = await identify(con)
        tag.plain_role = bool(tag.identity.plain)
        self._tags[id(settings)] = (settings, tag)
        if len(self._tags) > 2 * self.pool.get_max_size() + 16:
            self._tags = dict(list(self._tags.items())[-self.pool.get_max_size() - 8 :])
        return tag

    def give(self, lease: Lease, touched: Touch) -> None:
        """Give it back to the pool in the background."""
        timer = asyncio.get_running_loop().call_later(RETURN_WITHIN, lease.terminate)
        self._later(self.settle(lease, touched), timer.cancel)

    def settle(self, lease: Lease, touched: Touch) -> Awaitable[None]:
        """Give it back to the pool, which resets it in its own way: role and temporary objects stay. So they go before."""
        self._returned(lease)
        tag = lease.tag
        tag.drew = tag.drew or lease.drew
        worst = max(touched, lease.touched)
        if worst >= Touch.LOST or not self.fits(tag) or (worst is Touch.IDENTITY and not tag.plain_role):
            lease.terminate()
        elif worst is not Touch.NOTHING:
            return self._cleaned(lease)
        return self._return(lease.con)

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
        try:
            await self.pool.release(con.lent)
        except asyncio.CancelledError:
            con.terminate()
            raise
        except Exception:  # noqa: BLE001  asyncpg has terminated it
            return

    def expire(self, how: Drain) -> tuple[int, int]:
        """End what was born under an older epoch; where some may be kept, each is looked at when it is checked out."""
        if how == "keep":
            return 0, len(self.out)
        self._kept_from = self.node.epoch
        idle = self.pool.get_idle_size()
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
        """Nothing is held."""

    async def warm(self, count: int, timeout: float) -> None:
        """The application's pool warms itself."""

    async def close(self, timeout: float) -> None:
        """Give back what is out, for *timeout* seconds; the pool itself stays open, it is the application's."""
        end = asyncio.get_running_loop().time() + timeout
        await self._drained(timeout)
        self.end_in_use()
        await self._drained(SETTLE_WITHIN)
        await self._quiet(end - asyncio.get_running_loop().time())
        await self._end_tasks()

    def terminate(self) -> None:
        """End what is out now; the pool itself stays open."""
        self.end_in_use()
        self._hurry()
