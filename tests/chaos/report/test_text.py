"""Text of others is shown as text that one can see, on one line, of a length that fits."""

from __future__ import annotations

import pytest

from chaos.report.text import counted, fit, seconds


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with ü and 日本", "plain, with ü and 日本"),
        ("two\nlines\tand  more ", "two lines and more"),
        ("\x1b[31mred\x00", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        ("turned \u202earound", "turned \N{REPLACEMENT CHARACTER}around"),
        ("half \ud800 a character", "half \N{REPLACEMENT CHARACTER} a character"),
        ("<b> stays as it is &amp;", "<b> stays as it is &amp;"),
        (7, "7"),
    ],
)
def test_text_is_shown_as_what_can_be_seen(text: object, shown: str) -> None:
    assert fit(text) == shown


def test_long_text_is_cut_and_says_so() -> None:
    assert fit("x" * 500, 10) == "x" * 9 + "…"
    assert fit("x" * 10, 10) == "x" * 10


@pytest.mark.parametrize(
    ("length", "written"),
    [
        (0.0, "0.0 ms"),
        (0.00042, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.00999, "10 ms"),
        (0.5, "500 ms"),
        (0.9999, "1.00 s"),
        (1.239, "1.24 s"),
        (12.345, "12.3 s"),
        (1800.0, "0:30:00"),
    ],
)
def test_seconds_are_written_with_the_digits_that_matter(length: float, written: str) -> None:
    assert seconds(length) == written


def test_numbers_have_their_noun() -> None:
    assert (counted(1, "run"), counted(0, "run"), counted(2_000, "call")) == ("1 run", "0 runs", "2,000 calls")
