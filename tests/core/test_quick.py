"""The fast way: it answers for what applications send, and leaves to the long way whatever might be more than a read.

That it never says read where the long way does not is in test_classify_differential.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dbguard.core.lexer import HEAD
from dbguard.core.query import Trust
from dbguard.core.quick import plainly_read
from dbguard.core.verbs import QUERIES

CORPUS = Path(__file__).parent.parent / "corpus"
NAMES = Trust(frozenset(), frozenset({"upper", "pg_catalog.sin"})).backwards

PLAIN = [
    "SELECT 1;",
    "SELECT a, b FROM t WHERE c=%s AND d=%(e)s AND f = $1::int AND g=-1",
    "SELECT 'it''s; -- nextval(', E'a\\n', \"x\"\"y\" FROM \"T\"",
    "SELECT count(*) FILTER (WHERE a > 1) OVER (PARTITION BY (b)) FROM t",
    "SELECT pg_catalog.lower(x), coalesce(y, 1) FROM (a LEFT JOIN (b JOIN (SELECT 1) AS c(d) ON true) ON true)",
    "WITH RECURSIVE t(n) AS NOT MATERIALIZED (SELECT 1) SELECT * FROM t",
    "WITH t AS (SELECT 1) (SELECT * FROM t)",
    "SELECT t.update, last_update, updated_at, format, waiting_for FROM t",
    "SELECT substring(a FROM 1 FOR 2), 'é', \"ü\" FROM t ORDER BY (a)",
    "VALUES (1), (2)",
    "TABLE t",
]
NOT_PLAIN = [
    "SELECT f(1)",
    "SELECT éabs(1)",
    "SELECT a$abs(1)",
    "SELECT s.lower(1)",
    "SELECT s . lower(1)",
    "SELECT s.on(1)",
    "SELECT s . on (1)",
    'SELECT "s".lower(1)',
    'SELECT "Lower" (1)',
    "SELECT upper('x')",
    "SELECT pg_catalog.sin(1)",
    "SELECT a || over(1)",
    "SELECT DISTINCT ON (a) over(1) FROM t",
    "SELECT DISTINCT ON (a) filter(1) FROM t",
    "SELECT join(1)",
    "SELECT NOT materialized(1)",
    "SELECT by(1)",
    "SELECT 1 OPERATOR(public.+) 2",
    "SELECT a AS OPERATOR(public.+)",
    "SELECT a === b",
    "SELECT a =%x",
    "SELECT %s(1)",
    "SELECT 1 FROM t FOR\nUPDATE",
    "SELECT 1 FROM t FOR NO KEY UPDATE",
    "SELECT 1 FROM t FOR SHARE",
    "SELECT 1 FROM t FOR KEY SHARE",
    "SELECT 1 INTO t",
    "SELECT 1.into t",
    "SELECT $1into t",
    'SELECT "a"into t',
    "WITH a AS (DELETE FROM t RETURNING 1) SELECT 1",
    "WITH a AS (UPDATE t SET a = 1 RETURNING 1) SELECT 1",
    "WITH a AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT 1",
    "WITH a AS (SELECT 1) DELETE FROM t",
    "WITH a AS (SELECT 1)",
    "WITH",
    "SELECT 1; DELETE FROM t",
    "SELECT 1; SELECT 2",
    "SELECT '; DELETE FROM t",
    "SELECT E'\\'; DELETE FROM t; --'",
    "SELECT a.E'\\', f(1), '",
    "SELECT E'a''\\', f(1), '",
    "SELECT $$'$$, f(1), $$'$$",
    "SELECT $a$'$a$, f(1), $a$'$a$",
    'SELECT "\'", f(1), "\'"',
    "SELECT /*'*/ f(1) /*'*/",
    "SELECT --'\n f(1) --'",
    'SELECT U&"\\0061"',
    "SELECT (1",
    "SELECT 1)",
    'SELECT "a',
    "SELECT a\x00b",
    "SELECT {1}",
    "SELECT a \\ b",
]


def asked(sql):
    return plainly_read(sql, NAMES, HEAD.match(sql)[1].lower())


@pytest.mark.parametrize("sql", PLAIN)
def test_plain_reads_are_recognized(sql):
    assert asked(sql)


@pytest.mark.parametrize("sql", NOT_PLAIN)
def test_whatever_may_be_more_is_left_to_the_long_way(sql):
    assert not asked(sql)


@pytest.mark.parametrize("name", ["sqlalchemy", "django"])
def test_nearly_all_that_frameworks_read_is_answered_fast(name):
    lines = map(json.loads, (CORPUS / f"{name}.jsonl").read_text().splitlines())
    reads = [line["sql"] for line in lines if line["label"] == "read"]
    queries = [sql for sql in reads if HEAD.match(sql)[1].lower() in QUERIES]

    assert sum(map(asked, queries)) >= len(queries) * 0.9
