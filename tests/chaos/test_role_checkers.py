"""The checkers of roles, on histories of one failover: from a, killed at 1 s, to b, promoted at 2 s."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from chaos.checkers import Fenced, Recovers, Returns, State
from chaos.history import Fault, History, Kind, Operation, Outcome
from dbguard.errors import ConfigError

KILLED = Fault(what="a killed", began=0.95, start=1.0, end=3.0, healed=3.5)
PROMOTED = Fault(what="b promoted, in place of a", began=1.9, start=2.0, end=3.1, healed=3.8)
ACCEPTED = 2.1


def call(kind: Kind, start: float, end: float, node: str, **change: Any) -> Operation:
    return Operation(client="x", kind=kind, start=start, end=end, outcome=Outcome.OK, node=node, **change)


def failover(seed: int = 1) -> History:
    """Appends flow on a until 1 s, and on b from 2.2 s on; reads are served by c all the time, and by a but from 1 to 3.5 s."""
    rng = random.Random(seed)
    calls = []
    for n in range(500):
        start = -1 + n * 0.012 + rng.random() / 200
        end = start + rng.random() / 100
        if end < KILLED.start or start > ACCEPTED + 0.1:
            calls.append(call(Kind.APPEND, start, end, "a" if end < KILLED.start else "b", value=n))
        away = end > KILLED.start and start < 3.6
        calls.append(call(Kind.READ, start, end, "c" if away else rng.choice("ac")))
    changes = [("a", None, -0.9), ("b", "a", ACCEPTED)]
    return History(
        operations=tuple(sorted(calls, key=lambda op: op.end)),
        faults=(KILLED, PROMOTED),
        stopped=5.0,
        events=tuple({"event": "PrimaryChanged", "at": at, "node": node, "was": was} for node, was, at in changes),
    )


def without(history: History, kind: Kind, start: float, end: float) -> History:
    """Let nothing of a kind end in that time."""
    left = [op for op in history.operations if op.kind is not kind or not start < op.end < end]
    return replace(history, operations=tuple(left))


def with_(history: History, *calls: Operation) -> History:
    return replace(history, operations=(*history.operations, *calls))


JUDGES = [
    Fenced(),
    Recovers(promoted=1.0, healed=1.0, least=2),
    Recovers(promoted=0.5),
    Returns(node="a", within=1.0),
]


@pytest.mark.parametrize("seed", range(50))
def test_honest_failover_raises_no_alarm(seed: int) -> None:
    history = failover(seed)

    found = {str(judge): judge.judge(history) for judge in JUDGES}

    assert {name: str(said) for name, said in found.items() if said.state is not State.OK} == {}


# --- fenced


def test_append_that_the_old_primary_acknowledges_after_the_change_is_caught() -> None:
    wrong = call(Kind.APPEND, 2.3, 2.4, "a", value=9_999)

    said = Fenced().judge(with_(failover(), wrong))

    assert said.state is State.BROKEN
    assert said.evidence == (wrong,)


def test_answer_that_was_on_its_way_when_the_primary_changed_is_none() -> None:
    history = with_(failover(), call(Kind.APPEND, 0.9, ACCEPTED + 0.09, "a", value=9_999))

    assert Fenced().judge(history).state is State.OK
    assert Fenced(within=0.01).judge(history).state is State.BROKEN


def test_append_whose_token_has_told_that_the_old_primary_applied_it_is_none() -> None:
    late = call(Kind.APPEND, 0.9, 2.4, "a", value=9_999)
    proof = {"event": "OutcomeResolved", "at": 2.3, "node": "a", "token": "t", "outcome": "applied"}

    def said(*proofs: dict[str, Any], of: tuple[Operation, ...] = (late,)) -> State:
        history = failover()
        return Fenced().judge(with_(replace(history, events=(*history.events, *proofs)), *of)).state

    assert said(proof) is State.OK
    assert said(proof, of=(late, replace(late, value=10_000))) is State.BROKEN
    for other in ({"outcome": "not applied"}, {"node": "c"}, {"at": 0.8}, {"at": 2.5}):
        assert said(proof | other) is State.BROKEN


def test_reads_of_the_old_primary_and_appends_of_unknown_fate_are_none() -> None:
    open_ = replace(call(Kind.APPEND, 2.3, 2.4, "a", value=9_999), outcome=Outcome.UNKNOWN)

    assert Fenced().judge(with_(failover(), open_, call(Kind.READ, 2.3, 2.4, "a"))).state is State.OK


def test_node_may_be_the_primary_again() -> None:
    history = failover()
    back = {"event": "PrimaryChanged", "at": 4.9, "node": "a", "was": "b"}
    history = replace(without(history, Kind.APPEND, 4.9, 9), events=(*history.events, back))

    assert Fenced(least=2).judge(with_(history, call(Kind.APPEND, 5.1, 5.2, "a", value=9_999))).state is State.OK
    assert Fenced().judge(with_(history, call(Kind.APPEND, 5.1, 5.2, "b", value=9_999))).state is State.BROKEN


def test_client_that_tells_of_no_change_proves_nothing() -> None:
    history = failover()

    assert Fenced().judge(replace(history, events=())).state is State.UNKNOWN
    calm = replace(without(history, Kind.APPEND, 2, 99), events=history.events[:1])
    assert Fenced().judge(calm).state is State.UNKNOWN
    assert Fenced(least=2).judge(history).state is State.UNKNOWN


def test_change_after_which_nobody_says_who_acknowledged_proves_nothing() -> None:
    history = failover()
    nameless = tuple(replace(op, node=None) if op.end > ACCEPTED else op for op in history.operations)

    assert Fenced().judge(history).state is State.OK
    assert Fenced().judge(replace(history, operations=nameless)).state is State.UNKNOWN


# --- recovers


def test_silence_after_a_promotion_is_caught() -> None:
    said = Recovers(promoted=1.0).judge(without(failover(), Kind.APPEND, 2.0, 3.05))

    assert said.state is State.BROKEN
    assert "after b promoted, in place of a at 2.000 s" in said.told


def test_silence_once_all_is_healed_is_caught() -> None:
    history = without(failover(), Kind.APPEND, PROMOTED.healed or 0, 4.85)

    assert Recovers(healed=1.0).judge(history).state is State.BROKEN
    assert Recovers(healed=1.1).judge(history).state is State.OK
    assert Recovers(promoted=1.0).judge(history).state is State.OK


def test_silence_to_the_very_end_is_caught() -> None:
    assert Recovers(healed=1.0).judge(without(failover(), Kind.APPEND, 3.8, 99)).state is State.BROKEN


def test_appends_that_nobody_acknowledges_do_not_count() -> None:
    history = failover()
    failed = tuple(
        replace(op, outcome=Outcome.FAILED) if op.kind is Kind.APPEND and op.end > 2 else op
        for op in history.operations
    )

    assert Recovers(promoted=1.0).judge(replace(history, operations=failed)).state is State.BROKEN


def test_what_the_next_fault_or_the_end_cuts_short_is_not_judged() -> None:
    silent = without(failover(), Kind.APPEND, 2.0, 99)
    cut = replace(silent, faults=(KILLED, PROMOTED, Fault(what="b killed", began=2.4, start=2.5)))

    assert Recovers(promoted=1.0).judge(cut).state is State.UNKNOWN
    assert Recovers(promoted=1.0).judge(replace(silent, stopped=2.5)).state is State.UNKNOWN
    assert Recovers(promoted=0.3).judge(cut).state is State.BROKEN


def test_one_recovery_that_was_seen_does_not_speak_for_another_that_was_cut_short() -> None:
    again = (Fault(what="b killed", began=4.0, start=4.0), Fault(what="c promoted", began=4.4, start=4.5))
    cut = Fault(what="c killed", began=4.8, start=4.9)
    silent = without(failover(), Kind.APPEND, 4.0, 99)

    found = Recovers(promoted=1.0).judge(replace(silent, faults=(KILLED, PROMOTED, *again, cut)))

    assert found.state is State.UNKNOWN
    assert "1 moments were cut short before appends went on, the first: c promoted at 4.500 s" in found.why


def test_while_something_is_broken_still_nothing_is_healed() -> None:
    still = Fault(what="hole", began=0.0, start=0.0, end=4.9, healed=4.95)
    silent = without(failover(), Kind.APPEND, 3.0, 99)

    assert Recovers(healed=1.0).judge(replace(silent, faults=(still, KILLED, PROMOTED))).state is State.UNKNOWN


def test_recovery_must_be_bounded() -> None:
    with pytest.raises(ConfigError, match="should bound the time"):
        Recovers()


# --- returns


def test_node_that_is_left_alone_is_caught() -> None:
    assert Returns(node="a", within=0.3).judge(failover()).state is State.OK
    history = failover()
    left = tuple(replace(op, node="c") if op.node == "a" and op.kind is Kind.READ else op for op in history.operations)
    assert Returns(node="a", within=1.0).judge(replace(history, operations=left)).state is State.BROKEN


def test_node_that_has_not_come_back_in_this_history_proves_nothing() -> None:
    faults = tuple(replace(fault, healed=None) for fault in (KILLED, PROMOTED))

    assert Returns(node="a", within=1.0).judge(replace(failover(), faults=faults)).state is State.UNKNOWN
