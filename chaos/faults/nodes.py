"""What a scenario can do to whole servers: end, freeze and restart them, and change which is the primary.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import contextlib
import os
import signal
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from chaos.faults.base import Breakage, Nothing
from chaos.stage import Stage
from dbguard.config.values import Choice, Fault, Text
from dbguard.testing.cluster import ClusterNode
from dbguard.testing.proxied import ProxiedCluster

__all__ = ["Freeze", "Kill", "Promote", "Restart", "Stop", "Switchover"]

_Mode = Literal["fast", "immediate"]  # not smart: it waits for clients to go, and pools never do

_FITTEST = "fittest"
_RECEIVED = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn"
_STREAMS = "SELECT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"
_RECEIVERS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'"
_LOOK = 0.02  # seconds between two looks
_PARTING = 20.0  # seconds for a receiver to end


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class _OnNode(Breakage):
    """A node that is taken out of its place, and comes back to it: what has become its place meanwhile."""

    node: Annotated[str, Text()]
    """Which, by letter or role. No default."""
    done: ClassVar[str]

    def inject(self, stage: Stage) -> AbstractContextManager[str]:
        """Take it out of its place."""
        return self._out_of_place(stage)

    @contextlib.contextmanager
    def _out_of_place(self, stage: Stage) -> Iterator[str]:
        with stage.changing:
            node = stage.node(self.node)
            stage.hold(node)
        try:
            with stage.changing:
                if fit := node.running and not node.frozen:
                    self.take(stage, node)
            yield f"{node.name} {self.done}" if fit else Nothing(f"{node.name} was off already, and is not {self.done}")
        finally:
            stage.restore(node)

    @abstractmethod
    def take(self, stage: Stage, node: ClusterNode) -> None:
        """Do it to a node that runs."""

    def names(self) -> dict[str, str]:
        """Return the node."""
        return {"node": self.node}

    def __str__(self) -> str:
        return f"{self.node} {self.done}"


class Kill(_OnNode):
    """All processes of a server are killed at once; it is gone until it is restored."""

    __slots__ = ()
    done = "killed"

    def take(self, stage: Stage, node: ClusterNode) -> None:
        """Kill it."""
        stage.cluster.kill(node)


class Freeze(_OnNode):
    """All processes of a server are stopped: its connections stay open, and nothing answers."""

    __slots__ = ()
    done = "frozen"

    def take(self, stage: Stage, node: ClusterNode) -> None:
        """Freeze it."""
        stage.cluster.freeze(node)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Stop(_OnNode):
    """A server is stopped as an administrator does."""

    done = "stopped"
    mode: Annotated[_Mode, Choice(_Mode)] = "fast"
    """fast: its sessions are ended, and all is flushed; immediate: it crashes in order. Default fast."""

    def take(self, stage: Stage, node: ClusterNode) -> None:
        """Stop it."""
        stage.cluster.stop_node(node, self.mode)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Restart(_OnNode):
    """A server is stopped and started in place, at once."""

    done = "restarted"
    momentary = True
    mode: Annotated[_Mode, Choice(_Mode)] = "fast"
    """As of `Stop`."""

    def take(self, stage: Stage, node: ClusterNode) -> None:
        """Restart it."""
        stage.cluster.stop_node(node, self.mode)
        stage.cluster.start_node(node)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class _Succession(Breakage):
    """A replica becomes the primary."""

    node: Annotated[str, Text()] = _FITTEST
    """Which replica, by letter or role, or ``fittest``: the one that has received most, as a cluster manager chooses.
    With synchronous replication it has all that was acknowledged. Default fittest."""

    def names(self) -> dict[str, str]:
        """Return the node."""
        return {} if self.node == _FITTEST else {"node": self.node}

    def _contradictions(self) -> list[Fault]:
        return [(("node",), "should be a replica: the primary is one already")] if self.node == "primary" else []

    def _fit(self, stage: Stage) -> list[ClusterNode]:
        """List the replicas that run. Raises LookupError if the one that is wanted is not among them now."""
        replicas = stage.electable() if self.node == _FITTEST else stage.replicas()
        if not replicas or (self.node != _FITTEST and stage.node(self.node) not in replicas):
            raise LookupError(f"no replica can be promoted now (wanted: {self.node})")
        return replicas


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Promote(_Succession):
    """A replica becomes the primary, and the other replicas follow it. Nothing happens to a primary that still runs.

    In the end the old primary, and whoever does not follow the new one, come back as its replicas.
    """

    def inject(self, stage: Stage) -> AbstractContextManager[str]:
        """Promote it."""
        return self._promoted(stage)

    @contextlib.contextmanager
    def _promoted(self, stage: Stage) -> Iterator[str]:
        with contextlib.ExitStack() as healing:
            with stage.changing:
                replicas = self._fit(stage)
                old = stage.node("primary")
                stage.hold(old)
                healing.callback(stage.restore, old)
                new = _promote(stage, self.node, replicas)
            yield f"{new.name} promoted, in place of {old.name}"

    def __str__(self) -> str:
        return f"{self.node} promoted"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Switchover(_Succession):
    """The primary is stopped in order, a replica promoted, and the old primary becomes its replica; at once."""

    momentary = True

    def inject(self, stage: Stage) -> AbstractContextManager[str]:
        """Do all of it."""
        return self._switched(stage)

    @contextlib.contextmanager
    def _switched(self, stage: Stage) -> Iterator[str]:
        with contextlib.ExitStack() as healing, stage.changing:
            replicas = self._fit(stage)
            if self.node != _FITTEST and not stage.cluster.sql(stage.node(self.node), _STREAMS)[0][0]:
                raise LookupError(f"{self.node} does not stream now: it would lack what the primary writes last")
            old = stage.node("primary")
            stage.hold(old)
            healing.callback(stage.restore, old)
            if old.running and not old.frozen:
                stage.cluster.stop_node(old)
            new = _promote(stage, self.node, replicas)
            if not old.running:
                stage.cluster.follow(old, new)  # without being rewound: it has nothing that the others lack
        yield f"switchover from {old.name} to {new.name}"

    def __str__(self) -> str:
        return f"switchover to {self.node}"


def _promote(stage: Stage, wanted: str, replicas: list[ClusterNode]) -> ClusterNode:
    """Promote the one that is wanted, and let the others follow it.

    All are parted from the old primary before they are compared: if it lives, or something of it was still on its way,
    another one could get more than the best has, and could not follow it then.
    """
    cluster = stage.cluster
    try:
        new = None if wanted == _FITTEST else stage.node(wanted)
        for node in replicas:
            cluster.sql(node, "ALTER SYSTEM SET primary_conninfo = ''")
            cluster.sql(node, "SELECT pg_reload_conf()")
        for node in replicas:
            _part(cluster, node)
        new = new or max(replicas, key=lambda node: cluster.sql(node, _RECEIVED)[0][0])
        for node in replicas:
            if node is not new:
                cluster.follow(node, new)
        cluster.promote(new)
    finally:
        stage.promoted(node for node in replicas if node is not cluster.primary)
    return new


def _part(cluster: ProxiedCluster, node: ClusterNode) -> None:
    """End what receives on a replica that was told to follow nobody.

    The server ends it by itself only while it streams. One that waits for its next order keeps its connection, and would
    go on with the old primary as soon as the replica is told to follow another one.
    """
    until = time.monotonic() + _PARTING
    while receivers := cluster.sql(node, _RECEIVERS):
        if time.monotonic() > until:
            raise TimeoutError(f"{node}: what receives there does not end within {_PARTING:g} s")
        for (pid,) in receivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(_LOOK)
