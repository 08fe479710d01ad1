"""Every way in which a primary can change, as far as the decision goes."""

from __future__ import annotations

import pytest

from dbguard.core.topology import Role
from dbguard.events import (
    Contested,
    NodeDown,
    NodeFenced,
    NodeMisconfigured,
    NodeUp,
    PrimaryChanged,
    RoleChanged,
    SplitBrainSeen,
    WriteMayBeLost,
)


def test_killed_primary_is_followed_to_the_promoted_replica(cluster):
    reign = cluster.view.reign
    cluster.silence("a")
    cluster.round()
    assert (cluster.view.primary, cluster.view.reign) == (None, reign)

    cluster.promote("b")
    cluster.round()

    assert cluster.view.writable == "b"
    assert (cluster.view.reign.timeline, cluster.view.reign.mark != reign.mark) == (2, True)
    assert [(e.node, e.was) for e in cluster.said(PrimaryChanged)] == [("b", "a")]
    assert [e.node for e in cluster.said(NodeDown)] == ["a"]
    assert cluster.epochs == {"a": "now", "b": "keep", "c": "keep"}


def test_cleanly_stopped_primary_is_followed_and_comes_back_as_a_replica(cluster):
    cluster.silence("a", why="57P03", alive=True, closed=True)
    cluster.round()
    assert cluster.view.primary is None
    cluster.silence("a", why="refused")
    cluster.promote("c")
    cluster.round()
    assert cluster.view.writable == "c"

    cluster.rejoin("a", 2)
    cluster.round()

    assert cluster.view.writable == "c"
    assert [node.name for node in cluster.view.replicas] == ["a", "b"]
    assert not cluster.said(NodeFenced)


def test_primary_frozen_while_another_is_promoted_then_thawed_is_fenced(cluster):
    cluster.silence("a")
    cluster.promote("b")
    cluster.round()
    assert cluster.view.writable == "b"
    cluster.forget()

    cluster.heal("a")
    cluster.probe("a")

    assert cluster.view.writable == "b"
    assert cluster.node("a").fenced
    assert cluster.epochs == {"a": "now"}
    assert [(e.node, e.timeline, e.accepted) for e in cluster.said(NodeFenced)] == [("a", 1, 2)]


def test_black_holed_primary_healed_gets_no_writes_however_often_it_answers(cluster):
    cluster.silence("a")
    cluster.round()
    cluster.promote("c")
    cluster.probe("c")
    cluster.heal("a")

    for _ in range(3):
        cluster.round()
        cluster.probe("a")

        assert cluster.view.writable == "c"
        assert cluster.node("a").fenced
    assert len(cluster.said(NodeFenced)) == 1


def test_promotion_is_followed_though_the_old_primary_answers_in_the_same_round(cluster):
    cluster.promote("b")
    cluster.round()

    assert cluster.view.writable == "b"
    assert cluster.node("a").fenced
    assert cluster.epochs["a"] == "now"
    assert not cluster.said(Contested)


def test_demoted_but_reachable_primary_is_left_at_the_first_role_signal(cluster):
    changes = cluster.lost("a")
    assert cluster.view.primary is None
    assert cluster.node("a").role is Role.REPLICA
    assert changes.look_again
    assert cluster.epochs == {"a": "drain"}
    assert (cluster.node("a").position, cluster.node("a").lag) == (None, None), "it told none as a replica yet"

    cluster.rejoin("a", 2)
    cluster.promote("b")
    cluster.round()

    assert cluster.view.writable == "b"
    assert next((e.node, e.was, e.now) for e in cluster.said(RoleChanged)) == ("a", "primary", "replica")


def test_demotion_seen_by_a_probe_takes_the_office_without_a_full_round(cluster):
    cluster.rejoin("a", 1)

    changes = cluster.probe("a")

    assert cluster.view.primary is None
    assert changes.look_again


def test_probe_sent_before_the_role_signal_does_not_restore_the_primary(cluster):
    answer = cluster["a"].answer(cluster.now + 0.05)
    cluster.lost("a")

    cluster.topology.merge([answer], cluster.now + 0.1, full=False)

    assert cluster.view.primary is None


def test_two_primaries_on_one_timeline_twice_in_a_row_stop_writes(cluster):
    cluster.promote("b", timeline=1)
    first = cluster.round()
    assert (cluster.view.writable, first.look_again) == ("a", True)

    cluster.round()

    assert cluster.view.writable is None
    assert cluster.view.refused.startswith("split brain: a and b are primary on timeline 1")
    assert [e.nodes for e in cluster.said(SplitBrainSeen)] == [("a", "b")]

    cluster.rejoin("b", 1)
    cluster.round()
    assert (cluster.view.writable, cluster.view.refused) == ("a", None)


