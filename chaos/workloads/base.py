"""What callers do while things break, and how they write it down.

Each caller has a causal context of its own, as a web request has one. It makes one call at a time and records what it
was told. Callers stop between two calls: a harness that cancelled a COMMIT would make its own unknowns.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import asyncio
import itertools
import random
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

from chaos.clients import Client
from chaos.history import Kind, Operation, Outcome
from chaos.journal import Journal
from dbguard.config.quantities import Duration, Whole
from dbguard.config.section import Section

__all__ = ["NODE", "Appended", "Seen", "Workload"]

NODE = "current_setting('cluster_name') AS node"
"""The column that tells who served a statement."""


class Seen(NamedTuple):
    """What a read returned: the values below its key, and the node that served it, or None if that is not told."""

    node: str | None
    values: tuple[int, ...]


class Appended(NamedTuple):
    """Who appended, and how often its function was run for it; each None if that is not told, or has no meaning."""

    node: str | None
    attempts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Workload(Section, ABC):
    """Callers that append unique values below a few shared keys, and read what is below one.

    table: where they do. create: the statements that make it. read_back: a query for all keys with their values.
    per_key: values below a key, so that what a read returns stays short; then another key takes its place.
    ordered: whether the values of a key stand in the order in which the server applied them.
    """

    readers: Annotated[int, Whole(0, 1_000)] = 4
    """Callers that read, 0 to 1,000. Default 4."""
    writers: Annotated[int, Whole(0, 1_000)] = 2
    """Callers that append, 0 to 1,000. Default 2."""
    owners: Annotated[int, Whole(0, 1_000)] = 2
    """Callers that append a value and then read it back for the time of *linger*, 0 to 1,000. Default 2."""
    keys: Annotated[int, Whole(1, 1_000)] = 4
    """Keys in use at a time, 1 to 1,000. Default 4."""
    linger: Annotated[float, Duration()] = 1.0
    """Seconds that an owner reads before it appends again: long enough for replicas to have it. Default 1 s."""
    pause: Annotated[float, Duration()] = 0.005
    """Seconds that a caller waits between two calls: half to one and a half of these, by the seed. Default 5 ms."""
    timeout: Annotated[float, Duration(above=True)] = 10.0
    """Seconds for each call, above 0. Default 10 s."""

    table: ClassVar[str]
    create: ClassVar[tuple[str, ...]]
    read_back: ClassVar[str]
    per_key: ClassVar[int] = 16
    ordered: ClassVar[bool] = False

    @abstractmethod
    async def append(self, client: Client, key: int, value: int) -> Appended:
        """Append *value* below *key*, as one call."""

    @abstractmethod
    async def read(self, client: Client, key: int) -> Any:
        """Read what is below *key*, as one call, and return the answer as it came."""

    @abstractmethod
    def seen(self, answer: Any) -> Seen:
        """Say what an answer of `read` holds; what that costs is none of the call's time."""

    @property
    def callers(self) -> int:
        """How many callers there are."""
        return self.readers + self.writers + self.owners

    async def run(self, client: Client, journal: Journal, stop: asyncio.Event, seed: int) -> None:
        """Let all callers work until *stop* is set; return once each has ended its last call."""
        keys = _Keys(self.keys, self.per_key)
        kinds = [
            ("reader", self.readers, _Caller.read_on),
            ("writer", self.writers, _Caller.write_on),
            ("owner", self.owners, _Caller.own_on),
        ]
        async with asyncio.TaskGroup() as tasks:
            for kind, count, work in kinds:
                for number in range(count):
                    name = f"{kind} {number}"
                    caller = _Caller(self, name, client, journal, stop, keys, random.Random(f"{seed} {name}"))  # noqa: S311  a schedule
                    tasks.create_task(work(caller), name=name)


class _Keys:
    """The keys in use, and values that nobody appends twice; shared by all callers."""

    def __init__(self, count: int, per_key: int) -> None:
        self._fresh = itertools.count(1)
        self._keys = [next(self._fresh) for _ in range(count)]
        self._per_key = per_key
        self._times = Counter[int]()
        self._values = itertools.count(1)

    def choose(self, rng: random.Random) -> int:
        return rng.choice(self._keys)

    def append(self, rng: random.Random) -> tuple[int, int]:
        """Return a key, and a value to append."""
        key = self.choose(rng)
        self._times[key] += 1
        if self._times[key] == self._per_key:
            self._keys[self._keys.index(key)] = next(self._fresh)
        return key, next(self._values)


class _Caller:
    """One caller."""

    def __init__(
        self,
        workload: Workload,
        name: str,
        client: Client,
        journal: Journal,
        stop: asyncio.Event,
        keys: _Keys,
        rng: random.Random,
    ) -> None:
        self._workload = workload
        self._name = name
        self._client = client
        self._journal = journal
        self._stop = stop
        self._keys = keys
        self._rng = rng

    async def read_on(self) -> None:
        """Read what others append."""
        async with self._client.context():
            while not self._stop.is_set():
                await self._call(Kind.READ, self._keys.choose(self._rng))

    async def write_on(self) -> None:
        """Append."""
        async with self._client.context():
            while not self._stop.is_set():
                await self._call(Kind.APPEND, *self._keys.append(self._rng))

    async def own_on(self) -> None:
        """Append, then read it back for a while, and so on."""
        async with self._client.context():
            while not self._stop.is_set():
                key, value = self._keys.append(self._rng)
                await self._call(Kind.APPEND, key, value)
                until = self._journal.now() + self._workload.linger
                while self._journal.now() < until and not self._stop.is_set():
                    await self._call(Kind.READ, key)

    async def _call(self, kind: Kind, key: int, value: int | None = None) -> None:
        """Make one call, record what became of it, and wait a little."""
        load, journal = self._workload, self._journal
        answer, seen, error, outcome = None, None, None, Outcome.OK
        done = Appended(None)
        start = journal.now()
        try:
            if value is None:
                answer = await load.read(self._client, key)
            else:
                done = await load.append(self._client, key, value)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():
                raise
            # a task that ends so is missed by nobody, and what it had sent with it
            raise RuntimeError(f"{self._name}: a {kind} was cancelled, and nobody had cancelled it") from None
        except Exception as e:  # noqa: BLE001  whatever a caller is told goes into the history
            end = journal.now()
            outcome = self._client.outcome_of(kind, e)
            error = "; ".join([f"{type(e).__name__}: {e}", *getattr(e, "__notes__", ())])
        else:
            end = journal.now()
            seen = load.seen(answer) if value is None else None
        journal.operation(
            Operation(
                client=self._name,
                kind=kind,
                start=start,
                end=end,
                outcome=outcome,
                key=key,
                value=value,
                seen=None if seen is None else seen.values,
                node=done.node if seen is None else seen.node,
                attempts=done.attempts,
                error=error,
                deadline=start + load.timeout,
            )
        )
        await asyncio.sleep(load.pause * (0.5 + self._rng.random()))
