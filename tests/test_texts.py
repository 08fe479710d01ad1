"""What is known of a statement's text: hints, rules, and what the live catalogue says."""

from __future__ import annotations

import re

import pytest

from dbguard.core.catalogue import Catalogue, Function, Relation
from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.texts import LONGEST_TEXT, MOST_TEXTS, Direction, Texts


def relation(oid: int, name: str, *, bare: bool = True) -> Relation:
    return Relation(oid=oid, names=(f"public.{name}", name), bare=bare)


def known(catalogue: Catalogue, **given: frozenset[str]) -> Texts:
    texts = Texts(**given)
    texts.trust(catalogue, texts.version)
    return texts


def test_a_text_is_classified_once() -> None:
    texts = Texts()

    assert texts.learn("SELECT 1") is texts.learn("SELECT 1")


def test_long_texts_and_floods_of_texts_do_not_fill_the_memory() -> None:
    texts = Texts()
    long = f"SELECT {'1' * LONGEST_TEXT}"

    assert texts.learn(long) is not texts.learn(long)
    for number in range(2 * MOST_TEXTS):
        texts.learn(f"SELECT {number}")
    assert sum(texts.get(f"SELECT {number}") is not None for number in range(2 * MOST_TEXTS)) <= MOST_TEXTS


def test_a_relation_that_is_not_known_is_reset_after_use() -> None:
    texts = known(Catalogue(relations=[]))

    assert texts.learn("SELECT v FROM item").touched is Touch.SETTINGS
    assert texts.learn("SELECT 1").touched is Touch.NOTHING


def test_before_the_catalogue_was_read_every_connection_is_reset() -> None:
    assert Texts().learn("SELECT 1").touched is Touch.SETTINGS


def test_a_plain_relation_needs_no_reset() -> None:
    texts = known(Catalogue(relations=[relation(1, "item")]))

    assert texts.learn("SELECT v FROM item").touched is Touch.NOTHING
    assert texts.learn("UPDATE public.item SET v = 1").touched is Touch.NOTHING
    assert texts.learn("SELECT v FROM item, other").touched is Touch.SETTINGS


@pytest.mark.parametrize("expression", ["audit(v)", "set_config('app.tenant', 'x', false)"])
def test_what_hangs_on_a_relation_counts(expression: str) -> None:
    texts = known(Catalogue(relations=[relation(1, "item")], expressions=[(1, expression)]))

    assert texts.learn("SELECT v FROM item").touched is Touch.SETTINGS


def test_what_a_statement_reaches_counts() -> None:
    catalogue = Catalogue(relations=[relation(1, "item"), relation(2, "child", bare=False)], reaches=[(1, 2)])

    assert known(catalogue).learn("DELETE FROM item").touched is Touch.SETTINGS


def test_ddl_makes_everything_suspect_until_the_catalogue_has_been_read_again() -> None:
    catalogue = Catalogue(relations=[relation(1, "item")])
    texts = known(catalogue)
    version = texts.version

    texts.changed()

    assert texts.learn("SELECT v FROM item").touched is Touch.SETTINGS
    texts.trust(catalogue, version)
    assert texts.learn("SELECT v FROM item").touched is Touch.SETTINGS, (
        "a reading that began before the DDL says nothing"
    )
    texts.trust(catalogue, texts.version)
    assert texts.learn("SELECT v FROM item").touched is Touch.NOTHING


def test_where_names_of_postgresql_are_redefined_nothing_is_plain() -> None:
    texts = known(Catalogue(relations=[relation(1, "item")], foul=True))

    assert texts.learn("SELECT v FROM item").touched is Touch.SETTINGS


def test_a_function_is_trusted_if_all_of_its_name_only_read() -> None:
    catalogue = Catalogue(
        relations=[],
        functions=[
            Function(names=("public.total", "total"), stable=True, hides=False),
            Function(names=("public.bill", "bill"), stable=False, hides=False),
        ],
    )
    texts = known(catalogue)

    assert texts.learn("SELECT total(1)").reads
    assert texts.learn("SELECT total(1)").touched is not Touch.NOTHING, "volatility is nobody's word on the session"
    assert not texts.learn("SELECT bill(1)").reads


