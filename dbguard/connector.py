"""`guard.connector(role)` over asyncpg: ``asyncpg.create_pool(connect=guard.connector("primary"))``."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from dbguard.connecting import BaseConnector
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.drivers.probe import ask, sighting
from dbguard.errors import ConfigError
from dbguard.wiring import connect_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.config.settings import Settings
    from dbguard.connecting import Hold
    from dbguard.core.route import Node
    from dbguard.core.topology import Sighting
    from dbguard.runtime.engine import Engine

__all__ = ["Connector"]


class Connector(BaseConnector):
    """Makes connections for one role; made by `Guard.connector`, and called by the application's pool.

    *timeout* of the pool's own counts where it is shorter than the guard's.
    """

    def __init__(
        self,
        role: str,
        settings: Settings,
        arguments: Mapping[str, Any],
        *,
        engine: Callable[[], Engine],
        within: float,
        fallback: bool,
    ) -> None:
        self._ask_within = settings.connection.connect_timeout
        self._settings = settings
        self._arguments = arguments
        super().__init__(role, engine=engine, within=within, fallback=fallback)

    def _begin(self) -> None:
        super()._begin()
        connection, nodes = self._settings.connection, self._settings.nodes
        self._dialers = {node.name: Dialer(connect_arguments(connection, node), self._arguments) for node in nodes}

    async def __call__(self, dsn: str | None = None, **given: Any) -> Any:
        """Open a connection, as `asyncpg.connect`; what the pool gives wins over the guard's configuration.

        Raises `ConfigError` for an address, which is the guard's to choose; `NoPrimary` or `NoReplica` if there was none
        in time; else what asyncpg raised last.
        """
        addressed = [name for name in ("host", "port") if given.get(name) is not None]
        if dsn is not None or addressed:
            what = "a DSN" if dsn is not None else " and ".join(addressed)
            raise ConfigError(
                f"the guard chooses the address: give create_pool(connect=guard.connector(...)) not {what}"
            )
        given.pop("loop", None)  # the guard's own looks names up
        return await self._connect(given, given.get("timeout"))

    async def _reach(self, node: Node, given: dict[str, Any]) -> Any:
        return await self._dialers[node.name].connect(given)

    async def _ask(self, engine: Engine, con: Any, node: Node) -> Sighting:
        at = engine.state.clock()
        return sighting(await ask(con, timeout=self._ask_within), node.name, at, fresh=True)

    def _hold(self, con: Any) -> Hold:
        return _Held(con)

    def _is_closed(self, con: Any) -> bool:
        return bool(con.is_closed())


class _Held:
    """A connection of asyncpg's, which ends by itself; only known weakly, so that one that is dropped is collected."""

    def __init__(self, con: Any) -> None:
        self._con = weakref.ref(con)

    def cut(self) -> None:
        """See `Hold.cut`."""
        con = self._con()
        if con is not None:
            con.terminate()

    def close(self) -> None:
        """See `Hold.close`: nothing of it is held."""
