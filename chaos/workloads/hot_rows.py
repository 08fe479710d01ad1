"""Transaction functions that read in the application, and write back what they made of it.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from chaos.clients import Client
from chaos.history import Kind
from chaos.workloads.base import NODE, Appended, Seen, Workload
from dbguard.config.quantities import Whole
from dbguard.config.values import Choice

__all__ = ["HotRows"]

_LISTS = 20_000  # keys that there are: at 500 appends a second, enough for ten minutes
_COUNTERS = 100

_Row: TypeAlias = tuple[
    int, str, Callable[[Any], Any]
]  # its key, a column of it, and what the application makes of that
_Isolation = Literal["read_committed", "repeatable_read", "serializable"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class HotRows(Workload):
    """An append reads a list and a counter, and writes back the list with the value and the counter with one more.

    Few rows for many callers: all but one of those that meet must be run again, and a run that is not repeated as a whole
    loses an update. The table tells of what lists cannot show, one of the two written without the other, or a counter
    that lost a count: as 0, a value that nobody sends.
    """

    isolation: Annotated[_Isolation, Choice(_Isolation)] = "repeatable_read"
    """Of the transactions. Under read_committed they lock what they read, FOR UPDATE. Default repeatable_read."""
    counters: Annotated[int, Whole(1, _COUNTERS)] = 2
    """How many counters there are, 1 to 100: the fewer, the hotter. Default 2."""
    crossing: Annotated[int, Whole(0, 1_000_000)] = 500
    """One append of so many takes counter and list the other way round, so that deadlocks occur; each holds up whoever
    wants the same rows for the server's ``deadlock_timeout`` of 1 s. 0: none does. Default 500."""

    table = "chaos_hot"
    # The key is unique, the values are not. Counters have negative keys.
    create = (
        f"CREATE TABLE {table} (key bigint PRIMARY KEY, items bigint[] NOT NULL, count bigint NOT NULL)",
        f"INSERT INTO {table} SELECT key, '{{}}', 0 FROM generate_series(-{_COUNTERS}, {_LISTS}) AS key",
    )
    read_back = (
        f"SELECT key, items FROM {table} WHERE items <> '{{}}' UNION ALL "
        f"SELECT 0, ARRAY[0::bigint] FROM {table} HAVING sum(count) <> sum(cardinality(items))"
    )
    ordered = True

    async def append(self, client: Client, key: int, value: int) -> Appended:
        """Append in a transaction function."""
        attempts = 0
        lock = " FOR UPDATE" if self.isolation == "read_committed" else ""
        counter = -1 - value % self.counters
        rows: list[_Row] = [(key, "items", lambda items: [*items, value]), (counter, "count", lambda count: count + 1)]
        if self.crossing and value % self.crossing == 0:
            rows.reverse()

        def work() -> Generator[tuple[str, tuple[object, ...]], Any, str]:
            nonlocal attempts
            attempts += 1
            made = []
            for row, column, make in rows:
                found = yield f"SELECT {column} FROM {self.table} WHERE key = $1{lock}", (row,)
                made.append((row, column, make(found[column])))
            for row, column, content in made:
                done = yield f"UPDATE {self.table} SET {column} = $2 WHERE key = $1 RETURNING {NODE}", (row, content)
            return str(done["node"])

        node = await client.transaction(work, isolation=self.isolation, timeout=self.timeout)
        return Appended(node, attempts)

    async def read(self, client: Client, key: int) -> Any:
        """Read a list."""
        query = f"SELECT {NODE}, items FROM {self.table} WHERE key = $1"
        return await client.call(Kind.READ, query, (key,), self.timeout)

    def seen(self, answer: Any) -> Seen:
        """Take the list from the row."""
        return Seen(answer["node"], tuple(answer["items"]))
