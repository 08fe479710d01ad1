"""Who is believed when servers contradict each other: split brain, another cluster, the operator's word."""

from __future__ import annotations

import pytest

from dbguard.core.topology import Mark, Role
from dbguard.events import Contested, NodeMisconfigured, NodeUp, SplitBrainSeen, WriteMayBeLost


class TestSplitBrain:
    def test_two_known_replicas_promoted_at_once_leave_no_primary(self, cluster):
        cluster.promote("b")
        cluster.promote("c")

        cluster.round()
        assert cluster.view.primary is None
        cluster.probe("a")
        cluster.probe("b")
        assert cluster.view.primary is None, "one probe does not choose"
        cluster.round()

        assert cluster.view.refused.startswith("split brain: b and c")

    def test_ends_when_one_of_them_is_gone(self, cluster):
        cluster.promote("b", timeline=1)
        cluster.round(2)
        cluster.silence("a")

        cluster.round()

        assert (cluster.view.writable, cluster.view.refused) == ("b", None)

    def test_claims_that_are_not_in_a_row_do_not_stop_writes(self, cluster):
        for _ in range(3):
            cluster.promote("b", timeline=1)
            cluster.round()
            cluster.rejoin("b", 1)
            cluster.round()

        assert not cluster.said(SplitBrainSeen)
        assert cluster.view.writable == "a"

    def test_single_probe_does_not_lift_the_refusal(self, cluster):
        cluster.promote("b", timeline=1)
        cluster.round(2)

        for name in "abc":
            cluster.probe(name)

            assert cluster.view.writable is None

    def test_first_round_of_it_does_not_lift_a_refusal(self, build):
        cluster = build("a", "b", "x")
        cluster.silence("x")
        cluster.round()
        cluster.heal("x")
        cluster.promote("x")
        cluster.round()
        cluster.restart("x")
        cluster.promote("x", timeline=1)

        cluster.round()

        assert cluster.view.writable is None

    def test_incumbent_goes_on_by_choice_while_its_connection_never_broke(self, build):
        cluster = build("a", "b", "c", split_brain="incumbent")
        cluster.round()
        cluster.promote("b", timeline=1)
        cluster.round(4)
        assert cluster.view.writable == "a"
        assert len(cluster.said(SplitBrainSeen)) == 1

        cluster.silence("a")
        cluster.probe("a")
        cluster.heal("a")
        cluster.round()

        assert cluster.view.writable is None

    def test_promotion_lets_the_next_incumbent_start_unbroken(self, build):
        cluster = build("a", "b", "c", split_brain="incumbent")
        cluster.round()
        cluster.silence("a")
        cluster.promote("b")
        cluster.round()
        cluster.promote("c")

        cluster.round(3)

        assert cluster.view.writable == "b"

    def test_restart_of_either_begins_another_reign(self, cluster):
        reign = cluster.view.reign
        cluster.promote("b", timeline=1)
        cluster.round()
        cluster.rejoin("b", 1)
        cluster.round()
        cluster.restart("a")

        cluster.round()

        assert cluster.view.writable == "a"
        assert cluster.view.reign != reign

    def test_probes_of_single_nodes_are_not_counted(self, cluster):
        cluster.promote("b", timeline=1)

        for _ in range(4):
            assert cluster.probe("b").look_again
            cluster.probe("a")

        assert cluster.view.writable == "a"


