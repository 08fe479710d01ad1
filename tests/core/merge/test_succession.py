"""The decision alone: one verdict per line of its table."""

from __future__ import annotations

import pytest

from dbguard.core.succession import Accept, Claim, Contest, Holder, Keep, Office, Split, judge
from dbguard.core.topology import Instance, Reign

REIGN = Reign("42", 5, "mark")
OFFICE = Office(reign=REIGN, node="a", instance=Instance("42", "one"), flushed=1000)


def claim(node="b", timeline=5, started="two", system="42", position=1000, *, known=False, risen=False):
    return Claim(
        node=node,
        instance=Instance(system, started),
        timeline=timeline,
        position=position,
        known=known,
        risen=risen,
    )


HIGHER, EQUAL, LOWER = claim(timeline=6), claim(), claim(timeline=4)
REPLICA = claim(timeline=6, known=True)
ANSWERS, OVERLOADED, GONE = Holder.ANSWERS, Holder.OVERLOADED, Holder.GONE


@pytest.mark.parametrize(
    ("said", "holder", "in_a_full_round", "at_one_probe"),
    [
        (REPLICA, ANSWERS, Accept(REPLICA), Accept(REPLICA)),
        (REPLICA, OVERLOADED, Accept(REPLICA), Accept(REPLICA)),
        (REPLICA, GONE, Accept(REPLICA), Accept(REPLICA)),
        (HIGHER, ANSWERS, Contest(HIGHER, REIGN), Keep(doubt=True)),
        (HIGHER, OVERLOADED, Contest(HIGHER, REIGN), Keep(doubt=True)),
        (HIGHER, GONE, Accept(HIGHER), Accept(HIGHER)),
        (EQUAL, ANSWERS, Split((EQUAL,), beside=True), Keep(doubt=True)),
        (EQUAL, OVERLOADED, Keep(doubt=True), Keep(doubt=True)),
        (EQUAL, GONE, Accept(EQUAL, continues=True), Accept(EQUAL, continues=True)),
        (LOWER, ANSWERS, Keep(), Keep()),
        (LOWER, OVERLOADED, Keep(), Keep()),
        (LOWER, GONE, Keep(), Keep()),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Holder) else None,
)
def test_each_claim_has_its_verdict(said, holder, in_a_full_round, at_one_probe):
    assert judge(OFFICE, holder, [said], full=True) == in_a_full_round
    assert judge(OFFICE, holder, [said], full=False) == at_one_probe


def test_no_claim_changes_nothing():
    assert judge(OFFICE, GONE, [], full=True) == judge(None, GONE, [], full=True) == Keep()


def test_nothing_accepted_the_highest_wins_after_a_full_round():
    assert judge(None, GONE, [LOWER, HIGHER, EQUAL], full=True) == Accept(HIGHER)
    assert judge(None, GONE, [HIGHER], full=False) == Keep(doubt=True)


@pytest.mark.parametrize("timeline", [5, 6])
def test_two_servers_on_one_timeline_are_not_chosen_between(timeline):
    pair = (claim("b", timeline), claim("c", timeline, "three"))

    assert judge(None, GONE, pair, full=True) == Split(pair, beside=False)
    assert judge(OFFICE, GONE, pair, full=True) == Split(pair, beside=False)
    assert judge(OFFICE, GONE, pair, full=False) == Keep(doubt=True)


def test_two_names_of_one_server_are_one_claim():
    pair = [claim("b", 6), claim("alias", 6)]

    assert judge(OFFICE, GONE, pair, full=True) == Accept(pair[0])


def test_server_that_does_not_tell_who_it_is_is_no_rival():
    assert judge(OFFICE, ANSWERS, [claim(started=None)], full=True) == Keep()


def test_timeline_that_is_not_told_is_no_mismatch():
    untold = claim(timeline=None)

    assert judge(OFFICE, GONE, [untold], full=True) == Accept(untold, continues=True)


@pytest.mark.parametrize(
    "said", [claim(risen=True), claim(position=999)], ids=["it was a replica", "it lacks what was flushed"]
)
def test_another_server_on_the_accepted_timeline_begins_a_reign_of_its_own(said):
    assert judge(OFFICE, GONE, [said], full=True) == Accept(said, continues=False)


def test_restart_is_not_believed_once_two_were_seen_to_bear_the_number():
    assert judge(OFFICE, GONE, [EQUAL], full=True, doubted=True) == Accept(EQUAL, continues=False)


def test_positions_that_are_not_told_do_not_speak_against_a_restart():
    untold = claim(position=None)
    silent = Office(reign=REIGN, node="a", instance=OFFICE.instance, flushed=None)

    assert judge(OFFICE, GONE, [untold], full=True) == Accept(untold, continues=True)
    assert judge(silent, GONE, [EQUAL], full=True) == Accept(EQUAL, continues=True)


def test_claims_of_another_cluster_come_last_whatever_their_timeline():
    foreign = claim("x", timeline=1, system="99")

    assert judge(OFFICE, ANSWERS, [foreign], full=True) == Contest(foreign, REIGN)
    assert judge(OFFICE, GONE, [foreign], full=True) == Accept(foreign)
    far = claim("x", timeline=99, system="99")
    assert judge(OFFICE, GONE, [far, HIGHER], full=True) == Accept(HIGHER)
