"""What holds of every text: nothing raises, blanks and comments change nothing, and nothing turns a write into a read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dbguard.core.classify import Classifier, Kind, Statement
from dbguard.core.lexer import written

CORPUS = Path(__file__).parent.parent / "corpus"
LINES = [json.loads(line) for path in sorted(CORPUS.glob("*.jsonl")) for line in path.read_text().splitlines()]
TEXTS = [line["sql"] for line in LINES]
CHANGES = [
    sql
    for line in LINES
    if line["label"] == "refused"
    and (sql := line["sql"].rstrip(";")).lower().startswith(("insert", "update", "delete", "select", "with"))
    and ";" not in sql
    and "--" not in sql
]
# The function of this name is what the corpus calls without a schema to see that it is not trusted.
CLASSIFIER = Classifier()
BLANKS = [
    " ",
    "\n",
    "\t",
    "/* c */",
    "/* a /* b */ c */",
    "-- c\n",
    "\r\n",
    " /**/ ",
    "/* ; ' \" $$ select */",
    "--'\n",
]


def kind(sql: str) -> Kind:
    return CLASSIFIER.classify(sql).kind


@given(st.text())
def test_no_text_raises(sql):
    statement = CLASSIFIER.classify(sql)

    assert isinstance(statement.why, str)
    assert statement.relations is None or isinstance(statement.relations, frozenset)
    assert statement.touch is not None


@given(st.binary())
def test_no_bytes_raise(raw):
    CLASSIFIER.classify(raw.decode("utf-8", "surrogateescape"))


@given(
    st.sampled_from(["SELECT ", "EXPLAIN ", "COPY ", "WITH ", "SET ", "INSERT "]),
    st.text(alphabet="'\"$/*-eEuU&%s()\n a1;.+=,", max_size=50),
)
def test_no_text_of_tricky_characters_raises(verb, rest):
    statement = CLASSIFIER.classify(verb + rest)

    _ = statement.why, statement.relations, statement.touch


@given(st.sampled_from(TEXTS), st.data())
def test_blanks_and_comments_between_tokens_never_change_the_kind(sql, data):
    toks = written(sql)
    if "" in toks or "$" in sql:  # what is not understood, or a dollar quote that `written` has emptied
        return
    blanks = data.draw(st.lists(st.sampled_from(BLANKS), min_size=len(toks) + 1, max_size=len(toks) + 1))
    glue = " " if "'" in sql or "%" in sql else ""  # two strings over a line break are one; `%s /*` is looked at twice
    spread = blanks[0] + "".join(f"{tok}{glue}{blank}" for tok, blank in zip(toks, blanks[1:], strict=True))

    assert kind(spread) is kind(sql), spread


@given(
    st.sampled_from(CHANGES),
    st.sampled_from(
        [
            "WITH q AS ({}) SELECT * FROM q",
            "EXPLAIN ANALYZE {}",
            "EXPLAIN (ANALYZE, COSTS off) {}",
            "({})",
            "{}; SELECT 1",
            "SELECT 1; {}",
            "COPY ({}) TO STDOUT",
            "/* c */ {}",
            "-- c\n{};",
            "BEGIN; {}; COMMIT",
            "WITH a AS (SELECT 1), q AS MATERIALIZED ({}) TABLE q",
            "SELECT * FROM (WITH q AS ({}) SELECT * FROM q) x",
        ]
    ),
    st.sampled_from([str, str.upper, str.lower]),
)
def test_no_wrapping_makes_a_write_a_read(sql, wrapping, case):
    toks = written(sql)
    cased = case(sql) if all(tok[:1] not in {"'", '"', "$"} for tok in toks) else sql

    assert not CLASSIFIER.classify(wrapping.format(cased)).is_read


@given(st.sampled_from(TEXTS), st.sampled_from(TEXTS))
def test_two_texts_are_a_read_only_if_both_are(one, other):
    joined = CLASSIFIER.classify(f"{one}\n;{other}")
    both = CLASSIFIER.classify(one).is_read and CLASSIFIER.classify(other).is_read

    if joined.is_read:
        assert both


@given(st.sampled_from([sql for sql in TEXTS if "'" not in sql and '"' not in sql and "$" not in sql]))
def test_upper_and_lower_case_are_one(sql):
    if sql.isascii():
        assert kind(sql.upper().replace("%S", "%s").replace(")S", ")s")) is kind(sql.lower())


def test_statements_hold_only_what_they_declare():
    declared = {field.name for field in fields(Statement)} | {"relations", "_worked_out"}

    for sql in TEXTS:
        assert set(vars(CLASSIFIER.classify(sql))) <= declared