class TestSystemId:
    def test_majority_decides_at_start_and_the_others_are_out_of_rotation(self, build):
        cluster = build("a", "b", "c")
        cluster["a"].system = "99"
        cluster.promote("b")

        cluster.round(3)

        assert cluster.view.writable == "b"
        assert cluster.node("a").misconfigured == "it belongs to another cluster: system identifier 99, not 42"
        assert [e.node for e in cluster.said(NodeMisconfigured)] == ["a"]
        assert cluster.node("a").role is Role.UNKNOWN

    def test_of_equal_numbers_the_first_listed_wins(self, build):
        cluster = build("a", "b")
        cluster["b"].system = "99"
        cluster.promote("b", timeline=7)

        cluster.round()

        assert cluster.view.writable == "a"

    def test_majority_is_counted_anew_until_a_primary_was_accepted(self, build):
        cluster = build("a", "b", "c")
        cluster["b"].system = "99"
        cluster.silence("a", "c")
        cluster.round()
        assert cluster.node("b").misconfigured is None
        cluster.heal("a", "c")

        cluster.round()

        assert cluster.view.writable == "a"
        assert cluster.node("b").misconfigured is not None

    def test_first_identifier_told_after_the_start_counts(self, build):
        cluster = build("a", "b")
        cluster["a"].system = None
        cluster.silence("b")
        cluster.round()
        cluster["a"].system = "42"
        cluster.round()
        cluster.heal("b")
        cluster["b"].system = "99"

        cluster.round()

        assert cluster.node("b").misconfigured is not None

    def test_pin_keeps_another_cluster_out_even_when_the_primary_is_gone(self, cluster):
        cluster.restart("a")
        cluster["a"].system = "99"
        cluster.round(3)
        assert cluster.view.primary is None

        cluster.silence("a")
        cluster.probe("a")
        assert cluster.view.primary is None, "a single miss does not bring it back"
        cluster.heal("a")
        cluster.round()

        cluster.trust("a")

        assert cluster.view.writable == "a"
        assert cluster.view.reign.system_id == "99"
        assert cluster.node("b").misconfigured is not None

    def test_node_that_was_cloned_into_this_cluster_is_back_in_rotation(self, build):
        cluster = build("a", "b", "c")
        cluster["c"].system = "99"
        cluster.round()
        assert [node.name for node in cluster.view.replicas] == ["b"]
        cluster.forget()
        cluster.restart("c")
        cluster["c"].system = "42"

        cluster.round()

        assert [(node.name, node.proven) for node in cluster.view.replicas] == [("b", True), ("c", True)]
        assert [type(e) for e in cluster.events] == [NodeUp]

    def test_node_out_of_rotation_is_not_proven(self, cluster):
        cluster.silence("c", why="28P01", config=True)
        cluster.round()
        cluster.restart("b")
        cluster["b"].system = "99"
        cluster.round()

        assert not cluster.node("b").proven
        assert not cluster.node("c").proven

    def test_follow_takes_another_cluster_once_the_holder_is_gone(self, build):
        cluster = build("a", "b", "x", system_id="follow")
        cluster.silence("x")
        cluster.round()
        cluster.heal("x")
        cluster["x"].system, cluster["x"].role = "99", Role.PRIMARY
        cluster.round()
        assert (cluster.view.primary, cluster.view.writable) == ("a", None)
        cluster.topology.acknowledged(10**9, cluster.view.reign)

        cluster.silence("a")
        cluster.round()
        assert cluster.node("x").misconfigured is None
        cluster.round()

        assert not cluster.said(WriteMayBeLost), "positions of two clusters cannot be compared"
        assert (cluster.view.writable, cluster.view.reign.system_id) == ("x", "99")
        assert cluster.node("b").misconfigured is not None


class TestTrust:
    def test_ends_a_split_brain_for_the_chosen_one(self, cluster):
        cluster.promote("b", timeline=1)
        cluster.round(2)

        cluster.trust("a")
        cluster.round(2)

        assert (cluster.view.writable, cluster.view.refused) == ("a", None)
        assert cluster.node("b").fenced
        assert cluster.epochs["b"] == "now"

    def test_ends_a_contest_against_the_higher_timeline(self, build):
        cluster = build("a", "x")
        cluster.silence("x")
        cluster.round()
        cluster.heal("x")
        cluster.promote("x")
        cluster.round()

        cluster.trust("a")
        cluster.round(2)

        assert cluster.view.writable == "a"
        assert cluster.node("x").fenced

        cluster.restart("x")
        cluster.round()
        assert cluster.view.writable is None, "another instance: the operator has not seen this one"

    def test_does_not_fence_the_chosen_one_under_its_other_name(self, build):
        cluster = build("a", "alias")
        cluster["alias"].role, cluster["alias"].started = Role.PRIMARY, cluster["a"].started
        cluster.round()

        cluster.trust("a")
        cluster.round()

        assert cluster.view.writable == "a"
        assert not cluster.node("alias").fenced

    def test_fences_nobody_that_became_a_replica_since(self, cluster):
        for server in cluster.servers.values():
            server.started = None
        cluster.promote("b", timeline=1)
        cluster.round()
        cluster.trust("a")
        cluster["b"].role = Role.REPLICA
        cluster.round()
        cluster.promote("b", timeline=2)

        cluster.round()

        assert cluster.view.writable == "b"

    def test_waits_for_the_chosen_one_and_takes_no_other_that_claimed_by_then(self, cluster):
        cluster.silence("b")
        cluster.round()

        cluster.trust("b")
        cluster.round()
        assert (cluster.view.primary, cluster.node("a").fenced) == (None, True)
        cluster.heal("b")
        cluster.promote("b", timeline=1)
        cluster.probe("b")

        assert cluster.view.writable == "b"

    def test_takes_the_chosen_ones_cluster_for_this_cluster(self, cluster):
        cluster.restart("c")
        cluster["c"].system = "99"
        cluster.round()

        cluster.trust("c")
        cluster.round()
        assert cluster.view.primary is None
        assert [name for name, node in cluster.view.nodes.items() if node.misconfigured] == ["a", "b"]
        cluster.promote("c")
        cluster.round()

        assert (cluster.view.writable, cluster.view.reign.system_id) == ("c", "99")

    def test_forgets_who_was_a_replica(self, cluster):
        cluster.trust("a")
        cluster.promote("c")

        cluster.round()

        assert cluster.view.writable is None
        assert [e.node for e in cluster.said(Contested)] == ["c"]

    def test_all_connections_become_stale(self, cluster):
        cluster.trust("a")

        assert set(cluster.epochs) == {"a", "b", "c"}


