"""What a workload needs of a client library: calls, contexts, and what its errors promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from chaos.history import Kind, Outcome

__all__ = ["CLIENTS_NAME", "Client", "Place"]

CLIENTS_NAME = "dbguard-chaos"
"""The clients' application_name: once no backend bears it, nothing more can be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a client works.

    addresses: host and port by node, as the application reaches them.
    size: connections at most, per node; as many as there are callers, so that none waits for another.
    guard: what the scenario tells the guard beside its nodes; other clients have no use for it.
    tell: called with what the client notices: plain data with ``event``, its name, and ``at``, on `time.monotonic`.
    """

    addresses: Mapping[str, tuple[str, int]]
    size: int
    guard: Mapping[str, Any]
    tell: Callable[[Mapping[str, Any]], object]


class Client(ABC):
    """A way of talking to the cluster, under test; an asynchronous context manager, open inside.

    All of its sessions bear `CLIENTS_NAME`. It never cancels what may commit: that would make unknowns of its own.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Connect; return once a primary can be written to."""

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close everything, within some seconds whatever the network does."""

    @abstractmethod
    def context(self) -> AbstractAsyncContextManager[object]:
        """Open what one caller's calls run in: a causal context, where the library has such a thing."""

    @abstractmethod
    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:
        """Run one statement by itself and return its one row, to be read by column names; to end within *timeout* seconds."""

    @abstractmethod
    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        """Say what an error of `call` promises about it, as the library's users are told to read it."""

    @abstractmethod
    def leases(self) -> int:
        """Return how many connections are taken and not given back."""
