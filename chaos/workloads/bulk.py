"""COPY of batches, and reads of large results.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any

from chaos.clients import Client
from chaos.workloads.base import Appended, Seen, Workload
from dbguard.config.quantities import Whole

__all__ = ["Bulk"]

_BALLAST = 0  # the value of rows that a read returns beside those of the table; nobody sends it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Bulk(Workload):
    """A value is a batch of rows, which are written by one COPY. A read returns all rows of its key, and ballast.

    What is there in part is told as a value that nobody sends: a batch that is torn as its value's negative, a result that
    is not complete beside that as 0.
    """

    batch: Annotated[int, Whole(1, 100_000)] = 1_000
    """Rows of a batch, 1 to 100,000. Default 1,000."""
    ballast: Annotated[int, Whole(1, 1_000_000)] = 10_000
    """Rows that each read returns beside those of the table, 1 to 1,000,000. Default 10,000."""

    table = "chaos_bulk"
    # No index is unique: a second COPY must show as twice as many rows, not as an error.
    create = (
        f"CREATE TABLE {table} (key bigint NOT NULL, n bigint NOT NULL, part int NOT NULL, of int NOT NULL)",
        f"CREATE INDEX ON {table} (key)",
    )
    # How often a batch is there: as often as its rarest part.
    read_back = f"""
        SELECT key, array_agg(CASE WHEN torn THEN -n ELSE n END) FROM (
            SELECT key, n, min(times) AS times, min(times) <> max(times) OR count(*) <> min(of) AS torn
            FROM (SELECT key, n, part, of, count(*) AS times FROM {table} GROUP BY key, n, part, of) AS parts
            GROUP BY key, n
        ) AS batches, generate_series(1, times) GROUP BY key
    """
    per_key = 8

    async def append(self, client: Client, key: int, value: int) -> Appended:
        """Append by COPY."""
        rows = [(key, value, part, self.batch) for part in range(self.batch)]
        await client.copy(self.table, ("key", "n", "part", "of"), rows, self.timeout)
        return Appended(None)

    async def read(self, client: Client, key: int) -> Any:
        """Read a large result."""
        query = f"""
            SELECT current_setting('cluster_name') AS node, {_BALLAST}::bigint AS n, 0 AS part UNION ALL
            SELECT NULL, {_BALLAST}, part FROM generate_series(1, $2::int - 1) AS part UNION ALL
            SELECT NULL, n, part FROM {self.table} WHERE key = $1
        """
        return await client.fetch(query, (key, self.ballast), self.timeout)

    def seen(self, answer: Sequence[Mapping[str, Any]]) -> Seen:
        """Put the batches together; quickly, since all other callers wait meanwhile: of parts just their sum is looked at."""
        rows = Counter(map(itemgetter("n"), answer))
        node = next(filter(None, map(itemgetter("node"), answer)), None)
        complete = rows.pop(_BALLAST, 0) == self.ballast
        values: list[int] = []
        for n, count in rows.items():
            values += [-n] if count % self.batch else [n] * (count // self.batch)
        parts = _sum_below(self.ballast) + len(values) * _sum_below(self.batch)
        complete = complete and sum(map(itemgetter("part"), answer)) == parts
        if not complete and all(value > 0 for value in values):
            values.append(_BALLAST)
        return Seen(node, tuple(values))


def _sum_below(count: int) -> int:
    return count * (count - 1) // 2
