"""Tokens and what they prove: how they are made and carried, and what a plan makes of a claim (RULES 2.4 and 3)."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.core.causal import Orphan
from dbguard.core.classify import classify
from dbguard.core.outcome import (
    Applied,
    Holder,
    Mark,
    NotApplied,
    StillOpen,
    commit_until,
    known_token,
    new_token,
    to_end,
    turns_read_only,
)
from dbguard.core.plan import Attempt, Bury, Done, Gone, Pause, Resolve, recover
from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.core.topology import Missed, Role
from dbguard.errors import DeadlineExceeded, NotAttempted, OutcomeUnknown, ResultLost, TokenInvalid
from dbguard.testing.clock import ManualClock
from dbguard.testing.fake import DriverError, conflict, known_state, lost, new_call, seen, timed_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.plan import Call
    from dbguard.core.state import GuardState

# ---------------------------------------------------------------- tokens


def test_a_token_is_a_version_7_uuid_that_bears_its_time() -> None:
    token = new_token(1_700_000_000.123, random.Random(1).getrandbits(74))

    assert token.version == 7
    assert token.variant == "specified in RFC 4122"
    assert token.int >> 80 == 1_700_000_000_123


def test_tokens_sort_by_their_time_and_differ_within_one_moment() -> None:
    chance = random.Random(1)
    times = [chance.uniform(0, 4e9) for _ in range(200)]

    made = [new_token(at, chance.getrandbits(74)) for at in times]

    assert [int(at * 1000) for at in sorted(times)] == [token.int >> 80 for token in sorted(made)]
    assert len({new_token(1.0, chance.getrandbits(74)) for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize("bit", range(74))
def test_every_bit_of_chance_counts(bit: int) -> None:
    assert new_token(1.0, 1 << bit) != new_token(1.0, 0)


def test_a_token_is_known_again_by_its_text() -> None:
    token = new_token(1.0, 5)

    assert known_token(str(token)) == token


@pytest.mark.parametrize("text", ["", "1", "not-a-token", "c7a1c7b2-1111-4aaa-8aaa-aaaaaaaaaaaa", None, 5])
def test_what_is_no_token_is_refused(text: Any) -> None:
    with pytest.raises(TokenInvalid):
        known_token(text)


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("left", "reserve", "commit"),
    [
        (30.0, 2.0, 28.0),
        (3.0, 2.0, 2.0),
        (0.3, 2.0, 0.2),
        (30.0, 0.0, 30.0),
        (0.0, 2.0, 0.0),
        (math.inf, 2.0, math.inf),
    ],
)
def test_a_commit_leaves_the_reserve_and_at_least_two_thirds_of_what_is_left(
    left: float, reserve: float, commit: float
) -> None:
    assert commit_until(100.0 + left, 100.0, reserve) == pytest.approx(100.0 + commit)


def test_a_commit_past_its_deadline_gets_no_time_from_the_reserve() -> None:
    assert commit_until(100.0, 101.0, 2.0) == 100.0


# ---------------------------------------------------------------- who holds up a claim

OWN = (7, 1_000.5)


@pytest.mark.parametrize(
    ("holders", "ended"),
    [
        pytest.param([], None, id="nobody"),
        pytest.param([Holder(7, 1_000.5, None)], 7, id="the write's own backend"),
        pytest.param([Holder(7, 1_000.5, "ClientRead")], 7, id="its own, idle"),
        pytest.param([Holder(7, 1_000.5, "SyncRep")], None, id="its own, waiting for a standby"),
        pytest.param([Holder(7, 2_000.5, None)], None, id="another with its number"),
        pytest.param([Holder(7, None, None)], None, id="one that must not be seen"),
        pytest.param([Holder(8, 1_000.5, None)], None, id="anybody else"),
        pytest.param([Holder(8, 9.0, "SyncRep"), Holder(7, 1_000.5, None)], 7, id="its own behind another"),
    ],
)
def test_only_the_writes_own_backend_is_ended_and_never_while_it_waits_for_a_standby(
    holders: list[Holder], ended: int | None
) -> None:
    assert to_end(holders, OWN) == ended


@pytest.mark.parametrize("own", [(0, None), (0, 1_000.5), (7, None)])
def test_nobody_is_ended_where_the_writes_backend_is_not_known(own: tuple[int, float | None]) -> None:
    assert to_end([Holder(0, None, None), Holder(7, 1_000.5, None), Holder(0, 1_000.5, None)], own) is None


# ---------------------------------------------------------------- how a block carries its token


@pytest.mark.parametrize(
    ("facts", "mark"),
    [
        pytest.param({}, Mark.IF_WRITTEN, id="plain writes"),
        pytest.param({"writes": False}, Mark.NONE, id="reads alone"),
        pytest.param({"read_only": True}, Mark.NONE, id="turned read only"),
        pytest.param({"unseen": True}, Mark.NONE, id="the driver's own connection was handed out"),
        pytest.param({"touched": Touch.SETTINGS}, Mark.ALWAYS, id="a user's function, NOTIFY, SET"),
        pytest.param({"touched": Touch.IDENTITY}, Mark.ALWAYS, id="SET ROLE"),
        pytest.param({"touched": Touch.LOST, "read_only": True}, Mark.NONE, id="not understood and read only"),
    ],
)
def test_whether_a_block_stores_its_token(facts: dict[str, Any], mark: Mark) -> None:
    plain = {"writes": True, "read_only": False, "touched": Touch.NOTHING, "unseen": False}

    assert Mark.of(**plain | facts) is mark


@pytest.mark.parametrize(
    "query",
    [
        "SET TRANSACTION READ ONLY",
        "set transaction isolation level serializable, read /* not write */ only",
        "SET LOCAL transaction_read_only = on",
        'SET "transaction_read_only" TO true',
        "RESET transaction_read_only",
        "SELECT set_config('transaction_read_only', 'on', true)",
        "SELECT set_config($1, 'on', true)",
        "SELECT set_config(lower('X'), 'on', true)",
        "UPDATE t SET a = 1; SET TRANSACTION READ ONLY",
    ],
)
def test_what_may_turn_a_block_read_only_is_seen(query: str) -> None:
    assert turns_read_only(classify(query), query)


@pytest.mark.parametrize(
    "query",
    [
        "UPDATE t SET a = 1",
        "SET LOCAL work_mem = '4MB'",
        "SET ROLE app",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SELECT set_config('app.tenant', $1, true)",
        "SELECT 'READ ONLY'",
        "SELECT * FROM ONLY t",
        "UPDATE ONLY t SET a = 1",
    ],
)
def test_what_does_not_turn_a_block_read_only_keeps_its_token(query: str) -> None:
    assert not turns_read_only(classify(query), query)


# ---------------------------------------------------------------- what a plan makes of it


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state(clock: ManualClock) -> GuardState:
    return known_state(clock)


class Scene:
    """A plan and what it asked; each attempt that fails carries a token of its own."""

    def __init__(self, call: Call, state: GuardState) -> None:
        self.call = call
        self.state = state
        self.asked: list[str] = []
        self.value: Any = None
        self.error: BaseException | None = None

    def play(self, *script: Any, tokens: bool = True, rows: bool = False) -> Scene:
        """Answer each attempt, pause and question in turn. *rows*: what it returns is lost with the connection."""
        answers, number, reply = list(script), 0, None
        plan = recover(self.call, self.state)
        try:
            while True:
                step = plan.send(reply)
                self.asked.append(
                    step.node
                    if isinstance(step, Attempt)
                    else step.token
                    if isinstance(step, Resolve)
                    else type(step).__name__.lower()
                )
                answer = answers.pop(0)
                if isinstance(step, Attempt):
                    number += 1
                    assert self.call.token is None, "each attempt begins without the last one's token"
                    if callable(answer):
                        reply = answer(step.node)
                        if tokens:
                            self.call.token = f"token {number}"
                            self.call.result = None if rows else Done(f"result {number}")
                        self.state.failed(reply, self.state.nodes[step.node].breaker.generation)
                    else:
                        reply = Done(answer)
                else:
                    reply = answer() if callable(answer) else answer
        except StopIteration as end:
            self.value = end.value
        except (NotAttempted, DeadlineExceeded, OutcomeUnknown, ResultLost, DriverError) as error:
            self.error = error
        assert answers == [], "the plan ended before the script did"
        return self

    @property
    def notes(self) -> str:
        return " ".join(getattr(self.error, "__notes__", ()))


def write(state: GuardState, stake: Stake = Stake.WRITE, **options: Any) -> Scene:
    return Scene(new_call(state, stake, **options), state)


def reprobed(state: GuardState, clock: ManualClock) -> Callable[[], None]:
    def happen() -> None:
        state.probed([seen("a", Role.PRIMARY, clock.advance(0.1))], full=False)

    return happen


def promoted(state: GuardState, clock: ManualClock, timeline: int = 2, node: str = "b") -> Callable[[], None]:
    def happen() -> None:
        now = clock.advance(0.1)
        gone = [name for name in "ab" if name != node]
        state.probed(
            [
                *(Missed(node=name, at=now, why="connection refused") for name in gone),
                seen(node, Role.PRIMARY, now, timeline=timeline, position=2_000),
                *(seen(name, Role.REPLICA, now, timeline=timeline, position=2_000) for name in "c" if name != node),
            ],
            full=True,
        )

    return happen


def not_applied(state: GuardState) -> Callable[[], NotApplied]:
    return lambda: NotApplied(state.view.reign)


@pytest.mark.parametrize("stake", [Stake.WRITE, Stake.COMMIT])
@pytest.mark.parametrize("ending", [lost, timed_out])
def test_a_commit_proved_applied_returns_what_it_would_have_returned(
    state: GuardState, stake: Stake, ending: Any
) -> None:
    told = write(state, stake).play(ending, Applied())

    assert told.asked == ["a", "token 1"]
    assert told.value == "result 1"
    assert state.counts["proved_applied"] == 1
    assert state.counts["unknown"] == 0


def test_rows_lost_with_the_connection_are_said_to_be_lost(state: GuardState) -> None:
    told = write(state).play(lost, Applied(), rows=True)

    assert isinstance(told.error, ResultLost)
    assert told.error.token == "token 1"
    assert isinstance(told.error.__cause__, DriverError)
    assert state.counts["result_lost"] == 1


def test_a_commit_proved_not_applied_is_repeated_under_another_token(state: GuardState, clock: ManualClock) -> None:
    told = write(state).play(lost, not_applied(state), reprobed(state, clock), lost, Applied())

    assert told.asked == ["a", "token 1", "pause", "a", "token 2"]
    assert told.value == "result 2"
    assert state.counts["proved_not_applied"] == 1


@pytest.mark.parametrize("kind", ["final", "block"])
def test_what_may_not_be_repeated_is_raised_as_not_applied(state: GuardState, kind: str) -> None:
    told = write(state, Stake.COMMIT, **{kind: True}).play(lost, not_applied(state))

    assert isinstance(told.error, DriverError)
    assert "it was not applied" in told.notes
    assert state.counts["unknown"] == 0


def test_a_write_out_of_time_that_is_proved_not_applied_says_that_nothing_was(
    state: GuardState, clock: ManualClock
) -> None:
    def in_the_end() -> NotApplied:
        clock.advance(30.0)
        return NotApplied(state.view.reign)

    told = write(state).play(timed_out, in_the_end)

    assert isinstance(told.error, DeadlineExceeded)
    assert "nothing was applied" in str(told.error)


def test_what_stays_open_is_raised_with_its_token(state: GuardState) -> None:
    told = write(state).play(lost, StillOpen("another transaction holds its token"))

    assert isinstance(told.error, OutcomeUnknown)
    assert told.error.token == "token 1"
    assert "another transaction holds its token" in str(told.error)
    assert "guard.resolve" in str(told.error)
    assert state.counts["unknown"] == 1


def test_the_question_may_take_until_the_calls_own_deadline(state: GuardState) -> None:
    call = new_call(state, Stake.WRITE, timeout=9.0)
    plan = recover(call, state)
    plan.send(None)
    call.token = "a token"

    step = plan.send(lost("a"))

    assert step == Resolve("a token", call.deadline)


def test_a_commit_without_a_token_is_unknown_and_asks_nothing(state: GuardState) -> None:
    told = write(state).play(lost, tokens=False)

    assert told.asked == ["a"]
    assert isinstance(told.error, OutcomeUnknown)
    assert told.error.token is None


def test_an_answer_of_the_server_needs_no_claim(state: GuardState) -> None:
    told = write(state).play(conflict, None, 7)

    assert told.asked == ["a", "pause", "a"]
    assert told.value == 7


def test_a_proof_of_an_older_reign_is_made_anew_before_the_repeat(state: GuardState, clock: ManualClock) -> None:
    told = write(state).play(lost, not_applied(state), promoted(state, clock), Applied())

    assert told.asked == ["a", "token 1", "pause", "token 1"]
    assert told.value == "result 1"


def test_every_token_of_the_call_is_proved_anew_under_another_reign(state: GuardState, clock: ManualClock) -> None:
    told = write(state).play(
        lost,
        not_applied(state),
        promoted(state, clock),
        not_applied(state),
        lost,
        not_applied(state),
        promoted(state, clock, timeline=3, node="a"),
        not_applied(state),
        Applied(),
    )

    assert told.asked == ["a", "token 1", "pause", "token 1", "b", "token 2", "pause", "token 1", "token 2"]
    assert told.value == "result 2"


def test_a_proof_that_cannot_be_made_anew_leaves_the_write_open(state: GuardState, clock: ManualClock) -> None:
    told = write(state).play(lost, not_applied(state), promoted(state, clock), StillOpen("the primary is gone"))

    assert isinstance(told.error, OutcomeUnknown)
    assert told.error.token == "token 1"


# ---------------------------------------------------------------- what becomes of the backend


def orphan(state: GuardState) -> Orphan:
    instance = state.view.nodes["a"].instance
    return Orphan(node="a", instance=instance, pid=7, started=1.0, reign=state.view.reign, doomed=False)


@pytest.mark.parametrize("applied", [True, False])
def test_a_resolved_write_frees_its_contexts_reads_and_its_locks(state: GuardState, *, applied: bool) -> None:
    told, left = write(state), orphan(state)
    told.call.box.pin(left)
    told.call.box.wrote(state.view.reign, 1.0)
    told.call.orphan = left

    state.resolved(told.call, "a", Applied() if applied else NotApplied(state.view.reign))

    now = state.clock() + 1
    assert told.call.box.floor(state.view.reign, 5_000, now) == 5_000
    assert left.doomed is not applied, "what can no longer be applied may lose its locks; what was, ends by itself"


def test_reads_after_a_write_that_was_proved_applied_wait_for_its_position(state: GuardState) -> None:
    told = write(state)
    asked_at = state.clock() - 0.1

    state.resolved(told.call, "a", Applied())

    assert told.call.box.floor(state.view.reign, 5_000, asked_at) is None


# ---------------------------------------------------------------- the caller's word


def doubted(state: GuardState, *script: Any) -> tuple[list[str], Any]:
    call = new_call(state, Stake.WRITE, idempotent=True)
    answers, asked, reply = list(script), [], None
    plan = recover(call, state)
    try:
        while True:
            step = plan.send(reply)
            asked.append(type(step).__name__)
            answer = answers.pop(0)
            if isinstance(step, Attempt) and callable(answer):
                call.orphan = orphan(state)
                reply = answer(step.node)
            else:
                reply = Done(answer) if isinstance(step, Attempt) else answer
            if isinstance(step, Bury):
                assert step.orphan is call.orphan
    except StopIteration as end:
        return asked, end.value
    except OutcomeUnknown as error:
        return asked, error


def test_an_idempotent_write_is_repeated_once_its_backend_is_gone(state: GuardState) -> None:
    asked, value = doubted(state, lost, Gone(), 7)

    assert asked == ["Attempt", "Bury", "Attempt"]
    assert value == 7


def test_an_idempotent_write_whose_backend_may_live_is_unknown_and_may_come_later(state: GuardState) -> None:
    asked, error = doubted(state, timed_out, StillOpen("its backend could not be ended"))

    assert asked == ["Attempt", "Bury"]
    assert isinstance(error, OutcomeUnknown)
    assert "may still be applied later" in str(error)


def test_pauses_are_not_mistaken_for_questions(state: GuardState, clock: ManualClock) -> None:
    plan = recover(new_call(state, Stake.TRANSACTION), state)
    plan.send(None)

    assert isinstance(plan.send(conflict("a")), Pause)
