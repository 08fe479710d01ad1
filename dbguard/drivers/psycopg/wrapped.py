"""Pools of `psycopg_pool` that the application has already: one checkout and one return per call, by their public API.

A checkout can hang for as long as a black hole lasts, whatever its timeout (with ``check=``), and nobody can call it off. So
checkouts are made beside the calls, and who gets what they bring is who waits longest then.

What a use through the guard may have left on a session is taken back, or the connection is ended, before its pool has it
again. psycopg's pools reset nothing, and what their ``configure`` has set cannot be seen from outside: a session that is not
its login's plain one at birth, or has settings of its own, is never reset but ended.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool

from dbguard.core.statement import Touch
from dbguard.drivers.identity import identify
from dbguard.drivers.named import PoolExhausted
from dbguard.drivers.probe import ask, sighting
from dbguard.drivers.psycopg.failures import PoolClosed
from dbguard.drivers.psycopg.lease import SETTLE_WITHIN, Lease, Place, Settling, Tag
from dbguard.drivers.psycopg.lending import Lending
from dbguard.drivers.psycopg.upkeep import cleaned, in_autocommit

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.route import Node
    from dbguard.core.topology import Drain, Sighting
    from dbguard.drivers.base import Colour
    from dbguard.drivers.psycopg.line import Line

__all__ = ["WrappedPool"]

LOOK = 0.05
"""Seconds between two looks at a pool of which leases are held: whether its owner closes it, or somebody waits for it."""

CHECKOUT = 1.0
"""Seconds for which one checkout waits in the application's pool before it is seen whether anybody still waits for it."""

HANGS = 2 * CHECKOUT
"""Seconds after which a checkout is seen to hang, as the pool's ``check=`` does in a black hole: others are made beside it."""

REST = 2.0
"""Seconds for which a thread that makes checkouts waits for the next one: to start another costs as much as a checkout."""

_SET = "SELECT count(*) FROM pg_settings WHERE source = 'session'"
"""How many settings the session has that it was not begun with. Those of no module that is loaded are not told."""

log = logging.getLogger("dbguard")


