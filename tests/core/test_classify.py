"""What the classifier says of one text: kind by kind, and what the rest of the guard needs."""

from __future__ import annotations

import pytest

from dbguard.core.classify import Classifier, Kind, Token, Touch, classify

READS = [
    "SELECT 1",
    "(SELECT 1) UNION (SELECT 2)",
    "TABLE t",
    "VALUES (1), (2)",
    "SELECT count(*) FILTER (WHERE x > 1) OVER (PARTITION BY y ORDER BY z) FROM t",
    "WITH t(a) AS (SELECT 1), u(b) AS MATERIALIZED (SELECT 2) SELECT * FROM t x(y), u z(k)",
    "SELECT substring(name FOR 3), overlay(a PLACING b FROM 1 FOR 2) FROM t",
    "SELECT a FROM t GROUP BY GROUPING SETS ((a), rollup(a, b)), cube(c)",
    'SELECT pg_catalog.lower(x), "lower"(x) FROM t',
    "SELECT x::numeric(10, 2), CAST(a AS varchar(3)), g::geometry(point, 4326) FROM t",
    "SELECT * FROM unnest($1::int[]) WITH ORDINALITY AS t(x, n)",
    "SELECT * FROM jsonb_to_recordset($1) AS x(a int, b numeric(3))",
    "SELECT a, delete, t.update FROM permissions t",
    "SELECT a AS into FROM t FOR READ ONLY",
    "SELECT * FROM t WHERE a = %(into)s AND b IN (%s, %s) AND c %% 2 = 1",
    "",
    " ;; -- nothing",
    "SHOW search_path",
    "EXPLAIN SELECT f(x), nextval('s')",
    "SELECT name FROM t WHERE name NOT ILIKE ('x') OR name ILIKE ('y')",
    "SELECT * FROM t data JOIN (SELECT 1) AS s(a) ON true",
    "EXPLAIN DELETE FROM t",
    "EXPLAIN (SELECT 1)",
    "EXPLAIN CREATE TABLE x AS SELECT 1",
    "EXPLAIN (ANALYZE false) DELETE FROM t",
    "EXPLAIN (ANALYZE, BUFFERS) SELECT 1",
    "COPY t TO STDOUT",
    "COPY t TO STDIN",
    "SELECT (information_schema._pg_expandarray(i.indkey)).n FROM pg_index i",
    "WITH a AS (SELECT 1) (SELECT * FROM a LIMIT 1) UNION (SELECT 2)",
    "WITH a(x) AS (SELECT 1), b AS MATERIALIZED (SELECT 1) ((TABLE a))",
    "COPY (SELECT 1) TO STDOUT WITH (FORMAT csv)",
    "SELECT 1; SELECT 2;",
    "SELECT 1x, 2y FROM t",
    "SELECT relname FROM pg_class WHERE relname OPERATOR(pg_catalog.~) '^t' COLLATE pg_catalog.default",
]
WRITES = [
    "INSERT INTO t VALUES (1)",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "WITH x AS (SELECT 1) UPDATE t SET a = 1",
    "WITH a AS (WITH b AS (SELECT 1) INSERT INTO t SELECT * FROM b RETURNING 1) TABLE a",
    "SELECT * INTO x FROM t",
    "SELECT 1into x",
    "SELECT nextval('s')",
    "SELECT DISTINCT ON (a) nextval('s') FROM t",
    "SELECT 1 FROM t FOR UPDATE",
    "SELECT 1 FROM t FOR NO KEY UPDATE SKIP LOCKED",
    "SELECT 1 FROM t FOR SHARE",
    "SELECT 1 FROM (SELECT 1 FROM t FOR KEY SHARE) x",
    "EXPLAIN ANALYZE DELETE FROM t",
    "EXPLAIN SELECT pg_walfile_name('0/1')",
    "EXPLAIN (ANALYZE) INSERT INTO t VALUES (1)",
    "COPY t FROM STDIN",
    "COPY t TO '/tmp/x'",
    "COPY (DELETE FROM t RETURNING 1) TO STDOUT",
    "NOTIFY x",
    "LOCK TABLE t",
    "CHECKPOINT",
    "ALTER SYSTEM SET a = 1",
    "CALL p()",
    "DO $$ BEGIN END $$",
    "SELECT dblink_exec('x', 'DELETE FROM t')",
    "SELECT pg_terminate_backend(1)",
    "SELECT 1; DELETE FROM t",
    "SELECT 1 AS atomic; DELETE FROM t; SELECT 2 AS create",
    "SELECT 1 AS atomic; CREATE VIEW v AS SELECT 1",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; SELECT 2 AS end; END; SELECT 1",
    "WITH a AS (SELECT nextval('s')) (SELECT * FROM a)",
    "SELECT fmgr_c_validator(1)",
]
SESSIONS = [
    "SET a = 1",
    "SET LOCAL a TO 1",
    "SET ROLE x",
    "RESET ALL",
    "DISCARD ALL",
    "LISTEN x",
    "UNLISTEN *",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE p",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "FETCH 1 FROM c",
    "CLOSE c",
    "LOAD 'x'",
    "SELECT set_config('a.b', 'c', false)",
    "SELECT pg_advisory_lock(1)",
    "SELECT setseed(0.5)",
]
TRANSACTIONS = [
    "BEGIN",
    "START TRANSACTION READ ONLY",
    "COMMIT",
    "END",
    "ROLLBACK TO SAVEPOINT a",
    "ABORT",
    "SAVEPOINT a",
    "RELEASE a",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "PREPARE TRANSACTION 'x'",
    "SELECT 1; COMMIT",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT",
]
UNKNOWNS = [
    "gibberish",
    "SELECT f(x)",
    "SELECT public.lower(x)",
    'SELECT "Lower"(x)',
    "SELECT rollup(1)",
    "SELECT a === b",
    "SELECT a OPERATOR(public.+) b",
    "SELECT 'not closed",
    "SELECT (1",
    "SELECT 1)",
    "WITH a AS (SELECT 1)",
    "SELECT /* not closed",
    "SELECT $$ not closed",
    'SELECT U&"\\0061"(1)',
    "SELECT a\x00b",
    "EXPLAIN SELECT a === b",
    "EXPLAIN DROP TABLE t",
    "SELECT _pg_expandarray(a)",
    "SELECT information_schema.f(a)",
    'SELECT \\."f"(1)',
    'SELECT @@@@."f"(1)',
    "SELECT operator(1)",
    "SELECT operator($1)",
    "SELECT operator(%s)",
    "SELECT 1 FROM a JOIN b ON conflict(1) WHERE c",
]


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        (sql, kind)
        for kind, texts in [
            (Kind.READ, READS),
            (Kind.WRITE, WRITES),
            (Kind.SESSION, SESSIONS),
            (Kind.TRANSACTION, TRANSACTIONS),
            (Kind.UNKNOWN, UNKNOWNS),
        ]
        for sql in texts
    ],
)
def test_a_text_is_called_by_its_kind(sql, kind):
    assert classify(sql).kind is kind, classify(sql)


