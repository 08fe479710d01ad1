"""The cluster of the moment: the next run has it, too, if it needs such a one and this one is as it was."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import asyncpg

from chaos.play import cluster_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from chaos.scenario import Scenario, Topology
    from dbguard.testing.binaries import Binaries
    from dbguard.testing.proxied import ProxiedCluster

__all__ = ["Clusters"]

_LINKED = 5.0  # seconds for a replica to stream again after a run
_TRACES = """
    SELECT 'setting ' || name || ' ' || setting FROM pg_settings
    WHERE source IN ('configuration file', 'database', 'user') AND name <> 'primary_conninfo'
    UNION ALL SELECT 'relation ' || relname FROM pg_class WHERE oid >= 16384 AND relnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT 'role ' || rolname FROM pg_roles
    UNION ALL SELECT 'database ' || datname FROM pg_database
    UNION ALL SELECT 'replay is paused' WHERE CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END
    ORDER BY 1
"""
"""What a fault can leave on a node, as far as a later run could notice."""


class Clusters:
    """Lends one cluster after the other; a context manager that stops the last.

    binaries: the PostgreSQL to run.
    proxy_binary: the Toxiproxy server.
    say: told what is waited for.
    """

    def __init__(self, binaries: Binaries, proxy_binary: Path, say: Callable[[str], object]) -> None:
        self._binaries = binaries
        self._binary = proxy_binary
        self._say = say
        self._kept: ProxiedCluster | None = None
        self._topology: Topology | None = None
        self._traces: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._drop()

    @contextlib.contextmanager
    def lend(self, scenario: Scenario) -> Iterator[ProxiedCluster]:
        """Lend a cluster of the scenario's topology. It is stopped if what is done with it fails."""
        if self._kept is None or self._topology != scenario.topology:
            self._drop()
            self._start(scenario)
        cluster, self._kept = self._kept, None
        assert cluster is not None
        with contextlib.ExitStack() as exits:
            exits.callback(cluster.stop)
            yield cluster
            if (changed := self._changed(cluster)) is None:
                exits.pop_all()
                self._kept = cluster
            else:
                self._say(f"     ...  the cluster is not used again: {changed}")

    def _start(self, scenario: Scenario) -> None:
        replicas = scenario.topology.replicas
        self._say(f"     ...  starting a primary with {replicas} replicas behind Toxiproxy: {self._binaries}")
        cluster = cluster_for(scenario, binaries=self._binaries, proxy_binary=self._binary)
        cluster.start()
        self._kept, self._topology = cluster, scenario.topology
        self._traces = {node.name: self._look(cluster, node.name) for node in cluster.nodes}

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.stop()
            self._kept = None

    def _changed(self, cluster: ProxiedCluster) -> str | None:
        """Say what is not as it was when the cluster was new, if something is not."""
        if broken := cluster.toxiproxy.broken():
            return f"{', '.join(broken)} is broken still"
        if down := [node.name for node in cluster.nodes if not node.running or node.frozen]:
            return f"{', '.join(down)} does not run"
        if cluster.primary is not cluster.nodes[0]:
            return f"{cluster.primary.name} is the primary now"
        try:
            for replica in cluster.replicas:
                cluster.wait_linked(replica, cluster.primary, _LINKED)
            for node in cluster.nodes:
                if differ := set(self._traces[node.name]) ^ set(self._look(cluster, node.name)):
                    return f"{node.name} is another: {', '.join(sorted(differ))}"
        except (OSError, asyncpg.PostgresError) as e:  # TimeoutError is an OSError
            return str(e)
        return None

    def _look(self, cluster: ProxiedCluster, node: str) -> list[str]:
        return [said for (said,) in cluster.sql(node, _TRACES)]
