"""A node's breaker: when it opens, what closes it, and what moves nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dbguard.core.breaker import (
    FORGET_AFTER,
    PROBE_LIMIT,
    TRANSITIONS,
    Breaker,
    BreakerPolicy,
    BreakerState,
    Change,
    Permit,
    Signal,
    step,
)

CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED, METRICS_ONLY = BreakerState
POLICY = BreakerPolicy()


class Chance:
    """Always says the same."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def new(policy: BreakerPolicy = POLICY, chance: float = 0.0) -> Breaker:
    return Breaker(policy, Chance(chance))


def fail(breaker: Breaker, times: int, now: float = 0.0) -> Change | None:
    change = None
    for _ in range(times):
        change = breaker.failure(now, breaker.generation)
    return change


def succeed(breaker: Breaker, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.success(now, breaker.generation)


def opened(chance: float = 0.0) -> Breaker:
    breaker = new(chance=chance)
    breaker.trip(0.0, "a test")
    return breaker


def half_open() -> tuple[Breaker, Permit]:
    breaker = opened()
    permit = breaker.take_permit(1.0)
    assert permit is not None
    return breaker, permit


def open_time(breaker: Breaker, now: float) -> float:
    wait = breaker.ask(now).retry_after
    assert wait is not None
    return wait


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("state", BreakerState)
@pytest.mark.parametrize("signal", Signal)
def test_a_step_is_in_the_table_or_is_refused(state: BreakerState, signal: Signal) -> None:
    if signal in TRANSITIONS[state]:
        assert step(state, signal) is TRANSITIONS[state][signal]
    else:
        with pytest.raises(ValueError, match=f"{state.value} knows no step '{signal.value}'"):
            step(state, signal)


def test_an_illegal_step_leaves_all_as_it_was() -> None:
    breaker = new()

    with pytest.raises(ValueError, match="closed knows no step 'cooled'"):
        breaker._move(5.0, Signal.COOLED, "a bug")

    assert (breaker.state, breaker.generation, breaker.why) == (CLOSED, 0, "new")


def test_every_state_can_be_reached_and_left() -> None:
    reached = {after for steps in TRANSITIONS.values() for after in steps.values()}

    assert reached == set(BreakerState)
    assert all(set(steps.values()) - {state} for state, steps in TRANSITIONS.items())


# ---------------------------------------------------------------- closed: when it opens


def test_it_opens_on_hard_failures_in_a_row() -> None:
    breaker = new()
    succeed(breaker, 1000)

    assert fail(breaker, 4) is None
    assert fail(breaker, 1) == Change(CLOSED, OPEN, "5 hard failures in a row")
    assert not breaker.granted


def test_an_answer_ends_the_row() -> None:
    breaker = new()
    succeed(breaker, 100)

    for _ in range(10):
        fail(breaker, 4)
        succeed(breaker, 5)

    assert breaker.state is CLOSED


def test_it_opens_when_half_of_the_calls_fail() -> None:
    breaker = new()

    for _ in range(4):
        fail(breaker, 1)
        succeed(breaker, 1)
    succeed(breaker, 1)
    assert breaker.state is CLOSED
    fail(breaker, 1)

    assert breaker.why == "5 of 10 calls failed hard within 10 s"


def test_a_share_of_few_failures_counts_for_nothing() -> None:
    breaker = new()

    for _ in range(2):
        fail(breaker, 2)
        succeed(breaker, 1)

    assert breaker.state is CLOSED


def test_failures_below_the_share_do_not_open_it() -> None:
    breaker = new()
    succeed(breaker, 100)

    for _ in range(20):
        fail(breaker, 3)
        succeed(breaker, 4)

    assert breaker.state is CLOSED


def test_failures_that_left_the_window_do_not_count() -> None:
    breaker = new()
    for _ in range(4):
        fail(breaker, 1)
        succeed(breaker, 1)

    later = POLICY.window + 0.1
    fail(breaker, 1, later)

    assert breaker.state is CLOSED
    assert breaker.counts(later).hard == 1


def test_overload_is_counted_and_opens_nothing() -> None:
    breaker = new()

    for _ in range(100):
        breaker.failure(0.0, breaker.generation, hard=False)

    assert breaker.state is CLOSED
    assert breaker.counts(0.0).soft == 100
    assert breaker.counts(0.0).hard == 0


def test_overload_does_not_end_a_row_of_hard_failures() -> None:
    breaker = new()
    fail(breaker, 4)
    breaker.failure(0.0, breaker.generation, hard=False)

    assert fail(breaker, 1) is not None


def test_it_opens_when_told_to() -> None:
    breaker = new()

    assert breaker.trip(3.0, "every probe missed") == Change(CLOSED, OPEN, "every probe missed")


def test_a_new_breaker_grants_and_says_so() -> None:
    answer = new().ask(0.0)

    assert answer.granted
    assert answer.why == "closed"
    assert answer.retry_after is None


# ---------------------------------------------------------------- open


def test_an_open_circuit_says_why_and_when_to_come_back() -> None:
    breaker = opened()

    answer = breaker.ask(0.25)

    assert not answer.granted
    assert answer.why == "open: a test"
    assert answer.retry_after == 0.75


def test_a_cooled_circuit_lets_no_call_through() -> None:
    breaker = opened()

    assert not breaker.ask(100.0).granted
    assert breaker.ask(100.0).retry_after == 0.0


def test_there_is_no_permit_before_the_open_time_is_over() -> None:
    breaker = opened()

    assert breaker.take_permit(0.999) is None
    assert breaker.take_permit(1.0) is not None


def test_tripping_an_open_circuit_changes_nothing() -> None:
    breaker = opened()

    assert breaker.trip(0.9, "again") is None
    assert breaker.why == "a test"
    assert breaker.take_permit(1.0) is not None


@pytest.mark.parametrize("state", ["open", "half-open"])
def test_a_full_probe_that_reaches_the_node_closes_it_at_once(state: str) -> None:
    breaker = opened() if state == "open" else half_open()[0]

    change = breaker.close_at_once(1.1, "reached")

    assert change is not None
    assert change.now is CLOSED
    assert breaker.granted


def test_hard_failures_of_calls_sent_in_spite_of_it_do_not_prolong_it() -> None:
    breaker = opened()

    fail(breaker, 20, now=0.9)

    assert breaker.take_permit(1.0) is not None


def test_calls_do_not_decide_while_a_probe_is_out() -> None:
    breaker, _ = half_open()

    fail(breaker, 20, now=1.1)
    succeed(breaker, 20, now=1.1)

    assert breaker.state is HALF_OPEN


# ---------------------------------------------------------------- half-open: one probe


def test_a_permit_comes_once_and_brings_the_change() -> None:
    breaker, permit = half_open()

    assert permit.change == Change(OPEN, HALF_OPEN, "a probe is out")
    assert breaker.ask(1.0).why == "half-open: a probe is out"
    assert breaker.ask(1.0).retry_after is None
    assert not breaker.granted
    assert breaker.take_permit(1.5) is None


def test_a_probe_that_is_answered_closes_the_circuit_and_forgets_the_counts() -> None:
    breaker = new()
    fail(breaker, 5)
    permit = breaker.take_permit(1.0)
    assert permit is not None

    change = permit.ok(1.1)

    assert change == Change(HALF_OPEN, CLOSED, "the probe was answered")
    assert breaker.counts(1.1)[:4] == (0, 0, 0, 0)


def test_a_probe_that_failed_doubles_the_open_time_up_to_its_maximum() -> None:
    breaker, now, seen = opened(), 0.0, []

    for _ in range(6):
        seen.append(open_time(breaker, now))
        now += seen[-1]
        permit = breaker.take_permit(now)
        assert permit is not None
        permit.failed(now)

    assert seen == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_a_lost_probe_opens_again_without_growing_the_open_time() -> None:
    breaker, now = opened(), 0.0

    for _ in range(4):
        now += open_time(breaker, now)
        permit = breaker.take_permit(now)
        assert permit is not None
        change = permit.lost(now)
        assert change is not None
        assert change.now is OPEN

    assert open_time(breaker, now) == 1.0


def test_a_permit_that_was_never_answered_does_not_hold_the_circuit_half_open() -> None:
    breaker, _ = half_open()

    assert breaker.take_permit(1.0 + PROBE_LIMIT - 0.1) is None
    assert breaker.state is HALF_OPEN
    assert breaker.take_permit(1.0 + PROBE_LIMIT) is None
    assert breaker.state is OPEN
    assert breaker.take_permit(1.0 + PROBE_LIMIT + 1.0) is not None


@pytest.mark.parametrize("answer", ["ok", "failed", "lost"])
def test_a_late_answer_of_a_probe_moves_nothing(answer: str) -> None:
    breaker, permit = half_open()
    breaker.close_at_once(1.1, "reached")
    before = (breaker.state, breaker.generation, breaker.why)

    assert getattr(permit, answer)(1.2) is None

    assert (breaker.state, breaker.generation, breaker.why) == before
    assert breaker.late == 1


@pytest.mark.parametrize("first", ["ok", "failed", "lost"])
@pytest.mark.parametrize("second", ["ok", "failed", "lost"])
def test_a_permit_is_answered_once(first: str, second: str) -> None:
    breaker, permit = half_open()
    getattr(permit, first)(1.1)
    before = (breaker.state, breaker.generation, breaker.ask(1.1))

    assert getattr(permit, second)(1.2) is None

    assert (breaker.state, breaker.generation, breaker.ask(1.1)) == before


def test_the_answer_of_an_earlier_probe_does_not_settle_a_later_one() -> None:
    breaker, first = half_open()
    breaker.take_permit(1.0 + PROBE_LIMIT)
    second = breaker.take_permit(1.0 + PROBE_LIMIT + 1.0)
    assert second is not None

    assert first.ok(7.1) is None

    assert breaker.state is HALF_OPEN
    assert second.ok(7.2) is not None


def test_a_node_declared_dead_while_a_probe_is_out_counts_as_a_failed_probe() -> None:
    breaker, permit = half_open()

    change = breaker.trip(1.2, "every probe missed")

    assert change is not None
    assert change.now is OPEN
    assert open_time(breaker, 1.2) == 2.0
    assert permit.ok(1.3) is None


# ---------------------------------------------------------------- late results


@pytest.mark.parametrize("kind", ["success", "hard", "soft"])
def test_a_result_of_an_older_generation_is_counted_as_late_and_moves_nothing(kind: str) -> None:
    breaker = new()
    began = breaker.generation
    breaker.trip(0.0, "a test")
    breaker.close_at_once(0.1, "reached")
    counts = breaker.counts(0.2)

    for _ in range(10):
        if kind == "success":
            breaker.success(0.2, began)
        else:
            breaker.failure(0.2, began, hard=kind == "hard")

    assert breaker.state is CLOSED
    assert breaker.counts(0.2) == counts._replace(late=10)


def test_a_late_success_does_not_end_a_row_of_failures() -> None:
    breaker = new()
    began = breaker.generation
    breaker.reset(0.0, "a test")
    fail(breaker, 4)

    breaker.success(0.0, began)

    assert fail(breaker, 1) is not None


def test_every_transition_raises_the_generation() -> None:
    breaker, permit = half_open()
    assert breaker.generation == 2

    permit.ok(1.1)

    assert breaker.generation == 3


# ---------------------------------------------------------------- open time


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 1.0), (0.5, 0.75), (0.999, 0.5005)])
def test_chance_takes_up_to_half_of_the_open_time(chance: float, expected: float) -> None:
    assert open_time(opened(chance), 0.0) == pytest.approx(expected)


