"""The rules of the office, one by one: instance, start-up, acceptance, contest, split brain, system id, epochs."""

from __future__ import annotations

import pytest

from dbguard.core.topology import Instance, Reign, Role, Sighting
from dbguard.events import (
    Contested,
    NodeDown,
    NodeFenced,
    NodeMisconfigured,
    NodeUp,
    PrimaryChanged,
    SplitBrainSeen,
    WriteMayBeLost,
)


class TestInstance:
    def test_what_is_not_told_is_never_a_mismatch(self):
        told = Instance("42", "noon")

        assert not told.differs(Instance())
        assert not told.differs(Instance("42", None))
        assert told.differs(Instance("42", "one"))
        assert told.differs(Instance("43", None))

    def test_what_is_not_told_is_no_proof_either(self):
        assert Instance("42", "noon").is_surely(Instance("42", "noon"))
        assert not Instance(None, "noon").is_surely(Instance(None, "noon"))
        assert not Instance().is_surely(Instance())

    def test_servers_that_do_not_tell_their_instance_are_followed_all_the_same(self, build):
        cluster = build("a", "b")
        for server in cluster.servers.values():
            server.system = server.started = server.timeline = server.control_timeline = None
        cluster.round(2)
        assert cluster.view.writable == "a"

        cluster.silence("a")
        cluster.promote("b")
        cluster["b"].timeline = None
        cluster.round()

        assert cluster.view.writable == "b"
        assert len(cluster.said(PrimaryChanged)) == 2

    def test_one_late_answer_of_the_server_that_a_name_has_left_makes_no_group(self, cluster):
        old, new = cluster["b"].started, cluster.start()
        for started in (new, old, new):
            cluster["b"].started = started
            cluster.round()

        assert cluster.node("b").instance.started == new
        assert not cluster.node("b").group
        assert cluster.node("b").proven


class TestStart:
    def test_nothing_is_accepted_before_one_full_round(self, build):
        cluster = build("a", "b")

        changes = cluster.probe("a")

        assert (cluster.view.primary, changes.look_again) == (None, True)
        cluster.round()
        assert cluster.view.writable == "a"
        assert cluster.epochs == {}, "nothing was dialled under another reign"

    def test_highest_timeline_wins_and_the_other_is_fenced(self, build):
        cluster = build("a", "b", "c")
        cluster.promote("c", timeline=3)

        cluster.round()

        assert cluster.view.writable == "c"
        assert cluster.node("a").fenced

    def test_full_round_counts_though_some_nodes_are_missed(self, build):
        cluster = build("a", "b", "c")
        cluster.silence("b", "c")

        cluster.round()

        assert cluster.view.writable == "a"
        assert [e.node for e in cluster.said(NodeDown)] == ["b", "c"]

    def test_two_primaries_on_the_highest_timeline_are_not_chosen_between(self, build):
        cluster = build("a", "b")
        cluster.promote("b", timeline=1)

        cluster.round()
        assert (cluster.view.primary, cluster.view.refused) == (None, None)
        cluster.round()

        assert cluster.view.primary is None
        assert cluster.view.refused.startswith("split brain")

    def test_without_a_primary_replicas_are_known_and_unproven(self, build):
        cluster = build("a", "b")
        cluster.silence("a")

        cluster.round()

        assert cluster.view.primary is None
        assert [(n.name, n.proven) for n in cluster.view.replicas] == [("b", False)]


