"""Pipeline mode on a connection in the application's hands: what is queued there fails or ends together.

Transactions begin and end outside of it: the pipeline is left for that, and entered again.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dbguard.core.retry import Stake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.pg.held import Held

__all__ = ["Pipes"]


class Pipes:
    """The pipelines of one connection, which are one to the server.

    levels: how many the application has open. queued: what is at stake until they are synchronized.
    driver: psycopg's own; None: the connection is not in pipeline mode.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._block: Any = None
        self.levels = 0
        self.queued = Stake.READ
        self.driver: Any = None

    async def enter(self) -> None:
        """Enter pipeline mode, or synchronize where there is one."""
        await self._held.free()
        if self.levels:
            await self.synchronize()
        else:
            await self._into()
        self.levels += 1

    async def leave(self, error: BaseException | None) -> None:
        """Leave pipeline mode, and hear what became of what was queued. *error*: why, if it is left so."""
        if self.levels > 1:
            self.levels -= 1
            if error is None:
                await self.synchronize()
        elif self.levels:
            try:
                await self._out_of(error)
            finally:
                self.levels = 0

    async def end(self) -> None:
        """Leave pipeline mode altogether."""
        self.levels = min(self.levels, 1)
        await self.leave(None)

    async def synchronize(self) -> None:
        """Wait until the server has answered all that was queued."""
        line = self._held.line
        await self._held.do(lambda: line.run(self.driver.sync), self.queued)
        self.queued = Stake.READ

    @asynccontextmanager
    async def outside(self) -> AsyncIterator[None]:
        """Be outside pipeline mode for a while."""
        if self.driver is None:
            yield
            return
        try:
            await self._out_of(None)
            yield
        finally:
            if not self._held.session.closed:
                await self._into()

    async def _into(self) -> None:
        line = self._held.line
        block = self._block = self._held.raw.pipeline()
        self.driver = await line.run(block.__aenter__ if self._held.is_async else block.__enter__)

    async def _out_of(self, error: BaseException | None) -> None:
        held, block, queued = self._held, self._block, self.queued
        line, session = held.line, held.session
        leave = block.__aexit__ if held.is_async else block.__exit__
        if error is not None and not isinstance(error, Exception) and not session.closed:
            line.terminate()
        self.driver, self.queued = None, Stake.READ
        why = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        await held.do(lambda: line.run(leave, *why), queued if error is None else Stake.READ)
