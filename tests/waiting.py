"""Waiting for what a test needs to see, never for time alone."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


async def until(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Wait until *condition*, plain or async, gives something true, and return that; fails after *timeout* seconds.

    Far more than anything takes, since nothing is awaited that may not come: a machine may stand still for seconds.
    """
    async with asyncio.timeout(timeout):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)
