"""Which relations a text names: too many cost a reset, too few would hand on a touched session."""

from __future__ import annotations

import pytest

from dbguard.core.classify import classify

NAMED = [
    ("SELECT 1", ""),
    ("SELECT * FROM a", "a"),
    ("SELECT * FROM a, b x, S.C AS y, ONLY d", "a b s.c d"),
    ('SELECT * FROM "a", "B", "s"."T t"', 'a "B" s."T t"'),
    ("SELECT * FROM a JOIN b ON a.x = b.x LEFT JOIN c USING (x), d", "a b c d"),
    ("SELECT * FROM (a JOIN b ON true) CROSS JOIN (SELECT c, d FROM e) f", "a b e"),
    ("SELECT * FROM f(x), LATERAL g(y) AS z(q), ROWS FROM (h(1), k(2)) WITH ORDINALITY AS t(x, y), a", "a"),
    ("SELECT extract(year FROM x), trim(both FROM y), a IS DISTINCT FROM b FROM c", "c"),
    ("SELECT (SELECT max(x) FROM a) FROM b WHERE EXISTS (SELECT FROM c) AND d IN (SELECT e FROM f, g)", "a b c f g"),
    ("SELECT * FROM a UNION SELECT * FROM b EXCEPT TABLE c", "a b c"),
    ("WITH x AS (SELECT * FROM a), y(q) AS MATERIALIZED (SELECT * FROM x) SELECT * FROM x, y, b", "a b"),
    ("WITH t AS (SELECT * FROM t) SELECT * FROM t", "t"),
    ("WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t) SELECT * FROM t", ""),
    ("SELECT * FROM (WITH t AS (SELECT 1) SELECT * FROM t) x, t", "t"),
    ("WITH t AS (SELECT 1) SELECT * FROM public.t", "public.t"),
    ("WITH t AS (SELECT 1) INSERT INTO t SELECT * FROM t", "t"),
    ("TABLE a", "a"),
    ("VALUES (1, (SELECT x FROM a))", "a"),
    ("SELECT * FROM a FOR UPDATE OF a", "a"),
    ("INSERT INTO a (x, y) SELECT b, c FROM d RETURNING (SELECT 1 FROM e)", "a d e"),
    ("INSERT INTO a VALUES (1) ON CONFLICT (x) DO UPDATE SET y = (SELECT z FROM b)", "a b"),
    ("UPDATE ONLY a AS x SET b = 1, c = 2 FROM d, e WHERE f", "a d e"),
    ("DELETE FROM a USING b, c WHERE true", "a b c"),
    ("DELETE FROM a USING (SELECT * FROM b) x", "a b"),
    (
        "MERGE INTO a USING b ON a.x = b.x WHEN MATCHED THEN UPDATE SET y = 1 WHEN NOT MATCHED THEN INSERT VALUES (1)",
        "a b",
    ),
    ("COPY a FROM STDIN", "a"),
    ("COPY s.a (x, y) TO STDOUT WITH (FORMAT csv)", "s.a"),
    ("COPY (SELECT * FROM a) TO STDOUT", "a"),
    ("EXPLAIN (ANALYZE) SELECT * FROM a", "a"),
    ("EXPLAIN ANALYZE UPDATE a SET x = 1", "a"),
    ("SELECT * FROM a; SELECT * FROM b", "a b"),
    ("SHOW search_path", ""),
]


@pytest.mark.parametrize(("sql", "names"), NAMED, ids=[sql for sql, _ in NAMED])
def test_relations_named_in_a_text(sql, names):
    expected = {'s."T t"', "a", '"B"'} if "T t" in names else set(names.split())

    assert classify(sql).relations == expected


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (a int)",
        "SET a = 1",
        "gibberish",
        "",
        "CALL p()",
        "SELECT * INTO TEMP a FROM b",
        'SELECT * FROM U&"a"',
        "EXPLAIN CREATE TABLE a AS SELECT 1",
        "SELECT 1; SET a = 1",
    ],
)
def test_relations_of_what_is_not_understood_are_not_known(sql):
    assert classify(sql).relations is None


def test_rows_come_back_from_what_returns_them():
    assert classify("INSERT INTO t VALUES (1) RETURNING a").returns_rows
    assert not classify("INSERT INTO t VALUES (1)").returns_rows
    assert classify("SELECT 1").returns_rows
    assert not classify("SELECT * INTO a FROM b").returns_rows
    assert not classify("SET a = 1").returns_rows
