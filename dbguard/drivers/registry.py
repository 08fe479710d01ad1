"""Claiming tokens on one node: who comes first, the write or we, decides what became of the write.

A claim is made on a connection of its own, outside the pool; where the pool is the application's, on one that is borrowed
from it. While it is held up, another connection asks by whom: the write's own backend is ended, one that waits for a
standby is left alone, and anybody else is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

from dbguard.core.outcome import Holder, to_end
from dbguard.core.topology import Role
from dbguard.drivers import outcome_sql
from dbguard.drivers.base import NotReplicated, TooOld, WrongNode
from dbguard.drivers.control import END_BACKEND
from dbguard.drivers.probe import ask, sighting
from dbguard.drivers.speaker import WAIT_FOR_STANDBY
from dbguard.errors import GuardClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.topology import Sighting
    from dbguard.drivers.speaker import Speaker

__all__ = ["Registry"]

log = logging.getLogger("dbguard")

MOST = 8
"""Claims at one time, each on a connection of its own: a primary's end leaves the writes of a whole process to resolve."""

KEPT_FOR = 60.0
"""Seconds for which a connection waits for the next claim: faults come in bursts, and dialling takes longer than asking."""

PREPARED_FOR = 5.0
"""Seconds from one dial for a claim that may come to the next such, at least: a node that cannot be dialled is left alone."""

HELD_UP = 0.02
"""Seconds after which it is asked who holds up a claim; and between two such questions."""

DURABLE = "SELECT CASE WHEN current_setting('synchronous_commit') = 'remote_apply' THEN 'remote_apply' ELSE 'on' END"


class _Desk:
    """One connection for claims.

    durable: the `synchronous_commit` under which it claims: what writes of this role have, and at least ``on``.
    unheard: a commit's wait for a standby was cut short.
    """

    __slots__ = ("con", "durable", "timer", "unheard")

    def __init__(self, con: Speaker, durable: str) -> None:
        self.con = con
        self.durable = durable
        self.unheard = False
        self.timer: asyncio.TimerHandle | None = None
        con.add_log_listener(self._hear)

    def leave(self) -> None:
        """Leave the connection as it was found."""
        self.con.remove_log_listener(self._hear)

    def _hear(self, _: Any, notice: Any) -> None:
        if notice.server_source_function == WAIT_FOR_STANDBY:
            self.unheard = True


