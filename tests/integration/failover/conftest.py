"""Each form of failover is a test on a real cluster, under steady work (`workload`), judged by reading the table back.

    test_promotions.py      killed, stopped or frozen, and another promoted; a promotion that fails
    test_black_holed.py     cut off while another is promoted, then reachable again
    test_old_primary.py     fenced when it comes back, or never went away; demoted, and still reachable
    test_split_brain.py     two primaries on one timeline
    test_reigns.py          one timeline number twice, a replica that is behind, strangers and clones, restores
    test_names.py           names that lead to another server, or to several; one server under two
    test_restarts.py        restarted in place, one after the other, all off; no primary for a long time; one misconfigured
    test_not_a_failover.py  what looks like one, and is none: a read-only primary, SQLSTATEs of functions
    test_overload.py        what is slow, or full, and no reason for one
    test_in_flight.py       what becomes of the work that is under way on a node that freezes or is fenced
    test_gate.py            who waits, and how they go on; a pause for a switchover; a primary that flaps
    test_episodes.py        what the log says of one
    test_listening.py       what becomes of LISTEN

Those that differ by driver, or by whether calls are tasks or threads, run over each facade (`every_facade`).

* `home`: a cluster for the forms of one file, which follow each other; its commits wait for a replica, so that nothing
  acknowledged is lost with its primary. Whole at the beginning of each test, whoever is the primary then.
* `work`: `Workload` over a guard on `home`, at work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dbguard.testing.cluster import Cluster
from tests.integration.failover.workload import SCHEMA, Workload, mend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import dbguard
    from dbguard.testing.binaries import Binaries


def prepare(cluster: Cluster) -> None:
    """Make *cluster* whole, with an empty table on all nodes. Blocks."""
    mend(cluster)
    cluster.sql(cluster.primary, "DROP TABLE IF EXISTS written")
    cluster.sql(cluster.primary, SCHEMA)
    end = cluster.sql(cluster.primary, "SELECT pg_current_wal_insert_lsn()::text")[0][0]
    for replica in cluster.replicas:
        cluster.wait_for(replica, f"SELECT pg_last_wal_replay_lsn() >= '{end}'")


@pytest.fixture(scope="module")
def shared_cluster(binaries: Binaries) -> Iterator[Cluster]:
    with Cluster(binaries=binaries, synchronous=True) as cluster:
        yield cluster


@pytest.fixture
def home(shared_cluster: Cluster) -> Cluster:
    prepare(shared_cluster)
    return shared_cluster


@pytest.fixture
async def at_work() -> AsyncIterator[Callable[..., Awaitable[Workload]]]:
    """Let a workload begin over a guard, and wait until it flows; it is ended with the test."""
    begun: list[Workload] = []

    async def begin(guard: dbguard.Guard, cluster: Cluster, **reads: str) -> Workload:
        load = Workload(guard, cluster, **reads)
        load.begin()
        begun.append(load)
        await load.flows()
        await load.reads_go_on()
        return load

    yield begin
    for load in begun:
        load.cancel()


@pytest.fixture
async def work(home: Cluster, open_guard: Callable[..., Awaitable[Any]], at_work: Callable[..., Any]) -> Workload:
    return await at_work(await open_guard(home), home)
