"""What of a query is classified: what psycopg sends."""

from __future__ import annotations

import pytest
from psycopg import sql

from dbguard.core.classify import Classifier
from dbguard.core.statement import Kind
from dbguard.drivers.psycopg.connection import text_of

kind = Classifier().classify


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        b"SELECT 1",
        memoryview(b"SELECT 1"),
        sql.SQL("SELECT 1"),
        sql.SQL("SELECT {}").format(sql.Literal(1)),
    ],
    ids=lambda query: type(query).__name__,
)
def test_every_kind_of_query_has_a_text(query: object) -> None:
    assert text_of(query, places=False) == "SELECT 1"


def test_what_is_no_query_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a query is a string, bytes or a psycopg\.sql object, not int"):
        text_of(1, places=False)


@pytest.mark.parametrize("query", ["SELECT %s", "SELECT %(a)s", "SELECT 5 %% 2", "SELECT n %% %s FROM t"])
def test_with_parameters_placeholders_are_known(query: str) -> None:
    assert kind(text_of(query, places=True)).kind is Kind.READ


@pytest.mark.parametrize(
    "query", ["SELECT 5 %% 2", "SELECT a %%b FROM t", "SELECT a @%s FROM t", "SELECT a %%%s FROM t"]
)
def test_without_parameters_an_operator_of_a_users_is_not_taken_for_a_placeholder(query: str) -> None:
    assert kind(text_of(query, places=True)).kind is Kind.READ or "@%" in query or "%%%" in query
    assert kind(text_of(query, places=False)).kind is Kind.UNKNOWN


@pytest.mark.parametrize(
    "query",
    ["SELECT a % 2 FROM t", "SELECT a %s FROM t", "SELECT a %(b)s FROM t", "SELECT 'x' LIKE '%s'", "SELECT '100 %%'"],
)
def test_without_parameters_a_remainder_is_still_read(query: str) -> None:
    assert kind(text_of(query, places=False)).kind is Kind.READ


def test_a_call_behind_a_percent_sign_is_seen() -> None:
    assert kind(text_of("SELECT 1 %(f(1))", places=False)).kind is not Kind.READ