def test_why_names_the_function_and_its_line():
    assert classify("SELECT 1,\n  nextval('s')").why == "nextval() at line 2"
    assert classify("SELECT a,\n\n app.visit(1)").why == "app.visit(), a function that is not known at line 3"


def test_a_known_text_is_one_look_up_and_the_same_value():
    classifier = Classifier()

    first = classifier.classify("SELECT 1")

    assert classifier.cache["SELECT 1"] is first
    assert classifier.classify("SELECT 1") is first


def test_long_texts_are_not_remembered():
    classifier = Classifier()

    classifier.classify("SELECT '" + "x" * 5000 + "'")

    assert not classifier.cache


def test_the_cache_is_bounded_by_entries():
    classifier = Classifier()

    for number in range(5000):
        classifier.classify(f"SELECT {number}")

    assert len(classifier.cache) <= 4096


@pytest.mark.parametrize("value", [None, b"SELECT 1", 1, ["SELECT 1"]], ids=repr)
def test_what_is_no_text_is_refused(value):
    with pytest.raises(TypeError):
        classify(value)


def test_a_primary_hint_is_kept_beside_the_kind():
    statement = classify("/* dbguard: primary */ SELECT 1")

    assert (statement.kind, statement.hint) == (Kind.READ, "primary")


def test_a_replica_hint_lifts_what_is_unknown_and_nothing_else():
    assert classify("/* dbguard: replica */ SELECT f(x)").is_read
    assert classify("-- dbguard: replica\nSELECT f(x)").is_read
    assert not classify("/* dbguard: replica */ SELECT nextval('s')").is_read
    assert not classify("/* dbguard: replica */ SELECT f(x), setseed(1)").is_read
    assert not classify("SELECT f(x) /* dbguard: replica */").is_read
    assert not classify("SELECT f('/* dbguard: replica */')").is_read


