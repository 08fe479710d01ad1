"""What is done to the cluster, and when: the primary dies, a replica takes its place, the old one comes back.

dbguard has no part in this: it promotes nobody. Here the demo is what Patroni, a cloud or an administrator is elsewhere.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.cluster import Cluster, ClusterNode

__all__ = ["Failover", "Script"]


@dataclass(frozen=True, slots=True)
class Script:
    """When each step is due, in seconds since the clients began."""

    kill: float
    promote: float
    rejoin: float
    end: float

    @classmethod
    def of(cls, seconds: float) -> Script:
        """Scale the steps to a run of *seconds*.

        The promotion comes 1 s after the kill, as by a prompt cluster manager; earlier in runs below 20 s.
        """
        kill = seconds * 0.3
        return cls(kill=kill, promote=kill + min(1.0, seconds * 0.05), rejoin=seconds * 0.6, end=seconds)


class Failover:
    """Plays the script.

    say: told one line per step, with the step's name and node.
    killed: the node that is down at present, None if all are up.
    promoted_at: when the new primary was seen out of recovery, on the monotonic clock; None before that.
    killed_at: when the primary was about to be killed, on the same clock; None before that.
    """

    def __init__(self, cluster: Cluster, script: Script, say: Callable[[str, str, str], None]) -> None:
        self.killed: str | None = None
        self.killed_at: float | None = None
        self.promoted_at: float | None = None
        self._cluster = cluster
        self._script = script
        self._say = say

    @property
    def outage(self) -> float:
        """Seconds without a primary; infinite if nobody took its place."""
        if self.killed_at is None or self.promoted_at is None:
            return math.inf
        return self.promoted_at - self.killed_at

    async def play(self, began: float) -> None:
        """Do each step when it is due, and return at the end. Raises `ClusterError` if PostgreSQL does not obey."""
        cluster, script = self._cluster, self._script
        old = cluster.primary
        await _until(began + script.kill)
        self.killed, self.killed_at = old.name, time.monotonic()
        self._say("kill", old.name, f"{old.name}, the primary, is killed: kill -9 of all its processes")
        await asyncio.to_thread(cluster.kill, old)
        await _until(began + script.promote)
        new, others = await asyncio.to_thread(_successor, cluster)
        self._say("promote", new.name, f"{new.name} is being promoted: it has received the most")
        following = [asyncio.to_thread(cluster.follow, other, new) for other in others]
        self.promoted_at, *_ = await asyncio.gather(asyncio.to_thread(_promote, cluster, new), *following)
        self._say("promoted", new.name, f"{new.name} is out of recovery; {_names(others)} told to follow it")
        await _until(began + script.rejoin)
        self._say("rejoin", old.name, f"{old.name} is being rewound, to come back as a replica")
        how = await asyncio.to_thread(cluster.rejoin, old)
        self.killed = None
        self._say("rejoined", old.name, f"{old.name} is back as a replica ({how})")
        await _until(began + script.end)


def _successor(cluster: Cluster) -> tuple[ClusterNode, list[ClusterNode]]:
    """Choose the replica that has received the most: it has whatever any one of them has acknowledged."""
    received = "SELECT (pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::bigint"
    new = max(cluster.replicas, key=lambda node: int(cluster.sql(node, received)[0][0]))
    return new, [node for node in cluster.replicas if node is not new]


def _promote(cluster: Cluster, node: ClusterNode) -> float:
    """Promote *node*; return when it was seen out of recovery, read in this very thread."""
    cluster.promote(node)
    return time.monotonic()


def _names(nodes: list[ClusterNode]) -> str:
    return " and ".join(node.name for node in nodes)


async def _until(moment: float) -> None:
    await asyncio.sleep(moment - time.monotonic())
