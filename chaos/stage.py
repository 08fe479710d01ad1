"""What the faults of one run act on: a cluster, who is what there, and who is out of its place.

A fault that takes a node out of its place *holds* it, and *restores* it in the end: then it is brought back, unless
another fault holds it still. The present primary is started or thawed; any other node becomes a replica that streams
from the present primary through its link. What cannot be done yet, as the primary itself is held, is done once it is
restored. So faults may overlap, and each heals its own part in whatever order they end.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict
from random import Random
from typing import TYPE_CHECKING

from dbguard.testing.cluster import ClusterError
from dbguard.testing.proxied import APPLICATION
from dbguard.testing.roles import Roles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chaos.application import Application
    from dbguard.testing.cluster import ClusterNode
    from dbguard.testing.proxied import ProxiedCluster
    from dbguard.testing.toxiproxy import Proxy

__all__ = ["Stage"]

_STREAMING = 3.0  # seconds for a replica that can follow to stream; it dials every 200 ms


class Stage:
    """A cluster, and who was what there. Its methods block; they may be called by several threads.

    changing: held by whoever changes which node is the primary, takes a node out of its place, or brings it back.
    chance: what a fault chooses by, from the run's seed. Default seed 1.
    application: the clients' side, for faults that act there. Default: there is none.
    """

    def __init__(self, cluster: ProxiedCluster, seed: int = 1, application: Application | None = None) -> None:
        self.cluster = cluster
        self._application = application
        self.changing = threading.RLock()
        self.chance = Random(seed)  # noqa: S311  a schedule, no secret
        self._roles = Roles(cluster)
        self._held = Counter[str]()
        self._astray: set[str] = set()
        self._followers = {node.name for node in cluster.replicas}  # since the present primary was promoted
        self._undone: dict[str, list[Callable[[], object]]] = defaultdict(list)

    # --- who is what

    def node(self, name: str) -> ClusterNode:
        """Find a node by its letter or its role. Raises LookupError if nobody has that role."""
        return self._roles.node(name)

    def replicas(self) -> list[ClusterNode]:
        """List the replicas that run and are not frozen, by name."""
        return self._roles.replicas()

    def electable(self) -> list[ClusterNode]:
        """List the replicas that run, if the fittest of them is sure to have all that was acknowledged; else nobody.

        Where commits wait for any one replica, that one may be away: so each that has followed the present primary must
        be there to be asked. Where they do not wait, nobody is sure to have all, and whoever runs may be asked.
        """
        running = self.replicas()
        waits = "SELECT current_setting('synchronous_standby_names') <> ''"
        if running and self.cluster.sql(running[0], waits)[0][0]:
            return running if self._followers <= {node.name for node in running} else []
        return running

    def link(self, source: str, target: str) -> Proxy:
        """Find the link between two nodes, by letters or roles, or from the application, ``app``, to one."""
        return self.cluster.link(source if source == APPLICATION else self.node(source), self.node(target))

    @property
    def application(self) -> Application:
        """The clients' side. Raises LookupError if there is none."""
        if self._application is None:
            raise LookupError("nobody works on this stage")
        return self._application

    # --- who is out of its place

    def hold(self, node: ClusterNode) -> None:
        """Keep others from bringing back a node that is to be taken out of its place. `restore` it as often."""
        with self.changing:
            self._held[node.name] += 1
            self._astray.add(node.name)

    def promoted(self, followers: Iterable[ClusterNode]) -> None:
        """Note who was told to follow a new primary; with the next restoration each node is looked after."""
        with self.changing:
            self._followers = {node.name for node in followers}
            self._astray.update(node.name for node in self.cluster.nodes)

    def restore(self, node: ClusterNode) -> None:
        """Bring a node back to its place that was held, unless others hold it; and all that waited for it.

        Does nothing to a node that is in its place. Raises ClusterError or OSError if a server cannot be brought back.
        """
        with self.changing:
            self._held[node.name] = max(0, self._held[node.name] - 1)
            nodes = sorted(self.cluster.nodes, key=lambda node: node is not self.cluster.primary)
            with contextlib.ExitStack() as all_of_them:  # whoever fails, the others are tried
                for other in reversed(nodes):
                    if other.name in self._astray and not self._held[other.name]:
                        all_of_them.callback(self._bring_back, other)

    def undo(self, node: ClusterNode, work: Callable[[], object]) -> None:
        """Undo by *work* what was done inside a node: now, or once it is brought back, if it cannot be asked now."""
        with self.changing:
            if node.running and not node.frozen:
                work()
            else:
                self._undone[node.name].append(work)

    def _bring_back(self, node: ClusterNode) -> None:
        primary = self.cluster.primary
        if node is primary:
            _wake(self.cluster, node)
        elif not primary.running or primary.frozen:  # held; this is done when it is restored
            if node.is_replica:
                _wake(self.cluster, node)
            return
        else:
            if not self._follows(node):
                self.cluster.rejoin(node)
                self._wait_linked(node)
            self._followers.add(node.name)
        self._astray.discard(node.name)
        for work in self._undone.pop(node.name, []):
            work()

    def _follows(self, node: ClusterNode) -> bool:
        """Let a replica follow the primary as it is; whether it can."""
        cluster, primary = self.cluster, self.cluster.primary
        if not node.is_replica:
            return False
        try:
            _wake(cluster, node)
        except ClusterError:  # its log says why; what it has is replaced
            return False
        cluster.follow(node, primary)
        try:
            if not self._disturbed(cluster.link(node, primary)):
                cluster.wait_linked(node, primary, _STREAMING)
            else:  # another fault, which would hide whether it can follow: so past it, for a moment
                cluster.follow(node, primary, host=primary.host, port=primary.port)
                cluster.wait_for(node, "SELECT status = 'streaming' FROM pg_stat_wal_receiver", _STREAMING)
                cluster.follow(node, primary)
        except TimeoutError:
            return False
        return True

    def _wait_linked(self, node: ClusterNode) -> None:
        """Wait until a replica streams through its link, to which it changes last; not where that is broken."""
        link = self.cluster.link(node, self.cluster.primary)
        try:
            if not self._disturbed(link):
                self.cluster.wait_linked(node, self.cluster.primary)
        except TimeoutError:
            if not self._disturbed(link):
                raise

    def _disturbed(self, link: Proxy) -> bool:
        return any(broken.startswith(f"{link.name} ") for broken in self.cluster.toxiproxy.broken())


def _wake(cluster: ProxiedCluster, node: ClusterNode) -> None:
    """Let a node run in the role that it has."""
    if node.frozen:
        cluster.thaw(node)
    elif not node.running:
        cluster.start_node(node)
