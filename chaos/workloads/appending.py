"""Appends and reads of one statement each."""

from typing import Any, ClassVar

from chaos.clients import Client
from chaos.history import Kind
from chaos.workloads.base import NODE, Appended, Seen, Workload

__all__ = ["Append", "ListAppend"]


class _Statements(Workload):
    """A matter of its statements.

    appending: takes a key and a value. reading: takes a key. Both return one row with ``node``, *reading* also with
    ``seen``.
    """

    __slots__ = ()
    appending: ClassVar[str]
    reading: ClassVar[str]

    async def append(self, client: Client, key: int, value: int) -> Appended:
        """Append by a statement."""
        row = await client.call(Kind.APPEND, self.appending, (key, value), self.timeout)
        return Appended(row["node"])

    async def read(self, client: Client, key: int) -> Any:
        """Read by a statement."""
        return await client.call(Kind.READ, self.reading, (key,), self.timeout)

    def seen(self, answer: Any) -> Seen:
        """Take the values from the row."""
        return Seen(answer["node"], tuple(answer["seen"] or ()))


class Append(_Statements):
    """Every value is a row of its own."""

    __slots__ = ()
    table = "chaos_append"
    # No index is unique: a second application of an append must show as a second row, not as an error.
    create = (f"CREATE TABLE {table} (key bigint NOT NULL, n bigint NOT NULL)", f"CREATE INDEX ON {table} (key)")
    appending = f"INSERT INTO {table} (key, n) VALUES ($1, $2) RETURNING {NODE}"
    reading = f"SELECT {NODE}, array_agg(n) AS seen FROM {table} WHERE key = $1"
    read_back = f"SELECT key, array_agg(n) FROM {table} GROUP BY key"


class ListAppend(_Statements):
    """The values of a key are one list, in the order in which the server applied the appends."""

    __slots__ = ()
    table = "chaos_list"
    # The key is unique, the values are not: a second application makes a list with a value twice.
    create = (f"CREATE TABLE {table} (key bigint PRIMARY KEY, items bigint[] NOT NULL)",)
    appending = (
        f"INSERT INTO {table} AS list (key, items) VALUES ($1, ARRAY[$2::bigint]) "
        f"ON CONFLICT (key) DO UPDATE SET items = list.items || EXCLUDED.items RETURNING {NODE}"
    )
    reading = f"SELECT {NODE}, (SELECT items FROM {table} WHERE key = $1) AS seen"
    read_back = f"SELECT key, items FROM {table}"
    ordered = True