def test_a_circuit_that_flaps_stays_open_for_longer() -> None:
    breaker = opened()
    breaker.close_at_once(1.0, "reached")

    breaker.trip(1.0 + FORGET_AFTER - 0.1, "again")

    assert open_time(breaker, 1.0 + FORGET_AFTER - 0.1) == 2.0


def test_the_open_time_is_forgotten_once_it_was_closed_for_long() -> None:
    breaker = opened()
    breaker.close_at_once(1.0, "reached")

    breaker.trip(1.0 + FORGET_AFTER, "again")

    assert open_time(breaker, 1.0 + FORGET_AFTER) == 1.0


def test_a_long_outage_is_not_forgotten_while_it_lasts() -> None:
    breaker, now = opened(), 0.0
    for _ in range(20):
        now += open_time(breaker, now)
        permit = breaker.take_permit(now)
        assert permit is not None
        breaker.trip(now, "every probe missed")

    assert now > FORGET_AFTER
    assert open_time(breaker, now) == POLICY.open_max


# ---------------------------------------------------------------- by hand


def test_forced_open_stays_whatever_probes_say() -> None:
    breaker = new()
    breaker.force_open(0.0, "maintenance")

    assert breaker.take_permit(1000.0) is None
    assert breaker.close_at_once(1000.0, "reached") is None
    assert breaker.trip(1000.0, "dead") is None
    assert breaker.ask(1000.0) == (False, "forced open: maintenance", None)


