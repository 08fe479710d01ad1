"""``dbguard status``: how a cluster stands now, quickly whatever the nodes do."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dbguard.testing.binaries import Binaries
    from tests.cli.conftest import Ran

PATIENT = 60.0
"""Seconds a connection may take, by the configuration: no command may wait so long for one node of several."""


@pytest.fixture(scope="module")
def cluster(binaries: Binaries) -> Iterator[Cluster]:
    with Cluster(binaries=binaries) as cluster:
        yield cluster


@pytest.fixture
def config(tmp_path: Path) -> Callable[[Cluster], str]:
    def write(cluster: Cluster, **connection: str) -> str:
        nodes = "\n".join(f"  - {{name: {node.name}, host: {node.host}, port: {node.port}}}" for node in cluster.nodes)
        login = json.dumps({"user": "postgres", "database": "postgres", "connect_timeout": PATIENT} | connection)
        path = tmp_path / "guard.yaml"
        path.write_text(f"nodes:\n{nodes}\nconnection: {login}\n")
        return str(path)

    return write


def rows(ran: Ran) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if line.startswith("  ")}


def test_healthy_cluster_is_writable_and_says_why(
    calm_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    ran = dbguard("status", config(calm_cluster))

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("writes go to a: it alone is not in recovery\n")
    assert rows(ran)["a"] == ["primary", "yes", "1"]
    assert rows(ran)["b"][:3] == ["replica", "yes", "1"]
    assert rows(ran)["b"][-1] == "yes"
    assert "problem" not in ran.out


def test_json_tells_the_same_to_programs_in_a_form_that_stays(
    calm_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    ran = dbguard("status", "--json", config(calm_cluster))
    said = json.loads(ran.out)

    assert ran.code == 0
    assert list(said) == ["writable", "primary", "why", "writes", "at", "nodes", "problems"]
    assert list(said["nodes"][0]) == [
        *("name", "role", "reachable", "timeline", "lag", "proven", "read_only", "problem"),
    ]
    assert (said["writable"], said["primary"], said["writes"], said["problems"]) == (True, "a", "open", [])
    assert said["at"] == pytest.approx(time.time(), abs=60)


def test_wrong_configuration_is_another_answer_than_no_writes(
    calm_cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    ran = dbguard("status", config(calm_cluster, database="no_such_database"))

    assert (ran.code, ran.out) == (2, "")
    assert "connection.database" in ran.err


def test_nobody_there_is_no_writes(dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("status", "postgresql://postgres@127.0.0.1:1/postgres")

    assert (ran.code, ran.err) == (1, "")
    assert "no writes: no node answers as primary (none answered)" in ran.out
    assert "problem: 127.0.0.1:1: connection refused" in ran.out


def test_a_frozen_primary_holds_up_neither_status_nor_check(
    cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    path = config(cluster)
    cluster.freeze("a")
    try:
        began = time.monotonic()
        status, check = dbguard("status", path), dbguard("check", path)
        took = time.monotonic() - began
    finally:
        cluster.thaw("a")

    assert took < PATIENT
    assert status.code == 1
    assert "no writes: no node answers as primary (b and c answered)" in status.out
    assert rows(status)["a"] == ["no"]
    assert check.code == 1
    assert "a: does not answer within 2 s, and others did" in " ".join(check.out.split())


def test_a_standby_that_can_serve_no_isolation_is_out_of_rotation_by_the_settings_name(
    binaries: Binaries, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    with Cluster(binaries=binaries, replicas=1, settings={"default_transaction_isolation": "serializable"}) as cluster:
        path = config(cluster)
        status, check = dbguard("status", path), dbguard("check", path)

    assert status.code == 0
    assert "problem: b: default_transaction_isolation is serializable, which a standby cannot serve (0A000)" in (
        " ".join(status.out.split())
    )
    assert check.code == 1
    assert "wrong: b: default_transaction_isolation is serializable" in " ".join(check.out.split())


def test_an_old_primary_is_named_with_what_to_do(
    cluster: Cluster, dbguard: Callable[..., Ran], config: Callable[..., str]
) -> None:
    cluster.promote("b")

    ran = dbguard("status", config(cluster))

    assert ran.code == 0
    assert ran.out.startswith("writes go to b: its timeline 2 is above that of a, which claims to be primary, too\n")
    assert rows(ran)["a"][0] == "fenced"
    assert "problem: a claims to be primary on an older timeline: stop it" in ran.out