def test_declared_functions_are_believed():
    classifier = Classifier(read_functions=frozenset({"f", "app.g"}), write_functions=frozenset({"lower"}))

    assert classifier.classify("SELECT f(1), app.g(2)").kind is Kind.READ
    assert classifier.classify("SELECT f(1)").user_functions
    assert classifier.classify("SELECT other.g(2)").kind is Kind.UNKNOWN
    assert classifier.classify("SELECT lower('x')").kind is Kind.WRITE
    assert classifier.classify("SELECT pg_catalog.lower('x')").kind is Kind.READ
    assert classifier.classify('SELECT "app.g"(2)').kind is Kind.UNKNOWN  # one name with a dot in it


def test_a_declared_function_counts_for_more_than_a_word_of_newer_syntax():
    classifier = Classifier(write_functions=frozenset({"json_value", "select"}))

    assert classifier.classify("SELECT json_value(a, '$.x') FROM t").kind is Kind.WRITE
    assert classifier.classify("SELECT * FROM (SELECT 1) t").kind is Kind.READ


@pytest.mark.parametrize(
    ("sql", "touch"),
    [
        ("SELECT 1", Touch.NOTHING),
        ("INSERT INTO t VALUES (1)", Touch.NOTHING),
        ("INSERT INTO t VALUES (nextval('s'))", Touch.IDENTITY),
        ("INSERT INTO t SELECT set_config('a.b', 'c', false)", Touch.SETTINGS),
        ("SELECT set_config($1, 'c', false)", Touch.IDENTITY),
        ("SELECT set_config('role', 'c', false)", Touch.IDENTITY),
        ("SELECT set_config('a.b', $1, true)", Touch.NOTHING),
        ("SET a = 1", Touch.SETTINGS),
        ("SET SESSION ROLE x", Touch.IDENTITY),
        ("SET SESSION AUTHORIZATION x", Touch.IDENTITY),
        ("SET LOCAL ROLE x", Touch.NOTHING),
        ("CREATE TEMP TABLE t (a int)", Touch.IDENTITY),
        ("SELECT * INTO TEMP t FROM u", Touch.IDENTITY),
        ("SELECT pg_advisory_lock(1)", Touch.SETTINGS),
        ("LISTEN x", Touch.SETTINGS),
        ("PREPARE p AS SELECT 1", Touch.LOST),
        ("DISCARD ALL", Touch.LOST),
        ("SELECT setseed(1)", Touch.LOST),
        ("SET SEED TO 0.5", Touch.LOST),
        ("SET LOCAL seed = 0.5", Touch.LOST),
        ("SELECT set_config('seed', '0.5', true)", Touch.LOST),
        ("SELECT * FROM dblink('a', 'b') AS t(x int)", Touch.LOST),
        ("gibberish", Touch.LOST),
        ("SELECT 1; SET ROLE x", Touch.IDENTITY),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SET ROLE x", Touch.IDENTITY),
        ("MERGE INTO t USING u ON a = b WHEN NOT MATCHED AND c THEN INSERT (d, e) VALUES (1, 2)", Touch.NOTHING),
        ("INSERT INTO t VALUES (1) ON CONFLICT (a) WHERE b DO NOTHING", Touch.NOTHING),
        ("INSERT INTO t SELECT 1 FROM u JOIN v ON conflict(1) ON CONFLICT DO NOTHING", Touch.SETTINGS),
        ("INSERT INTO t VALUES (1) RETURNING WITH (OLD AS o) f(1)", Touch.SETTINGS),
    ],
)
def test_what_a_text_leaves_on_the_session(sql, touch):
    assert classify(sql).touch is touch


