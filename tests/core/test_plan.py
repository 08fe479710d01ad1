"""What a plan does between attempts, rule by rule: no clock moves and no driver is asked unless the test says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.gate import Gate, GateState
from dbguard.core.plan import Attempt, Done, Pause, Stopped, recover
from dbguard.core.retry import RetryPolicy, Stake
from dbguard.core.router import ReadPolicy
from dbguard.core.topology import Missed, Role
from dbguard.errors import (
    DbGuardError,
    DeadlineExceeded,
    NoPrimary,
    NoReplica,
    NotAttempted,
    OutcomeUnknown,
    SplitBrain,
)
from dbguard.events import CallRepeated, OutcomeLeftOpen
from dbguard.testing.clock import ManualClock
from dbguard.testing.fake import (
    DriverError,
    answered,
    conflict,
    demoted,
    ended_by_us,
    known_state,
    lost,
    new_call,
    refused,
    seen,
    timed_out,
    unsent,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.plan import Call
    from dbguard.core.state import GuardState


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state(clock: ManualClock) -> GuardState:
    return known_state(clock)


@dataclass
class Play:
    """What a plan asked for, and how it ended."""

    asked: list[Attempt | Pause] = field(default_factory=list)
    value: Any = None
    error: BaseException | None = None

    @property
    def nodes(self) -> list[str]:
        return [step.node for step in self.asked if isinstance(step, Attempt)]

    @property
    def kinds(self) -> list[str]:
        return [step.node if isinstance(step, Attempt) else "gate" if step.gate else "backoff" for step in self.asked]

    @property
    def notes(self) -> str:
        return " ".join(getattr(self.error, "__notes__", ()))


def play(call: Call, state: GuardState, *script: Any, last: Failure | None = None) -> Play:
    """Run the plan of *call*. *script* holds one answer per attempt and pause: a value, a failure by its maker, or what
    happens during a pause. What an attempt found is recorded in *state*, as the runtime does."""
    answers = list(script)
    told = Play()
    plan = recover(call, state, last)
    reply: Any = None
    try:
        while True:
            step = plan.send(reply)
            told.asked.append(step)
            answer = answers.pop(0)
            if isinstance(step, Pause):
                reply = answer() if callable(answer) else answer
            elif callable(answer):
                reply = answer(step.node)
                state.failed(reply, state.nodes[step.node].breaker.generation)
            else:
                reply = Done(answer)
    except StopIteration as end:
        told.value = end.value
    except (DbGuardError, DriverError) as error:
        told.error = error
    assert answers == [], "the plan ended before the script did"
    return told


paused = None
"""Time or news passed, and nothing in particular came of it."""


def passing(clock: ManualClock, seconds: float) -> Callable[[], None]:
    def pass_time() -> None:
        clock.advance(seconds)

    return pass_time


def promoted(state: GuardState, clock: ManualClock, node: str = "b") -> Callable[[], None]:
    """Of the three, *node* is the primary now, and the old one is gone."""

    def happen() -> None:
        now = clock.advance(0.1)
        others = {"a", "b", "c"} - {node, "a"}
        state.probed(
            [
                Missed(node="a", at=now, why="connection refused"),
                seen(node, Role.PRIMARY, now, timeline=2, position=2_000),
                *(seen(other, Role.REPLICA, now, timeline=2, position=2_000) for other in others),
            ],
            full=True,
        )

    return happen


def primary_gone(state: GuardState, clock: ManualClock) -> None:
    now = clock.advance(0.1)
    state.probed(
        [
            Missed(node="a", at=now, why="connection refused"),
            *(seen(name, Role.REPLICA, now) for name in ("b", "c")),
        ],
        full=True,
    )


# ---------------------------------------------------------------- reads


def test_read_goes_to_a_replica_and_returns_its_value(state: GuardState) -> None:
    told = play(new_call(state), state, 7)

    assert told.value == 7
    assert told.nodes == ["b"]


def test_read_moves_on_when_the_connection_is_lost(state: GuardState) -> None:
    told = play(new_call(state), state, lost, [1])

    assert told.nodes == ["b", "c"]
    assert told.value == [1]


def test_first_repeat_of_a_read_asks_another_node_at_once(state: GuardState) -> None:
    told = play(new_call(state), state, lost, 1)

    assert told.kinds == ["b", "c"]


def test_read_that_both_replicas_lost_goes_to_the_primary(state: GuardState) -> None:
    told = play(new_call(state), state, lost, lost, paused, 1)

    assert told.kinds == ["b", "c", "backoff", "a"]


def test_read_with_fallback_error_never_goes_to_the_primary(state: GuardState) -> None:
    told = play(new_call(state, fallback="error"), state, lost, lost, paused)

    assert told.kinds == ["b", "c", "backoff"]
    assert isinstance(told.error, NoReplica)
    assert isinstance(told.error.__cause__, DriverError)


def test_read_with_fallback_error_fails_at_once_where_no_replica_is_fit(clock: ManualClock) -> None:
    state = known_state(clock, replicas=())

    told = play(new_call(state, fallback="error"), state)

    assert isinstance(told.error, NoReplica)
    assert told.asked == []


def test_read_whose_input_was_consumed_is_not_repeated(state: GuardState) -> None:
    told = play(new_call(state, final=True), state, lost)

    assert isinstance(told.error, DriverError)


# ---------------------------------------------------------------- writes


def test_write_goes_to_the_primary(state: GuardState) -> None:
    assert play(new_call(state, Stake.WRITE), state, 1).nodes == ["a"]


@pytest.mark.parametrize("stake", [Stake.WRITE, Stake.COMMIT], ids=lambda stake: stake.value)
@pytest.mark.parametrize("ending", [lost, timed_out, ended_by_us], ids=lambda ending: ending.__name__)
def test_write_of_unknown_fate_is_not_repeated(state: GuardState, stake: Stake, ending: Any) -> None:
    told = play(new_call(state, stake), state, ending)

    assert isinstance(told.error, OutcomeUnknown)
    assert isinstance(told.error.__cause__, DriverError)
    assert told.nodes == ["a"]
    assert any(isinstance(event, OutcomeLeftOpen) for event in state.effects.events)


def test_outcome_unknown_names_the_node_the_phase_and_the_reign(state: GuardState) -> None:
    error = play(new_call(state, Stake.WRITE), state, lost).error

    assert isinstance(error, OutcomeUnknown)
    assert (error.node, error.phase) == ("a", "sent")
    assert error.reign is not None
    assert error.reign.startswith("timeline 1")


@pytest.mark.parametrize("ending", [refused, unsent], ids=lambda ending: ending.__name__)
def test_write_refused_before_sending_is_repeated_on_the_primary(
    state: GuardState, clock: ManualClock, ending: Any
) -> None:
    told = play(new_call(state, Stake.WRITE), state, ending, promoted(state, clock), 1)

    assert told.nodes == ["a", "b"]
    assert told.value == 1


def test_transaction_whose_commit_was_not_sent_is_repeated(state: GuardState, clock: ManualClock) -> None:
    told = play(new_call(state, Stake.TRANSACTION), state, lost, promoted(state, clock), 1)

    assert told.nodes == ["a", "b"]


def test_block_of_the_application_is_not_repeated_and_nothing_was_committed(state: GuardState) -> None:
    told = play(new_call(state, Stake.TRANSACTION, block=True), state, lost)

    assert isinstance(told.error, DriverError)
    assert "nothing of this transaction was committed" in told.notes


def test_work_in_parts_is_not_repeated_once_sent(state: GuardState) -> None:
    told = play(new_call(state, Stake.WRITE, one_transaction=False), state, conflict)

    assert "parts may have been applied" in told.notes


def test_demoted_primary_is_left_for_the_next_one(state: GuardState, clock: ManualClock) -> None:
    told = play(new_call(state, Stake.WRITE), state, demoted, promoted(state, clock), 1)

    assert told.kinds == ["a", "gate", "b"]


def test_answer_of_the_server_is_raised_as_it_is(state: GuardState) -> None:
    told = play(new_call(state, Stake.WRITE), state, answered)

    assert isinstance(told.error, DriverError)
    assert told.error.sqlstate == "23505"
    assert told.notes == ""


# ---------------------------------------------------------------- contention, limits, budget


def test_contention_is_repeated_after_a_pause_on_the_same_node(state: GuardState) -> None:
    told = play(new_call(state, Stake.TRANSACTION), state, conflict, paused, conflict, paused, 1)

    assert told.kinds == ["a", "backoff", "a", "backoff", "a"]
    assert [step.family for step in told.asked if isinstance(step, Pause)] == [Family.CONTENTION] * 2


def test_contention_is_repeated_until_the_deadline(clock: ManualClock) -> None:
    state = known_state(clock, retry=RetryPolicy(budget=0.0, floor=0.0))

    told = play(new_call(state, Stake.TRANSACTION), state, *[conflict, paused] * 40, 1)

    assert told.value == 1
    late = play(new_call(state, Stake.TRANSACTION), state, conflict, passing(clock, 30.0))
    assert isinstance(late.error, DeadlineExceeded)


def test_contention_that_is_not_paid_for_slows_down(clock: ManualClock) -> None:
    state = known_state(clock, retry=RetryPolicy(budget=0.0, floor=0.1))

    told = play(new_call(state, Stake.TRANSACTION), state, *[conflict, paused] * 3, 1)

    pauses = [step.at_least for step in told.asked if isinstance(step, Pause)]
    assert pauses[0] == 0.0
    assert all(0.25 <= seconds <= 0.5 for seconds in pauses[1:])


def test_a_pause_leaves_half_of_the_time_to_what_it_waits_for(state: GuardState) -> None:
    call = new_call(state, Stake.TRANSACTION)

    told = play(call, state, conflict, paused, 1)

    (pause,) = (step for step in told.asked if isinstance(step, Pause))
    assert pause.at_most == (call.deadline - call.began) / 2


def test_a_pause_just_before_the_deadline_takes_all_that_is_left(state: GuardState) -> None:
    call = new_call(state, Stake.TRANSACTION)
    call.deadline = call.began + 0.008

    told = play(call, state, conflict, paused, 1)

    (pause,) = (step for step in told.asked if isinstance(step, Pause))
    assert pause.at_most == pytest.approx(0.008)


def test_contention_ends_after_its_attempts_with_the_drivers_own_error(clock: ManualClock) -> None:
    state = known_state(clock, retry=RetryPolicy(contention_attempts=5))
    told = play(new_call(state, Stake.TRANSACTION), state, *[conflict, paused] * 4, conflict)

    assert isinstance(told.error, DriverError)
    assert "5 attempts" in told.notes
    assert "retry.contention_attempts" in told.notes


def test_exhausted_budget_raises_the_drivers_own_error_with_a_note(clock: ManualClock) -> None:
    state = known_state(clock, retry=RetryPolicy(budget=0.0, floor=0.1))

    first = play(new_call(state), state, lost, 1)
    second = play(new_call(state), state, lost)

    assert first.value == 1
    assert isinstance(second.error, DriverError)
    assert "retry budget exhausted" in second.notes


def test_repeat_of_what_was_not_sent_costs_no_budget(clock: ManualClock) -> None:
    state = known_state(clock, retry=RetryPolicy(budget=0.0, floor=0.0))

    assert play(new_call(state), state, refused, 1).value == 1


def test_first_repeat_after_our_own_drain_is_free(clock: ManualClock) -> None:
    state = known_state(clock, retry=RetryPolicy(budget=0.0, floor=0.0))

    once = play(new_call(state), state, ended_by_us, 1)
    twice = play(new_call(state), state, ended_by_us, ended_by_us)

    assert once.value == 1
    assert "retry budget exhausted" in twice.notes


def test_each_purse_pays_for_its_own_kind(clock: ManualClock) -> None:
    state = known_state(clock, retry=RetryPolicy(budget=0.0, floor=0.1))
    play(new_call(state, Stake.TRANSACTION), state, conflict, paused, 1)

    told = play(new_call(state), state, lost, 1)

    assert told.value == 1


def test_waiting_at_the_gate_is_not_an_attempt(state: GuardState, clock: ManualClock) -> None:
    primary_gone(state, clock)

    told = play(new_call(state, Stake.WRITE), state, paused, paused, paused, paused, promoted(state, clock), 1)

    assert told.kinds == ["gate"] * 5 + ["b"]
    assert [step.number for step in told.asked if isinstance(step, Attempt)] == [1]


def test_stop_of_the_retry_policy_ends_the_call_with_the_drivers_own_error(state: GuardState) -> None:
    told = play(new_call(state, Stake.TRANSACTION), state, conflict, Stopped())

    assert isinstance(told.error, DriverError)
    assert "RetryPolicy.stop" in told.notes


def test_failure_before_the_plan_counts_as_the_first_attempt(state: GuardState) -> None:
    told = play(new_call(state), state, 1, last=lost("b"))

    assert told.nodes == ["c"]
    assert [step.number for step in told.asked if isinstance(step, Attempt)] == [2]


def test_each_repeat_is_told(state: GuardState) -> None:
    play(new_call(state), state, lost, 1)

    told = [event for event in state.effects.events if isinstance(event, CallRepeated)]
    assert [(event.node, event.attempt) for event in told] == [("b", 1)]
    assert state.counts["repeats"] == 1


# ---------------------------------------------------------------- deadlines


def test_call_at_the_gate_ends_at_its_deadline(state: GuardState, clock: ManualClock) -> None:
    primary_gone(state, clock)

    told = play(new_call(state, Stake.WRITE, timeout=2.0), state, passing(clock, 2.0))

    assert isinstance(told.error, NoPrimary)
    assert "after 2 s" in str(told.error)


def test_pauses_are_bounded_by_what_is_left(state: GuardState, clock: ManualClock) -> None:
    primary_gone(state, clock)

    told = play(new_call(state, Stake.WRITE, timeout=2.0), state, passing(clock, 0.5), passing(clock, 1.5))

    assert [step.at_most for step in told.asked if isinstance(step, Pause)] == [2.0, 1.5]


def test_read_past_its_deadline_is_not_repeated(state: GuardState, clock: ManualClock) -> None:
    def late(node: str) -> Failure:
        clock.advance(2.0)
        return timed_out(node)

    told = play(new_call(state, timeout=2.0), state, late)

    assert isinstance(told.error, DeadlineExceeded)
    assert isinstance(told.error.__cause__, DriverError)
    assert "nothing was applied" in str(told.error)


def test_call_past_its_deadline_pays_for_no_repeat_and_tells_of_none(state: GuardState, clock: ManualClock) -> None:
    def late(node: str) -> Failure:
        clock.advance(2.0)
        return conflict(node)

    play(new_call(state, Stake.TRANSACTION, timeout=2.0), state, late)

    assert state.counts["repeats"] == 0
    assert not any(isinstance(event, CallRepeated) for event in state.effects.events)


def test_write_past_its_deadline_is_unknown_if_it_was_sent(state: GuardState, clock: ManualClock) -> None:
    def late(node: str) -> Failure:
        clock.advance(2.0)
        return timed_out(node)

    told = play(new_call(state, Stake.WRITE, timeout=2.0), state, late)

    assert isinstance(told.error, OutcomeUnknown)
    assert "the time ran out" in str(told.error)


def test_backoff_that_took_the_whole_time_makes_no_further_attempt(state: GuardState, clock: ManualClock) -> None:
    told = play(new_call(state, Stake.TRANSACTION, timeout=1.0), state, conflict, passing(clock, 1.0))

    assert isinstance(told.error, DeadlineExceeded)


# ---------------------------------------------------------------- the gate


def test_write_waits_while_there_is_no_primary(state: GuardState, clock: ManualClock) -> None:
    primary_gone(state, clock)

    told = play(new_call(state, Stake.WRITE), state, promoted(state, clock), 1)

    assert told.kinds == ["gate", "b"]


def test_write_that_may_not_wait_fails_at_once(state: GuardState, clock: ManualClock) -> None:
    primary_gone(state, clock)

    told = play(new_call(state, Stake.WRITE, wait=False), state)

    assert isinstance(told.error, NoPrimary)
    assert isinstance(told.error, NotAttempted)
    assert told.error.retry_after is not None


def test_reads_go_on_while_there_is_no_primary(state: GuardState, clock: ManualClock) -> None:
    primary_gone(state, clock)

    assert play(new_call(state), state, 1).nodes == ["b"]


def test_call_that_comes_while_others_are_let_go_queues_behind_them(clock: ManualClock) -> None:
    state = known_state(clock)
    primary_gone(state, clock)
    state.waiting = 50
    promoted(state, clock)()
    assert state.gate.paced

    late = play(new_call(state, Stake.WRITE), state, paused, 1)

    assert late.kinds == ["gate", "b"]


def test_write_fails_at_once_when_the_cluster_is_down(clock: ManualClock) -> None:
    state = known_state(clock, gate=Gate(max_wait=1.0))
    primary_gone(state, clock)
    state.tick()
    clock.advance(1.1)
    state.tick()
    assert state.gate.state is GateState.DOWN

    told = play(new_call(state, Stake.WRITE), state)

    assert isinstance(told.error, NoPrimary)


def test_write_is_refused_while_two_servers_claim_one_timeline(state: GuardState, clock: ManualClock) -> None:
    for _ in range(2):
        now = clock.advance(0.1)
        both = [seen(name, Role.PRIMARY, now) for name in ("a", "b")]
        state.probed([*both, seen("c", Role.REPLICA, now)], full=True)

    told = play(new_call(state, Stake.WRITE), state)

    assert isinstance(told.error, SplitBrain)
    assert told.asked == []


def test_doubted_primary_is_asked_again_once_a_probe_has_reached_it(state: GuardState, clock: ManualClock) -> None:
    def reached() -> None:
        now = clock.advance(0.1)
        state.probed([seen("a", Role.PRIMARY, now), *(seen(n, Role.REPLICA, now) for n in ("b", "c"))], full=True)

    told = play(new_call(state, Stake.WRITE), state, refused, reached, 1)

    assert told.kinds == ["a", "gate", "a"]


# ---------------------------------------------------------------- what else holds


def test_plan_can_be_dropped_at_any_yield(state: GuardState) -> None:
    plan = recover(new_call(state, Stake.TRANSACTION), state)
    next(plan)
    assert isinstance(plan.send(conflict("a")), Pause)

    plan.close()

    assert state.waiting == 0


def test_reads_stay_on_the_primary_if_they_are_configured_so(clock: ManualClock) -> None:
    state = known_state(clock, reads=ReadPolicy(from_replicas=False))

    assert play(new_call(state), state, 1).nodes == ["a"]


@pytest.mark.parametrize(("phase", "repeated"), [(Phase.UNSENT, True), (Phase.SENT, False)])
def test_phase_decides_and_not_the_exception(
    state: GuardState, clock: ManualClock, phase: Phase, *, repeated: bool
) -> None:
    """A lost acknowledgement and a lost request raise the same class in every driver."""

    def the_same(node: str) -> Failure:
        return Failure(node=node, phase=phase, family=Family.HARD, cause=DriverError("lost"), broken=True)

    told = play(new_call(state, Stake.WRITE), state, the_same, *([promoted(state, clock), 1] if repeated else []))

    assert (told.value == 1) is repeated
    assert isinstance(told.error, OutcomeUnknown) is not repeated
