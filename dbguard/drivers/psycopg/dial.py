"""Opening connections of psycopg's to one node: for its pool, for the monitor, and for claims.

A pool of the application's tells how it connects, unlike asyncpg's. So the monitor and the claims dial by themselves there,
as they do for the guard's own pools, and nothing has to be borrowed from it: whether the pool has a connection to spare
says nothing about the node, and `control.OwnControl` serves both. Where the pool's address follows the primary, a new
connection is led to it as the pool's own are.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dbguard.drivers.names import Names
from dbguard.drivers.psycopg.asking import is_new, learn
from dbguard.drivers.psycopg.speaker import Speaker, records
from dbguard.drivers.server_settings import SERVER_SETTINGS
from dbguard.forked import dialled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping

    from dbguard.drivers.psycopg.line import Row

__all__ = ["OF_CONNECT", "Dialer", "dialer_of_pool", "of_tasks", "own_dialer"]

OF_CONNECT = frozenset({"autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory"})
"""Arguments of `psycopg.AsyncConnection.connect` that are no parameters of libpq's."""

AS_PARAMETERS = ("application_name", "client_encoding")
"""Settings of the server that libpq has parameters for."""

_REFUSED = "unsupported startup parameter"
"""How PgBouncer refuses what it is told at connecting; its messages are not translated."""

_AT_LEAST = 2
"""Seconds, whole ones, below which libpq sets no limit (`connectDBComplete` in fe-connect.c)."""


