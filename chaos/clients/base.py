"""What a workload needs of a client library: calls, contexts, and what its errors promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from dbguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self, TypeAlias

    from chaos.history import Kind, Outcome

    T = TypeVar("T")
    Steps: TypeAlias = Generator[tuple[str, Sequence[object]], Any, T]
    Work: TypeAlias = Callable[[], Steps[T]]

__all__ = ["CLIENTS_NAME", "Client", "Place", "driven"]

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
    Queries have their parameters as ``$1``, ``$2``. *timeout*: seconds in which a call is to end.

    takes_tokens: whether its writes can carry tokens, as ``outcome: {resolve: token-table}`` in `Place.guard` has them
        do. A client that does not take them refuses such settings: `settings_for` leaves them off, and says so.
    cancellable: whether cancelling the task of a call ends the call; those in threads go on. Default: it does.

    Raises `dbguard.ConfigError` if `Place.guard` is wrong, or asks for tokens that it does not take.
    """

    takes_tokens: ClassVar[bool]
    cancellable: ClassVar[bool] = True

    def __init__(self, place: Place) -> None:
        left_off = self.settings_for(place.guard)[1]
        if left_off is not None:
            raise ConfigError(f"{type(self).__name__} cannot be told that: {left_off}", path="outcome")
        self.place = place

    @classmethod
    def settings_for(cls, guard: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
        """Return a scenario's settings of the guard as this client takes them, and what was left off and why, if anything was."""
        if cls.takes_tokens or guard.get("outcome", {}).get("resolve", "none") == "none":
            return guard, None
        fitting = {key: value for key, value in guard.items() if key != "outcome"}
        return fitting, "outcome.resolve: its writes carry no tokens"

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
        """Run one statement by itself and return its one row, to be read by column names."""

    @abstractmethod
    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run one read by itself and return all its rows, to be read by column names."""

    @abstractmethod
    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run *work* in one transaction on the primary and return what it returns.

        work: a generator function that yields statements with their arguments and gets back each one's first row, or None
            where it has none. It may be called again, for another attempt, and should have no other effect.
        isolation: ``read_committed``, ``repeatable_read`` or ``serializable``; None: the server's default.
        """

    @abstractmethod
    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write *records* into *table* as one write, by COPY where the library has it; return how many there were."""

    @abstractmethod
    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        """Say what an error of a call promises about it, as the library's users are told to read it."""

    @abstractmethod
    def leases(self) -> int:
        """Return how many connections are taken and not given back."""

    def sample(self) -> Mapping[str, Any]:
        """Return what can be drawn over time, as plain data; a client that knows nothing of it returns nothing.

        gate: whether writes go on, as `dbguard.status.Status.writes`. waiting: calls that wait for a primary. in_use:
        connections that are out. nodes: by name ``primary``, ``replica``, ``fenced``, ``unknown``, or ``down`` where a node
        does not answer.
        """
        return {}


async def driven(work: Work[T], run: Callable[[str, Sequence[object]], Awaitable[Any]]) -> T:
    """Run the statements of *work*, each by *run*, which returns its first row; return what *work* returns."""
    steps = work()
    try:
        step = next(steps)
        while True:
            step = steps.send(await run(*step))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # so the type of the generator says
    finally:
        steps.close()
