"""What a test can break of a cluster, each in one line, and each healed at the end of its block or of the test.

    with faults.failover():                    # in a plain test or a thread
        ...
    async with faults.hole("app->b"):          # in a coroutine: the same, done in a thread meanwhile
        ...
    faults.kill("primary").inject()            # lasts until the test ends; in a coroutine: `await faults.kill("primary")`

Nodes are named by letter, or by role as it is at that moment: ``primary``, ``replica`` (the first that runs),
``other-replica`` (the last, if two run), ``old-primary`` (who was primary before). Links lead from who dials to who
listens, ``app->primary`` or ``replica->primary``, and need a `ProxiedCluster`.

Healing brings a node to its proper place, whatever happened meanwhile: the present primary is started or thawed,
any other becomes a streaming replica of the present primary; writes that only it had are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from dbguard.testing.cluster import Cluster, ClusterError, ClusterNode
from dbguard.testing.configuration import quoted
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from dbguard.testing.roles import Roles
from dbguard.testing.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from dbguard.testing.node import StopMode
    from dbguard.testing.toxiproxy import Proxy, Stream, ToxicKind

__all__ = ["Fault", "Faults"]

_STREAMING = 5.0  # seconds for a restored replica to stream by itself; usually 0.3. Then it is made anew


class Fault:
    """Something to be broken. `Faults` describes it; nothing happens before it is entered, injected or awaited.

    ``with`` breaks it and heals it at the end of the block, ``async with`` does the same from a coroutine without
    holding up its loop. `inject`, or ``await``, breaks it until the test ends or `heal` is called.

    what: what it does, with the names resolved once it was done.
    begun: whether it was asked to break anything.
    """

    def __init__(self, what: str, break_it: Callable[[], AbstractContextManager[str]]) -> None:
        self.what = what
        self.begun = False
        self._break_it = break_it
        self._healing = contextlib.ExitStack()
        self._lock = threading.Lock()  # held while it is broken or healed

    def __str__(self) -> str:
        return self.what

    __repr__ = __str__

    def inject(self) -> Self:
        """Break it now; it is healed when the test ends. Blocks.

        Raises RuntimeError in a coroutine, whose loop must go on: ``async with`` or ``await`` the fault there.
        """
        self._refuse_loop("await the fault, or write `async with`")
        self._inject()
        return self

    def heal(self) -> None:
        """Heal what it broke, now; does nothing if it was not broken or is healed already. Blocks."""
        self._refuse_loop("`async with` heals at its end")
        self._heal()

    def __enter__(self) -> Self:
        return self.inject()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._heal()

    async def __aenter__(self) -> Self:
        try:
            await in_thread(self._inject)
        except asyncio.CancelledError:
            await in_thread(self._heal)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        await in_thread(self._heal)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    def _inject(self) -> None:
        with self._lock:
            if self.begun:
                raise RuntimeError(f"{self.what}: done already; describe it anew to do it again")
            self.begun = True
            self.what = self._healing.enter_context(self._break_it())

    def _heal(self) -> None:
        with self._lock:
            self._healing.close()

    def _refuse_loop(self, instead: str) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise RuntimeError(f"{self.what}: this would hold up the event loop, and with it the application; {instead}")


class Faults:
    """The faults of one cluster; a context manager that heals at its end whatever is still broken, the last one first.

    cluster: what to break. Faults of links need a `ProxiedCluster`.

    Leaving it raises ClusterError if a fault was described and never done: a test that forgot `inject` proves nothing.
    Its methods only describe, and may be called anywhere.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._described: list[Fault] = []
        self._roles = Roles(cluster)
        self._lock = threading.RLock()  # held while nodes change roles or are brought back: two must not do so at once

    # --- nodes

    def kill(self, node: str = "primary") -> Fault:
        """SIGKILL all of a node's processes, as a power cut would."""
        return self._on_node("kill", node, self.cluster.kill)

    def stop(self, node: str = "primary", mode: StopMode = "fast") -> Fault:
        """Stop a node as an administrator does; *mode* as in ``pg_ctl stop``."""
        return self._on_node(f"stop ({mode})", node, lambda found: self.cluster.stop_node(found, mode))

    def freeze(self, node: str = "primary") -> Fault:
        """SIGSTOP all of a node's processes: its connections stay open, and nothing answers."""
        return self._on_node("freeze", node, self.cluster.freeze)

    def promote(self, node: str = "replica") -> Fault:
        """Promote a replica and tell nobody: the old primary, if it runs, goes on, and there are two."""
        return self._described_as(f"promote {node}", lambda: self._promoted(node))

    def failover(self, to: str = "replica", *, after: float = 1.0) -> Fault:
        """Kill the primary, and *after* seconds promote the node *to*; the other replicas follow it.

        after: how long there is no primary at all, >= 0. Default 1; a cluster manager often needs 10 to 30.
        """
        return self._described_as(f"failover to {to}", lambda: self._moved(to, after, stop=False))

    def switchover(self, to: str = "replica") -> Fault:
        """Stop the primary in order, promote the node *to*; the other replicas follow it."""
        return self._described_as(f"switchover to {to}", lambda: self._moved(to, 0.0, stop=True))

    def pause_replay(self, node: str = "replica") -> Fault:
        """Let a replica receive and not apply: it streams, and shows the past."""
        return self._described_as(f"pause the replay of {node}", lambda: self._paused(node))

    def end_backends(self, node: str = "primary", *, where: str = "true") -> Fault:
        """End client connections as an administrator does (57P01), once; there is nothing to heal.

        where: an SQL condition on the columns of ``pg_stat_activity``. Default: all of them.
        """
        return self._described_as(f"end the backends of {node}", lambda: self._ended(node, where))

    # --- links

    def hole(self, link: str = "app->primary") -> Fault:
        """Swallow all that is said on a link, both ways; its connections end when it is healed."""
        return self._on_link("hole", link, lambda proxy: proxy.hole())

    def down(self, link: str = "app->primary") -> Fault:
        """End all connections of a link, and refuse new ones."""
        return self._on_link("down", link, lambda proxy: proxy.down())

    def latency(self, link: str, seconds: float, *, jitter: float = 0.0) -> Fault:
        """Hold up all replies of a link by *seconds*, give or take *jitter* seconds."""
        more: dict[str, Any] = {"jitter": round(jitter * 1000)} if jitter else {}
        return self.toxic(link, "latency", latency=round(seconds * 1000), **more)

    def toxic(
        self, link: str, kind: ToxicKind, *, stream: Stream = "downstream", toxicity: float = 1.0, **attributes: int
    ) -> Fault:
        """Put a toxic of Toxiproxy on a link; its words are those of `dbguard.testing.toxiproxy.Proxy.toxic`."""
        said = " ".join([kind, *(f"{name}={value}" for name, value in attributes.items())])
        return self._on_link(said, link, lambda way: way.toxic(kind, stream=stream, toxicity=toxicity, **attributes))

    # --- names

    def node(self, name: str) -> ClusterNode:
        """Find a node by its letter, or by its role at this moment. Raises ClusterError if there is none."""
        return self._roles.node(name)

    def link(self, name: str) -> Proxy:
        """Find a link by its ends, such as ``app->primary``. Raises ClusterError if there is none."""
        source, arrow, target = (part.strip() for part in name.partition("->"))
        if not arrow:
            raise ClusterError(f"{name!r} is no link; write who dials and who listens, such as app->primary")
        if not isinstance(self.cluster, ProxiedCluster):
            raise ClusterError(
                f"{name}: this cluster has no proxies; use `dbguard.testing.proxied.ProxiedCluster`"
                " (the fixture dbguard_proxied_cluster)"
            )
        return self.cluster.link(source if source == APPLICATION else self.node(source), self.node(target))

    # --- changing who is primary, and bringing all back

    def move(self, to: str = "replica", *, after: float = 0.0, stop: bool = False) -> str:
        """Make another node the primary at once, and leave it so; return what was done. Blocks.

        after: seconds without a primary, >= 0. Default 0. stop: the old one is stopped in order. Default: it is killed.
        """
        cluster = self.cluster
        with self._lock:
            old, node = self.node("primary"), self.node(to)
            if node is old:
                raise ClusterError(f"{node} is the primary already; name a replica")
            if stop:
                cluster.stop_node(old)
            elif old.running:
                cluster.kill(old)
            time.sleep(after)
            cluster.promote(node)
            for other in self._roles.replicas():
                cluster.follow(other, node)
        return f"{old.name} {'stopped' if stop else 'killed'}, {node.name} promoted"

    def restore(self, node: ClusterNode | str) -> None:
        """Bring a node to its proper place, whatever it went through; does nothing if it is there. Blocks.

        The primary is started or thawed. Any other becomes a streaming replica of it; while the primary itself is
        away, a replica is only started or thawed.
        """
        cluster = self.cluster
        node = cluster.node(node)
        with self._lock:
            primary = cluster.primary
            if node is not primary and not node.is_replica:
                self._rejoin(node)
                return
            if node.frozen:
                cluster.thaw(node)
            elif not node.running:
                cluster.start_node(node)
            if node is not primary and primary.running and not primary.frozen:
                cluster.follow(node, primary)
                try:
                    cluster.wait_for(primary, _streams(node), _STREAMING)
                except TimeoutError:  # its history is another one, or a link is broken that this is not to heal
                    self._rejoin(node)

    def restore_all(self) -> None:
        """Bring all nodes to their proper places, the primary first."""
        for node in (self.cluster.primary, *self.cluster.nodes):
            self.restore(node)

    def close(self) -> None:
        """Heal whatever is still broken, the last one first. Raises what kept one from it, when all were tried."""
        with contextlib.ExitStack() as healing:
            for fault in self._described:
                healing.callback(fault._heal)  # noqa: SLF001  one class in two halves

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        forgotten = [fault.what for fault in self._described if not fault.begun]
        if forgotten and e is None:
            raise ClusterError(
                f"described and never done: {', '.join(forgotten)}; enter it by `with` or `async with`, await it, or call"
                " its inject()"
            )

    # --- doing it

    def _described_as(self, what: str, break_it: Callable[[], AbstractContextManager[str]]) -> Fault:
        fault = Fault(what, break_it)
        self._described.append(fault)
        return fault

    def _on_node(self, what: str, name: str, do: Callable[[ClusterNode], None]) -> Fault:
        @contextlib.contextmanager
        def broken() -> Iterator[str]:
            node = self.node(name)
            do(node)
            try:
                yield f"{what} {node.name}"
            finally:
                self.restore(node)

        return self._described_as(f"{what} {name}", broken)

    def _on_link(self, what: str, name: str, do: Callable[[Proxy], AbstractContextManager[object]]) -> Fault:
        @contextlib.contextmanager
        def broken() -> Iterator[str]:
            proxy = self.link(name)
            with do(proxy):
                yield f"{what} on {proxy.name.replace('-', '->')}"

        return self._described_as(f"{what} on {name}", broken)

    @contextlib.contextmanager
    def _promoted(self, name: str) -> Iterator[str]:
        with self._lock:
            old, node = self.cluster.primary, self.node(name)
            self.cluster.promote(node)
        try:
            yield f"promote {node.name} beside {old.name}"
        finally:
            self.restore_all()

    @contextlib.contextmanager
    def _moved(self, name: str, after: float, *, stop: bool) -> Iterator[str]:
        try:
            yield self.move(name, after=after, stop=stop)
        finally:
            self.restore_all()

    @contextlib.contextmanager
    def _paused(self, name: str) -> Iterator[str]:
        node = self.node(name)
        self.cluster.pause_replay(node)
        try:
            yield f"pause the replay of {node.name}"
        finally:
            # ended with the process, or with the node's days as a replica, if those have ended meanwhile
            if node.running and not node.frozen and self.cluster.sql(node, "SELECT pg_is_in_recovery()")[0][0]:
                self.cluster.resume_replay(node)

    @contextlib.contextmanager
    def _ended(self, name: str, where: str) -> Iterator[str]:
        node = self.node(name)
        yield f"{self.cluster.terminate_backends(node, where=where)} backends of {node.name} ended"

    def _rejoin(self, node: ClusterNode) -> None:
        """Lock held. Does nothing while there is no primary to follow: `restore_all` brings that one back first."""
        if self.cluster.primary.running and not self.cluster.primary.frozen:
            self.cluster.rejoin(node)


def _streams(node: ClusterNode) -> str:
    return (
        "SELECT count(*) > 0 FROM pg_stat_replication"  # noqa: S608  our own name
        f" WHERE state = 'streaming' AND application_name = {quoted(node.name)}"
    )
