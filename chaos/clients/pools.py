"""What applications do without a guard: asyncpg's pools, as they are, or in a loop that repeats whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from chaos.clients.base import CLIENTS_NAME, Client, driven
from chaos.history import Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self, TypeAlias

    from chaos.clients.base import Place, Work

    T = TypeVar("T")
    _Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy[Any]
    _Left: TypeAlias = Callable[[], float]

__all__ = ["NaiveRetry", "Plain", "hush"]

_DIAL = 2.0  # seconds for a new connection
_CLOSE = 5.0  # seconds for closing a pool in peace
_PAUSE = 0.05  # seconds before something is repeated
_LEAST = 0.001  # seconds for an attempt whose time is almost over: asyncpg takes 0 for none at all


_nobody = logging.NullHandler()


def hush() -> None:
    """Let asyncpg's pools not write a traceback for each connection that they cannot replace.

    What callers get is in the history.
    """
    logging.getLogger("asyncpg").addHandler(_nobody)


class _NotSentError(Exception):
    """There was no connection to be had."""


class Plain(Client):
    """Two pools, one of the primary and one of a replica, which asyncpg finds among the hosts. Nothing is repeated.

    Its errors are read with care: an append that was sent is unknown, unless the server itself refused it.
    """

    takes_tokens = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        hush()
        self._pools = {
            Kind.APPEND: self._pool("primary"),
            Kind.READ: self._pool("prefer-standby"),
        }

    def _pool(self, attribute: str) -> asyncpg.Pool[Any]:
        hosts = ",".join(f"{host}:{port}" for host, port in self.place.addresses.values())
        return asyncpg.create_pool(
            f"postgresql://postgres@{hosts}/postgres?target_session_attrs={attribute}",
            ssl=False,
            server_settings={"application_name": CLIENTS_NAME},
            min_size=2,
            max_size=self.place.size,
            timeout=_DIAL,
            command_timeout=_CLOSE,  # bounds the pool's own reset
        )

    async def __aenter__(self) -> Self:
        try:
            for pool in self._pools.values():
                await pool
        except BaseException:
            self._terminate()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            async with asyncio.timeout(_CLOSE):
                for pool in self._pools.values():
                    await pool.close()
        except TimeoutError:
            self._terminate()

    def _terminate(self) -> None:
        for pool in self._pools.values():
            with contextlib.suppress(asyncpg.InterfaceError):  # it was never opened
                pool.terminate()

    def context(self) -> AbstractAsyncContextManager[object]:
        """Open nothing: a pool knows no contexts."""
        return contextlib.nullcontext()

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:
        """Run one statement on a connection of the pool for its kind."""

        async def use(connection: _Connection, left: _Left) -> Any:
            row = await connection.fetchrow(query, *args, timeout=left())
            assert row is not None, f"no row: {query}"
            return row

        return await self._do(kind, use, timeout)

    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run a read on a connection of the pool for reads."""

        async def use(connection: _Connection, left: _Left) -> Sequence[Any]:
            return await connection.fetch(query, *args, timeout=left())

        return await self._do(Kind.READ, use, timeout)

    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run *work* in a transaction of asyncpg's."""

        async def use(connection: _Connection, left: _Left) -> T:
            async with connection.transaction(isolation=isolation):  # type: ignore[arg-type]  # one of its words
                return await driven(work, lambda query, args: connection.fetchrow(query, *args, timeout=left()))

        return await self._do(Kind.APPEND, use, timeout)

    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write by COPY."""

        async def use(connection: _Connection, left: _Left) -> int:
            await connection.copy_records_to_table(table, columns=columns, records=records, timeout=left())
            return len(records)

        return await self._do(Kind.APPEND, use, timeout)

    async def _do(self, kind: Kind, use: Callable[[_Connection, _Left], Awaitable[T]], timeout: float) -> T:
        """Do something with a connection of the pool for its kind; *use* is told how many seconds are left."""
        pool, until = self._pools[kind], time.monotonic() + timeout
        try:
            connection = await pool.acquire(timeout=timeout)
        except Exception as e:
            raise _NotSentError(f"{type(e).__name__}: {e}") from e
        try:
            return await use(connection, lambda: max(_LEAST, until - time.monotonic()))
        except asyncpg.PostgresError:
            raise
        except BaseException:
            connection.terminate()  # its state is not known; asyncpg would wait for an answer that may never come
            raise
        finally:
            await pool.release(connection)

    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        """Read an error."""
        if kind is Kind.READ or isinstance(error, _NotSentError):
            return Outcome.FAILED
        refused = isinstance(error, asyncpg.PostgresError) and not str(error.sqlstate).startswith(("08", "57P0"))
        return Outcome.FAILED if refused else Outcome.UNKNOWN

    def leases(self) -> int:
        """Return the connections that are out."""
        return sum(pool.get_size() - pool.get_idle_size() for pool in self._pools.values())


class NaiveRetry(Plain):
    """The same pools, in the loop that is written everywhere: whatever fails is done again, while there is time.

    It applies appends twice whose acknowledgement was lost: the proof that the checkers see.
    """

    async def _do(self, kind: Kind, use: Callable[[_Connection, _Left], Awaitable[T]], timeout: float) -> T:
        """Do it until it succeeds."""
        until, attempt = time.monotonic() + timeout, 0
        unknown: Exception | None = None
        while True:
            attempt += 1
            try:
                return await super()._do(kind, use, max(_LEAST, until - time.monotonic()))
            except Exception as e:
                if self.outcome_of(kind, e) is Outcome.UNKNOWN:
                    unknown = unknown or e
                if time.monotonic() + _PAUSE >= until:
                    raise unknown or e from e
                why = f"{type(e).__name__}: {e}"
            self.place.tell({"event": "CallRepeated", "at": time.monotonic(), "attempt": attempt, "why": why})
            await asyncio.sleep(_PAUSE)
