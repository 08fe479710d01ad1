"""What is said of the nodes that were not chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.core.plan import Choice
from dbguard.core.reasons import Route, against
from dbguard.core.retry import Stake
from dbguard.core.router import ReadPolicy
from dbguard.core.statement import Kind
from dbguard.core.topology import Missed, Role
from dbguard.testing.clock import ManualClock
from dbguard.testing.fake import known_state, lost, new_call, seen

if TYPE_CHECKING:
    from dbguard.core.state import GuardState


@dataclass
class Known:
    """What a text's look-up knows."""

    reads: bool = True
    refused: bool = False
    why: str = "SELECT"

    def refuse(self) -> None:
        self.reads, self.refused = False, True


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state(clock: ManualClock) -> GuardState:
    return known_state(clock)


def said(state: GuardState, kind: Kind = Kind.READ, stake: Stake = Stake.READ, **options: Any) -> dict[str, str]:
    call = new_call(state, stake, text=options.pop("text", Known()), **options)
    return against(state, call, kind, state.route(call))


def test_read_spares_the_primary_and_could_as_well_go_to_the_other_replica(state: GuardState) -> None:
    assert said(state) == {
        "a": "the primary is spared: a replica is fit",
        "c": "fit as well: chosen among the fit ones by load and chance",
    }


def test_write_goes_to_no_replica(state: GuardState) -> None:
    assert set(said(state, Kind.WRITE, Stake.WRITE).values()) == {"a replica takes no writes"}


def test_what_is_not_known_to_be_a_read_goes_to_no_replica(state: GuardState) -> None:
    assert set(said(state, Kind.UNKNOWN, Stake.WRITE).values()) == {"not known to be a read"}


def test_read_for_which_the_primary_was_asked_says_so(state: GuardState) -> None:
    assert set(said(state, role="primary", reads=False).values()) == {"the primary was asked for"}
    assert set(said(state, consistency="primary").values()) == {"consistency: primary"}


def test_read_that_a_replica_has_refused_says_so(state: GuardState) -> None:
    refused = Known(reads=False, refused=True)

    assert set(said(state, reads=False, text=refused).values()) == {"a replica has refused this text as a write"}


def test_reads_that_are_configured_to_stay_on_the_primary_say_so(clock: ManualClock) -> None:
    state = known_state(clock, reads=ReadPolicy(from_replicas=False))

    assert set(said(state).values()) == {"reads.from: primary"}


def test_node_outside_the_group_of_a_rule_says_so(state: GuardState) -> None:
    assert said(state, group=frozenset({"c"}))["b"] == "not in the group that its rule names"


def test_silent_node_and_doubted_node_say_so(state: GuardState, clock: ManualClock) -> None:
    now = clock.advance(0.5)
    state.probed(
        [seen("a", Role.PRIMARY, now), Missed(node="b", at=now, why="no answer"), seen("c", Role.REPLICA, now)],
        full=True,
    )
    assert said(state)["b"] == "does not answer"

    now = clock.advance(0.5)
    state.probed([seen("a", Role.PRIMARY, now), seen("b", Role.REPLICA, now), seen("c", Role.REPLICA, now)], full=True)
    state.failed(lost("b"), state.nodes["b"].breaker.generation)
    assert said(state)["b"] == "behind this context's writes, or a call failed there just now"


def test_replica_that_lags_says_by_how_much(clock: ManualClock) -> None:
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

    assert said(state)["c"].startswith("lag ")
    assert said(state)["c"].endswith(", allowed 1 s")
    assert said(state, consistency="eventual").get("c") in {
        None,
        "fit as well: chosen among the fit ones by load and chance",
    }


def test_where_a_write_can_go_nowhere_every_node_says_why(state: GuardState, clock: ManualClock) -> None:
    for _ in range(3):
        now = clock.advance(0.5)
        answers = [seen(name, Role.REPLICA, now) for name in "bc"]
        state.probed([Missed(node="a", at=now, why="no answer"), *answers], full=True)

    assert said(state, Kind.WRITE, Stake.WRITE) == {
        "a": "does not answer",
        "b": "a replica takes no writes",
        "c": "a replica takes no writes",
    }


def test_observed_read_says_where_it_would_have_gone(state: GuardState) -> None:
    state.observe = True

    assert set(said(state).values()) == {"mode: observe"}


def test_nothing_is_said_of_the_chosen_node(state: GuardState) -> None:
    call = new_call(state, text=Known())
    choice = state.route(call)

    assert isinstance(choice, Choice)
    assert choice.node not in against(state, call, Kind.READ, choice)


def test_a_route_can_be_read() -> None:
    route = Route(node="b", role="replica", why="2 fit", kind=Kind.READ, because="SELECT", others={"a": "spared"})

    assert str(route) == "read (SELECT): b as replica, 2 fit\n  not a: spared"