class TestAcceptance:
    def test_known_replica_is_accepted_at_one_probe(self, cluster):
        cluster.promote("b")

        cluster.probe("b")

        assert cluster.view.writable == "b"
        assert cluster.node("a").fenced

    def test_replica_is_known_across_its_restarts(self, cluster):
        cluster.restart("b")
        cluster.promote("b")

        cluster.probe("b")

        assert cluster.view.writable == "b"

    def test_replica_of_another_cluster_is_a_stranger_in_this_one(self, build):
        cluster = build("a", "b")
        cluster["b"].system = "99"
        cluster.round()
        cluster.restart("b")
        cluster["b"].system = "42"
        cluster.promote("b")

        cluster.round()

        assert cluster.view.writable is None
        assert len(cluster.said(Contested)) == 1

    @pytest.mark.parametrize(("before", "after"), [(None, "42"), ("42", None), (None, None)])
    def test_replica_that_does_not_tell_its_system_is_known_all_the_same(self, build, before, after):
        cluster = build("a", "b")
        cluster["b"].system = before
        cluster.round()
        cluster.restart("b")
        cluster["b"].system = after
        cluster.promote("b")

        cluster.round()

        assert (cluster.view.writable, cluster.view.refused) == ("b", None)

    def test_stranger_at_one_probe_only_asks_for_a_full_round(self, build):
        cluster = build("a", "x")
        cluster.silence("x")
        cluster.round()
        cluster.heal("x")
        cluster.promote("x")

        changes = cluster.probe("x")

        assert (cluster.view.writable, changes.look_again) == ("a", True)

    @pytest.mark.parametrize("holder", ["silent", "another instance", "recovery"])
    def test_stranger_is_accepted_once_the_holder_is_gone(self, build, holder):
        cluster = build("a", "x")
        cluster.silence("x")
        cluster.round()
        cluster.heal("x")
        cluster.promote("x")
        if holder == "silent":
            cluster.silence("a")
        elif holder == "recovery":
            cluster.rejoin("a", 1)
        else:
            cluster.restart("a")

        cluster.round()

        assert (cluster.view.writable, cluster.view.refused) == ("x", None)

    def test_overloaded_holder_keeps_its_office_and_strangers_out(self, build):
        cluster = build("a", "x")
        cluster.silence("x")
        cluster.round()
        cluster.silence("a", why="53300", alive=True)
        cluster.round(2)
        assert (cluster.view.writable, cluster.node("a").reachable) == ("a", True)

        cluster.heal("x")
        cluster.promote("x")
        cluster.round()

        assert (cluster.view.primary, cluster.view.writable) == ("a", None)

    def test_holder_that_takes_nobody_in_is_gone(self, cluster):
        cluster.silence("a", why="57P03", alive=True, closed=True)

        cluster.round()

        assert cluster.view.primary is None

    def test_a_single_missed_probe_only_asks_for_a_full_round(self, cluster):
        cluster.silence("a")

        changes = cluster.probe("a")

        assert (cluster.view.writable, changes.look_again) == ("a", True)
        assert not cluster.node("a").reachable
        assert not cluster.said(NodeDown)

    def test_same_timeline_below_the_flushed_position_is_another_reign(self, cluster):
        cluster["a"].position, cluster["a"].flushed = 9000, 8000
        cluster.round()
        reign = cluster.view.reign
        cluster.restart("a")
        cluster["a"].position = 7999

        cluster.round()

        assert cluster.view.writable == "a"
        assert cluster.view.reign != reign
        assert cluster.epochs == {"a": "now", "b": "drain", "c": "drain"}

    def test_same_timeline_above_the_flushed_position_continues_the_reign(self, cluster):
        cluster["a"].position, cluster["a"].flushed = 9000, 8000
        cluster.round()
        reign = cluster.view.reign
        cluster.restart("a")
        cluster["a"].position = 8000

        cluster.round()

        assert cluster.view.reign == reign

    def test_mark_is_renewed_when_a_node_rises_from_recovery_on_the_accepted_number(self, cluster):
        reign = cluster.view.reign
        cluster.silence("a")
        cluster.round()
        cluster.promote("b", timeline=1)

        cluster.round()

        assert cluster.view.writable == "b"
        assert cluster.view.reign not in {reign, None}

    def test_results_overtaken_by_newer_ones_are_dropped(self, cluster):
        late = cluster["a"].answer(cluster.now - 1)
        cluster.rejoin("a", 1)
        cluster.round()

        cluster.topology.merge([late], cluster.now + 1, full=False)

        assert cluster.view.primary is None

    def test_suspect_primary_keeps_its_office_from_a_server_on_its_timeline(self, build):
        cluster = build("a", "x")
        cluster.silence("x")
        cluster.round()
        cluster.silence("a")
        cluster.probe("a")
        cluster.heal("x")
        cluster.promote("x", timeline=1)

        changes = cluster.probe("x")

        assert (cluster.view.writable, changes.look_again) == ("a", True)

    def test_node_known_to_be_down_asks_for_no_further_round(self, cluster):
        cluster.silence("b")
        cluster.silence("c", why="53300", alive=True)
        assert cluster.probe("b").look_again
        assert not cluster.probe("c").look_again
        assert not cluster.round().look_again
        assert not cluster.probe("b").look_again


