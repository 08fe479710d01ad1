"""What follows from what attempts and probes say: who is fit, what the gate does, what the runtime has to do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dbguard.core.breaker import BreakerState
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.gate import GateState
from dbguard.core.plan import Choice, Nowhere
from dbguard.core.retry import Act, Stake, judge
from dbguard.core.router import ReadPolicy
from dbguard.core.topology import Mark, Missed, Role, Sighting
from dbguard.errors import NoPrimary, NoReplica
from dbguard.events import ClassifierMissed, ContextOutlivedReign, WriteMayBeLost
from dbguard.status import status_of
from dbguard.testing.clock import ManualClock
from dbguard.testing.fake import demoted, known_state, lost, new_call, refused, seen, timed_out

if TYPE_CHECKING:
    from dbguard.core.state import GuardState

SILENT = "no answer in time"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state(clock: ManualClock) -> GuardState:
    return known_state(clock)


def fail(state: GuardState, failure: Failure) -> None:
    state.failed(failure, state.nodes[failure.node].breaker.generation)


def look(
    state: GuardState, clock: ManualClock, *silent: str, primary: str = "a", timeline: int = 1, position: int = 1_000
) -> None:
    """One full round: *primary* says so, the others are replicas, the *silent* ones say nothing."""
    now = clock.advance(0.5)
    results: list[Sighting | Missed] = []
    for name in state.nodes:
        role = Role.PRIMARY if name == primary else Role.REPLICA
        answer = seen(name, role, now, timeline=timeline, position=position)
        results.append(Missed(node=name, at=now, why=SILENT) if name in silent else answer)
    state.probed(results, full=True)


def names(state: GuardState) -> list[str]:
    return [node.name for node in state.readers]


# ---------------------------------------------------------------- who is fit


def test_healthy_cluster_reads_from_replicas_and_writes_to_the_primary(state: GuardState) -> None:
    assert names(state) == ["b", "c"]
    assert state.primary is state.nodes["a"]
    assert state.gate.state is GateState.OPEN


def test_silent_replica_is_not_fit(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "b")

    assert names(state) == ["c"]
    assert state.nodes["b"].breaker.state is BreakerState.OPEN


def test_silent_replicas_leases_are_ended_and_a_silent_primarys_are_not(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "a", "b")

    effects = state.take_effects()
    assert effects is not None
    assert effects.silent == ["b"]


def test_replica_is_fit_again_as_soon_as_a_probe_reaches_it(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "b")
    look(state, clock)

    assert names(state) == ["b", "c"]
    assert state.nodes["b"].breaker.state is BreakerState.CLOSED


def test_lagging_replica_is_fit_for_eventual_reads_alone(clock: ManualClock) -> None:
    state = known_state(clock, reads=ReadPolicy(max_lag=1.0))
    for step in range(1, 8):
        now = clock.advance(0.5)
        state.probed(
            [
                seen("a", Role.PRIMARY, now, position=1_000 + 100 * step),
                seen("b", Role.REPLICA, now, position=1_000 + 100 * step),
                seen("c", Role.REPLICA, now, position=1_000),
            ],
            full=True,
        )

    assert names(state) == ["b"]
    assert [node.name for node in state.eventual] == ["b", "c"]


def test_doubted_replica_waits_for_its_probe_while_there_is_another(state: GuardState, clock: ManualClock) -> None:
    fail(state, lost("b"))
    assert names(state) == ["c"]

    look(state, clock)

    assert names(state) == ["b", "c"]


def test_doubted_replicas_are_better_than_none(state: GuardState) -> None:
    fail(state, lost("b"))
    fail(state, lost("c"))

    assert names(state) == ["b", "c"]


# ---------------------------------------------------------------- attempts


def test_hard_failure_of_the_primary_makes_the_gate_suspect_and_hurries_the_monitor(state: GuardState) -> None:
    fail(state, refused("a"))

    effects = state.take_effects()
    assert state.gate.state is GateState.SUSPECT
    assert effects is not None
    assert effects.hurry


def test_read_only_refusal_that_nothing_explains_makes_the_monitor_ask(state: GuardState, clock: ManualClock) -> None:
    """The session says that it is no standby's: but a pooler may have kept it while the server behind was replaced."""
    refusal = replace(refused("a"), family=Family.ANSWERED, sqlstate="25006", phase=Phase.ERROR)
    state.take_effects()
    fail(state, refusal)
    assert state.take_effects() is None  # it was asked just now

    clock.advance(0.3)
    fail(state, refusal)

    effects = state.take_effects()
    assert effects is not None
    assert effects.hurry
    assert state.gate.state is GateState.OPEN
    state.probed([seen("a", Role.PRIMARY, clock.now, read_only=True)], full=False)
    state.take_effects()
    clock.advance(0.3)
    fail(state, refusal)
    assert state.take_effects() is None  # it has told why


