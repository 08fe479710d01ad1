"""The examples do what they say, on a real cluster, as a reader would run them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dbguard
from dbguard.config import describe, load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from dbguard.testing.cluster import Cluster

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def dsn(calm_cluster: Cluster) -> Iterator[str]:
    """A database of the test's own, on all nodes."""
    calm_cluster.sql("a", "CREATE DATABASE shop")
    for replica in calm_cluster.replicas:
        calm_cluster.wait_for(replica, "SELECT count(*) = 1 FROM pg_database WHERE datname = 'shop'")
    yield calm_cluster.dsn(database="shop")
    calm_cluster.sql("a", "DROP DATABASE shop WITH (FORCE)")


def run(example: str, dsn: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments],
        env={**os.environ, "DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def load_module(example: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{example.removesuffix('.py')}", EXAMPLES / example)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))

    for example in EXAMPLES.iterdir():
        if example.suffix in {".py", ".yaml"}:
            assert f'"{example.name}"' in tests, f"nothing runs {example.name}"


def test_quickstart_reads_its_write_and_finds_a_replica_for_the_next_read(dsn: str) -> None:
    first, route, *others = run("quickstart.py", dsn)
    second, *_ = run("quickstart.py", dsn)

    assert (first, second) == ("1", "2")
    assert re.fullmatch(r"read \(SELECT\): 127\.0\.0\.1:\d+ as replica, own-writes read, 2 fit", route)
    assert [line.split(": ", 1)[1].split()[0] for line in others] == ["the", "fit"]  # the primary, the other replica


def test_wrapped_pools_are_told_apart_whatever_their_order(calm_cluster: Cluster, dsn: str) -> None:
    backwards = calm_cluster.dsn("c", "b", "a", database="shop")

    assert run("wrap_pool.py", dsn) == [
        "visits: 1",
        "primary: primary",
        "replica1: replica",
        "replica2: replica",
        "pools still open: 3",
    ]
    assert run("wrap_pool.py", backwards) == [
        "visits: 2",
        "primary: replica",
        "replica1: replica",
        "replica2: primary",
        "pools still open: 3",
    ]


def test_pools_connected_by_a_guard_lead_to_their_roles(dsn: str) -> None:
    assert run("connect_pool.py", dsn) == ["writer on a standby: False", "reader on a standby: True"]


def test_threads_sell_what_there_is_once_each(dsn: str) -> None:
    assert run("threads.py", dsn) == ["sold by functions: 8", "left: (90,)"]


def test_file_gives_the_topology_and_reports_run_on_a_replica(calm_cluster: Cluster, dsn: str) -> None:
    port = {node.name: node.port for node in calm_cluster.nodes}

    lines = run("yaml_topology.py", dsn)

    assert run("yaml_topology.py", dsn, str(EXAMPLES / "topology.yaml"))[0] == lines[0]
    assert lines[0] == f"127.0.0.1:{port['a']}: primary"
    for line, name in zip(lines[1:3], "bc", strict=True):
        assert re.fullmatch(rf"127\.0\.0\.1:{port[name]}: replica, \d\.\d s behind", line)
    assert lines[3:] == ["asked a replica: True"]


# ---------------------------------------------------------------------- transactions.py


def test_transfers_that_meet_on_a_row_all_arrive_and_no_money_is_made(dsn: str) -> None:
    lines = run("transactions.py", dsn)

    assert all(re.fullmatch(r"moved( at attempt [2-5])?", line) for line in lines[:3])
    assert lines[3:] == ["refused, anna has too little", "anna has 70", "ben has 130"]


async def test_transfer_that_loses_a_row_to_another_is_repeated_whole(dsn: str) -> None:
    example = load_module("transactions.py")
    async with dbguard.connect(dsn) as guard, guard.acquire() as other:
        await guard.execute(example.TABLES)
        async with other.transaction():
            await other.execute("UPDATE account SET balance = balance - 50 WHERE name = 'anna'")
            moving = asyncio.create_task(example.transfer(guard, "anna", "ben", 10))
            async with asyncio.timeout(60):
                while not await other.fetchval("SELECT count(*), pg_sleep(0.01) FROM pg_locks WHERE NOT granted"):
                    pass  # the transfer does not wait for the row yet

        assert await moving == "moved at attempt 2"
        assert await guard.fetchval("SELECT balance FROM account WHERE name = 'anna'") == 40
        assert await guard.fetchval("SELECT count(*) FROM transfer") == 1


class ForgetfulGuard:
    """Runs transactions on a real guard, and loses the answer of the first ones after they were applied."""

    def __init__(self, guard: dbguard.Guard, losses: int) -> None:
        self.guard, self.losses = guard, losses

    async def run_in_transaction(self, fn: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        value = await self.guard.run_in_transaction(fn, **options)
        if self.losses:
            self.losses -= 1
            raise dbguard.OutcomeUnknown("the answer was lost", node="a", phase="sent")
        return value


async def test_transfer_of_unknown_outcome_is_sent_again_and_applied_once(dsn: str) -> None:
    example = load_module("transactions.py")
    async with dbguard.connect(dsn) as guard:
        await guard.execute(example.TABLES)

        assert await example.transfer(ForgetfulGuard(guard, 2), "anna", "ben", 10) == "moved"
        assert (await example.transfer(ForgetfulGuard(guard, 3), "anna", "ben", 10)).startswith("unknown: look for")
        assert await guard.fetchval("SELECT balance FROM account WHERE name = 'anna'") == 80


async def test_transfer_that_was_not_sent_says_when_to_come_again(dsn: str) -> None:
    example = load_module("transactions.py")

    said = await example.transfer(dbguard.Guard(dsn), "anna", "ben", 10)

    assert said == "not sent, nothing was moved; try again in 1 s"


# ---------------------------------------------------------------------- guard.yaml


def test_annotated_file_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "p@ss/w:rd#1%")

    settings = load(EXAMPLES / "guard.yaml")

    defaults = describe(load({"nodes": [{"host": "any"}]}))
    told = describe(settings)
    assert {key: told[key] for key in told.keys() - {"nodes", "connection"}} == {
        key: defaults[key] for key in defaults.keys() - {"nodes", "connection"}
    }
    assert settings.connection.password is not None
    assert settings.connection.password.reveal() == "p@ss/w:rd#1%"
    assert [(node.address, node.weight) for node in settings.nodes] == [
        ("10.0.0.1:5432", 1),
        ("10.0.0.2:5432", 2),
        ("10.0.0.3:5432", 1),
    ]
