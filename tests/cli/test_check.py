from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dbguard.testing.cluster import Cluster
    from tests.cli.conftest import Ran


def address(cluster: Cluster, name: str = "a") -> str:
    node = cluster.node(name)
    return f"{node.host}:{node.port}"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """Write a configuration of named nodes with short waits."""

    def write(*clusters: Cluster, more: str = "", **connection: str) -> str:
        nodes = [node for cluster in clusters for node in cluster.nodes]
        lines = [f"  - {{name: n{i}, host: {node.host}, port: {node.port}}}" for i, node in enumerate(nodes)]
        login = json.dumps({"user": "postgres", "database": "postgres"} | connection)
        file = tmp_path / "guard.yaml"
        file.write_text("\n".join(["nodes:", *lines, f"connection: {login}", "startup: {wait: 300ms}", more]))
        return str(file)

    return write


def test_healthy_cluster_is_fine(
    calm_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    ran = dbguard("check", config(calm_cluster))

    assert (ran.code, ran.err) == (0, "")
    rows = [line.split() for line in ran.out.splitlines()[2:6]]
    assert rows[0] == ["node", "address", "role", "version", "timeline", "lag", "needs", "free"]
    assert [row[:3] for row in rows[1:]] == [
        ["n0", address(calm_cluster), "primary"],
        ["n1", address(calm_cluster, "b"), "replica"],
        ["n2", address(calm_cluster, "c"), "replica"],
    ]
    assert "replicates asynchronously" in ran.out
    assert "fine:  writes go to n0, reads to n1, n2" in ran.out
    assert "wrong:" not in ran.out


def test_json_tells_the_same_to_programs(
    calm_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    ran = dbguard("check", "--json", "--settings", config(calm_cluster, more="pool: {max_size: 7}"))
    said = json.loads(ran.out)

    assert ran.code == 0
    assert (said["ok"], said["primary"], said["writes"], said["problems"]) == (True, "n0", "open", [])
    assert [node["role"] for node in said["nodes"]] == ["primary", "replica", "replica"]
    assert [node["proven"] for node in said["nodes"]] == [False, True, True]
    assert {node["timeline"] for node in said["nodes"]} == {1}
    assert {node["connections_needed"] for node in said["nodes"]} == {8}
    assert said["settings"]["pool"]["max_size"] == 7


def test_connections_of_all_processes_are_counted(
    calm_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    ran = dbguard("check", "--processes", "10", config(calm_cluster, more="pool: {max_size: 9}"))

    assert ran.code == 1
    assert "10 x (9 for pool.max_size, 1 for the monitor)" in ran.out
    assert ran.out.count("needs up to 100 connections") == 3
    assert "max_connections 100, 3 reserved" in ran.out


def test_settings_are_shown_without_secrets(
    locked_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    for more in ((), ("--json",)):
        ran = dbguard("check", "--settings", *more, config(locked_cluster, password="s3cret/p@ss"))

        assert ran.code == 0
        assert "max_wait" in ran.out
        assert "***" in ran.out
        assert "s3cret" not in ran.out + ran.err


def test_single_node_is_worth_a_note(
    locked_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    ran = dbguard("check", config(locked_cluster, password="s3cret/p@ss"))

    assert ran.code == 0
    assert ran.out.startswith("1 node, ")
    assert "there is nowhere to fail over to" in ran.out


@pytest.mark.parametrize(
    ("login", "said"),
    [
        pytest.param({"password": "wrong-one"}, "connection.password", id="wrong password"),
        pytest.param({}, "connection.password", id="no password"),
        pytest.param({"password": "s3cret/p@ss", "database": "nope"}, "connection.database", id="wrong database"),
        pytest.param({"password": "s3cret/p@ss", "sslmode": "require"}, "connection.sslmode", id="no TLS"),
    ],
)
def test_login_that_is_refused_names_the_place(
    login: dict[str, str],
    said: str,
    locked_cluster: Cluster,
    dbguard: Callable[..., Ran],
    config: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))

    ran = dbguard("check", config(locked_cluster, **login))

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"dbguard: error: no node can be used\n  nodes[0] n0 ({address(locked_cluster)}): ")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert "wrong-one" not in ran.err
    assert "s3cret" not in ran.err


def test_nodes_of_different_clusters_are_named(
    calm_cluster: Cluster,
    cluster_factory: Callable[..., Cluster],
    dbguard: Callable[..., Ran],
    config: Callable[..., str],
) -> None:
    ran = dbguard("check", config(calm_cluster, cluster_factory(replicas=0)))

    assert (ran.code, ran.out) == (2, "")
    assert "dbguard: error: the nodes belong to different clusters: leave out those that are wrong\n" in ran.err
    assert "  n0, n1, n2: system identifier " in ran.err
    assert "  n3: system identifier " in ran.err


@pytest.mark.parametrize("named", ["", ", sslrootcert: nowhere.crt"], ids=["left to the driver", "named"])
def test_missing_file_of_tls_is_told(
    named: str, dbguard: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "guard.yaml"
    file.write_text(
        f"nodes: [{{host: 127.0.0.1, port: 1}}]\nstartup: {{wait: 100ms}}\nconnection: {{sslmode: verify-full{named}}}\n"
    )

    ran = dbguard("check", str(file))

    assert (ran.code, ran.out) == (2, "")
    assert "see connection." in ran.err
    assert ("'nowhere.crt' cannot be used: No such file" if named else f'"{tmp_path}/.postgresql/root.crt"') in ran.err
    assert "sslrootcert" in ran.err


@pytest.mark.parametrize("config", ["host=db1 password=hidden", "postgres//app:hidden@db1/shop", "db1"])
def test_what_is_neither_a_file_nor_a_dsn_is_not_shown(config: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("check", config)

    assert (ran.code, ran.out) == (2, "")
    assert "postgresql://user@host1,host2/database" in ran.err
    assert "hidden" not in ran.err


def test_cluster_that_does_not_answer_is_an_error_after_the_wait(dbguard: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "guard.yaml"
    file.write_text("nodes: [{host: 127.0.0.1, port: 1}, {host: nowhere.invalid}]\nstartup: {wait: 300ms}\n")

    ran = dbguard("check", str(file))

    assert (ran.code, ran.out) == (2, "")
    assert "no node answers yet" in ran.err
    assert ran.err.index("  127.0.0.1:1: nobody listens there") < ran.err.index("no node can be used")
    assert "nodes[0] 127.0.0.1:1: nobody listens there" in ran.err
    assert "nodes[1] nowhere.invalid:5432: its host name is not known" in ran.err


def test_cluster_through_a_failover(
    cluster_factory: Callable[..., Cluster], dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    cluster = cluster_factory()
    file = config(cluster)

    cluster.kill("a")
    ran = dbguard("check", file)
    assert ran.code == 1
    assert "wrong: no node answers as primary" in ran.out
    assert "wrong: n0: nobody listens there" in ran.out

    cluster.promote("b")
    ran = dbguard("check", file)
    assert ran.code == 1
    assert "wrong: n2: is a replica that receives nothing" in ran.out

    cluster.follow("c", "b")
    cluster.wait_streaming()
    cluster.start_node("a")
    ran = dbguard("check", "--json", file)
    said = json.loads(ran.out)
    assert (ran.code, said["primary"]) == (1, "n1")
    assert [problem["node"] for problem in said["problems"]] == ["n0"]
    assert "claims to be primary on an old timeline" in said["problems"][0]["text"]

    cluster.rejoin("a")
    assert dbguard("check", file).code == 0


def test_several_primaries_are_named_and_no_promotion_is_asked_for(
    cluster_factory: Callable[..., Cluster], dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    cluster = cluster_factory()
    cluster.promote("b")
    cluster.promote("c")

    ran = dbguard("check", "--json", config(cluster))

    told = [problem["text"] for problem in json.loads(ran.out)["problems"]]
    assert ran.code == 1
    assert told[0].startswith(
        "n0 and n1 and n2 all answer as primary, and writes are refused (split brain: n1 and n2 are"
    )
    assert "stop all but the right one" in told[0]
    assert "promoted" not in ran.out


def test_role_without_rights_is_told_what_it_misses(
    cluster_factory: Callable[..., Cluster], dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    cluster = cluster_factory(replicas=1)
    cluster.sql("a", "CREATE ROLE app LOGIN CONNECTION LIMIT 5")
    cluster.sql("a", "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    cluster.wait_for("b", "SELECT NOT has_function_privilege('app', 'pg_control_system()', 'execute')")

    ran = dbguard("check", "--json", config(cluster, user="app"))
    said = json.loads(ran.out)

    assert ran.code == 1
    assert any("connection limit of role app is 5" in problem["text"] for problem in said["problems"])
    notes = [note["text"] for note in said["notes"] if note["node"] == "n1"]
    assert any("GRANT EXECUTE ON FUNCTION pg_control_system() TO app" in note for note in notes)
    assert any("GRANT pg_read_all_stats TO app" in note for note in notes)


def test_primary_that_refuses_writes_is_wrong(
    cluster_factory: Callable[..., Cluster], dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    cluster = cluster_factory(replicas=0, settings={"default_transaction_read_only": "on"})

    ran = dbguard("check", config(cluster))

    assert ran.code == 1
    assert "default_transaction_read_only is on" in ran.out
