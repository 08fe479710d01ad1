"""SQL for the harness itself: asked from any thread, run in an event loop of its own.

Each question has a connection of its own, straight to its node: a pool would have to survive what tests do to nodes.
The caller may be a plain test, a thread, or code that an event loop runs already (which `asyncio.run` could not serve).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    import asyncpg

    from dbguard.testing.node import ClusterNode

__all__ = ["APPLICATION_NAME", "Admin"]

APPLICATION_NAME = "dbguard-testing"  # so that the harness can tell its own connections from the test's
_CONNECT_TIMEOUT = 15.0  # seconds; a node on this machine that needs longer is frozen
_POLL = 0.01  # seconds between two looks at a condition

T = TypeVar("T")


class Admin:
    """The superuser's way to the nodes. Methods block, and may be called from any thread.

    password: the superuser's; None: the servers trust this machine.
    """

    def __init__(self, password: str | None) -> None:
        self._password = password
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dbguard-cluster-sql", daemon=True)
        self._thread.start()

    def query(self, node: ClusterNode, query: str, args: tuple[Any, ...], database: str, timeout: float) -> list[Any]:
        """Run one statement in autocommit; return its rows as tuples. Raises what asyncpg raises, or TimeoutError."""

        async def ask() -> list[Any]:
            async with self.connection(node, database) as connection:
                return [tuple(row) for row in await connection.fetch(query, *args)]

        return self.run(node, ask(), timeout)

    def wait_for(self, node: ClusterNode, query: str, timeout: float) -> None:
        """Ask until the first column of the first row is true; a node that does not answer is asked again.

        Raises TimeoutError with the last answer.
        """
        last: object = "never answered"

        async def ask() -> None:
            nonlocal last
            while True:
                try:
                    async with self.connection(node) as connection:
                        while not (value := await connection.fetchval(query)):
                            last = f"last: {value!r}"
                            await asyncio.sleep(_POLL)
                        return
                except Exception as e:  # noqa: BLE001  starting up, not yet replayed, ...: kept, and shown at the end
                    last = f"last: {type(e).__name__}: {e}"
                    await asyncio.sleep(_POLL)

        try:
            self.run(node, ask(), timeout)
        except TimeoutError:
            raise TimeoutError(f"{node}: not true within {timeout:g} s: {query} ({last})") from None

    def promote(self, node: ClusterNode, timeout: float) -> float:
        """Promote a replica; return the seconds until it takes writes. Raises what asyncpg raises, or TimeoutError."""

        async def ask() -> float:
            async with self.connection(node) as connection:
                began = time.monotonic()
                # not pg_promote(true): it looks only every 100 ms
                await connection.execute("SELECT pg_promote(false)")
                while await connection.fetchval("SELECT pg_is_in_recovery()"):  # noqa: ASYNC110  the event is the server's
                    await asyncio.sleep(_POLL / 5)
                return time.monotonic() - began

        return self.run(node, ask(), timeout)

    def run(self, node: ClusterNode, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run *work* in the loop of this class and wait for it, at most *timeout* seconds."""

        async def bounded() -> T:
            async with asyncio.timeout(timeout):
                return await work

        future = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        try:
            return future.result()
        except Exception as e:
            e.add_note(f"asked by the test harness of {node}")
            raise
        finally:
            future.cancel()  # a Ctrl-C while waiting; otherwise it is done and this does nothing

    @contextlib.asynccontextmanager
    async def connection(self, node: ClusterNode, database: str = "postgres") -> AsyncIterator[asyncpg.Connection[Any]]:
        """Lend a connection straight to *node*, closed at the end."""
        import asyncpg  # noqa: PLC0415  loaded by those who start a cluster, not by those who import this package

        connection = await asyncpg.connect(
            host=node.host,
            port=node.port,
            user="postgres",
            password=self._password,
            database=database,
            ssl=False,
            timeout=_CONNECT_TIMEOUT,
            statement_cache_size=0,
            server_settings={"application_name": APPLICATION_NAME},
        )
        try:
            yield connection
        finally:
            connection.terminate()

    def close(self) -> None:
        """End the loop and its thread; questions under way are cancelled."""

        async def wind_up() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)  # transports close in the next turn of the loop

        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(wind_up(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
