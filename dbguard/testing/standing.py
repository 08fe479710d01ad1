"""How the nodes of a local cluster stand, in a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.testing.proxied import APPLICATION, ProxiedCluster

if TYPE_CHECKING:
    from dbguard.testing.cluster import Cluster, ClusterNode

__all__ = ["standing"]

_ANSWER = 10.0  # seconds for a node to say how it stands; usually 0.02
_HEAD = ("node", "address", "server", "role", "streams from", "position", "behind", "clients")
_ASKED = """SELECT pg_is_in_recovery(),
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text,
  (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn)::bigint,
  (SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'),
  pg_is_in_recovery() AND pg_get_wal_replay_pause_state() <> 'not paused',
  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())"""


def standing(cluster: Cluster) -> str:
    """Ask all nodes and write a table: who is up, who is primary, who follows whom and how far behind. Blocks.

    A node that does not answer within 10 seconds is shown as silent, and why. behind: bytes of WAL that are not applied
    of what the primary has. clients: connections of others. Links that are broken are listed below.
    """
    ports = {node.port: node.name for node in cluster.nodes}
    if isinstance(cluster, ProxiedCluster):
        ports |= {proxy.port: target for (_, target), proxy in cluster.links.items()}
    answers = {node.name: _ask(cluster, node) for node in cluster.nodes}
    head = answers[cluster.primary.name]
    rows = [_HEAD]
    for node in cluster.nodes:
        way = cluster.link(APPLICATION, node) if isinstance(cluster, ProxiedCluster) else node
        answer = answers[node.name]
        row = (node.name, f"{way.host}:{way.port}")
        if isinstance(answer, str):
            role = "replica" if node.is_replica else "primary" if node is cluster.primary else "old primary"
            rows.append((*row, answer, role, "-", "-", "-", "-"))
            continue
        replica, position, written, port, paused, clients = answer
        behind = "-" if isinstance(head, str) or node is cluster.primary else str(head[2] - written)
        role = ("replica, paused" if paused else "replica") if replica else "primary"
        rows.append((*row, "up", role, ports.get(port or 0, "-"), position, behind, str(clients)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if isinstance(cluster, ProxiedCluster):
        lines += [f"broken: {what}" for what in cluster.toxiproxy.broken()]
    return "\n".join(lines)


def _ask(cluster: Cluster, node: ClusterNode) -> tuple[bool, str, int, int | None, bool, int] | str:
    """Return a node's answer, or why there is none."""
    if not node.running:
        return "down"
    if node.frozen:
        return "frozen"
    try:
        return cluster.sql(node, _ASKED, timeout=_ANSWER)[0]
    except Exception as e:  # noqa: BLE001  whatever keeps it from answering is what the table shows
        return f"silent ({type(e).__name__})"