@pytest.mark.parametrize("seen_by", ["full round", "one probe"])
def test_primary_restarted_in_place_keeps_its_reign(cluster, seen_by):
    reign = cluster.view.reign
    cluster.write()
    cluster.round()
    cluster.forget()
    cluster.restart("a")

    if seen_by == "full round":
        cluster.round()
    else:
        cluster.probe("a")

    assert (cluster.view.writable, cluster.view.reign) == ("a", reign)
    assert cluster.epochs == {"a": "now"}
    assert not cluster.said(PrimaryChanged)
    assert cluster.node("b").proven


def test_plain_restart_seen_as_an_outage_makes_no_new_reign_and_unproves_nobody(cluster):
    reign = cluster.view.reign
    cluster.silence("a")
    cluster["b"].streaming = cluster["c"].streaming = False
    cluster.round(3)
    cluster.restart("a")
    cluster.round()

    assert (cluster.view.writable, cluster.view.reign) == ("a", reign)
    assert set(cluster.epochs) == {"a"}
    assert [node.proven for node in cluster.view.replicas] == [True, True]
    assert [type(e) for e in cluster.events] == [NodeDown, NodeUp]


def test_primary_moved_to_another_name_continues_the_reign(build):
    cluster = build("a", "b", "moved")
    cluster.silence("moved")
    cluster.round()
    reign = cluster.view.reign
    cluster.silence("a")
    cluster.heal("moved")
    cluster["moved"].role = Role.PRIMARY

    cluster.round()

    assert (cluster.view.writable, cluster.view.reign) == ("moved", reign)
    assert cluster.epochs == {"a": "now"}


def test_promotion_that_fails_and_another_that_succeeds(cluster):
    cluster.silence("a")
    cluster.round()
    cluster.promote("b")
    cluster.round()
    first = cluster.view.reign
    cluster.silence("b")
    cluster.round()
    assert cluster.view.primary is None

    cluster["c"].timeline = 2
    cluster.promote("c")
    cluster.round()

    assert cluster.view.writable == "c"
    assert (cluster.view.reign.timeline, first.timeline) == (3, 2)


def test_rolling_restart_of_all_nodes_ends_with_one_primary_and_all_replicas_proven(cluster):
    for name in "cb":
        cluster.silence(name)
        cluster.round()
        cluster.restart(name)
        cluster.round()
        assert cluster.view.writable == "a"
    cluster.promote("b")
    cluster.silence("a")
    cluster.round()
    cluster["c"].timeline = 2
    cluster.rejoin("a", 2)
    cluster.round(2)

    assert cluster.view.writable == "b"
    assert [(node.name, node.proven) for node in cluster.view.replicas] == [("a", True), ("c", True)]


def test_primary_gone_for_a_long_time_then_back_needs_nothing_but_an_answer(cluster):
    reign = cluster.view.reign
    cluster.silence("a")
    assert cluster.round().look_again
    assert not cluster.round(500).look_again
    assert cluster.view.primary is None
    assert len(cluster.events) == 1

    cluster.heal("a")
    cluster.probe("a")

    assert (cluster.view.writable, cluster.view.reign) == ("a", reign)


def test_all_nodes_off_then_back_in_another_order(cluster):
    reign = cluster.view.reign
    cluster.silence("a", "b", "c")
    cluster.round(2)
    assert not any(node.reachable for node in cluster.view.nodes.values())

    for name in "cba":
        cluster.restart(name)
        cluster.round()

    assert (cluster.view.writable, cluster.view.reign) == ("a", reign)
    assert all(node.reachable for node in cluster.view.nodes.values())


def test_replica_replaced_by_another_machine_is_drained_and_proven_anew(cluster):
    assert cluster.node("b").proven
    cluster.restart("b")
    cluster["b"].timeline, cluster["b"].streaming, cluster["b"].control_timeline = None, False, 0

    cluster.round()

    assert cluster.epochs == {"b": "drain"}
    assert not cluster.node("b").proven
    cluster["b"].timeline, cluster["b"].streaming = 1, True
    cluster.round()
    assert cluster.node("b").proven


def test_clone_promoted_by_mistake_beside_the_healthy_primary_is_contested(build):
    cluster = build("a", "b", "x")
    cluster.silence("x")
    cluster.round()
    cluster.heal("x")
    cluster.promote("x")

    cluster.round()

    assert (cluster.view.primary, cluster.view.writable) == ("a", None)
    assert cluster.view.refused.startswith("contested: x")
    assert [(e.node, e.incumbent) for e in cluster.said(Contested)] == [("x", "a")]


