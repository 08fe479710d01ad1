"""Names that lead elsewhere: each dial asks anew, and a name that was moved while old connections live on is noticed.

Three servers stand behind addresses of their own (127.0.0.2 and on), all on one port, as machines of a network do; a
name server of the test's says which address a name leads to.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

import dbguard
from dbguard.events import NodeDown, PrimaryChanged, SplitBrainSeen
from dbguard.testing.cluster import Cluster
from dbguard.testing.relay import Relay
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from dbguard.events import Event
    from dbguard.testing.binaries import Binaries

WHERE = "SELECT current_setting('cluster_name') FROM (SELECT count(*) FROM named) AS counted"
WRITE = "INSERT INTO named VALUES ($1) RETURNING current_setting('cluster_name')"
OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'named'"


class Network:
    """Addresses, and the servers behind them. asked: how often each name was looked up."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.names: dict[str, tuple[str, ...]] = {}
        self.asked: dict[str, int] = {}
        self._real = socket.getaddrinfo

    def look_up(self, host: Any, port: Any, *args: Any, **more: Any) -> Any:
        """Stand in for `socket.getaddrinfo`; the addresses of a name take turns in being the first."""
        if host not in self.names:
            return self._real(host, port, *args, **more)
        turn = self.asked[host] = self.asked.get(host, 0) + 1
        addresses = self.names[host]
        turned = [addresses[(turn + at) % len(addresses)] for at in range(len(addresses))]
        return [entry for address in turned for entry in self._real(address, port, *args, **more)]

    def relay(self, address: str, server: int) -> Relay:
        """Let a server, by its port, be reached at *address*."""
        return Relay("127.0.0.1", server, at=(address, self.port))


@pytest.fixture(scope="module")
def three(binaries: Binaries) -> Iterator[Cluster]:
    with Cluster(binaries=binaries) as cluster:
        cluster.sql("a", "CREATE TABLE named (n int)")
        for replica in cluster.replicas:
            cluster.wait_for(replica, "SELECT to_regclass('named') IS NOT NULL")
        yield cluster


