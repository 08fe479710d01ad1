"""The gate: whether writes can flow, who may wait, and how those that waited are let go."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dbguard.core.flap import Flaps
from dbguard.core.gate import PACE, TRANSITIONS, Change, Gate, GateState, Release, Signal, step
from dbguard.core.topology import Reign

OPEN, SUSPECT, FAILOVER, DOWN = GateState


def opened() -> Gate:
    gate = Gate()
    gate.primary_found(0.0, pace=False)
    return gate


def recovered(slots: int = 20) -> Gate:
    gate = opened()
    gate.primary_lost(0.0, "a is lost")
    gate.primary_found(10.0, slots=slots)
    return gate


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("state", GateState)
@pytest.mark.parametrize("signal", Signal)
def test_a_step_is_in_the_table_or_is_refused(state: GateState, signal: Signal) -> None:
    if signal in TRANSITIONS[state]:
        assert step(state, signal) is TRANSITIONS[state][signal]
    else:
        with pytest.raises(ValueError, match=f"{state.value} knows no step '{signal.value}'"):
            step(state, signal)


def test_an_illegal_step_leaves_all_as_it_was() -> None:
    gate = opened()

    with pytest.raises(ValueError, match="open knows no step 'timed out'"):
        gate._move(Signal.TIMED_OUT, "a bug")

    assert (gate.state, gate.why) == (OPEN, "the primary answers")


def test_every_state_can_be_reached_and_left() -> None:
    assert {after for steps in TRANSITIONS.values() for after in steps.values()} == set(GateState)
    assert all(set(steps.values()) - {state} for state, steps in TRANSITIONS.items())


# ---------------------------------------------------------------- states


def test_it_begins_in_failover_so_that_a_call_may_wait_for_the_first_primary() -> None:
    gate = Gate()

    assert (gate.state, gate.why, gate.episode) == (FAILOVER, "no primary has been seen yet", 1)
    assert not gate.writable
    assert gate.may_wait(0, 30.0, 0.0) is None


def test_the_first_primary_opens_it() -> None:
    gate = Gate()

    assert gate.primary_found(0.5) == Change(FAILOVER, OPEN, "the primary answers")
    assert gate.writable


def test_suspicion_stops_no_write() -> None:
    gate = opened()

    assert gate.suspect(1.0, "a missed a probe") == Change(OPEN, SUSPECT, "a missed a probe")
    assert gate.writable
    assert gate.episode == 1


def test_suspicion_that_was_wrong_is_taken_back() -> None:
    gate = opened()
    gate.suspect(1.0, "a missed a probe")

    assert gate.primary_found(1.1) == Change(SUSPECT, OPEN, "the primary answers")
    assert not gate.paced


@pytest.mark.parametrize("suspected", [False, True], ids=["open", "suspect"])
def test_a_lost_primary_stops_writes_and_begins_an_episode(suspected: bool) -> None:  # noqa: FBT001 - a parameter
    gate = opened()
    if suspected:
        gate.suspect(0.5, "a missed a probe")

    change = gate.primary_lost(1.0, "a is lost")

    assert change is not None
    assert change.now is FAILOVER
    assert not gate.writable
    assert gate.episode == 2


def test_the_first_reason_of_a_loss_stays() -> None:
    gate = opened()
    gate.primary_lost(1.0, "a is lost")

    assert gate.primary_lost(2.0, "no node answers as primary") is None
    assert gate.why == "a is lost"


@pytest.mark.parametrize("state", ["failover", "down"])
def test_suspicion_says_nothing_once_the_primary_is_lost(state: str) -> None:
    gate = opened()
    gate.primary_lost(1.0, "a is lost")
    if state == "down":
        gate.tick(61.0)

    assert gate.suspect(70.0, "again") is None
    assert gate.state.value == state


def test_a_failover_that_lasts_too_long_turns_to_down() -> None:
    gate = opened()
    gate.primary_lost(5.0, "a is lost")

    assert gate.tick(64.9) is None
    assert gate.tick(65.0) == Change(FAILOVER, DOWN, "no primary within 60 s: a is lost")
    assert gate.tick(66.0) is None


def test_a_start_up_that_lasts_too_long_turns_to_down() -> None:
    gate = Gate(max_wait=10.0)

    assert gate.tick(1000.0) is None
    assert gate.tick(1009.9) is None
    assert gate.tick(1010.0) is not None


def test_the_time_of_a_start_up_counts_from_the_first_word() -> None:
    gate = Gate(max_wait=10.0)
    gate.primary_lost(1000.0, "no node answers")

    assert gate.tick(1010.0) is not None


def test_a_second_episode_has_a_time_of_its_own() -> None:
    gate = opened()
    gate.primary_lost(0.0, "a is lost")
    gate.primary_found(50.0)
    gate.primary_lost(55.0, "b is lost")

    assert gate.tick(100.0) is None


def test_a_loss_told_again_does_not_begin_the_time_anew() -> None:
    gate = opened()
    for second in range(60):
        gate.primary_lost(float(second), "a is lost")

    assert gate.tick(60.0) is not None


@pytest.mark.parametrize("state", [OPEN, SUSPECT])
def test_time_alone_moves_no_gate_that_lets_writes_through(state: GateState) -> None:
    gate = opened()
    if state is SUSPECT:
        gate.suspect(0.0, "a missed a probe")

    assert gate.tick(1e9) is None
    assert gate.state is state


def test_a_primary_found_late_opens_a_cluster_that_was_down() -> None:
    gate = Gate(max_wait=1.0)
    gate.tick(0.0)
    gate.tick(1.0)

    assert gate.primary_found(100.0) == Change(DOWN, OPEN, "the primary answers")


def test_a_primary_found_again_changes_nothing() -> None:
    gate = recovered()
    gate.release(10.0, 100)

    assert gate.primary_found(10.05) is None
    assert gate.release(10.05, 98).go == 0


# ---------------------------------------------------------------- refused


def test_a_contested_primary_refuses_writes_and_nobody_waits() -> None:
    gate = opened()

    change = gate.refuse(1.0, "b contests a")

    assert change == Change(OPEN, FAILOVER, "b contests a")
    assert gate.refused
    assert gate.may_wait(0, inf, 1.0) == "writes are refused: b contests a"


def test_a_refusal_is_told_once_and_says_its_latest_reason() -> None:
    gate = opened()
    gate.refuse(1.0, "b contests a")

    assert gate.refuse(2.0, "split brain: a and b") is None
    assert gate.why == "split brain: a and b"
    assert gate.episode == 2


def test_a_refusal_is_never_latched() -> None:
    gate = opened()
    gate.refuse(1.0, "b contests a")

    gate.primary_found(2.0)

    assert gate.writable
    assert not gate.refused


@pytest.mark.parametrize("state", [FAILOVER, DOWN])
def test_a_refusal_ends_when_the_primary_is_merely_gone(state: GateState) -> None:
    gate = opened()
    gate.refuse(1.0, "b contests a")
    if state is DOWN:
        gate.tick(61.0)

    assert gate.primary_lost(62.0, "a is lost") == Change(state, state, "a is lost")
    assert not gate.refused


def test_a_loss_can_turn_into_a_refusal_within_one_episode() -> None:
    gate = opened()
    gate.primary_lost(1.0, "a is lost")

    assert gate.refuse(2.0, "split brain") == Change(FAILOVER, FAILOVER, "split brain")
    assert gate.episode == 2
    assert gate.tick(61.0) is not None
    assert gate.refused


# ---------------------------------------------------------------- waiting


def test_calls_wait_in_a_failover_up_to_their_number() -> None:
    gate = Gate(max_waiting=3)

    assert gate.may_wait(2, 30.0, 0.0) is None
    assert gate.may_wait(3, 30.0, 0.0) == "3 calls are waiting already (failover.max_waiting)"


def test_a_call_without_time_does_not_wait() -> None:
    assert Gate().may_wait(0, 5.0, 5.0) == "no time is left to wait"


def test_nobody_waits_for_a_cluster_that_is_down() -> None:
    gate = Gate(max_wait=1.0)
    gate.tick(0.0)
    gate.tick(1.0)

    assert "the cluster is down: no primary within 1 s: no primary has been seen yet" in (
        gate.may_wait(0, inf, 1.0) or ""
    )


# ---------------------------------------------------------------- paced release


def come_back(gate: Gate, calls: int) -> None:
    for _ in range(calls):
        gate.returned(gate.releases)


@pytest.mark.parametrize(("slots", "first"), [(1, 1), (20, 2), (100, 2)])
def test_two_go_first_and_not_more_than_there_are_slots(slots: int, first: int) -> None:
    assert recovered(slots).release(10.0, 1000) == Release(first, 10.0 + PACE)


def test_nobody_more_goes_before_one_comes_back() -> None:
    gate = recovered()

    assert gate.release(10.0, 100).go == 2
    assert gate.release(10.01, 98) == Release(0, 10.0 + PACE)


def test_the_number_under_way_doubles_each_time_they_have_come_back_up_to_the_slots() -> None:
    gate, gone = recovered(), []
    waiting = 1000
    for turn in range(6):
        released = gate.release(10.0 + turn * PACE / 10, waiting)
        gone.append(released.go)
        waiting -= released.go
        come_back(gate, released.go)

    assert gone == [2, 4, 8, 16, 20, 20]


def test_slow_statements_do_not_keep_the_others_waiting() -> None:
    gate, waiting = recovered(), 100
    gone = []
    for turn in range(5):
        gone.append(gate.release(10.0 + turn * PACE, waiting).go)
        waiting -= gone[-1]

    assert gone == [2, 1, 1, 1, 1]


def test_all_go_once_the_pool_is_full_and_the_rest_is_through_in_a_second() -> None:
    gate, waiting = recovered(slots=4), 1000
    for turn in range(3):
        waiting -= gate.release(10.0 + turn * PACE / 10, waiting).go
        come_back(gate, 2 + 2 * bool(turn))

    assert gate.release(10.0 + PACE, 101).go == 4  # ten came back in a tenth of a second
    come_back(gate, 10)
    assert gate.release(10.0 + 2 * PACE, 100) == Release(100, None)
    assert not gate.paced


def test_a_failure_ends_the_step_and_halves_what_may_be_under_way() -> None:
    gate = recovered(slots=80)
    for turn in range(3):
        come_back(gate, gate.release(10.0 + turn * PACE / 10, 1000).go)

    gate.setback()

    assert gate.release(10.05, 1000).go == 0
    assert gate.release(10.0 + PACE, 1000).go == 8


def test_after_a_failure_the_number_grows_by_one_each_time() -> None:
    gate = recovered(slots=80)
    for turn in range(3):
        come_back(gate, gate.release(10.0 + turn * PACE / 10, 1000).go)
    gate.setback()

    gone = []
    for turn in range(3):
        gone.append(gate.release(10.0 + PACE + turn * PACE / 10, 1000).go)
        come_back(gate, gone[-1])

    assert gone == [8, 9, 10]


def test_many_failures_in_a_step_halve_it_once() -> None:
    gate = recovered(slots=80)
    for turn in range(3):
        come_back(gate, gate.release(10.0 + turn * PACE / 10, 1000).go)

    for _ in range(50):
        gate.setback()

    assert gate.release(10.1, 1000).go == 8


def test_there_is_always_somebody_who_may_try() -> None:
    gate, now = recovered(), 10.0

    for _ in range(10):
        assert gate.release(now, 1000).go >= 1
        come_back(gate, 2)
        gate.setback()
        now += PACE


def test_suspicion_during_a_release_counts_as_a_failure() -> None:
    gate = recovered(slots=80)
    gate.release(10.0, 1000)

    gate.suspect(10.01, "a hard failure")
    come_back(gate, 2)

    assert gate.release(10.05, 1000).go == 0
    assert gate.release(10.1, 1000).go == 2


def test_who_comes_back_from_an_earlier_release_counts_for_nothing() -> None:
    gate = recovered()
    earlier = gate.releases
    gate.release(10.0, 1000)
    gate.primary_lost(11.0, "b is lost")
    gate.primary_found(12.0)
    gate.release(12.0, 1000)

    gate.returned(earlier)

    assert gate.release(12.01, 998).go == 0


def test_places_that_nobody_took_are_free() -> None:
    gate = recovered()
    gate.release(10.0, 1000)

    gate.unused(1)

    assert gate.release(10.01, 1000).go == 1


def test_a_release_is_over_when_nobody_is_left() -> None:
    gate = recovered()

    assert gate.paced
    assert gate.released_at is None
    assert gate.release(10.0, 1) == Release(1, None)
    assert not gate.paced
    assert gate.clear
    assert gate.released_at == 10.0


def test_a_release_without_pace_lets_all_go() -> None:
    gate = Gate()
    gate.primary_found(0.0, pace=False)

    assert gate.release(0.0, 5000) == Release(5000, None)


@pytest.mark.parametrize("how", ["primary_lost", "refuse"])
def test_nobody_goes_when_writes_stop_again(how: str) -> None:
    gate = recovered()

    getattr(gate, how)(10.05, "b is lost")

    assert gate.release(10.1, 100) == Release(0, None)
    assert not gate.paced


def test_the_next_release_begins_anew() -> None:
    gate = recovered()
    for late in range(5):
        come_back(gate, gate.release(10.0 + late, 10_000).go)
    gate.setback()
    gate.primary_lost(20.0, "b is lost")
    gate.primary_found(30.0)

    assert gate.release(30.0, 10_000).go == 2


# ---------------------------------------------------------------- the application's pause


def test_a_pause_holds_calls_back_and_lets_them_wait() -> None:
    gate = opened()

    gate.pause(60.0)

    assert (gate.state, gate.writable, gate.clear) == (OPEN, False, False)
    assert gate.may_wait(0, inf, 1.0) is None
    assert gate.release(1.0, 10) == Release(0, None)


def test_who_waited_for_a_pause_goes_on_as_after_a_failover() -> None:
    gate = opened()
    gate.pause(60.0)

    gate.resume(5.0)

    assert gate.writable
    assert gate.release(5.0, 10).go == 2


def test_the_cluster_is_followed_during_a_pause() -> None:
    gate = opened()
    gate.pause(60.0)

    assert gate.primary_lost(1.0, "a is stopped") == Change(OPEN, FAILOVER, "a is stopped")
    assert gate.primary_found(2.0) == Change(FAILOVER, OPEN, "the primary answers")
    assert not gate.writable
    assert gate.release(2.0, 10).go == 0

    gate.resume(3.0)

    assert gate.release(3.0, 10).go == 2


def test_a_pause_that_ends_while_there_is_no_primary_lets_nobody_go() -> None:
    gate = opened()
    gate.pause(60.0)
    gate.primary_lost(1.0, "a is stopped")

    gate.resume(2.0)

    assert gate.release(2.0, 10).go == 0
    gate.primary_found(3.0)
    assert gate.release(3.0, 10).go == 2


def test_refused_writes_are_refused_during_a_pause_too() -> None:
    gate = opened()
    gate.pause(60.0)

    gate.refuse(1.0, "b contests a")

    assert gate.may_wait(0, inf, 1.0) == "writes are refused: b contests a"


# ---------------------------------------------------------------- a primary that flaps

A, B = (Reign("system", 1, mark) for mark in "ab")


def flapping() -> tuple[Gate, float]:
    """Return a gate that follows two changes of primary, and the moment of the third, which it holds back for 1 s."""
    gate = Gate(flaps=Flaps(2, 60.0, first=1.0, most=10.0))
    for second, reign in enumerate((A, B, A)):
        gate.primary_lost(float(second), "it is lost")
        gate.primary_found(second + 0.5, reign)
        assert gate.open
    gate.primary_lost(3.0, "it is lost")
    return gate, 3.5


def test_a_primary_that_flaps_has_to_stay_before_writes_go_on() -> None:
    gate, now = flapping()

    change = gate.primary_found(now, B)

    assert change is not None
    assert change.hold is not None
    assert (change.hold.changes, change.hold.stay, change.hold.until) == (3, 1.0, now + 1.0)
    assert (gate.state, gate.writable) == (FAILOVER, False)
    assert "changed 3 times within 60 s" in gate.why
    assert gate.may_wait(0, inf, now) is None
    assert gate.primary_found(now + 0.9, B) is None
    assert gate.primary_found(now + 1.0, B) == Change(FAILOVER, OPEN, "the primary answers")
    assert gate.hold is None


def test_a_change_without_a_moment_of_loss_closes_the_gate_as_well() -> None:
    gate = Gate(flaps=Flaps(1, 60.0, first=1.0))
    for second, reign in enumerate((A, B)):
        gate.primary_found(float(second), reign)

    change = gate.primary_found(2.0, A)

    assert change is not None
    assert (change.was, change.now) == (OPEN, FAILOVER)
    assert change.hold is not None


def test_a_primary_that_is_lost_while_it_is_waited_for_has_to_stay_anew() -> None:
    gate, now = flapping()
    gate.primary_found(now, B)
    gate.primary_lost(now + 0.5, "it is lost")
    assert gate.hold is None

    gate.primary_found(now + 0.6, B)

    assert gate.primary_found(now + 1.5, B) is None
    assert gate.primary_found(now + 1.6, B) is not None
    assert gate.open


def test_a_gate_that_waits_for_a_primary_to_stay_is_not_down() -> None:
    gate = Gate(max_wait=1.0, flaps=Flaps(1, 60.0, first=8.0))
    for second, reign in enumerate((A, B, A)):
        gate.primary_found(float(second), reign)

    assert gate.tick(9.0) is None
    assert gate.may_wait(0, inf, 9.0) is None


def test_a_cluster_that_was_down_is_followed_at_once() -> None:
    gate = Gate(max_wait=1.0, flaps=Flaps(1, 60.0, first=8.0))
    gate.primary_found(0.0, A)
    gate.primary_found(1.0, B)
    gate.primary_lost(2.0, "it is lost")
    gate.tick(3.0)

    gate.primary_found(4.0, A)

    assert gate.state is OPEN


def test_the_earliest_moment_is_known_where_the_gate_itself_holds_back() -> None:
    gate, now = flapping()
    assert gate.earliest(now) == now
    gate.primary_found(now, B)
    assert gate.earliest(now) == now + 1.0

    gate.primary_found(now + 1.0, B)
    assert gate.earliest(now + 1.0) == now + 1.0
    gate.setback()
    assert gate.earliest(now + 1.05) == now + 1.0 + PACE


# ---------------------------------------------------------------- whatever the order of events


class GateMachine(RuleBasedStateMachine):
    """Signals, time, pauses and waiting calls in any order: what must hold after each."""

    @initialize(slots=st.integers(1, 200))
    def begin(self, slots: int) -> None:
        self.now = 0.0
        self.slots = slots
        self.gate = Gate(max_wait=60.0)
        self.waiting = 0
        self.out = 0
        self.release = 0
        self.stopped_at: float | None = None

    def moved(self, was: tuple[GateState, bool], change: Change | None) -> None:
        """Hold a change against what was before and is now: told if and only if there is one."""
        changed = (self.gate.state, self.gate.refused) != was
        assert (change is not None) == changed
        if change is not None:
            assert (change.was, change.now, change.why) == (was[0], self.gate.state, self.gate.why)
        if self.gate.open:
            self.stopped_at = None
        if self.gate.releases != self.release:
            self.release, self.out = self.gate.releases, 0

    @rule(how=st.sampled_from(["suspect", "primary_lost", "refuse"]))
    def bad_news(self, how: str) -> None:
        was, episode = (self.gate.state, self.gate.refused), self.gate.episode
        stops = self.gate.open and how != "suspect"
        if self.stopped_at is None and how != "suspect":
            self.stopped_at = self.now
        self.moved(was, getattr(self.gate, how)(self.now, how))
        assert self.gate.episode == episode + stops
        assert self.gate.refused == (how == "refuse" or (how == "suspect" and was[1]))

    @rule()
    def good_news(self) -> None:
        was = (self.gate.state, self.gate.refused)
        self.moved(was, self.gate.primary_found(self.now, slots=self.slots))
        assert self.gate.state is OPEN
        assert not self.gate.refused

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.1, 1.0, 30.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.stopped_at is None and not self.gate.open:
            self.stopped_at = self.now
        was = (self.gate.state, self.gate.refused)
        self.moved(was, self.gate.tick(self.now))
        lasted = self.now - self.stopped_at if self.stopped_at is not None else 0.0
        assert (self.gate.state is DOWN) == (not self.gate.open and lasted >= 60.0)

    @rule(pause=st.booleans())
    def the_application_decides(self, pause: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        state = self.gate.state
        if pause:
            self.gate.pause(self.now + 60.0)
        else:
            self.gate.resume(self.now)
        self.moved((state, self.gate.refused), None)

    @rule(more=st.integers(1, 500))
    def calls_come(self, more: int) -> None:
        refusal = self.gate.may_wait(self.waiting, self.now + 30.0, self.now)
        room = self.waiting < 10_000
        assert (refusal is None) == (self.gate.state is not DOWN and not self.gate.refused and room)
        self.waiting += 0 if refusal else more

    @rule()
    def waiting_calls_are_released(self) -> None:
        paced = self.gate.paced
        released = self.gate.release(self.now, self.waiting)
        assert 0 <= released.go <= self.waiting
        self.waiting -= released.go
        if not self.gate.writable:
            assert released.go == 0
        elif paced:
            self.out += released.go
            assert self.out <= self.slots or not self.gate.paced
        if released.again_at is not None:
            assert self.waiting > 0
            assert self.now < released.again_at <= self.now + PACE + 1e-9
        else:
            assert self.waiting == 0 or not self.gate.writable

    @rule(calls=st.integers(1, 200))
    def released_calls_come_back(self, calls: int) -> None:
        for _ in range(min(calls, self.out)):
            self.gate.returned(self.release)
            self.out -= 1

    @rule()
    def a_released_call_fails(self) -> None:
        self.gate.setback()
        if self.gate.paced and self.gate.writable:
            before = self.gate._next_at
            assert self.now >= before or self.gate.release(self.now, self.waiting + 1).go == 0

    @invariant()
    def no_release_goes_on_while_writes_stand_still(self) -> None:
        if hasattr(self, "gate"):
            assert self.gate.open or not self.gate.paced
            assert self.gate.clear == (self.gate.writable and self.gate.state is OPEN and not self.gate.paced)
            assert self.gate.why


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
