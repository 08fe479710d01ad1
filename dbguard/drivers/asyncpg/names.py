"""Looking up names of hosts: in threads of their own, and with the last good addresses kept.

asyncio looks names up in the loop's default executor. A name server that does not answer fills it, and with it whatever
else the application does there; the end of `asyncio.run` waits for it, too. So each name is looked up by one thread of
ours at a time, which nobody waits for longer than for the dial itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Names", "NamingLoop"]

PATIENCE = 0.25
"""Seconds that a dial waits for a name's addresses where it knows the last ones: longer than a healthy name server takes,
and short beside the time that a dial has."""


class Names:
    """The addresses of names, as they are needed on one event loop."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}
        self._asked: dict[str, asyncio.Future[tuple[str, ...] | Exception]] = {}

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of *host*; the last good ones where it cannot be looked up, or not soon.

        Raises what `socket.getaddrinfo` raises. May wait for ever for a name that was never known: the caller bounds it.
        """
        if _is_address(host):
            return (host,)
        asked = self._asked.get(host) or self._ask(host)
        known = self._known.get(host)
        await asyncio.wait({asked}, timeout=None if known is None else PATIENCE)
        said = asked.result() if asked.done() else known
        if isinstance(said, tuple):
            return said
        if known is not None:
            return known
        assert said is not None  # noqa: S101  where nothing is known, the answer was waited for
        raise said

    def _ask(self, host: str) -> asyncio.Future[tuple[str, ...] | Exception]:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[tuple[str, ...] | Exception] = loop.create_future()
        self._asked[host] = asked

        def hear(said: tuple[str, ...] | Exception) -> None:
            del self._asked[host]
            if isinstance(said, tuple):
                self._known[host] = said
            asked.set_result(said)

        threading.Thread(target=_look_up, args=(loop, host, hear), name=f"dbguard name {host}", daemon=True).start()
        return asked


class NamingLoop:
    """An event loop as asyncpg needs it, on which names are looked up by *names*.

    reached: the name that was dialled last, and which of its addresses answered; None: no name was dialled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, names: Names) -> None:
        self._loop = loop
        self._names = names
        self.reached: tuple[str, str] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
        """As the loop's own; the addresses of a name are tried one after the other. Raises what the first one raised."""
        if not isinstance(host, str):
            return await self._loop.create_connection(factory, host, port, **more)
        if more.get("ssl"):
            more.setdefault("server_hostname", host)
        first: OSError | None = None
        for address in await self._names.addresses(host):
            try:
                made = await self._loop.create_connection(factory, address, port, **more)
            except OSError as error:
                first = first or error
            else:
                self.reached = (host, address) if address != host else None
                return made
        raise first or OSError(f"{host} has no address")


def _look_up(loop: asyncio.AbstractEventLoop, host: str, hear: Callable[[tuple[str, ...] | Exception], None]) -> None:
    said: tuple[str, ...] | Exception
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        said = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    except Exception as error:  # noqa: BLE001  handed to who waits, and raised there
        said = error
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits any more
        loop.call_soon_threadsafe(hear, said)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
