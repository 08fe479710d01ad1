"""An event loop on which asyncpg's dials find names by `Names`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.forked import dialled

if TYPE_CHECKING:
    import asyncio

    from dbguard.drivers.names import Names

__all__ = ["NamingLoop"]


class NamingLoop:
    """An event loop as asyncpg needs it, on which names are looked up by *names*, and each new socket is noted.

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
            return _noted(await self._loop.create_connection(factory, host, port, **more))
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
                return _noted(made)
        raise first or OSError(f"{host} has no address")

    async def create_unix_connection(self, factory: Any, path: Any = None, **more: Any) -> Any:
        """As the loop's own."""
        return _noted(await self._loop.create_unix_connection(factory, path, **more))


def _noted(made: Any) -> Any:
    """Return *made*, a transport and its protocol, whose socket a forked child must not use."""
    dialled(made[0].get_extra_info("socket").fileno())
    return made