class Registry:
    """One node's table of tokens. turn: to be held while a claim is made.

    dial: opens a connection, given ``timeout`` (seconds), without a limit on what is run on it.
    check: what a server must pass that is asked; raises `WrongNode`. clock: monotonic.
    give: takes a connection back after each claim, and after it was terminated; None: they are the registry's own, and
        wait for the next claim.
    """

    def __init__(
        self,
        node: str,
        dial: Callable[..., Awaitable[Speaker]],
        check: Callable[[Sighting], None],
        *,
        clock: Callable[[], float],
        give: Callable[[Any], None] | None = None,
    ) -> None:
        self._node = node
        self._dial = dial
        self._give = give
        self._check = check
        self._clock = clock
        self.turn = asyncio.Semaphore(MOST)
        self._dialling = False
        self._prepare_at = -math.inf
        self._news = asyncio.Event()  # a connection waits, or a dial has ended; made anew each time
        self._free: list[_Desk] = []
        self._busy: list[_Desk] = []
        self._closed = False

    async def claim(self, token: Any, own: tuple[int, float | None], within: float) -> bool:
        """Claim *token*; return whether its write had committed. The caller bounds it, by cancelling.

        own: the backend the write was sent to; 0: not known. within: seconds that the server lets it be held up.

        Raises `TooOld` if the token is below the horizon; `GuardClosed` once it is closed; `NotReplicated` if no standby has the answer; what the driver
        raises if it was not answered (55P03: somebody holds it up).
        """
        desk = await self._take(within)
        self._busy.append(desk)
        try:
            committed = await self._ask(desk, token, own, within)
        except BaseException as error:
            self._end(desk.con)
            if isinstance(error, Exception):
                self._check_open()
            raise
        finally:
            self._busy.remove(desk)
        self._keep(desk)
        return committed

    async def prepare(self, within: float) -> bool:
        """Dial for a claim that may come, so that it need not wait for that; return whether that was done.

        Nothing is done where a connection waits already, or was dialled for lately. Raises what the driver raises.
        within: seconds for it.
        """
        now = self._clock()
        if self._give is not None or self._closed or self._free or self._dialling or now < self._prepare_at:
            return False
        self._prepare_at = now + PREPARED_FOR
        desk = await self._take(within)
        try:
            await ask(desk.con, timeout=within)  # the first question of a claim, which is slow on a new connection
        except BaseException:
            desk.con.terminate()
            raise
        self._keep(desk)
        return True

    def close(self) -> None:
        """Close all connections at once; claims under way raise `GuardClosed`, as later ones do."""
        self._closed = True
        self.rest()
        for desk in self._busy:
            desk.con.terminate()

    def rest(self) -> None:
        """Close the connections that wait for the next claim."""
        while self._free:
            self._drop(self._free[-1])

    def _check_open(self) -> None:
        if self._closed:
            raise GuardClosed("the guard was closed")

    async def _take(self, within: float) -> _Desk:
        """Return a connection that waits, or dial one; one at a time.

        Dialling costs this process ten milliseconds of its only thread, for the password, and a claim less: claims that
        all come at once, as after a primary's end, are answered sooner in turn on the first connection or two.
        """
        while (desk := self._spare()) is None:
            if self._dialling:
                await self._news.wait()
                continue
            self._dialling = True
            try:
                return await self._open(within)
            finally:
                self._dialling = False
                self._tell()
        return desk

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _spare(self) -> _Desk | None:
        """Return a connection that waits for a claim."""
        self._check_open()
        while self._free:
            desk = self._free.pop()
            if desk.timer is not None:
                desk.timer.cancel()
            if not desk.con.is_closed():
                return desk
        return None

    async def _open(self, within: float) -> _Desk:
        con = await self._dial(timeout=within)
        try:
            return _Desk(con, await con.fetchval(DURABLE))
        except BaseException:
            self._end(con)
            raise

    def _end(self, con: Any) -> None:
        con.terminate()
        if self._give is not None:
            self._give(con)

    def _keep(self, desk: _Desk) -> None:
        if self._give is not None and not desk.con.is_closed():
            desk.leave()
            self._give(desk.con)
            return
        if self._closed or self._give is not None:
            self._end(desk.con)
            return
        desk.timer = asyncio.get_running_loop().call_later(KEPT_FOR, self._drop, desk)
        self._free.append(desk)
        self._tell()

    def _drop(self, desk: _Desk) -> None:
        self._free.remove(desk)
        if desk.timer is not None:
            desk.timer.cancel()
        desk.con.terminate()

    async def _ask(self, desk: _Desk, token: Any, own: tuple[int, float | None], within: float) -> bool:
        con = desk.con
        at = self._clock()
        seen = sighting(await ask(con, timeout=None), self._node, at, fresh=False)
        self._check(seen)
        if seen.role is not Role.PRIMARY:
            raise WrongNode(f"{self._node} is in recovery")
        limits = outcome_sql.settings(synchronous_commit=desk.durable, lock_timeout=max(0.001, within))
        # A hook of the application's may have taken on another role: rights to claim are the login's.
        role = "" if self._give is None else "; SET LOCAL ROLE NONE"
        await con.execute(f"{outcome_sql.CLAIM_BEGIN}{role}; {limits}")
        horizon = await con.fetchval(outcome_sql.CLAIM_HORIZON)
        if horizon is None:
            raise TooOld("the schema of tokens has no horizon: run `dbguard outcome install` again")
        if token < horizon:
            raise TooOld("its token is older than what the pruner has kept")
        watch = asyncio.get_running_loop().create_task(self._watch(con.get_server_pid(), own, within))
        try:
            kind = await con.fetchval(outcome_sql.CLAIM, token)
        finally:
            watch.cancel()
        desk.unheard = False
        await con.execute("COMMIT")
        if desk.unheard:
            raise NotReplicated("the claim's wait for a synchronous standby was cut short")
        return bool(kind == "w")

    async def _watch(self, claim: int, own: tuple[int, float | None], within: float) -> None:
        """Find out who holds up the claim of backend *claim*, and end the write's own backend."""
        await asyncio.sleep(HELD_UP)
        con: Speaker | None = None
        try:
            con = await self._dial(timeout=within)
            while True:
                rows = await con.fetch(outcome_sql.BLOCKERS, claim)
                doomed = to_end([Holder(row["pid"], row["started"], row["wait_event"]) for row in rows], own)
                if doomed is not None:
                    await con.fetch(END_BACKEND, doomed, own[1], True)
                await asyncio.sleep(HELD_UP)
        except Exception as error:  # noqa: BLE001  whatever it was: the claim ends by its own limit, and is made again
            log.debug("who holds up a claim could not be asked: %s", type(error).__name__)
        finally:
            if con is not None:
                self._end(con)
