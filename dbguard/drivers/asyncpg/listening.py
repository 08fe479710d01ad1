"""Which channels a lent connection listens to, and word of it when it is lost: a server keeps no notification for later."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Listening"]


class Listening:
    """The channels of one connection.

    con: the driver's connection. say: called with the channels, in order, if it is lost while it listens.
    """

    __slots__ = ("_channels", "_con", "_say")

    def __init__(self, con: Any, say: Callable[[tuple[str, ...]], None]) -> None:
        self._con = con
        self._say = say
        self._channels: dict[str, set[Any]] = {}

    def begin(self, channel: str, callback: Any) -> None:
        """Note that *callback* listens to *channel*; on a connection that was lost meanwhile, it is told at once."""
        if self._con.is_closed():
            self._say((channel,))
            return
        if not self._channels:
            self._con.add_termination_listener(self._lost)
        self._channels.setdefault(channel, set()).add(callback)

    def end(self, channel: str, callback: Any) -> None:
        """Note that *callback* does so no longer."""
        callbacks = self._channels.get(channel, set())
        callbacks.discard(callback)
        if not callbacks and self._channels.pop(channel, None) is not None and not self._channels:
            self._forget()

    def stop(self) -> None:
        """Note that the application wants to hear nothing more. Of a connection that is lost already, it is still told."""
        if not self._con.is_closed():
            self._channels.clear()
            self._forget()

    def _forget(self) -> None:
        with contextlib.suppress(asyncpg.InterfaceError):  # of a pool that has it back: nobody calls us any more
            self._con.remove_termination_listener(self._lost)

    def _lost(self, _: Any) -> None:
        if self._channels:
            self._say(tuple(sorted(self._channels)))
            self._channels.clear()
