"""The tools that measure failovers see what they are for: harm, errors, growth; and a guard that does none."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.binaries import Binaries

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # scripts that import each other by name

import bench_failover
import failover_soak
from failover_rig import PASSWORD, Book, Failover

FAILOVER = Failover("kill", "a", "b", begun=10.0, gone=10.1, asked=10.2, promoted=11.0, floor=0.001)
SEEN = {"event": "PrimaryChanged", "node": "b", "at": 11.02}


def judged(calls: list[Any], rows: list[tuple[int, str]], on_old: list[tuple[int, str]] | None = None) -> Any:
    return bench_failover.judge(FAILOVER, Book(calls=calls, events=[SEEN]), rows, on_old or [])


def test_the_first_write_is_the_first_that_the_new_primary_took() -> None:
    late = [("write", 1, 10.05, 11.3, "ok"), ("write", 2, 10.0, 11.03, "ok"), ("write", 3, 10.0, 11.01, "ok")]

    run = judged(late, [(1, "b"), (2, "b"), (3, "a")])

    assert run.first == pytest.approx(0.03)
    assert run.since_fault == pytest.approx(1.03)
    assert run.seen == pytest.approx(0.02)
    assert (run.lost, run.twice, run.lied, run.old) == ([], [], [], [])


def test_harm_is_seen() -> None:
    calls = [
        ("write", 1, 9.0, 9.1, "ok"),  # acknowledged, and on no server that counts
        ("write", 2, 9.0, 9.1, "ok"),  # applied twice
        ("write", 3, 10.0, 10.1, "InterfaceError: closed"),  # told to have failed, and applied
        ("write", 4, 10.0, 10.1, "unknown"),  # left open: it may be there
        ("write", 5, 11.1, 11.2, "ok"),  # acknowledged by the old primary after the new one was seen
        ("write", 6, 10.0, 11.2, "ok"),  # sent to the old one, repeated on the new one
    ]
    rows = [(2, "a"), (2, "b"), (3, "a"), (4, "a"), (6, "b")]

    run = judged(calls, rows, on_old=[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a"), (6, "a")])

    assert (run.lost, run.twice, run.lied, run.old) == ([1, 5], [2], [3], [5])
    assert (run.failed_writes, run.open_writes) == (1, 1)


def test_errors_after_the_promotion_are_told_apart_from_what_was_in_flight_before() -> None:
    calls = [
        ("read", 1, 10.0, 10.5, "OSError: gone"),
        ("read", 2, 10.9, 11.5, "OSError: gone"),
        ("write", 3, 10.9, 11.5, "unknown"),
        ("write", 4, 11.1, 11.5, "unknown"),
        ("write", 5, 10.9, 11.5, "NoPrimary: none"),
    ]

    run = judged(calls, [])

    assert (run.failed_reads, run.open_writes, run.failed_writes, run.after) == (2, 2, 1, 3)
    assert run.first is None


@pytest.mark.parametrize(
    ("name", "amount"),
    [("resident_kib", 10_000), ("objects", 5_000), ("tasks", 1), ("in_use", 1), ("descriptors", 1), ("backends", 1)],
)
def test_growth_is_seen(name: str, amount: int) -> None:
    counted = {"resident_kib": 50_000, "objects": 45_000, "tasks": 4, "in_use": 0, "descriptors": 30, "backends": 20}
    counts = [counted | {"failovers": done} for done in (10, 20, 30)]
    assert not failover_soak.grown(counts)

    counts[-1] = counts[-1] | {name: counted[name] + amount}

    assert [line.split()[0] for line in failover_soak.grown(counts)] == [name]


@pytest.fixture(scope="module")
def cluster(binaries: Binaries) -> Iterator[Cluster]:
    with Cluster(binaries=binaries, replicas=2, synchronous=True, password=PASSWORD) as cluster:
        yield cluster


async def test_a_guard_goes_through_failovers_without_harm_and_without_growing(cluster: Cluster) -> None:
    options = argparse.Namespace(failovers=3, after=0.0, system="dbguard with tokens", verbose=False)

    async with asyncio.timeout(100):
        result = await failover_soak.soak(cluster, options)

    assert [result[harm] for harm in ("lost", "twice", "lied")] == [[], [], []]
    assert result["failed"] == 0
    assert result["first_ms"]["never"] <= 1, "none, but where this machine stood still beyond the end of a round"
    assert result["counts"][-1]["in_use"] == 0
    assert result["calls"]["write: ok"] > 100


async def test_what_a_plain_pool_lets_through_is_counted(binaries: Binaries) -> None:
    options = argparse.Namespace(runs=1, strict=False, verbose=False)
    with Cluster(binaries=binaries, replicas=2, synchronous=True, password=PASSWORD) as cluster:
        async with asyncio.timeout(60):
            (run,) = await bench_failover.measure(cluster, "asyncpg multi-host", "kill", options, 0.5)

    assert run.failed_writes > 0
    assert (run.lost, run.twice) == ([], [])