def test_suspicion_ends_when_the_primary_answers(state: GuardState, clock: ManualClock) -> None:
    fail(state, refused("a"))

    look(state, clock)

    assert state.gate.state is GateState.OPEN


def test_answer_to_an_older_question_does_not_end_a_doubt(state: GuardState, clock: ManualClock) -> None:
    asked_at = clock.now
    clock.advance(0.1)
    fail(state, refused("a"))

    state.probed([seen("a", Role.PRIMARY, asked_at)], full=False)

    assert state.nodes["a"].doubted
    assert state.gate.state is GateState.SUSPECT


def test_five_hard_failures_in_a_row_open_the_breaker(state: GuardState) -> None:
    for _ in range(5):
        fail(state, refused("b"))

    assert state.nodes["b"].breaker.state is BreakerState.OPEN


def test_what_we_ended_ourselves_says_nothing_about_the_node(state: GuardState) -> None:
    ours = Failure(node="b", phase=Phase.SENT, family=Family.HARD, cause=OSError(), broken=True, ours=True)
    for _ in range(9):
        fail(state, ours)

    assert state.nodes["b"].breaker.state is BreakerState.CLOSED
    assert not state.nodes["b"].doubted


def test_overload_halves_the_weight_and_opens_nothing(state: GuardState, clock: ManualClock) -> None:
    for _ in range(9):
        fail(state, timed_out("b"))

    node = state.nodes["b"]
    assert node.breaker.state is BreakerState.CLOSED
    assert node.cost(clock.now) == 2 * node.cost(clock.now + 10.0)


def test_demoted_primary_is_no_primary_at_once(state: GuardState) -> None:
    fail(state, demoted("a"))

    assert state.primary is None
    assert state.gate.state is GateState.FAILOVER


def test_probe_sent_before_the_demotion_was_seen_brings_nobody_back(state: GuardState, clock: ManualClock) -> None:
    asked_at = clock.now
    clock.advance(0.1)
    fail(state, demoted("a"))

    state.probed([seen("a", Role.PRIMARY, asked_at)], full=False)

    assert state.primary is None


# ---------------------------------------------------------------- a failover


def test_promotion_moves_writes_ends_the_old_primarys_connections_and_keeps_the_others(
    state: GuardState, clock: ManualClock
) -> None:
    look(state, clock, "a", primary="b", timeline=2)

    effects = state.take_effects()
    assert effects is not None
    assert state.primary is state.nodes["b"]
    assert effects.epochs["a"][1] == "now"
    assert {how for name, (_, how) in effects.epochs.items() if name != "a"} == {"keep"}
    assert effects.changed


def test_of_two_drains_that_nobody_has_carried_out_yet_the_sterner_counts(
    state: GuardState, clock: ManualClock
) -> None:
    state.take_effects()
    state.renew("b")
    look(state, clock, "a", primary="b", timeline=2)

    effects = state.take_effects()
    assert effects is not None
    assert {name: how for name, (_, how) in effects.epochs.items()} == {"a": "now", "b": "drain", "c": "keep"}
    assert effects.epochs["b"][0] == state.nodes["b"].epoch


def test_replica_is_fit_only_once_it_is_proven_to_follow_the_new_primary(state: GuardState, clock: ManualClock) -> None:
    now = clock.advance(0.5)
    state.probed(
        [
            Missed(node="a", at=now, why=SILENT),
            seen("b", Role.PRIMARY, now, timeline=2),
            seen("c", Role.REPLICA, now, timeline=1),
        ],
        full=True,
    )
    assert names(state) == []

    look(state, clock, "a", primary="b", timeline=2)

    assert names(state) == ["c"]


