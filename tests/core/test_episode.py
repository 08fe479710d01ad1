"""Episodes: what is told of a failover while it lasts, and at its end, by a clock that is handed in."""

from __future__ import annotations

import itertools
import json
import logging
from random import Random
from typing import TYPE_CHECKING

import pytest

from dbguard.core.breaker import BreakerPolicy
from dbguard.core.episode import AFTERMATH, KEPT, SETTLING
from dbguard.core.gate import Gate
from dbguard.core.merge import Topology
from dbguard.core.retry import RetryPolicy
from dbguard.core.router import ReadPolicy
from dbguard.core.state import GuardState
from dbguard.core.topology import Missed, Role
from dbguard.events import (
    BreakerChanged,
    Drained,
    EpisodeEnded,
    Event,
    GateChanged,
    NodeDown,
    NodeUp,
    OutcomeLeftOpen,
    OutcomeResolved,
    PrimaryChanged,
    RoleChanged,
    SplitBrainSeen,
    WriteMayBeLost,
)
from dbguard.status import status_of
from dbguard.testing.clock import ManualClock
from dbguard.testing.fake import lost, new_call, seen, unsent

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP = 0.25


class Guarded:
    """A guard's state over nodes a (primary), b and c, with the events that it has told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        marks = itertools.count()
        self.state = GuardState(
            Topology("abc", new_mark=lambda: f"mark {next(marks)}"),
            clock=self.clock,
            rng=Random(1),
            retry=RetryPolicy(),
            breaker=BreakerPolicy(),
            gate=Gate(),
            reads=ReadPolicy(),
            wall=lambda: 1_700_000_000.0 + self.clock.now,
        )
        self.told: list[Event] = []

    def flush(self) -> None:
        effects = self.state.take_effects()
        if effects is not None:
            self.state.gate.release(self.clock.now, self.state.waiting)
            self.told += effects.events

    def drain(self, node: str, *, idle: int, in_use: int) -> None:
        said = Drained(at=self.clock.now, node=node, epoch=1, idle=idle, in_use=in_use, how="ended at once")
        self.told += self.state.chronicle.fold([said], self.clock.now)

    def look(self, *, after: float = STEP, primary: str | None = "a", silent: str = "", timeline: int = 1) -> None:
        """One full round that was asked *after* seconds from now, and answered at once."""
        now = self.clock.advance(after)
        results = [
            Missed(node=name, at=now, why="connection refused")
            if name in silent
            else seen(name, Role.PRIMARY if name == primary else Role.REPLICA, now, timeline=timeline)
            for name in "abc"
        ]
        self.state.probed(results, full=True)
        self.state.tick()
        self.flush()

    def fail(self, failure, *, after: float = 0.0) -> None:
        self.clock.advance(after)
        self.state.failed(failure, self.state.nodes[failure.node].breaker.generation)
        self.flush()

    def calm(self, **more) -> None:
        """Rounds that find nothing new, until whatever is under way must have been announced."""
        for _ in range(int(AFTERMATH / STEP) + 2):
            self.look(**more)

    def heard(self, kind):
        return [event for event in self.told if isinstance(event, kind)]

    @property
    def ended(self) -> list[EpisodeEnded]:
        return self.heard(EpisodeEnded)


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    guarded = Guarded()
    guarded.calm()
    assert [event.kind for event in guarded.ended] == ["start-up"]
    guarded.told.clear()
    yield guarded
    assert all(name in event.as_dict() for event in guarded.told for name in ("at", "episode", "quiet"))


def failover(guarded: Guarded) -> None:
    """A call fails on a, 0.25 s later a does not answer; b is promoted 2 s after that, and nobody waits any more."""
    guarded.fail(lost("a"))
    guarded.look(primary=None, silent="a")
    guarded.look(after=2.0, primary="b", silent="a", timeline=2)


# ------------------------------------------------------------------ one failover


def test_a_failover_is_told_at_its_end_as_one_line_with_its_phases(guarded: Guarded) -> None:
    failover(guarded)
    assert guarded.ended == []
    guarded.calm(primary="b", silent="a", timeline=2)

    (ended,) = guarded.ended
    assert ended.text() == (
        "failover 2: a -> b in 2.25 s (noticed in 0.25, writes stopped for 2.00, waiting calls released in 0.00 s); "
        "0 calls waited, 0 outcomes unknown, 0 connections ended"
    )
    assert (ended.kind, ended.severity) == ("failover", logging.WARNING)
    details = ended.details
    assert (details["noticed"], details["stopped"], details["released"]) == (0.25, 2.0, 0.0)
    assert details["seconds"] == details["noticed"] + details["stopped"] + details["released"]


def test_every_event_of_an_episode_bears_its_id_and_the_others_do_not(guarded: Guarded) -> None:
    failover(guarded)
    guarded.calm(primary="b", silent="a", timeline=2)
    during = list(guarded.told)
    guarded.look(primary="b", timeline=2)  # the old primary is back, as a replica

    assert {type(event) for event in during} >= {GateChanged, NodeDown, RoleChanged, PrimaryChanged, EpisodeEnded}
    assert len({event.episode for event in during}) == 1
    assert {event.episode for event in guarded.told[len(during) :]} == {None}
    assert during[0].line() == f"{during[0].text()} [{during[0].episode}]"
    assert guarded.told[-1].line() == guarded.told[-1].text()


def test_ids_tell_when_the_episode_began_and_sort_by_it(guarded: Guarded) -> None:
    began = 1_700_000_000 + guarded.clock.now
    failover(guarded)
    guarded.calm(primary="b", silent="a", timeline=2)
    guarded.fail(lost("b"), after=60.0)
    guarded.calm(primary="b", silent="a", timeline=2)

    first, second = dict.fromkeys(event.episode for event in guarded.told)
    assert (first, second) == (f"{int(began):08x}-2", f"{int(began + 60 + 4):08x}-3")
    assert guarded.ended[0].details["began_at"] == pytest.approx(began)


def test_a_silent_primary_is_counted_from_the_question_that_it_left_unanswered(guarded: Guarded) -> None:
    asked = guarded.clock.now
    guarded.clock.advance(0.8)
    answers = [seen(name, Role.REPLICA, asked) for name in "bc"]
    guarded.state.probed([Missed(node="a", at=asked, why="no answer in time"), *answers], full=True)
    guarded.flush()
    guarded.look(after=1.0, primary="b", silent="a", timeline=2)
    guarded.calm(primary="b", silent="a", timeline=2)

    (ended,) = guarded.ended
    assert ended.details["why"] == "a does not answer: no answer in time"
    assert (ended.details["noticed"], ended.details["stopped"]) == (0.8, 1.0)


def test_calls_outcomes_and_connections_are_counted_until_it_is_announced(guarded: Guarded) -> None:
    state = guarded.state
    state.counts["waited"] += 5  # before it
    guarded.fail(lost("a"))
    state.counts["waited"] += 214
    state.left_open(new_call(state), lost("a"))
    guarded.look(primary=None, silent="a")
    guarded.look(primary="b", silent="a", timeline=2)
    guarded.drain("a", idle=4, in_use=8)
    state.left_open(new_call(state), lost("a"))  # a call whose connection was ended just now
    guarded.flush()
    guarded.calm(primary="b", silent="a", timeline=2)

    (ended,) = guarded.ended
    assert ended.text().endswith("; 214 calls waited, 2 outcomes unknown, 12 connections ended")
    assert "connections drained in 0.00" in ended.text()
    assert [event.quiet for event in guarded.heard(OutcomeLeftOpen)] == [False, True]


def test_it_is_not_over_before_the_last_waiting_call_was_let_go(guarded: Guarded) -> None:
    state = guarded.state
    guarded.fail(lost("a"))
    guarded.look(primary=None, silent="a")
    state.waiting = 100_000
    guarded.look(primary="b", silent="a", timeline=2)  # few of them may go at first
    assert state.gate.paced
    for _ in range(8):
        guarded.look(primary="b", silent="a", timeline=2)
    assert guarded.ended == []

    guarded.clock.advance(0.125)
    state.gate.returned(state.gate.releases)
    state.waiting = 1
    state.gate.release(guarded.clock.now, 1)
    guarded.calm(primary="b", silent="a", timeline=2)

    (ended,) = guarded.ended
    assert ended.details["released"] == 2.125
    assert ended.details["seconds"] == 0.25 + 0.25 + 2.125


def test_outcomes_that_are_told_late_belong_to_it_for_a_while(guarded: Guarded) -> None:
    def resolve() -> None:
        said = OutcomeResolved(at=guarded.clock.now, node="a", token="one", outcome="applied")
        guarded.told += guarded.state.chronicle.fold([said], guarded.clock.now)

    failover(guarded)
    until = guarded.clock.now + SETTLING
    while guarded.clock.now < until:
        guarded.look(after=0.75, primary="b", silent="a", timeline=2)
        assert guarded.ended == []
        resolve()
    for _ in range(2):
        guarded.look(after=0.75, primary="b", silent="a", timeline=2)
        resolve()

    assert [event.kind for event in guarded.ended] == ["failover"]
    assert guarded.ended[0].details["seconds"] == 2.25
    assert guarded.told[-1].episode is None


def test_trouble_soon_after_belongs_to_the_same_episode_and_later_trouble_to_another(guarded: Guarded) -> None:
    failover(guarded)
    guarded.look(primary=None, silent="ab", timeline=2)  # b is lost 0.25 s later
    guarded.look(after=1.0, primary="b", silent="a", timeline=2)
    guarded.calm(primary="b", silent="a", timeline=2)
    guarded.fail(lost("b"))
    guarded.look(primary=None, silent="ab", timeline=2)
    guarded.look(primary="b", silent="a", timeline=2)
    guarded.calm(primary="b", silent="a", timeline=2)

    assert [(event.kind, event.details["stops"]) for event in guarded.ended] == [("failover", 2), ("interruption", 1)]
    assert "(2 times)" in guarded.ended[0].text()
    assert guarded.ended[0].details["stopped"] == 2.0 + 0.25 + 1.0


def test_trouble_after_the_calm_ends_the_last_episode_even_if_nobody_looked_meanwhile(guarded: Guarded) -> None:
    failover(guarded)
    guarded.fail(lost("b"), after=AFTERMATH + 0.1)

    (ended,) = guarded.ended
    first, second = ended.episode, guarded.told[-1].episode
    assert first != second
    assert guarded.told.index(ended) < next(i for i, event in enumerate(guarded.told) if event.episode == second)


def test_an_episode_is_announced_before_the_next_one_begins_in_the_same_round(guarded: Guarded) -> None:
    failover(guarded)
    guarded.look(after=AFTERMATH + 0.1, primary=None, silent="ab", timeline=2)

    (ended,) = guarded.ended
    ids = [event.episode for event in guarded.told]
    assert ids == sorted(ids)
    assert (ended.kind, ended.episode) == ("failover", ids[0])


def test_what_is_under_way_is_told_when_nobody_will_look_any_more(guarded: Guarded) -> None:
    assert guarded.state.chronicle.close(guarded.clock.now) is None
    guarded.look(primary=None, silent="a")
    guarded.clock.advance(3.0)

    said = guarded.state.chronicle.close(guarded.clock.now)
    assert said is not None
    assert said.text().startswith("interruption 2, not over yet: began 3.00 s ago (a does not answer")
    assert guarded.state.chronicle.close(guarded.clock.now) is None


def test_writes_that_may_be_lost_are_in_the_line(guarded: Guarded) -> None:
    failover(guarded)
    lost_bytes = WriteMayBeLost(at=guarded.clock.now, node="b", lost_bytes=5_640)
    guarded.told += guarded.state.chronicle.fold([lost_bytes], guarded.clock.now)
    guarded.calm(primary="b", silent="a", timeline=2)

    assert "; WRITES MAY BE LOST (5,640 bytes); " in guarded.ended[0].text()


# ------------------------------------------------------------------ the other kinds


def test_start_up_is_told_once_and_is_no_warning() -> None:
    guarded = Guarded()
    guarded.calm()

    (ended,) = guarded.ended
    assert ended.text() == "start-up 1: primary a found after 0.25 s"
    assert [event for event in guarded.told if event.severity > logging.INFO] == []


def test_start_up_without_a_primary_lasts_until_one_is_found() -> None:
    guarded = Guarded()
    guarded.look(primary=None, silent="a")
    guarded.state.counts["waited"] += 1
    guarded.look(after=4.0, primary="b", silent="a", timeline=2)
    guarded.look(primary="b", silent="a", timeline=2)

    assert [event.text() for event in guarded.ended] == ["start-up 1: primary b found after 4.25 s; 1 call waited"]


def test_the_same_primary_back_is_an_interruption(guarded: Guarded) -> None:
    guarded.look(primary=None, silent="a")
    guarded.look(after=0.5)
    guarded.calm()

    (ended,) = guarded.ended
    assert ended.text().startswith("interruption 2: a is back after 0.50 s (noticed in 0.00, writes stopped for 0.50, ")


def test_a_suspicion_that_cost_nothing_is_not_heard_above_info(guarded: Guarded) -> None:
    guarded.fail(unsent("a"))
    guarded.calm()

    assert [(event.now, event.severity) for event in guarded.heard(GateChanged)] == [
        ("suspect", logging.INFO),
        ("open", logging.INFO),
    ]
    (ended,) = guarded.ended
    assert (ended.kind, ended.severity) == ("suspicion", logging.DEBUG)
    assert [episode.kind for episode in status_of(guarded.state).episodes] == ["start-up"]


def test_a_suspicion_that_left_an_outcome_unknown_is_a_warning(guarded: Guarded) -> None:
    guarded.fail(lost("a"))
    guarded.state.left_open(new_call(guarded.state), lost("a"))
    guarded.calm()

    (ended,) = guarded.ended
    assert (ended.kind, ended.severity) == ("suspicion", logging.WARNING)
    assert "writes did not stop; 0 calls waited, 1 outcome unknown" in ended.text()


def test_another_primary_beside_a_living_one_is_a_failover_in_which_writes_did_not_stop(guarded: Guarded) -> None:
    now = guarded.clock.advance(STEP)
    guarded.state.probed([seen("b", Role.PRIMARY, now, timeline=2)], full=False)
    guarded.flush()
    guarded.clock.advance(AFTERMATH)
    guarded.state.tick()
    guarded.flush()

    (ended,) = guarded.ended
    assert ended.text().startswith("failover 2: a -> b in 0.00 s (writes did not stop); ")


def test_a_refusal_is_named_with_its_reason(guarded: Guarded) -> None:
    def round_with_two_primaries() -> None:
        now = guarded.clock.advance(STEP)
        answers = [seen(name, Role.PRIMARY if name in "ab" else Role.REPLICA, now) for name in "abc"]
        guarded.state.probed(answers, full=True)
        guarded.flush()

    round_with_two_primaries()
    round_with_two_primaries()
    guarded.look(silent="b")
    guarded.calm(silent="b")

    (ended,) = guarded.ended
    assert ended.kind == "refusal"
    assert "writes were refused: split brain: a and b are primary on timeline 1" in ended.text()
    said = guarded.heard(SplitBrainSeen) + guarded.heard(GateChanged)
    assert [(type(event), event.quiet) for event in said[:2]] == [(SplitBrainSeen, False), (GateChanged, True)]


def test_a_primary_that_changes_during_a_pause_is_a_switchover(guarded: Guarded) -> None:
    guarded.state.pause(60.0)
    guarded.flush()
    guarded.look(primary=None, silent="a")
    guarded.look(after=1.0, primary="b", timeline=2)
    guarded.calm(primary="b", timeline=2)
    assert guarded.ended == []  # calls are still held back
    guarded.state.resume()
    guarded.flush()
    guarded.calm(primary="b", timeline=2)

    (ended,) = guarded.ended
    held = STEP + 1.0 + (int(AFTERMATH / STEP) + 2) * STEP
    assert ended.text().startswith(f"switchover 2: a -> b in {held:.2f} s (writes stopped for {held:.2f}, ")
    assert ended.details["stops"] == 1


def test_a_pause_alone_is_told_as_one(guarded: Guarded) -> None:
    guarded.state.pause(60.0)
    guarded.flush()
    guarded.look(after=2.0)
    guarded.state.resume()
    guarded.flush()
    guarded.calm()

    (ended,) = guarded.ended
    assert ended.text().startswith("pause 2: writes go to a again after 2.00 s (writes stopped for 2.00, ")


# ------------------------------------------------------------------ one line per change


def test_one_change_is_one_loud_line(guarded: Guarded) -> None:
    guarded.look(primary=None, silent="a")
    guarded.look(primary="b", silent="a", timeline=2)
    guarded.calm(primary="b", silent="a", timeline=2)
    guarded.look(primary="b", timeline=2)

    loud = [(type(event), getattr(event, "node", None)) for event in guarded.told if not event.quiet]
    assert loud == [
        (NodeDown, "a"),  # its breaker opens with that
        (GateChanged, None),
        (PrimaryChanged, "b"),  # which was a replica before
        (GateChanged, None),
        (EpisodeEnded, None),
        (NodeUp, "a"),  # its breaker closes, and it is a replica now
    ]
    assert len(guarded.heard(BreakerChanged)) == 2
    assert guarded.told[-1].at >= guarded.told[0].at
    assert guarded.heard(NodeUp)[0].text() == "a answers as replica (was primary)"


def test_outcomes_with_a_token_are_all_told(guarded: Guarded) -> None:
    for token in ("one", "two"):
        call = new_call(guarded.state)
        call.token = token
        guarded.state.left_open(call, lost("a"))
    guarded.flush()

    assert [(event.token, event.quiet) for event in guarded.heard(OutcomeLeftOpen)] == [("one", False), ("two", False)]


# ------------------------------------------------------------------ status


def test_status_shows_the_episode_under_way_and_the_last_ones(guarded: Guarded) -> None:
    for _ in range(KEPT + 2):
        guarded.look(primary=None, silent="a")
        guarded.look()
        guarded.calm()
    guarded.look(primary=None, silent="a")
    guarded.clock.advance(7.0)

    episodes = status_of(guarded.state).episodes
    assert len(episodes) == KEPT + 1
    assert [episode.over for episode in episodes] == [True] * KEPT + [False]
    assert episodes[-1].seconds == 7.0
    assert "not over yet: began 7.00 s ago (a does not answer: connection refused)" in episodes[-1].text()


def test_status_is_plain_data_in_a_form_that_stays(guarded: Guarded) -> None:
    guarded.look(primary=None, silent="a")
    said = json.loads(json.dumps(status_of(guarded.state).as_dict()))

    assert {"at", "primary", "reign", "writes", "writes_since", "why", "waiting", "nodes", "counts", "episodes"} <= set(
        said
    )
    assert {"name", "role", "role_since", "reachable", "reachable_since", "breaker", "breaker_since", "problem"} <= set(
        said["nodes"][0]
    )
    assert [(episode["kind"], episode["over"]) for episode in said["episodes"]] == [
        ("start-up", True),
        ("interruption", False),
    ]


def test_status_says_since_when(guarded: Guarded) -> None:
    start = status_of(guarded.state)
    guarded.look(after=10.0, primary=None, silent="a")
    guarded.calm(primary=None, silent="a")
    later = status_of(guarded.state)
    a, b, _ = later.nodes

    lost_at = start.at + 10.0
    assert later.writes_since == pytest.approx(lost_at)
    assert (a.reachable, a.reachable_since) == (False, pytest.approx(lost_at))
    assert (a.breaker, a.breaker_since) == ("open", pytest.approx(lost_at))
    assert a.role_since == start.nodes[0].role_since < start.at
    assert (b.reachable_since, b.breaker_since) == (start.nodes[1].reachable_since, start.nodes[1].breaker_since)
