"""Histories as an honest cluster would have them, by a seed."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import pytest

from chaos.history import Fault, History, Kind, Operation, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

END = 5.0
FAULT = Fault(what="a hole", start=1.0, end=4.0)
LAG = 1.0  # seconds that a replica is behind, at most


@pytest.fixture(scope="session")
def honest() -> Callable[[int], History]:
    return make


def make(seed: int) -> History:
    """Six seconds of three readers, two writers and two owners over shared keys.

    One is the warm-up. b is away from 1 s to 4 s; replicas lag; some appends fail, some have an open fate: half of
    those are applied, at any time, also after the caller was told.
    """
    rng = random.Random(seed)
    values = count(1)
    calls = [op for name in ("reader 0", "reader 1", "reader 2") for op in caller(name, rng, values, [Kind.READ])]
    calls += [op for name in ("writer 0", "writer 1") for op in caller(name, rng, values, [Kind.APPEND])]
    own = [Kind.APPEND, Kind.READ, Kind.READ]
    calls += [op for name in ("owner 0", "owner 1") for op in caller(name, rng, values, own)]
    calls.sort(key=lambda op: op.end)
    commits = {op.value: moment for op in calls if (moment := commit(op, rng)) is not None}
    lists: dict[int, list[int]] = defaultdict(list)
    for op in sorted((op for op in calls if op.value in commits), key=lambda op: commits[op.value]):
        assert op.key is not None
        assert op.value is not None
        lists[op.key].append(op.value)
    return History(
        head={"seed": seed},
        operations=tuple(seen(calls, lists, commits, rng)),
        faults=(FAULT,),
        stopped=END,
        final={key: tuple(values) for key, values in lists.items()},
        leaks=(),
        events=({"event": "CallRepeated", "at": 1.5, "node": "b"},),
    )


def caller(name: str, rng: random.Random, values: Iterator[int], cycle: list[Kind]) -> Iterator[Operation]:
    """Make one caller's calls; no two appends in a row go without an acknowledgement, so that pauses stay short."""
    now, key, told = rng.uniform(-1, -0.9), 0, Outcome.OK
    while now < END:
        for kind in cycle:
            start = now + rng.uniform(0, 0.1)
            end = now = start + rng.uniform(0.001, 0.25)
            node, outcome = "a", Outcome.OK
            if kind is Kind.READ:
                node = "c" if end > FAULT.start and start < FAULT.end else rng.choice("bc")
            elif told is Outcome.OK:
                outcome = rng.choices(list(Outcome), [70, 12, 15, 3])[0]
            if kind is Kind.APPEND:
                told = outcome
            if kind is cycle[0]:  # an owner reads what it has just appended to
                key = rng.randrange(3) + 3 * int((start + 1) // 2)
            yield Operation(
                client=name,
                kind=kind,
                start=start,
                end=end,
                outcome=outcome,
                key=key,
                value=next(values) if kind is Kind.APPEND else None,
                node=node if outcome is Outcome.OK else None,
                deadline=start + 0.3,
            )


def commit(op: Operation, rng: random.Random) -> float | None:
    """Choose when an append is applied, if it is."""
    if op.kind is Kind.READ or op.outcome is Outcome.FAILED:
        return None
    if op.outcome is Outcome.UNKNOWN:
        return rng.uniform(op.start, op.end + 2.0) if rng.random() < 0.5 else None
    return rng.uniform(op.start, op.end)


def seen(
    calls: list[Operation], lists: dict[int, list[int]], commits: dict[int | None, float], rng: random.Random
) -> Iterator[Operation]:
    """Let every read see what was committed at some moment, not too long ago, and all that its caller wrote or saw."""
    least: dict[tuple[str, int | None], float] = defaultdict(lambda: -9.0)
    mine = {op.value: op.client for op in calls if op.kind is Kind.APPEND}
    for op in calls:
        at = op.client, op.key
        if op.kind is Kind.APPEND:
            if op.acknowledged:
                least[at] = max(least[at], commits[op.value])
            yield op
            continue
        moment = rng.uniform(max(least[at], op.end - LAG), op.end)
        values = tuple(value for value in lists.get(op.key or 0, ()) if commits[value] <= moment)
        least[at] = max([least[at], *(commits[value] for value in values if mine[value] == op.client)])
        yield replace(op, seen=values)
