"""What callers do while things break, and how they write it down.

Each caller has a causal context of its own, as a web request has one. It makes one call at a time and records what it
was told. Callers stop between two calls: a harness that cancelled a COMMIT would make its own unknowns.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar

from chaos.clients import Client
from chaos.history import Kind, Operation, Outcome
from chaos.journal import Journal
from dbguard.config.quantities import Duration, Whole
from dbguard.config.section import Section

__all__ = ["WORKLOADS", "Append", "ListAppend", "Workload"]

_KEYS = 4  # keys in use at a time
_PER_KEY = 16  # values below a key, so that what a read returns stays short; then another key takes its place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Workload(Section):
    """Callers that append unique values below a few shared keys, and read what is below one.

    What a workload does is a matter of its statements: `append` takes a key and a value, `read` a key; both return one
    row with ``node``, `read` also with ``seen``. `read_back` returns keys with their values.
    """

    readers: Annotated[int, Whole(0, 1_000)] = 4
    """Callers that read, 0 to 1,000. Default 4."""
    writers: Annotated[int, Whole(0, 1_000)] = 2
    """Callers that append, 0 to 1,000. Default 2."""
    owners: Annotated[int, Whole(0, 1_000)] = 2
    """Callers that append a value and then read it back for the time of *linger*, 0 to 1,000. Default 2."""
    linger: Annotated[float, Duration()] = 1.0
    """Seconds that an owner reads before it appends again: long enough for replicas to have it. Default 1 s."""
    pause: Annotated[float, Duration()] = 0.005
    """Seconds that a caller waits between two calls: half to one and a half of these, by the seed. Default 5 ms."""
    timeout: Annotated[float, Duration(above=True)] = 10.0
    """Seconds for each call, above 0. Default 10 s."""

    table: ClassVar[str]
    create: ClassVar[tuple[str, ...]]
    append: ClassVar[str]
    read: ClassVar[str]
    read_back: ClassVar[str]

    @property
    def callers(self) -> int:
        """How many callers there are."""
        return self.readers + self.writers + self.owners

    async def run(self, client: Client, journal: Journal, stop: asyncio.Event, seed: int) -> None:
        """Let all callers work until *stop* is set; return once each has ended its last call."""
        keys = _Keys()
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

    def __init__(self) -> None:
        self._fresh = itertools.count(1)
        self._keys = [next(self._fresh) for _ in range(_KEYS)]
        self._times = Counter[int]()
        self._values = itertools.count(1)

    def choose(self, rng: random.Random) -> int:
        return rng.choice(self._keys)

    def append(self, rng: random.Random) -> tuple[int, int]:
        """Return a key, and a value to append."""
        key = self.choose(rng)
        self._times[key] += 1
        if self._times[key] == _PER_KEY:
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
        query = load.read if kind is Kind.READ else load.append
        node, seen, error, outcome = None, None, None, Outcome.OK
        start = journal.now()
        try:
            row = await self._client.call(kind, query, (key,) if value is None else (key, value), load.timeout)
        except Exception as e:  # noqa: BLE001  whatever a caller is told goes into the history
            end = journal.now()
            outcome, error = self._client.outcome_of(kind, e), f"{type(e).__name__}: {e}"
        else:
            end = journal.now()
            node, seen = row["node"], tuple(row["seen"] or ()) if kind is Kind.READ else None
        journal.operation(
            Operation(
                client=self._name,
                kind=kind,
                start=start,
                end=end,
                outcome=outcome,
                key=key,
                value=value,
                seen=seen,
                node=node,
                error=error,
                deadline=start + load.timeout,
            )
        )
        await asyncio.sleep(load.pause * (0.5 + self._rng.random()))


_NODE = "current_setting('cluster_name') AS node"


class Append(Workload):
    """Every value is a row of its own."""

    __slots__ = ()
    table = "chaos_append"
    # No index is unique: a second application of an append must show as a second row, not as an error.
    create = (f"CREATE TABLE {table} (key bigint NOT NULL, n bigint NOT NULL)", f"CREATE INDEX ON {table} (key)")
    append = f"INSERT INTO {table} (key, n) VALUES ($1, $2) RETURNING {_NODE}"
    read = f"SELECT {_NODE}, array_agg(n) AS seen FROM {table} WHERE key = $1"
    read_back = f"SELECT key, array_agg(n) FROM {table} GROUP BY key"


class ListAppend(Workload):
    """The values of a key are one list, in the order in which the server applied the appends."""

    __slots__ = ()
    table = "chaos_list"
    # The key is unique, the values are not: a second application makes a list with a value twice.
    create = (f"CREATE TABLE {table} (key bigint PRIMARY KEY, items bigint[] NOT NULL)",)
    append = (
        f"INSERT INTO {table} AS list (key, items) VALUES ($1, ARRAY[$2::bigint]) "
        f"ON CONFLICT (key) DO UPDATE SET items = list.items || EXCLUDED.items RETURNING {_NODE}"
    )
    read = f"SELECT {_NODE}, (SELECT items FROM {table} WHERE key = $1) AS seen"
    read_back = f"SELECT key, items FROM {table}"


WORKLOADS: dict[str, type[Workload]] = {"append": Append, "list-append": ListAppend}
"""The workloads, by their names in a scenario."""
