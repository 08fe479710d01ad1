"""Calls that are given up: callers' calls are cancelled at random points, or get hardly any time.

A call that was cancelled has told its caller nothing: an append is unknown then. How long each takes to end once it was
given up is reported, for `chaos.checkers.Overshoot` to judge.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from chaos.clients.base import Client
from chaos.history import GIVEN_UP, Kind, Outcome

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from chaos.clients.base import Work

__all__ = ["Interruptible", "Storm"]

_LEAST = 0.001  # seconds: no time at all is not a time that a call can be given

T = TypeVar("T")


class _CalledOffError(Exception):
    """The caller cancelled the call."""


@dataclass(frozen=True, slots=True)
class Storm:
    """While it lasts, each call is given up with the probability *share*, after up to *within* seconds."""

    share: float
    within: float
    rng: random.Random


class Interruptible(Client):
    """Another client, *client*, whose calls can be given up. *storm*: how they are; None: they are not. *given_up*: how many.

    Calls that cannot be cancelled, as those in threads, get no more time than that.
    """

    def __init__(self, client: Client) -> None:
        self.place = client.place
        self._client = client
        self.storm: Storm | None = None
        self.given_up = 0

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, e, at)

    def context(self) -> AbstractAsyncContextManager[object]:
        """Open a context."""
        return self._client.context()

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:
        """Run one statement."""
        return await self._given_up(lambda seconds: self._client.call(kind, query, args, seconds), timeout)

    async def fetch(self, query: str, args: Sequence[object], timeout: float) -> Sequence[Any]:
        """Run a read."""
        return await self._given_up(lambda seconds: self._client.fetch(query, args, seconds), timeout)

    async def transaction(self, work: Work[T], *, isolation: str | None, timeout: float) -> T:
        """Run a transaction function."""
        return await self._given_up(
            lambda seconds: self._client.transaction(work, isolation=isolation, timeout=seconds), timeout
        )

    async def copy(
        self, table: str, columns: Sequence[str], records: Sequence[Sequence[object]], timeout: float
    ) -> int:
        """Write records."""
        return await self._given_up(lambda seconds: self._client.copy(table, columns, records, seconds), timeout)

    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        """Read an error."""
        if isinstance(error, _CalledOffError):
            return Outcome.FAILED if kind is Kind.READ else Outcome.UNKNOWN
        return self._client.outcome_of(kind, error)

    def leases(self) -> int:
        """Return the connections that are out."""
        return self._client.leases()

    def sample(self) -> Mapping[str, Any]:
        """Return what can be drawn."""
        return self._client.sample()

    async def _given_up(self, call: Callable[[float], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Make a call, and give it up if there is a storm and the lot falls on it."""
        storm = self.storm
        if storm is None or storm.rng.random() >= storm.share:
            return await call(timeout)
        patience = storm.rng.uniform(0, storm.within)
        began = time.monotonic()
        if not self._client.cancellable:
            patience = max(patience, _LEAST)
            try:
                return await call(min(timeout, patience))
            finally:
                self._tell(began + patience)
        task = asyncio.create_task(call(timeout))
        cancelling = asyncio.get_running_loop().call_later(patience, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if (caller is not None and caller.cancelling()) or not task.cancelling():
                raise  # not the storm's doing
            raise _CalledOffError(f"cancelled after {patience:.4f} s") from None
        finally:
            cancelling.cancel()
            self._tell(began + patience)

    def _tell(self, due: float) -> None:
        """Report a call that has ended after it was given up, if it was: at *due*, on `time.monotonic`."""
        now = time.monotonic()
        if now >= due:
            self.given_up += 1
            self.place.tell({"event": GIVEN_UP, "at": now, "late": now - due})
