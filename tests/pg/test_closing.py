"""Guards that are closed while they dial: no session of theirs is left on a server that answers later."""

from __future__ import annotations

import asyncio
import gc
import inspect
from typing import TYPE_CHECKING, Any

import pytest

import dbguard
from dbguard.testing.relay import StreamServer
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable


async def off_loop(method: Callable[[], Any]) -> Any:
    """Call a method of a guard: one that blocks, in a thread."""
    return await method() if inspect.iscoroutinefunction(method) else await asyncio.to_thread(method)


@pytest.mark.parametrize("kind", [dbguard.Guard, dbguard.PsycopgGuard, dbguard.SyncGuard])
async def test_a_guard_that_is_closed_while_it_dials_leaves_no_connection_behind(
    kind: type[Any], configured: dict[str, Any]
) -> None:
    lines: set[asyncio.StreamReader] = set()
    dialled = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        lines.add(reader)
        dialled.set()
        try:
            await reader.read()  # until its end
        finally:
            lines.remove(reader)

    async with StreamServer(say_nothing) as silent:
        node = {"name": "b", "host": "127.0.0.1", "port": silent.port}
        guard = kind(configured | {"nodes": [*configured["nodes"], node], "probe": {"timeout": "1s"}})
        await off_loop(guard.open)
        dialled.clear()
        await dialled.wait()
        gc.disable()  # who keeps a guard that is closed, keeps all that it refers to
        try:
            await off_loop(guard.close)
            await until(lambda: not lines)
        finally:
            gc.enable()
