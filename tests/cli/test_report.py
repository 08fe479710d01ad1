from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest

from dbguard.cli.demo.judging import Figures, excuse
from dbguard.cli.demo.report import report
from dbguard.cli.output import Output

CONTROL = Figures(
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


def told(guarded: Figures, why: str | None) -> str:
    """What is told, without line breaks."""
    stream = io.StringIO()
    report(Output(stream), guarded, CONTROL, Counter(), Counter(), "b", excuse=why)
    return " ".join(stream.getvalue().split())


def test_writes_that_were_proved_are_told_and_are_no_fault() -> None:
    said = told(replace(CONTROL, proved_applied=2, proved_not_applied=3), None)

    assert "answer lost, outcome proved by a token 5 no token" in said
    assert "2 applied, 3 not applied" in said
    assert "OK: read back on b" in said


def test_nothing_is_told_of_tokens_where_none_was_asked() -> None:
    assert "Their tokens" not in told(CONTROL, None)


def test_lost_rows_are_told_apart() -> None:
    said = told(replace(CONTROL, proved_applied=2, result_lost=1), None)

    assert "1 of those that were applied had rows to return" in said
    assert "OK: " in said


@pytest.mark.parametrize(
    ("tokens", "outage", "reason"),
    [
        pytest.param(True, 1.0, None, id="tokens and time to ask"),
        pytest.param(
            True, 31.0, "There was no primary for 31.0 s, and a call has 30 s", id="outage longer than a call"
        ),
        pytest.param(False, 1.0, "Without tokens nobody can prove it", id="no tokens"),
    ],
)
def test_unknown_outcome_breaks_the_promise_unless_there_is_a_reason_which_is_told(
    *, tokens: bool, outage: float, reason: str | None
) -> None:
    said = told(replace(CONTROL, unknown=2, unknown_applied=1), excuse(tokens=tokens, outage=outage, timeout=30.0))

    assert "One is in the table" in said
    if reason is None:
        assert "FAILED: 2 writes are of unknown outcome, although each carried a token" in said
    else:
        assert f"in the table. {reason}" in said
        assert "OK: " in said
