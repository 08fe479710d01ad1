"""The log tells what changed, and not five hundred times the same."""

from __future__ import annotations

import logging

import pytest

from dbguard.events import NodeUp, OutcomeLeftOpen, OutcomeResolved, WriteWithoutToken
from dbguard.runtime.lines import MOST_ALIKE, WINDOW, Lines

TOKEN = "019aa8c2-5d30-7c1e-8f00-3b6f0a9d7e11"


@pytest.fixture
def later():
    return []


@pytest.fixture
def lines(later, caplog):
    caplog.set_level(logging.INFO, logger="dbguard")
    return Lines(lambda seconds, then: later.append((seconds, then)))


def left_open(**said):
    return OutcomeLeftOpen(at=0.0, node="a", why="connection lost", **said)


def test_five_hundred_writes_of_unknown_outcome_are_a_few_lines_and_a_number(lines, later, caplog):
    for _ in range(500):
        lines.tell(left_open())

    assert len(caplog.messages) == MOST_ALIKE
    ((seconds, window_ends),) = later
    assert seconds == WINDOW
    window_ends()
    assert len(caplog.messages) == MOST_ALIKE + 1
    assert caplog.messages[-1].startswith(
        f"{500 - MOST_ALIKE} more within 10 s like: the outcome of a write on a is unknown"
    )
    assert caplog.records[-1].levelno == logging.ERROR


def test_every_token_that_is_needed_is_told(lines, caplog):
    for number in range(500):
        lines.tell(left_open(token=f"{TOKEN[:-3]}{number:03}"))

    assert len(set(caplog.messages)) == 500


def test_proofs_and_texts_without_a_token_come_in_bursts(lines, later, caplog):
    for number in range(30):
        lines.tell(OutcomeResolved(at=0.0, node="a", token=str(number), outcome="applied"))
        lines.tell(WriteWithoutToken(at=0.0, why="refused"))

    assert len(caplog.messages) == 2 * MOST_ALIKE
    lines.close()
    assert [line.split(" more")[0] for line in caplog.messages[-2:]] == ["20", "20"]
    for _, window_ends in later:
        window_ends()
    assert len(caplog.messages) == 2 * MOST_ALIKE + 2


def test_after_a_window_it_is_told_again_and_few_lines_are_not_summed_up(lines, later, caplog):
    lines.tell(left_open())
    later[0][1]()
    lines.tell(left_open())

    assert len(caplog.messages) == 2
    assert len(later) == 2


def test_what_differs_is_told_apart(lines, caplog):
    for number in range(MOST_ALIKE + 5):
        lines.tell(OutcomeLeftOpen(at=0.0, node=f"n{number}", why="connection lost"))
        lines.tell(NodeUp(at=0.0, node="a", role="primary"))

    assert len(caplog.messages) == 2 * (MOST_ALIKE + 5)


def test_the_line_of_an_unknown_outcome_is_enough_to_ask_for_it():
    said = left_open(token=TOKEN, reign="timeline 3 (mark 29cf092e)", sent_at=1_772_334_765.123).text()

    assert said == (
        "the outcome of a write on a is unknown: connection lost, sent 2026-03-01T03:12:45.123+00:00, under timeline 3 "
        f"(mark 29cf092e); token {TOKEN}: `dbguard outcome resolve CONFIG {TOKEN}`"
    )
    assert left_open().text() == "the outcome of a write on a is unknown: connection lost; no token"
