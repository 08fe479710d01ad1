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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Names"]

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

    async def has_left(self, host: str, address: str) -> bool:
        """Whether *host* leads to other addresses than *address* by now; looked up anew. No where it cannot be looked up."""
        try:
            return address not in await self.addresses(host)
        except OSError:
            return False

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
