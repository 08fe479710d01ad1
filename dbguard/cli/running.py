"""Running a coroutine for a command, without words on the terminal that are nobody's concern."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["run"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in a loop of its own, as `asyncio.run` does.

    asyncpg leaves a future with an exception behind where a dial is cancelled before its first byte (0.32,
    ``TLSUpgradeProto``), and asyncio would tell the user of it at exit. That one is not told.
    """

    async def quietly() -> T:
        asyncio.get_running_loop().set_exception_handler(_tell)
        return await work

    return asyncio.run(quietly())


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if not (isinstance(error, ConnectionError) and str(error) == "unexpected connection_lost() call"):
        loop.default_exception_handler(context)