@pytest.fixture
async def network(three: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    """a, b and c of *three* at 127.0.0.2, .3 and .4; names are looked up twenty times as often as they would be."""
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    network = Network(port)
    monkeypatch.setattr(socket, "getaddrinfo", network.look_up)
    monkeypatch.setattr("dbguard.runtime.monitor.LOOK_UP", 0.5)
    async with contextlib.AsyncExitStack() as stack:
        for number, node in enumerate(three.nodes, 2):
            await stack.enter_async_context(network.relay(f"127.0.0.{number}", node.port))
        yield network


@pytest.fixture
def guarded(
    network: Network, events: list[Event]
) -> Callable[..., contextlib.AbstractAsyncContextManager[dbguard.Guard]]:
    """Open a guard over a DSN of several names, and let it settle."""

    @contextlib.asynccontextmanager
    async def opened(*hosts: str, replicas: int, **options: Any) -> AsyncIterator[dbguard.Guard]:
        where = ",".join(f"{host}:{network.port}" for host in hosts)
        config = {
            "dsn": f"postgresql://postgres@{where}/postgres?application_name=named",
            "probe": {"timeout": "3s"},  # the machine may stand still, which would make a node seem down
        }
        async with dbguard.connect(config, min_size=2, max_size=4, on_event=events.append, **options) as guard:

            def is_settled() -> bool:
                proven = [node for node in guard.status().nodes if node.role == "replica" and node.proven]
                return guard.status().writes == "open" and len(proven) >= replicas

            await until(is_settled)
            yield guard

    return opened


async def backends(cluster: Cluster, node: str) -> int:
    count: int = (await asyncio.to_thread(cluster.sql, node, OURS))[0][0]
    return count


async def eventually_at(guard: dbguard.Guard, *nodes: str) -> None:
    """Wait until reads are answered by these, and by no other."""

    async def answered() -> bool:
        return {await guard.using(consistency="eventual").fetchval(WHERE) for _ in range(20)} == set(nodes)

    await until(answered)


async def test_hosts_of_a_dsn_are_nodes_and_each_dial_asks_anew(network: Network, guarded: Any) -> None:
    network.names = {"db1.test": ("127.0.0.2",), "db2.test": ("127.0.0.3",)}

    async with guarded("db1.test", "db2.test", replicas=1) as guard:
        assert [node.name for node in guard.status().nodes] == [f"db1.test:{network.port}", f"db2.test:{network.port}"]
        assert await guard.fetchval(WRITE, 1) == "a"
        await eventually_at(guard, "b")

        before = dict(network.asked)
        await guard.expire_connections()
        await asyncio.gather(*(guard.fetchval(WRITE, 1) for _ in range(3)))
        assert network.asked["db1.test"] > before["db1.test"]


async def test_a_name_that_was_moved_is_followed_while_the_old_server_goes_on_to_answer(
    network: Network, guarded: Any, three: Cluster, events: list[Event]
) -> None:
    network.names = {"main.test": ("127.0.0.2",), "read.test": ("127.0.0.3",)}

    async with guarded("main.test", "read.test", replicas=1) as guard:
        await eventually_at(guard, "b")
        assert await backends(three, "b") > 0

        network.names["read.test"] = ("127.0.0.4",)

        await eventually_at(guard, "c")
        await until(lambda: _no_more(three, "b"))  # the monitor's own among them
        assert not [event for event in events if isinstance(event, NodeDown | SplitBrainSeen)]
        assert await guard.fetchval(WRITE, 2) == "a"


async def _no_more(cluster: Cluster, node: str) -> bool:
    return await backends(cluster, node) == 0


async def test_a_replica_that_another_machine_replaces_under_its_name_is_taken_for_what_it_is(
    network: Network, guarded: Any, three: Cluster, events: list[Event]
) -> None:
    network.names = {"main.test": ("127.0.0.2",), "read.test": ("127.0.0.3",)}

    async with guarded("main.test", "read.test", replicas=1) as guard:
        await eventually_at(guard, "b")
        try:
            await asyncio.to_thread(three.kill, "b")
            network.names["read.test"] = ("127.0.0.4",)

            answers = [await guard.fetchval(WHERE) for _ in range(50)]

            assert set(answers) <= {"a", "c"}
            await eventually_at(guard, "c")
            assert len([event for event in events if isinstance(event, PrimaryChanged)]) == 1
        finally:
            await asyncio.to_thread(three.start_node, "b")
            await asyncio.to_thread(three.wait_streaming)


async def test_one_server_under_two_names_is_no_split_brain(
    network: Network, guarded: Any, three: Cluster, events: list[Event]
) -> None:
    network.names = {"old.test": ("127.0.0.2",), "new.test": ("127.0.0.5",), "read.test": ("127.0.0.3",)}
    async with (
        network.relay("127.0.0.5", three.node("a").port),
        guarded("old.test", "new.test", "read.test", replicas=1) as guard,
    ):
        for number in range(20):
            assert await guard.fetchval(WRITE, number) == "a"
            await asyncio.sleep(0.1)  # several rounds of probes: two in a row would refuse writes

        assert guard.status().writes == "open"
        assert not [event for event in events if isinstance(event, SplitBrainSeen)]
        assert len([event for event in events if isinstance(event, PrimaryChanged)]) == 1


async def test_a_name_behind_which_several_replicas_stand_serves_reads_by_each_of_them(
    network: Network, guarded: Any, events: list[Event]
) -> None:
    network.names = {"main.test": ("127.0.0.2",), "read.test": ("127.0.0.3", "127.0.0.4")}

    async with guarded("main.test", "read.test", replicas=0) as guard:
        eventual = guard.using(consistency="eventual")
        at_once = f"{WHERE}, pg_sleep(0.02)"
        answered: set[str] = set()

        async def both_have_answered_again_and_again() -> bool:
            answered.update(await asyncio.gather(*(eventual.fetchval(at_once) for _ in range(4))))
            answered.discard("a")  # while the name seemed to have been moved
            await guard.expire_connections()
            return answered == {"b", "c"} and guard.route(at_once).node == "main.test:" + str(network.port)

        await until(both_have_answered_again_and_again, timeout=30)
        for number in range(1_000, 1_020):
            async with guard.causal():
                await guard.execute("INSERT INTO named VALUES ($1)", number)
                assert await guard.fetchval("SELECT count(*) FROM named WHERE n = $1", number) == 1
        assert set(await asyncio.gather(*(eventual.fetchval(at_once) for _ in range(4)))) <= {"b", "c"}
        assert not [event for event in events if isinstance(event, SplitBrainSeen | NodeDown)]
