"""A cluster to break, a process with a client to watch, and what one failover meant to it.

The cluster and its manager are this process, the client under test another one (`failover_client`), and the moment at
which a new primary is out of recovery is polled here, over a connection of its own: no one's event loop or interpreter
lock stands in another's way.

The manager sees to synchronous replication as Patroni does: commits on the primary wait for any one replica; a replica
is promoted without such a wait, and gets it once others stream from it. With *strict* the wait is never taken away, so
that the first commit on a new primary stands until a replica has found it: 25 to 60 ms here, whoever writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
from failover_client import APPLICATION_NAME, TABLE

from dbguard.drivers import outcome_sql
from dbguard.testing.proxied import APPLICATION, ProxiedCluster

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from dbguard.testing.cluster import Cluster, ClusterNode

CLIENT = Path(__file__).with_name("failover_client.py")
PASSWORD = "figures"  # noqa: S105  of a cluster that lives for minutes: so that connections cost SCRAM, as elsewhere
SYNCHRONOUS = "synchronous_standby_names"
POLL = 0.001
"""Seconds between two looks at whether the new primary is out of recovery."""

OFTEN = {"failover": {"flap_changes": "unlimited"}}
"""A failover every few seconds is what is measured here, not a primary that flaps."""

CONFIG: dict[str, dict[str, Any]] = {
    "dbguard": OFTEN,
    "dbguard with tokens": OFTEN | {"outcome": {"resolve": "token-table"}},
    "asyncpg multi-host": {},
    "tenacity": {},
}


class Client:
    """The process of `failover_client`; an asynchronous context manager, its callers at work inside.

    system: a name of `failover_client.SYSTEMS`. writers, readers, pause: how many callers, and the seconds between two calls of
    each. timeout: seconds for each call.
    """

    def __init__(
        self,
        cluster: Cluster,
        system: str,
        *,
        writers: int = 8,
        readers: int = 4,
        pause: float = 0.02,
        timeout: float = 10.0,
        config: dict[str, Any] | None = None,
    ) -> None:
        proxied = isinstance(cluster, ProxiedCluster)
        ends = {node.name: cluster.link(APPLICATION, node) if proxied else node for node in cluster.nodes}
        self._place = {
            "system": system,
            "addresses": {name: (end.host, end.port) for name, end in ends.items()},
            "password": PASSWORD,
            "writers": writers,
            "readers": readers,
            "pause": pause,
            "timeout": timeout,
            "config": CONFIG[system] | (config or {}),
        }
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            CLIENT,
            json.dumps(self._place),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=2**28,
        )
        await self._answer()
        await self.ask("go")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.ask("end")
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def ask(self, what: str) -> dict[str, Any]:
        """Let the process do something, and return its answer."""
        assert self._process.stdin is not None  # noqa: S101  made with a pipe
        self._process.stdin.write(json.dumps({"do": what}).encode() + b"\n")
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  made with a pipe
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the client's process has ended; its traceback stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Failover:
    """What happened to the cluster, and when (`time.monotonic`).

    begun, gone: the fault was about to be brought about; it was. asked: the promotion was asked for. promoted: the new
    primary was seen out of recovery. floor: seconds from there to the acknowledgement of a commit over a connection that
    was open already. load: the machine's load average over the last minute.
    """

    how: str
    old: str
    new: str = ""
    begun: float = 0.0
    gone: float = 0.0
    asked: float = 0.0
    promoted: float = 0.0
    floor: float = 0.0
    load: float = 0.0


@dataclass
class Book:
    """What the callers were told, in all failovers that one client has seen."""

    calls: list[Any] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)

    async def take(self, client: Client) -> None:
        """Add what the client has to tell."""
        told = await client.ask("take")
        self.calls += told["calls"]
        self.events += told["events"]
        self.stalls += told["stalls"]


class Manager:
    """Brings about failovers, as people, machines and cluster managers do. *strict*: see the module."""

    def __init__(self, cluster: Cluster, *, synchronous: bool = True, strict: bool = False) -> None:
        self.cluster = cluster
        self._synchronous = synchronous
        self._strict = strict

    async def prepare(self) -> None:
        """Make the tables, and see to replication."""
        cluster = self.cluster
        con = await self.connect(cluster.primary)
        await con.execute(TABLE)
        await con.execute("CREATE TABLE floor (n int)")
        await con.execute(outcome_sql.schema())
        await con.close()
        await self._replicate()

    async def connect(self, node: ClusterNode) -> Any:
        """Open a connection straight to *node*."""
        return await asyncpg.connect(
            host=node.host, port=node.port, user="postgres", password=PASSWORD, database="postgres", ssl=False
        )

    async def fail_over(self, how: str, after: float) -> Failover:
        """Take the primary away, and promote the replica that has received the most, *after* seconds later."""
        cluster, old = self.cluster, self.cluster.primary
        seen = Failover(how, old.name, load=os.getloadavg()[0])
        seen.begun = time.monotonic()
        await asyncio.to_thread(self._take_away, how, old)
        seen.gone = time.monotonic()
        await asyncio.sleep(after)
        received = "SELECT (pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::bigint"
        candidates = {node: (await self._ask(node, received)) or 0 for node in cluster.replicas}
        new = max(candidates, key=lambda node: candidates[node])
        others = [node for node in candidates if node is not new]
        seen.new = new.name
        watching = await self.connect(new)
        seen.asked = time.monotonic()
        following = [asyncio.to_thread(cluster.follow, other, new) for other in others]
        steps = asyncio.gather(asyncio.to_thread(cluster.promote, new), *following)
        if how == "demote":
            steps = asyncio.gather(steps, asyncio.to_thread(self._demote, old, new))
        while await watching.fetchval("SELECT pg_is_in_recovery()"):  # noqa: ASYNC110  the event is the server's
            await asyncio.sleep(POLL)
        seen.promoted = time.monotonic()
        await watching.execute("INSERT INTO floor VALUES (1)")
        seen.floor = time.monotonic() - seen.promoted
        await watching.close()
        await steps
        return seen

    async def heal(self, seen: Failover) -> None:
        """Let an old primary that was frozen or cut off go on: as the primary it takes itself for."""
        if isinstance(self.cluster, ProxiedCluster):
            await asyncio.to_thread(self.cluster.toxiproxy.reset)
        if seen.how == "freeze":
            await asyncio.to_thread(self.cluster.thaw, seen.old)

    async def mend(self, seen: Failover) -> None:
        """Bring the old primary back as a replica, and see to replication."""
        cluster = self.cluster
        if seen.how != "demote":
            await asyncio.to_thread(cluster.rejoin, seen.old)
        await asyncio.to_thread(cluster.wait_streaming)
        await self._replicate()

    async def rows(self, node: ClusterNode) -> list[tuple[int, str]]:
        """Return each row on *node*: its value, and the node that took it first."""
        con = await self.connect(node)
        try:
            return [(row[0], row[1]) for row in await con.fetch("SELECT value, node FROM written")]
        finally:
            await con.close()

    async def backends(self) -> int:
        """Count the client's sessions on all nodes."""
        query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION_NAME}'"  # noqa: S608  ours
        return sum([await self._ask(node, query) for node in self.cluster.nodes])

    async def _ask(self, node: ClusterNode, query: str) -> Any:
        con = await self.connect(node)
        try:
            return await con.fetchval(query)
        finally:
            await con.close()

    def _take_away(self, how: str, old: ClusterNode) -> None:
        cluster = self.cluster
        match how:
            case "kill":
                cluster.kill(old)
            case "stop" | "demote":
                cluster.stop_node(old)
            case "freeze":
                cluster.freeze(old)
            case "hole":
                if not isinstance(cluster, ProxiedCluster):
                    raise TypeError("a black hole needs proxies")
                for stream in ("upstream", "downstream"):
                    cluster.link(APPLICATION, old).toxic("timeout", stream=stream, timeout=0)
            case _:
                raise ValueError(how)

    def _demote(self, old: ClusterNode, new: ClusterNode) -> None:
        """Start the old primary, which was stopped cleanly, as a replica of the new one."""
        self.cluster.follow(old, new)
        self.cluster.start_node(old)

    async def _replicate(self) -> None:
        """Let commits on the primary wait for any one replica, and on the others, once promoted, for none."""
        cluster = self.cluster
        names = f"ANY 1 ({', '.join(node.name for node in cluster.nodes)})" if self._synchronous else ""
        for node in cluster.nodes:
            wanted = names if node is cluster.primary or self._strict else ""
            con = await self.connect(node)
            try:
                await con.execute(f"ALTER SYSTEM SET {SYNCHRONOUS} = '{wanted}'")
                await con.execute("SELECT pg_reload_conf()")
            finally:
                await con.close()
        if self._synchronous:
            await asyncio.to_thread(
                cluster.wait_for, cluster.primary, "SELECT bool_or(sync_state = 'quorum') FROM pg_stat_replication"
            )
