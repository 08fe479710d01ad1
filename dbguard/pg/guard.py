"""`PsycopgGuard`: the facade over psycopg 3, for asyncio."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from dbguard.errors import ConfigError
from dbguard.guarding import checked_sizes
from dbguard.pg.calls import AsyncCalls, AsyncDialect
from dbguard.pg.pool_names import PoolNames
from dbguard.pg.pools import checked_pools
from dbguard.runtime.colour import ASYNCIO

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from psycopg_pool import AsyncConnectionPool

    from dbguard.config.settings import Settings
    from dbguard.drivers.base import Colour
    from dbguard.events import Listener
    from dbguard.lifetime import Lifetime
    from dbguard.pg.connector import AsyncConnector
    from dbguard.wrapping import Following

__all__ = ["PsycopgGuard"]

OF_POOLS = (
    "kwargs",
    "connection_class",
    "min_size",
    "max_size",
    "configure",
    "check",
    "reset",
    "max_lifetime",
    "max_idle",
)
"""Arguments of `psycopg_pool` that pools of the guard's own have."""

INSTEAD = {
    "conninfo": "a guard's nodes come from its configuration",
    "open": "a guard is opened by open(), or by its block",
    "timeout": "set pool.acquire_timeout",
    "max_waiting": "set failover.max_waiting",
    "name": "set server_settings={'application_name': ...} in the configuration",
    "reconnect_timeout": "a guard never gives up on a node",
    "reconnect_failed": "hear the events NodeDown and NodeUp",
    "num_workers": "a guard dials beside its calls, at most four at a time and node",
    "close_returns": "a connection that is closed is gone",
}
"""What stands in the place of the others."""


class PsycopgGuard(PoolNames, AsyncCalls):
    """A PostgreSQL cluster, guarded: psycopg's words, sent to the right node, through failovers; for asyncio.

    config: settings, a mapping, a DSN of one or several hosts, or the path of a YAML file.
    on_event: called with each `dbguard.events.Event`.
    retry_wait, retry_stop: tenacity strategies for the pauses between attempts and for giving up. Default: full jitter.
    arguments: of `psycopg_pool.AsyncConnectionPool`, for the guard's own pools: ``kwargs``, ``connection_class``,
        ``min_size``, ``max_size``, ``configure``, ``check``, ``reset``, ``max_lifetime``, ``max_idle``; they win over *config*.

    Making one does no I/O and needs no running loop, so it can live at module level; `open` or ``async with`` starts it.

    Raises `ConfigError` if the configuration is wrong.
    """

    _colour: Colour = ASYNCIO

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
            config, self._dialect(arguments), arguments, on_event=on_event, retry_wait=retry_wait, retry_stop=retry_stop
        )

    @staticmethod
    def _dialect(arguments: dict[str, Any]) -> AsyncDialect:
        return AsyncDialect.of(arguments)

    @classmethod
    def wrap(
        cls,
        primary: AsyncConnectionPool[Any] | Following,
        replicas: Sequence[AsyncConnectionPool[Any] | Following] = (),
        *,
        hold: int = 0,
        config: Mapping[str, Any] | None = None,
        on_event: Listener | None = None,
    ) -> PsycopgGuard:
        """Guard pools that the application has already, by their public API; they stay its own and are never closed.

        primary, replicas: open `psycopg_pool.AsyncConnectionPool`, one per node. Roles are found out, never believed.
        hold: connections of each pool that stay out between calls at most, below its ``max_size``. Default 0.
        config: sections of the configuration that do not say where nodes are: ``reads``, ``retry``, ``breaker``, ...

        The monitor, and questions about writes of open fate, connect by themselves as the pool does. After a failover the
        new primary must be among the pools, or behind one that `follows` the primary.

        Raises `TypeError` for what is no pool; `ConfigError` for one that is closed, or given twice. Opening the guard
        raises `ConfigError` if the pools are of several clusters.
        """
        guard: PsycopgGuard = cls._wrap(primary, replicas, "AsyncConnectionPool", hold, config, on_event)
        return guard

    @classmethod
    def _wrap(
        cls,
        primary: Any,
        replicas: Any,
        kind: str,
        hold: int,
        config: Mapping[str, Any] | None,
        on_event: Listener | None,
    ) -> Any:
        given = cls._sections(config)
        pools = checked_pools(primary, replicas, hold, kind)
        guard = cls._over(given, pools, on_event)
        made = pools["primary"].pool.kwargs
        if not callable(made):  # a function says it anew for each connection
            guard._core.dialect = cls._dialect({"kwargs": made})  # noqa: SLF001  one of its own
        return guard

    def connector(self, role: str = "primary") -> AsyncConnector:
        """Return what connects a pool of the application's: ``AsyncConnectionPool(connection_class=c.connection_class, check=c.check)``.

        role: ``primary`` or ``replica``. Each new connection goes to the present primary, or to a replica that is fit (where
        none is, to the primary, unless the guard says ``fallback: error``), and is asked who it is first. A connection to what
        is the primary no more, to a fenced node, or to a server that its name has left, is ended, whatever it is doing; `check`
        keeps the pool from handing it out. It can be called itself as well, where something takes a function that connects.
        What runs on them is the application's: nothing is repeated, routed or resolved. See `dbguard.Guard.connector`.

        Needs an open guard with nodes of its own whenever the pool connects. Raises `ValueError` for another role;
        `ConfigError` for a guard of wrapped pools.
        """
        from dbguard.pg.connector import AsyncConnector  # noqa: PLC0415  as the machinery

        return self._connecting(role, AsyncConnector)

    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments for the guard's own pools; a misspelt one is found now."""
        for name in arguments:
            if name in OF_POOLS:
                continue
            close = difflib.get_close_matches(name, OF_POOLS, n=1)
            if name in INSTEAD:
                why = f": {INSTEAD[name]}"
            elif close:
                why = f": did you mean {close[0]}?"
            elif hasattr(self._settings, name):
                why = f": it is a setting, as in {{'dsn': ..., '{name}': ...}}"
            else:
                why = " (nor of psycopg_pool's pools)"
            raise ConfigError(f"{name} is no argument of this guard{why}", path=name)
        return checked_sizes(arguments, self._settings)

    def _begin(self) -> Lifetime:
        # The machinery is loaded when it runs, as in `Guarding`.
        from dbguard.drivers.tokens import Tokens  # noqa: PLC0415  loaded when it runs
        from dbguard.pg.wiring import catalogue_over, wire  # noqa: PLC0415  loaded when it runs
        from dbguard.refresh import Refresh  # noqa: PLC0415  loaded when it runs

        settings = self._settings
        engine, monitor, own, dialers = wire(
            settings, self._arguments, self._wrapped, self._colour, wait=self._wait, stop=self._stop
        )
        read = catalogue_over(lambda: engine, dialers, settings.connection.connect_timeout)
        return self._lifetime(engine, monitor, own, Refresh(self._core.texts, read), Tokens)