class Dialer:
    """Opens connections to one node.

    say: returns what libpq is told, by its own names; it is given whether that is to be as little as possible.
    kind: the class of the connections.
    """

    def __init__(
        self,
        say: Callable[[bool], Awaitable[Mapping[str, Any]]],
        *,
        kind: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection,
    ) -> None:
        self._say = say
        self._kind = kind
        self._names = Names()
        self._plain = False

    async def parameters(self) -> dict[str, Any]:
        """Return what libpq is to be told now, by its own names: with addresses for names of hosts, and secrets in clear.

        Waits as long as a name server, or a function of the application's, takes: the caller bounds it. Raises what that
        function raises, `OSError` for a name that cannot be looked up, and `psycopg.ProgrammingError` for what cannot be read.
        """
        said = dict(await self._say(self._plain))
        return {**said, **await self._addressed(said)}

    def may_tell_less(self, error: BaseException) -> bool:
        """Take in how a dial has failed; return whether the next one tells the server less, and may succeed by that."""
        if self._plain or not isinstance(error, psycopg.OperationalError) or _REFUSED not in str(error):
            return False
        self._plain = True
        return True

    async def connect(
        self, *, timeout: float, kind: type[psycopg.AsyncConnection[Any]] | None = None, **arguments: Any
    ) -> psycopg.AsyncConnection[Any]:
        """Open a connection, as `psycopg.AsyncConnection.connect` does; *arguments* are its own, and win.

        kind: its class; None: the dialer's.

        Raises TimeoutError after *timeout* seconds, names looked up, TLS and login included; else what `parameters` and
        psycopg raise.
        """
        async with asyncio.timeout(timeout):
            try:
                return await self._connect(timeout, kind, arguments)
            except psycopg.OperationalError as error:
                if not self.may_tell_less(error):
                    raise
            return await self._connect(timeout, kind, arguments)

    async def control(self, *, timeout: float) -> Speaker:
        """Open the monitor's connection; each statement on it may take *timeout* seconds, too."""
        return await self._speaker(timeout, limit=timeout)

    async def registry(self, *, timeout: float) -> Speaker:
        """Open a connection for claims, without a limit on what is run on it."""
        return await self._speaker(timeout, limit=None)

    async def strayed(self, speaker: Speaker) -> bool:
        """Whether the name by which *speaker* was dialled leads to other addresses by now; looked up anew.

        No where there was no name, or where it cannot be looked up.
        """
        return speaker.reached is not None and await self._names.has_left(*speaker.reached)

    async def _speaker(self, timeout: float, *, limit: float | None) -> Speaker:
        con: psycopg.AsyncConnection[Row] = await self.connect(
            timeout=timeout,
            autocommit=True,
            prepare_threshold=None,
            cursor_factory=psycopg.AsyncRawCursor,
            row_factory=records,
            client_encoding="UTF8",
        )
        told = con.info.get_parameters()
        host, address = told.get("host", ""), told.get("hostaddr", "")
        return Speaker(con, timeout=limit, reached=(host, address) if address not in ("", host) else None)

    async def _connect(
        self, timeout: float, kind: type[psycopg.AsyncConnection[Any]] | None, arguments: Mapping[str, Any]
    ) -> psycopg.AsyncConnection[Any]:
        said = await self.parameters()
        try:
            with _ends_with_its_error():
                con = await (kind or self._kind).connect(**{**_limited(said, timeout), **arguments})
        except psycopg.OperationalError as error:
            if _REFUSED not in str(error) and is_new(error):
                await _aside(partial(learn, error, make_conninfo("", **said), timeout=timeout))
            raise
        dialled(con.fileno())
        return con

    async def connect_blocking(
        self,
        on_loop: Callable[[Coroutine[Any, Any, dict[str, Any]]], Awaitable[dict[str, Any]]],
        *,
        timeout: float,
        kind: type[psycopg.Connection[Any]] | None = None,
        **arguments: Any,
    ) -> psycopg.Connection[Any]:
        """Open a connection as `psycopg.Connection.connect` does, on a thread that it may block.

        on_loop: waits for what needs the event loop, such as looking up names. timeout: seconds, for that, and again for what
            psycopg does, which takes whole ones and at least two for each address. kind: its class; None: psycopg's own.
        Raises as `connect` does, and `psycopg.errors.ConnectionTimeout` where psycopg was too slow.
        """

        async def connect() -> psycopg.Connection[Any]:
            said = await on_loop(self._parameters_within(timeout))
            with _ends_with_its_error():
                con = (kind or psycopg.Connection).connect(**{**_limited(said, timeout), **arguments})
            dialled(con.fileno())
            return con

        try:
            return await connect()
        except psycopg.OperationalError as error:
            if not self.may_tell_less(error):
                raise
        return await connect()

    async def _parameters_within(self, timeout: float) -> dict[str, Any]:
        async with asyncio.timeout(timeout):
            return await self.parameters()

    async def _addressed(self, said: Mapping[str, Any]) -> dict[str, str]:
        """Return the hosts and ports once more, with the addresses of each; they are tried in that order.

        Left to itself, psycopg looks names up in the loop's default executor, which a name server that hangs fills up.
        """
        hosts = str(said.get("host") or "").split(",")
        ports = str(said.get("port") or "").split(",")
        if said.get("hostaddr") or len(ports) not in (1, len(hosts)):
            return {}
        found: list[tuple[str, str, str]] = []
        failed: OSError | None = None
        for place, host in enumerate(hosts):
            try:
                addresses = ("",) if not host or host.startswith("/") else await self._names.addresses(host)
            except OSError as error:
                failed = failed or error
                continue
            found += [(host, address, ports[place % len(ports)]) for address in addresses]
        if not found:
            raise failed or OSError("the name of its host has no address")
        names = ("host", "hostaddr", "port")
        return {
            name: ",".join(values) for name, values in zip(names, zip(*found, strict=True), strict=True) if any(values)
        }


