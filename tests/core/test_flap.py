"""A primary that flaps: how long the next one has to stay, and that writes are never held back for good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguard.core.flap import Flaps
from dbguard.core.topology import Reign


def reign(number: int) -> Reign:
    return Reign("system", number, "mark")


def test_the_first_primary_is_no_change() -> None:
    assert Flaps(1).found(0.0, reign(1)) is None
    assert Flaps(1).found(1.0, reign(2)) is None


def test_a_switchover_and_back_is_followed_at_once() -> None:
    flaps = Flaps()

    assert [flaps.found(float(number), reign(number % 2)) for number in range(3)] == [None, None, None]


def test_the_time_to_stay_doubles_with_each_further_change_up_to_its_limit() -> None:
    flaps = Flaps(2, 1000.0, first=1.0, most=10.0)
    stays = []
    for number in range(10):
        hold = flaps.found(number * 20.0, reign(number))
        stays.append(hold.stay if hold is not None else 0.0)
        assert flaps.found(number * 20.0 + 10.0, reign(number)) is None

    assert stays == [0, 0, 0, 1, 2, 4, 8, 10, 10, 10]


def test_writes_go_on_once_the_primary_has_stayed() -> None:
    flaps = Flaps(1, first=2.0)
    for number in range(2):
        flaps.found(float(number), reign(number))

    hold = flaps.found(2.0, reign(2))

    assert hold is not None
    assert (hold.changes, hold.until, hold.begun) == (2, 4.0, True)
    again = flaps.found(3.9, reign(2))
    assert again is not None
    assert not again.begun
    assert flaps.found(4.0, reign(2)) is None


def test_changes_further_back_than_the_window_count_no_more() -> None:
    flaps = Flaps(2, 60.0)

    assert [flaps.found(number * 30.0, reign(number)) for number in range(20)] == [None] * 20


def test_a_primary_that_was_lost_and_is_back_has_to_stay_from_then_on() -> None:
    flaps = Flaps(1, first=2.0)
    for number in range(3):
        flaps.found(float(number), reign(number))
    flaps.lost()

    hold = flaps.found(3.0, reign(2))

    assert hold is not None
    assert (hold.until, hold.begun) == (5.0, False)


def test_a_restart_in_place_is_no_change() -> None:
    flaps = Flaps(1)
    for second in range(20):
        assert flaps.found(float(second), reign(1)) is None
        flaps.lost()


def test_all_changes_are_followed_where_that_is_wished() -> None:
    flaps = Flaps(None)

    assert [flaps.found(number / 10, reign(number)) for number in range(100)] == [None] * 100


@given(
    st.lists(
        st.tuples(st.floats(0.001, 3.0), st.sampled_from(["changed", "lost", "stays"])), min_size=50, max_size=300
    ),
    st.integers(1, 3),
)
def test_however_the_primaries_alternate_writes_wait_no_longer_than_the_limit(
    story: list[tuple[float, str]], allowed: int
) -> None:
    flaps = Flaps(allowed, 60.0, first=1.0, most=10.0)
    now, number, held_since = 0.0, 0, None
    for seconds, what in story:
        now += seconds
        if what == "lost":
            flaps.lost()
            continue
        number += what == "changed"
        hold = flaps.found(now, reign(number))
        if hold is None:
            held_since = None
            continue
        held_since = held_since if held_since is not None else now
        assert hold.until <= held_since + 10.0 + 1e-9
        assert now < hold.until


@pytest.mark.parametrize("every", [0.5, 2.0, 7.0])
def test_primaries_that_alternate_for_ever_let_writes_through_again_and_again(every: float) -> None:
    flaps = Flaps()
    opened, held = 0, 0
    for tick in range(12_000):
        now = tick * 0.025
        if flaps.found(now, reign(int(now / every) % 2)) is None:
            opened += 1
        else:
            held += 1

    assert opened > 0.02 * held > 0
