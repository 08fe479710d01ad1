"""RULES 6.1: the reset is left out only where no function of the users' can have run.

Each case is a real database with one trap in it. The trap's function sets the tenant of the session; what it leaves must
never be seen by the next user of the connection.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.core.statement import Touch
from dbguard.drivers.catalogue import read_catalogue
from dbguard.texts import Texts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.testing.cluster import Cluster

_numbers = itertools.count(1)

LEAVES = """
CREATE FUNCTION leaves(int) RETURNS int LANGUAGE plpgsql STABLE AS
$$ BEGIN PERFORM set_config('my.tenant', 'red', false); RETURN $1; END $$;
CREATE FUNCTION leaves_trigger() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM set_config('my.tenant', 'red', false); RETURN NEW; END $$;
CREATE FUNCTION sure(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS
$$ BEGIN PERFORM set_config('my.tenant', 'red', false); RETURN true; END $$;
CREATE TABLE plain (id int PRIMARY KEY, n int);
INSERT INTO plain VALUES (1, 1);
"""


@pytest.fixture
async def con(single: Cluster) -> AsyncIterator[Any]:
    """A connection to a database of its own, which has the functions that leave something."""
    name = f"catalogue{next(_numbers)}"
    single.sql("a", f"CREATE DATABASE {name}")
    con = await asyncpg.connect(single.dsn(database=name))
    await con.execute(LEAVES)
    yield con
    await con.close()
    single.sql("a", f"DROP DATABASE {name} WITH (FORCE)")


async def texts_of(con: Any) -> Texts:
    texts = Texts()
    catalogue = await read_catalogue(con, timeout=30)
    assert catalogue is not None
    texts.trust(catalogue, texts.version)
    return texts


PLAIN = {
    "a table": ("SELECT 1", "SELECT * FROM plain WHERE id = 1"),
    "its schema": ("SELECT 1", "SELECT * FROM public.plain"),
    "no relation": ("SELECT 1", "SELECT 1"),
    "an update": ("SELECT 1", "UPDATE plain SET n = n + 1 WHERE id = 1"),
    "an enum": ("CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE t (m mood, ms mood[])", "SELECT m, ms FROM t"),
    "own functions": (
        (
            "CREATE TABLE t (id int CHECK (abs(id) > 0), at timestamptz DEFAULT now(), g int GENERATED ALWAYS AS (abs(id)) STORED);"
            "CREATE INDEX ON t (abs(id)) WHERE abs(id) > 1"
        ),
        "SELECT * FROM t",
    ),
    "a view": ("CREATE VIEW v AS SELECT id, abs(n) FROM plain", "SELECT * FROM v"),
    "partitions": (
        "CREATE TABLE t (id int) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (9)",
        "SELECT * FROM t",
    ),
    "a foreign key": ("CREATE TABLE t (id int REFERENCES plain ON DELETE CASCADE)", "DELETE FROM plain WHERE id = 7"),
    "a name in quotes": ('CREATE TABLE "A b" (id int)', 'SELECT * FROM "A b"'),
}


@pytest.mark.parametrize("case", PLAIN)
async def test_what_runs_no_function_of_users_needs_no_reset(case: str, con: Any) -> None:
    setup, statement = PLAIN[case]
    await con.execute(setup)

    assert (await texts_of(con)).learn(statement).touched is Touch.NOTHING


@pytest.mark.parametrize("statement", ["INSERT INTO t DEFAULT VALUES", "INSERT INTO t (n) VALUES (1)"])
async def test_drawing_from_a_sequence_leaves_what_any_insert_leaves(statement: str, con: Any) -> None:
    await con.execute("CREATE TABLE t (id serial, n int)")

    text = (await texts_of(con)).learn(statement)

    assert text.touched <= Touch.SETTINGS


TENANT = """
CREATE ROLE {role} LOGIN; GRANT ALL ON plain TO {role}; ALTER TABLE plain ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON plain USING (leaves(id) = id)
"""
MEMBER = "CREATE TYPE pair AS (a int, b int); "
TRAPS = {
    "a default": ("CREATE TABLE t (id int DEFAULT leaves(1), n int)", "INSERT INTO t (n) VALUES (1)"),
    "a check": ("CREATE TABLE t (id int CHECK (leaves(id) = id))", "INSERT INTO t VALUES (1)"),
    "a generated column": (
        "CREATE TABLE t (id int, g bool GENERATED ALWAYS AS (sure(id)) STORED)",
        "INSERT INTO t VALUES (1)",
    ),
    "an index on an expression": ("CREATE TABLE t (id int); CREATE INDEX ON t (sure(id))", "INSERT INTO t VALUES (1)"),
    "an index's predicate": ("CREATE TABLE t (id int); CREATE INDEX ON t (id) WHERE sure(id)", "INSERT INTO t VALUES (1)"),
    "an index's operator class": (
        ("CREATE FUNCTION compared(int, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN PERFORM public.leaves(1); RETURN $1 - $2; END $$;"
        "CREATE OPERATOR CLASS mine FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,"
        " OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 compared(int, int);"
        "CREATE TABLE t (id int); INSERT INTO t VALUES (1), (2); CREATE INDEX ON t (id mine)"),
        "INSERT INTO t VALUES (3)",
    ),
    "a partition's operator class": (
        ("CREATE FUNCTION compared(int, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN PERFORM public.leaves(1); RETURN $1 - $2; END $$;"
        "CREATE OPERATOR CLASS mine FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,"
        " OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 compared(int, int);"
        "CREATE TABLE t (id int) PARTITION BY RANGE (id mine); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (9);"
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (9) TO (19)"),
        "INSERT INTO t VALUES (3)",
    ),
    "a partition's key": (
        "CREATE TABLE t (id int) PARTITION BY LIST (sure(id)); CREATE TABLE t1 PARTITION OF t FOR VALUES IN (true)",
        "INSERT INTO t VALUES (3)",
    ),
    "a trigger": (
        "CREATE TRIGGER x BEFORE UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION leaves_trigger()",
        "UPDATE plain SET n = 2",
    ),
    "a trigger of a partition": (
        ("CREATE TABLE t (id int) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (9);"
        "CREATE TRIGGER x BEFORE INSERT ON t1 FOR EACH ROW EXECUTE FUNCTION leaves_trigger()"),
        "INSERT INTO t VALUES (1)",
    ),
    "a trigger of a child": (
        ("CREATE TABLE child () INHERITS (plain); INSERT INTO child VALUES (2, 2);"
        "CREATE TRIGGER x BEFORE UPDATE ON child FOR EACH ROW EXECUTE FUNCTION leaves_trigger()"),
        "UPDATE plain SET n = 2",
    ),
    "a trigger behind two foreign keys": (
        ("CREATE TABLE b (id int PRIMARY KEY REFERENCES plain ON UPDATE CASCADE);"
        "CREATE TABLE c (id int REFERENCES b ON UPDATE CASCADE); INSERT INTO b VALUES (1); INSERT INTO c VALUES (1);"
        "CREATE TRIGGER x BEFORE UPDATE ON c FOR EACH ROW EXECUTE FUNCTION leaves_trigger()"),
        "UPDATE plain SET id = 5 WHERE id = 1",
    ),
    "a rule": (
        "CREATE RULE x AS ON UPDATE TO plain DO ALSO SELECT leaves(1)",
        "UPDATE plain SET n = 2",
    ),
    "a view's query": ("CREATE VIEW v AS SELECT leaves(id) FROM plain", "SELECT * FROM v"),
    "a view over a view": (
        "CREATE VIEW v AS SELECT leaves(id) AS id FROM plain; CREATE VIEW w AS SELECT id FROM v",
        "SELECT * FROM w",
    ),
    "a view that calls set_config": (
        "CREATE VIEW v AS SELECT set_config('my.tenant', 'red', false)",
        "SELECT * FROM v",
    ),
    "a domain's column": (
        "CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE); CREATE TABLE t (id checked)",
        "INSERT INTO t VALUES (1)",
    ),
    "a domain in an array": (
        "CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE); CREATE TABLE t (ids checked[])",
        "INSERT INTO t VALUES ('{1}')",
    ),
    "a cast to a domain": ("CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE)", "SELECT '1'::checked"),
    "a cast written out": ("CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE)", "SELECT CAST(1 AS CHECKED)"),
    "a literal of a domain": ("CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE)", "SELECT checked '1'"),
    "a column list of a domain": (
        "CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE)",
        """SELECT * FROM json_to_record('{"a": 1}') AS x(a checked)""",
    ),
    "a row of a domain": (
        "CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE); CREATE TYPE pair AS (a checked)",
        """SELECT json_populate_record(NULL::pair, '{"a": 1}')""",
    ),
    "a view that casts to a domain": (
        ("CREATE DOMAIN checked AS int CHECK (leaves(VALUE) = VALUE);"
        "CREATE VIEW v AS SELECT (n::checked)::int AS n FROM plain"),
        "SELECT * FROM v",
    ),
    "a function written as a column": (
        "CREATE FUNCTION shown(plain) RETURNS int LANGUAGE sql STABLE AS 'SELECT leaves(1)'",
        "SELECT plain.shown FROM plain",
    ),
    "a function of any row written as a column": (
        "CREATE FUNCTION shown(anyelement, int DEFAULT 1) RETURNS int LANGUAGE sql STABLE AS 'SELECT leaves(1)'",
        "SELECT s.shown FROM (SELECT * FROM plain) AS s",
    ),
    "an operator in PostgreSQL's own name": (
        ("CREATE FUNCTION glued(text, int) RETURNS int LANGUAGE sql STABLE AS 'SELECT leaves($2)';"
        "CREATE OPERATOR + (LEFTARG = text, RIGHTARG = int, FUNCTION = glued)"),
        "SELECT 'a'::text + 1",
    ),
    "a function in PostgreSQL's own name": (
        "CREATE FUNCTION lower(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT leaves($1)'",
        "SELECT lower(1)",
    ),
    "a cast between PostgreSQL's own types": (
        ("CREATE FUNCTION as_int(point) RETURNS int LANGUAGE sql STABLE AS 'SELECT leaves(1)';"
        "CREATE CAST (point AS int) WITH FUNCTION as_int(point) AS ASSIGNMENT"),
        "SELECT '(1,2)'::point::int",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAPS)
async def test_a_trap_is_reset_after(case: str, con: Any) -> None:
    setup, statement = TRAPS[case]
    await con.execute(setup)
    await con.execute("SET my.tenant = 'none'")

    await con.execute(statement)

    assert await con.fetchval("SHOW my.tenant") == "red"  # it is a trap
    assert (await texts_of(con)).learn(statement).touched >= Touch.SETTINGS


async def test_a_tenants_policy_is_reset_after_though_its_function_is_stable(con: Any) -> None:
    role = f"tenant{next(_numbers)}"
    await con.execute(TENANT.format(role=role))
    await con.execute(f"SET my.tenant = 'none'; SET ROLE {role}")

    await con.execute("SELECT * FROM plain")

    assert await con.fetchval("SHOW my.tenant") == "red"
    assert (await texts_of(con)).learn("SELECT * FROM plain").touched >= Touch.SETTINGS
    await con.execute(f"RESET ROLE; DROP POLICY tenant ON plain; REVOKE ALL ON plain FROM {role}; DROP ROLE {role}")


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT * FROM plain", "SELECT '1'::checked"])
async def test_nothing_is_left_out_before_the_catalogue_was_read_and_after_ddl(statement: str, con: Any) -> None:
    assert Texts().learn(statement).touched >= Touch.SETTINGS

    texts = await texts_of(con)
    texts.learn(statement)
    texts.changed()

    assert texts.learn(statement).touched >= Touch.SETTINGS


async def test_a_reading_that_ddl_has_overtaken_is_not_trusted(con: Any) -> None:
    texts = Texts()
    version = texts.version
    catalogue = await read_catalogue(con, timeout=30)
    assert catalogue is not None

    texts.changed()
    texts.trust(catalogue, version)

    assert texts.learn("SELECT * FROM plain").touched >= Touch.SETTINGS


async def test_foreign_tables_and_temporary_ones_are_never_plain(con: Any) -> None:
    await con.execute("CREATE TEMP TABLE mine (id int)")
    texts = await texts_of(con)

    assert texts.learn("SELECT * FROM mine").touched >= Touch.SETTINGS


WRITES = """
CREATE FUNCTION writes(int) RETURNS int LANGUAGE plpgsql VOLATILE AS
$$ BEGIN UPDATE plain SET n = n + 1; RETURN $1; END $$;
CREATE FUNCTION adds(int, int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT writes($1) + $2';
CREATE SEQUENCE drawn;
"""

WRITERS = {
    "a volatile function": ("SELECT 1", "SELECT writes(1)"),
    "a volatile overload of a stable one": (
        (
            "CREATE FUNCTION looks(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1';"
            "CREATE FUNCTION looks(text) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT writes(1)'"
        ),
        "SELECT looks('1'::text)",
    ),
    "a volatile function in PostgreSQL's own name": (
        "CREATE FUNCTION lower(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT writes($1)'",
        "SELECT lower(1)",
    ),
    "a function in PostgreSQL's own name, in a schema before PostgreSQL's": (
        (
            "CREATE SCHEMA early; CREATE FUNCTION early.upper(text) RETURNS text LANGUAGE sql VOLATILE AS"
            " 'SELECT public.writes(1)::text'; SET search_path = early, pg_catalog, public"
        ),
        "SELECT upper('a')",
    ),
    "an aggregate of a volatile function": (
        "CREATE AGGREGATE gathered(int) (SFUNC = adds, STYPE = int, INITCOND = '0')",
        "SELECT gathered(id) FROM plain",
    ),
    "a name in quotes": (
        "CREATE FUNCTION \"Writes\"(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT writes($1)'",
        'SELECT "Writes"(1)',
    ),
    "a function written as a column": (
        "CREATE FUNCTION shown(plain) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT writes(1)'",
        "SELECT plain.Shown FROM plain",
    ),
    "an operator": ("CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = adds)", "SELECT 1 === 2"),
    "an operator in PostgreSQL's own name": (
        (
            "CREATE FUNCTION glued(point, int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT writes($2)';"
            "CREATE OPERATOR + (LEFTARG = point, RIGHTARG = int, FUNCTION = glued)"
        ),
        "SELECT '(1,2)'::point + 1",
    ),
    "a cast": (
        (
            "CREATE TYPE pair AS (a int, b int); CREATE FUNCTION as_pair(int) RETURNS pair LANGUAGE sql VOLATILE AS"
            " 'SELECT writes($1), 2'; CREATE CAST (int AS pair) WITH FUNCTION as_pair(int)"
        ),
        "SELECT 1::pair",
    ),
    "a domain": ("CREATE DOMAIN checked AS int CHECK (writes(VALUE) > 0)", "SELECT 1::Checked"),
    "a domain that draws from a sequence": (
        "CREATE DOMAIN checked AS int CHECK (nextval('drawn') > 0)",
        "SELECT CAST(1 AS checked)",
    ),
    "a domain over a domain": (
        "CREATE DOMAIN inner_one AS int CHECK (writes(VALUE) > 0); CREATE DOMAIN outer_one AS inner_one",
        "SELECT 1::outer_one",
    ),
    "a view": ("CREATE VIEW v AS SELECT writes(id) FROM plain", "SELECT * FROM v"),
    "a view over a view": (
        "CREATE VIEW v AS SELECT writes(id) AS id FROM plain; CREATE VIEW w AS SELECT id FROM v",
        "SELECT * FROM w",
    ),
    "a view with an operator": (
        "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = adds); CREATE VIEW v AS SELECT id === 1 AS x FROM plain",
        "SELECT * FROM v",
    ),
    "a view with a domain": (
        "CREATE DOMAIN checked AS int CHECK (writes(VALUE) > 0); CREATE VIEW v AS SELECT id::checked AS x FROM plain",
        "SELECT * FROM v",
    ),
    "a view with a name beyond ASCII": ("CREATE VIEW été AS SELECT writes(id) FROM plain", "SELECT * FROM été"),
    "a view with a dollar in its name": ("CREATE VIEW a$b AS SELECT writes(id) FROM plain", "SELECT * FROM a$b"),
}


@pytest.mark.parametrize("case", WRITERS)
async def test_what_runs_a_volatile_function_is_no_read(case: str, con: Any) -> None:
    setup, statement = WRITERS[case]
    await con.execute(WRITES)
    await con.execute(setup)
    written = "SELECT (SELECT n FROM public.plain) + (SELECT last_value FROM public.drawn)"
    before = await con.fetchval(written)

    texts = await texts_of(con)
    await con.execute(statement)
    await con.execute(statement)

    assert await con.fetchval(written) > before, "it writes"
    assert not texts.learn(statement).reads


async def test_a_stable_function_is_trusted_until_it_is_not_stable_any_more(con: Any) -> None:
    await con.execute("CREATE FUNCTION looks(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'")
    assert (await texts_of(con)).learn("SELECT looks(1)").reads

    await con.execute("CREATE OR REPLACE FUNCTION looks(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT $1'")
    assert not (await texts_of(con)).learn("SELECT looks(1)").reads


@pytest.mark.parametrize(
    "setup",
    [
        "CREATE FUNCTION looks(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'",
        "CREATE FUNCTION \"Looks\"(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'",
        "CREATE AGGREGATE looks(int) (SFUNC = int4larger, STYPE = int)",
        "CREATE DOMAIN small AS int CHECK (VALUE < 9)",
    ],
)
async def test_what_runs_no_volatile_function_is_a_read(setup: str, con: Any) -> None:
    await con.execute(setup)
    texts = await texts_of(con)
    named = {"AGG": "SELECT looks(id) FROM plain", "DOM": "SELECT 1::small"}
    statement = named.get(setup[7:10], 'SELECT "Looks"(1)' if '"' in setup else "SELECT looks(1)")

    assert texts.learn(statement).reads