@pytest.mark.parametrize(
    ("sql", "token"),
    [
        ("INSERT INTO t VALUES (1)", Token.CTE),
        ("WITH a AS (SELECT 1) DELETE FROM t", Token.CTE),
        ("MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE", Token.CTE),
        ("WITH a AS (DELETE FROM t RETURNING 1) SELECT * FROM a", Token.BLOCK),
        ("COPY t FROM STDIN", Token.BLOCK),
        ("CREATE TABLE t (a int)", Token.BLOCK),
        ("SELECT f(1)", Token.BLOCK),
        ("INSERT INTO t VALUES (1); DELETE FROM t", Token.BLOCK),
        ("NOTIFY x", Token.BLOCK),
        ("CALL p()", Token.NONE),
        ("DO ''", Token.NONE),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", Token.NONE),
        ("VACUUM", Token.NONE),
        ("BEGIN", Token.NONE),
        ("INSERT INTO t VALUES (1); COMMIT", Token.NONE),
        ("gibberish", Token.NONE),
        ("SELECT 1 FROM t FOR UPDATE", Token.NONE),
    ],
)
def test_the_form_in_which_a_write_carries_its_token(sql, token):
    assert classify(sql).token is token


@pytest.mark.parametrize(
    ("sql", "one"),
    [
        ("INSERT INTO t VALUES (1)", True),
        ("SELECT f(1)", True),
        ("COPY t FROM STDIN", True),
        ("DROP TABLE t; CREATE TABLE t (a int)", True),
        ("TRUNCATE t", True),
        ("CALL p()", False),
        ("DO ''", False),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", False),
        ("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", False),
        ("CREATE DATABASE d", False),
        ("VACUUM t", False),
        ("INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2)", False),
        ("SELECT 1; CALL p()", False),
    ],
)
def test_only_what_is_one_transaction_by_itself_is_called_so(sql, one):
    assert classify(sql).one_transaction is one


@pytest.mark.parametrize(
    ("sql", "repeatable"),
    [
        ("SELECT 1", True),
        ("SELECT 1 FROM t FOR UPDATE", True),
        ("SELECT nextval('s') FROM t FOR UPDATE", False),
        ("SET a = 1", True),
        ("RESET ALL", True),
        ("LISTEN x", False),
        ("SELECT pg_advisory_lock(1)", False),
        ("SELECT set_config('a.b', 'c', false)", True),
        ("INSERT INTO t VALUES (1)", False),
        ("EXECUTE p", False),
        ("/* dbguard: replica */ SELECT f(x)", False),
    ],
)
def test_what_only_locks_rows_or_sets_the_session_may_be_repeated(sql, repeatable):
    assert classify(sql).repeatable is repeatable