def test_old_primary_that_comes_back_is_fenced(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "a", primary="b", timeline=2)

    why = state.met(seen("a", Role.PRIMARY, clock.advance(0.1), timeline=1))

    assert why == "a belongs to an older reign"
    assert state.primary is state.nodes["b"]


def test_connection_to_an_older_reign_is_refused_though_newer_news_have_overtaken_what_it_said(
    state: GuardState, clock: ManualClock
) -> None:
    """The monitor's next question is under way already, and will not be answered: it counts, the answer does not."""
    look(state, clock, "a", primary="b", timeline=2)
    asked_at = clock.now + 0.1
    look(state, clock, "a", "b", primary="b", timeline=2)

    assert state.met(seen("a", Role.PRIMARY, asked_at, timeline=1)) == "a belongs to an older reign"


def test_claim_is_answered_by_the_server_that_holds_the_office_alone(state: GuardState, clock: ManualClock) -> None:
    """Another primary by the same name and timeline may be the old one restarted, or not: its mark has yet to be asked."""
    reign = state.view.reign
    state.probed([seen("a", Role.PRIMARY, clock.advance(0.1), marked=Mark(1, "agreed"))], full=False)
    assert state.met_to_claim(seen("a", Role.PRIMARY, clock.advance(0.1))) is None

    another = seen("a", Role.PRIMARY, clock.advance(0.1), started="again", position=2_000)

    assert state.met_to_claim(another) == "a does not hold the primary's office"
    assert state.view.reign == reign

    marked = seen("a", Role.PRIMARY, clock.advance(0.1), started="again", position=2_000, marked=Mark(1, "agreed"))
    state.probed([marked], full=False)

    assert state.met_to_claim(seen("a", Role.PRIMARY, clock.advance(0.1), started="again", position=2_000)) is None
    assert state.view.reign == reign


def test_claim_is_not_answered_by_a_server_that_newer_news_have_replaced(state: GuardState, clock: ManualClock) -> None:
    late = seen("a", Role.PRIMARY, clock.advance(0.1))
    state.probed([seen("a", Role.PRIMARY, clock.advance(0.1), started="again")], full=True)
    assert state.primary is state.nodes["a"]

    assert state.met_to_claim(late) == "a does not hold the primary's office"


def test_lost_primary_closes_the_gate_and_its_return_opens_it(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "a", primary="nobody")
    assert state.gate.state is GateState.FAILOVER
    assert state.primary is None

    look(state, clock)

    assert state.gate.state is GateState.OPEN


def test_calls_wait_for_the_trusted_node_once_a_split_brain_is_decided(state: GuardState, clock: ManualClock) -> None:
    for _ in range(2):
        now = clock.advance(0.5)
        state.probed([seen(name, Role.PRIMARY, now, timeline=2) for name in "bc"], full=True)
    call = new_call(state, Stake.WRITE)
    assert isinstance(state.route(call), Nowhere)
    assert state.admit(call) is not None

    state.trust("b")

    assert state.admit(call) is None
    route = state.route(call)
    assert isinstance(route, Nowhere)
    assert route.waits
    look(state, clock, primary="b", timeline=2)
    assert isinstance(state.route(call), Choice)


def test_time_turns_a_failover_into_an_outage(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "a", primary="nobody")
    clock.advance(61.0)
    state.tick()

    assert state.gate.state is GateState.DOWN
    nowhere = state.route(new_call(state, Stake.WRITE))
    assert isinstance(nowhere, Nowhere)
    assert not nowhere.waits


# ---------------------------------------------------------------- own writes


def test_read_after_a_write_goes_to_the_primary_until_a_replica_is_proven_to_have_it(
    state: GuardState, clock: ManualClock
) -> None:
    write = new_call(state, Stake.WRITE)
    write.box.wrote(state.view.reign, clock.advance(0.1))
    read = new_call(state, box=write.box)
    at_first = state.route(read)

    look(state, clock, position=1_500)
    later = state.route(read)

    assert isinstance(at_first, Choice)
    assert (at_first.node, at_first.role) == ("a", "primary")
    assert isinstance(later, Choice)
    assert later.role == "replica"


