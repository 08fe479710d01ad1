"""A local cluster of which every link runs through Toxiproxy, so that each can be broken by itself.

    with ProxiedCluster() as cluster:
        guard = dbguard.Guard(cluster.dsn())              # through the proxies
        with cluster.link("app", "b").toxic("timeout", timeout=0):
            ...                                           # b's replies are swallowed; b still streams from a
        with cluster.link("b", "a").down():
            ...                                           # b does not stream any more, and still answers
        with cluster.link("app", "a").hole(), cluster.link("c", "a").hole():
            ...                                           # a lives behind a partition; b alone hears of it

A link leads from who dials to who listens; replies flow *downstream*, back to who dialled.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

from dbguard.testing.cluster import Cluster, ClusterError, ClusterNode
from dbguard.testing.toxiproxy import Proxy, Toxiproxy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["APPLICATION", "ProxiedCluster"]

APPLICATION = "app"
"""What the application is called as an end of a link."""


class ProxiedCluster(Cluster):
    """A `Cluster` behind proxies: for the application, one per node; for replicas, one to whom each follows.

    The harness's own questions (`sql`, `wait_for`, rewinding, copying) go straight to the nodes. One at a time in a
    process, as of `Toxiproxy`.

    proxy_binary: the Toxiproxy server to run. Default: the one that is found or built.
    say: told in one line before that is built. Default: nobody.
    options: as for `Cluster`.

    toxiproxy: the server; ``toxiproxy.reset()`` heals every link, ``toxiproxy.broken()`` lists what is not healed.
    """

    def __init__(
        self, *, proxy_binary: Path | None = None, say: Callable[[str], None] = lambda _line: None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.toxiproxy = Toxiproxy(binary=proxy_binary, say=say)
        self._links: dict[tuple[str, str], Proxy] = {}
        self._links_lock = threading.Lock()  # held while a proxy is made, so that two threads do not make one twice

    def start(self) -> None:
        """Make the cluster and its links, and wait until all replicas stream through theirs."""
        self.toxiproxy.start()
        try:
            super().start()
            for node in self.nodes:
                self.link(APPLICATION, node)
            for replica in self.replicas:
                self.follow(replica, self.primary)
            for replica in self.replicas:
                self.wait_linked(replica, self.primary)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill all servers and the proxies, and remove the directories; does nothing if there is nothing."""
        super().stop()
        self.toxiproxy.stop()
        self._links.clear()

    def link(self, source: ClusterNode | str, target: ClusterNode | str) -> Proxy:
        """Return the link from *source*, a node or ``"app"``, to the node *target*; it is made when it is first asked for.

        Raises ClusterError if there is no such node.
        """
        target = self.node(target)
        dials = APPLICATION if source == APPLICATION else self.node(source).name
        if dials == target.name:
            raise ClusterError(f"there is no link from {dials} to itself")
        with self._links_lock:
            if (proxy := self._links.get((dials, target.name))) is None:
                proxy = self.toxiproxy.proxy(f"{dials}-{target.name}", f"{target.host}:{target.port}")
                self._links[dials, target.name] = proxy
            return proxy

    @property
    def links(self) -> Mapping[tuple[str, str], Proxy]:
        """All links made until now, by the names of their ends: who dials, and who listens."""
        with self._links_lock:
            return dict(self._links)

    def dsn(self, *names: ClusterNode | str, user: str = "postgres", database: str = "postgres") -> str:
        """Write a DSN of the named nodes, or of all of them, as the application reaches them: through the proxies."""
        dsn = super().dsn(*names, user=user, database=database)
        for node in self.nodes:
            link = self.link(APPLICATION, node)
            # what a password or a name may hold is quoted in a DSN: this can only be an address
            dsn = dsn.replace(f"{node.host}:{node.port}", f"{link.host}:{link.port}")
        return dsn

    def follow(
        self, node: ClusterNode | str, upstream: ClusterNode | str, *, host: str | None = None, port: int | None = None
    ) -> None:
        """Point a replica at an upstream, through the link between them unless *host* or *port* say otherwise."""
        if host is None and port is None:
            link = self.link(node, upstream)
            host, port = link.host, link.port
        super().follow(node, upstream, host=host, port=port)

    def rejoin(self, node: ClusterNode | str) -> Literal["rewind", "copy"]:
        """Bring back a node as a streaming replica of the primary: past its link at first, then through it."""
        how = super().rejoin(node)
        self.follow(node, self.primary)
        return how

    def wait_linked(self, node: ClusterNode | str, upstream: ClusterNode | str, timeout: float = 20.0) -> None:
        """Wait until a replica streams through its link to *upstream*. Raises TimeoutError after *timeout* seconds."""
        port = self.link(node, upstream).port
        through = f"SELECT status = 'streaming' AND sender_port = {port} FROM pg_stat_wal_receiver"  # noqa: S608  a number
        self.wait_for(node, through, timeout)
