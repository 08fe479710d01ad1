"""What a view and its changes say beside the primary: epochs, acknowledged positions, memory."""

from __future__ import annotations

import pytest

from dbguard.core.topology import Reign, Role, Sighting
from dbguard.events import (
    NodeDown,
    NodeUp,
    WriteMayBeLost,
)


class TestEpochsAndViews:
    def test_nothing_new_is_no_new_view(self, cluster):
        cluster.round()
        view = cluster.view

        cluster.round()

        assert cluster.view.version <= view.version + 1
        assert cluster.view.nodes["a"].epoch == 0

    def test_answer_sent_before_a_newer_probe_missed_is_dropped(self, cluster):
        late = cluster["b"].answer(cluster.now + 0.1)
        cluster.silence("b")
        cluster.round()

        cluster.topology.merge([late], cluster.now + 0.1, full=False)

        assert not cluster.node("b").reachable

    def test_positions_are_those_last_told_and_may_be_untold(self, cluster):
        cluster["b"].position = 777
        cluster["c"].position = None
        cluster.round(2)

        assert (cluster.node("b").position, cluster.node("b").position_at) == (777, cluster.now)
        assert (cluster.node("c").position, cluster.node("c").position_at, cluster.node("c").lag) == (None, None, None)
        assert cluster.node("c").proven

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

    def test_nothing_is_acknowledged_before_there_was_a_reign(self, build):
        cluster = build("a")

        cluster.topology.acknowledged(5000, Reign("42", 1, "m1"))
        cluster.round()

        assert cluster.view.writable == "a"

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
