"""Clients over a guard of asyncpg's: over pools of its own, and over pools of the application's; and what all guarded ones share."""

from __future__ import annotations

import asyncio
import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

import dbguard
from chaos.clients.base import CLIENTS_NAME, Client, driven
from chaos.clients.pools import hush
from chaos.history import Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from chaos.clients.base import Place, Work
    from dbguard.events import Event

    T = TypeVar("T")

__all__ = ["CLOSE", "AsyncioGuardClient", "GuardClient", "Guarded", "Wrapped"]

CLOSE = 3.0
"""Seconds that a client lets what it uses close in peace; then it is ended."""

_DIAL = 2.0  # seconds for a new connection of the application's pools
_SPARE = 2  # connections that the application leaves for probes and for questions about writes of open fate


class GuardClient(Client):
    """What all guarded clients have in common.

    guard: the guard. nodes: the harness's names of nodes by the guard's, where these differ.
    """

    takes_tokens = True
    guard: dbguard.Guard | dbguard.PsycopgGuard | dbguard.SyncGuard
    nodes: Mapping[str, str] = MappingProxyType({})

    def settings(self) -> dict[str, Any]:
        """Return the configuration of a guard with nodes of its own."""
        place = self.place
        return {
            "nodes": [{"name": name, "host": host, "port": port} for name, (host, port) in place.addresses.items()],
            "connection": {
                "user": "postgres",
                "database": "postgres",
                "sslmode": "disable",
                "server_settings": {"application_name": CLIENTS_NAME},
            },
            **place.guard,
            "pool": {"max_size": place.size, **place.guard.get("pool", {})},
        }

    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        """Read an error: what is not said to be open has not been applied."""
        if kind is Kind.READ:
            return Outcome.FAILED
        match error:
            case dbguard.OutcomeUnknown():
                return Outcome.UNKNOWN
            case dbguard.ResultLost():
                return Outcome.RESULT_LOST
            case _:
                return Outcome.FAILED

    def leases(self) -> int:
        """Return the leases that are out."""
        return sum(node.in_use for node in self.guard.status().nodes)

    def sample(self) -> Mapping[str, Any]:
        """Return the guard's status, in short."""
        status = self.guard.status()
        return {
            "gate": status.writes,
            "waiting": status.waiting,
            "in_use": self.leases(),
            "nodes": {
                self.nodes.get(node.name, node.name): node.role if node.reachable else "down" for node in status.nodes
            },
        }

    def heard(self, event: Event) -> None:
        """Tell of an event of the guard's, with the harness's names for nodes."""
        told = event.as_dict()
        if "node" in told:
            told["node"] = self.nodes.get(told["node"], told["node"])
        self.place.tell(told)


class AsyncioGuardClient(GuardClient):
    """What is the same over all guards for asyncio."""

    guard: dbguard.Guard | dbguard.PsycopgGuard

    async def __aenter__(self) -> Self:
        await self.guard.open()
        try:
            await self.guard.ready()
        except BaseException:
            await self.guard.close(timeout=0.1)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.guard.close(timeout=CLOSE)

    def context(self) -> AbstractAsyncContextManager[object]:
        """Open a causal context."""
        return self.guard.causal()


class Guarded(AsyncioGuardClient):
    """`dbguard.Guard` over pools of its own."""

    guard: dbguard.Guard

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.guard = dbguard.Guard(self.settings(), on_event=self.heard)

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:  # noqa: ARG002  the guard finds out by itself what reads
        """Run one statement."""
        return await self.guard.fetchrow(query, *args, timeout=timeout)

    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run a read."""
        return await self.guard.fetch(query, *args, timeout=timeout)

    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run *work* by `run_in_transaction`."""

        async def apply(connection: dbguard.Connection) -> T:
            return await driven(work, lambda query, args: connection.fetchrow(query, *args))

        return await self.guard.run_in_transaction(apply, isolation=isolation, timeout=timeout)

    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write by COPY."""
        await self.guard.copy_records_to_table(table, columns=columns, records=records, timeout=timeout)
        return len(records)


class Wrapped(Guarded):
    """`dbguard.Guard.wrap` over pools of the application's, one per node, which connect by themselves.

    The sizes of pools in `Place.guard` are of no use here; a setting that wrapped pools cannot have is refused by the guard.
    """

    def __init__(self, place: Place) -> None:
        Client.__init__(self, place)  # the guard is made of open pools
        hush()
        self._pools: list[asyncpg.Pool[Any]] = []

    async def __aenter__(self) -> Self:
        try:
            for name in self.place.addresses:
                self._pools.append(await self._pool(name))
            primary, *others = self._pools
            self.guard = dbguard.Guard.wrap(primary, others, config=self.place.guard, on_event=self.heard)
            names = ["primary", *(f"replica{number}" for number in range(1, len(others) + 1))]
            self.nodes = dict(zip(names, self.place.addresses, strict=True))
            await super().__aenter__()
        except BaseException:
            self._terminate()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, e, at)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE):
                    await asyncio.gather(*(pool.close() for pool in self._pools))
        finally:
            self._terminate()

    def _terminate(self) -> None:
        for pool in self._pools:
            pool.terminate()

    async def _pool(self, node: str) -> asyncpg.Pool[Any]:
        """Open the pool of one node."""
        host, port = self.place.addresses[node]
        return await asyncpg.create_pool(
            host=host,
            port=port,
            user="postgres",
            database="postgres",
            ssl=False,
            server_settings={"application_name": CLIENTS_NAME},
            min_size=1,
            max_size=self.place.size + _SPARE,
            timeout=_DIAL,
        )
