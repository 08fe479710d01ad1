"""The lexical language: each token once, nothing raised, and time linear in the length."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguard.core.classify import Classifier
from dbguard.core.lexer import NESTING, line_of, tokens, written

LEXED = [
    ("SELECT a.b, $1", ["select", "a", ".", "b", ",", "$1"]),
    ("a/* b /* c */ d */e--f\ng", ["a", "e", "g"]),
    ("'it''s' \"Q\"\"q\"", ["'it''s'", '"q""q"']),
    ("E'a\\'b' e''", ["e'a\\'b'", "e''"]),
    ("E'a'\n  'b\\'c' d", ["e'a'\n  'b\\'c'", "d"]),
    ("E'a\\\\' || E'\\'' || e'a''\\b' c", ["e'a\\\\'", "||", "e'\\''", "||", "e'a''\\b'", "c"]),
    ("E'a' -- x\n 'b\\'c' d", ["e'a' -- x\n 'b\\'c'", "d"]),
    ("N'a' B'1' X'F' U&'\\0061'", ["n", "'a'", "b", "'1'", "x", "'f'", "u", "&", "'\\0061'"]),
    ("$$a;b$$ $x$ $$ ' $y$ $x$ c", ["''", "''", "c"]),
    ("$A$ $a$ ; $A$ b", ["''", "b"]),
    ("a$b$c $1", ["a$b$c", "$1"]),
    ("'$$' \"$$\" /* $$ */ a", ["'$$'", '"$$"', "a"]),
    ("a=-1 b<>+2 c||d", ["a", "=", "-", "1", "b", "<>", "+", "2", "c", "||", "d"]),
    ("a*/*b*/c +--d\n-e", ["a", "*", "c", "+", "-", "e"]),
    ("a->>'b' @> c ?| d", ["a", "->>", "'b'", "@>", "c", "?|", "d"]),
    ("a=%s AND b=%(n)s AND c %% 2", ["a", "=", "%s", "and", "b", "=", "%(n)s", "and", "c", "%%", "2"]),
    ("5 %s(1)", ["5", "%", "s", "(", "1", ")"]),
    ("1.5e10 .5 0x1F 1_000 1.", ["1.5e10", ".", "5", "0x1f", "1_000", "1."]),
    ("1into $1for 1e5x", ["1", "into", "$1", "for", "1e5", "x"]),
    ("a OPERATOR(pg_catalog.+) b", ["a", "operator(pg_catalog.+)", "b"]),
    ("x::int y:=1 z=>2 a[1:2]", ["x", "::", "int", "y", ":=", "1", "z", "=>", "2", "a", "[", "1", ":", "2", "]"]),
    ("é Ünïcode a\u00a0b", ["é", "Ünïcode", "a\u00a0b"]),
    ("\u212aEY", ["\u212aey"]),
]


@pytest.mark.parametrize(("sql", "expected"), LEXED, ids=[sql for sql, _ in LEXED])
def test_a_text_has_these_tokens(sql, expected):
    assert tokens(sql) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "'a",
        '"a',
        "/* a",
        "/* /* a */",
        "E'a\\'",
        "$$a",
        "$x$ a $y$",
        'U&"a"',
        "a\x00b",
        "a \\ b",
        "a === b",
        "{",
        "@-1",
    ],
)
def test_what_is_not_understood_is_an_odd_token(sql):
    assert "" in tokens(sql)


def test_an_unclosed_string_swallows_the_rest():
    assert tokens("a 'b; DELETE FROM c") == ["a", ""]


def test_a_dollar_quote_inside_a_comment_that_is_too_deep_hides_nothing():
    deep = "/*" * (NESTING + 2)
    sql = f"{deep} $$ {'*/' * (NESTING + 2)} ; DELETE FROM t; {deep} $$ {'*/' * (NESTING + 2)} SELECT 1"

    assert "" in tokens(sql)


def test_lines_are_counted_through_strings_and_comments():
    sql = "a /*\n*/ 'b\n' $$\n\n$$ c"

    assert line_of(sql, tokens(sql).index("c")) == 5


@given(st.text())
def test_any_text_is_lexed(sql):
    assert len(tokens(sql)) == len(written(sql))


@given(st.text(alphabet="'\"$/*-\\eEuU&%s()\n a1;.+=@xX", max_size=60))
def test_any_text_of_tricky_characters_is_lexed(sql):
    assert len(tokens(sql)) == len(written(sql))


REPEATED = [
    "'",
    '"',
    "/*",
    "/*x",
    "*/",
    "/**/",
    "--",
    "-",
    "+-",
    "@-",
    "- ",
    "$",
    "$a",
    "$a$",
    "$$ ",
    "E'\\'",
    "E''\n",
    "E'' -- x\n",
    'U&"',
    "1e",
    "0x",
    "%(",
    "%s",
    "%s/*",
    "operator(",
    "operator (pg_catalog.",
    "(",
    ")",
    "a ",
    "a(",
    ",f(",
    "f(a) as (",
    ";",
    "\x00",
    "é",
    "for update ",
    "into ",
    "grouping sets (",
    ", rollup(",
    '"a"(',
    "with a as (",
    "explain ",
    "copy (",
    "update ",
    "substring(x for ",
    "distinct on (a) f(",
    " ",
    "\n",
    "a.",
    "::",
    "=%(a",
    ") over (",
    "x as b (",
    "group by (",
    "as not materialized (",
    "a . b (",
    ") select",
    "' '",
    "\\e''",
    "delete_",
]


@pytest.mark.parametrize("piece", REPEATED, ids=repr)
def test_time_is_linear_in_length(piece):
    def spent(text: str) -> float:
        times = []
        for _ in range(5):
            began = time.process_time()
            statement = Classifier().classify(text)
            _ = statement.relations, statement.touch, statement.why
            times.append(time.process_time() - began)
        return min(times)

    # Eight times the text may take sixteen times as long, and a little: a square would take sixty-four times.
    for text in (piece, f"select {piece}"):
        assert spent("select " + text * 4_000) <= 16 * spent("select " + text * 500) + 0.2


@settings(max_examples=300)
@given(st.binary(max_size=80))
def test_any_bytes_decoded_as_they_come_are_lexed(raw):
    tokens(raw.decode("latin-1"))
    tokens(raw.decode("utf-8", "surrogateescape"))
