"""In which state nodes, breakers and the gate were, as spans of time, by what the client told. Pure: nothing here draws.

Events tell of a change when it happens, samples what is so every now and then: an event is right about the moment, and
the next sample about what became of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos.history import History

__all__ = ["CLOSED", "DOWN", "OPEN", "Span", "breakers", "gate", "nodes"]

DOWN = "down"
"""The state of a node that does not answer."""
CLOSED = "closed"
"""The state of a breaker that lets calls through."""
OPEN = "open"
"""The state of a gate that lets writes through."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something was in *state* from *start* to *end*."""

    start: float
    end: float
    state: str


def nodes(history: History, start: float, end: float) -> dict[str, list[Span]]:
    """Return each node's states, by its name and in the order of names: its role, ``fenced`` or `DOWN`.

    start, end: what is told before *start* counts from there on; the last state lasts to *end*.
    """
    return _by_name(_of_nodes(history), start, end)


def breakers(history: History, start: float, end: float) -> dict[str, list[Span]]:
    """Return the states of those breakers that were ever told of, by node."""
    told = ((e["at"], str(e["node"]), str(e["now"])) for e in history.events if e["event"] == "BreakerChanged")
    return _by_name(told, start, end)


def gate(history: History, start: float, end: float) -> list[Span]:
    """Return whether writes could flow, in the words of `dbguard.status.Status.writes`; nothing if nobody told."""
    return _by_name(((at, "", state) for at, state in _of_gate(history)), start, end).get("", [])


def _of_nodes(history: History) -> Iterator[tuple[float, str, str]]:
    """Tell when which node was said to be in which state."""
    for sample in history.samples:
        if isinstance(told := sample.get("nodes"), Mapping):
            yield from ((sample["at"], str(name), str(state)) for name, state in told.items())
    for event in history.events:
        if (state := _state_after(event)) is not None:
            yield event["at"], str(event["node"]), state


def _state_after(event: Mapping[str, Any]) -> str | None:
    """Return the state that an event says its node is in from now on; None: it says nothing about that."""
    match event["event"]:
        case "NodeUp":
            return str(event["role"])
        case "RoleChanged":
            return str(event["now"])
        case "NodeDown":
            return DOWN
        case "PrimaryChanged":
            return "primary"
        case "NodeFenced":
            return "fenced"
        case "NodeMisconfigured":
            return "misconfigured"
        case _:
            return None


def _of_gate(history: History) -> Iterator[tuple[float, str]]:
    for sample in history.samples:
        if "gate" in sample:
            yield sample["at"], str(sample["gate"])
    for event in history.events:
        if event["event"] == "GateChanged":
            yield event["at"], str(event["now"])
        elif event["event"] == "WritesPaused":
            yield event["at"], "paused"


def _by_name(told: Iterator[tuple[float, str, str]], start: float, end: float) -> dict[str, list[Span]]:
    """Make spans of what was told, in the order of time."""
    changes: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for at, name, state in sorted(told, key=lambda change: change[0]):
        known = changes[name]
        if at <= start:
            known[:] = [(start, state)]
        elif at < end and not (known and known[-1][1] == state):
            known.append((at, state))
    spans = {
        name: [Span(at, until, state) for (at, state), (until, _) in pairwise([*known, (end, "")])]
        for name, known in sorted(changes.items())
    }
    return {name: found for name, found in spans.items() if found}