class WrappedPool(Lending):
    """A pool of the application's: one checkout and one return per call, by its public API, and never closed by us.

    line: what a connection is used by, of the colour's kind. check: what a connection must pass when it is first seen;
    raises `WrongNode`. ask_within: seconds for asking it who it is.
    hold: how many leases stay out between calls at most, by the owner's word that nothing need run there. They are given
    back when they were not used for *max_idle* seconds, after *max_lifetime*, while somebody waits for the pool, and when
    its owner closes it.
    """

    hooked = True

    def __init__(
        self,
        node: Node,
        pool: Any,
        line: type[Line],
        *,
        colour: Colour,
        clock: Callable[[], float],
        check: Callable[[Sighting], None],
        ask_within: float,
        hold: int = 0,
        max_lifetime: float = math.inf,
        max_idle: float = math.inf,
    ) -> None:
        super().__init__(node, colour=colour, clock=clock, size=pool.max_size)
        self.pool = pool
        self._line = line
        self._check = check
        self._ask_within = ask_within
        self._hold = hold
        self._max_lifetime = max_lifetime
        self._max_idle = max_idle
        self._tags: WeakKeyDictionary[Any, Tag] = WeakKeyDictionary()
        self._fetchers: dict[object, float] = {}  # who makes checkouts, and when each one's last began
        self._resting = 0
        self._wanted: queue.SimpleQueue[object | None] = queue.SimpleQueue()
        self._errors = 0
        self._watches = False

    @property
    def idle(self) -> int:
        """Connections at hand."""
        return len(self._free) + int(self.pool.get_stats()["pool_available"])

    @property
    def full(self) -> bool:
        """Whether every connection there may be is out, as far as the pool tells: it counts those that it cannot dial, too."""
        said = self.pool.get_stats()
        failing = said.get("connections_errors", 0) > self._errors
        return not (self._free or said["pool_available"] or failing) and said["pool_size"] >= self.pool.max_size

    # ------------------------------------------------------------------ taking

    def take_now(self) -> Lease | None:
        """Return a held lease, the one used last first."""
        return self._take_free()

    async def take(self) -> Lease:
        """Return a held lease, or check a connection out. The caller bounds it, by cancelling."""
        return self._take_free() or await self._wait()

    def _wake(self) -> None:
        """Let as many checkouts be made as there are callers who wait."""
        asked: list[object] = []
        with self._lock:
            self._reap()
            now = self.clock()
            missing = 0 if self._closing else len(self._waiters) - self._under_way(now)
            for _ in range(missing):
                fetcher = object()
                self._fetchers[fetcher] = now
                if self._resting:
                    self._resting -= 1
                    self._wanted.put(fetcher)
                else:
                    asked.append(fetcher)
        for fetcher in asked:
            self._beside(self._fetch(fetcher), "checkout")

    def _under_way(self, now: float) -> int:
        """Return how many checkouts are made, but for those that hang. Under the lock."""
        return sum(now - began <= HANGS for began in self._fetchers.values())

    async def _fetch(self, fetcher: object | None) -> None:
        """Make checkouts for those who wait; on a thread, until none was wanted for a while."""
        while fetcher is not None:
            try:
                while self._is_needed(fetcher):
                    await self._fetch_one()
            finally:
                with self._lock:
                    self._fetchers.pop(fetcher, None)
            fetcher = self._rest() if self._line.blocks else None

    def _is_needed(self, fetcher: object) -> bool:
        """Say whether one more checkout is wanted; who asks is counted no more if not."""
        with self._lock:
            now = self._fetchers[fetcher] = self.clock()
            needed = not self._closing and self._under_way(now) <= len(self._waiters)
            if not needed:
                del self._fetchers[fetcher]
        return needed

    def _rest(self) -> object | None:
        """Wait for the next checkout to make; None: none was wanted."""
        with self._lock:
            if self._closing:
                return None
            self._resting += 1
        try:
            return self._wanted.get(timeout=REST)
        except queue.Empty:
            with self._lock:
                if self._resting:
                    self._resting -= 1
                    return None
        return self._wanted.get()  # it was asked for just now

    async def _fetch_one(self) -> None:
        """Check one connection out and hand it to who waits longest; or say why there is none."""
        lease = None
        try:
            raw = await self._called(self.pool.getconn, CHECKOUT)
            lease = await self._met(raw)
        except psycopg_pool.PoolTimeout:
            return
        except psycopg_pool.PoolClosed as error:
            self._tell_all(error)
        except psycopg_pool.TooManyRequests as error:
            full = PoolExhausted(f"as many calls wait for the pool of {self.node.name} as it admits")
            full.__cause__ = error
            self._refuse(full)
        except Exception as error:  # noqa: BLE001  who waits judges it
            self._refuse(error)
        if lease is not None:
            self._pass(lease)

    def _tell_all(self, error: Exception) -> None:
        """Tell all who wait that the pool is closed: it will not open again."""
        name = self.node.name
        said = (
            f"the pool of {name} is not open: open it before the guard"
            if "not open yet" in str(error)  # psycopg_pool has no other word for it
            else f"the application has closed its pool of {name}"
        )
        while True:
            closed = PoolClosed(said)
            closed.__cause__ = error
            if not self._refuse(closed):
                return

    async def _called(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the pool's, and await it on asyncio."""
        value = method(*args)
        return value if self._line.blocks else await value

    async def _met(self, raw: Any) -> Lease | None:
        """Make a lease of what was checked out, asking it who it is if it was never seen; None: it is of no use."""
        known = self._tags.get(raw)
        tag = known or Tag(self.node.epoch, self.clock())
        line = self._line(raw, tag.heard)
        lease: Lease | None = None
        try:
            if not line.is_dead():
                own = bool(raw.autocommit)
                await in_autocommit(line)
                if known is None:
                    await self._ask(raw, line, tag)
                if self.fits(tag) and self.node.is_here(tag.instance):
                    lease = Lease(self, line, (raw, own), tag)
                    with self._lock:
                        self._taken.add(lease.place)
        except BaseException:
            await self._put_back(line, raw, fit=False)
            raise
        if lease is None:
            await self._put_back(line, raw, fit=False)
        return lease

    async def _ask(self, raw: Any, line: Any, tag: Tag) -> None:
        """Ask a connection that was not seen before who it is."""
        tag.listens = True
        self._bound(line, self._ask_within)
        try:
            at = self.clock()
            row = await ask(line, timeout=None)
            seen = sighting(row, self.node.name, at, fresh=True)
            tag.learn(row, seen.instance)
            self._check(seen)
            tag.identity = await identify(line)
            tag.plain_role = bool(tag.identity.plain) and not await line.fetchval(_SET)
        finally:
            self._unbound(line)
        self._tags[raw] = tag
        self._errors = self.pool.get_stats().get("connections_errors", 0)

    # ------------------------------------------------------------------ giving back

    def give(self, lease: Lease, touched: Touch) -> None:
        """Take a lease back in the background: hold it, or give it back to the pool."""
        work = self.settle(lease, touched)
        if work is not None:
            self._beside(self._in_time(lease.con, work), "return")

    def settle(self, lease: Lease, touched: Touch) -> Settling | None:
        """Take a lease back; what has to be awaited for that is returned.

        Where leases are held, or somebody waits, one that nothing was left on stays out.
        """
        self._returned(lease)
        line, tag = lease.con, lease.tag
        worst = max(lease.touched, touched)
        lease.forget()
        lease.used_at = self.clock()
        if (
            worst >= Touch.LOST
            or (worst is not Touch.NOTHING and not tag.plain_role)
            or not self.fits(tag)
            or line.is_closed()
            or line.is_in_transaction()
        ):
            return self._put_back(line, lease.loan[0], fit=False)
        if worst is not Touch.NOTHING or line.stale_plans or not line.raw.autocommit:
            return self._cleaned(lease, worst)
        return None if self._stays(lease) else self._returned_to_pool(lease)

    async def _cleaned(self, lease: Lease, worst: Touch) -> Callable[[], None] | None:
        """Take back what the use may have left, or end the connection; return what holds it, or give it back to the pool."""
        try:
            fit = await cleaned(lease, worst, None)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  whatever it was, it is not used again
            fit = False
        if not fit:
            await self._put_back(lease.con, lease.loan[0], fit=False)
        elif self._hold:
            return partial(self._kept, lease)
        else:
            await self._returned_to_pool(lease)
        return None

    def _kept(self, lease: Lease) -> None:
        """Hold a clean lease, or give it back to the pool beside the caller."""
        if not self._stays(lease):
            self._give_back(lease)

    def _stays(self, lease: Lease) -> bool:
        """Hand a clean lease to who waits longest, or hold it, if that keeps nobody else waiting; say whether."""
        with self._lock:
            if self._closing or self.pool.closed or self.clock() - lease.tag.born > self._max_lifetime:
                return False
            if self._hold and self._hand(lease):
                return True
            if len(self._free) >= self._hold:
                return False
            self._free.append(lease)
            first, self._watches = not self._watches, True
        if first:
            self._colour.on_loop(self._look_later_at_pool)
        return True

    async def _returned_to_pool(self, lease: Lease) -> None:
        """Give a clean connection back, in the mode in which it was found."""
        raw, own = lease.loan
        fit = True
        try:
            if not own:
                await lease.con.run(raw.set_autocommit, False)
        except psycopg.Error:
            fit = False
        await self._put_back(lease.con, raw, fit=fit)

    async def _put_back(self, line: Line, raw: Any, *, fit: bool) -> None:
        """Give a connection back to its pool, which replaces one that is closed: so what is not *fit* is."""
        if line.leave(lambda: self._beside(self._put(raw, fit=False), "return")):
            await self._put(raw, fit=fit and not line.ended)

    async def _put(self, raw: Any, *, fit: bool) -> None:
        if not fit:
            raw.pgconn.finish()
        try:
            await self._called(self.pool.putconn, raw)
        except Exception as error:  # noqa: BLE001  its pool will not have it: the application has given it back already
            log.debug("%s: a connection was not taken back: %s", self.node.name, type(error).__name__)

    def _pass(self, lease: Lease) -> None:
        """Hand a clean lease to who waits longest, or hold it, or give it back to the pool."""
        with self._lock:
            handed = not self._closing and self._hand(lease)
        if not (handed or self._stays(lease)):
            self._beside(self._in_time(lease.con, self._returned_to_pool(lease)), "return")

    def _discard(self, lease: Lease) -> None:
        """End a connection, and give it back to its pool to be replaced."""
        self._beside(self._put_back(lease.con, lease.loan[0], fit=False), "return")

    def _lose(self, place: Place) -> None:
        line = place.line
        if line is not None and not line.left:
            self._beside(self._put_back(line, line.raw, fit=False), "return")

    def _give_back(self, lease: Lease) -> None:
        self._beside(self._in_time(lease.con, self._returned_to_pool(lease)), "return")

    def _look_later_at_pool(self) -> None:
        self._colour.loop.call_later(LOOK, self._look_at_pool)

    def _look_at_pool(self) -> None:
        """Give back what is held if the pool's owner closes it, or if somebody waits there."""
        if self.pool.closed or self.pool.get_stats().get("requests_waiting"):
            self._let_go(lambda _: True)
        with self._lock:
            self._watches = bool(self._free)
        if self._watches:
            self._look_later_at_pool()

    def _let_go(self, goes: Callable[[Lease], bool]) -> int:
        """Give back what is held and shall go; returns how many."""
        return self._part(goes, self._give_back)

    # ------------------------------------------------------------------ by the guard

    def expire(self, how: Drain) -> tuple[int, int]:
        """End what was born under an older epoch; where some may be kept, each is looked at when it is checked out."""
        if how == "keep":
            return 0, len(self.out)
        with self._lock:
            self._kept_from = self.node.epoch
            idle = self.idle
            self._sift(lambda _: False)
            in_use = len(self.out)
            if how == "now":
                self.end_in_use()
        if hasattr(self.pool, "drain"):  # since psycopg_pool 3.3
            self._beside(self._called(self.pool.drain), "drain")
        return idle, in_use

    def rest(self) -> None:
        """Give back held leases that were lost, or not used for a while; called after each round of probes."""
        now = self.clock()
        self._let_go(lambda lease: now - lease.used_at > self._max_idle)
        self._sift(lambda lease: not lease.con.is_dead())
        self._wake()

    async def warm(self, count: int, timeout: float) -> None:
        """The application's pool warms itself."""

    async def close(self, timeout: float) -> None:
        """Give back what is out, for *timeout* seconds; the pool itself stays open, it is the application's."""
        end = asyncio.get_running_loop().time() + timeout
        self._shut()
        await self._drained(timeout)
        self.end_in_use()
        await self._drained(SETTLE_WITHIN)
        self._give_up()
        await self._end_jobs(end - asyncio.get_running_loop().time())

    def terminate(self) -> None:
        """End what is out now; the pool itself stays open."""
        self._interrupt()
        self._shut()
        self.end_in_use()
        self._give_up()
        self._hurry()

    def _shut(self) -> None:
        """Lend nothing any more, hold nothing, and let those go who make checkouts."""
        super()._shut()
        self._let_go(lambda _: True)
        with self._lock:
            resting, self._resting = self._resting, 0
        for _ in range(resting):
            self._wanted.put(None)

    def _give_up(self) -> None:
        """Give back what is out, as soon as nothing runs on it: its user may never do so."""
        for lease in self._leases_out():
            self._discard(lease)