def test_contest_is_judged_anew_at_every_round(build):
    cluster = build("a", "b", "x")
    cluster.silence("x")
    cluster.round()
    cluster.heal("x")
    cluster.promote("x")
    cluster.round(2)
    assert len(cluster.said(Contested)) == 1

    cluster.silence("x")
    cluster.round()
    assert cluster.view.writable == "a"

    cluster.heal("x")
    cluster.round()
    assert cluster.view.writable is None

    cluster.silence("a")
    cluster.round()
    assert cluster.view.writable == "x"


def test_replica_that_is_behind_promoted_says_what_may_be_lost(cluster):
    cluster["a"].position = 5000
    cluster.round()
    cluster.topology.acknowledged(4200, cluster.view.reign)
    cluster.silence("a")
    cluster.promote("b")

    cluster.round()

    assert [(e.node, e.lost_bytes) for e in cluster.said(WriteMayBeLost)] == [("b", 3200)]


def test_insert_positions_alone_are_no_loss(cluster):
    cluster["a"].position = 5_000_000
    cluster.round()
    cluster.topology.acknowledged(900, cluster.view.reign)
    cluster.silence("a")
    cluster.promote("b")

    cluster.round()

    assert not cluster.said(WriteMayBeLost)


def test_loss_is_counted_from_where_the_new_timeline_branched_off(cluster):
    cluster.topology.acknowledged(4200, cluster.view.reign)
    cluster.silence("a")
    cluster.promote("b")
    cluster["b"].position, cluster["b"].branched = 9000, 4000

    cluster.round()

    assert [(e.node, e.lost_bytes) for e in cluster.said(WriteMayBeLost)] == [("b", 200)]


def test_confirmed_commits_are_lost_only_up_to_where_a_replica_was_seen(cluster):
    cluster["a"].position, cluster["b"].position, cluster["c"].position = 5000, 4000, 3000
    cluster.round()
    cluster.topology.acknowledged(5000, cluster.view.reign, confirmed=True)
    cluster.silence("a", "b")
    cluster.promote("c")

    cluster.round()

    assert [(e.node, e.lost_bytes) for e in cluster.said(WriteMayBeLost)] == [("c", 1000)]


def test_promoting_the_replica_that_has_most_loses_nothing_confirmed(cluster):
    cluster["a"].position, cluster["b"].position, cluster["c"].position = 5000, 4000, 3000
    cluster.round()
    cluster.topology.acknowledged(5000, cluster.view.reign, confirmed=True)
    cluster.silence("a")
    cluster.promote("b")

    cluster.round()

    assert cluster.said(WriteMayBeLost) == []


def test_second_failover_loses_what_was_acknowledged_before_the_first(cluster):
    cluster["a"].position = cluster["b"].position = 5000
    cluster.round()
    cluster.topology.acknowledged(4200, cluster.view.reign)
    cluster.silence("a")
    cluster.promote("b")
    cluster.round()
    assert cluster.said(WriteMayBeLost) == []
    cluster.silence("b")
    cluster.promote("c", timeline=3)

    cluster.round()

    assert [(e.node, e.lost_bytes) for e in cluster.said(WriteMayBeLost)] == [("c", 3200)]


def behind(build, max_loss):
    """A cluster whose new primary begins 3,200 bytes below what was acknowledged."""
    cluster = build("a", "b", "c", max_loss=max_loss)
    cluster.round()
    cluster.topology.acknowledged(4200, cluster.view.reign)
    cluster.silence("a")
    cluster.promote("b")
    cluster.round()
    return cluster


def test_reign_that_lost_no_more_than_is_allowed_gets_writes(build):
    cluster = behind(build, 3200)

    assert (cluster.view.writable, cluster.view.refused) == ("b", None)
    assert len(cluster.said(WriteMayBeLost)) == 1


def test_reign_that_lost_too_much_gets_no_writes_until_it_is_trusted(build):
    cluster = behind(build, 3199)
    assert (cluster.view.primary, cluster.view.writable) == ("b", None)
    assert "failover.max_loss (3199)" in cluster.view.refused
    assert "trust" in cluster.view.refused
    cluster.round(3)
    assert cluster.view.writable is None
    assert len(cluster.said(WriteMayBeLost)) == 1

    cluster.trust("b")

    cluster.round()
    assert (cluster.view.writable, cluster.view.refused) == ("b", None)


def test_old_primary_is_fenced_while_the_new_one_lacks_too_much_and_can_be_trusted_instead(build):
    cluster = behind(build, 0)
    cluster.heal("a")
    cluster.round()
    assert cluster.node("a").fenced
    assert cluster.view.writable is None

    cluster.trust("a")

    cluster.round()
    assert cluster.view.writable == "a"
    assert cluster.node("b").fenced