CALLS = (
    """
SELECT a, f(1) b
SELECT ALL f(1)
SELECT DISTINCT f(1)
SELECT DISTINCT ON (a) f(1)
SELECT - f(1)
SELECT 'a' || f(1)
SELECT NOT f(1)
SELECT a[f(1)]
SELECT ((f(1)))
SELECT ROW(f(1))
SELECT CAST(f(1) AS int)
SELECT coalesce(f(1))
SELECT CASE WHEN f(1) THEN 1 END
SELECT CASE f(1) WHEN 1 THEN 2 END
SELECT a AT TIME ZONE f(1)
SELECT a BETWEEN f(1) AND 2
SELECT a BETWEEN 1 AND f(1)
SELECT a LIKE f(1)
SELECT a LIKE b ESCAPE f(1)
SELECT a SIMILAR TO f(1)
SELECT a IS DISTINCT FROM f(1)
SELECT a OPERATOR(pg_catalog.+) f(1)
SELECT a OPERATOR(+) f(1)
SELECT substring(a FROM f(1) FOR 2)
SELECT substring(a FOR f(1))
SELECT position(a IN f(1))
SELECT trim(LEADING f(1) FROM b)
SELECT overlay(a PLACING f(1) FROM 1)
SELECT extract(year FROM f(1))
SELECT array_agg(x ORDER BY f(y)) FROM t
SELECT sum(x) FILTER (WHERE f(1)) FROM t
SELECT sum(x) OVER (PARTITION BY f(1)) FROM t
SELECT sum(x) OVER (ORDER BY a ROWS f(1) PRECEDING) FROM t
SELECT sum(x) OVER (ORDER BY a RANGE BETWEEN f(1) PRECEDING AND CURRENT ROW) FROM t
SELECT percentile_cont(f(1)) WITHIN GROUP (ORDER BY a) FROM t
SELECT xmlelement(NAME x, f(1))
SELECT xmlparse(DOCUMENT f(1))
SELECT xmlparse(CONTENT f(1))
SELECT xmlexists('/a' PASSING f(1))
SELECT xmlexists('/a' PASSING BY REF f(1))
SELECT xmlroot(a, VERSION f(1))
SELECT json_object('a' VALUE f(1))
SELECT json_object('a' : f(1))
SELECT * FROM f(1)
SELECT * FROM t, f(1)
SELECT * FROM t AS x(a), f(1)
SELECT * FROM t JOIN f(1) ON true
SELECT * FROM t NATURAL JOIN f(1)
SELECT * FROM t, LATERAL f(1)
SELECT * FROM ROWS FROM (f(1))
SELECT * FROM t TABLESAMPLE f(1)
SELECT * FROM t TABLESAMPLE system (f(1))
SELECT * FROM t WHERE f(1)
SELECT * FROM t WHERE a IN (f(1))
SELECT * FROM t WHERE a = ANY (SELECT f(1))
SELECT a FROM t GROUP BY f(1)
SELECT a FROM t GROUP BY ROLLUP (f(1))
SELECT a FROM t GROUP BY a HAVING f(1)
SELECT a FROM t ORDER BY f(1)
SELECT a FROM t LIMIT f(1)
SELECT a FROM t OFFSET f(1)
SELECT a FROM t FETCH FIRST f(1) ROWS ONLY
SELECT 1 UNION SELECT f(1)
VALUES (1), (f(1))
WITH a(b) AS (SELECT f(1)) SELECT * FROM a
SELECT 1 WHERE EXISTS (SELECT f(1))
SELECT $$a$$, f(1)
SELECT E'\\'', f(1)
SELECT 1 -- '
, f(1)
SELECT CASE WHEN true THEN f(1) END
SELECT CASE WHEN true THEN 1 ELSE f(1) END
SELECT a IN (b, f(1))
SELECT a NOT IN (f(1))
SELECT a NOT LIKE f(1)
SELECT a NOT SIMILAR TO f(1)
SELECT a NOT BETWEEN f(1) AND 2
SELECT a IS NOT DISTINCT FROM f(1)
SELECT a COLLATE "C" < f(1)
SELECT a::int + f(1)
SELECT a % f(1)
SELECT a[1:f(1)]
SELECT ARRAY[f(1)]
SELECT a <> ALL (ARRAY[f(1)])
SELECT nullif(a, f(1))
SELECT normalize(f(1), NFC)
SELECT collation for (f(1))
SELECT abs(VARIADIC f(1))
SELECT abs(x => f(1))
SELECT sum(DISTINCT f(1))
SELECT json_object(KEY f(1) VALUE 1)
SELECT json_value(a, '$' PASSING f(1) AS x)
SELECT json_value(a, '$' RETURNING int DEFAULT f(1) ON EMPTY)
SELECT * FROM json_table(f(1), '$' COLUMNS (a int PATH '$'))
SELECT * FROM xmltable('/a' PASSING x COLUMNS a int PATH 'x' DEFAULT f(1))
SELECT sum(x) OVER (ORDER BY a GROUPS BETWEEN f(1) PRECEDING AND f(1) FOLLOWING) FROM t
SELECT sum(x) OVER w FROM t WINDOW w AS (ORDER BY f(1))
SELECT * FROM t JOIN u ON f(1)
SELECT * FROM t LEFT JOIN LATERAL f(1) ON true
SELECT * FROM ROWS FROM (abs(2), f(1))
SELECT * FROM t TABLESAMPLE system (1) REPEATABLE (f(1))
SELECT a FROM t GROUP BY a, f(1)
SELECT a FROM t GROUP BY GROUPING SETS (f(1), (f(1)))
SELECT a FROM t ORDER BY f(1) DESC, f(1)
WITH a AS (SELECT 1) (SELECT f(1))
""".strip()
    .replace("\n,", " ,")
    .replace("-- '", "/* ' */")
    .split("\n")
)
"""The places where an expression can stand, each with a call of a function that is not known."""


@pytest.mark.parametrize("sql", CALLS)
def test_a_call_is_seen_wherever_an_expression_can_stand(sql):
    assert classify(sql).kind is Kind.UNKNOWN
    assert classify(sql).user_functions
    assert classify(sql.replace("f(1)", "nextval('s')")).kind is Kind.WRITE or "f(y)" in sql
    assert classify(sql.replace("f(1)", "abs(1)")).kind is Kind.READ or "f(y)" in sql or "TABLESAMPLE f" in sql