class TestOldPrimaryAtStart:
    """Nothing was accepted yet, and a node has followed a later primary than the one that answers (RULES 4.4)."""

    @pytest.fixture
    def cluster(self, build):
        return build("a", "b", "c")

    def old_one_is_back(self, cluster):
        for name in "bc":
            cluster[name].timeline = cluster[name].control_timeline = 2
        cluster["b"].role, cluster["b"].streaming = Role.PRIMARY, None
        cluster.silence("b")
        cluster.round()

    def test_gets_no_writes_and_is_named_with_the_way_out(self, cluster):
        self.old_one_is_back(cluster)

        assert cluster.view.primary is None
        assert cluster.view.refused == (
            "contested: a seems to be an old primary: it claims timeline 1, and c has followed timeline 2, whose primary is"
            " away; bring that one back, or trust a"
        )
        cluster.round()
        assert [(said.node, said.incumbent) for said in cluster.said(Contested)] == [("a", "a later primary")]

    @pytest.mark.parametrize("told", [{"control_timeline": 2}, {"marked": Mark(2, "of b")}], ids=str)
    def test_what_a_replica_keeps_that_streams_from_nobody_is_enough(self, cluster, told):
        cluster["c"].streaming = False
        for name, value in told.items():
            setattr(cluster["c"], name, value)
        cluster.silence("b")

        cluster.round()

        assert cluster.view.primary is None

    def test_single_probe_accepts_it_neither(self, cluster):
        self.old_one_is_back(cluster)

        cluster.probe("a")

        assert cluster.view.writable is None

    def test_is_fenced_when_the_later_one_answers(self, cluster):
        self.old_one_is_back(cluster)
        cluster.heal("b")

        cluster.round()

        assert (cluster.view.writable, cluster.view.refused) == ("b", None)
        assert cluster.node("a").fenced

    def test_what_a_replica_told_is_not_forgotten_when_it_says_it_no_more(self, cluster):
        cluster["c"].streaming, cluster["c"].marked = False, Mark(2, "of b")
        cluster.silence("b")
        cluster.round()
        cluster["c"].marked = None

        cluster.round()
        assert cluster.view.primary is None
        cluster.silence("c")
        cluster.round()
        assert cluster.view.primary is None

    def test_replica_that_was_rebuilt_speaks_for_itself(self, cluster):
        self.old_one_is_back(cluster)

        cluster["c"].control_timeline = 1
        cluster.rejoin("c", 1)
        cluster.round()

        assert cluster.view.writable == "a"

    def test_operator_may_choose_it(self, cluster):
        self.old_one_is_back(cluster)

        cluster.topology.trust("a", cluster.now)
        cluster.round()

        assert (cluster.view.writable, cluster.view.refused) == ("a", None)

    def test_nodes_of_another_cluster_are_no_witnesses(self, cluster):
        cluster["c"].system, cluster["c"].timeline = "another", 7

        cluster.round()

        assert cluster.view.writable == "a"

    def test_who_was_accepted_stays_when_a_later_timeline_is_heard_of(self, cluster):
        cluster.round()
        cluster["c"].control_timeline = 9

        cluster.round()

        assert cluster.view.writable == "a"
