"""What is drawn over time: bins that hold every call once, and few enough to be drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from chaos.history import Fault, History, Kind, Operation, Outcome
from chaos.report.series import Axis, axis_of, latency, level, merged, throughput

if TYPE_CHECKING:
    from collections.abc import Callable

AXIS = Axis(start=-1.0, width=0.5, count=4)


def call(start: float, end: float, outcome: Outcome = Outcome.OK, kind: Kind = Kind.READ) -> Operation:
    return Operation(client="c", kind=kind, start=start, end=end, outcome=outcome)


@pytest.mark.parametrize(
    ("moment", "number"), [(-9.0, 0), (-1.0, 0), (-0.51, 0), (-0.5, 1), (0.0, 2), (0.99, 3), (1.0, 3), (9.0, 3)]
)
def test_bin_holds_its_beginning_and_not_its_end(moment: float, number: int) -> None:
    assert AXIS.bin(moment) == number
    assert AXIS.edges == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert AXIS.end == 1.0


@pytest.mark.parametrize("last", [0.01, 0.1, 1.0, 9.5, 20.0, 59.0, 600.0, 5_000.0, 100_000.0])
def test_axis_holds_all_in_few_bins(last: float) -> None:
    history = History(
        operations=(call(-1.3, -1.0), call(0.0, last / 2)),
        faults=(Fault(what="a hole", start=0.0, end=last), Fault(what="another", start=0.0)),
    )

    axis = axis_of(history)

    assert axis.start <= -1.3 < axis.start + axis.width
    assert axis.end - axis.width < last <= axis.end + 1e-9
    assert 1 <= axis.count <= 240


@pytest.mark.parametrize(
    "history",
    [
        History(operations=(call(0.0, 7.0),)),
        History(faults=(Fault(what="a hole", start=1.0, end=7.0),)),
        History(stopped=7.0),
        History(samples=({"at": 7.0},)),
    ],
)
def test_axis_reaches_as_far_as_anything_that_happened(history: History) -> None:
    assert axis_of(history).end == pytest.approx(7.0)


def test_history_of_nothing_has_an_axis() -> None:
    assert axis_of(History()).count == 1


def test_every_call_is_counted_once_where_it_ended(honest: Callable[[int], History]) -> None:
    history = honest(3)
    axis = axis_of(history)

    for kind in Kind:
        counts = throughput(history, axis, kind)
        for outcome in Outcome:
            there = [op for op in history.operations if op.kind is kind and op.outcome is outcome]
            assert sum(counts[outcome]) == len(there)
    counts = throughput(History(operations=(call(-0.9, 0.6, Outcome.UNKNOWN, Kind.APPEND),)), AXIS, Kind.APPEND)
    assert counts[Outcome.UNKNOWN] == [0, 0, 0, 1]
    assert counts[Outcome.OK] == [0, 0, 0, 0]


def test_latency_is_what_calls_had() -> None:
    calls = tuple(call(0.1 - took / 1000, 0.1) for took in range(1, 200))

    found = latency(History(operations=(*calls, call(0, 0.9, kind=Kind.APPEND))), AXIS, Kind.READ)

    assert found.p50[2] == pytest.approx(0.100)
    assert found.p99[2] == pytest.approx(0.198)
    assert found.longest[2] == pytest.approx(0.199)
    assert [math.isnan(value) for value in found.p50] == [True, True, False, True]
    assert math.isnan(found.longest[3])


def test_latency_of_one_call_is_its_own() -> None:
    found = latency(History(operations=(call(0.0, 0.25),)), AXIS, Kind.READ)

    assert (found.p50[2], found.p99[2], found.longest[2]) == (0.25, 0.25, 0.25)


def test_level_is_the_highest_that_was_seen_in_a_bin() -> None:
    samples: tuple[dict[str, Any], ...] = (
        {"at": -0.9, "waiting": 0},
        {"at": -0.6, "waiting": 7},
        {"at": -0.55, "waiting": 2},
        {"at": 0.1},
        {"at": 0.6, "waiting": "many"},
        {"at": 0.7, "waiting": 3},
    )

    found = level(History(samples=samples), AXIS, "waiting")

    assert found[0] == 7
    assert math.isnan(found[1])
    assert math.isnan(found[2])
    assert found[3] == 3


@pytest.mark.parametrize(
    ("spans", "gap", "joined"),
    [
        ([], 0.0, []),
        ([(2.0, 3.0), (0.0, 1.0)], 0.0, [(0.0, 1.0), (2.0, 3.0)]),
        ([(0.0, 5.0), (1.0, 2.0), (4.0, 6.0)], 0.0, [(0.0, 6.0)]),
        ([(0.0, 1.0), (1.2, 2.0)], 0.2, [(0.0, 2.0)]),
        ([(0.0, 1.0), (1.0, 2.0)], 0.0, [(0.0, 2.0)]),
    ],
)
def test_spans_that_overlap_or_nearly_touch_are_one(
    spans: list[tuple[float, float]], gap: float, joined: list[tuple[float, float]]
) -> None:
    assert merged(spans, gap) == joined
