"""The guarded client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import dbguard
from chaos.clients.base import CLIENTS_NAME, Client, driven
from chaos.history import Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from chaos.clients.base import Place, Work
    from dbguard.events import Event

    T = TypeVar("T")

__all__ = ["Guarded"]


class Guarded(Client):
    """`dbguard.Guard` over pools of its own."""

    takes_tokens = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._guard = dbguard.Guard(
            {
                "nodes": [{"name": name, "host": host, "port": port} for name, (host, port) in place.addresses.items()],
                "connection": {
                    "user": "postgres",
                    "database": "postgres",
                    "sslmode": "disable",
                    "server_settings": {"application_name": CLIENTS_NAME},
                },
                "pool": {"max_size": place.size},
                **place.guard,
            },
            on_event=self._heard,
        )

    async def __aenter__(self) -> Self:
        await self._guard.open()
        try:
            await self._guard.ready()
        except BaseException:
            await self._guard.close(timeout=0.1)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._guard.close()

    def context(self) -> AbstractAsyncContextManager[object]:
        """Open a causal context."""
        return self._guard.causal()

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:  # noqa: ARG002  the guard finds out by itself what reads
        """Run one statement."""
        return await self._guard.fetchrow(query, *args, timeout=timeout)

    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run a read."""
        return await self._guard.fetch(query, *args, timeout=timeout)

    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run *work* by `run_in_transaction`."""

        async def apply(connection: dbguard.Connection) -> T:
            return await driven(work, lambda query, args: connection.fetchrow(query, *args))

        return await self._guard.run_in_transaction(apply, isolation=isolation, timeout=timeout)

    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write by COPY."""
        await self._guard.copy_records_to_table(table, columns=columns, records=records, timeout=timeout)
        return len(records)

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
        return sum(node.in_use for node in self._guard.status().nodes)

    def sample(self) -> Mapping[str, Any]:
        """Return the guard's status, in short."""
        status = self._guard.status()
        return {
            "gate": status.writes,
            "waiting": status.waiting,
            "in_use": sum(node.in_use for node in status.nodes),
            "nodes": {node.name: node.role if node.reachable else "down" for node in status.nodes},
        }

    def _heard(self, event: Event) -> None:
        self.place.tell(event.as_dict())
