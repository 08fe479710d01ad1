"""What the clients of both sides call, over each facade: a guard and, as the control, a plain pool of the same driver.

The clients are tasks. Over `SyncGuard` each of their calls is made on a thread, as a web framework's worker threads make them.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import dbguard
from dbguard.cli.demo.workload import READERS, WRITERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from dbguard.cli.demo.workload import Client

__all__ = ["FACADES", "Facade", "Opened", "missing"]

CONNECT_WITHIN = 5
"""Seconds that a plain pool may take for a connection."""

CALL_WITHIN = 30
"""Seconds that a call of asyncpg's pool may take; psycopg's have no such limit."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Both sides of a run. context: opens what each guarded client runs in."""

    guard: dbguard.Guard | dbguard.PsycopgGuard | dbguard.SyncGuard
    guarded: Client
    control: Client
    context: Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Facade:
    """How the demo is run over one.

    guarded, control: what the sides are called. open: opens both, over a configuration of the guard, the DSN of all nodes and
    the size of the plain pool.
    """

    guarded: str
    control: str
    open: Callable[[Mapping[str, Any], str, int], AbstractAsyncContextManager[Opened]]


# ---------------------------------------------------------------------- asyncpg


@asynccontextmanager
async def _over_asyncpg(config: Mapping[str, Any], dsn: str, size: int) -> AsyncIterator[Opened]:
    import asyncpg  # noqa: PLC0415  loaded with the demo, not with the command line

    _quiet("asyncpg")
    plain = asyncpg.create_pool(
        _to_primary(dsn), min_size=2, max_size=size, timeout=CONNECT_WITHIN, command_timeout=CALL_WITHIN
    )
    async with dbguard.Guard(config) as guard, plain:
        await guard.ready()
        yield Opened(guard, guard, plain, guard.causal)


# ---------------------------------------------------------------------- psycopg


class _Calls:
    """What has psycopg's `execute`, which fetches all rows, in the words of the demo's clients."""

    def __init__(self, execute: Callable[[str, Any], Awaitable[Any]]) -> None:
        self._execute = execute

    async def execute(self, query: str, *args: Any) -> Any:
        """Run a statement."""
        return await self._execute(query.replace("$1", "%s"), args or None)

    fetch = execute


@asynccontextmanager
async def _over_psycopg(config: Mapping[str, Any], dsn: str, size: int) -> AsyncIterator[Opened]:
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415  an extra

    _quiet("psycopg.pool")
    plain = AsyncConnectionPool(_to_primary(dsn), min_size=2, max_size=size, timeout=CONNECT_WITHIN, open=False)

    async def execute(query: str, args: Any) -> Any:
        async with plain.connection() as con:
            return await con.execute(query, args)

    async with dbguard.PsycopgGuard(config) as guard, plain:
        await guard.ready()
        yield Opened(guard, _Calls(guard.execute), _Calls(execute), guard.causal)


# ---------------------------------------------------------------------- threads


@asynccontextmanager
async def _over_threads(config: Mapping[str, Any], dsn: str, size: int) -> AsyncIterator[Opened]:
    from psycopg_pool import ConnectionPool  # noqa: PLC0415  an extra

    _quiet("psycopg.pool")
    plain = ConnectionPool(_to_primary(dsn), min_size=2, max_size=size, timeout=CONNECT_WITHIN, open=False)
    guard = dbguard.SyncGuard(config)
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(2 * (WRITERS + READERS), thread_name_prefix="client")

    async def on_thread(call: Callable[..., Any], *args: Any) -> Any:
        return await loop.run_in_executor(threads, partial(copy_context().run, call, *args))

    def execute(query: str, args: Any) -> Any:
        with plain.connection() as con:
            return con.execute(query, args)

    @asynccontextmanager
    async def causal() -> AsyncIterator[None]:
        with guard.causal():
            yield

    try:
        await asyncio.to_thread(guard.open)
        await asyncio.to_thread(plain.open)
        await asyncio.to_thread(guard.ready)
        yield Opened(guard, _Calls(partial(on_thread, guard.execute)), _Calls(partial(on_thread, execute)), causal)
    finally:
        await asyncio.to_thread(guard.close)
        await asyncio.to_thread(plain.close)
        threads.shutdown(wait=False)


# ---------------------------------------------------------------------- what all have in common


def _to_primary(dsn: str) -> str:
    """Return the DSN by which a plain pool looks for the primary among all hosts, at each connect."""
    return dsn + "?target_session_attrs=read-write"


def _quiet(logger: str) -> None:
    """Keep a plain pool's words on the failover out of the view; what its clients get is counted."""
    logging.getLogger(logger).addHandler(logging.NullHandler())


def missing(facade: str) -> str | None:
    """Say what has to be installed for the demo over this one; None: it is all there."""
    absent = [name for name in ("psycopg", "psycopg_pool") if facade != "asyncpg" and find_spec(name) is None]
    if not absent:
        return None
    return f"the demo over {facade} needs {' and '.join(absent)}: pip install 'psycopg[binary,pool]'"


FACADES = {
    "asyncpg": Facade("asyncpg through dbguard", "plain asyncpg.create_pool", _over_asyncpg),
    "psycopg": Facade("psycopg through dbguard", "plain AsyncConnectionPool", _over_psycopg),
    "threads": Facade("psycopg through dbguard, in threads", "plain ConnectionPool", _over_threads),
}
"""The facades that the demo runs over, by the name that it is told."""