def own_dialer(
    keywords: Mapping[str, Any],
    server_settings: Mapping[str, str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    kind: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection,
    aside: bool = False,
) -> Dialer:
    """Return the dialer for a node of the guard's own.

    keywords: parameters of libpq's, with host and port; their values may be functions, plain or async, which are asked at each
    dial. aside: plain ones are called in threads, for the loop is shared by all nodes, and is not the application's.
    server_settings: the application's, which win over `SERVER_SETTINGS`. kwargs: what it gave in the words of
    `psycopg.AsyncConnection.connect`, of which parameters of libpq's win over all of these. kind: the class of the connections.

    A proxy that refuses what a server is told at connecting (PgBouncer does) is not told any more, but for what the
    application says itself.
    """
    given = {name: value for name, value in (kwargs or {}).items() if name not in OF_CONNECT}

    async def say(plain: bool) -> dict[str, Any]:  # noqa: FBT001  as Dialer calls it
        told = _as_parameters(dict(server_settings) if plain else {**SERVER_SETTINGS, **server_settings})
        # PGTARGETSESSIONATTRS and PGHOSTADDR are not for nodes: which server it should be is said, its role is found out.
        said = {"target_session_attrs": "any", "hostaddr": "", **keywords, **told, **given}
        if "options" in told and "options" in given:
            said["options"] = f"{told['options']} {given['options']}"
        return {name: await _called(value, aside=aside) for name, value in said.items()}

    return Dialer(say, kind=kind)


def dialer_of_pool(pool: Any) -> Dialer:
    """Return the dialer that goes where *pool*, a `psycopg_pool` of either colour, goes; as the pool logs in.

    What it has as functions (psycopg_pool 3.3) is asked at each dial, for a pool of threads in a thread.
    """
    mine = issubclass(pool.connection_class, psycopg.AsyncConnection)

    async def say(_: bool) -> dict[str, Any]:  # noqa: FBT001  as Dialer calls it
        conninfo = await _called(pool.conninfo, aside=not mine) or ""
        arguments = await _called(pool.kwargs, aside=not mine) or {}
        try:
            said = conninfo_to_dict(conninfo, **{name: arguments[name] for name in arguments.keys() - OF_CONNECT})
        except psycopg.ProgrammingError:
            pass
        else:
            environment = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT"}
            return {**{name: os.environ[key] for name, key in environment.items() if key in os.environ}, **said}
        # libpq's own words repeat what it could not read, which may be a part of the password.
        raise psycopg.ProgrammingError("the conninfo of the pool cannot be read")

    return Dialer(say, kind=of_tasks(pool.connection_class))


def of_tasks(kind: type[Any] | None) -> type[psycopg.AsyncConnection[Any]]:
    """Return the class of connections with which monitor and claims dial, where the application's own dial with *kind*.

    The same, since it may know how to log in; psycopg's own beside one that is for threads, or none.
    """
    return kind if kind is not None and issubclass(kind, psycopg.AsyncConnection) else psycopg.AsyncConnection


@contextmanager
def _ends_with_its_error() -> Iterator[None]:
    """Close what psycopg has begun to connect where it fails, is too late, or is cancelled: it does not do so itself.

    The half-made connection ends when nobody refers to it, and the frames of the error do, for as long as anybody keeps that:
    a task that was cancelled does, and so does an application that keeps what it was told. The server meanwhile may have let
    the session in. So these frames, all of which have ended, forget what they hold.
    """
    handled = sys.exception()
    try:
        yield
    except BaseException as error:
        left: BaseException | None = error
        cleared: set[BaseException] = set()
        while left is not None and left is not handled and left not in cleared:
            traceback.clear_frames(left.__traceback__)
            cleared.add(left)
            left = left.__cause__ or left.__context__
        raise


def _limited(said: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Return *said* with a limit in seconds for each address: whole ones, so that one that is silent leaves the others some."""
    each = math.ceil(timeout / (1 + str(said.get("hostaddr", "")).count(",")))
    return {**said, "connect_timeout": max(_AT_LEAST, each)}


def _as_parameters(settings: Mapping[str, str]) -> dict[str, str]:
    """Return settings of the server as parameters of libpq's."""
    said = {name: settings[name] for name in AS_PARAMETERS if name in settings}
    given = [settings["options"]] if "options" in settings else []
    rest = settings.keys() - {*AS_PARAMETERS, "options"}
    options = " ".join([*given, *(f"-c {_escaped(f'{name}={settings[name]}')}" for name in sorted(rest))])
    return {**said, "options": options} if options else said


def _escaped(text: str) -> str:
    """Return one argument as PostgreSQL reads it in its options: a backslash before each space, and each backslash."""
    return "".join(f"\\{char}" if char == "\\" or char.isspace() else char for char in text)


async def _called(value: Any, *, aside: bool) -> Any:
    """Return *value*, or what it returns if it is a function, plain or async."""
    if not callable(value):
        return value
    said = await _aside(value) if aside and not inspect.iscoroutinefunction(value) else value()
    return await said if inspect.isawaitable(said) else said


async def _aside(function: Callable[[], Any]) -> Any:
    """Call *function*, which may block, in a thread of its own, which nobody waits for longer than for the dial."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[Any] = loop.create_future()

    def hear(said: Any, error: BaseException | None) -> None:
        if told.done():
            return
        if error is None:
            told.set_result(said)
        else:
            told.set_exception(error)

    def run() -> None:
        said, failed = None, None
        try:
            said = function()
        except Exception as error:  # noqa: BLE001  handed to who waits, and raised there
            failed = error
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(hear, said, failed)

    threading.Thread(target=run, name="dbguard login", daemon=True).start()
    return await told
