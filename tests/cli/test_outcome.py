"""``dbguard outcome``, and what ``dbguard check`` says of the schema of tokens."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from dbguard.testing.cluster import Cluster
from tests.integration.outcome.conftest import new_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbguard.testing.binaries import Binaries
    from tests.cli.conftest import Ran

OLD = "INSERT INTO dbguard.token (token) SELECT (lpad(to_hex((extract(epoch FROM now() - $1::text::interval) * 1000)::bigint), 12, '0') || '7000' || lpad(to_hex(32768 + n), 4, '0') || '000000000000')::uuid FROM generate_series(1, $2::int) n"
"""Store $2 tokens of writes that are $1 old."""


@pytest.fixture(scope="module")
def home(binaries: Binaries) -> Iterator[Cluster]:
    """One server for this file: each test has a database of its own there."""
    with Cluster(binaries=binaries, replicas=0, settings={"wal_level": "logical"}) as cluster:
        cluster.sql("a", "CREATE ROLE shop LOGIN")
        cluster.sql("a", "CREATE ROLE keeper NOLOGIN")
        cluster.sql("a", 'CREATE ROLE "Odd ""name" LOGIN')
        yield cluster


@pytest.fixture
def database(home: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"d{abs(hash(request.node.name))}"
    home.sql("a", f"CREATE DATABASE {name}")
    yield name
    home.sql("a", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def config(home: Cluster, database: str, tmp_path: Path) -> str:
    """Write a configuration of role shop on that database; returns the file's name."""
    node = home.primary
    file = tmp_path / "guard.yaml"
    file.write_text(
        f"nodes: [{{name: n0, host: {node.host}, port: {node.port}}}]\n"
        f"connection: {{user: shop, database: {database}}}\nstartup: {{wait: 300ms}}\npool: {{max_size: 4}}\n"
    )
    return str(file)


@pytest.fixture
def sql(home: Cluster, database: str) -> Callable[..., list[tuple[object, ...]]]:
    return lambda query, *args: home.sql("a", query, *args, database=database)


@pytest.fixture
def installed(config: str, dbguard: Callable[..., Ran]) -> str:
    ran = dbguard("outcome", "install", config, "--apply", "--user", "postgres")
    assert ran.code == 0, ran.err + ran.out
    return config


def problems(dbguard: Callable[..., Ran], config: str) -> list[str]:
    ran = dbguard("outcome", "status", config, "--json")
    said = json.loads(ran.out)
    assert ran.code == (0 if said["ok"] else 1)
    found: list[str] = said["problems"]
    return found


def notes(dbguard: Callable[..., Ran], config: str) -> list[str]:
    found: list[str] = json.loads(dbguard("outcome", "status", config, "--json").out)["notes"]
    return found


# --- install


