"""One test that speaks to tasks and threads alike."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.core.retry import Stake


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


def noted(session: Any) -> None:
    """Let *session* remember what was at stake in what is done on it, and how its transactions began."""
    do, begins = session.do, session.begins
    session.done, session.begun = [], []

    def doing(act: Any, stake: Stake, *args: Any, **extra: Any) -> Any:
        session.done.append(stake)
        return do(act, stake, *args, **extra)

    def beginning(*, read_only: bool) -> None:
        session.begun.append(read_only)
        begins(read_only=read_only)

    session.do, session.begins = doing, beginning
