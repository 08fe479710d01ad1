"""`Guard`: the facade over asyncpg, for asyncio."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from dbguard.calls import AsyncpgDialect, Calls
from dbguard.errors import ConfigError
from dbguard.guarding import Guarding, checked_sizes
from dbguard.wrapping import wrapped

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Mapping, Sequence
    from types import TracebackType

    import asyncpg

    from dbguard.config.settings import Settings
    from dbguard.connector import Connector
    from dbguard.events import Listener
    from dbguard.lifetime import Lifetime
    from dbguard.wrapping import Following

__all__ = ["Connecting", "Guard", "connect"]


class Guard(Guarding["Calls"], Calls):
    """A PostgreSQL cluster, guarded: asyncpg's methods, sent to the right node, through failovers.

    config: settings, a mapping, a DSN of one or several hosts, or the path of a YAML file.
    on_event: called with each `dbguard.events.Event`.
    retry_wait, retry_stop: tenacity strategies for the pauses between attempts and for giving up. Default: full jitter.
    arguments: any argument of `asyncpg.create_pool`, for the guard's own pools; they win over *config*.

    Making one does no I/O and needs no running loop, so it can live at module level; `open` or ``async with`` starts it.

    Raises `ConfigError` if the configuration is wrong.
    """

    def __init__(
        self,
        config: Settings | Mapping[str, Any] | str | os.PathLike[str],
        *,
        on_event: Listener | None = None,
        retry_wait: object | None = None,
        retry_stop: object | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            config, AsyncpgDialect(), arguments, on_event=on_event, retry_wait=retry_wait, retry_stop=retry_stop
        )

    @classmethod
    def wrap(
        cls,
        primary: asyncpg.Pool[Any] | Following,
        replicas: Sequence[asyncpg.Pool[Any] | Following] = (),
        *,
        hold: int = 0,
        config: Mapping[str, Any] | None = None,
        on_event: Listener | None = None,
    ) -> Guard:
        """Guard pools that the application has already, by their public API; they stay its own and are never closed.

        primary, replicas: open `asyncpg.Pool`s, one per node. Roles are found out, never believed.
        hold: connections of each pool that stay out between calls at most, below its ``max_size``. Default 0: each call
            is one checkout and one return. With your word that no ``setup=`` or ``reset=`` hook need run between two
            calls (a tenant's role, say), reads and writes that leave nothing on the session are as fast as on pools of
            the guard's own. They are given back after ``pool.max_idle``, and as soon as the pool is being closed.
        config: sections of the configuration that do not say where nodes are: ``reads``, ``retry``, ``breaker``, ...

        A wrapped pool can be reset and drained, but not moved to an address that it does not know: after a failover the
        new primary must be among the pools, or behind one that `follows` the primary. Probes, and questions about writes
        of open fate, borrow their connections from it. What the application's own use leaves on a session is not seen.

        Raises `TypeError` for what is no pool; `ConfigError` for one that is closed, or given twice. Opening the guard
        raises `ConfigError` if a pool is not open, or if the pools are of several clusters.
        """
        given = cls._sections(config)
        return cls._over(given, wrapped(primary, replicas, hold), on_event)

    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments for `asyncpg.create_pool`; a misspelt one is found now, not by a pool that never connects."""
        from dbguard.drivers.asyncpg.dial import known_arguments  # noqa: PLC0415  as `load`

        settings = self._settings
        if arguments.get("connect") is None:
            known = known_arguments()
            for name in arguments:
                if name not in known:
                    close = difflib.get_close_matches(name, known, n=1)
                    hint = f": did you mean {close[0]}?" if close else " (nor of asyncpg.connect)"
                    if hasattr(settings, name):
                        hint = f": it is a setting, such as dbguard.connect({{'dsn': ..., '{name}': ...}})"
                    raise ConfigError(f"{name} is no argument of asyncpg.create_pool{hint}", path=name)
        return checked_sizes(arguments, settings)

    def _begin(self) -> Lifetime:
        # The machinery is loaded when it runs: `import dbguard` is quick.
        from dbguard.drivers.asyncpg.outcome import CarriedTokens  # noqa: PLC0415  loaded when it runs
        from dbguard.refresh import Refresh, over_calls  # noqa: PLC0415  loaded when it runs
        from dbguard.wiring import wire  # noqa: PLC0415  loaded when it runs

        engine, monitor, own = wire(self._settings, self._arguments, self._wrapped, wait=self._wait, stop=self._stop)
        calls = self.using(role="primary", writes="wait")
        return self._lifetime(engine, monitor, own, Refresh(self._core.texts, over_calls(calls)), CarriedTokens)

    def connector(self, role: str = "primary") -> Connector:
        """Return what connects a pool of the application's: ``asyncpg.create_pool(connect=guard.connector("primary"))``.

        role: ``primary`` or ``replica``. Each new connection goes to the present primary, or to a replica that is fit (where
        none is, to the primary, where it stays, unless the guard says ``fallback: error``), and is asked who it is first. It waits for one as
        a call does, no longer than the pool's ``timeout``. A connection to what is the primary no more, to a fenced node, or
        to a server that its name has left, is terminated, whatever it is doing; its pool then dials another one.
        What runs on them is the application's: nothing is repeated, routed or resolved, none of it is held back by
        `pause` or while writes are refused, and a replica that falls behind later, or follows another server than the
        primary, keeps the connections that it has. For all of that, use the guard itself.

        Needs an open guard with nodes of its own whenever the pool connects. Raises `ValueError` for another role;
        `ConfigError` for a guard of wrapped pools.
        """
        from dbguard.connector import Connector  # noqa: PLC0415  as `load`

        return self._connecting(role, Connector)

    # ------------------------------------------------------------------ asyncpg.Pool's own words

    async def expire_connections(self) -> None:
        """Replace all connections: idle ones now, those in use when they are given back."""
        engine = self._engine()
        for name in engine.pools:
            engine.state.renew(name)
        engine.flush()

    def is_closing(self) -> bool:
        """Whether the guard is closed, or not open yet."""
        engine = self._core.engine
        return engine is None or engine.closed

    def get_size(self) -> int:
        """Return the connections there are, in use or at hand, over all nodes."""
        return self.get_idle_size() + sum(node.load.in_use for node in self._engine().state.nodes.values())

    def get_idle_size(self) -> int:
        """Return the connections at hand, over all nodes."""
        return sum(pool.idle for pool in self._engine().pools.values())

    def get_min_size(self) -> int:
        """Return the connections kept open per node; of wrapped pools, the primary's."""
        if self._wrapped is not None:
            return int(self._wrapped["primary"].pool.get_min_size())
        return int(self._arguments.get("min_size", self._settings.pool.min_size))

    def get_init_size(self) -> int:
        """Return the connections dialled per node at the start."""
        if self._wrapped is not None:
            return int(self._wrapped["primary"].pool.get_init_size())
        return self.get_min_size()

    def get_max_size(self) -> int:
        """Return the connections at most, per node; of wrapped pools, the primary's."""
        if self._wrapped is not None:
            return int(self._wrapped["primary"].pool.get_max_size())
        return int(self._arguments.get("max_size", self._settings.pool.max_size))

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Not supported: raises `NotImplementedError`. Nodes are the configuration's: close this guard, open another."""
        raise NotImplementedError(
            "a guard's nodes come from its configuration: close it and open another one; for passwords that change, "
            "give password= a function"
        )


class Connecting:
    """What `connect` returns: for ``async with``, or ``await``."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __await__(self) -> Generator[Any, None, Guard]:
        return self._guard.open().__await__()

    async def __aenter__(self) -> Guard:
        return await self._guard.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._guard._leave(error)  # noqa: SLF001  two halves of one thing


def connect(config: Settings | Mapping[str, Any] | str | os.PathLike[str], **arguments: Any) -> Connecting:
    """Open a guard: ``async with dbguard.connect(...) as guard``, or ``guard = await dbguard.connect(...)``.

    config and arguments: as for `Guard`.
    """
    return Connecting(Guard(config, **arguments))