def test_without_apply_the_sql_is_printed_and_nothing_is_asked(dbguard: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "guard.yaml"
    file.write_text("nodes: [{host: nowhere.invalid}]\nconnection: {user: shop}\n")

    ran = dbguard("outcome", "install", str(file))

    assert (ran.code, ran.err) == (0, "")
    assert 'GRANT SELECT, INSERT (token, kind), UPDATE (n) ON dbguard.token TO "shop";' in ran.out
    assert ran.out.rstrip().endswith("COMMIT;")
    assert "DROP SCHEMA dbguard CASCADE" in ran.out  # how to get rid of it again


def test_what_is_printed_can_be_run_by_psql(
    config: str, home: Cluster, database: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    psql = shutil.which("psql") or str(home.primary._binaries.program("psql"))
    printed = dbguard("outcome", "install", config, "--owner", "keeper").out

    done = subprocess.run(
        [
            psql,
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-p",
            str(home.primary.port),
            "-U",
            "postgres",
            database,
        ],
        input=printed,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert problems(dbguard, config) == []
    assert sql("SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'dbguard'") == [("keeper",)]


def test_applied_it_says_what_it_did_and_what_comes_next(config: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("outcome", "install", config, "--apply", "--user", "postgres")

    assert (ran.code, ran.err) == (0, "")
    assert "on n0" in ran.out
    assert ": installed, version 1" in ran.out
    assert "owner postgres; role shop may" in ran.out
    assert "outcome: {resolve: token-table}" in ran.out
    assert f"dbguard outcome prune {config}" in ran.out
    assert "cron.schedule" in ran.out


def test_applied_again_it_changes_nothing(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    token = new_token()
    sql("SELECT dbguard.mark($1)", token)
    sql("SELECT dbguard.prune()")
    before = sql("SELECT * FROM dbguard.horizon"), sql("SELECT * FROM dbguard.token")

    ran = dbguard("outcome", "install", installed, "--apply", "--user", "postgres")

    assert (ran.code, ran.err) == (0, "")
    assert "was there (version 1)" in ran.out
    assert (sql("SELECT * FROM dbguard.horizon"), sql("SELECT * FROM dbguard.token")) == before


def test_it_mends_rights_that_were_taken_away(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    sql("REVOKE ALL ON dbguard.horizon FROM shop")
    assert any("lacks a right: GRANT SELECT, UPDATE (one)" in problem for problem in problems(dbguard, installed))

    assert dbguard("outcome", "install", installed, "--apply", "--user", "postgres").code == 0

    assert problems(dbguard, installed) == []


def test_a_role_without_the_right_is_told_the_way_out(config: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("outcome", "install", config, "--apply")

    assert (ran.code, ran.out) == (2, "")
    assert "(42501)" in ran.err
    assert "--user" in ran.err


def test_a_role_that_is_not_there_is_named(config: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("outcome", "install", config, "--apply", "--user", "postgres", "--role", "nobody")

    assert ran.code == 2
    assert '"nobody"' in ran.err
    assert "--role" in ran.err


def test_a_role_with_an_odd_name_is_quoted(config: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("outcome", "install", config, "--apply", "--user", "postgres", "--role", 'Odd "name')

    assert ran.code == 0, ran.err


def test_a_role_that_owns_the_schema_is_warned(
    config: str, dbguard: Callable[..., Ran], sql: Callable[..., object], database: str
) -> None:
    sql(f"GRANT CREATE ON DATABASE {database} TO shop")

    ran = dbguard("outcome", "install", config, "--apply")

    assert ran.code == 0
    assert "which owns the schema" in ran.out


def test_somebody_elses_schema_of_that_name_is_left_alone(
    config: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    sql("CREATE SCHEMA dbguard AUTHORIZATION keeper")

    ran = dbguard("outcome", "install", config, "--apply", "--user", "postgres")

    assert ran.code == 1
    assert "belongs to keeper" in ran.err
    assert sql("SELECT to_regclass('dbguard.token')::text") == [(None,)]


def test_a_newer_schema_is_left_alone(installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]) -> None:
    sql("COMMENT ON SCHEMA dbguard IS 'dbguard: something; schema version 99'")

    ran = dbguard("outcome", "install", installed, "--apply", "--user", "postgres")

    assert ran.code == 1
    assert "version 99" in ran.err
    assert any("upgrade dbguard" in problem for problem in problems(dbguard, installed))


def test_where_all_tables_are_published_it_refuses_with_the_way_out(
    config: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    sql("CREATE TABLE item (id int PRIMARY KEY)")
    sql("CREATE PUBLICATION everything FOR ALL TABLES")

    ran = dbguard("outcome", "install", config, "--apply", "--user", "postgres")

    assert ran.code == 1
    assert "(everything)" in ran.err
    assert 'CREATE PUBLICATION named FOR TABLES IN SCHEMA "public"' in ran.err
    assert sql("SELECT to_regclass('dbguard.token')::text") == [(None,)]

    assert dbguard("outcome", "install", config, "--apply", "--user", "postgres", "--published").code == 0
    assert any("published by everything" in note for note in notes(dbguard, config))


def test_a_replica_is_refused(calm_cluster: Cluster, dbguard: Callable[..., Ran], tmp_path: Path) -> None:
    node = calm_cluster.node("b")
    file = tmp_path / "guard.yaml"
    file.write_text(
        f"nodes: [{{name: n1, host: {node.host}, port: {node.port}}}]\nconnection: {{user: postgres, database: postgres}}\n"
        "startup: {wait: 300ms}\n"
    )

    ran = dbguard("outcome", "install", str(file), "--apply")

    assert (ran.code, ran.out) == (2, "")
    assert "no node answers as the primary" in ran.err
    assert "n1: a replica" in ran.err


def test_the_primary_is_found_among_the_nodes(
    cluster_factory: Callable[..., Cluster], dbguard: Callable[..., Ran]
) -> None:
    cluster = cluster_factory(replicas=1)
    hosts = ",".join(f"{node.host}:{node.port}" for node in reversed(cluster.nodes))

    ran = dbguard("outcome", "install", f"postgresql://postgres@{hosts}/postgres", "--apply")

    assert ran.code == 0, ran.err
    assert f":{cluster.primary.port}" in ran.out
    assert cluster.sql("a", "SELECT count(*) FROM dbguard.horizon") == [(1,)]


def test_a_node_that_does_not_answer_is_an_error(dbguard: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "guard.yaml"
    file.write_text("nodes: [{host: 127.0.0.1, port: 1}]\nstartup: {wait: 100ms}\n")

    for words in (("install", str(file), "--apply"), ("status", str(file)), ("prune", str(file))):
        ran = dbguard("outcome", *words)

        assert (ran.code, ran.out) == (2, "")
        assert "nobody listens there" in ran.err


# --- status and check


def test_a_fit_schema_is_fine(installed: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("outcome", "status", installed)

    assert (ran.code, ran.err) == (0, "")
    assert "version 1, owner postgres" in ran.out
    assert "tokens: about 0 in 0.0 MB" in ran.out
    assert "pruner: never ran" in ran.out
    assert "fine:  a guard that logs in as shop can prove the outcome of its writes" in ran.out


def test_it_does_not_depend_on_the_search_path(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object], database: str
) -> None:
    sql(f"ALTER DATABASE {database} SET search_path = dbguard, public")
    sql("CREATE FUNCTION dbguard.mark(text) RETURNS void LANGUAGE sql AS ''")

    assert problems(dbguard, installed) == []


def test_no_schema_is_wrong_for_status_and_nothing_to_tell_for_check(config: str, dbguard: Callable[..., Ran]) -> None:
    assert any("has no schema dbguard" in problem for problem in problems(dbguard, config))

    ran = dbguard("check", config)
    assert ran.code == 0
    assert "dbguard outcome" not in ran.out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param("ALTER TABLE dbguard.token SET UNLOGGED", "is unlogged", id="unlogged"),
        pytest.param("ALTER TABLE dbguard.token DROP CONSTRAINT token_pkey", "primary key token(token)", id="no key"),
        pytest.param("ALTER TABLE dbguard.token DROP COLUMN n", "no column token.n integer", id="no column"),
        pytest.param("ALTER TABLE dbguard.token ALTER kind SET DEFAULT 'x'", "no column token.kind", id="default"),
        pytest.param("ALTER FUNCTION dbguard.mark(uuid) SECURITY INVOKER", "dbguard.mark(uuid)", id="invoker"),
        pytest.param("ALTER FUNCTION dbguard.mark(uuid) RESET search_path", "dbguard.mark(uuid)", id="search_path"),
        pytest.param("DROP FUNCTION dbguard.prune(interval, int)", "dbguard.prune(interval, integer)", id="no pruner"),
        pytest.param("ALTER TABLE dbguard.token ENABLE ROW LEVEL SECURITY", "token: row security", id="row security"),
        pytest.param(
            "CREATE RULE r AS ON INSERT TO dbguard.token DO INSTEAD NOTHING", "token: rule r is not ours", id="rule"
        ),
        pytest.param("ALTER TABLE dbguard.token OWNER TO keeper", "what is in it to keeper", id="owner"),
        pytest.param("DELETE FROM dbguard.horizon", "0 rows in horizon", id="no horizon"),
        pytest.param(
            "UPDATE dbguard.horizon SET token = 'ffffffff-ffff-7000-8000-000000000000'", "in the future", id="future"
        ),
        pytest.param("REVOKE ALL ON dbguard.token FROM shop", "lacks a right: GRANT SELECT, INSERT", id="token"),
        pytest.param("REVOKE ALL ON dbguard.reign FROM shop", "ON dbguard.reign TO", id="reign"),
        pytest.param("REVOKE USAGE ON SCHEMA dbguard FROM PUBLIC", "GRANT USAGE ON SCHEMA", id="usage"),
        pytest.param("COMMENT ON SCHEMA dbguard IS NULL", "did not make", id="comment"),
        pytest.param("COMMENT ON SCHEMA dbguard IS 'schema version 0'", "again", id="older"),
    ],
)
def test_what_is_wrong_with_the_schema_is_found(
    damage: str, said: str, installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    sql(damage)

    assert any(said in problem for problem in problems(dbguard, installed))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param("GRANT DELETE ON dbguard.token TO shop", "may delete tokens", id="delete"),
        pytest.param(
            "REVOKE EXECUTE ON FUNCTION dbguard.mark(uuid) FROM PUBLIC; GRANT EXECUTE ON FUNCTION dbguard.mark(uuid) TO shop",
            "not open to PUBLIC",
            id="mark",
        ),
        pytest.param(
            "SELECT dbguard.mark('ffffffff-ffff-7000-8000-000000000000')", "dated up to", id="tokens of the future"
        ),
        pytest.param("CREATE PUBLICATION p FOR TABLE dbguard.token", "published by p", id="published"),
    ],
)
def test_what_is_worth_knowing_is_a_note(
    change: str, said: str, installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    for statement in change.split("; "):
        sql(statement)

    assert problems(dbguard, installed) == []
    assert any(said in note for note in notes(dbguard, installed))


def test_published_tokens_without_an_identity_are_wrong(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    sql("CREATE PUBLICATION p FOR TABLE dbguard.token")
    sql("ALTER TABLE dbguard.token REPLICA IDENTITY NOTHING")
    sql(OLD, "2 hours", 1)

    assert any("no replica identity" in problem for problem in problems(dbguard, installed))
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):  # what it says is so
        sql("SELECT dbguard.prune()")


def test_check_has_the_same_findings(installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]) -> None:
    assert dbguard("check", installed).code == 0
    sql("ALTER TABLE dbguard.token SET UNLOGGED")

    ran = dbguard("check", installed)

    assert ran.code == 1
    assert "is unlogged" in ran.out


def test_check_misses_the_schema_where_the_configuration_wants_it(
    config: str, dbguard: Callable[..., Ran], tmp_path: Path
) -> None:
    wanting = tmp_path / "wanting.yaml"
    wanting.write_text((tmp_path / "guard.yaml").read_text() + "outcome: {resolve: token-table}\n")

    ran = dbguard("check", str(wanting))
    assert ran.code == 1
    assert "outcome.resolve is token-table, and database" in ran.out

    assert dbguard("outcome", "install", str(wanting), "--apply", "--user", "postgres").code == 0
    assert dbguard("check", str(wanting)).code == 0


def test_check_prints_the_least_rights_and_they_are_enough(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object], home: Cluster, database: str
) -> None:
    sql("CREATE ROLE poor LOGIN")
    sql(f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")
    lines = dbguard("check", f"postgresql://postgres@127.0.0.1:{home.primary.port}/{database}", "--rights").out
    granted = [line for line in lines.splitlines() if line.startswith("GRANT")]
    try:
        for line in granted:
            sql(line.replace('"postgres"', '"poor"'))
        ran = dbguard("outcome", "status", installed, "--user", "poor", "--role", "poor", "--json")

        assert len(granted) == 7
        assert (ran.code, json.loads(ran.out)["problems"]) == (0, [])
    finally:
        sql("DROP OWNED BY poor")
        sql("DROP ROLE poor")


# --- prune


def test_the_pruner_deletes_what_is_older_than_the_retention(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    sql(OLD, "3 hours", 2500)
    sql(OLD, "30 minutes", 10)
    assert any("the pruner never ran" in problem for problem in problems(dbguard, installed))

    ran = dbguard("outcome", "prune", installed, "--batch", "1000")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "n0: deleted 2,500 tokens older than 60 min\n"
    assert sql("SELECT count(*)::int FROM dbguard.token") == [(10,)]
    assert problems(dbguard, installed) == []
    said = json.loads(dbguard("outcome", "status", installed, "--json").out)
    assert 3590 < said["retention"] < 3610
    assert said["pruned"] < 60


def test_a_longer_retention_is_kept_and_not_complained_of(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    sql(OLD, "20 hours", 5)

    ran = dbguard("outcome", "prune", installed, "--retention", "24h", "--json")

    assert json.loads(ran.out) == {"node": "n0", "deleted": 0, "retention": 86400.0}
    assert problems(dbguard, installed) == []


def test_a_pruner_that_stopped_is_told(installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]) -> None:
    dbguard("outcome", "prune", installed)
    sql(
        "UPDATE dbguard.horizon SET at = at - interval '5 hours', token = (lpad(to_hex((extract(epoch FROM now() - interval '6 hours') * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid"
    )
    sql(OLD, "4 hours", 5)

    assert any("and the pruner ran last 5 h ago" in problem for problem in problems(dbguard, installed))


def test_without_the_schema_there_is_nothing_to_prune(config: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("outcome", "prune", config)

    assert (ran.code, ran.out) == (2, "")
    assert "dbguard outcome install" in ran.err


def test_the_line_for_pg_cron_prunes_in_batches(
    installed: str, home: Cluster, database: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    told = dbguard("outcome", "install", installed, "--apply", "--user", "postgres").out
    line = told[told.index("DO $$") : told.index("')", told.index("DO $$"))]
    sql(OLD, "2 hours", 25_000)

    async def scheduled() -> None:
        con = await asyncpg.connect(host="127.0.0.1", port=home.primary.port, user="shop", database=database)
        await con.execute(line)
        await con.close()

    asyncio.run(scheduled())

    assert sql("SELECT count(*)::int FROM dbguard.token") == [(0,)]
    assert line in dbguard("outcome", "install", "--help").out.replace("\n    ", "")


def test_the_pruner_keeps_what_the_configuration_says(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    with Path(installed).open("a") as file:
        file.write("outcome: {retention: 24h}\n")
    sql(OLD, "20 hours", 5)
    sql(OLD, "25 hours", 7)

    ran = dbguard("outcome", "prune", installed)

    assert ran.out == "n0: deleted 7 tokens older than 24 h\n"
    assert notes(dbguard, installed) == []
    dbguard("outcome", "prune", installed, "--retention", "1h")
    assert [note for note in notes(dbguard, installed) if "the pruner keeps 60 min" in note]
    again = dbguard("outcome", "install", installed, "--apply", "--user", "postgres")
    assert "dbguard.prune(make_interval(secs => 86400)) = 10000" in again.out


# --- resolve


def test_the_shell_is_told_what_became_of_a_write(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    stored, absent = new_token(), new_token()
    sql("INSERT INTO dbguard.token (token) VALUES ($1)", stored)

    for _ in range(2):  # asking changes no answer
        ran = dbguard("outcome", "resolve", installed, str(stored))
        assert (ran.code, ran.err) == (0, "")
        assert "applied, once" in ran.out
        ran = dbguard("outcome", "resolve", installed, str(absent))
        assert (ran.code, ran.err) == (1, "")
        assert "not applied, and never will be" in ran.out

    said = json.loads(dbguard("outcome", "resolve", installed, str(stored), "--json").out)
    assert (said["token"], said["outcome"], said["why"]) == (str(stored), "applied", None)


def test_what_cannot_be_told_is_said_with_its_reason(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., object]
) -> None:
    dbguard("outcome", "prune", installed)

    ran = dbguard("outcome", "resolve", installed, str(new_token(7200.0)))
    assert (ran.code, ran.out) == (2, "")
    assert "older than what the pruner has kept" in ran.err
    ran = dbguard("outcome", "resolve", installed, "42")
    assert (ran.code, ran.out) == (2, "")
    assert "'42' is not a write's token" in ran.err
    sql("DROP SCHEMA dbguard CASCADE")
    ran = dbguard("outcome", "resolve", installed, str(new_token()), "--timeout", "1s", "--json")
    assert (ran.code, json.loads(ran.out)["outcome"]) == (2, "unknown")


def test_who_only_looks_at_the_cluster_leaves_no_mark_of_a_reign_there(
    installed: str, dbguard: Callable[..., Ran], sql: Callable[..., list[tuple[object, ...]]]
) -> None:
    with Path(installed).open("a") as file:
        file.write("outcome: {resolve: token-table}\n")

    assert dbguard("watch", installed, "--count", "4", "--interval", "0.5").code == 0
    assert sql("SELECT count(*) FROM dbguard.reign") == [(0,)]
