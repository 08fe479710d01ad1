"""Up to where acknowledged commits can lie, and how far below that a reign begins."""

from __future__ import annotations

from dataclasses import replace

from dbguard.core.loss import Acknowledged, Ledger
from dbguard.core.topology import Reign

FIRST = Reign("42", 1, "m1")
SECOND = Reign("42", 2, "m2")


def test_nothing_acknowledged_needs_no_position() -> None:
    assert not Acknowledged().lies_before(FIRST, 1.0)


def test_position_asked_for_after_an_acknowledgement_bounds_it_once() -> None:
    commits = Acknowledged()
    commits.note(FIRST, 1.0)

    assert commits.lies_before(FIRST, 1.1)
    assert not commits.lies_before(FIRST, 1.6), "nothing was acknowledged since: others' records are no loss of ours"


def test_position_asked_for_before_the_acknowledgement_bounds_nothing() -> None:
    commits = Acknowledged()
    commits.note(FIRST, 1.0)

    assert not commits.lies_before(FIRST, 0.9)
    assert not commits.lies_before(FIRST, 1.0), "at once is not after"
    assert commits.lies_before(FIRST, 1.1)


def test_commits_that_go_on_while_the_probe_is_under_way_are_left_for_the_next_one() -> None:
    commits = Acknowledged()
    for at in (1.0, 1.2, 1.4):
        commits.note(FIRST, at)

    assert commits.lies_before(FIRST, 1.3), "the first two lie before"
    assert commits.lies_before(FIRST, 1.8), "and the third before this one"
    assert not commits.lies_before(FIRST, 2.3)


def test_position_of_another_reign_bounds_nothing() -> None:
    commits = Acknowledged()
    commits.note(FIRST, 1.0)

    assert not commits.lies_before(SECOND, 1.5)
    commits.note(SECOND, 2.0)
    assert commits.lies_before(SECOND, 2.5)


def test_commits_are_not_forgotten_because_the_mark_of_the_reign_is_learnt() -> None:
    commits = Acknowledged()
    commits.note(FIRST, 1.0)
    commits.note(replace(FIRST, agreed="theirs"), 1.4)

    assert commits.lies_before(FIRST, 1.2)


def test_commits_that_no_standby_confirmed_are_lost_from_where_the_reign_begins() -> None:
    ledger = Ledger()
    ledger.note(5000, confirmed=False)
    ledger.note(4000, confirmed=False)

    assert [ledger.lost(begin) for begin in (4200, 5000, 6000)] == [800, 0, 0]


def test_commits_that_waited_for_a_standby_lie_no_higher_than_any_replica_has_replayed() -> None:
    ledger = Ledger()
    ledger.note(5000, confirmed=True)
    assert ledger.lost(3000) == 0, "no replica was seen that has more"

    ledger.replay(4500)

    assert [ledger.lost(begin) for begin in (3000, 4500)] == [1500, 0]
    ledger.replay(9000)
    assert ledger.lost(3000) == 2000


def test_what_was_acknowledged_before_a_standby_was_waited_for_counts_as_it_did() -> None:
    ledger = Ledger()
    ledger.note(3000, confirmed=False)
    ledger.note(5000, confirmed=True)
    ledger.replay(2000)

    assert ledger.lost(2500) == 500


def test_what_a_reign_shares_with_the_one_before_can_be_lost_by_the_next() -> None:
    ledger = Ledger()
    ledger.note(5000, confirmed=False)

    ledger.branch(4000)

    assert ledger.lost(4000) == 0, "what lay above is lost already"
    assert ledger.lost(3000) == 1000


def test_what_was_replayed_of_another_history_is_not_of_this_one() -> None:
    ledger = Ledger()
    ledger.replay(5000)
    ledger.branch(4000)

    ledger.note(9000, confirmed=True)

    assert ledger.lost(3000) == 1000
