"""Who is what in a cluster: nodes are named by letter, or by role as it is at that moment."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dbguard.testing.cluster import ClusterError

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster, ClusterNode

__all__ = ["ROLES", "Roles", "VacantRole"]

ROLES = ("primary", "replica", "other-replica", "old-primary")
"""What a node can be called by beside its letter; who it is, is decided when it is asked for.

primary: who was promoted last. replica, other-replica: the first and the last by name of the replicas that run; one alone
is no other-replica. old-primary: who was the primary before.
"""


class VacantRole(ClusterError, LookupError):
    """Nobody has this role now; later somebody may."""


class Roles:
    """The roles in one cluster. Its methods may be called from any thread.

    cluster: which one, started.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._reigns = [cluster.primary]
        self._lock = threading.Lock()  # guards _reigns

    def node(self, name: str) -> ClusterNode:
        """Find a node by its letter, or by its role at this moment.

        Raises VacantRole if nobody has that role, and ClusterError if it is no name of a node.
        """
        primary = self._cluster.primary
        with self._lock:
            if self._reigns[-1] is not primary:
                self._reigns.append(primary)
        letters = [node.name for node in self._cluster.nodes]
        match name:
            case "primary":
                return primary
            case "old-primary":
                found = self._reigns[-2:-1]
            case "replica":
                found = self.replicas()[:1]
            case "other-replica":
                found = self.replicas()[1:][-1:]
            case _ if name in letters:
                return self._cluster.node(name)
            case _:
                raise ClusterError(
                    f"no node {name!r}; there are {', '.join(letters)}, and the roles {', '.join(ROLES)}"
                )
        if not found:
            running = ", ".join(map(str, self.replicas())) or "none"
            raise VacantRole(f"no node is {name} now; running replicas: {running}")
        return found[0]

    def replicas(self) -> list[ClusterNode]:
        """List the replicas that run and are not frozen, by name."""
        return [node for node in self._cluster.replicas if node.running and not node.frozen]
