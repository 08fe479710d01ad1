"""What one `Guard.open` starts, and what ends it: `close`, `terminate`, or the end of its event loop.

Opening and closing run in tasks of their own, so that several may wait for either, and whoever is cancelled meanwhile
goes at once: `terminate` needs no await.

In a forked child it is over, and nothing ends it there: it is the parent's.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from dbguard.calling import NOT_OPEN
from dbguard.core.topology import Sighting
from dbguard.errors import ConfigError, GuardClosed, NoPrimary, NotAttempted
from dbguard.forked import refusal, watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbguard.calling import Core
    from dbguard.config.settings import StartupSettings
    from dbguard.core.topology import NodeView
    from dbguard.drivers.base import OwnedPool
    from dbguard.refresh import Refresh
    from dbguard.runtime.engine import Engine
    from dbguard.runtime.monitor import Monitor

__all__ = ["Lifetime", "is_fit", "nobody"]


_inherited: list[Lifetime] = []
"""In a forked child, what is the parent's. It is kept: collected, its tasks and connections would complain of their end."""


class Lifetime:
    """One time for which a guard is open, on one event loop. Made with that loop running; it begins to open at once.

    own: the pools to make ready. refresh: reads the catalogue once the guard is open.
    warm: connections to dial per node; warm_within: seconds for that.
    one_cluster: nodes of several clusters are an error, not a node out of rotation.
    over: it ends, or has ended.
    """

    def __init__(
        self,
        core: Core,
        engine: Engine,
        monitor: Monitor,
        own: Sequence[OwnedPool],
        refresh: Refresh,
        *,
        startup: StartupSettings,
        warm: int,
        warm_within: float,
        one_cluster: bool = False,
    ) -> None:
        self._one_cluster = one_cluster
        self.loop = asyncio.get_running_loop()
        if any(self.loop is life.loop for life in _inherited):
            # The kernel tells both processes of the same sockets, those that either of them opens later included.
            raise RuntimeError(
                "this event loop is the parent's, of which this process is a fork: make one here, as asyncio.run does"
            )
        self._thread = threading.get_ident()
        self.engine = engine
        self.monitor = monitor
        self._core = core
        self._own = own
        self._refresh = refresh
        self._startup = startup
        self._warm = (warm, warm_within)
        self._openers = 0
        self._wanted = False
        self._ended = False
        self._closing: asyncio.Task[None] | None = None
        self._opening = self.loop.create_task(self._open(), name="dbguard open")
        self._opening.add_done_callback(_heard)
        watch(self)

    @property
    def over(self) -> bool:
        """Whether it ends, or has ended, by whatever cause."""
        return self._ended or self._closing is not None or self.loop.is_closed()

    def forked(self) -> None:
        """Give it up, in a forked child: it is the parent's, which goes on with it."""
        engine = self.engine
        engine.forked = engine.forked or refusal()
        _inherited.append(self)
        if self.over:
            return
        self._ended = engine.closed = True
        self._core.engine, self._core.shut = None, engine.forked
        if threading.get_ident() == self._thread:
            # Should its loop be run here all the same, nothing of ours goes on with it. Where another thread forked, there
            # is none any more that could run it, and what it was in the midst of may be locked for ever.
            self._refresh.cancel()
            self.monitor.cancel()
            engine.flights.stop()

    # ------------------------------------------------------------------ opening

    async def opened(self) -> None:
        """Wait until the guard is open. Raises what opening it raised; `GuardClosed` if it was closed meanwhile."""
        self._check_loop()
        if not self._opening.done():
            self._openers += 1
            try:
                await asyncio.wait({self._opening})
            except asyncio.CancelledError:
                if self._openers == 1 and not self._wanted:
                    self.terminate()  # nobody else waits for it, or has it
                raise
            finally:
                self._openers -= 1
        if not self._opening.cancelled():
            self._opening.result()
            if not self.over:
                self._wanted = True
                return
        raise self.engine.driver.dress(GuardClosed("the guard was closed while it was being opened"))

    async def _open(self) -> None:
        engine, monitor = self.engine, self.monitor
        try:
            for pool in self._own:
                await pool.open()
            engine.closed = False
            engine.flights.start()
            # Who cancels the monitor, if not we, is the loop's end: with it, everything ends.
            monitor.start().add_done_callback(lambda _: self.terminate())
            await self._first_answers()
            self._core.engine, self._core.shut = engine, NOT_OPEN
            await self._refresh.start(wait=engine.state.view.primary is not None)
            fit = [name for name, node in engine.state.nodes.items() if is_usable(node.view)]
            await asyncio.gather(*(engine.pools[name].warm(*self._warm) for name in fit))
            for pool in self._own:
                pool.stay_warm()
        except BaseException:
            self.terminate()
            await self._wait_for_tasks()
            raise

    async def _first_answers(self) -> None:
        engine, monitor, startup = self.engine, self.monitor, self._startup
        until = self.loop.time() + startup.wait
        while True:
            answered = monitor.round_done
            left = until - self.loop.time()
            try:
                async with asyncio.timeout(max(0.05, left)):
                    await answered.wait()
            except TimeoutError:
                if self.loop.time() >= until and (monitor.rounds or startup.wait > 0):
                    raise self.engine.driver.dress(nobody(monitor, startup.wait)) from None
                continue
            wrong = [f"{name}: {why}" for name, why in monitor.misconfigured().items()]
            if wrong:
                raise ConfigError(
                    "no node can be used as it is configured:\n  " + "\n  ".join(wrong), problems=tuple(wrong)
                )
            if self._one_cluster:
                self._check_clusters()
            if is_fit(engine, startup.need):
                return
            if self.loop.time() >= until:
                raise self.engine.driver.dress(nobody(monitor, startup.wait))

    def _check_clusters(self) -> None:
        """Raise `ConfigError` if pools of the application's are of several clusters."""
        pools: dict[str, list[str]] = {}
        for name, last in self.monitor.last.items():
            if isinstance(last, Sighting) and last.instance.system_id is not None:
                pools.setdefault(last.instance.system_id, []).append(name)
        if len(pools) > 1:
            told = "; ".join(f"{' and '.join(names)}: system identifier {number}" for number, names in pools.items())
            raise ConfigError(
                f"the pools are of {len(pools)} clusters ({told}): wrap the pools of one cluster, and open a guard for each"
            )

    # ------------------------------------------------------------------ ending

    async def close(self, timeout: float) -> None:
        """Let calls end for *timeout* seconds, then end them. A second call only shortens; a cancelled one ends all."""
        if self.loop.is_closed() or self.engine.forked:
            return
        self._check_loop()
        closing = self.begin_to_close(timeout)
        try:
            await asyncio.wait({closing})
        except asyncio.CancelledError:
            self.terminate()
            raise

    def begin_to_close(self, timeout: float) -> asyncio.Task[None]:
        """Close it, as `close` does, in a task of its own."""
        if self._closing is None:
            self._closing = self.loop.create_task(self._close(timeout), name="dbguard close")
        else:
            self.loop.call_later(timeout, self.terminate)
        return self._closing

    async def gone(self) -> None:
        """Wait until nothing of it is left; used once it is `over`."""
        if not (self.loop.is_closed() or self.engine.forked):
            self._check_loop()
            await (asyncio.wait({self._closing}) if self._closing is not None else self._wait_for_tasks())

    def terminate(self) -> None:
        """End everything now: calls, connections, and what runs in the background. Nothing is awaited."""
        if self._ended or self.loop.is_closed():
            return
        self._ended = True
        self._refuse()
        for pool in self.engine.pools.values():
            pool.terminate()
        for registry in self.engine.registries.values():
            registry.close()
        self._refresh.cancel()
        self.monitor.cancel()
        self.engine.flights.stop()
        self.engine.wind_up()

    async def _close(self, timeout: float) -> None:
        try:
            self._refuse()
            self._refresh.cancel()
            limit = 0.0 if self._ended else timeout
            await asyncio.gather(*(pool.close(limit) for pool in self.engine.pools.values()))
        finally:
            self.terminate()
        await self._wait_for_tasks()

    def _refuse(self) -> None:
        """Take no more calls, and send home those that have nothing under way: nothing of theirs was sent."""
        engine = self.engine
        engine.closed = True
        if self._core.engine is engine:
            self._core.engine = None
        if self._opening is not asyncio.current_task(self.loop):
            self._opening.cancel()
        engine.room.release_all()
        for name in engine.pools:
            engine.flights.dismiss(name)

    async def _wait_for_tasks(self) -> None:
        """Wait for what was cancelled; each has nothing left to wait for."""
        await self.monitor.stop()
        await self._refresh.stop()
        if self._opening is not asyncio.current_task():
            await asyncio.wait({self._opening})

    def _check_loop(self) -> None:
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("the guard is open on another event loop: close it there first")


def _heard(opening: asyncio.Task[None]) -> None:
    """Take note of how it ended: whoever waited for it may be gone."""
    if not opening.cancelled():
        opening.exception()


def is_usable(view: NodeView) -> bool:
    """Say whether a node answers, and can be used as it is configured."""
    return view.reachable and view.misconfigured is None


def is_fit(engine: Engine, need: str) -> bool:
    """Say whether what is needed answers: ``primary``, ``replica``, ``all`` or ``any``."""
    nodes = engine.state.view.nodes.values()
    fit = [node for node in nodes if is_usable(node)]
    match need:
        case "primary":
            return engine.state.view.primary is not None and engine.state.gate.writable
        case "replica":
            return any(node.role.value == "replica" for node in fit)
        case "all":
            return len(fit) == len(nodes) and engine.state.view.primary is not None
        case _:
            return bool(fit)


def nobody(monitor: Monitor, waited: float) -> NotAttempted:
    """Return the error for a node that was waited for in vain."""
    missed = monitor.missed()
    why = "; ".join(f"{name}: {reason}" for name, reason in missed.items()) or "no node has that role"
    return NoPrimary(f"no node that is needed answered within {waited:g} s ({why})", retry_after=1.0)
