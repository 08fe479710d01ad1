"""What a soak breaks: segments, each a scenario of its own, drawn from all kinds of faults there are by a seed.

The same seed draws the same segments. Each is a YAML text, so that one that broke something can be run by itself.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import yaml

from chaos.scenario import parse
from chaos.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from chaos.faults import Breakage
    from chaos.scenario import Scenario

__all__ = ["CALLERS", "GUARD", "MIX", "TOPOLOGY", "Segment", "faults", "segments"]

Steps: TypeAlias = "list[dict[str, Any]]"
Draw: TypeAlias = "Callable[[Random], Steps]"

TOPOLOGY = {"replicas": 2, "synchronous": True}
"""The cluster of a soak: there are promotions, and nothing acknowledged may be lost in one."""

GUARD: Mapping[str, Any] = {"outcome": {"resolve": "token-table"}, "failover": {"flap_changes": "unlimited"}}
"""The guard's settings: tokens, where the client takes them, and no patience with primaries that change often, which
would make the pauses its own."""

CALLERS = 12
"""Callers at a time at most, whatever the workload."""

_SECONDS = 18.0  # of a segment's faults; with warm-up and rest it takes some 22
_FELT = 1.0  # seconds for what is over at once
_GAP = (0.4, 0.9)  # seconds between two faults
_WORKLOADS: tuple[dict[str, dict[str, Any]], ...] = (
    {"append": {"readers": 4, "writers": 4, "owners": 4, "linger": "300ms", "pause": "4ms"}},
    {"list-append": {"readers": 4, "writers": 4, "owners": 4, "linger": "300ms", "pause": "4ms"}},
    {"hot-rows": {"readers": 2, "writers": 6, "owners": 4, "keys": 2, "linger": "300ms", "pause": "4ms"}},
    {"bulk": {"readers": 2, "writers": 2, "owners": 2, "linger": "300ms", "pause": "60ms"}},
)
_APP = ["app->primary", "app->replica", "app->other-replica"]
_BETWEEN = ["replica->primary", "other-replica->primary"]
_REPLICA = ["replica", "other-replica"]


def _for(low: float, high: float, what: str, /, **keys: Any) -> Draw:
    """Draw a fault that lasts from *low* to *high* seconds; of a key with a list, one."""

    def draw(rng: Random) -> Steps:
        chosen = {name: rng.choice(value) if isinstance(value, list) else value for name, value in keys.items()}
        return [{"at": 0.0, "for": rng.uniform(low, high), what: chosen}]

    return draw


def _once(what: str, /, **keys: Any) -> Draw:
    """Draw a fault that is over at once."""
    return lambda rng: [{**_for(_FELT, _FELT, what, **keys)(rng)[0]}]


def _after(seconds: float, first: Draw, then: Draw) -> Draw:
    """Draw two faults, the second so many seconds after the first."""
    return lambda rng: [*first(rng), *({**step, "at": step["at"] + seconds} for step in then(rng))]


MIX: Mapping[str, Draw] = {
    "slow": _for(0.8, 1.5, "toxic", link=_APP, kind="latency", attributes={"latency": 60, "jitter": 40}),
    "narrow": _for(0.8, 1.5, "toxic", link=_APP, kind="bandwidth", attributes={"rate": 20}),
    "sliced": _for(
        0.8, 1.5, "toxic", link=_APP, kind="slicer", attributes={"average_size": 20, "size_variation": 10, "delay": 500}
    ),
    "reset": _for(0.1, 0.4, "toxic", link=_APP, kind="reset_peer"),
    "acknowledgements cut": _for(0.1, 0.4, "toxic", link=_APP, kind="limit_data"),
    "acknowledgements swallowed": _for(0.8, 1.5, "toxic", link=_APP, kind="timeout"),
    "requests swallowed": _for(0.8, 1.5, "toxic", link=_APP, kind="timeout", stream="upstream"),
    "link down": _for(0.3, 1.2, "down", link=[*_APP, *_BETWEEN]),
    "hole": _for(0.8, 2.0, "hole", link=[*_APP, *_BETWEEN]),
    "replica killed": _for(0.8, 1.5, "kill", node=_REPLICA),
    "replica frozen": _for(0.8, 2.0, "freeze", node=_REPLICA),
    "replica stopped": _for(0.8, 1.5, "stop", node=_REPLICA, mode=["fast", "immediate"]),
    "primary killed": _for(0.5, 1.0, "kill", node="primary"),
    "primary frozen": _for(0.5, 1.5, "freeze", node="primary"),
    "restart": _once("restart", node=["primary", *_REPLICA], mode=["fast", "immediate"]),
    "switchover": _once("switchover"),
    "primary dies": _after(0.5, _for(1.8, 2.2, "kill", node="primary"), _for(1.0, 1.3, "promote")),
    "primary hangs": _after(0.5, _for(1.8, 2.2, "freeze", node="primary"), _for(1.0, 1.3, "promote")),
    "primary out of sight": _after(0.5, _for(1.8, 2.2, "hole", link="app->primary"), _for(1.0, 1.3, "promote")),
    "two primaries": _for(0.8, 1.5, "promote"),
    "sessions ended": _once("terminate", node=["primary", *_REPLICA], share=[0.3, 1.0]),
    "session crashed": _once("crash", node=["primary", *_REPLICA]),
    "replay paused": _for(0.8, 2.0, "pause-replay", node=_REPLICA),
    "writes refused": _for(
        0.5,
        1.0,
        "sql",
        do="ALTER SYSTEM SET default_transaction_read_only = on",
        undo="ALTER SYSTEM RESET default_transaction_read_only",
        reload=True,
    ),
    "writes struck": _for(
        0.5,
        1.0,
        "strike",
        what=["write", "commit"],
        how=["request-cut", "ack-cut", "reset", "request-hole", "ack-hole", "late", "orphan"],
        requests=[1, 3],
    ),
    "claims struck": _after(
        0.1,
        _for(1.2, 1.5, "strike", what="claim", how=["request-cut", "ack-cut", "reset", "request-hole", "ack-hole"]),
        _for(0.8, 1.0, "strike", what=["write", "commit"], how=["ack-cut", "request-cut"], requests=3),
    ),
    "no connection left": _for(0.8, 1.5, "connections", node=["primary", *_REPLICA]),
    "calls given up": _for(0.8, 1.5, "cancel", share=[0.2, 0.5], within=["5ms", "30ms"]),
    "recovery conflicts": _for(0.8, 1.5, "conflict"),
    "table changed": _for(0.8, 1.5, "ddl", what=["column", "type", "index"]),
}
"""How each kind of trouble is drawn: steps of a timeline, from 0 on."""


class Segment(NamedTuple):
    """A scenario, and the text that it was made of."""

    scenario: Scenario
    text: str


def segments(seed: int) -> Iterator[Segment]:
    """Draw segments without end. Each kind of trouble comes once before any comes again."""
    rng = Random(seed)  # noqa: S311  a schedule, no secret
    cards = _dealt(rng)
    for number in itertools.count(1):
        name = f"soak-{seed}-{number}"
        tree = _segment(rng, cards, _WORKLOADS[number % len(_WORKLOADS)])
        text = yaml.safe_dump(tree, sort_keys=False, width=120)
        yield Segment(parse(text, name), text)


def faults() -> list[Breakage]:
    """Return every kind of fault that can be drawn."""
    rng = Random(0)  # noqa: S311  any will do
    timeline = [step for draw in MIX.values() for step in draw(rng)]
    tree = _tree(timeline, _WORKLOADS[0], 60.0)
    return [step.fault for step in parse(yaml.safe_dump(tree), "mix").timeline]


def _dealt(rng: Random) -> Iterator[Draw]:
    while True:
        deck = sorted(MIX)
        rng.shuffle(deck)
        yield from (MIX[name] for name in deck)


def _segment(rng: Random, cards: Iterator[Draw], workload: dict[str, dict[str, Any]]) -> dict[str, Any]:
    now, timeline = 0.3, []
    while now < _SECONDS:
        steps = [{**step, "at": now + step["at"]} for step in next(cards)(rng)]
        timeline += [{**step, "at": round(step["at"], 3), "for": round(step["for"], 3)} for step in steps]
        now = max(step["at"] + step["for"] for step in steps) + rng.uniform(*_GAP)
    return _tree(timeline, workload, round(now + 0.5, 3))


def _tree(timeline: Steps, workload: dict[str, dict[str, Any]], duration: float) -> dict[str, Any]:
    checkers: dict[str, dict[str, Any]] = {
        **{name: {"least": 10} for name in ("lost", "duplicated", "phantom", "stale")},
        **({"order": {"least": 10}} if any(WORKLOADS[name].ordered for name in workload) else {}),
        "gaps": {"read": "20s", "append": "20s", "least": 10},  # the time-outs of two calls
        "overshoot": {"by": "1s"},  # the machine is busy with servers that start
        "leaks": {},
        "felt": {},
    }
    return {
        "about": "A segment of a soak.",
        "topology": TOPOLOGY,
        "guard": dict(GUARD),
        "workload": workload,
        "warm_up": "1s",
        "duration": duration,
        "timeline": timeline,
        "checkers": checkers,
    }
