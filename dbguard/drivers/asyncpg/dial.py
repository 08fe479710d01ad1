"""Opening connections to one node: for its pool, and for the monitor."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.drivers.asyncpg.connection import connection_class
from dbguard.drivers.asyncpg.naming import NamingLoop
from dbguard.drivers.asyncpg.tls import unusable_file
from dbguard.drivers.names import Names
from dbguard.drivers.server_settings import SERVER_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["Dialer", "hear_what_is_left", "known_arguments"]

POOL_ARGUMENTS = frozenset({"init", "setup", "reset", "max_queries", "max_inactive_connection_lifetime"})
"""Arguments of `asyncpg.create_pool` that its connections never see."""

OWN_ARGUMENTS = frozenset({"min_size", "max_size", "init_size", "connect", "connection_class", "record_class", "loop"})
"""Arguments that are answered here, or by the guard's own pool."""


def known_arguments() -> frozenset[str]:
    """Return what `asyncpg.create_pool` and `asyncpg.connect` take by name."""
    names = {*inspect.signature(asyncpg.create_pool).parameters, *inspect.signature(asyncpg.connect).parameters}
    return frozenset(names - {"connect_kwargs"})


class Dialer:
    """Opens connections to one node.

    connect: arguments of `asyncpg.connect` for this node. arguments: what the application gave, in the words of
    `asyncpg.create_pool`; they win.
    """

    def __init__(self, connect: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self._dial: Callable[..., Awaitable[Any]] = arguments.get("connect") or self._connect_by_name
        self._names = Names()
        self._class = connection_class(arguments.get("connection_class") or asyncpg.Connection)
        self._record = arguments.get("record_class") or asyncpg.Record
        self._pool = {name: value for name, value in arguments.items() if name in POOL_ARGUMENTS}
        skip = POOL_ARGUMENTS | OWN_ARGUMENTS
        self._connect = {**connect, **{name: value for name, value in arguments.items() if name not in skip}}
        self._own_settings: dict[str, str] = dict(self._connect.pop("server_settings", None) or {})
        self._plain = False
        self._reached: weakref.WeakKeyDictionary[Any, tuple[str, str]] = weakref.WeakKeyDictionary()

    def pool(self, size: int, connect: Callable[..., Awaitable[Any]], **hooks: Any) -> asyncpg.Pool[Any]:
        """Make the node's pool; it dials by *connect*, and nothing before it is asked to.

        hooks: `init` and `setup`, in the place of the application's own.
        """
        make: Any = asyncpg.create_pool  # its overloads do not know arguments that are passed through
        opened: asyncpg.Pool[Any] = make(
            min_size=0,
            max_size=size,
            connect=connect,
            connection_class=self._class,
            record_class=self._record,
            **{**self._pool, **hooks},
            **self._connect,
        )
        return opened

    async def dial(self, *args: Any, **kwargs: Any) -> Any:
        """Open a connection, as `asyncpg.connect` does.

        A proxy that refuses what the server is told at connecting (PgBouncer does) is not told any more. Raises
        `asyncpg.ClientConfigurationError` where a file that TLS needs cannot be used.
        """
        own = {**self._own_settings, **(kwargs.pop("server_settings", None) or {})}
        try:
            if not self._plain:
                told = {**SERVER_SETTINGS, **own}
                try:
                    return await self._dial(*args, server_settings=told, **kwargs)
                except asyncpg.ProtocolViolationError:
                    self._plain = True
            return await self._dial(*args, server_settings=own or None, **kwargs)
        except (asyncio.CancelledError, TimeoutError) as error:
            hear_what_is_left(error)
            raise
        except OSError as error:
            wrong = unusable_file(error, self._connect.get("dsn"))
            if wrong is None:
                raise
            raise wrong from error

    async def _connect_by_name(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["loop"] = loop = NamingLoop(asyncio.get_running_loop(), self._names)
        con = await asyncpg.connect(*args, **kwargs)
        if loop.reached is not None:
            self._reached[con] = loop.reached
        return con

    async def strayed(self, con: Any) -> bool:
        """Whether the name by which *con* was dialled leads to other addresses by now; looked up anew.

        No where there was no name, where another one than ours has dialled, or where the name cannot be looked up.
        """
        reached = self._reached.get(con)
        return reached is not None and await self._names.has_left(*reached)

    async def connect(self, given: Mapping[str, Any]) -> Any:
        """Open a connection for a pool of the application's; what that gives wins."""
        return await self.dial(**{**self._connect, **given})

    async def control(self, *, timeout: float) -> Any:
        """Open the monitor's connection."""
        known = {name: value for name, value in self._connect.items() if name not in ("timeout", "command_timeout")}
        return await self.dial(timeout=timeout, command_timeout=timeout, **known)

    async def registry(self, *, timeout: float) -> Any:
        """Open a connection for claims. asyncpg sets no limit to what is run on it, since it would cancel a commit."""
        known = {name: value for name, value in self._connect.items() if name not in ("timeout", "command_timeout")}
        return await self.dial(timeout=timeout, **known)


def hear_what_is_left(error: BaseException | None) -> None:
    """Take note of how the futures end that a dial cut short by *error* has left: nobody awaits them any more.

    asyncpg makes one for the server's answer about TLS and, before 0.32, one for the login, and forgets them where it is
    cancelled while the socket connects. They fail as that socket is closed, and asyncio would complain of exceptions
    that were never retrieved. All there is to know is known: the dial was cut short. The futures are found in the frames
    of the dial and in the protocol that waits there; no others are touched.
    """
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            for left in trace.tb_frame.f_locals.values():
                waiting = (
                    vars(left).values() if isinstance(left, asyncio.Protocol) and hasattr(left, "__dict__") else (left,)
                )
                for future in waiting:
                    if asyncio.isfuture(future):
                        future.add_done_callback(_heard)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__


def _heard(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
