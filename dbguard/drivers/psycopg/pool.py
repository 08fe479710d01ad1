"""Pools of psycopg's connections that the guard opened itself, for tasks and for threads."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from dbguard.core.statement import Touch
from dbguard.drivers.pacing import Pacing
from dbguard.drivers.psycopg.birth import Birth, is_full
from dbguard.drivers.psycopg.lease import SETTLE_WITHIN, Lease, Place, Settling, Tag
from dbguard.drivers.psycopg.lending import Lending
from dbguard.drivers.psycopg.upkeep import called, cleaned, in_autocommit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.route import Node, Rng
    from dbguard.core.topology import Drain, Sighting
    from dbguard.drivers.base import Colour, Waiter
    from dbguard.drivers.psycopg.line import Line

__all__ = ["OwnPool"]

REFILL_AGAIN = 2.0
"""Seconds from an attempt to have a connection in reserve that failed to the next."""

log = logging.getLogger("dbguard")


class OwnPool(Lending):
    """A pool that the guard opened itself, for one node.

    dial: connects, in autocommit. line: what a connection is used by, of the colour's kind.
    size: how many there may be. keep: how many stay, however long they are idle.
    max_lifetime, max_uses: seconds and calls after which a connection is not handed on any more.
    max_idle: seconds after which an unused one is closed.
    check: what a new connection must pass; raises `WrongNode`. ask_within: seconds for asking it who it is.
    rng: for the jitter between dials.
    configure, reset, checkout: the application's hooks, which `psycopg_pool` calls ``configure``, ``reset`` and ``check``:
        for each new connection, before each is handed on, and before each is handed out. What they raise closes it.
    """

    def __init__(
        self,
        node: Node,
        dial: Callable[[], Awaitable[Any]],
        line: type[Line],
        *,
        colour: Colour,
        clock: Callable[[], float],
        size: int,
        keep: int,
        max_lifetime: float,
        max_idle: float,
        max_uses: float,
        check: Callable[[Sighting], None],
        ask_within: float,
        rng: Rng,
        configure: Callable[[Any], Any] | None = None,
        reset: Callable[[Any], Any] | None = None,
        checkout: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(node, colour=colour, clock=clock, size=size)
        self._blocks = line.blocks
        self._size = size
        self._keep = min(keep, size)
        self._max_lifetime = max_lifetime
        self._max_idle = max_idle
        self._max_uses = max_uses
        self._configure = configure
        self._reset = reset
        self._checkout = checkout
        self.hooked = reset is not None or checkout is not None
        self._pacing = Pacing(node, clock=clock, rng=rng)
        self._birth = Birth(
            node,
            dial,
            line,
            clock=clock,
            pacing=self._pacing,
            check=check,
            configure=configure,
            asks=lambda line: self._bound(line, ask_within),
        )
        self._dialling: set[Place] = set()
        self._least = 0  # how many to dial though nobody waits
        self._refill_at = math.inf
        self._paused = False

    @property
    def idle(self) -> int:
        """Connections at hand."""
        return len(self._free)

    @property
    def full(self) -> bool:
        """Whether every connection there may be now is out: who waits, waits for another caller."""
        return (len(self._taken) >= self._size or self._pacing.pauses) and not self._free

    async def open(self) -> None:
        """Nothing is dialled before it is needed."""

    # ------------------------------------------------------------------ taking

    def take_now(self) -> Lease | None:
        """Return a lease that is at hand, the one used last first."""
        return None if self._checkout is not None else self._take_free()

    async def take(self) -> Lease:
        """Return a lease; dials where none is free and the pool is not full. The caller bounds it, by cancelling."""
        while True:
            lease = self._take_free() or await self._wait()
            if self._checkout is None or await self._passes(lease):
                return lease

    async def _passes(self, lease: Lease) -> bool:
        """Say whether the application's check lets *lease* go out."""
        try:
            await called(lease.con, self._checkout)
            await in_autocommit(lease.con)
        except Exception:  # noqa: BLE001  as psycopg_pool's: whatever it was, another one is tried
            self.give(lease, Touch.LOST)
            return False
        except BaseException:
            self.give(lease, Touch.LOST)
            raise
        return True

    # ------------------------------------------------------------------ dialling

    def _wake(self) -> None:
        """Dial for those who wait as far as that is due; send them away where nothing will come."""
        refused: list[Waiter] = []
        pause = 0.0
        dials: list[Lease] = []
        with self._lock:
            self._reap()
            waiting = len(self._waiters)
            while (
                not self._closing
                and (len(self._dialling) < waiting or len(self._taken) < self._least)
                and len(self._taken) < self._size
                and self._pacing.admits(len(self._dialling))
            ):
                lease = Lease(self)
                dials.append(lease)
                self._taken.add(lease.place)  # first: what is not there, nobody looks for
                self._dialling.add(lease.place)
            if waiting and not self._taken:
                refused.extend(self._waiters)
                self._waiters.clear()
            elif waiting and not self._paused and self._pacing.pauses:
                self._paused = True
                pause = self._pacing.left
        for lease in dials:
            try:
                self._beside(self._bring(lease), "dial")
            except RuntimeError as error:
                self._not_brought(lease, error)
        for waiter in refused:
            waiter.fail(self._pacing.refusal())
        if pause:
            self._colour.on_loop(lambda: self._colour.loop.call_later(pause, self._pause_over))

    def _pause_over(self) -> None:
        self._paused = False
        self._wake()

    async def _bring(self, lease: Lease) -> None:
        """Dial a lease's connection, and hand it to who waits longest; or say why there is none."""
        tag = Tag(self.node.epoch, self.clock())
        tag.listens = True
        try:
            line = await self._birth.bring(tag)
        except BaseException as error:
            self._not_brought(lease, error)
            if not isinstance(error, Exception):
                raise
            return
        self._unbound(line)
        lease.begin(line, tag)
        lease.used_at = self.clock()
        with self._lock:
            self._dialling.discard(lease.place)
            if len(self._taken) - len(self._dialling) >= self._least:
                self._least = 0
            if math.isfinite(self._refill_at):
                self._refill_at = lease.used_at
        self._pass(lease)
        self._wake()

    def _not_brought(self, lease: Lease, error: BaseException) -> None:
        """Give up the place of a connection that could not be dialled."""
        with self._lock:
            self._dialling.discard(lease.place)
            self._taken.discard(lease.place)
            self._least = 0
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tell who waits longest that the dial for him has failed, unless what others give back can still come."""
        if isinstance(error, Exception):
            full = is_full(error)
            log.debug("%s: no connection: %s", self.node.name, type(error).__name__)
            with self._lock:
                if full:
                    self.node.soften(self.clock())
                comes = full and self._taken and self.full
            if not comes:
                self._refuse(error)
        self._wake()

    # ------------------------------------------------------------------ giving back

    def give(self, lease: Lease, touched: Touch) -> None:
        """Take a lease back: hand on, reset or close."""
        work = self._taken_back(lease, touched)
        if work is not None:
            self._beside(self._in_time(lease.con, work), "reset")

    def settle(self, lease: Lease, touched: Touch) -> Settling | None:
        """Take a lease back as `give` does; a thread resets it itself, which costs less than another thread."""
        work = self._taken_back(lease, touched)
        if work is None or self._blocks:
            return work
        self._beside(self._in_time(lease.con, work), "reset")
        return None

    def _taken_back(self, lease: Lease, touched: Touch) -> Settling | None:
        self._returned(lease)
        line, tag = lease.con, lease.tag
        worst = max(lease.touched, touched)
        lease.forget()
        now = lease.used_at = self.clock()
        tag.uses += 1
        if (
            worst >= Touch.LOST
            or (worst is Touch.IDENTITY and not tag.plain_role)
            or self._closing
            or now - tag.born > self._max_lifetime
            or tag.uses > self._max_uses
            or line.is_closed()
            or line.is_in_transaction()
        ):
            self._discard(lease)
        elif worst is not Touch.NOTHING or line.stale_plans or self._reset is not None or not line.raw.autocommit:
            return self._cleaned(lease, worst)
        else:
            self._pass(lease)
        return None

    async def _cleaned(self, lease: Lease, worst: Touch) -> Callable[[], None]:
        """Take back what the use may have left; return what hands the connection on, or closes it where that is not possible."""
        try:
            fit = await cleaned(lease, worst, self._configure)
            if fit:
                await called(lease.con, self._reset)
                await in_autocommit(lease.con)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  whatever it was, it is not used again
            fit = False
        return partial(self._pass if fit else self._discard, lease)

    def _pass(self, lease: Lease) -> None:
        """Hand a clean lease on: to who waits longest, or keep it at hand."""
        with self._lock:
            keep = not self._closing and self.fits(lease.tag) and not lease.con.is_closed()
            if keep and not self._hand(lease):
                self._free.append(lease)
        if keep:
            self._tell()
        else:
            self._discard(lease)

    def _discard(self, lease: Lease) -> None:
        """Close a connection; another may take its place."""
        lease.con.close()
        with self._lock:
            self._taken.discard(lease.place)
        self._wake()
        self._tell()

    def _lose(self, place: Place) -> None:
        self._dialling.discard(place)
        if place.line is not None:
            place.line.close()

    # ------------------------------------------------------------------ by the guard

    def expire(self, how: Drain) -> tuple[int, int]:
        """End what was born under an older epoch."""
        with self._lock:
            if how != "keep":
                self._kept_from = self.node.epoch
            idle = self._sift(lambda lease: self.fits(lease.tag))
            in_use = len(self.out)
            if how == "now":
                self.end_in_use()
        return idle, in_use

    def rest(self) -> None:
        """Close what was lost, or not used for *max_idle* seconds, down to *keep*; called after each round of probes.

        Once it shall stay warm, it dials up to *keep* as well: a node that came back has them again before it is needed,
        and a replica that is promoted takes its first write without a dial. One at a time.
        """
        now = self.clock()
        spare = len(self._free) - self._keep

        def stays(lease: Lease) -> bool:
            nonlocal spare
            if spare > 0 and now - lease.used_at > self._max_idle:
                spare -= 1
                return False
            return not lease.con.is_dead()

        with self._lock:
            self._sift(stays)
            if len(self._taken) < self._keep and now >= self._refill_at and self.node.serves(now) and not self._closing:
                self._refill_at = now + REFILL_AGAIN
                self._least = max(self._least, len(self._taken) + 1)
        self._wake()

    def stay_warm(self) -> None:
        """From now on replace what is missing."""
        self._refill_at = 0.0

    async def warm(self, count: int, timeout: float) -> None:
        """Dial until *count* connections are at hand, so that the first calls need not; the first that fails ends it."""
        count = min(count, self._size)
        with self._lock:
            if len(self._taken) - len(self._dialling) < count and not self._closing:
                self._least = count
        self._wake()
        await self._until(lambda: not self._least, timeout)

    async def close(self, timeout: float) -> None:
        """Close all connections: idle ones now, those in use when they come back.

        After *timeout* seconds what is left is terminated; that takes some tenths of a second more at most.
        """
        end = asyncio.get_running_loop().time() + timeout
        self._shut()
        await self._drained(timeout)
        self.end_in_use()
        await self._drained(SETTLE_WITHIN)
        self._close_out()
        await self._end_jobs(end - asyncio.get_running_loop().time())

    def terminate(self) -> None:
        """Terminate all connections now."""
        self._shut()
        self.end_in_use()
        self._close_out()
        self._interrupt()
        self._hurry()

    def _shut(self) -> None:
        """Lend nothing any more, and close what is at hand."""
        super()._shut()
        self._sift(lambda _: False)

    def _close_out(self) -> None:
        """Close what is out, as soon as nothing runs on it: its user may never give it back."""
        for lease in self._leases_out():
            lease.con.close()
