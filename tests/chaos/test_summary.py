"""A run in a few numbers: counted from the history, whoever judged it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaos.checkers import Pause, State, Verdict, pauses
from chaos.history import History, Kind, Operation, Outcome
from chaos.play import Result
from chaos.summary import summary_of, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.summary import Summary


@pytest.fixture
def history(honest: Callable[[int], History]) -> History:
    return replace(honest(7), head={"scenario": "x", "client": "guard", "seed": 7})


def summed(history: History, state: State = State.OK) -> Summary:
    return summary_of(Result(history, {"felt": Verdict(state, "so it is")}))


def test_honest_run_has_calls_and_faults_and_nothing_that_is_wrong(history: History) -> None:
    found = summed(history)

    assert (found.scenario, found.client, found.seed) == ("x", "guard", 7)
    assert (found.lost, found.duplicated, found.stale, found.failed_reads) == (0, 0, 0, 0)
    assert (found.faults, found.calls, found.state) == (1, len(history.operations), State.OK)
    assert found.unknown == sum(op.outcome is Outcome.UNKNOWN for op in history.operations) > 0
    assert found.longest_pause == max(pauses(history)).seconds > 0


@pytest.mark.parametrize("state", State)
def test_state_is_that_of_the_run(state: State, history: History) -> None:
    assert summed(history, state).state is state


def test_what_is_lost_or_twice_is_counted_though_no_checker_of_the_scenario_looked(history: History) -> None:
    assert history.final is not None
    told = {op.value for op in history.operations if op.kind is Kind.APPEND and op.acknowledged}
    key, values = next((key, values) for key, values in history.final.items() if len(told.intersection(values)) > 2)
    gone = [value for value in values if value in told][:2]
    kept = tuple(value for value in values if value not in gone)
    assert kept

    assert summed(replace(history, final={**history.final, key: kept})).lost == 2
    assert summed(replace(history, final={**history.final, key: (*values, values[0])})).duplicated == 1


def test_table_that_could_not_be_read_leaves_open_what_is_lost(history: History) -> None:
    found = summed(replace(history, final=None))

    assert found.lost is None
    assert found.duplicated is None
    assert found.stale == 0


def test_stale_and_failed_reads_are_counted() -> None:
    def call(start: float, **more: object) -> Operation:
        known = {"client": "o", "kind": Kind.READ, "outcome": Outcome.OK, "key": 1} | more
        return Operation(start=start, end=start + 0.5, **known)  # type: ignore[arg-type]

    operations = (
        call(0.0, kind=Kind.APPEND, value=4),
        call(1.0, seen=()),
        call(2.0, seen=(4,)),
        call(3.0, outcome=Outcome.FAILED, error="OSError: gone"),
        call(-1.0, client="r", outcome=Outcome.FAILED),
    )
    found = summed(History(head={"scenario": "x", "client": "guard", "seed": 1}, operations=operations))

    assert found.stale == 1
    assert found.failed_reads == 2


def test_pause_of_either_kind_ends_with_whatever_is_acknowledged() -> None:
    operations = tuple(
        Operation(client="o", kind=kind, start=end - 0.1, end=end, outcome=Outcome.OK)
        for kind, end in [(Kind.APPEND, 1.0), (Kind.READ, 2.0), (Kind.READ, 3.5), (Kind.APPEND, 4.0)]
    )

    assert pauses(History(operations=operations)) == [Pause(1.5, 2.0, "o")]
    assert pauses(History(operations=operations), Kind.APPEND) == [Pause(3.0, 1.0, "o")]


def test_pauses_of_reads_and_appends_are_those_of_clients_that_do_nothing_else() -> None:
    def call(client: str, kind: Kind, end: float) -> Operation:
        return Operation(client=client, kind=kind, start=end - 0.1, end=end, outcome=Outcome.OK, key=1, value=int(end))

    writer = tuple(call("w", Kind.APPEND, moment) for moment in (1.0, 2.0, 3.5, 4.0))
    owner = (call("o", Kind.APPEND, 1.0), call("o", Kind.READ, 3.25), call("o", Kind.APPEND, 4.0))
    head = {"scenario": "x", "client": "guard", "seed": 1}

    both = summed(History(head=head, operations=(*writer, *owner), stopped=4.0))
    alone = summed(History(head=head, operations=owner, stopped=4.0))

    assert (both.append_pause, both.read_pause) == (1.5, 3.25)  # nobody does nothing but read
    assert (alone.append_pause, alone.read_pause) == (3.0, 3.25)


def test_sum_of_what_nobody_knows_is_unknown() -> None:
    assert total([1, 2]) == 3
    assert total([1, None, 2]) is None
    assert total([]) == 0