class TestFence:
    def test_fenced_node_is_accepted_again_only_with_a_newer_reign(self, cluster):
        cluster.promote("b")
        cluster.round()
        cluster.silence("b", "c")
        cluster.round(3)
        assert (cluster.view.primary, cluster.node("a").fenced) == (None, True)

        cluster.rejoin("a", 2)
        cluster.round()
        cluster.promote("a")
        cluster.round()

        assert (cluster.view.writable, cluster.view.reign.timeline) == ("a", 3)
        assert not cluster.node("a").fenced

    def test_each_fall_into_the_fence_ends_the_leases_once(self, cluster):
        cluster.promote("b")
        cluster.round(3)
        epoch = cluster.node("a").epoch

        cluster.restart("a")
        cluster.round(3)

        assert cluster.node("a").epoch == epoch + 1
        assert len(cluster.said(NodeFenced)) == 1


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

    def test_pin_keeps_another_cluster_out_even_when_the_primary_is_gone(self, cluster):
        cluster.restart("a")
        cluster["a"].system = "99"
        cluster.round(3)
        assert cluster.view.primary is None

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

        cluster.silence("a")
        cluster.round()

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


class TestEpochsAndViews:
    def test_nothing_new_is_no_new_view(self, cluster):
        cluster.round()
        view = cluster.view

        cluster.round()

        assert cluster.view.version <= view.version + 1
        assert cluster.view.nodes["a"].epoch == 0

    def test_node_back_after_an_outage_keeps_its_epoch(self, cluster):
        cluster.silence("b")
        cluster.round(2)
        cluster.heal("b")
        cluster.round()

        assert cluster.epochs == {}
        assert [type(e) for e in cluster.events] == [NodeDown, NodeUp]

    def test_position_acknowledged_under_an_older_reign_says_nothing(self, cluster):
        old = cluster.view.reign
        cluster.silence("a")
        cluster.promote("b")
        cluster.round()
        cluster.topology.acknowledged(10**9, old)
        cluster.forget()
        cluster.silence("b")
        cluster["c"].timeline = 2
        cluster.promote("c")

        cluster.round()

        assert not cluster.said(WriteMayBeLost)

    def test_position_acknowledged_under_one_reign_is_compared_once(self, cluster):
        cluster.topology.acknowledged(10**9, cluster.view.reign)
        cluster.silence("a")
        cluster.promote("b")
        cluster.round()
        cluster["c"].timeline = 2
        cluster.silence("b")
        cluster.promote("c")

        cluster.round()

        assert cluster.view.writable == "c"
        assert [e.node for e in cluster.said(WriteMayBeLost)] == ["b"]

    def test_lower_acknowledged_position_learnt_later_takes_nothing_back(self, cluster):
        cluster.topology.acknowledged(5000, cluster.view.reign)
        cluster.topology.acknowledged(4000, cluster.view.reign)
        cluster.silence("a")
        cluster.promote("b")

        cluster.round()

        assert [e.lost_bytes for e in cluster.said(WriteMayBeLost)] == [4000]

    def test_renewal_makes_one_nodes_connections_stale_and_nothing_else(self, cluster):
        changes = cluster.topology.renew("a", cluster.now)

        assert changes.epochs == {"a": (1, "drain")}
        assert cluster.view.writable == "a"

    def test_what_is_told_once_is_kept(self, cluster):
        told = cluster.node("a").instance
        cluster["a"].system = cluster["a"].started = None

        cluster.round()

        assert cluster.node("a").instance == told

    def test_many_failovers_leave_no_growing_memory(self, cluster):
        for number in range(2, 60):
            old, new = "ab" if number % 2 == 0 else "ba"
            cluster[new].timeline = number - 1
            cluster.promote(new, timeline=number)
            cluster.round()
            assert cluster.view.writable == new
            cluster.promote("c", timeline=number)
            cluster.round()
            cluster.rejoin("c", number)
            cluster.rejoin(old, number)
            cluster.round(2)

        assert len(cluster.topology._bearers) <= 2
        assert len(cluster.topology._doubted) <= 2

    def test_reign_reads_as_text(self):
        assert str(Reign("42", 2, "1a2b")) == "timeline 2 (mark 1a2b)"

    def test_unknown_node_is_an_error(self, cluster):
        with pytest.raises(KeyError):
            cluster.topology.merge([Sighting(node="z", at=1.0, role=Role.REPLICA)], 1.0, full=False)
