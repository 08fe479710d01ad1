"""Which of the fit nodes a call goes to."""

from __future__ import annotations

import random
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguard.core.breaker import Breaker, BreakerPolicy
from dbguard.core.route import STRATEGIES, Node, caught_up, least_busy
from dbguard.core.topology import Instance, NodeView, Role

if TYPE_CHECKING:
    from collections.abc import Sequence


class Chance:
    """Says what it is told to, over and over."""

    def __init__(self, *values: float) -> None:
        self._values = cycle(values)

    def random(self) -> float:
        return next(self._values)


def node(name: str, *, in_use: int = 0, size: int = 10, weight: int = 1, position: int | None = None) -> Node:
    view = NodeView(name=name, role=Role.REPLICA, position=position)
    made = Node(name, Breaker(BreakerPolicy(), Chance(0.0)), view, weight=weight)
    made.load.in_use, made.load.size = in_use, size
    return made


def spread(strategy: str, nodes: Sequence[Node], draws: int = 6_000) -> dict[str, float]:
    """Return the share of draws that each node gets."""
    choose, rng = STRATEGIES[strategy](), random.Random(7)
    counted = Counter(choose(nodes, rng, 0.0).name for _ in range(draws))
    return {name: count / draws for name, count in counted.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_single_candidate_is_taken(strategy: str) -> None:
    only = node("a")

    assert STRATEGIES[strategy]()([only], random.Random(1), 0.0) is only


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(seed=st.integers(), count=st.integers(1, 9))
def test_choice_is_one_of_the_candidates(strategy: str, seed: int, count: int) -> None:
    nodes = [node(str(number), in_use=number) for number in range(count)]

    assert STRATEGIES[strategy]()(nodes, random.Random(seed), 0.0) in nodes


def test_least_busy_never_takes_the_busiest_of_two() -> None:
    nodes = [node("a", in_use=9), node("b", in_use=1)]

    assert spread("least-busy", nodes) == {"b": 1.0}


def test_least_busy_compares_two_different_nodes() -> None:
    nodes = [node("busy", in_use=9), node("a"), node("b")]

    assert "busy" not in spread("least-busy", nodes)


def test_least_busy_spreads_over_equals() -> None:
    shares = spread("least-busy", [node(name) for name in "abc"])

    assert all(share == pytest.approx(1 / 3, abs=0.05) for share in shares.values())


def test_busyness_is_counted_per_slot_of_the_pool() -> None:
    small, large = node("small", in_use=3, size=4), node("large", in_use=6, size=20)

    assert least_busy([small, large], Chance(0.0), 0.0) is large


def test_weight_makes_room() -> None:
    light, heavy = node("light", in_use=3), node("heavy", in_use=5, weight=2)

    assert least_busy([light, heavy], Chance(0.0), 0.0) is heavy


def test_overloaded_node_counts_double_until_its_time_is_over() -> None:
    soft, other = node("soft", in_use=1), node("other", in_use=2)
    soft.soft_until = 100.0

    assert least_busy([soft, other], Chance(0.0), 99.0) is other
    assert least_busy([soft, other], Chance(0.0), 100.0) is soft


def test_random_goes_by_weight() -> None:
    shares = spread("random", [node("light"), node("heavy", weight=3)])

    assert shares["heavy"] == pytest.approx(0.75, abs=0.03)


def test_random_halves_the_weight_of_an_overloaded_node_until_its_time_is_over() -> None:
    soft, other = node("soft"), node("other")
    soft.soften(-5.0)  # `spread` chooses at 0: half of its time is over

    assert spread("random", [soft, other])["soft"] == pytest.approx(1 / 3, abs=0.03)
    soft.soften(-10.0)
    assert spread("random", [soft, other])["soft"] == pytest.approx(1 / 2, abs=0.03)


def test_round_robin_takes_turns_and_forgives_a_lost_candidate() -> None:
    choose = STRATEGIES["round-robin"]()
    nodes = [node(name) for name in "abc"]
    turns = [choose(nodes, Chance(0.0), 0.0).name for _ in range(6)]

    assert sorted(turns) == ["a", "a", "b", "b", "c", "c"]
    assert choose(nodes[:1], Chance(0.0), 0.0) is nodes[0]


def test_each_guard_has_its_own_turn() -> None:
    nodes = [node(name) for name in "ab"]
    one, other = STRATEGIES["round-robin"](), STRATEGIES["round-robin"]()
    one(nodes, Chance(0.0), 0.0)

    assert other(nodes, Chance(0.0), 0.0) is nodes[1]


# ---------------------------------------------------------------- positions


def test_replica_of_unknown_position_has_not_caught_up() -> None:
    nodes = [node("at", position=500), node("behind", position=499), node("ahead", position=501), node("unknown")]

    assert [fit.name for fit in caught_up(nodes, 500)] == ["at", "ahead"]


def test_without_a_write_every_candidate_will_do() -> None:
    nodes = [node("a"), node("b", position=1)]

    assert caught_up(nodes, 0) == nodes


# ---------------------------------------------------------------- doubts


def test_new_node_is_not_doubted() -> None:
    assert not node("a").doubted


def test_doubt_is_answered_only_by_a_probe_sent_later() -> None:
    doubted = node("a")
    doubted.doubted_at = 10.0

    for sent, answered in ((9.0, False), (10.0, False), (10.1, True)):
        doubted.seen_at = sent
        assert doubted.doubted is not answered


@pytest.mark.parametrize(
    ("role", "group", "other", "here"),
    [
        (Role.REPLICA, False, "two", False),
        (Role.REPLICA, True, "two", True),
        (Role.PRIMARY, True, "two", False),
        (Role.PRIMARY, False, "two", False),
        (Role.PRIMARY, False, "one", True),
        (Role.PRIMARY, False, None, True),
    ],
    ids=["moved", "one of several replicas", "beside a primary", "another primary", "the same", "not told"],
)
def test_a_connection_is_to_its_node_only_if_it_reached_the_server_last_seen_there(
    role: Role, *, group: bool, other: str | None, here: bool
) -> None:
    view = NodeView(name="a", role=role, group=group, instance=Instance("42", "one"))
    one = Node("a", Breaker(BreakerPolicy(), Chance(0.0)), view)

    assert one.is_here(Instance("42", other)) is here
    assert one.is_here(None)