def test_replica_that_is_behind_gets_no_read_of_this_context(state: GuardState, clock: ManualClock) -> None:
    write = new_call(state, Stake.WRITE)
    write.box.wrote(state.view.reign, clock.advance(0.1))
    now = clock.advance(0.5)
    state.probed(
        [
            seen("a", Role.PRIMARY, now, position=2_000),
            seen("b", Role.REPLICA, now, position=1_999),
            seen("c", Role.REPLICA, now, position=2_000),
        ],
        full=True,
    )

    chosen = {state.pick(new_call(state, box=write.box)) for _ in range(20)}

    assert chosen == {state.nodes["c"]}


@pytest.mark.parametrize("way", ["pick", "route"])
def test_context_that_wrote_under_an_older_reign_is_told_that_it_may_have_lost(
    state: GuardState, clock: ManualClock, way: str
) -> None:
    write = new_call(state, Stake.WRITE)
    write.box.wrote(state.view.reign, clock.advance(0.1))
    look(state, clock, "a", primary="b", timeline=2)
    state.take_effects()

    for _ in range(3):
        getattr(state, way)(new_call(state, box=write.box))

    events = [event for event in state.effects.events if isinstance(event, ContextOutlivedReign)]
    assert len(events) == 1


@pytest.mark.parametrize("consistency", ["own-writes", "bounded", "eventual", "primary"])
def test_fast_choice_is_the_plans_choice(state: GuardState, consistency: str) -> None:
    call = new_call(state, consistency=consistency)

    route, node = state.route(call), state.pick(call)

    assert isinstance(route, Choice)
    assert node is state.nodes[route.node]


# ---------------------------------------------------------------- a connection that was waited for


def test_choice_made_before_the_topology_changed_does_not_stand(state: GuardState, clock: ManualClock) -> None:
    """A write waits for a connection to the primary; when it has one, another reign has begun."""
    call, node = new_call(state, Stake.WRITE), state.nodes["a"]
    epoch = node.epoch
    assert state.overtaken(call, node, epoch) is None

    look(state, clock, "a", primary="b", timeline=2)
    failure = state.overtaken(call, node, epoch)

    assert failure is not None
    assert isinstance(failure.cause, NoPrimary)
    assert judge(failure, call.work).act is Act.REPEAT
    assert judge(failure, call.work).purse is None


def test_choice_of_a_replica_does_not_stand_either(state: GuardState, clock: ManualClock) -> None:
    call, node = new_call(state), state.nodes["c"]
    epoch = node.epoch

    look(state, clock, "a", primary="b", timeline=2)

    failure = state.overtaken(call, node, epoch)
    assert failure is not None
    assert isinstance(failure.cause, NoReplica)


def test_overtaken_choice_says_nothing_about_the_node(state: GuardState, clock: ManualClock) -> None:
    call, node = new_call(state), state.nodes["c"]
    epoch = node.epoch
    look(state, clock, "a", primary="b", timeline=2)
    failure = state.overtaken(call, node, epoch)
    assert failure is not None

    fail(state, failure)

    assert not node.doubted
    assert names(state) == ["c"]


# ---------------------------------------------------------------- a question that was asked of the primary


def test_answer_of_a_primary_that_another_instance_has_followed_does_not_count_though_its_reign_goes_on(
    state: GuardState, clock: ManualClock
) -> None:
    node, reign = state.nodes["a"], state.view.reign
    epoch = node.epoch
    look(state, clock)
    assert state.still_asked(node, epoch, reign)

    state.probed([seen("a", Role.PRIMARY, clock.advance(0.5), started="second")], full=False)

    assert (state.primary, state.view.reign) == (node, reign)
    assert not state.still_asked(node, epoch, reign)
    assert state.still_asked(node, node.epoch, reign)


def test_answer_of_a_primary_does_not_count_under_another_reign(state: GuardState, clock: ManualClock) -> None:
    node, reign = state.nodes["a"], state.view.reign
    epoch = node.epoch

    look(state, clock, "a", primary="b", timeline=2)

    assert not state.still_asked(node, epoch, reign)


# ---------------------------------------------------------------- what is said


