"""Marks of reigns: what the table ``dbguard.reign`` says, which a timeline's number does not (RULES 4.3, 5.2)."""

from __future__ import annotations

import pytest

from dbguard.core.causal import Box
from dbguard.core.topology import Mark
from dbguard.events import PrimaryChanged, WriteMayBeLost

NONE = Mark(0, "")


def mark(cluster, timeline, text, *names):
    """Let servers have that row, and no later one."""
    for name in names:
        cluster[name].marked = Mark(timeline, text)


@pytest.fixture
def marked(cluster):
    """Three nodes whose reign is marked, as all of them tell."""
    mark(cluster, 1, "first", "a", "b", "c")
    cluster.round()
    cluster.forget()
    return cluster


@pytest.fixture
def succeeded(marked):
    """b was promoted while a was silent, and c was out of sight; the reign of b is marked."""
    marked.silence("a", "c")
    marked.promote("b")
    mark(marked, 2, "second", "b")
    marked.round()
    marked.forget()
    return marked


def test_reign_bears_the_mark_that_the_table_has(marked):
    assert marked.view.reign.agreed == "first"
    assert marked.view.reign.mark == "first"


def test_two_processes_agree_on_a_reign_by_its_mark(build):
    one, other = build("a", "b"), build("a", "b")
    one.topology._new_mark, other.topology._new_mark = lambda: "mine", lambda: "theirs"
    for cluster in (one, other):
        cluster.round()
    assert one.view.reign.mark != other.view.reign.mark

    for cluster in (one, other):
        mark(cluster, 1, "theirs", "a", "b")
        cluster.round()

    assert one.view.reign.mark == other.view.reign.mark == "theirs"


def test_learning_the_mark_is_no_other_reign(cluster):
    own, box = cluster.view.reign, Box()
    box.wrote(own, cluster.now)
    for name in "abc":
        cluster[name].marked = NONE
    cluster.round()
    assert cluster.view.reign.agreed is None, "nobody has marked it yet"
    mark(cluster, 1, "theirs", "a", "b", "c")

    cluster.round()

    assert cluster.view.reign == own
    assert cluster.view.reign.mark == "theirs"
    assert box.floor(cluster.view.reign, 900, cluster.now + 1) == 900
    assert cluster.epochs == {}
    assert cluster.said(PrimaryChanged) == []
    assert cluster.node("b").proven


def test_mark_is_news_even_if_nothing_else_is(cluster):
    for name in "abc":
        cluster[name].position = None
    cluster.round()
    version = cluster.view.version
    cluster.round()
    assert cluster.view.version == version
    mark(cluster, 1, "theirs", "a")

    cluster.round()

    assert (cluster.view.version, cluster.view.reign.mark) == (version + 1, "theirs")


def test_mark_of_an_earlier_reign_does_not_mark_this_one(marked):
    marked.silence("a")
    marked.promote("b")

    marked.round()

    assert (marked.view.reign.timeline, marked.view.reign.agreed) == (2, None)


@pytest.mark.parametrize("there", [Mark(2, "another"), Mark(1, "first"), NONE], ids=["another", "none", "none at all"])
def test_change_that_nobody_saw_is_noticed_by_its_mark(build, there):
    """x was promoted to the number of b, out of this process's sight, and has all that b had flushed."""
    cluster = build("a", "b", "x")
    cluster.silence("x")
    cluster.promote("b", timeline=2)
    mark(cluster, 2, "second", "b")
    cluster.silence("a")
    cluster.round()
    reign = cluster.view.reign
    cluster.silence("b")
    cluster.heal("x")
    cluster.promote("x", timeline=2)
    cluster["x"].marked, cluster["x"].position = there, 9000

    cluster.round()

    assert cluster.view.writable == "x"
    assert cluster.view.reign != reign
    assert cluster.view.reign.timeline == 2


def test_reign_of_the_same_number_begins_where_its_timeline_did_if_marks_tell_them_apart(build):
    cluster = build("a", "b", "x")
    cluster.silence("x")
    cluster.round()
    cluster.promote("b", timeline=2)
    mark(cluster, 2, "second", "b")
    cluster.silence("a")
    cluster.round()
    cluster.topology.acknowledged(4000, cluster.view.reign)
    cluster.silence("b")
    cluster.heal("x")
    cluster.promote("x", timeline=2)
    mark(cluster, 2, "third", "x")
    cluster["x"].position, cluster["x"].branched = 9000, 3000

    cluster.round()

    assert [(event.node, event.lost_bytes) for event in cluster.said(WriteMayBeLost)] == [("x", 1000)]


