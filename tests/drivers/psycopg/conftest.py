"""Both colours of psycopg: the same scenes, awaited as tasks, and run on threads beside the test's own loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from dbguard.drivers.psycopg.line import AsyncLine, SyncLine
from dbguard.runtime.colour import ASYNCIO, Threads, now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from dbguard.drivers.psycopg.line import Line

HOW = {"host": "127.0.0.1", "user": "postgres", "dbname": "postgres", "autocommit": True}


class Side:
    """One colour, and how a scene runs on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.threads = name == "threads"
        self.colour: Any = ASYNCIO
        if self.threads:
            self.colour = Threads(asyncio.get_running_loop(), threading.get_ident())
        self.line: type[Line] = SyncLine if self.threads else AsyncLine

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        """Let *work* run as a task, or on a thread of its own."""
        if not self.threads:
            return asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def run() -> None:
            try:
                value = now(work)
            except asyncio.CancelledError:
                loop.call_soon_threadsafe(done.cancel)
            except BaseException as error:  # noqa: BLE001  who waits for it judges it
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, value)

        threading.Thread(target=run, daemon=True).start()
        return done

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Let *work* run to its end."""
        return await self.start(work)

    async def dial(self, port: int, **how: Any) -> Any:
        """Connect as this colour does: what a pool is given to dial with."""
        if self.threads:
            return psycopg.Connection.connect(port=port, **(HOW | how))
        return await psycopg.AsyncConnection.connect(port=port, **(HOW | how))


@pytest.fixture(params=["asyncio", "threads"])
async def side(request: pytest.FixtureRequest) -> Side:
    """One colour."""
    return Side(request.param)


@pytest.fixture
async def make_line(side: Side) -> AsyncIterator[Callable[..., Any]]:
    """Dial a line to a port; closed at the end."""
    lines: list[Line] = []

    async def make(port: int, hear: Callable[[str | None], None] = lambda _: None, **how: Any) -> Line:
        line = side.line(await side.run(side.dial(port, **how)), hear)
        lines.append(line)
        return line

    yield make
    for line in lines:
        line.close()