def test_another_reign_that_has_what_was_acknowledged_ends_the_refusal(build):
    cluster = behind(build, 0)
    cluster.restart("b")
    cluster.round()
    assert cluster.view.writable is None, "a restart brings nothing back"
    cluster.promote("c", timeline=3)
    cluster["c"].position = 4200

    cluster.round()

    assert (cluster.view.writable, cluster.view.refused) == ("c", None)


def test_another_reign_that_lacks_as_much_is_refused_as_well(build):
    cluster = behind(build, 0)
    cluster.topology.acknowledged(99_000, cluster.view.reign)
    cluster.promote("c", timeline=3)

    cluster.round()

    assert cluster.view.writable is None
    assert [(e.node, e.lost_bytes) for e in cluster.said(WriteMayBeLost)] == [("b", 3200), ("c", 3200)]


def test_two_successive_promotions_with_one_number_are_two_reigns(cluster):
    cluster.silence("a")
    cluster.promote("b")
    cluster.round()
    first = cluster.view.reign
    cluster.silence("b")
    cluster.promote("c")

    cluster.round()

    assert cluster.view.writable == "c"
    assert (cluster.view.reign.timeline, cluster.view.reign) != (2, first)
    assert cluster.view.reign.timeline == 2
    cluster.rejoin("a", 2)
    cluster.round(3)
    assert not cluster.node("a").proven, "its timeline's number does not say whom it follows"


def test_restore_from_a_snapshot_is_fenced_until_trusted(cluster):
    cluster.silence("a")
    cluster.promote("b")
    cluster.round()
    cluster.silence("b", "c")
    cluster.restart("a")
    cluster["a"].position = 500
    cluster.round()
    assert cluster.view.writable is None
    assert cluster.node("a").fenced

    cluster.trust("a")

    assert (cluster.view.writable, cluster.view.reign.timeline) == ("a", 1)
    cluster.round()
    assert (cluster.view.writable, cluster.node("a").fenced) == ("a", False)


def test_name_behind_which_several_servers_stand_proves_nothing_and_drains_nobody_for_ever(cluster):
    one, other = cluster["b"].started, cluster.start()
    for _ in range(4):
        cluster["b"].started = other
        cluster.round()
        cluster["b"].started = one
        cluster.round()
    cluster.forget()

    cluster["b"].started = other
    cluster.round()

    assert cluster.epochs == {}
    assert cluster.node("b").group
    assert (cluster.node("b").proven, cluster.node("b").position) == (False, None)
    assert cluster.view.writable == "a"


def test_one_server_under_two_addresses_is_no_split_brain(build):
    cluster = build("a", "alias", "b")
    cluster["alias"].role, cluster["alias"].started = Role.PRIMARY, cluster["a"].started
    cluster.round(3)

    assert (cluster.view.writable, cluster.view.refused) == ("a", None)
    assert not cluster.node("alias").fenced
    assert [node.name for node in cluster.view.replicas] == ["b"]

    reign = cluster.view.reign
    cluster.silence("a")
    cluster.round()
    assert (cluster.view.writable, cluster.view.reign) == ("alias", reign)


def test_never_seen_replica_promoted_while_the_old_primary_returns_as_a_replica_is_accepted(build):
    cluster = build("a", "b", "x")
    cluster.silence("x")
    cluster.round()
    cluster.heal("x")
    cluster.promote("x")
    cluster.rejoin("a", 2)

    cluster.round()

    assert (cluster.view.writable, cluster.view.refused) == ("x", None)
    assert not cluster.said(Contested)


def test_one_node_of_three_misconfigured_at_start_is_out_of_rotation_with_an_event(build):
    cluster = build("a", "b", "c")
    cluster.silence("c", why="28P01", config=True)
    cluster.round(3)

    assert cluster.view.writable == "a"
    assert [node.name for node in cluster.view.replicas] == ["b"]
    assert cluster.node("c").misconfigured == "28P01"
    assert [e.node for e in cluster.said(NodeMisconfigured)] == ["c"]

    cluster.heal("c")
    cluster.round()
    assert cluster.node("c").misconfigured is None
    assert [node.name for node in cluster.view.replicas] == ["b", "c"]


def test_read_only_default_on_the_true_primary_drains_nothing(cluster):
    cluster["a"].read_only = True
    cluster.round()

    assert (cluster.view.writable, cluster.node("a").read_only) == ("a", True)
    assert not cluster.node("b").read_only
    assert (cluster.epochs, cluster.events) == ({}, [])
