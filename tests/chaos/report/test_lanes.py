"""Where faults and their labels go: a row for each kind, and no label across a bar."""

from __future__ import annotations

import random

import pytest

from chaos.history import Fault
from chaos.report.lanes import Lanes, lanes_of
from chaos.report.series import Axis

AXIS = Axis(start=-1.0, width=0.1, count=110)
CHARACTER = 0.05


def some(what: str, *spans: tuple[float, float | None]) -> list[Fault]:
    return [Fault(what=what, start=start, end=end) for start, end in spans]


def placed(*faults: Fault) -> Lanes:
    return lanes_of(sorted(faults, key=lambda fault: fault.start), AXIS, CHARACTER)


def test_faults_of_one_kind_share_a_row_and_kinds_come_as_they_began() -> None:
    lanes = placed(*some("second", (2.0, 2.1), (4.0, 4.1)), *some("first", (1.0, 1.1), (3.0, 3.1)))

    assert [(row.label, row.bars) for row in lanes.rows] == [
        ("first", [(1.0, 1.1), (3.0, 3.1)]),
        ("second", [(2.0, 2.1), (4.0, 4.1)]),
    ]
    assert [row.line for row in lanes.rows] == [0, 1]
    assert lanes.lines == 2


def test_label_stands_behind_the_first_bar_that_has_room() -> None:
    (row,) = placed(*some("a fault with a long name", (0.5, 0.6), (1.0, 1.1), (5.0, 5.1))).rows

    assert row.label_line == row.line
    assert row.label_at == pytest.approx(1.1 + CHARACTER / 2)


def test_label_stands_before_the_bars_where_there_is_no_room_behind() -> None:
    (row,) = placed(*some("a fault", (2.0, 10.0))).rows

    assert row.label_line == row.line
    assert row.label_at == pytest.approx(-1.0 + CHARACTER / 2)


def test_label_that_has_no_room_beside_the_bars_gets_a_line_of_its_own() -> None:
    lanes = placed(*some("a fault", (-0.9, 10.0)), *some("another", (1.0, 1.1)))

    first, second = lanes.rows
    assert (first.label_line, first.line) == (0, 1)
    assert (second.label_line, second.line) == (2, 2)
    assert lanes.lines == 3


def test_no_label_lies_across_a_bar() -> None:
    rng = random.Random(5)
    for _ in range(200):
        whats = ["x" * rng.randint(1, 120) for _ in range(rng.randint(1, 20))]
        faults = [
            Fault(what=what, start=start, end=start + rng.uniform(0.01, 2.0))
            for what in whats
            for start in (rng.uniform(0, 7.9) for _ in range(rng.randint(1, 9)))
        ]
        for row in placed(*faults).rows:
            ends = row.label_at + len(row.label) * CHARACTER
            across = [bar for bar in row.bars if row.line == row.label_line and bar[0] < ends and bar[1] > row.label_at]
            assert across == [], row


def test_fault_that_was_not_healed_lasts_to_the_end() -> None:
    (row,) = placed(*some("a fault", (2.0, None))).rows

    assert row.bars == [(2.0, AXIS.end)]


def test_many_kinds_share_the_last_row() -> None:
    faults = [fault for n in range(30) for fault in some(f"kind {n:02}", (n / 10, n / 10 + 0.01))]

    rows = placed(*faults).rows

    assert len(rows) == 13
    assert rows[-1].label == "18 more kinds"
    assert len(rows[-1].bars) == 18


def test_run_without_faults_has_a_line_to_say_so() -> None:
    assert placed() == Lanes(rows=[], lines=1)
