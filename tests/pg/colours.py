"""One test that speaks to tasks and threads alike."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def got(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def block(manager: Any) -> AsyncIterator[Any]:
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


async def each(values: Any) -> list[Any]:
    return [value async for value in values] if hasattr(values, "__aiter__") else list(values)
