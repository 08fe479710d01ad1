"""The rules of the office, one by one: instance, start-up, acceptance, fence."""

from __future__ import annotations

import pytest

from dbguard.core.topology import Instance, Role
from dbguard.events import (
    Contested,
    NodeDown,
    NodeFenced,
    NodeMisconfigured,
    PrimaryChanged,
)


@pytest.fixture
def untold(build):
    """Servers that do not tell their instance, a the primary, x not seen yet."""
    cluster = build("a", "b", "x")
    for server in cluster.servers.values():
        server.system = server.started = None
    cluster.silence("x")
    cluster.round()
    cluster.forget()
    return cluster


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

    def test_restart_on_another_timeline_is_another_reign_though_no_instance_is_told(self, untold):
        cluster = untold
        cluster["a"].timeline = 2

        cluster.round()

        assert (cluster.view.writable, cluster.view.reign.timeline) == ("a", 2)

    def test_rise_from_recovery_is_another_reign_though_no_instance_is_told(self, untold):
        cluster = untold
        reign = cluster.view.reign
        cluster["a"].role = Role.REPLICA
        cluster.round()
        cluster["a"].role = Role.PRIMARY

        cluster.round()

        assert cluster.view.writable == "a"
        assert cluster.view.reign != reign

    def test_move_to_another_name_makes_the_old_ones_connections_stale_though_no_instance_is_told(self, untold):
        cluster = untold
        reign = cluster.view.reign
        cluster.silence("a")
        cluster.heal("x")
        cluster.promote("x", timeline=1)

        cluster.round()

        assert (cluster.view.writable, cluster.view.reign) == ("x", reign)
        assert cluster.epochs == {"a": "now"}

    def test_reign_takes_over_what_its_primary_does_not_tell(self, cluster):
        cluster.topology.acknowledged(5000, cluster.view.reign)
        cluster.silence("a")
        cluster.round()
        cluster.restart("b")
        cluster.promote("b")
        cluster["b"].timeline = cluster["b"].system = cluster["b"].position = None

        cluster.round()

        assert cluster.view.writable == "b"
        assert (cluster.view.reign.timeline, cluster.view.reign.system_id) == (1, "42")
        assert cluster.view.reign.mark == "m2"

    def test_one_late_answer_of_the_server_that_a_name_has_left_makes_no_group(self, cluster):
        old, new = cluster["b"].started, cluster.start()
        for started in (new, old, new):
            cluster["b"].started = started
            cluster.round()

        assert cluster.node("b").instance.started == new
        assert not cluster.node("b").group
        assert cluster.node("b").proven


class TestStart:
    def test_no_node_is_put_out_of_rotation_before_one_full_round(self, build):
        cluster = build("a", "b")
        cluster["b"].system = "99"
        cluster.probe("b")
        cluster.probe("a")
        assert not cluster.said(NodeMisconfigured)

        cluster.round()

        assert [e.node for e in cluster.said(NodeMisconfigured)] == ["b"]

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

    def test_role_signal_of_an_overloaded_holder_counts(self, cluster):
        cluster.silence("a", why="53300", alive=True)
        cluster.round()
        cluster.lost("a")

        cluster.round()

        assert cluster.view.primary is None

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
        assert cluster.epochs == {"a": "now", "b": "keep", "c": "keep"}

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
        assert not cluster.node("a").fenced, "it is a replica now"
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
