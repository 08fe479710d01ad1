"""How long a call pauses: tenacity's strategies, asked from outside its loop."""

from __future__ import annotations

import pytest
import tenacity

from dbguard.core.failure import Family
from dbguard.core.plan import Pause
from dbguard.core.retry import RetryPolicy
from dbguard.runtime.backoff import Backoff
from dbguard.testing.fake import conflict, lost, timed_out

MAKERS = {Family.HARD: lost, Family.CONTENTION: conflict, Family.SOFT: timed_out}


def pause(number: int = 1, family: Family = Family.HARD, at_most: float = 30.0) -> Pause:
    return Pause(at_most, number, family, gate=False, failure=MAKERS[family]("a"))


def seconds(policy: RetryPolicy, *pauses: Pause, now: float = 1_000.0) -> list[float | None]:
    backoff = Backoff(policy, 1_000.0)
    return [backoff.seconds(step, now) for step in pauses]


@pytest.mark.parametrize(
    ("family", "least", "most"),
    [(Family.HARD, 0.010, 2.0), (Family.CONTENTION, 0.002, 0.5), (Family.SOFT, 0.020, 2.0)],
    ids=lambda value: value.value if isinstance(value, Family) else None,
)
def test_default_pauses_lie_between_floor_and_ceiling(family: Family, least: float, most: float) -> None:
    said = seconds(RetryPolicy(), *[pause(number, family) for number in range(1, 12) for _ in range(50)])

    assert all(least <= value <= most for value in said if value is not None)
    assert None not in said


def test_default_pauses_grow_and_are_jittered() -> None:
    early = seconds(RetryPolicy(), *[pause(1)] * 200)
    late = seconds(RetryPolicy(), *[pause(6)] * 200)

    assert len(set(late)) > 100
    assert sum(filter(None, late)) > 2 * sum(filter(None, early))


def test_any_tenacity_strategy_is_asked_with_the_number_of_the_attempt() -> None:
    policy = RetryPolicy(wait=tenacity.wait_incrementing(start=1, increment=2))

    assert seconds(policy, pause(1), pause(2), pause(3)) == [1, 3, 5]


def test_strategies_can_be_joined() -> None:
    joined = tenacity.wait_fixed(1) + tenacity.wait_fixed(0.5)
    chain = tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(2))

    assert seconds(RetryPolicy(wait=joined), pause(1)) == [1.5]
    assert seconds(RetryPolicy(wait=chain), pause(1), pause(2), pause(3)) == [1, 2, 2]


def test_strategy_sees_the_drivers_own_exception() -> None:
    seen = []

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        seen.append(str(state.outcome.exception()))
        return 0.0

    seconds(RetryPolicy(wait=wait), pause(family=Family.CONTENTION))

    assert seen == ["could not serialize access on a"]


def test_pause_is_cut_to_what_is_left_of_the_call() -> None:
    assert seconds(RetryPolicy(wait=tenacity.wait_fixed(60)), pause(at_most=0.25)) == [0.25]


def test_pause_takes_at_least_what_the_plan_says() -> None:
    slow = Pause(30.0, 1, Family.CONTENTION, gate=False, failure=conflict("a"), at_least=0.25)
    short = Pause(0.1, 1, Family.CONTENTION, gate=False, failure=conflict("a"), at_least=0.25)

    assert seconds(RetryPolicy(wait=tenacity.wait_fixed(0.01)), slow, short) == [0.25, 0.1]


def test_stop_strategy_ends_the_call() -> None:
    policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_attempt(3))

    assert seconds(policy, pause(1), pause(2), pause(3)) == [1, 1, None]


def test_stop_by_time_counts_from_the_beginning_of_the_call() -> None:
    policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(5))

    assert seconds(policy, pause(1), now=1_004.9) == [1]
    assert seconds(policy, pause(1), now=1_005.0) == [None]


def test_two_calls_share_nothing() -> None:
    policy = RetryPolicy(wait=tenacity.wait_incrementing(start=1, increment=1))
    one, other = Backoff(policy, 1_000.0), Backoff(policy, 1_000.0)

    assert one.seconds(pause(4), 1_000.0) == 4
    assert other.seconds(pause(1), 1_000.0) == 1
