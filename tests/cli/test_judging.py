from __future__ import annotations

from dataclasses import replace

import pytest

from dbguard.cli.demo.history import Ending, History, Operation
from dbguard.cli.demo.judging import Figures, Proofs, excuse, faults, first_after, judge, longest_pause

GOOD = Figures(
    reads=10,
    writes=10,
    errors=0,
    proved_applied=0,
    proved_not_applied=0,
    unknown=0,
    unknown_applied=0,
    result_lost=0,
    failed_applied=0,
    lost=0,
    duplicated=0,
    read_gap_s=0.1,
    write_gap_s=1.1,
    longest_read_s=0.1,
    write_gap_after_promotion_s=0.1,
)


def history(*writes: tuple[float, int, Ending]) -> History:
    made = History(0.0)
    for ended, value, ending in writes:
        made.add(Operation("write", ended - 0.01, ended, ending, value))
    made.ended = 10.0
    return made


def test_acknowledged_write_that_the_table_does_not_hold_is_lost() -> None:
    figures = judge(history((1, 7, Ending.ACKNOWLEDGED), (2, 8, Ending.ACKNOWLEDGED)), {8: 1}, None)

    assert (figures.writes, figures.lost, figures.duplicated) == (2, 1, 0)


def test_value_that_is_there_twice_is_duplicated_whatever_its_client_was_told() -> None:
    figures = judge(history((1, 7, Ending.ACKNOWLEDGED), (2, 8, Ending.UNKNOWN)), {7: 3, 8: 2}, None)

    assert (figures.lost, figures.duplicated) == (0, 3)


@pytest.mark.parametrize("there", [True, False])
def test_unknown_write_is_neither_lost_nor_an_error(*, there: bool) -> None:
    figures = judge(history((1, 7, Ending.UNKNOWN)), {7: 1} if there else {}, None)

    assert (figures.unknown, figures.errors, figures.lost) == (1, 0, 0)
    assert figures.unknown_applied == there


@pytest.mark.parametrize("there", [True, False])
def test_write_whose_rows_were_lost_is_lost_itself_if_the_table_does_not_hold_it(*, there: bool) -> None:
    figures = judge(history((1, 7, Ending.RESULT_LOST)), {7: 1} if there else {}, None)

    assert (figures.result_lost, figures.writes, figures.errors, figures.unknown) == (1, 0, 0, 0)
    assert figures.lost == (not there)


def test_proofs_are_those_that_the_guard_counts() -> None:
    figures = judge(history(), {}, None, Proofs.of({"proved_applied": 2, "proved_not_applied": 3, "unknown": 9}))

    assert (figures.proved_applied, figures.proved_not_applied) == (2, 3)
    assert Proofs.of({}).all == 0


def test_failed_write_that_the_table_holds_is_counted_beside() -> None:
    figures = judge(history((1, 7, Ending.FAILED), (2, 8, Ending.FAILED)), {7: 1}, None)

    assert (figures.errors, figures.failed_applied, figures.lost) == (2, 1, 0)


def test_gaps_are_those_of_each_kind() -> None:
    made = history((1, 7, Ending.ACKNOWLEDGED), (6, 8, Ending.ACKNOWLEDGED), (9, 9, Ending.FAILED))
    for at in (2.0, 4.0, 6.0, 8.0):
        made.add(Operation("read", at - 0.5, at, Ending.ACKNOWLEDGED))

    figures = judge(made, {7: 1, 8: 1}, 5.5)

    assert (figures.reads, figures.read_gap_s, figures.longest_read_s) == (4, 2.0, 0.5)
    assert figures.write_gap_s == 5.0
    assert figures.write_gap_after_promotion_s == 0.5


@pytest.mark.parametrize(
    ("times", "pause"),
    [
        pytest.param([], 10.0, id="nothing at all"),
        pytest.param([1.0, 2.0], 8.0, id="never again after the last"),
        pytest.param([7.0, 9.0], 7.0, id="late for the first time"),
        pytest.param([3.0, 7.0], 4.0, id="in the middle"),
        pytest.param([4.0, 8.0, 15.0], 4.0, id="what ended after the end does not count"),
    ],
)
def test_longest_pause_includes_the_beginning_and_the_end(times: list[float], pause: float) -> None:
    assert longest_pause(times, 0.0, 10.0) == pause


def test_first_after_is_the_next_one_at_or_after_the_moment() -> None:
    assert first_after([1.0, 2.0, 3.5], 2.0) == 0.0
    assert first_after([1.0, 2.0, 3.5], 2.5) == 1.0
    assert first_after([1.0], 2.0) is None


def test_promises_kept_leave_no_fault() -> None:
    assert faults(replace(GOOD, proved_applied=2, proved_not_applied=3, result_lost=1)) == ()


def test_unknown_outcome_is_a_fault_only_where_it_should_have_been_proved() -> None:
    figures = replace(GOOD, unknown=8, unknown_applied=3)

    assert faults(figures, excuse(tokens=False, outage=1.0, timeout=30.0)) == ()
    assert faults(figures, excuse(tokens=True, outage=31.0, timeout=30.0)) == ()
    assert faults(figures, excuse(tokens=True, outage=29.0, timeout=30.0)) == (
        "8 writes are of unknown outcome, although each carried a token",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"errors": 2}, "2 calls raised an error"),
        ({"lost": 1}, "1 acknowledged writes are not in the table"),
        ({"duplicated": 1}, "1 rows are there more than once"),
        ({"write_gap_after_promotion_s": None}, "no write was acknowledged after the promotion"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_broken_promise_is_a_fault(change: dict[str, int | None], said: str) -> None:
    assert faults(replace(GOOD, **change)) == (said,)


def test_figures_are_plain_data_to_the_millisecond() -> None:
    figures = replace(GOOD, read_gap_s=0.12345, write_gap_after_promotion_s=None)

    assert figures.as_dict()["read_gap_s"] == 0.123
    assert figures.as_dict()["write_gap_after_promotion_s"] is None
