"""What a guard has of the words of psycopg_pool's pools, beside taking connections; for tasks. `SyncGuard` has the same."""

from __future__ import annotations

from typing import NoReturn

from dbguard.guarding import CLOSE_WITHIN, Guarding
from dbguard.pg.calls import AsyncCalls

__all__ = ["PoolNames", "not_resized"]


class PoolNames(Guarding[AsyncCalls]):
    """The words of `psycopg_pool.AsyncConnectionPool`, over all nodes."""

    @property
    def closed(self) -> bool:
        """Whether the guard is closed, or not open yet."""
        engine = self._core.engine
        return engine is None or engine.closed

    @property
    def min_size(self) -> int:
        """The connections kept open per node; of wrapped pools, the primary's."""
        return self._size("min_size")

    @property
    def max_size(self) -> int:
        """The connections at most, per node; of wrapped pools, the primary's."""
        return self._size("max_size")

    def _size(self, name: str) -> int:
        if self._wrapped is not None:
            return int(getattr(self._wrapped["primary"].pool, name))
        return int(self._arguments.get(name, getattr(self._settings.pool, name)))

    def get_stats(self) -> dict[str, int]:
        """Return how many connections there are, over all nodes, under psycopg_pool's names.

        ``pool_min`` and ``pool_max``: that are kept, and that there may be; ``pool_size``: in use or at hand;
        ``pool_available``: at hand. psycopg_pool's counters are not kept: `status` counts what a guard does, and events tell
        what it meets. Raises `GuardClosed` while the guard is not open.
        """
        engine = self._engine()
        loads = [node.load for node in engine.state.nodes.values()]
        idle = sum(pool.idle for pool in engine.pools.values())
        least = (
            self.min_size * len(loads)
            if self._wrapped is None
            else sum(int(given.pool.min_size) for given in self._wrapped.values())
        )
        return {
            "pool_min": least,
            "pool_max": sum(load.size for load in loads),
            "pool_size": idle + sum(load.in_use for load in loads),
            "pool_available": idle,
        }

    def pop_stats(self) -> dict[str, int]:
        """Return what `get_stats` returns: there are no counters in it that could be set back."""
        return self.get_stats()

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until there is a primary that takes writes; as `ready`. The guard stays open if there is none.

        Raises `NoPrimary` after *timeout* seconds; `GuardClosed` if the guard is closed, or was not opened.
        """
        await self.ready(timeout=timeout)

    async def drain(self) -> None:
        """Replace all connections: idle ones now, those in use when they are given back."""
        engine = self._engine()
        for name in engine.pools:
            engine.state.renew(name)
        engine.flush()

    async def check(self) -> None:
        """Close connections at hand that were lost, as is done after each round of probes; nothing is sent."""
        for pool in self._engine().pools.values():
            pool.rest()

    def resize(self, min_size: int, max_size: int | None = None) -> NoReturn:
        """Not supported: raises `NotImplementedError`. Sizes are the configuration's: close this guard, open another."""
        raise NotImplementedError(not_resized(min_size, max_size))

    async def close(self, timeout: float = CLOSE_WITHIN) -> None:
        """Let calls end for *timeout* seconds, then end them; close what the guard opened. See `dbguard.Guard.close`."""
        await super().close(timeout=timeout)


def not_resized(min_size: int, max_size: int | None) -> str:
    """Say why a guard is not resized, and what to do."""
    return (
        f"a guard is not resized to {min_size} and {max_size} while it is open: close it, and open another one with "
        "pool.min_size and pool.max_size in its configuration, or min_size= and max_size="
    )
