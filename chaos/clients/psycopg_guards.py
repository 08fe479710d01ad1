"""Clients over psycopg: a guard for asyncio, and one for threads, in which each call runs in a thread.

Both read ``%s`` where workloads write ``$1``: what is sent is what users of psycopg write.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg.rows import dict_row

import dbguard
from chaos.clients.base import driven
from chaos.clients.guards import CLOSE, AsyncioGuardClient, GuardClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType
    from typing import Self

    from chaos.clients.base import Place, Work
    from chaos.history import Kind
    from dbguard.events import Event

    T = TypeVar("T")

__all__ = ["PsycopgGuarded", "SyncGuarded"]

_ROWS = {"row_factory": dict_row}
_PARAMETER = re.compile(r"\$(\d+)")


class PsycopgGuarded(AsyncioGuardClient):
    """`dbguard.PsycopgGuard` over pools of its own."""

    guard: dbguard.PsycopgGuard

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.guard = dbguard.PsycopgGuard(self.settings(), on_event=self.heard, kwargs=_ROWS)

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:  # noqa: ARG002  the guard finds out by itself what reads
        """Run one statement."""
        return await self.guard.fetchone(*_psycopgs(query, args), timeout=timeout)

    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run a read."""
        return await self.guard.fetchall(*_psycopgs(query, args), timeout=timeout)

    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run *work* by `run_in_transaction`."""

        async def apply(connection: Any) -> T:
            async def run(query: str, args: Sequence[object]) -> Any:
                cursor = await connection.execute(*_psycopgs(query, args))
                return await cursor.fetchone() if cursor.description else None

            return await driven(work, run)

        return await self.guard.run_in_transaction(apply, isolation=isolation, timeout=timeout)

    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write by COPY, in a transaction of its own."""

        async def apply(connection: Any) -> int:
            async with connection.cursor() as cursor, cursor.copy(_copy(table, columns)) as copy:
                for record in records:
                    await copy.write_row(record)
            return len(records)

        return await self.guard.run_in_transaction(apply, timeout=timeout)


class SyncGuarded(GuardClient):
    """`dbguard.SyncGuard` over pools of its own: each call runs in a thread, in its caller's context.

    A call whose caller is cancelled goes on in its thread, until the client is closed.
    """

    guard: dbguard.SyncGuard

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.guard = dbguard.SyncGuard(self.settings(), on_event=self._heard_there, kwargs=_ROWS)
        self._threads = ThreadPoolExecutor(place.size + 1, "chaos caller")  # one is for what is no call

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            await self._in_thread(self.guard.open)
            await self._in_thread(self.guard.ready)
        except BaseException:
            await self._end(0.1)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._end(CLOSE)

    async def _end(self, within: float) -> None:
        try:
            await self._in_thread(lambda: self.guard.close(within))
        finally:
            self._threads.shutdown()

    @contextlib.asynccontextmanager
    async def context(self) -> AsyncIterator[None]:
        """Open a causal context, which threads are handed with each call."""
        with self.guard.causal():
            yield

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:  # noqa: ARG002  the guard finds out by itself what reads
        """Run one statement."""
        return await self._in_thread(lambda: self.guard.fetchone(*_psycopgs(query, args), timeout=timeout))

    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run a read."""
        return await self._in_thread(lambda: self.guard.fetchall(*_psycopgs(query, args), timeout=timeout))

    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run *work* by `run_in_transaction`."""

        def apply(connection: Any) -> T:
            steps = work()
            with contextlib.closing(steps):
                try:
                    step = next(steps)
                    while True:
                        cursor = connection.execute(*_psycopgs(*step))
                        step = steps.send(cursor.fetchone() if cursor.description else None)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]  # so the type of the generator says

        return await self._in_thread(lambda: self.guard.run_in_transaction(apply, isolation=isolation, timeout=timeout))

    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write by COPY, in a transaction of its own."""

        def apply(connection: Any) -> int:
            with connection.cursor() as cursor, cursor.copy(_copy(table, columns)) as copy:
                for record in records:
                    copy.write_row(record)
            return len(records)

        return await self._in_thread(lambda: self.guard.run_in_transaction(apply, timeout=timeout))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._threads, contextvars.copy_context().run, work)

    def _heard_there(self, event: Event) -> None:
        """Hand on an event from the guard's own thread."""
        self._loop.call_soon_threadsafe(self.heard, event)


def _psycopgs(query: str, args: Sequence[object]) -> tuple[str, dict[str, object] | None]:
    """Return *query* with psycopg's placeholders, and its parameters."""
    if not args:
        return query, None
    named = {f"p{number}": value for number, value in enumerate(args, 1)}
    return _PARAMETER.sub(r"%(p\1)s", query.replace("%", "%%")), named


def _copy(table: str, columns: Sequence[str]) -> str:
    return f"COPY {table} ({', '.join(columns)}) FROM STDIN"