def test_read_that_a_replica_refuses_as_a_write_goes_to_the_primary_from_then_on(state: GuardState) -> None:
    call = new_call(state)

    state.misread(call, demoted("b"))

    route = state.route(call)
    assert isinstance(route, Choice)
    assert route.node == "a"
    assert call.work.stake is Stake.WRITE
    assert any(isinstance(event, ClassifierMissed) for event in state.effects.events)


def test_effects_are_handed_over_once(state: GuardState) -> None:
    fail(state, refused("a"))

    assert state.take_effects() is not None
    assert state.take_effects() is None


def test_reason_for_having_no_reader_names_every_replica(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "b", "c")

    nowhere = state.route(new_call(state, fallback="error"))

    assert isinstance(nowhere, Nowhere)
    assert "b: does not answer" in nowhere.why
    assert "c: does not answer" in nowhere.why


def test_full_waiting_room_declines(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "a", primary="nobody")
    call = new_call(state, Stake.WRITE)
    assert state.admit(call) is None

    state.waiting = 10_000

    assert state.admit(call) is not None


def test_status_says_why_a_node_does_not_answer(state: GuardState, clock: ManualClock) -> None:
    look(state, clock, "c")

    assert {node.name: node.problem for node in status_of(state).nodes} == {"a": None, "b": None, "c": SILENT}

    look(state, clock)
    assert [node.problem for node in status_of(state).nodes] == [None, None, None]


def test_failure_names_code_class_node_and_phase_in_words() -> None:
    failure = Failure(
        node="a", phase=Phase.SENT, family=Family.HARD, cause=ConnectionResetError("hidden"), sqlstate="08003"
    )

    assert failure.why == "the connection to a was lost (08003 ConnectionResetError), sent and not answered"
    assert replace(failure, sqlstate=None, phase=Phase.CONNECT).why == (
        "a could not be reached (ConnectionResetError), while connecting"
    )


# ---------------------------------------------------------------- what a failover has lost


def test_loss_is_measured_from_what_the_primary_told_after_the_last_acknowledgement(
    state: GuardState, clock: ManualClock
) -> None:
    look(state, clock, position=5_000)
    state.commits.note(state.view.reign, clock.advance(0.1))
    look(state, clock, position=6_000)
    look(state, clock, position=9_000)  # others go on writing: nothing of ours

    look(state, clock, "a", primary="b", timeline=2, position=5_500)

    effects = state.take_effects()
    assert effects is not None
    assert [event.lost_bytes for event in effects.events if isinstance(event, WriteMayBeLost)] == [500]


def test_choice_of_a_replica_that_is_proven_no_longer_does_not_stand(state: GuardState, clock: ManualClock) -> None:
    """A read waits for a connection to c; meanwhile a second server claims the timeline that c follows."""
    call, node = new_call(state), state.nodes["c"]
    epoch = node.epoch
    assert state.overtaken(call, node, epoch) is None

    now = clock.advance(0.1)
    both = [seen(name, Role.PRIMARY, now) for name in ("a", "b")]
    state.probed([*both, seen("c", Role.REPLICA, now)], full=True)

    assert node.epoch == epoch
    assert not node.view.proven
    failure = state.overtaken(call, node, epoch)
    assert failure is not None
    assert isinstance(failure.cause, NoReplica)


def test_loss_of_a_reign_between_that_was_never_accepted_is_told(state: GuardState, clock: ManualClock) -> None:
    """The second of two promotions branched off above what was lost in the first: its mark stood below already."""
    state.commits.note(state.view.reign, clock.now)
    state.probed([seen("a", Role.PRIMARY, clock.advance(0.5), position=5_000)], full=False)
    for _ in range(2):
        state.probed(
            [seen("b", Role.REPLICA, clock.advance(0.5), position=4_000, marked=Mark(2, "unseen"))], full=False
        )
    state.take_effects()

    promoted = seen("b", Role.PRIMARY, clock.advance(0.5), timeline=3, position=6_000, branched=6_000)
    state.probed([Missed(node="a", at=clock.now, why=SILENT), promoted], full=True)

    effects = state.take_effects()
    assert effects is not None
    assert [event.lost_bytes for event in effects.events if isinstance(event, WriteMayBeLost)] == [1_000]
