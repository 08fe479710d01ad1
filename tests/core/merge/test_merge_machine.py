"""Whatever happens to the servers, and in whatever order they are asked: what must hold of every view."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dbguard.core.topology import Missed, Role
from dbguard.events import NodeFenced, PrimaryChanged

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)


class Machine(RuleBasedStateMachine):
    def __init__(self, build):
        super().__init__()
        self.build = build

    @initialize(known=st.sets(names), incumbent=st.booleans())
    def begin(self, known, incumbent):
        self.incumbent = incumbent
        self.cluster = self.build(*NAMES, split_brain="incumbent" if incumbent else "refuse")
        self.cluster.silence(*(set(NAMES) - known))
        self.epochs = dict.fromkeys(NAMES, 0)
        self.instances, self.roles = {}, {}
        self.timeline = 0
        self.fenced = {}
        self.splits = 0

    # what happens to servers

    @rule(name=names)
    def promote(self, name):
        if self.cluster[name].role is Role.REPLICA:
            self.cluster.promote(name)

    @rule(name=names, timeline=st.integers(1, 4))
    def promote_to(self, name, timeline):
        self.cluster.restart(name)
        self.cluster.promote(name, timeline)

    @rule(name=names, timeline=st.integers(1, 4))
    def rejoin(self, name, timeline):
        self.cluster.rejoin(name, timeline)

    @rule(name=names)
    def restart(self, name):
        self.cluster.restart(name)

    @rule(name=names, how=st.sampled_from([{}, {"alive": True}, {"alive": True, "closed": True}, {"config": True}]))
    def silence(self, name, how):
        self.cluster.silence(name, **how)

    @rule(name=names)
    def heal(self, name):
        self.cluster.heal(name)

    @rule(name=names, source=names)
    def move(self, name, source):
        """Let *name* lead to the server of *source*."""
        one, other = self.cluster[name], self.cluster[source]
        one.started, one.role, one.timeline, one.streaming = other.started, other.role, other.timeline, other.streaming

    @rule(size=st.integers(0, 1000))
    def write(self, size):
        self.cluster.write(size)

    @rule(name=names, position=st.integers(0, 5000))
    def lose_wal(self, name, position):
        self.cluster.restart(name)
        self.cluster[name].position = position

    @rule(position=st.integers(0, 5000))
    def acknowledge(self, position):
        if self.cluster.view.reign is not None:
            self.cluster.topology.acknowledged(position, self.cluster.view.reign)

    # what the topology is told

    @rule(times=st.integers(1, 3))
    def round(self, times):
        for _ in range(times):
            self.cluster.forget()
            self.cluster.round()
            self.look(full=True)

    @rule(name=names)
    def probe(self, name):
        self.cluster.forget()
        self.cluster.probe(name)
        self.look(full=False)

    @rule(name=names)
    def lost(self, name):
        self.cluster.forget()
        self.cluster.lost(name)
        assert self.cluster.view.primary != name
        self.look(full=False)

    # what must hold

    def look(self, *, full):
        view = self.cluster.view
        for name, node in view.nodes.items():
            before = self.instances.get(name)
            if before is not None and node.instance.differs(before) and Role.PRIMARY in {node.role, self.roles[name]}:
                assert node.epoch > self.epochs[name], "another server under the name of a primary: stale connections"
            if node.fenced:
                self.fenced.setdefault(name, (node.instance, view.reign))
            if node.role is Role.REPLICA:
                self.fenced.pop(name, None)
            self.instances[name], self.roles[name] = node.instance, node.role
        for event in self.cluster.said(NodeFenced):
            assert self.cluster.epochs[event.node] == "now"
        for event in self.cluster.said(PrimaryChanged):
            assert event.node == view.primary
        if full:
            self.look_at_round(view)

    def look_at_round(self, view):
        """Judge a round in which all nodes were asked, by what the servers answer."""
        answers = [
            answer for server in self.cluster.servers.values() if not isinstance(answer := server.answer(0.0), Missed)
        ]
        claims = [answer for answer in answers if answer.role is Role.PRIMARY]
        if view.writable is not None:
            chosen = self.cluster[view.writable]
            assert chosen.role is Role.PRIMARY if chosen.silent is None else chosen.silent.overloaded
            assert all(claim.timeline <= view.reign.timeline for claim in claims), "written beside a higher timeline"
        top = max((claim.timeline for claim in claims), default=0)
        servers = {claim.instance for claim in claims if claim.timeline == top}
        lawful = view.reign is None or top >= view.reign.timeline
        holder_is_heard = view.primary is None or self.cluster[view.primary].silent is None
        self.splits = self.splits + 1 if len(servers) > 1 and lawful and holder_is_heard else 0
        if self.splits >= 2 and not self.incumbent:
            assert view.refused is not None, "two servers claim one timeline"

    @invariant()
    def epochs_never_go_down(self):
        for name, node in self.cluster.view.nodes.items():
            assert node.epoch >= self.epochs[name]
            self.epochs[name] = node.epoch

    @invariant()
    def accepted_timeline_never_goes_down(self):
        if self.cluster.view.reign is not None:
            assert self.cluster.view.reign.timeline >= self.timeline
            self.timeline = self.cluster.view.reign.timeline

    @invariant()
    def at_most_one_node_is_writable_and_it_is_a_primary_in_rotation(self):
        view = self.cluster.view
        if view.primary is not None:
            node = view.nodes[view.primary]
            assert (node.role, node.fenced, node.misconfigured) == (Role.PRIMARY, False, None)
            assert node.timeline == view.reign.timeline

    @invariant()
    def fenced_node_is_primary_only_under_a_newer_reign(self):
        view = self.cluster.view
        if view.primary in self.fenced:
            instance, reign = self.fenced.pop(view.primary)
            assert view.nodes[view.primary].instance != instance or view.reign != reign

    @invariant()
    def proven_replicas_follow_the_timeline_of_the_reign(self):
        view = self.cluster.view
        for node in view.replicas:
            assert not (node.proven and (view.reign is None or node.group or node.fenced))


def test_every_view_holds_whatever_happens(build):
    run_state_machine_as_test(
        lambda: Machine(build),
        settings=settings(
            max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
