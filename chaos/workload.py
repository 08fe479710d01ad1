"""What clients do while things break, and how they write it down.

Each client is a worker with a causal context of its own, as a web request has one. It makes one call at a time and
records what it was told. Clients stop between two calls: a harness that cancelled a COMMIT would make its own unknowns.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Annotated, Any

import dbguard
from chaos.history import Kind, Operation, Outcome
from dbguard.config.quantities import Duration, Whole
from dbguard.config.section import Section

__all__ = ["CREATE", "DROP", "READ_BACK", "TABLE", "WORKLOADS", "Append", "Recorder", "Workload"]

TABLE = "chaos_append"
# The index is not unique: a second application of an append must show as a second row, not as an error.
CREATE = f"CREATE TABLE {TABLE} (n bigint NOT NULL); CREATE INDEX ON {TABLE} (n)"
DROP = f"DROP TABLE IF EXISTS {TABLE}"
READ_BACK = f"SELECT n FROM {TABLE}"

_READ = f"SELECT current_setting('cluster_name') AS node, max(n) AS value FROM {TABLE}"
_APPEND = f"INSERT INTO {TABLE} (n) VALUES ($1) RETURNING current_setting('cluster_name') AS node, n AS value"


class Recorder:
    """Keeps what clients were told."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    async def record(self, client: str, kind: Kind, call: Awaitable[Any], value: int | None = None) -> None:
        """Await a call and keep what became of it.

        call: gives a row with ``node`` and ``value``.
        value: what it appends.
        """
        node, error, outcome = None, None, Outcome.OK
        start = time.monotonic()
        try:
            row = await call
        except Exception as e:  # noqa: BLE001  whatever a client is told goes into the history
            outcome, error = outcome_of(e), f"{type(e).__name__}: {e}"
        else:
            node, value = row["node"], row["value"]
        end = time.monotonic()
        self.operations.append(
            Operation(
                client=client, kind=kind, start=start, end=end, outcome=outcome, value=value, node=node, error=error
            )
        )


def outcome_of(error: Exception) -> Outcome:
    """Say what an error of the guard promises about the call. Whatever is not said to be open has not been applied."""
    match error:
        case dbguard.OutcomeUnknown():
            return Outcome.UNKNOWN
        case dbguard.ResultLost():
            return Outcome.RESULT_LOST
        case _:
            return Outcome.FAILED


class Workload(Section):
    """What clients do, with how many of them."""

    __slots__ = ()

    async def run(self, guard: dbguard.Guard, recorder: Recorder, stop: asyncio.Event) -> None:
        """Let all clients work until *stop* is set; return once each has ended its last call."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Append(Workload):
    """Writers append unique values, readers ask for the highest one."""

    readers: Annotated[int, Whole(0, 1_000)] = 4
    """Clients that read, 0 to 1,000. Default 4."""
    writers: Annotated[int, Whole(0, 1_000)] = 2
    """Clients that append, 0 to 1,000. Default 2."""
    pause: Annotated[float, Duration()] = 0.005
    """Seconds that a client waits between two calls, at least. Default 5 ms."""

    async def run(self, guard: dbguard.Guard, recorder: Recorder, stop: asyncio.Event) -> None:
        """Let all clients work until *stop* is set."""
        values = itertools.count(1)

        async def work(name: str, kind: Kind) -> None:
            async with guard.causal():
                while not stop.is_set():
                    if kind is Kind.READ:
                        await recorder.record(name, kind, guard.fetchrow(_READ))
                    else:
                        value = next(values)
                        await recorder.record(name, kind, guard.fetchrow(_APPEND, value), value)
                    await asyncio.sleep(self.pause)

        async with asyncio.TaskGroup() as clients:
            for number in range(self.readers):
                clients.create_task(work(f"reader {number}", Kind.READ))
            for number in range(self.writers):
                clients.create_task(work(f"writer {number}", Kind.APPEND))


WORKLOADS: dict[str, type[Workload]] = {"append": Append}
"""The workloads, by their names in a scenario."""
