"""What the faults of one run act on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dbguard.testing.proxied import APPLICATION

if TYPE_CHECKING:
    from dbguard.testing.cluster import ClusterNode
    from dbguard.testing.proxied import ProxiedCluster
    from dbguard.testing.toxiproxy import Proxy

__all__ = ["ROLES", "Stage"]

ROLES = ("primary", "replica", "other-replica", "old-primary")
"""What a scenario can call a node by beside its letter; who it is, is decided when a fault is injected.

primary: who was promoted last. replica, other-replica: the first and the last by name of the other nodes that run.
old-primary: who was the primary before.
"""


class Stage:
    """A cluster, and who was what there. Its methods block; they may be called by several threads.

    changing: held by whoever changes which node is the primary, or brings a node to its place.
    """

    def __init__(self, cluster: ProxiedCluster) -> None:
        self.cluster = cluster
        self.changing = threading.RLock()
        self._reigns = [cluster.primary]

    def node(self, name: str) -> ClusterNode:
        """Find a node by its letter or its role. Raises LookupError if nobody has that role."""
        primary = self.cluster.primary
        with self.changing:
            if self._reigns[-1] is not primary:
                self._reigns.append(primary)
        match name:
            case "primary":
                return primary
            case "old-primary":
                found = self._reigns[-2:-1]
            case "replica" | "other-replica":
                others = [node for node in self.cluster.nodes if node is not primary and node.running]
                found = others[:1] if name == "replica" else others[1:][-1:]
            case _:
                return self.cluster.node(name)
        if not found:
            raise LookupError(f"no node is {name} now")
        return found[0]

    def link(self, source: str, target: str) -> Proxy:
        """Find the link between two nodes, by letters or roles, or from the application, ``app``, to one."""
        return self.cluster.link(source if source == APPLICATION else self.node(source), self.node(target))
