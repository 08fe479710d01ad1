"""The clients: concurrent readers and writers, the same for both sides.

Writers append values that nobody else appends, to a table without a unique key, so that a write applied twice is seen.
Readers look at the newest rows. No client repeats anything: what its call raises is what it got.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from dbguard.cli.demo.history import Ending, Operation
from dbguard.errors import OutcomeUnknown, ResultLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.cli.demo.history import History, Kind

__all__ = ["READERS", "TABLE", "WRITERS", "Client", "Side"]

WRITERS = READERS = 8
"""Clients of each kind and side. With the pauses below some 900 calls per second in all: two cores are not busy."""

WRITE_PAUSE, READ_PAUSE = 0.04, 0.03
"""Seconds that a client rests between two calls, as people and web servers do."""

END_WITHIN = 10.0
"""Seconds that calls under way have to end once the time is over."""

VALUES = 1_000_000
"""Values per writer, more than one can write."""

TABLE = "CREATE TABLE {0} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, value bigint NOT NULL)"


class Client(Protocol):
    """What both sides have: a guard, and a plain pool; in asyncpg's words."""

    def execute(self, query: str, *args: Any) -> Awaitable[Any]:
        """Run a statement."""

    def fetch(self, query: str, *args: Any) -> Awaitable[Any]:
        """Run a query."""


class Side:
    """One side: its table, its clients, its history.

    context: opens what each client runs in; a guard's `causal`, nothing for a plain pool.
    """

    def __init__(
        self,
        table: str,
        client: Client,
        history: History,
        clock: Callable[[], float],
        context: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
    ) -> None:
        self.history = history
        self._client = client
        self._clock = clock
        self._context = context
        self._insert = f"INSERT INTO {table} (value) VALUES ($1)"  # noqa: S608  the demo's own name
        self._select = f"SELECT id, value FROM {table} ORDER BY id DESC LIMIT 10"  # noqa: S608  same
        self._tasks: list[asyncio.Task[None]] = []
        self._over = asyncio.Event()

    def start(self) -> None:
        """Let the clients begin; needs a running loop."""
        self._tasks = [asyncio.create_task(self._write_on(n), name=f"writer {n}") for n in range(WRITERS)]
        self._tasks += [asyncio.create_task(self._read_on(n), name=f"reader {n}") for n in range(READERS)]

    async def stop(self) -> None:
        """Let the calls under way end; what has not ended `END_WITHIN` seconds later counts as failed."""
        self.history.ended = self._clock()
        self._over.set()
        await asyncio.wait(self._tasks, timeout=END_WITHIN)
        await self.cancel()

    async def cancel(self) -> None:
        """End all clients at once. Raises what a client failed with, which would be an error of the demo itself."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result

    async def _write_on(self, number: int) -> None:
        async with self._context():
            await self._rest(WRITE_PAUSE * number / WRITERS)
            for count in itertools.count():
                value = (number + 1) * VALUES + count
                if not await self._do("write", value):
                    return
                await self._rest(WRITE_PAUSE)

    async def _read_on(self, number: int) -> None:
        async with self._context():
            await self._rest(READ_PAUSE * number / READERS)
            while await self._do("read", None):
                await self._rest(READ_PAUSE)

    async def _rest(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _do(self, kind: Kind, value: int | None) -> bool:
        """Make one call and record how it ended; False once the time is over."""
        if self._over.is_set():
            return False
        began = self._clock()
        ending, error = Ending.ACKNOWLEDGED, None
        try:
            if value is None:
                await self._client.fetch(self._select)
            else:
                await self._client.execute(self._insert, value)
        except OutcomeUnknown as raised:
            ending, error = Ending.UNKNOWN, type(raised).__name__
        except ResultLost as raised:
            ending, error = Ending.RESULT_LOST, type(raised).__name__
        except asyncio.CancelledError:
            self._record(kind, began, Ending.FAILED, value, "still under way at the end")
            raise
        except Exception as raised:  # noqa: BLE001  whatever it is, the client has it now, and it is counted
            ending, error = Ending.FAILED, type(raised).__name__
        self._record(kind, began, ending, value, error)
        return True

    def _record(self, kind: Kind, began: float, ending: Ending, value: int | None, error: str | None) -> None:
        self.history.add(Operation(kind, began, self._clock(), ending, value, error))
