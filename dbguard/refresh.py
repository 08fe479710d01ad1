"""Keeps the set of plain relations fresh: at the start, every minute, and soon after DDL was seen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from dbguard.drivers.catalogue import read_catalogue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.calls import Calls
    from dbguard.core.catalogue import Catalogue
    from dbguard.texts import Texts

__all__ = ["EVERY", "Refresh", "over_calls"]

EVERY = 60.0
"""Seconds between two readings: how long DDL of other processes may go unnoticed."""

SOON = 0.2
"""Seconds after DDL of our own: several statements of one migration cost one reading."""

READ_WITHIN = 10.0
"""Seconds each question to the catalogue may take."""

FIRST_WITHIN = 1.0
"""Seconds that opening a guard waits for the first reading; without a primary there is none, and nothing to wait for."""

log = logging.getLogger("dbguard")


AGAIN = 1.0
"""Seconds after a reading that failed: without a primary each waits for one, within its call's deadline."""


class Refresh:
    """Reads the catalogue in the background.

    read: reads it now; None if there is too much of it. Raises what the driver raises.
    """

    def __init__(self, texts: Texts, read: Callable[[], Awaitable[Catalogue | None]]) -> None:
        self._texts = texts
        self._read_now = read
        self._task: asyncio.Task[None] | None = None
        self._read = asyncio.Event()

    async def start(self, *, wait: bool) -> None:
        """Begin; with *wait*, give the first reading a moment, so that the first statements are known for what they are."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def announce() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed without the guard: nobody reads any more
                loop.call_soon_threadsafe(changed.set)

        self._texts.changed()  # what was read in another time in which the guard was open may be long past
        self._texts.announce = announce
        self._task = loop.create_task(self._run(changed), name="dbguard catalogue")
        if not wait:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_WITHIN):
                await self._read.wait()

    def cancel(self) -> None:
        """Stop; the task ends by itself."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Stop, and wait for the task to end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def once(self) -> None:
        """Read the catalogue now. What DDL changed meanwhile is not trusted. Raises what the driver raises."""
        version = self._texts.version
        catalogue = await self._read_now()
        if catalogue is not None:
            self._texts.trust(catalogue, version)

    async def _run(self, changed: asyncio.Event) -> None:
        while True:
            pause = EVERY
            try:
                await self.once()
            except Exception as error:  # noqa: BLE001  without it connections are reset, as in any pool
                log.debug("the catalogue could not be read: %s", type(error).__name__)
                pause = AGAIN
            self._read.set()
            try:
                async with asyncio.timeout(pause):
                    await changed.wait()
            except TimeoutError:
                continue
            changed.clear()
            await asyncio.sleep(SOON)


def over_calls(calls: Calls) -> Callable[[], Awaitable[Catalogue | None]]:
    """Return what reads the catalogue over a connection of *calls*, a guard's: its settings (``init=``, search path) count."""

    async def read() -> Catalogue | None:
        # In a context of its own, so that nobody's reads are kept on the primary by it.
        async with calls.causal(), calls.acquire() as con:
            return await read_catalogue(con, timeout=READ_WITHIN)

    return read