def test_same_mark_under_another_instance_is_the_same_reign(succeeded):
    reign = succeeded.view.reign
    succeeded.silence("b")
    succeeded.round()
    succeeded.restart("b")

    succeeded.round()

    assert succeeded.view.reign == reign
    assert succeeded.view.writable == "b"


def test_new_connection_that_was_not_asked_for_the_mark_does_not_settle_who_reigns(succeeded):
    reign = succeeded.view.reign
    succeeded.silence("b")
    succeeded.round()
    succeeded.restart("b")
    succeeded["b"].marked = None

    changes = succeeded.probe("b")

    assert changes.look_again
    assert succeeded.view.writable is None
    mark(succeeded, 2, "second", "b")
    succeeded.round()
    assert (succeeded.view.writable, succeeded.view.reign) == ("b", reign)


class TestReplicas:
    def test_mark_of_a_later_reign_disproves_what_its_late_checkpoint_says(self, build):
        """A process that has just begun sees an old primary that is back, which is trusted, and a replica of the one that is off."""
        cluster = build("a", "c")
        mark(cluster, 0, "", "a")
        mark(cluster, 2, "second", "c")
        cluster["c"].streaming = False

        cluster.round()
        cluster.topology.trust("a", cluster.now)
        cluster.round()

        assert cluster.view.primary == "a"
        assert not cluster.node("c").proven

    def test_mark_is_a_proof(self, succeeded):
        succeeded.rejoin("c", 2)
        mark(succeeded, 2, "second", "c")
        succeeded.round()

        assert succeeded.node("c").proven

    def test_number_without_the_mark_is_none(self, succeeded):
        succeeded.rejoin("c", 2)
        succeeded.round()
        assert not succeeded.node("c").proven, "it streams timeline 2, of the one primary or of another"

        succeeded["c"].marked = None
        succeeded.probe("c")
        assert not succeeded.node("c").proven, "it was not asked"

        mark(succeeded, 2, "second", "c")
        succeeded.round()
        assert succeeded.node("c").proven

    def test_another_mark_of_the_number_disproves(self, succeeded):
        succeeded.rejoin("c", 2)
        mark(succeeded, 2, "another", "c")

        succeeded.round(3)

        assert not succeeded.node("c").proven

    def test_server_that_may_not_tell_is_judged_by_its_number(self, succeeded):
        succeeded.rejoin("c", 2)
        succeeded["c"].marked, succeeded["c"].unmarked = None, "the role lacks a right"

        succeeded.round()

        assert succeeded.node("c").proven

    def test_proof_outlives_a_probe_that_does_not_ask(self, succeeded):
        succeeded.rejoin("c", 2)
        mark(succeeded, 2, "second", "c")
        succeeded.round()
        succeeded["c"].marked = None

        succeeded.probe("c")

        assert succeeded.node("c").proven

    def test_mark_does_not_prove_what_follows_another_timeline_by_now(self, succeeded):
        succeeded.rejoin("c", 3)
        mark(succeeded, 2, "second", "c")

        succeeded.round()

        assert not succeeded.node("c").proven

    def test_two_reigns_of_one_number_are_told_apart_by_marks(self, succeeded):
        """As without a mark they are not, until the next promotion."""
        succeeded.silence("b")
        succeeded.restart("c")
        succeeded.promote("c", timeline=2)
        succeeded.round()
        mark(succeeded, 2, "third", "c")
        succeeded.rejoin("a", 2)
        mark(succeeded, 2, "second", "a")
        succeeded.round(2)
        assert succeeded.view.reign.agreed == "third"
        assert not succeeded.node("a").proven

        mark(succeeded, 2, "third", "a")
        succeeded.round()

        assert succeeded.node("a").proven

    def test_number_is_no_proof_of_one_that_may_not_tell_where_two_bear_it(self, succeeded):
        succeeded.silence("b")
        succeeded.restart("c")
        succeeded.promote("c", timeline=2)
        succeeded.round()
        succeeded.rejoin("a", 2)
        succeeded["a"].marked, succeeded["a"].unmarked = None, "the role lacks a right"

        succeeded.round(3)

        assert not succeeded.node("a").proven

    def test_mark_proves_nothing_once_two_bore_it(self, succeeded):
        """A snapshot of the primary has its mark: what was restored is another reign, and its mark no proof."""
        succeeded.silence("b")
        succeeded.round()
        reign = succeeded.view.reign
        succeeded.restart("b")
        succeeded["b"].position = 500
        succeeded.rejoin("c", 2)
        mark(succeeded, 2, "second", "c")

        succeeded.round(2)

        assert succeeded.view.reign != reign
        assert not succeeded.node("c").proven
