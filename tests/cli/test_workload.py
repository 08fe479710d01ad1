from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.cli.demo.history import Ending, History
from dbguard.cli.demo.workload import READERS, WRITERS, Side
from dbguard.errors import NoPrimary, OutcomeUnknown, ResultLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CALLS = 100


class Database:
    """Answers at once, by turns as it is told to; tells when it has had enough calls."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = errors or (None,)
        self.calls = 0
        self.values: list[int] = []
        self.enough = asyncio.Event()

    async def execute(self, query: str, *args: Any) -> str:
        self.values.append(args[0])
        await self.fetch(query)
        return "INSERT 0 1"

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        self.calls += 1
        if self.calls >= CALLS:
            self.enough.set()
        error = self.errors[self.calls % len(self.errors)]
        if error is not None:
            raise error
        return []


async def work(database: Database, **options: Any) -> History:
    history = History(time.monotonic())
    side = Side("items", database, history, time.monotonic, **options)
    side.start()
    await database.enough.wait()
    await side.stop()
    return history


async def test_every_value_is_written_once() -> None:
    database = Database()

    history = await work(database)

    assert max(Counter(database.values).values()) == 1
    assert history.values(Ending.ACKNOWLEDGED) == set(database.values)
    assert len(history.operations) == database.calls


async def test_each_ending_is_recorded_as_the_client_saw_it_and_nothing_is_repeated() -> None:
    unknown = OutcomeUnknown("it may have been applied", node="a", phase="sent")
    lost = ResultLost("it was applied, its rows are lost", node="a")
    database = Database(None, NoPrimary("no primary"), unknown, lost, OSError("reset"))

    history = await work(database)

    assert len(history.operations) == database.calls
    assert history.errors.keys() == {"NoPrimary", "OSError"}
    assert {o.error for o in history.operations if o.ending is Ending.UNKNOWN} == {"OutcomeUnknown"}
    assert {o.error for o in history.operations if o.ending is Ending.RESULT_LOST} == {"ResultLost"}
    assert max(Counter(database.values).values()) == 1


async def test_each_client_has_a_context_of_its_own() -> None:
    opened = 0

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        nonlocal opened
        opened += 1
        yield

    await work(Database(), context=context)

    assert opened == WRITERS + READERS


async def test_call_that_never_ends_is_a_failure_and_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbguard.cli.demo.workload.END_WITHIN", 0.01)

    class Hole(Database):
        async def execute(self, query: str, *args: Any) -> str:
            return await asyncio.Future()

    history = await work(Hole())

    assert history.errors == {"still under way at the end": WRITERS}


async def test_mistake_of_the_demo_itself_is_not_hidden() -> None:
    def broken() -> Any:
        raise TypeError("no context")

    side = Side("items", Database(), History(0.0), time.monotonic, context=broken)
    side.start()

    with pytest.raises(TypeError, match="no context"):
        await side.stop()
