"""A code speaks about the node only if the connection died with it."""

from __future__ import annotations

import asyncpg.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguard.core.failure import Family
from dbguard.core.sqlstates import CLASSES, CODES, RECOVERY_REFUSALS, Row, family, row

ALL_CODES = sorted(
    {code for name in dir(asyncpg.exceptions) if (code := getattr(getattr(asyncpg.exceptions, name), "sqlstate", None))}
)


def test_the_list_of_all_codes_is_the_whole_appendix() -> None:
    assert len(ALL_CODES) > 250


@pytest.mark.parametrize("code", ALL_CODES)
def test_every_code_of_postgresql_has_a_row_with_families_and_a_reason(code: str) -> None:
    found = row(code)

    assert code in CODES or code[:2] in CLASSES
    assert isinstance(found, Row)
    assert isinstance(found.alive, Family)
    assert isinstance(found.dead, Family)
    assert len(found.why) > 3


@pytest.mark.parametrize("table", [CODES, CLASSES], ids=["codes", "classes"])
def test_no_two_rows_share_a_reason(table: dict[str, Row]) -> None:
    reasons = [found.why for found in table.values()]

    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("code", CODES)
def test_a_row_of_its_own_differs_from_its_class(code: str) -> None:
    assert CODES[code][:2] != CLASSES[code[:2]][:2]


@given(code=st.one_of(st.none(), st.sampled_from(ALL_CODES), st.text(max_size=8)))
def test_a_code_on_a_living_connection_never_speaks_about_the_node(code: str | None) -> None:
    assert family(code, connection_died=False) in {Family.ANSWERED, Family.CONTENTION, Family.NEUTRAL}


@given(code=st.one_of(st.none(), st.sampled_from(ALL_CODES), st.text(max_size=8)))
def test_a_code_that_ended_the_connection_is_never_an_answer_nor_a_role(code: str | None) -> None:
    assert family(code, connection_died=True) not in {Family.ANSWERED, Family.ROLE}


@pytest.mark.parametrize("code", ["57P01", "57P02", "57P03", "08000", "08001", "08003", "08006", "08007", "08P01"])
def test_an_ending_server_is_hard_only_if_the_connection_died_with_it(code: str) -> None:
    assert family(code, connection_died=True) is Family.HARD
    assert family(code, connection_died=False) is Family.ANSWERED


@pytest.mark.parametrize("code", ["53000", "53200", "53300"])
def test_an_overloaded_node_is_not_declared_dead(code: str) -> None:
    assert family(code, connection_died=True) is Family.SOFT
    assert family(code, connection_died=False) is Family.ANSWERED


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.parametrize("died", [False, True], ids=["alive", "dead"])
def test_contention_is_contention_even_if_the_replica_ended_the_session(code: str, died: bool) -> None:  # noqa: FBT001 - a parameter of the test
    assert family(code, connection_died=died) is Family.CONTENTION


@pytest.mark.parametrize("code", ["40000", "40002", "40003", "55P03"])
def test_what_a_repeat_does_not_remove_is_answered(code: str) -> None:
    assert family(code, connection_died=False) is Family.ANSWERED


@pytest.mark.parametrize("code", ["28000", "28P01", "3D000", "55000", "42501", "42704", "22023", "0A000", "57P04"])
def test_a_refused_connection_names_the_configuration(code: str) -> None:
    assert family(code, connection_died=True) is Family.CONFIG


@pytest.mark.parametrize("code", ["25P03", "25P04", "57P05", "57014"])
def test_a_session_ended_by_its_own_time_limit_says_nothing_about_the_node(code: str) -> None:
    assert family(code, connection_died=True) is Family.NEUTRAL


def test_a_cancelled_statement_is_neutral() -> None:
    assert family("57014", connection_died=False) is Family.NEUTRAL


@pytest.mark.parametrize("code", ["22012", "23505", "23503", "42601", "42P01", "42501", "P0001", "XX000", "HV00N"])
def test_data_constraint_and_syntax_errors_are_answers(code: str) -> None:
    assert family(code, connection_died=False) is Family.ANSWERED


@pytest.mark.parametrize("code", sorted(RECOVERY_REFUSALS))
def test_a_refusal_in_recovery_is_no_role_signal_by_its_code_alone(code: str) -> None:
    assert family(code, connection_died=False) is Family.ANSWERED


def test_the_four_refusals_of_a_replica_are_named() -> None:
    assert {"25006", "XX000", "55000", "0A000"} == RECOVERY_REFUSALS


def test_silence_is_the_clients_own_if_the_connection_lives_and_hard_if_it_died() -> None:
    assert family(None, connection_died=False) is Family.NEUTRAL
    assert family(None, connection_died=True) is Family.HARD


@pytest.mark.parametrize("code", ["ZZ123", "", "9"])
def test_an_unknown_code_is_answered_alive_and_hard_dead(code: str) -> None:
    assert family(code, connection_died=False) is Family.ANSWERED
    assert family(code, connection_died=True) is Family.HARD
