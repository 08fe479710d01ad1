"""Checkers against seeded histories: honest ones, and the same with one lie in them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaos.checkers import CHECKERS, Duplicated, Lost, Pause, Phantom, ReadsGoOn, State, pauses
from chaos.history import Fault, History, Kind, Operation, Outcome
from dbguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.checkers import Checker

SEEDS = range(50)
GAP = 0.5
READS = ReadsGoOn(gap=GAP, away="b", least=20)
FAULT = Fault(what="a hole", start=2.0, end=8.0)
FINAL = [Lost(least=20), Duplicated(least=20), Phantom(least=20)]


def honest(rng: random.Random) -> History:
    """Ten seconds of three readers and two writers; b is away from 2 s to 8 s; some appends have an open fate."""
    operations: list[Operation] = []
    final: list[int] = []
    values = iter(range(10_000))
    for client in ("reader 0", "reader 1", "reader 2", "writer 0", "writer 1"):
        now = rng.uniform(-1, -0.9)
        while now < 10:
            start = now + rng.uniform(0, 0.1)
            end = now = start + rng.uniform(0.001, 0.2)
            if client.startswith("reader"):
                away = end > FAULT.start and start < FAULT.end
                node = "c" if away else rng.choice("bc")
                operations.append(read(client, start, end, node=node))
            else:
                outcome = rng.choices(list(Outcome), [80, 10, 7, 3])[0]
                value = next(values)
                operations.append(append(client, start, end, value, outcome))
                if outcome in (Outcome.OK, Outcome.RESULT_LOST) or (outcome is Outcome.UNKNOWN and rng.random() < 0.5):
                    final.append(value)
    operations.sort(key=lambda op: op.end)
    rng.shuffle(final)
    return History(operations=tuple(operations), faults=(FAULT,), final=tuple(final))


def read(client: str, start: float, end: float, outcome: Outcome = Outcome.OK, node: str | None = "c") -> Operation:
    return Operation(client=client, kind=Kind.READ, start=start, end=end, outcome=outcome, node=node, value=1)


def append(client: str, start: float, end: float, value: int, outcome: Outcome) -> Operation:
    return Operation(client=client, kind=Kind.APPEND, start=start, end=end, outcome=outcome, value=value)


def pick(history: History, rng: random.Random, kind: Kind, *outcomes: Outcome) -> Operation:
    return rng.choice([op for op in history.of(kind) if op.outcome in outcomes])


def changed(history: History, old: Operation, **change: object) -> History:
    operations = tuple(replace(op, **change) if op is old else op for op in history.operations)  # type: ignore[arg-type]
    return replace(history, operations=operations)


# --- lies: each takes an honest history and makes one thing in it untrue


def an_acknowledged_append_is_gone(history: History, rng: random.Random) -> History:
    gone = pick(history, rng, Kind.APPEND, Outcome.OK, Outcome.RESULT_LOST)
    assert history.final is not None
    return replace(history, final=tuple(value for value in history.final if value != gone.value))


def an_append_is_there_twice(history: History, rng: random.Random) -> History:
    assert history.final is not None
    return replace(history, final=(*history.final, rng.choice(history.final)))


def a_failed_append_is_there(history: History, rng: random.Random) -> History:
    failed = pick(history, rng, Kind.APPEND, Outcome.FAILED)
    assert history.final is not None
    return replace(history, final=(*history.final, failed.value))


def a_value_is_there_that_nobody_sent(history: History, rng: random.Random) -> History:
    assert history.final is not None
    return replace(history, final=(*history.final, 20_000 + rng.randrange(100)))


def a_read_failed(history: History, rng: random.Random) -> History:
    return changed(history, pick(history, rng, Kind.READ, Outcome.OK), outcome=Outcome.FAILED)


def a_read_took_too_long(history: History, rng: random.Random) -> History:
    slow = pick(history, rng, Kind.READ, Outcome.OK)
    late = slow.end + GAP
    rest = [
        op
        for op in history.operations
        if op is not slow and not (op.client == slow.client and slow.end < op.end < late)
    ]
    return replace(history, operations=(*rest, replace(slow, end=late)))


def a_reader_fell_silent(history: History, rng: random.Random) -> History:
    client, since = rng.choice(["reader 0", "reader 1", "reader 2"]), rng.uniform(-0.2, 9)
    rest = (op for op in history.operations if op.client != client or op.end < since)
    return replace(history, operations=tuple(rest))


LIES: list[tuple[Callable[[History, random.Random], History], Checker]] = [
    (an_acknowledged_append_is_gone, FINAL[0]),
    (an_append_is_there_twice, FINAL[1]),
    (a_failed_append_is_there, FINAL[2]),
    (a_value_is_there_that_nobody_sent, FINAL[2]),
    (a_read_failed, READS),
    (a_read_took_too_long, READS),
    (a_reader_fell_silent, READS),
]


@pytest.mark.parametrize("seed", SEEDS)
def test_honest_history_is_ok(seed: int) -> None:
    history = honest(random.Random(seed))

    for checker in (READS, *FINAL):
        verdict = checker.judge(history)
        assert verdict.state is State.OK, verdict


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("lie", "checker"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_one_lie_is_found_by_its_checker_and_by_no_other(
    lie: Callable[[History, random.Random], History], checker: Checker, seed: int
) -> None:
    rng = random.Random(seed)
    history = lie(honest(rng), rng)

    states = {type(each).__name__: each.judge(history).state for each in (READS, *FINAL)}

    expected = dict.fromkeys(states, State.OK) | {type(checker).__name__: State.BROKEN}
    assert states == expected


# --- what proves nothing is unknown, and what is broken stays broken


@pytest.mark.parametrize("checker", [READS, *FINAL], ids=lambda checker: type(checker).__name__)
def test_run_in_which_too_little_happened_is_unknown(checker: Checker) -> None:
    history = honest(random.Random(1))
    few = [op for op in history.operations if 1 < op.start < 3]
    there = {op.value for op in few if op.kind is Kind.APPEND}
    assert history.final is not None
    short = replace(
        history, operations=tuple(few[:15]), final=tuple(value for value in history.final if value in there)
    )

    assert checker.judge(History(final=())).state is State.UNKNOWN
    assert checker.judge(replace(short, final=())).state is not State.OK


@pytest.mark.parametrize("checker", FINAL, ids=lambda checker: type(checker).__name__)
def test_run_without_a_final_read_is_unknown(checker: Checker) -> None:
    verdict = checker.judge(replace(honest(random.Random(1)), final=None))

    assert verdict.state is State.UNKNOWN
    assert "could not be read" in verdict.why


def test_short_run_with_a_loss_is_broken_all_the_same() -> None:
    history = History(operations=(append("writer 0", 0, 1, 7, Outcome.OK),), final=())

    assert Lost().judge(history).state is State.BROKEN


def test_run_without_a_fault_is_unknown() -> None:
    verdict = READS.judge(replace(honest(random.Random(1)), faults=()))

    assert verdict.state is State.UNKNOWN
    assert "0 reads were made during the faults" in verdict.why


def test_fault_that_was_not_felt_is_unknown() -> None:
    history = honest(random.Random(1))
    during = next(op for op in history.of(Kind.READ) if op.start > 3)

    verdict = READS.judge(changed(history, during, node="b"))

    assert verdict.state is State.UNKNOWN
    assert "b served 1 reads during the fault" in verdict.why


def test_fault_on_a_node_that_nobody_used_is_unknown() -> None:
    history = honest(random.Random(1))
    elsewhere = tuple(replace(op, node="c") for op in history.operations)

    verdict = READS.judge(replace(history, operations=elsewhere))

    assert verdict.state is State.UNKNOWN
    assert "nobody was to miss it" in verdict.why


def test_answer_under_way_when_the_fault_came_is_not_held_against_it() -> None:
    history = honest(random.Random(1))
    under_way = next(op for op in history.of(Kind.READ) if op.start < FAULT.start < op.end)

    assert READS.judge(changed(history, under_way, node="b")).state is State.OK


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN])
def test_append_of_unknown_fate_may_be_there_or_not(outcome: Outcome) -> None:
    there = (append("writer 0", 0, 1, 7, Outcome.OK), append("writer 0", 1, 2, 8, outcome))

    for final in ((7,), (7, 8)):
        history = History(operations=there, final=final)
        assert [type(checker)(least=1).judge(history).state for checker in FINAL] == [State.OK] * 3


def test_appends_of_the_warm_up_count_and_its_reads_do_not() -> None:
    history = honest(random.Random(1))
    early = next(op for op in history.operations if op.kind is Kind.APPEND and op.start < 0 and op.acknowledged)
    assert history.final is not None
    lost = replace(history, final=tuple(value for value in history.final if value != early.value))
    cold = next(op for op in history.operations if op.kind is Kind.READ and op.start < 0)

    assert FINAL[0].judge(lost).state is State.BROKEN
    assert READS.judge(changed(history, cold, outcome=Outcome.FAILED)).state is State.OK


def test_verdict_shows_who_was_told_what() -> None:
    operations = [
        replace(read("reader 1", n, n + 1, Outcome.FAILED, node=None), error="OSError: no route") for n in range(7)
    ]

    said = str(READS.judge(History(operations=tuple(operations))))

    assert said.startswith("broken: 7 of 7 reads failed: reader 1 read 1 at 0.000 s: failed (OSError: no route); ")
    assert said.endswith("; and 2 more")


# --- pauses


def test_pause_is_measured_per_client_and_from_end_to_end() -> None:
    operations = [
        read("x", 0.0, 1.0),
        read("x", 1.1, 4.0),  # waited for 3 s after the last one ended
        read("y", 0.0, 2.0),
        read("y", 2.0, 4.0),
    ]

    assert sorted(pauses(operations)) == [Pause(2.0, 2.0, "y"), Pause(3.0, 1.0, "x")]


def test_failed_operation_does_not_end_a_pause() -> None:
    operations = [read("x", 0.0, 1.0), read("x", 1.0, 2.0, Outcome.FAILED), read("x", 2.0, 3.5)]

    assert pauses(operations) == [Pause(2.5, 1.0, "x")]


def test_client_that_was_never_answered_pauses_for_the_whole_run() -> None:
    operations = [read("x", 0.0, 5.0, Outcome.FAILED), read("y", 0.0, 1.0), read("y", 1.0, 6.0)]

    assert max(pauses(operations)) == Pause(6.0, 0.0, "x")


def test_nobody_pauses_where_nothing_happened() -> None:
    assert pauses([]) == []


# --- bounds


def test_every_checker_says_what_it_promises_in_its_name() -> None:
    assert {name: kind.__doc__ is not None for name, kind in CHECKERS.items()} == dict.fromkeys(CHECKERS, True)


@pytest.mark.parametrize("bounds", [{"gap": 0}, {"gap": "soon"}, {"least": 0}, {"away": ""}])
def test_bounds_that_make_no_sense_are_refused(bounds: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ReadsGoOn(**{"gap": 1, "away": "b"} | bounds)  # type: ignore[arg-type]