def test_disabled_grants_whatever_happens() -> None:
    breaker = new()
    breaker.disable(0.0, "by hand")

    fail(breaker, 100)
    breaker.trip(0.0, "dead")

    assert breaker.state is DISABLED
    assert breaker.ask(0.0).granted
    assert breaker.counts(0.0).would_have_opened == 0


def test_metrics_only_grants_and_counts_how_often_it_would_have_opened() -> None:
    breaker = new()
    breaker.metrics_only(0.0, "a dry run")

    fail(breaker, 4)
    assert breaker.counts(0.0).would_have_opened == 0
    fail(breaker, 100)
    assert breaker.counts(0.0).would_have_opened == 1
    breaker.trip(POLICY.open_max, "dead")

    assert breaker.state is METRICS_ONLY
    assert breaker.granted
    assert breaker.counts(0.0).would_have_opened == 2


@pytest.mark.parametrize("way", ["force_open", "disable", "metrics_only"])
def test_reset_ends_what_was_set_by_hand_and_forgets_everything(way: str) -> None:
    breaker = opened()
    getattr(breaker, way)(0.5, "by hand")

    change = breaker.reset(1.0, "done")
    breaker.trip(1.5, "again")

    assert change.now is CLOSED
    assert open_time(breaker, 1.5) == 1.0


