"""What repeats may cost: a share of recent first attempts, and a floor."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dbguard.core.budget import Budget, Window
from dbguard.core.retry import Purse

INFRASTRUCTURE, CONTENTION, HEDGE = Purse


def deposit(budget: Budget, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        budget.deposit(now)


def drain(budget: Budget, purse: Purse, now: float = 0.0) -> int:
    taken = next((number for number in range(10_000) if not budget.take(now, purse)), None)
    assert taken is not None, "a purse without a bottom"
    return taken


# ---------------------------------------------------------------- window


def test_a_window_counts_what_is_recent() -> None:
    window = Window(10.0)
    for second in range(10):
        window.add(float(second))

    assert window.total(9.0) == 10


def test_a_window_lets_go_slice_by_slice() -> None:
    window = Window(10.0)
    for second in range(10):
        window.add(float(second))

    assert [window.total(9.5 + later) for later in range(12)] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


def test_a_window_of_one_slice_forgets_at_once() -> None:
    window = Window(1.0, 1)
    window.add(0.0)

    assert window.total(0.9) == 1
    assert window.total(1.0) == 0


def test_a_cleared_window_is_empty() -> None:
    window = Window(10.0)
    window.add(0.0)
    window.add(1.5)

    window.clear()

    assert window.total(1.5) == 0


def test_time_that_goes_back_stays_in_the_present_slice() -> None:
    window = Window(10.0)
    window.add(100.0)
    window.add(50.0)

    assert window.total(100.0) == 2


@given(
    steps=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=60),
    start=st.floats(-1e6, 1e6),
    slices=st.integers(1, 20),
)
def test_a_window_counts_all_of_its_span_but_one_slice_and_nothing_older(
    steps: list[float], start: float, slices: int
) -> None:
    window, now, times = Window(10.0, slices), start, []

    for seconds in steps:
        now += seconds
        window.add(now)
        times.append(now)
        rounding = 1e-6
        surely = sum(at > now - 10.0 + 10.0 / slices + rounding for at in times)
        perhaps = sum(at > now - 10.0 - rounding for at in times)
        assert max(surely, 1) <= window.total(now) <= perhaps


# ---------------------------------------------------------------- budget


@pytest.mark.parametrize("purse", [INFRASTRUCTURE, CONTENTION])
def test_without_traffic_the_floor_alone_pays(purse: Purse) -> None:
    assert drain(Budget(), purse) == 30


def test_first_attempts_pay_for_a_fifth_of_them_as_repeats() -> None:
    budget = Budget(floor=0.0)
    deposit(budget, 100)

    assert drain(budget, INFRASTRUCTURE) == 20


def test_less_than_a_whole_repeat_pays_for_none() -> None:
    budget = Budget(floor=0.0)
    deposit(budget, 4)

    assert budget.balance(0.0, INFRASTRUCTURE) == pytest.approx(0.8)
    assert not budget.take(0.0, INFRASTRUCTURE)
    budget.deposit(0.0)

    assert budget.take(0.0, INFRASTRUCTURE)


def test_hedges_get_a_twentieth_and_no_floor() -> None:
    budget = Budget()
    assert not budget.take(0.0, HEDGE)

    deposit(budget, 100)

    assert drain(budget, HEDGE) == 5


@pytest.mark.parametrize("emptied", Purse)
def test_an_empty_purse_leaves_the_others_full(emptied: Purse) -> None:
    budget = Budget()
    deposit(budget, 1000)
    before = {purse: budget.balance(0.0, purse) for purse in Purse if purse is not emptied}

    drain(budget, emptied)

    assert budget.balance(0.0, emptied) < 1.0
    assert {purse: budget.balance(0.0, purse) for purse in before} == before


def test_deposits_expire() -> None:
    budget = Budget(floor=0.0)
    deposit(budget, 100)

    assert budget.balance(8.9, INFRASTRUCTURE) == 20.0
    assert budget.balance(10.0, INFRASTRUCTURE) == 0.0


def test_what_was_taken_is_regained_when_it_expires() -> None:
    budget = Budget()
    drain(budget, CONTENTION)

    assert drain(budget, CONTENTION, 8.9) == 0
    assert drain(budget, CONTENTION, 10.0) == 30


def test_a_storm_of_repeats_stays_a_share_of_the_traffic() -> None:
    budget, repeats = Budget(), 0
    for second in range(100):
        deposit(budget, 1000, float(second))
        repeats += sum(budget.take(float(second), INFRASTRUCTURE) for _ in range(5000))

    assert repeats <= 0.2 * 100_000 + 3 * 110


class BudgetMachine(RuleBasedStateMachine):
    """First attempts and repeats in any order: no purse ever pays more than it may."""

    @initialize(ratio=st.floats(0.0, 1.0), floor=st.floats(0.0, 5.0))
    def begin(self, ratio: float, floor: float) -> None:
        self.now = 1000.0
        self.budget = Budget(ratio=ratio, expiry=10.0, floor=floor)
        self.share = {INFRASTRUCTURE: ratio, CONTENTION: ratio, HEDGE: 0.05}
        self.owed = {INFRASTRUCTURE: floor * 10.0, CONTENTION: floor * 10.0, HEDGE: 0.0}
        self.deposits: list[float] = []
        self.taken: dict[Purse, list[float]] = {purse: [] for purse in Purse}

    @rule(seconds=st.floats(0.0, 12.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(times=st.integers(1, 50))
    def first_attempts(self, times: int) -> None:
        deposit(self.budget, times, self.now)
        self.deposits += [self.now] * times

    @rule(purse=st.sampled_from(Purse), times=st.integers(1, 20))
    def repeats(self, purse: Purse, times: int) -> None:
        for _ in range(times):
            before = self.budget.balance(self.now, purse)
            granted = self.budget.take(self.now, purse)
            assert granted == (before >= 1.0)
            if granted:
                self.taken[purse].append(self.now)
                assert self.budget.balance(self.now, purse) == pytest.approx(before - 1.0)

    @invariant()
    def no_purse_pays_more_than_its_share_and_its_floor(self) -> None:
        if not hasattr(self, "budget"):
            return
        recent = sum(at > self.now - 10.0 - 1e-6 for at in self.deposits)
        for purse in Purse:
            if self.taken[purse] and self.taken[purse][-1] == self.now:
                lately = sum(at > self.now - 9.0 + 1e-6 for at in self.taken[purse])
                assert lately <= self.share[purse] * recent + self.owed[purse] + 1e-6

    @invariant()
    def a_balance_is_never_negative(self) -> None:
        if hasattr(self, "budget"):
            assert all(self.budget.balance(self.now, purse) >= 0.0 for purse in Purse)


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