def test_a_function_named_like_one_of_postgresql_fools_nobody() -> None:
    catalogue = Catalogue(
        relations=[], functions=[Function(names=("public.lower", "lower"), stable=False, hides=True)], foul=True
    )
    texts = Texts()
    assert texts.learn("SELECT lower('A')").reads

    texts.trust(catalogue, texts.version)

    assert not texts.learn("SELECT lower('A')").reads


def test_the_configuration_counts_for_more_than_the_catalogue() -> None:
    catalogue = Catalogue(
        relations=[],
        functions=[
            Function(names=("total",), stable=True, hides=False),
            Function(names=("bill",), stable=False, hides=False),
        ],
    )
    texts = known(catalogue, read=frozenset({"bill"}), write=frozenset({"total"}))

    assert texts.learn("SELECT bill(1)").reads
    assert not texts.learn("SELECT total(1)").reads


def test_a_view_that_writes_taints_who_reads_it() -> None:
    catalogue = Catalogue(
        relations=[relation(1, "log"), relation(2, "over_log"), relation(3, "item")],
        queries=[(1, "SELECT bill(1)"), (2, "SELECT * FROM log")],
        reaches=[(2, 1)],
        functions=[Function(names=("bill",), stable=False, hides=False)],
    )
    texts = known(catalogue)

    assert not texts.learn("SELECT * FROM over_log").reads
    assert texts.learn("SELECT * FROM over_log").work.stake is Stake.WRITE
    assert "over_log" in texts.learn("SELECT * FROM over_log").why
    assert texts.learn("SELECT * FROM item").reads


def test_a_volatile_operator_taints_a_text_that_holds_it() -> None:
    texts = known(Catalogue(relations=[], volatile_words=["shown"]))

    assert not texts.learn("SELECT t.shown FROM t").reads
    assert not texts.learn("SELECT t.SHOWN FROM t").reads
    assert texts.learn("SELECT t.other FROM t").reads


def test_a_domain_whose_check_writes_taints_a_text_that_holds_it_and_a_view_over_it() -> None:
    catalogue = Catalogue(
        relations=[relation(1, "cast_log"), relation(2, "item")],
        queries=[(1, "SELECT (1)::posint AS n"), (2, "SELECT (1)::small AS n")],
        checks=[("posint", "(nextval('s'::regclass) > 0)"), ("small", "(VALUE < 9)")],
    )
    texts = known(catalogue)

    assert not texts.learn("SELECT $1::posint").reads
    assert not texts.learn("SELECT CAST($1 AS PosInt)").reads
    assert texts.learn("SELECT $1::small").reads
    assert not texts.learn("SELECT * FROM cast_log").reads
    assert texts.learn("SELECT * FROM item").reads
    assert texts.learn("SELECT $1::int").reads


def test_what_a_replica_refused_stays_known_when_the_catalogue_is_read_again() -> None:
    texts = Texts()
    text = texts.learn("SELECT sly()")
    text.refuse()

    texts.trust(Catalogue(relations=[], functions=[Function(names=("sly",), stable=True, hides=False)]), texts.version)

    assert not texts.learn("SELECT sly()").reads


def test_where_texts_cannot_be_read_nothing_is_a_read() -> None:
    texts = known(Catalogue(relations=[relation(1, "item")], blind=True))

    assert not texts.learn("SELECT v FROM item").reads
    assert texts.learn("SELECT 1").touched is Touch.SETTINGS


def test_a_hint_counts_for_more_than_a_rule() -> None:
    texts = Texts(rules=[Direction(re.compile("report"), "replica", frozenset({"c"}))])

    assert texts.learn("SELECT 1 AS report").group == frozenset({"c"})
    hinted = texts.learn("/* dbguard: primary */ SELECT 1 AS report")
    assert not hinted.reads
    assert hinted.group is None


def test_the_first_rule_that_fits_counts() -> None:
    texts = Texts(rules=[Direction(re.compile("^SELECT"), "primary"), Direction(re.compile("report"), "replica")])

    assert texts.learn("SELECT 1 AS report").rule == "primary"
    assert texts.learn("TABLE report").rule == "replica"


def test_a_rule_never_makes_a_read_of_a_write() -> None:
    text = Texts(rules=[Direction(re.compile("item"), "replica")]).learn("DELETE FROM item")

    assert not text.reads
    assert not text.liftable
