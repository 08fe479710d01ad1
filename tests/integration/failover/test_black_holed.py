"""The way to the primary is a black hole while another is promoted; then it opens again, and both are reachable."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import asyncpg
import pytest

from dbguard.events import NodeFenced
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from tests.integration.facades import every_facade
from tests.integration.failover.conftest import prepare
from tests.integration.failover.workload import acknowledge_alone, promote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.binaries import Binaries

act = asyncio.to_thread


@pytest.fixture(scope="module")
def proxied(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries, synchronous=True) as cluster:
        yield cluster


@pytest.fixture
async def work(proxied, open_guard, at_work):
    await act(prepare, proxied)
    links = {node.name: proxied.link(APPLICATION, node) for node in proxied.nodes}
    nodes = [{"name": name, "host": link.host, "port": link.port} for name, link in links.items()]
    return await at_work(await open_guard(proxied, config={"nodes": nodes}), proxied)


def role(guard, name):
    return next(node.role for node in guard.status().nodes if node.name == name)


@every_facade
@pytest.mark.parametrize("what", ["all of it", "replies"])
async def test_black_holed_while_another_is_promoted_then_healed(proxied, work, until, events, what):
    """The old primary lives, is read-write and acknowledges everything: as soon as it is reachable, it is fenced."""
    old = proxied.primary.name
    link = proxied.link(APPLICATION, old)
    with contextlib.ExitStack() as hole:
        await act(hole.enter_context, link.hole() if what == "all of it" else link.toxic("timeout", timeout=0))
        await work.reads_go_on()
        new = await act(promote, proxied)
        since = await work.flows()
        await act(acknowledge_alone, proxied, old)
        await act(hole.close)
    await until(lambda: role(work.guard, old) == "fenced")

    plain = await asyncpg.connect(proxied.dsn(old))
    await plain.execute("INSERT INTO written VALUES (0, 'what a client without a guard gets there')")
    await plain.close()
    await work.flows()
    await work.judge()
    assert work.writers_at(since=since) == {new}
    assert await work.acknowledged_by(old, since=since) == set()
    assert [event.node for event in events if isinstance(event, NodeFenced)] == [old]
