"""Checkers against seeded histories: honest ones, and the same with one lie in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from chaos.checkers import (
    CHECKERS,
    Checker,
    Contended,
    Duplicated,
    Failed,
    Felt,
    Gaps,
    Latency,
    Leaks,
    Lost,
    Order,
    Overshoot,
    Pause,
    Phantom,
    ReadsGoOn,
    Spared,
    Stale,
    State,
    Steady,
    Verdict,
    pauses,
)
from chaos.history import Fault, History, Kind, Leak, LeakKind, Operation, Outcome
from dbguard.errors import ConfigError

HONEST = range(1_000)
LIARS = range(100)
GAP = 1.0
JUDGES: dict[str, Checker] = {
    "lost": Lost(least=20),
    "duplicated": Duplicated(least=20),
    "phantom": Phantom(least=20),
    "stale": Stale(least=5),
    "order": Order(least=5),
    "reads-go-on": ReadsGoOn(gap=GAP, away="b", least=20),
    "gaps": Gaps(read=GAP, append=2.5, least=20),
    "overshoot": Overshoot(),
    "failed": Failed(appends="any", least=20),
    "latency": Latency(attempt=0.1, least=5),
    "leaks": Leaks(),
    "felt": Felt(),
    "spared": Spared(node="b", most=0.1, least=20),
    "steady": Steady(),
    "contended": Contended(least=2),
}
TABLE = [JUDGES["lost"], JUDGES["duplicated"], JUDGES["phantom"]]
HISTORY = Callable[[int], History]


def judged(history: History) -> dict[str, Verdict]:
    return {name: checker.judge(history) for name, checker in JUDGES.items()}


def wrong(verdicts: dict[str, Verdict]) -> dict[str, str]:
    return {name: str(verdict) for name, verdict in verdicts.items() if verdict.state is not State.OK}


def test_every_checker_stands_before_the_lies() -> None:
    elsewhere = {"fenced", "recovers", "returns"}  # test_role_checkers
    assert {name: type(judge) for name, judge in JUDGES.items()} == {
        name: kind for name, kind in CHECKERS.items() if name not in elsewhere
    }


def test_honest_histories_raise_no_alarm(honest: HISTORY) -> None:
    alarms = {seed: found for seed in HONEST if (found := wrong(judged(honest(seed))))}

    assert alarms == {}


# --- lies: each takes an honest history and makes one thing in it untrue; what it gives is what should be shown for it.
# None: this history has no place for it.

Lie = Callable[[History, random.Random], tuple[History, object] | None]


def pick(history: History, rng: random.Random, kind: Kind, *outcomes: Outcome) -> Operation:
    return rng.choice([op for op in history.of(kind) if op.outcome in outcomes])


def changed(history: History, old: Operation, **change: Any) -> tuple[History, Operation]:
    new = replace(old, **change)
    return replace(history, operations=tuple(new if op is old else op for op in history.operations)), new


def put(history: History, rng: random.Random, value: int | None) -> History:
    """Put a value to the end of a list."""
    assert history.final is not None
    assert value is not None
    key = rng.choice(list(history.final))
    return replace(history, final={**history.final, key: (*history.final[key], value)})


def an_acknowledged_append_is_gone(history: History, rng: random.Random) -> tuple[History, object]:
    gone = pick(history, rng, Kind.APPEND, Outcome.OK, Outcome.RESULT_LOST)
    assert history.final is not None
    left = {key: tuple(value for value in values if value != gone.value) for key, values in history.final.items()}
    return replace(history, final=left), gone


def an_append_is_there_twice(history: History, rng: random.Random) -> tuple[History, object]:
    twice = pick(history, rng, Kind.APPEND, Outcome.OK, Outcome.RESULT_LOST)
    return put(history, rng, twice.value), twice


def an_append_was_read_twice(history: History, rng: random.Random) -> tuple[History, object] | None:
    told = {op.value: op for op in history.operations if op.kind is Kind.APPEND}
    if not (filled := [op for op in history.of(Kind.READ) if op.seen]):
        return None
    read = rng.choice(filled)
    value = rng.choice(read.seen or ())
    return changed(history, read, seen=(*(read.seen or ()), value))[0], told[value]


def a_failed_append_is_there(history: History, rng: random.Random) -> tuple[History, object]:
    failed = pick(history, rng, Kind.APPEND, Outcome.FAILED)
    return put(history, rng, failed.value), failed


def a_value_is_there_that_nobody_sent(history: History, rng: random.Random) -> tuple[History, object]:
    value = 20_000 + rng.randrange(100)
    return put(history, rng, value), value


def own(history: History, *, acknowledged: bool) -> list[tuple[Operation, int]]:
    """Find reads with a value that they must see: appended before by the same client, acknowledged or seen before."""
    found: list[tuple[Operation, int]] = []
    for read in history.of(Kind.READ):
        earlier = [
            op for op in history.operations if op.client == read.client and op.key == read.key and op is not read
        ]
        earlier = [op for op in earlier if op.end <= read.start]
        known = {value for op in earlier if op.kind is Kind.READ for value in op.seen or ()}
        mine = [op for op in earlier if op.value is not None and op.acknowledged is acknowledged]
        found += [(read, op.value) for op in mine if op.value is not None and (acknowledged or op.value in known)]
    return found


def a_read_misses_an_append_of_its_own(history: History, rng: random.Random) -> tuple[History, object] | None:
    if not (found := own(history, acknowledged=True)):
        return None
    read, value = rng.choice(found)
    return changed(history, read, seen=tuple(seen for seen in read.seen or () if seen != value))


def a_read_misses_what_was_seen_before(history: History, rng: random.Random) -> tuple[History, object] | None:
    if not (found := own(history, acknowledged=False)):
        return None
    read, value = rng.choice(found)
    return changed(history, read, seen=tuple(seen for seen in read.seen or () if seen != value))


def a_read_has_two_values_the_wrong_way_round(history: History, rng: random.Random) -> tuple[History, object] | None:
    if not (long := [op for op in history.of(Kind.READ) if len(op.seen or ()) > 1]):
        return None
    read = rng.choice(long)
    seen = list(read.seen or ())
    at = rng.randrange(len(seen) - 1)
    seen[at : at + 2] = reversed(seen[at : at + 2])
    return changed(history, read, seen=tuple(seen))


def an_append_stands_after_a_later_one(history: History, rng: random.Random) -> tuple[History, object] | None:
    """The server applied them in the wrong order, for all to see."""
    assert history.final is not None
    told = {op.value: op for op in history.operations if op.kind is Kind.APPEND and op.acknowledged}
    places = [
        (key, at)
        for key, values in history.final.items()
        for at, (first, second) in enumerate(pairwise(values))
        if first in told and second in told and told[first].end < told[second].start
    ]
    if not places:
        return None
    key, at = rng.choice(places)
    values = list(history.final[key])
    first = told[values[at]]
    values[at : at + 2] = reversed(values[at : at + 2])
    operations = []
    for op in history.operations:
        if op.key == key and op.seen is not None and len(op.seen) == at + 1 and op.client.startswith("reader"):
            continue  # it saw but one of the two
        is_read = op.key == key and op.seen is not None
        operations.append(replace(op, seen=tuple(values[: len(op.seen or ())])) if is_read else op)
    return replace(history, operations=tuple(operations), final={**history.final, key: tuple(values)}), first


def a_read_failed(history: History, rng: random.Random) -> tuple[History, object]:
    return changed(history, pick(history, rng, Kind.READ, Outcome.OK), outcome=Outcome.FAILED, seen=None)


def without(history: History, client: str, since: float, until: float) -> History:
    """Leave out what a client did meanwhile; nobody else saw it."""
    rest = [op for op in history.operations if not (op.client == client and since < op.end < until)]
    return replace(history, operations=tuple(rest))


def a_read_took_too_long(history: History, rng: random.Random) -> tuple[History, object]:
    slow = rng.choice([op for op in history.of(Kind.READ) if op.client.startswith("reader") and op.start < 3])
    end = slow.end + GAP
    history = without(history, slow.client, slow.end, end)
    return changed(history, slow, end=end, deadline=None)[0], slow.client


def a_reader_fell_silent(history: History, rng: random.Random) -> tuple[History, object]:
    client = rng.choice(["reader 0", "reader 1", "reader 2"])
    return without(history, client, rng.uniform(-0.2, 3.5), 99), client


def a_writer_fell_silent(history: History, rng: random.Random) -> tuple[History, object]:
    client, since = rng.choice(["writer 0", "writer 1"]), rng.uniform(-0.2, 2)
    gone = {op.value for op in history.operations if op.client == client and op.end > since}
    operations = tuple(
        op if op.seen is None else replace(op, seen=tuple(value for value in op.seen if value not in gone))
        for op in without(history, client, since, 99).operations
    )
    assert history.final is not None
    final = {key: tuple(value for value in values if value not in gone) for key, values in history.final.items()}
    return replace(history, operations=operations, final=final), client


def a_call_outlived_its_deadline(history: History, rng: random.Random) -> tuple[History, object]:
    late = rng.choice(history.operations)
    return changed(history, late, deadline=late.end - 0.101)


def a_read_during_the_fault_was_slow(history: History, rng: random.Random) -> tuple[History, object]:
    """Slower than twice the calm and an attempt, though no pause of its client is too long."""
    readers = [op for op in history.of(Kind.READ) if op.client.startswith("reader") and 1.5 < op.start < 2.5]
    before, slow = rng.choice(
        [(a, b) for a, b in pairwise(sorted(readers, key=lambda op: (op.client, op.end))) if a.client == b.client]
    )
    end = before.end + GAP - 0.01
    history = without(history, slow.client, slow.end, end)
    return changed(history, slow, end=end, deadline=None)


def a_read_returned_what_nobody_sent(history: History, rng: random.Random) -> tuple[History, object]:
    read, value = pick(history, rng, Kind.READ, Outcome.OK), -1 - rng.randrange(100)
    return changed(history, read, seen=(*(read.seen or ()), value))[0], value


def a_read_returned_what_had_failed(history: History, rng: random.Random) -> tuple[History, object]:
    read, failed = pick(history, rng, Kind.READ, Outcome.OK), pick(history, rng, Kind.APPEND, Outcome.FAILED)
    assert failed.value is not None
    return changed(history, read, seen=(*(read.seen or ()), failed.value))[0], failed


def something_was_left(history: History, rng: random.Random) -> tuple[History, object]:
    leak = Leak(kind=rng.choice(list(LeakKind)), what="of somebody")
    return replace(history, leaks=(leak,)), leak


def a_node_that_is_to_be_spared_serves_on(history: History, rng: random.Random) -> tuple[History, object]:
    during = [op for op in history.of(Kind.READ) if history.faults[0].during(op)]
    chosen = set(rng.sample(range(len(during)), len(during) // 5))
    moved = {id(op): replace(op, node="b") for n, op in enumerate(during) if n in chosen}
    operations = tuple(moved.get(id(op), op) for op in history.operations)
    return replace(history, operations=operations), list(moved.values())


def a_node_was_given_up(history: History, rng: random.Random) -> tuple[History, object]:
    event = rng.choice([{"event": "NodeDown"}, {"event": "BreakerChanged", "was": "closed", "now": "open"}])
    at = rng.uniform(0, 4)
    told = {**event, "at": at, "node": "b", "why": "no answer"}
    return replace(history, events=(*history.events, told)), f"{event['event']} of b at {at:.3f} s (no answer)"


LIES: list[tuple[Lie, set[str], set[str]]] = [  # the lie, who must find just it, who may see it, too
    (an_acknowledged_append_is_gone, {"lost"}, {"order"}),
    (an_append_is_there_twice, {"duplicated"}, {"order"}),
    (an_append_was_read_twice, {"duplicated"}, {"order"}),
    (a_failed_append_is_there, {"phantom"}, set()),
    (a_value_is_there_that_nobody_sent, {"phantom"}, set()),
    (a_read_returned_what_nobody_sent, {"phantom"}, {"order"}),
    (a_read_returned_what_had_failed, {"phantom"}, {"order", "stale"}),
    (a_read_misses_an_append_of_its_own, {"stale"}, {"order"}),
    (a_read_misses_what_was_seen_before, {"stale"}, {"order"}),
    (a_read_has_two_values_the_wrong_way_round, {"order"}, set()),
    (an_append_stands_after_a_later_one, {"order"}, {"stale"}),
    (a_read_failed, {"reads-go-on", "failed"}, set()),
    (a_read_took_too_long, {"reads-go-on", "gaps"}, {"stale", "latency"}),
    (a_read_during_the_fault_was_slow, {"latency"}, set()),
    (a_reader_fell_silent, {"reads-go-on", "gaps"}, set()),
    (a_writer_fell_silent, {"gaps"}, set()),
    (a_call_outlived_its_deadline, {"overshoot"}, set()),
    (something_was_left, {"leaks"}, set()),
    (a_node_that_is_to_be_spared_serves_on, {"spared"}, set()),
    (a_node_was_given_up, {"steady"}, set()),
]


def shown(verdict: Verdict) -> list[object]:
    return [found.client if isinstance(found, Pause) else found for found in verdict.evidence]


@cache
def cached(make: HISTORY, seed: int) -> History:
    return make(seed)


@pytest.mark.parametrize(("lie", "finders", "others"), LIES, ids=[lie.__name__ for lie, *_ in LIES])
def test_one_lie_is_found_just_it_and_by_nobody_whom_it_does_not_concern(
    lie: Lie, finders: set[str], others: set[str], honest: HISTORY
) -> None:
    told, missed = 0, {}
    for seed in LIARS:
        if (made := lie(cached(honest, seed), random.Random(seed))) is None:
            continue
        told += 1
        history, untrue = made
        untruths = untrue if isinstance(untrue, list) else [untrue]
        verdicts = judged(history)
        found = {name for name, verdict in verdicts.items() if verdict.state is State.BROKEN}
        if not finders <= found <= finders | others or any(shown(verdicts[name]) != untruths for name in finders):
            missed[seed] = (untrue, wrong(verdicts))

    assert missed == {}
    assert told > len(LIARS) / 4


# --- what proves nothing is unknown, and what is broken stays broken


@pytest.mark.parametrize("name", JUDGES)
def test_run_in_which_nothing_happened_is_unknown(name: str) -> None:
    assert JUDGES[name].judge(History(final={}, leaks=())).state is State.UNKNOWN


@pytest.mark.parametrize("name", sorted(set(JUDGES) - {"gaps", "overshoot", "leaks", "felt", "steady"}))
def test_run_in_which_too_little_happened_is_unknown(name: str, honest: HISTORY) -> None:
    history = honest(1)
    few = tuple(op for op in history.operations if op.start > 1.5 and op.end < 1.7)
    there = {op.value for op in few if op.kind is Kind.APPEND and op.acknowledged}
    few = tuple(replace(op, seen=()) if op.seen is not None else op for op in few)
    short = replace(history, operations=few, final={1: tuple(sorted(there))})
    checker = replace(JUDGES[name], gap=9) if name == "reads-go-on" else JUDGES[name]  # type: ignore[type-var]

    assert few
    assert checker.judge(short).state is State.UNKNOWN


@pytest.mark.parametrize("name", ["lost", "duplicated", "phantom", "order"])
def test_run_without_a_final_read_is_unknown(name: str, honest: HISTORY) -> None:
    verdict = JUDGES[name].judge(replace(honest(1), final=None))

    assert verdict.state is State.UNKNOWN
    assert "could not be read" in verdict.why


def test_run_after_which_nobody_looked_for_leaks_is_unknown(honest: HISTORY) -> None:
    assert Leaks().judge(replace(honest(1), leaks=None)).state is State.UNKNOWN


def test_run_with_few_calls_that_did_not_pause_is_unknown() -> None:
    few = tuple(read("r", n, n + 0.9) for n in range(5))

    assert Gaps(read=2, least=6).judge(History(operations=few)).state is State.UNKNOWN
    assert Gaps(read=2, least=5).judge(History(operations=few)).state is State.OK


def test_run_in_which_no_call_came_near_its_deadline_is_unknown(honest: HISTORY) -> None:
    history = honest(1)
    relaxed = replace(history, operations=tuple(replace(op, deadline=op.start + 10) for op in history.operations))
    without_any = replace(history, operations=tuple(replace(op, deadline=None) for op in history.operations))

    assert Overshoot().judge(relaxed).state is State.UNKNOWN
    assert Overshoot().judge(without_any).state is State.UNKNOWN


def test_short_run_with_a_loss_is_broken_all_the_same() -> None:
    assert Lost().judge(History(operations=(append("w", 0, 1, 7),), final={})).state is State.BROKEN


@pytest.mark.parametrize("name", ["reads-go-on", "latency", "felt", "spared"])
def test_run_without_a_fault_is_unknown(name: str, honest: HISTORY) -> None:
    assert JUDGES[name].judge(replace(honest(1), faults=())).state is State.UNKNOWN


# --- whether a fault was felt


def test_fault_that_nobody_noticed_is_unknown(honest: HISTORY) -> None:
    history = honest(1)
    smooth = tuple(op for op in history.operations if op.acknowledged)
    later = Fault(what="nothing", start=4.5, end=4.6)

    none = Felt().judge(replace(history, operations=smooth, events=()))
    one_of_two = Felt().judge(replace(history, operations=smooth, faults=(*history.faults, later)))

    assert none.state is State.UNKNOWN
    assert one_of_two.state is State.UNKNOWN
    assert "1 of 2 faults were not felt, the first: nothing at 4.500 s" in one_of_two.why


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNKNOWN])
def test_fault_is_felt_by_a_call_under_way_that_does_not_succeed(outcome: Outcome) -> None:
    fault = Fault(what="a cut", start=1.0, end=2.0)
    felt = [(0.5, 1.5), (1.2, 1.4), (1.5, 9.0), (0.5, 9.0)]
    not_felt = [(0.1, 0.9), (2.1, 2.2), (1.95, 2.05)]  # the last: healing it may have cut the call

    for start, end in felt + not_felt:
        history = History(operations=(append("w", start, end, 1, outcome),), faults=(fault,))
        assert (Felt().judge(history).state is State.OK) is ((start, end) in felt)


def test_fault_that_the_client_told_of_is_felt_and_other_events_say_nothing() -> None:
    fault = Fault(what="a cut", start=1.0)  # never healed: the record ends before

    told = ["CallRepeated", "NodeDown", "OutcomeLeftOpen", "FaultShown"]
    for event, state in [*((event, State.OK) for event in told), ("NodeUp", State.UNKNOWN)]:
        assert (
            Felt().judge(History(faults=(fault,), events=({"event": event, "at": 50.0, "fault": "a cut"},))).state
            is state
        )


def test_fault_that_says_itself_that_it_did_nothing_is_not_felt_whatever_else_went_wrong() -> None:
    failed, repeated = append("w", 1.2, 1.4, 1, Outcome.FAILED), {"event": "CallRepeated", "at": 1.5, "why": "cut"}

    for shown, state in [(False, State.UNKNOWN), (None, State.OK), (True, State.OK)]:
        fault = Fault(what="a strike", start=1.0, end=2.0, shown=shown)
        history = History(operations=(failed,), faults=(fault,), events=(repeated,))
        assert Felt().judge(history).state is state


def test_what_showed_of_one_fault_is_no_word_of_another_at_the_same_time() -> None:
    faults = (Fault(what="a strike", start=1.0, end=2.0), Fault(what="a hole", start=1.2, end=1.8))
    shown = {"event": "FaultShown", "at": 1.7, "fault": "a strike", "what": "1 struck"}

    found = Felt().judge(History(faults=faults, events=(shown,)))

    assert found.state is State.UNKNOWN
    assert "1 of 2 faults were not felt, the first: a hole" in found.why


@pytest.mark.parametrize(
    "why",
    [
        "refused for now: the transaction met another one on a (40001 SerializationError), answered",
        "refused for now: the transaction met another one on a (40P01 DeadlockDetectedError), answered",
        "SerializationError: could not serialize access due to concurrent update",
    ],
)
def test_transactions_that_meet_do_not_make_a_fault_felt(why: str) -> None:
    fault = Fault(what="sessions ended", start=1.0, end=2.0)
    repeated = {"event": "CallRepeated", "at": 1.5, "why": why}
    gave_up = replace(append("w", 1.2, 1.4, 1, Outcome.FAILED), error=why)

    assert Felt().judge(History(operations=(gave_up,), faults=(fault,), events=(repeated,))).state is State.UNKNOWN


def test_fault_felt_too_little_is_unknown(honest: HISTORY) -> None:
    assert Felt(least=10_000).judge(honest(1)).state is State.UNKNOWN


# --- where calls go


def test_node_that_had_no_share_to_lose_proves_nothing(honest: HISTORY) -> None:
    history = honest(1)
    away = tuple(replace(op, node="c") if op.node == "b" else op for op in history.operations)

    assert JUDGES["spared"].judge(replace(history, operations=away)).state is State.UNKNOWN


def test_what_the_harness_tells_says_nothing_of_whether_a_client_is_steady() -> None:
    shown = {"event": "FaultShown", "at": 1.0, "fault": "a hole", "what": "no answer"}
    calm = {"event": "BreakerChanged", "at": 1.0, "node": "b", "was": "open", "now": "closed", "why": "it answers"}
    cold = {"event": "NodeDown", "at": -0.5, "node": "b", "why": "no answer"}

    assert Steady().judge(History(events=(shown,))).state is State.UNKNOWN
    assert Steady().judge(History(events=(shown, calm, cold))).state is State.OK


# --- reads while a node is away


def test_fault_that_the_node_does_not_feel_is_unknown(honest: HISTORY) -> None:
    history = honest(1)
    during = next(op for op in history.of(Kind.READ) if op.start > 2)

    verdict = JUDGES["reads-go-on"].judge(changed(history, during, node="b")[0])

    assert verdict.state is State.UNKNOWN
    assert "b served 1 reads during the fault" in verdict.why


def test_fault_on_a_node_that_nobody_used_is_unknown(honest: HISTORY) -> None:
    history = honest(1)
    elsewhere = tuple(replace(op, node="c") for op in history.operations)

    verdict = JUDGES["reads-go-on"].judge(replace(history, operations=elsewhere))

    assert verdict.state is State.UNKNOWN
    assert "nobody was to miss it" in verdict.why


def test_answer_under_way_when_the_fault_came_is_not_held_against_it(honest: HISTORY) -> None:
    history = honest(1)
    under_way = next(op for op in history.of(Kind.READ) if op.start < history.faults[0].start < op.end)

    assert JUDGES["reads-go-on"].judge(changed(history, under_way, node="b")[0]).state is State.OK


# --- failed calls, slow ones, and those that were run again


@pytest.mark.parametrize(
    ("bounds", "state"),
    [
        ({}, State.BROKEN),
        ({"reads": 1, "appends": 1}, State.BROKEN),
        ({"reads": 2}, State.BROKEN),
        ({"reads": 2, "appends": 1}, State.OK),
        ({"reads": "any", "appends": "any", "unknown": 1}, State.BROKEN),
        ({"reads": "any", "appends": "any", "unknown": 2}, State.OK),
        ({"reads": 2, "appends": 1, "unknown": 2}, State.OK),
        ({"reads": 2, "appends": 1, "unknown": 0}, State.BROKEN),
        ({"reads": 2, "appends": 1, "least": 9}, State.UNKNOWN),
        ({"reads": 2, "appends": "any", "least": 4}, State.UNKNOWN),
        ({"reads": 1, "appends": "any", "least": 4}, State.BROKEN),
    ],
)
def test_as_many_calls_may_fail_as_the_bounds_say(bounds: dict[str, Any], state: State) -> None:
    early = read("r", -1, -0.9, Outcome.FAILED)
    reads = [read("r", n, n + 1, outcome) for n, outcome in enumerate([Outcome.OK, Outcome.FAILED, Outcome.FAILED])]
    outcomes = [Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN, Outcome.UNKNOWN, Outcome.RESULT_LOST]
    appends = [append("w", n, n + 1, n, outcome) for n, outcome in enumerate(outcomes)]

    checker = Failed(**({"least": 3} | bounds))

    assert checker.judge(History(operations=(early, *reads, *appends))).state is state


def test_doubts_of_a_client_that_does_without_tokens_are_not_bounded() -> None:
    doubts = tuple(append("w", n, n + 1, n, Outcome.UNKNOWN) for n in range(3))
    checker = Failed(reads="any", appends="any", unknown=0, least=3)

    assert checker.judge(History(operations=doubts)).state is State.BROKEN
    verdict = checker.judge(History(head={"without": "tokens"}, operations=doubts))
    assert verdict.state is State.OK
    assert "3 of 3 appends are unknown, not bounded, as the client does without tokens" in verdict.told


def timed(calm: float, during: float, count: int = 200) -> History:
    """Reads of which two in a hundred take as long as that, before a fault at 100 s and after."""
    takes = lambda n, seconds: seconds if n % 50 == 0 else 0.001  # noqa: E731
    reads = [read("r", n / 10, n / 10 + takes(n, calm)) for n in range(count)]
    reads += [read("r", 100 + n / 10, 100 + n / 10 + takes(n, during), Outcome.FAILED) for n in range(count)]
    return History(operations=tuple(reads), faults=(Fault(what="a hole", start=100.0, end=200.0),))


@pytest.mark.parametrize(
    ("calm", "during", "state"),
    [
        (0.010, 0.519, State.OK),
        (0.010, 0.521, State.BROKEN),
        (0.030, 0.559, State.OK),
        (0.030, 0.561, State.BROKEN),
    ],
)
def test_reads_may_be_twice_as_slow_during_a_fault_and_wait_for_one_attempt(
    calm: float, during: float, state: State
) -> None:
    assert Latency(attempt=0.5).judge(timed(calm, during)).state is state


def test_reads_that_suffer_while_a_fault_is_being_injected_are_no_calm() -> None:
    reads = [read("r", n / 10, n / 10 + 0.001) for n in range(200)]
    slow = [read("r", 30 + n / 10, 30 + n / 10 + 2) for n in range(150)]
    after = [read("r", 60 + n / 10, 60 + n / 10 + 0.001) for n in range(101)]
    history = History(operations=(*reads, *slow, *after), faults=(Fault(what="x", began=30, start=55, end=99),))

    found = Latency(attempt=0.5).judge(history)

    assert found.state is State.BROKEN
    assert "of 200 before 0.001 s" in found.why


def test_one_read_in_a_hundred_may_be_slower() -> None:
    history = timed(0.01, 0.001)
    slow = [replace(op, end=op.end + 3) if op.start in (110.0, 111.0, 112.0) else op for op in history.operations]

    assert Latency(attempt=0.5).judge(replace(history, operations=tuple(slow))).state is State.BROKEN
    slow[-1:] = [read("r", 130 + n / 10, 130.001 + n / 10) for n in range(101)]
    assert Latency(attempt=0.5).judge(replace(history, operations=tuple(slow))).state is State.OK


def test_what_a_fault_did_after_its_end_or_beside_it_is_no_calm() -> None:
    history = timed(0.01, 0.5)
    later = replace(history, faults=(Fault(what="a cut", start=0.0, end=0.05), *history.faults))

    assert Latency(attempt=0.6).judge(history).state is State.OK
    assert Latency(attempt=0.6).judge(later).state is State.UNKNOWN


def test_transactions_contend_if_they_are_run_again_or_fail() -> None:
    alone = append("w", 0, 1, 1)
    cases = {
        State.UNKNOWN: [replace(alone, attempts=1), replace(alone, attempts=2), replace(alone, start=-1, attempts=2)],
        State.OK: [replace(alone, attempts=2), replace(alone, attempts=None, outcome=Outcome.FAILED)],
    }

    for state, operations in cases.items():
        assert Contended(least=2).judge(History(operations=tuple(operations))).state is state


# --- details


def append(client: str, start: float, end: float, value: int, outcome: Outcome = Outcome.OK, key: int = 1) -> Operation:
    return Operation(client=client, kind=Kind.APPEND, start=start, end=end, outcome=outcome, value=value, key=key)


def read(client: str, start: float, end: float, outcome: Outcome = Outcome.OK, *seen: int) -> Operation:
    return Operation(client=client, kind=Kind.READ, start=start, end=end, outcome=outcome, key=1, seen=seen)


def test_append_of_unknown_fate_may_be_there_or_not() -> None:
    there = (append("w", 0, 1, 7), append("w", 1, 2, 8, Outcome.UNKNOWN))

    for final in ((7,), (7, 8), (8, 7)):
        history = History(operations=there, final={1: final})
        assert [type(checker)(least=1).judge(history).state for checker in TABLE] == [State.OK] * 3  # type: ignore[call-arg]


def test_unknown_append_may_be_applied_after_later_ones_and_an_acknowledged_one_may_not() -> None:
    late = (append("w", 0, 1, 7, Outcome.UNKNOWN), append("w", 1.1, 2, 8), read("w", 2, 3, Outcome.OK, 8, 7))

    assert Order(least=1).judge(History(operations=late, final={1: (8, 7)})).state is State.OK
    told = (replace(late[0], outcome=Outcome.OK), *late[1:])
    assert Order(least=1).judge(History(operations=told, final={1: (8, 7)})).evidence == (told[0],)


def test_append_that_is_there_twice_and_unknown_is_a_duplicate() -> None:
    unknown = append("w", 0, 1, 7, Outcome.UNKNOWN)

    assert Duplicated().judge(History(operations=(unknown,), final={1: (7,), 2: (7,)})).evidence == (unknown,)


def test_append_that_was_read_twice_is_a_duplicate_though_a_failover_lost_the_second() -> None:
    twice = append("w", 0, 1, 7)
    history = History(operations=(twice, read("r", 1, 2, Outcome.OK, 7, 7)), final={1: (7,)})

    assert Duplicated().judge(history).evidence == (twice,)
    assert Duplicated().judge(replace(history, final={1: ()})).evidence == (twice,)
    assert Duplicated(least=1).judge(
        replace(history, operations=(twice, *[read("r", 1, 2, Outcome.OK, 7)] * 2))
    ).state is (State.OK)


def test_what_others_append_need_not_be_seen() -> None:
    others = (append("x", 0, 1, 7), append("w", 0, 1, 8), read("w", 2, 3, Outcome.OK, 8), read("r", 2, 3))

    assert Stale(least=1).judge(History(operations=others)).state is State.OK


def test_appends_of_the_warm_up_count_and_its_failed_reads_do_not(honest: HISTORY) -> None:
    history = honest(1)
    early = next(op for op in history.operations if op.kind is Kind.APPEND and op.start < 0 and op.acknowledged)
    cold = next(op for op in history.operations if op.kind is Kind.READ and op.start < 0)
    assert history.final is not None
    left = {key: tuple(value for value in values if value != early.value) for key, values in history.final.items()}

    assert JUDGES["lost"].judge(replace(history, final=left)).evidence == (early,)
    assert JUDGES["reads-go-on"].judge(changed(history, cold, outcome=Outcome.FAILED)[0]).state is State.OK


@pytest.mark.parametrize(("over", "state"), [(0.099, State.OK), (0.101, State.BROKEN)])
def test_call_may_end_a_tenth_of_a_second_after_its_deadline(over: float, state: State) -> None:
    late = replace(read("r", 0, 1 + over, Outcome.FAILED), deadline=1.0)

    assert Overshoot().judge(History(operations=(late,))).state is state


@pytest.mark.parametrize(("late", "state"), [(0.0, State.OK), (0.099, State.OK), (0.101, State.BROKEN)])
def test_call_that_is_given_up_must_end_at_once(late: float, state: State) -> None:
    calm = replace(read("r", 0, 1), deadline=10.0)
    given_up = {"event": "CallGivenUp", "at": 1.0, "late": late}

    assert Overshoot().judge(History(operations=(calm,), events=(given_up,))).state is state


def test_verdict_shows_who_was_told_what() -> None:
    operations = [
        Operation(
            client="reader 1",
            kind=Kind.READ,
            start=n,
            end=n + 1,
            outcome=Outcome.FAILED,
            key=4,
            error="OSError: no route",
        )
        for n in range(7)
    ]

    said = str(JUDGES["reads-go-on"].judge(History(operations=tuple(operations))))

    assert said.startswith("broken: 7 of 7 reads failed: reader 1 read 4 at 0.000 s: failed (OSError: no route); ")
    assert said.endswith("; and 2 more")


# --- pauses


def test_pause_is_measured_per_client_and_from_end_to_end() -> None:
    operations = (
        read("x", 0.0, 1.0),
        read("x", 1.1, 4.0),  # waited for 3 s after the last one ended
        read("y", 0.0, 2.0),
        read("y", 2.0, 4.0),
    )

    assert sorted(pauses(History(operations=operations), Kind.READ)) == [Pause(2.0, 2.0, "y"), Pause(3.0, 1.0, "x")]


def test_operation_of_another_kind_or_that_failed_does_not_end_a_pause() -> None:
    operations = (
        read("x", 0.0, 1.0),
        read("x", 1.0, 2.0, Outcome.FAILED),
        append("x", 2.0, 3.0, 1),
        read("x", 3.0, 3.5),
    )

    assert pauses(History(operations=operations), Kind.READ) == [Pause(2.5, 1.0, "x")]


def test_client_that_was_never_answered_pauses_for_the_whole_run() -> None:
    operations = (read("x", 0.0, 5.0, Outcome.FAILED), read("y", 0.0, 1.0), read("y", 1.0, 6.0))

    assert max(pauses(History(operations=operations), Kind.READ)) == Pause(6.0, 0.0, "x")


def test_client_of_the_warm_up_that_never_came_back_pauses_for_the_whole_run() -> None:
    operations = (read("x", -1.0, -0.5), read("y", 0.0, 2.0), read("y", 2.0, 4.0))

    assert max(pauses(History(operations=operations), Kind.READ)) == Pause(4.0, 0.0, "x")


def test_client_that_was_told_to_stop_does_not_pause_while_another_ends_its_last_call() -> None:
    operations = (read("x", 0.0, 1.0), read("y", 0.0, 0.5), read("y", 0.6, 9.0, Outcome.FAILED))

    found = pauses(History(operations=operations, stopped=1.5), Kind.READ)

    assert sorted(found) == [Pause(1.0, 0.0, "x"), Pause(8.5, 0.5, "y")]


def test_nobody_pauses_where_nothing_happened() -> None:
    assert pauses(History(), Kind.READ) == []


# --- bounds


def test_every_checker_says_what_it_promises() -> None:
    assert all(kind.__doc__ for kind in CHECKERS.values())


@pytest.mark.parametrize(
    ("kind", "bounds"),
    [
        (ReadsGoOn, {"gap": 0, "away": "b"}),
        (ReadsGoOn, {"gap": "soon", "away": "b"}),
        (ReadsGoOn, {"gap": 1, "away": "b", "least": 0}),
        (ReadsGoOn, {"gap": 1, "away": ""}),
        (Gaps, {}),
        (Failed, {"reads": "any", "appends": "any"}),
        (Failed, {"reads": -1}),
        (Latency, {"attempt": 0}),
        (Latency, {"attempt": 1, "factor": 0.5}),
        (Gaps, {"read": "none"}),
        (Overshoot, {"by": -1}),
    ],
)
def test_bounds_that_make_no_sense_are_refused(kind: Any, bounds: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        kind(**bounds)
