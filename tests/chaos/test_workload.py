"""What callers of all workloads do, on a client that is a dictionary."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from chaos.clients import Client, Place
from chaos.history import History, Kind, Outcome
from chaos.journal import Journal
from chaos.workloads import WORKLOADS, Append, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACE = Place(addresses={}, size=1, guard={}, tell=print)


class Memory(Client):
    """Answers *calls* calls, then sets *stop*; every seventh raises, and counts as unknown."""

    takes_tokens = False

    def __init__(self, calls: int, stop: asyncio.Event) -> None:
        super().__init__(PLACE)
        self.left = calls
        self.stop = stop
        self.lists: dict[object, list[object]] = defaultdict(list)
        self.contexts = 0

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    def context(self) -> Any:
        self.contexts += 1
        return contextlib.nullcontext()

    async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:
        self.left -= 1
        if self.left <= 0:
            self.stop.set()
        await asyncio.sleep(0)  # others have their turn; the call is let end, though the stop is set
        if self.left % 7 == 0:
            error = OSError("no route")
            error.add_note("to b")
            raise error
        if kind is Kind.READ:
            return {"node": "a", "seen": list(self.lists[args[0]]) or None}
        self.lists[args[0]].append(args[1])
        return {"node": "a"}

    async def fetch(self, *args: Any) -> Any:
        raise NotImplementedError

    async def transaction(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def copy(self, *args: Any) -> int:
        raise NotImplementedError

    def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
        return Outcome.FAILED if kind is Kind.READ else Outcome.UNKNOWN

    def leases(self) -> int:
        return 0


async def worked(workload: Workload, calls: int = 500, seed: int = 1) -> tuple[History, Memory]:
    stop = asyncio.Event()
    client, journal = Memory(calls, stop), Journal(0.0)
    async with asyncio.timeout(30):
        await workload.run(client, journal, stop, seed)
    return journal.history(), client


def load(**changes: Any) -> Append:
    return Append(**{"readers": 2, "writers": 2, "owners": 2, "pause": 0, "linger": 0.01, "timeout": 3} | changes)


async def test_every_call_is_recorded_as_it_ended() -> None:
    history, client = await worked(load())

    assert len(history.operations) == 500 - client.left
    assert [op.end for op in history.operations] == sorted(op.end for op in history.operations)
    failed = [op for op in history.operations if op.outcome is not Outcome.OK]
    assert {(op.kind, op.outcome, op.error) for op in failed} == {
        (Kind.READ, Outcome.FAILED, "OSError: no route; to b"),
        (Kind.APPEND, Outcome.UNKNOWN, "OSError: no route; to b"),
    }
    assert all(op.deadline == op.start + 3 for op in history.operations)
    assert all(
        op.node == "a" and (op.seen is not None) is (op.kind is Kind.READ) for op in history.operations if not op.error
    )


async def test_no_value_is_appended_twice_and_keys_stay_short() -> None:
    history, client = await worked(load(), calls=2_000)

    values = [op.value for op in history.operations if op.kind is Kind.APPEND]
    assert len(values) == len(set(values))
    assert len(client.lists) > 10
    assert max(map(len, client.lists.values())) <= 16


async def test_each_kind_of_caller_does_its_part_in_a_context_of_its_own() -> None:
    history, client = await worked(load())

    did: dict[str, set[Kind]] = defaultdict(set)
    for op in history.operations:
        did[op.client].add(op.kind)
    both = {Kind.READ, Kind.APPEND}
    assert did == {
        **{f"reader {n}": {Kind.READ} for n in range(2)},
        **{f"writer {n}": {Kind.APPEND} for n in range(2)},
        **{f"owner {n}": both for n in range(2)},
    }
    assert client.contexts == load().callers == 6


async def test_owner_reads_what_it_has_just_appended_to() -> None:
    history, _ = await worked(load(readers=0, writers=0, owners=1))

    key = None
    for op in history.operations:
        if op.kind is Kind.APPEND:
            key = op.key
        assert op.key == key
    assert sum(op.kind is Kind.READ for op in history.operations) > 50


async def test_seed_decides_what_a_caller_chooses() -> None:
    alone = load(readers=0, owners=0, writers=1)
    keys = [[op.key for op in (await worked(alone, seed=seed))[0].operations] for seed in (1, 1, 2)]

    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


async def test_call_that_ends_as_cancelled_though_nobody_cancelled_it_does_not_go_unnoticed() -> None:
    class Quitter(Memory):
        async def call(self, kind: Kind, query: str, args: Sequence[object], timeout: float) -> Any:
            raise asyncio.CancelledError

    with pytest.raises(ExceptionGroup) as caught:
        await load(readers=1, writers=0, owners=0).run(Quitter(9, asyncio.Event()), Journal(0.0), asyncio.Event(), 1)
    assert "reader 0: a read was cancelled, and nobody had cancelled it" in str(caught.value.exceptions)


async def test_error_of_the_harness_itself_is_none_of_a_callers() -> None:
    class Wrong(Memory):
        def outcome_of(self, kind: Kind, error: Exception) -> Outcome:
            raise AssertionError("cannot read it")

    with pytest.raises(ExceptionGroup):
        await load().run(Wrong(100, asyncio.Event()), Journal(0.0), asyncio.Event(), 1)


@pytest.mark.parametrize("kind", WORKLOADS.values())
def test_statements_of_a_workload_are_of_one_table_and_values_are_not_unique(kind: type[Workload]) -> None:
    assert all(kind.table in text for text in [*kind.create, kind.read_back])
    assert not any("UNIQUE" in text.upper() for text in kind.create)
