"""In which state something was, and when: events tell the moment, samples what became of it."""

from __future__ import annotations

from typing import Any

from chaos.history import History
from chaos.report.states import Span, breakers, gate, nodes


def event(event: str, at: float, **more: Any) -> dict[str, Any]:
    return {"event": event, "at": at, **more}


def test_node_goes_through_the_states_that_events_tell() -> None:
    history = History(
        events=(
            event("NodeUp", -2.0, node="a", role="primary"),
            event("NodeUp", -1.9, node="b", role="replica"),
            event("CallRepeated", 0.5, node="a", attempt=1, why="it failed"),
            event("NodeDown", 1.0, node="a", why="refused"),
            event("PrimaryChanged", 2.0, node="b", was="a", reign="2"),
            event("NodeFenced", 3.0, node="a", timeline=1, accepted=2),
            event("RoleChanged", 4.0, node="a", was="primary", now="replica"),
            event("NodeMisconfigured", 5.0, node="a", why="TLS"),
        )
    )

    assert nodes(history, -1.0, 6.0) == {
        "a": [
            Span(-1.0, 1.0, "primary"),
            Span(1.0, 3.0, "down"),
            Span(3.0, 4.0, "fenced"),
            Span(4.0, 5.0, "replica"),
            Span(5.0, 6.0, "misconfigured"),
        ],
        "b": [Span(-1.0, 2.0, "replica"), Span(2.0, 6.0, "primary")],
    }


def test_samples_tell_what_no_event_does_and_what_is_the_same_goes_on() -> None:
    history = History(
        events=(event("NodeDown", 0.95, node="b", why="silent"),),
        samples=tuple(
            {"at": at, "nodes": {"b": state}}
            for at, state in [(0.8, "replica"), (0.9, "replica"), (1.0, "down"), (1.1, "down"), (1.2, "fenced")]
        ),
    )

    assert nodes(history, 0.0, 2.0) == {
        "b": [Span(0.8, 0.95, "replica"), Span(0.95, 1.2, "down"), Span(1.2, 2.0, "fenced")]
    }


def test_client_that_tells_nothing_has_no_states() -> None:
    history = History(events=(event("CallRepeated", 1.0, attempt=1, why="x"),), samples=({"at": 0.0, "waiting": 2},))

    assert nodes(history, 0.0, 2.0) == {}
    assert breakers(history, 0.0, 2.0) == {}
    assert gate(history, 0.0, 2.0) == []


def test_gate_follows_its_events_and_a_pause() -> None:
    history = History(
        events=(
            event("GateChanged", 1.0, was="open", now="suspect", why="silence"),
            event("GateChanged", 1.5, was="suspect", now="failover", why="lost"),
            event("GateChanged", 2.0, was="failover", now="open", why="found"),
            event("WritesPaused", 3.0, node="a", at_most=1.0),
            event("WritesResumed", 3.5, node="a", waiting=0, forgotten=False),
        ),
        samples=({"at": 0.5, "gate": "open"}, {"at": 3.6, "gate": "open"}),
    )

    assert [(span.start, span.end, span.state) for span in gate(history, 0.0, 4.0)] == [
        (0.5, 1.0, "open"),
        (1.0, 1.5, "suspect"),
        (1.5, 2.0, "failover"),
        (2.0, 3.0, "open"),
        (3.0, 3.6, "paused"),
        (3.6, 4.0, "open"),
    ]


def test_breaker_is_told_from_its_first_change_on() -> None:
    history = History(
        events=(
            event("BreakerChanged", 1.0, node="b", was="closed", now="open", why="5 failures"),
            event("BreakerChanged", 2.0, node="b", was="open", now="half-open", why="cooled"),
            event("BreakerChanged", 2.5, node="b", was="half-open", now="closed", why="answered"),
        )
    )

    assert breakers(history, 0.0, 3.0) == {
        "b": [Span(1.0, 2.0, "open"), Span(2.0, 2.5, "half-open"), Span(2.5, 3.0, "closed")]
    }


def test_what_was_told_after_the_end_does_not_count() -> None:
    history = History(events=(event("NodeDown", 5.0, node="a", why="closed"),))

    assert nodes(history, 0.0, 4.0) == {}
