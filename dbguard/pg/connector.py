"""`guard.connector(role)` over psycopg: for pools of psycopg_pool, and whatever else takes a function that connects."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dbguard.connecting import BaseConnector
from dbguard.drivers.probe import ask, sighting
from dbguard.drivers.psycopg.connection import DriverAsyncConnection, DriverConnection, InterfaceError
from dbguard.drivers.psycopg.cord import Cord
from dbguard.drivers.psycopg.dial import own_dialer
from dbguard.drivers.psycopg.line import AsyncLine, SyncLine
from dbguard.errors import ConfigError
from dbguard.login import libpq_keywords
from dbguard.runtime.colour import now
from dbguard.runtime.flights import Flight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.config.settings import Settings
    from dbguard.core.route import Node
    from dbguard.core.topology import Sighting
    from dbguard.runtime.engine import Engine

__all__ = ["AsyncConnector", "SyncConnector"]

PLACES = ("host", "hostaddr", "port", "service", "target_session_attrs")

ELSEWHERE = "the connection leads where it should not by now"


class _Kind:
    """A class of connections, as a dialer asks for it: *made*, by the `connect` of its parent, which is the driver's."""

    def __init__(self, made: Any, parent: Any) -> None:
        self.connect = partial(parent.connect.__func__, made)


class _PsycopgConnector(BaseConnector):
    """Makes connections for one role; made by the guard, and called by the application's pool."""

    parent: Any

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
        self._settings = settings
        self._given = dict(arguments.get("kwargs") or {})
        self._base = arguments.get("connection_class") or self.parent
        self._within_dial = settings.connection.connect_timeout
        super().__init__(role, engine=engine, within=within, fallback=fallback)

    def _begin(self) -> None:
        super()._begin()
        connection = self._settings.connection
        aside = self.parent is DriverConnection
        self._dialers = {
            node.name: own_dialer(libpq_keywords(connection, node), connection.server_settings, aside=aside)
            for node in self._settings.nodes
        }

    def _checked(self, conninfo: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return what is given to each dial. Raises `ConfigError` for an address, which is the guard's to choose."""
        addressed = [name for name in PLACES if given.get(name) is not None]
        if conninfo or addressed:
            what = "a conninfo" if conninfo else " and ".join(addressed)
            raise ConfigError(f"the guard chooses the address: give guard.connector(...) no {what}")
        return {**self._given, **given}

    async def _ask(self, engine: Engine, con: Any, node: Node) -> Sighting:
        line = self._line(con)
        flight = Flight(engine.state.clock() + self._within_dial, None, cancels=False)
        flight.lease = _Ended(line)
        engine.flights.add(flight)
        try:
            at = engine.state.clock()
            return sighting(await ask(line, timeout=None), node.name, at, fresh=True)
        finally:
            engine.flights.remove(flight)
            line.leave(lambda: None)
            if not con.autocommit:
                await self._rolled_back(con)

    def _line(self, con: Any) -> Any:
        raise NotImplementedError

    async def _rolled_back(self, con: Any) -> None:
        """End the transaction in which the server was asked."""
        raise NotImplementedError

    def _hold(self, con: Any) -> Cord:
        return Cord(con.pgconn.socket)

    def _is_closed(self, con: Any) -> bool:
        return bool(con.closed)

    def serves(self, con: Any) -> bool:
        """See `BaseConnector.serves`; psycopg does not notice that an idle connection has ended, so that is looked at as well."""
        made = self._made.get(con)
        hold: Any = None if made is None else made.hold
        return hold is not None and not hold.hangs_loose() and super().serves(con)


class _Ended:
    """What the sweep ends when a server does not say in time who it is."""

    def __init__(self, line: Any) -> None:
        self.end = line.terminate


class AsyncConnector(_PsycopgConnector):
    """Connections of `psycopg.AsyncConnection`. Call it, or give a pool its `connection_class` and its `check`."""

    parent = DriverAsyncConnection

    async def __call__(self, conninfo: str = "", **given: Any) -> Any:
        """Open a connection, as `psycopg.AsyncConnection.connect`; what is given wins over the guard's configuration.

        Raises `ConfigError` for an address; `NoPrimary` or `NoReplica` if there was none in time; else what psycopg raised
        last.
        """
        return await self._connect(self._checked(conninfo, given))

    async def check(self, con: Any) -> None:
        """See `SyncConnector.check`."""
        if not self.serves(con):
            await con.close()
            raise InterfaceError(ELSEWHERE)

    @property
    def connection_class(self) -> type[Any]:
        """The class to give a pool: ``AsyncConnectionPool(connection_class=connector.connection_class)``."""
        connector = self

        class Connected(self._base):  # type: ignore[misc,name-defined]  # the application's own class, or psycopg's
            @classmethod
            async def connect(cls, conninfo: str = "", **given: Any) -> Any:
                return await connector(conninfo, kind=_Kind(cls, connector._base), **given)

        return Connected

    async def _reach(self, node: Node, given: dict[str, Any]) -> Any:
        return await self._dialers[node.name].connect(timeout=self._within_dial, **{"kind": self._base, **given})

    def _line(self, con: Any) -> Any:
        return AsyncLine(con, lambda _: None)

    async def _rolled_back(self, con: Any) -> None:
        await con.rollback()


class SyncConnector(_PsycopgConnector):
    """Connections of `psycopg.Connection`. Call it, or give a pool its `connection_class` and its `check`."""

    parent = DriverConnection

    def __call__(self, conninfo: str = "", **given: Any) -> Any:
        """Open a connection, as `psycopg.Connection.connect`; what is given wins over the guard's configuration.

        Raises `ConfigError` for an address; `NoPrimary` or `NoReplica` if there was none in time; else what psycopg raised
        last.
        """
        return now(self._connect(self._checked(conninfo, given)))

    def check(self, con: Any) -> None:
        """Look whether a connection may be handed out, without asking its server: ``ConnectionPool(check=connector.check)``.

        psycopg does not notice that an idle connection was ended, by the guard or by the server. One that may not is
        closed; raises `psycopg.InterfaceError` then, upon which the pool takes another one.
        """
        if not self.serves(con):
            con.close()
            raise InterfaceError(ELSEWHERE)

    @property
    def connection_class(self) -> type[Any]:
        """The class to give a pool: ``ConnectionPool(connection_class=connector.connection_class)``."""
        connector = self

        class Connected(self._base):  # type: ignore[misc,name-defined]  # the application's own class, or psycopg's
            @classmethod
            def connect(cls, conninfo: str = "", **given: Any) -> Any:
                return connector(conninfo, kind=_Kind(cls, connector._base), **given)

        return Connected

    async def _reach(self, node: Node, given: dict[str, Any]) -> Any:
        elsewhere = self._engine().colour.elsewhere
        return await self._dialers[node.name].connect_blocking(
            elsewhere, timeout=self._within_dial, **{"kind": self._base, **given}
        )

    def _line(self, con: Any) -> Any:
        return SyncLine(con, lambda _: None)

    async def _rolled_back(self, con: Any) -> None:
        con.rollback()
