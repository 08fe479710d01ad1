"""What may be repeated: RULES of no harm, section 1, as a table and as properties over every combination."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from dbguard.core.failure import Failure, Family, Outcome, Phase
from dbguard.core.retry import (
    ACTS,
    LATER,
    MAYBE,
    NOT_APPLIED,
    NOTHING,
    PARTS,
    Act,
    Ending,
    Purse,
    RetryPolicy,
    Stake,
    Tally,
    Work,
    ending,
    judge,
    outcome,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

READ, WRITE, TRANSACTION, COMMIT = Stake
REPEAT, RAISE, UNKNOWN = Act
TRANSIENT = [Family.CONTENTION, Family.ROLE, Family.SOFT]


def failed(phase: Phase, family: Family = Family.HARD, **more: bool | str) -> Failure:
    return Failure(node="a", phase=phase, family=family, cause=OSError(), **more)


def work(stake: Stake, **more: bool) -> Work:
    return Work(stake=stake, **more)


def everything() -> Iterator[tuple[Failure, Work, bool]]:
    failures = [
        failed(phase, family, broken=broken, timed_out=timed_out, ours=ours)
        for phase, family, broken, timed_out, ours in product(Phase, Family, *[(False, True)] * 3)
    ]
    works = [
        Work(stake=stake, one_transaction=one, final=final, block=block, idempotent=again, leaves_nothing=nothing)
        for stake, one, final, block, again, nothing in product(Stake, *[(False, True)] * 5)
    ]
    return product(failures, works, (False, True))


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        pytest.param(failed(Phase.CONNECT), (REPEAT, REPEAT, REPEAT, REPEAT), id="connect"),
        pytest.param(failed(Phase.CONNECT, Family.SOFT), (REPEAT, REPEAT, REPEAT, REPEAT), id="connect, 53300"),
        pytest.param(failed(Phase.CONNECT, Family.ROLE), (REPEAT, REPEAT, REPEAT, REPEAT), id="connect, wrong role"),
        pytest.param(failed(Phase.CONNECT, Family.CONFIG), (REPEAT, RAISE, RAISE, RAISE), id="connect, password"),
        pytest.param(
            failed(Phase.CONNECT, Family.NEUTRAL, timed_out=True),
            (REPEAT, REPEAT, REPEAT, REPEAT),
            id="connect, own pool's wait",
        ),
        pytest.param(failed(Phase.UNSENT), (REPEAT, REPEAT, REPEAT, REPEAT), id="unsent"),
        pytest.param(
            failed(Phase.UNSENT, Family.NEUTRAL, broken=True), (REPEAT, REPEAT, REPEAT, REPEAT), id="unsent, idle limit"
        ),
        pytest.param(failed(Phase.UNSENT, Family.NEUTRAL), (RAISE, RAISE, RAISE, RAISE), id="argument not encodable"),
        pytest.param(
            failed(Phase.CONNECT, Family.ANSWERED, broken=True), (RAISE, RAISE, RAISE, RAISE), id="set-up answered"
        ),
        pytest.param(failed(Phase.ERROR, Family.CONTENTION), (REPEAT, REPEAT, REPEAT, REPEAT), id="40001"),
        pytest.param(failed(Phase.ERROR, Family.ROLE), (REPEAT, REPEAT, REPEAT, REPEAT), id="25006 in recovery"),
        pytest.param(failed(Phase.ERROR, Family.SOFT), (REPEAT, REPEAT, REPEAT, REPEAT), id="overload"),
        pytest.param(failed(Phase.ERROR, Family.ANSWERED), (RAISE, RAISE, RAISE, RAISE), id="unique violation"),
        pytest.param(failed(Phase.ERROR, Family.CONFIG), (RAISE, RAISE, RAISE, RAISE), id="configuration"),
        pytest.param(failed(Phase.ERROR, Family.NEUTRAL), (RAISE, RAISE, RAISE, RAISE), id="57014"),
        pytest.param(failed(Phase.SENT, broken=True), (REPEAT, UNKNOWN, REPEAT, UNKNOWN), id="lost"),
        pytest.param(
            failed(Phase.SENT, Family.SOFT, timed_out=True), (REPEAT, UNKNOWN, REPEAT, UNKNOWN), id="timed out"
        ),
        pytest.param(
            failed(Phase.SENT, Family.NEUTRAL, broken=True), (REPEAT, UNKNOWN, REPEAT, UNKNOWN), id="internal client"
        ),
        pytest.param(
            failed(Phase.ERROR, Family.HARD, broken=True, sqlstate="57P01"),
            (REPEAT, UNKNOWN, REPEAT, UNKNOWN),
            id="57P01 in flight",
        ),
        pytest.param(
            failed(Phase.ERROR, Family.CONTENTION, broken=True, sqlstate="40001"),
            (REPEAT, UNKNOWN, REPEAT, UNKNOWN),
            id="40001 that ended the session",
        ),
        pytest.param(failed(Phase.ERROR, Family.HARD), (REPEAT, UNKNOWN, REPEAT, UNKNOWN), id="an answer from nobody"),
        pytest.param(
            failed(Phase.SENT, Family.NEUTRAL, ours=True), (REPEAT, UNKNOWN, REPEAT, UNKNOWN), id="ended by ourselves"
        ),
        pytest.param(failed(Phase.SENT, Family.NEUTRAL), (RAISE, RAISE, RAISE, UNKNOWN), id="decoder"),
        pytest.param(failed(Phase.DONE, Family.NEUTRAL), (RAISE, RAISE, RAISE, RAISE), id="done"),
    ],
)
def test_the_repeat_table(failure: Failure, expected: tuple[Act, ...]) -> None:
    assert tuple(judge(failure, work(stake)).act for stake in Stake) == expected


def test_the_table_answers_for_every_ending_and_stake() -> None:
    assert set(ACTS) == set(Ending)
    assert all(set(row) == set(Stake) for row in ACTS.values())


# ---------------------------------------------------------------- properties over every combination


def test_work_of_unknown_fate_is_repeated_only_if_idempotent_and_its_backend_is_gone() -> None:
    for failure, call, gone in everything():
        if outcome(failure, call) is Outcome.UNKNOWN and judge(failure, call, gone=gone).act is REPEAT:
            assert call.idempotent
            assert gone


def test_what_was_applied_is_never_repeated() -> None:
    for failure, call, gone in everything():
        if outcome(failure, call) is Outcome.APPLIED:
            assert judge(failure, call, gone=gone).act is RAISE


def test_work_that_is_not_one_transaction_is_never_repeated_once_sent() -> None:
    for failure, call, gone in everything():
        if not call.one_transaction and failure.phase not in {Phase.CONNECT, Phase.UNSENT}:
            assert judge(failure, call, gone=gone).act is not REPEAT


def test_consumed_input_and_blocks_are_never_repeated() -> None:
    for failure, call, gone in everything():
        consumed = call.final and failure.phase not in {Phase.CONNECT, Phase.UNSENT}
        if consumed or call.block:
            assert judge(failure, call, gone=gone).act is not REPEAT


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.UNSENT])
@pytest.mark.parametrize("stake", [READ, WRITE])
def test_input_that_was_not_begun_does_not_bar_a_repeat(phase: Phase, stake: Stake) -> None:
    assert judge(failed(phase), work(stake, final=True)).act is REPEAT


def test_what_a_token_refutes_is_repeated_unless_something_else_bars_it() -> None:
    for failure, call, gone in everything():
        before = judge(failure, call, gone=gone)
        after = judge(failure, call, gone=gone, refuted=True)
        if before.act is not UNKNOWN or before.note == PARTS:
            assert after.act is before.act
        elif call.final or call.block or ending(failure) is Ending.CLIENT:
            assert after.act is RAISE
            assert after.note == NOT_APPLIED
        else:
            assert after.act is REPEAT
            assert after.purse is not None


def test_a_text_that_the_server_could_not_read_has_no_parts() -> None:
    refused = failed(Phase.ERROR, Family.ANSWERED, sqlstate="42601", unparsed=True)

    assert judge(refused, work(WRITE, one_transaction=False)).note is None
    assert outcome(refused, work(WRITE, one_transaction=False)) is Outcome.NOT_APPLIED


def test_a_lost_write_of_open_fate_is_never_raised_as_if_it_had_not_happened() -> None:
    for failure, call, gone in everything():
        if ending(failure) is Ending.LOST and outcome(failure, call) is Outcome.UNKNOWN:
            verdict = judge(failure, call, gone=gone)
            assert verdict.act is UNKNOWN or (verdict.act is REPEAT and call.idempotent and gone)


def test_a_fate_left_open_without_the_unknown_error_is_said_in_a_note() -> None:
    for failure, call, gone in everything():
        if outcome(failure, call) is Outcome.UNKNOWN and judge(failure, call, gone=gone).act is RAISE:
            assert judge(failure, call, gone=gone).note in {PARTS, MAYBE}


def test_a_clients_own_exception_is_never_repeated() -> None:
    for failure, call, gone in everything():
        if failure.phase is Phase.SENT and ending(failure) is Ending.CLIENT:
            assert judge(failure, call, gone=gone).act is not REPEAT


def test_only_what_was_not_sent_is_repeated_for_nothing() -> None:
    for failure, call, gone in everything():
        verdict = judge(failure, call, gone=gone)
        if verdict.act is REPEAT:
            assert (verdict.purse is None) == (failure.phase in {Phase.CONNECT, Phase.UNSENT})
        else:
            assert verdict.purse is None
            assert not verdict.elsewhere
            assert not verdict.reresolve


def test_a_write_never_goes_elsewhere() -> None:
    for failure, call, gone in everything():
        assert not (judge(failure, call, gone=gone).elsewhere and call.stake is not READ)


def test_every_verdict_says_why() -> None:
    for failure, call, gone in everything():
        assert failure.why in judge(failure, call, gone=gone).why


# ---------------------------------------------------------------- single rules


@pytest.mark.parametrize("family", TRANSIENT)
def test_a_procedure_that_failed_for_now_is_raised_with_a_note(family: Family) -> None:
    verdict = judge(failed(Phase.ERROR, family), work(WRITE, one_transaction=False))

    assert verdict.act is RAISE
    assert verdict.note == PARTS


def test_a_procedure_that_was_not_sent_is_repeated() -> None:
    assert judge(failed(Phase.CONNECT), work(WRITE, one_transaction=False)).act is REPEAT


def test_a_procedure_that_was_lost_is_unknown_even_if_idempotent() -> None:
    verdict = judge(failed(Phase.SENT), work(WRITE, one_transaction=False, idempotent=True), gone=True)

    assert verdict.act is UNKNOWN
    assert verdict.note == PARTS


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.UNSENT, Phase.SENT, Phase.ERROR])
def test_a_transaction_that_committed_in_between_is_not_repeated_in_any_phase(phase: Phase) -> None:
    verdict = judge(failed(phase), work(TRANSACTION, one_transaction=False))

    assert verdict.act is not REPEAT
    assert verdict.note == PARTS


def test_a_lost_read_goes_to_another_node_and_is_paid() -> None:
    verdict = judge(failed(Phase.SENT), work(READ))

    assert verdict.elsewhere
    assert not verdict.reresolve
    assert verdict.purse is Purse.INFRASTRUCTURE


def test_a_recovery_conflict_goes_to_another_node() -> None:
    verdict = judge(failed(Phase.ERROR, Family.CONTENTION, sqlstate="40001"), work(READ))

    assert verdict.act is REPEAT
    assert verdict.elsewhere
    assert verdict.purse is Purse.CONTENTION


@pytest.mark.parametrize("stake", [WRITE, TRANSACTION, COMMIT])
def test_contention_is_repeated_on_the_same_primary_from_its_own_purse(stake: Stake) -> None:
    verdict = judge(failed(Phase.ERROR, Family.CONTENTION, sqlstate="40P01"), work(stake))

    assert verdict.act is REPEAT
    assert not verdict.elsewhere
    assert not verdict.reresolve
    assert verdict.purse is Purse.CONTENTION


@pytest.mark.parametrize("stake", Stake)
@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.UNSENT, Phase.ERROR])
def test_a_role_error_is_repeated_after_finding_the_primary_again(phase: Phase, stake: Stake) -> None:
    verdict = judge(failed(phase, Family.ROLE, sqlstate="25006"), work(stake))

    assert verdict.act is REPEAT
    assert verdict.reresolve


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.UNSENT])
def test_a_write_that_was_not_sent_to_a_dead_primary_finds_the_primary_again(phase: Phase) -> None:
    assert judge(failed(phase), work(WRITE)).reresolve


def test_a_write_refused_for_want_of_slots_does_not_doubt_the_primary() -> None:
    assert not judge(failed(Phase.CONNECT, Family.SOFT, sqlstate="53300"), work(WRITE)).reresolve


def test_a_transaction_whose_attempt_timed_out_finds_the_primary_again() -> None:
    assert judge(failed(Phase.SENT, Family.SOFT, timed_out=True), work(TRANSACTION)).reresolve


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.UNSENT, Phase.SENT])
def test_a_block_that_could_not_go_on_is_told_that_nothing_was_committed(phase: Phase) -> None:
    verdict = judge(failed(phase), work(TRANSACTION, block=True))

    assert verdict.act is RAISE
    assert verdict.note == NOTHING


def test_the_lost_commit_of_a_block_is_unknown() -> None:
    assert judge(failed(Phase.SENT), work(COMMIT, block=True)).act is UNKNOWN


def test_consumed_input_does_not_hide_an_unknown_fate() -> None:
    assert judge(failed(Phase.SENT), work(WRITE, final=True)).act is UNKNOWN


def test_statements_that_leave_nothing_behind_are_repeated_when_lost() -> None:
    verdict = judge(failed(Phase.SENT), work(WRITE, leaves_nothing=True))

    assert verdict.act is REPEAT
    assert outcome(failed(Phase.SENT), work(WRITE, leaves_nothing=True)) is Outcome.NOT_APPLIED


def test_leaving_nothing_behind_says_nothing_about_a_commit() -> None:
    assert judge(failed(Phase.SENT), work(COMMIT, leaves_nothing=True)).act is UNKNOWN


@pytest.mark.parametrize("stake", [WRITE, COMMIT])
def test_an_idempotent_write_waits_for_the_end_of_its_old_backend(stake: Stake) -> None:
    before = judge(failed(Phase.SENT), work(stake, idempotent=True))
    after = judge(failed(Phase.SENT), work(stake, idempotent=True), gone=True)

    assert (before.act, before.note) == (UNKNOWN, LATER)
    assert (after.act, after.purse) == (REPEAT, Purse.INFRASTRUCTURE)


def test_a_gone_backend_alone_proves_nothing_about_a_write() -> None:
    assert judge(failed(Phase.SENT), work(WRITE), gone=True).act is UNKNOWN


def test_a_decoder_that_raises_after_a_write_leaves_a_note() -> None:
    failure = failed(Phase.SENT, Family.NEUTRAL)

    assert judge(failure, work(WRITE)).note == MAYBE
    assert outcome(failure, work(WRITE)) is Outcome.UNKNOWN


# ---------------------------------------------------------------- outcomes


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (failed(Phase.CONNECT), ("not applied", "not applied", "not applied", "not applied")),
        (failed(Phase.UNSENT), ("not applied", "not applied", "not applied", "not applied")),
        (failed(Phase.SENT), ("not applied", "unknown", "not applied", "unknown")),
        (failed(Phase.ERROR, Family.ANSWERED), ("not applied", "not applied", "not applied", "not applied")),
        (failed(Phase.ERROR, broken=True), ("not applied", "unknown", "not applied", "unknown")),
        (failed(Phase.DONE, Family.NEUTRAL), ("not applied", "applied", "not applied", "applied")),
    ],
    ids=["connect", "unsent", "sent", "error", "error that ended the connection", "done"],
)
def test_what_became_of_the_work(failure: Failure, expected: tuple[str, ...]) -> None:
    assert tuple(outcome(failure, work(stake)).value for stake in Stake) == expected


def test_a_procedure_that_answered_with_an_error_may_have_applied_parts() -> None:
    assert outcome(failed(Phase.ERROR, Family.ANSWERED), work(WRITE, one_transaction=False)) is Outcome.UNKNOWN


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("family", "allowed"),
    [(Family.HARD, 4), (Family.ROLE, 4), (Family.NEUTRAL, 4), (Family.CONTENTION, 5), (Family.SOFT, 3)],
)
def test_attempts_are_limited_by_family(family: Family, allowed: int) -> None:
    tally, policy = Tally(), RetryPolicy(contention_attempts=5)

    for _ in range(allowed - 1):
        tally.count(failed(Phase.CONNECT, family))
        assert tally.exhausted(policy) is None
    tally.count(failed(Phase.CONNECT, family))

    assert f"{allowed} of {allowed} attempts" in (tally.exhausted(policy) or "")


def test_each_family_has_a_limit_of_its_own() -> None:
    tally = Tally()

    for _ in range(3):
        tally.count(failed(Phase.CONNECT))
    for _ in range(4):
        tally.count(failed(Phase.ERROR, Family.CONTENTION))

    assert tally.exhausted(RetryPolicy(contention_attempts=5)) is None


def test_contention_has_no_limit_but_the_deadline() -> None:
    tally = Tally()

    for _ in range(10_000):
        tally.count(failed(Phase.ERROR, Family.CONTENTION))

    assert tally.exhausted(RetryPolicy()) is None


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.UNSENT])
def test_what_we_ended_before_it_reached_a_node_is_no_attempt(phase: Phase) -> None:
    tally = Tally()

    for _ in range(9):
        tally.count(failed(phase, ours=True))

    assert tally.exhausted(RetryPolicy(attempts=1)) is None


def test_one_attempt_means_no_repeat() -> None:
    tally = Tally()

    tally.count(failed(Phase.CONNECT))

    assert tally.exhausted(RetryPolicy(attempts=1)) == "1 of 1 attempts failed (retry.attempts)"
