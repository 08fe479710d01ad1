"""The primary goes and comes back itself: no new reign, nothing lost, and a pause as long as it was away."""

from __future__ import annotations

import asyncio

import pytest

from dbguard.events import GateChanged, NodeMisconfigured, PrimaryChanged
from tests.integration.facades import every_facade
from tests.integration.failover.workload import WRITERS

act = asyncio.to_thread


def node(guard, name):
    return next(node for node in guard.status().nodes if node.name == name)


def named(events, kind):
    return [event.node for event in events if isinstance(event, kind)]


async def test_restarted_in_place_it_stays_in_office(home, work, events):
    old, reign = home.primary.name, work.guard.status().reign

    await act(home.stop_node, old, "fast")
    await act(home.start_node, old)

    await work.flows()
    assert work.guard.status().reign == reign
    assert named(events, PrimaryChanged) == [old]
    await work.judge()


async def test_a_rolling_restart_of_all_nodes(home, work, settled, events):
    """Replicas first, the primary last, and nobody is promoted."""
    reign = work.guard.status().reign
    for name in [replica.name for replica in home.replicas] + [home.primary.name]:
        await act(home.stop_node, name, "fast")
        await work.reads_go_on()
        await act(home.start_node, name)
        await act(home.wait_streaming)
        await settled(work.guard)
        await work.flows()
        await work.reads_go_on()

    assert work.guard.status().reign == reign
    assert named(events, PrimaryChanged) == [home.primary.name]
    await work.judge()


async def test_all_nodes_off_and_back(home, work, settled):
    """Reads wait as writes do: there is nobody to ask."""
    names = [node.name for node in home.nodes]
    await asyncio.gather(*(act(home.kill, name) for name in names))
    await work.stands_still()
    await asyncio.gather(*(act(home.start_node, name) for name in names))

    await work.flows()
    await work.reads_go_on()
    await settled(work.guard)
    await work.judge()


@every_facade
async def test_no_primary_for_longer_than_calls_may_wait_then_back(home, open_guard, at_work, until, events):
    """Waiting ends, and calls fail at once; the search goes on, and so do reads."""
    guard = await open_guard(home, config={"failover": {"max_wait": 1}})
    work = await at_work(guard, home)
    old, reign = home.primary.name, guard.status().reign
    await act(home.kill, old)
    await until(lambda: guard.status().writes == "down")
    await work.reads_go_on()
    await until(lambda: sum("NoPrimary" in str(op.error) for op in work.refused()) > 2 * WRITERS)

    await act(home.start_node, old)

    await work.flows()
    await work.judge(refused="NoPrimary")
    assert [event.now for event in events if isinstance(event, GateChanged)][-4:] == [
        "suspect",
        "failover",
        "down",
        "open",
    ]
    assert guard.status().reign == reign


async def test_no_primary_for_seconds_is_a_pause_that_every_deadline_bears(home, work):
    await act(home.kill, home.primary)
    await work.stands_still()
    for _ in range(20):
        await work.reads_go_on()
    await act(home.start_node, home.primary)

    await work.flows()
    await work.judge()


@every_facade
async def test_all_backends_terminated_is_no_error_for_reads_and_told_truthfully_for_writes(home, work, settled):
    await settled(work.guard)
    for _ in range(10):
        for name in "abc":
            await act(home.terminate_backends, name)
        await work.flows()
        await work.reads_go_on()

    assert work.guard.status().primary == home.primary.name
    await work.judge(unknown=10 * WRITERS)


@pytest.fixture
def barred(home):
    """A replica whose pg_hba.conf refuses the application, and what lets it in."""
    replica = home.replicas[0]
    conf = replica.data / "pg_hba.conf"
    before = conf.read_text()
    home.sql(home.primary, "DO $$ BEGIN CREATE ROLE app SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    home.wait_for(replica, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app')")

    def put(text):
        conf.write_text(text)
        home.sql(replica, "SELECT pg_reload_conf()")

    put("host all app all reject\n" + before)
    yield replica.name, lambda: put(before)
    put(before)


async def test_one_node_misconfigured_at_the_start_is_left_out_and_told(
    home, barred, open_guard, at_work, settled, until, events
):
    name, let_in = barred
    (other,) = {"a", "b", "c"} - {name, home.primary.name}
    guard = await open_guard(home, config={"connection": {"user": "app"}}, settle=False)
    await settled(guard, replicas=1)
    await until(lambda: named(events, NodeMisconfigured))
    assert named(events, NodeMisconfigured) == [name]
    assert "28000" in node(guard, name).problem
    work = await at_work(guard, home)
    assert {op.node for op in work.reads()} <= {home.primary.name, other}

    await act(home.kill, home.primary)
    await act(home.promote, other)
    await act(home.follow, name, other)
    await work.flows()
    assert guard.status().primary == other

    await act(let_in)
    await settled(guard, replicas=1)
    assert node(guard, name).role == "replica"
    await work.judge()