def test_a_probe_that_is_out_when_someone_takes_over_moves_nothing() -> None:
    breaker, permit = half_open()
    breaker.force_open(1.1, "maintenance")

    assert permit.ok(1.2) is None
    assert breaker.state is FORCED_OPEN


# ---------------------------------------------------------------- whatever the order of events


class BreakerMachine(RuleBasedStateMachine):
    """Calls, probes and hands in any order: what must hold after each."""

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.now = 0.0
        self.breaker = Breaker(POLICY, random.Random(seed))
        self.permits: list[tuple[int, Permit]] = []
        self.began: list[int] = [0]
        self.generation = 0

    def moved(self, change: Change | None) -> None:
        """Hold a change against the state before and after: told exactly if and only if there is one."""
        if change is None:
            assert self.breaker.generation == self.generation
        else:
            assert change.now is self.breaker.state
            assert change.why == self.breaker.why
            assert change.now in TRANSITIONS[change.was].values()
            assert self.breaker.generation == self.generation + 1
        self.generation = self.breaker.generation

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 5.0, 15.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_call_begins(self) -> None:
        self.began.append(self.breaker.generation)

    @rule(data=st.data(), hard=st.booleans())
    def a_call_fails(self, data: st.DataObject, hard: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        began = data.draw(st.sampled_from(self.began))
        late, was = self.breaker.late, self.breaker.state
        change = self.breaker.failure(self.now, began, hard=hard)
        if began != self.generation:
            assert change is None
            assert self.breaker.late == late + 1
        if change is not None:
            assert hard
            assert was is CLOSED
        self.moved(change)

    @rule(data=st.data())
    def a_call_succeeds(self, data: st.DataObject) -> None:
        self.breaker.success(self.now, data.draw(st.sampled_from(self.began)))
        self.moved(None)

    @rule()
    def a_permit_is_asked_for(self) -> None:
        was, lost = self.breaker.state, self.generation
        permit = self.breaker.take_permit(self.now)
        if permit is not None:
            assert was is OPEN
            self.moved(permit.change)
            self.permits.append((self.generation, permit))
        elif self.breaker.generation != lost:
            assert (was, self.breaker.state) == (HALF_OPEN, OPEN)
            self.generation = self.breaker.generation

    @rule(data=st.data(), how=st.sampled_from(["ok", "failed", "lost"]))
    def a_probe_answers(self, data: st.DataObject, how: str) -> None:
        if not self.permits:
            return
        generation, permit = data.draw(st.sampled_from(self.permits))
        change = getattr(permit, how)(self.now)
        assert (change is None) == (generation != self.generation)
        self.moved(change)

    @rule(how=st.sampled_from(["trip", "close_at_once", "force_open", "disable", "metrics_only", "reset"]))
    def somebody_says_so(self, how: str) -> None:
        self.moved(getattr(self.breaker, how)(self.now, how))

    @invariant()
    def calls_go_where_the_state_says(self) -> None:
        if not hasattr(self, "breaker"):
            return
        answer = self.breaker.ask(self.now)
        assert answer.granted == self.breaker.granted
        assert answer.granted == (self.breaker.state in {CLOSED, DISABLED, METRICS_ONLY})
        assert answer.why

    @invariant()
    def no_open_time_is_longer_than_its_maximum(self) -> None:
        if hasattr(self, "breaker") and self.breaker.state is OPEN:
            assert 0.0 <= open_time(self.breaker, self.now) <= POLICY.open_max

    @invariant()
    def at_most_one_probe_can_still_move_it(self) -> None:
        if hasattr(self, "breaker"):
            alive = [generation for generation, _ in self.permits if generation == self.breaker.generation]
            assert len(alive) == (1 if self.breaker.state is HALF_OPEN else 0)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
