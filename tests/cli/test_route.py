from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from dbguard.cli.route import statements
from dbguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.cluster import Cluster
    from tests.cli.conftest import Ran


@pytest.mark.parametrize(
    ("sql", "kind", "why"),
    [
        ("SELECT 1", "read", "SELECT"),
        ("SELECT * FROM t FOR UPDATE", "write", "FOR UPDATE at line 1"),
        ("INSERT INTO t VALUES (1)", "write", "INSERT"),
        ("SET search_path TO x", "session", "SET SEARCH_PATH"),
        ("BEGIN", "transaction", "BEGIN"),
        ("SELECT f(1)", "unknown", "f()"),
    ],
)
def test_statement_is_classified_without_a_cluster(sql: str, kind: str, why: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("route", sql)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{sql}\n    {kind}: ")
    assert why in ran.out


def test_json_is_one_object_per_statement_and_line(dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("route", "--json", "SELECT 1", "DELETE FROM t")
    read, write = map(json.loads, ran.out.splitlines())

    assert (read["sql"], read["kind"], read["goes_to"], read["repeatable"]) == ("SELECT 1", "read", "replica", True)
    assert (write["kind"], write["goes_to"], write["repeatable"]) == ("write", "primary", False)


def test_statements_come_from_words_lines_and_json_lines() -> None:
    lines = io.StringIO('SELECT 1\n\n"SELECT 2"\n{"sql": "SELECT\\n3"}\n   \n')

    assert list(statements(["VALUES (0)", "-"], lines)) == ["VALUES (0)", "SELECT 1", "SELECT 2", "SELECT\n3"]


@pytest.mark.parametrize("line", ['{"query": "SELECT 1"}', '{"sql": 1}', '{"sql": ', '"SELECT'])
def test_line_that_is_no_statement_is_named(
    line: str, dbguard: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"SELECT 1\n{line}\n"))

    ran = dbguard("route", "-")

    assert ran.code == 2
    assert "dbguard: error: standard input, line 2: " in ran.err


def test_line_that_is_no_statement_raises_a_config_error() -> None:
    with pytest.raises(ConfigError, match="line 1"):
        list(statements(["-"], ["[1]\n".replace("[1]", '{"a": 1}')]))


def test_hint_lifts_what_is_not_understood(dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("route", "/* dbguard: replica */ SELECT f(1)")

    assert "may go to a replica, as its hint says" in ran.out


def test_long_statement_is_cut_for_people_and_not_for_programs(dbguard: Callable[..., Ran]) -> None:
    sql = "SELECT " + ", ".join(map(str, range(100)))

    assert len(dbguard("route", sql).out.splitlines()[0]) <= 80
    assert json.loads(dbguard("route", "--json", sql).out)["sql"] == sql


def test_guard_is_asked_where_a_statement_would_go(calm_cluster: Cluster, dbguard: Callable[..., Ran]) -> None:
    table = "CREATE TABLE route_sends_nothing (id int)"

    ran = dbguard("route", "--json", "--config", calm_cluster.dsn(), "SELECT 1", table)
    read, write = map(json.loads, ran.out.splitlines())

    assert (ran.code, ran.err) == (0, "")
    primary, *replicas = (f"{node.host}:{node.port}" for node in calm_cluster.nodes)
    assert read["node"] in replicas
    assert read["against"][primary] == "the primary is spared: a replica is fit"
    assert (write["node"], write["role"]) == (primary, "primary")
    assert set(write["against"].values()) == {"a replica takes no writes"}
    assert calm_cluster.sql("a", "SELECT to_regclass('route_sends_nothing')") == [(None,)]


def test_functions_of_the_configuration_are_known(calm_cluster: Cluster, dbguard: Callable[..., Ran], tmp_path) -> None:
    file = tmp_path / "config"
    file.write_text(f"dsn: {calm_cluster.dsn()}\nrouting: {{functions: {{read: [price]}}}}\n")

    ran = dbguard("route", "--config", str(file), "SELECT price(1)")

    assert ran.code == 0
    assert "read: may go to a replica" in ran.out
    assert "(replica): " in ran.out


def test_catalogue_of_the_cluster_is_known(calm_cluster: Cluster, dbguard: Callable[..., Ran]) -> None:
    calm_cluster.sql("a", "CREATE FUNCTION route_adds(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1 + 1'")
    calm_cluster.sql("a", "CREATE FUNCTION route_logs(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT $1 + 1'")
    calm_cluster.sql("a", "CREATE VIEW route_logged AS SELECT route_logs(1)")

    ran = dbguard(
        "route", "--json", "--config", calm_cluster.dsn(), "SELECT route_adds(1)", "SELECT * FROM route_logged"
    )
    trusted, tainted = map(json.loads, ran.out.splitlines())

    assert (trusted["role"], trusted["goes_to"]) == ("replica", "replica")
    assert (tainted["kind"], tainted["role"], tainted["goes_to"]) == ("read", "primary", "primary")
    assert tainted["why"] == "reading route_logged may run a volatile function"
    calm_cluster.sql("a", "DROP VIEW route_logged")
    calm_cluster.sql("a", "DROP FUNCTION route_adds(int), route_logs(int)")


def test_write_without_a_primary_goes_nowhere(
    cluster_factory: Callable[..., Cluster], dbguard: Callable[..., Ran]
) -> None:
    cluster = cluster_factory(replicas=1)
    cluster.kill("a")

    ran = dbguard("route", "--config", cluster.dsn(), "DELETE FROM t")

    assert ran.code == 1
    assert "nowhere now, waits: no primary to go to: " in ran.out
    assert f"not {cluster.nodes[0].host}:{cluster.nodes[0].port}: does not answer" in ran.out
