"""What is wrong with a cluster, and what is worth knowing, from what was seen of it. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbguard.cli.looking import Look, Unusable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dbguard.config import Settings
    from dbguard.status import NodeStatus, Status

__all__ = ["Finding", "Room", "clusters", "find", "room"]

OLDEST = 130_000
"""The oldest version that dbguard is tested with, as ``server_version_num`` has it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found.

    grave: it is wrong; otherwise worth knowing. node: whom it is about; None: all. text: what it is, and the way out.
    """

    grave: bool
    node: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Room:
    """Connections on one node.

    needed: by all processes. free: for a role without privileges. limit: what bounds them, in words.
    """

    needed: int
    free: int
    limit: str


def clusters(looks: Mapping[str, Look | Unusable]) -> dict[str, list[str]]:
    """Return the nodes by the cluster they belong to (its system identifier); those that do not tell are left out."""
    found = defaultdict(list)
    for name, look in looks.items():
        if isinstance(look, Look) and look.system_id is not None:
            found[look.system_id].append(name)
    return dict(found)


def room(look: Look, settings: Settings, processes: int) -> Room:
    """Return the connections that are needed on a node: a full pool and the monitor's one, per process."""
    limits = [
        (
            look.most - look.reserved - look.others,
            f"max_connections {look.most}, {look.reserved} reserved, {look.others} in use by others",
        )
    ]
    if look.role_limit >= 0:
        limits.append((look.role_limit, f"the connection limit of role {look.user} is {look.role_limit}"))
    if look.database_limit >= 0:
        limits.append((look.database_limit, f"the connection limit of the database is {look.database_limit}"))
    free, limit = min(limits, key=lambda pair: pair[0])
    return Room(processes * (settings.pool.max_size + 1), max(0, free), limit)


def find(
    settings: Settings, looks: Mapping[str, Look | Unusable], status: Status, processes: int
) -> tuple[Finding, ...]:
    """Return everything found, the grave things first."""
    found = [*_of_cluster(status, looks), *_of_durability(status, looks)]
    for node in status.nodes:
        look = looks[node.name]
        if isinstance(look, Unusable):
            found.append(Finding(True, node.name, look.why))
        else:
            found += [*_of_node(node, look, settings, status), *_of_rights(node.name, look)]
            needs = room(look, settings, processes)
            if needs.needed > needs.free:
                found.append(
                    Finding(
                        True,
                        node.name,
                        f"needs up to {needs.needed} connections and has {needs.free} ({needs.limit}): "
                        "lower pool.max_size, or raise the limit",
                    )
                )
    return tuple(sorted(found, key=lambda finding: not finding.grave))


def _of_cluster(status: Status, looks: Mapping[str, Look | Unusable]) -> Iterator[Finding]:
    primaries = [name for name, look in looks.items() if isinstance(look, Look) and look.role == "primary"]
    if status.primary is None and len(primaries) > 1:
        why = f"{' and '.join(primaries)} all answer as primary, and writes are refused ({status.why})"
        yield Finding(True, None, f"{why}: stop all but the right one, and bring the others back as replicas")
    elif status.primary is None:
        yield Finding(True, None, "no node answers as primary: writes wait until a primary is started or promoted")
    elif status.writes != "open":
        yield Finding(True, None, f"writes do not flow: {status.writes} ({status.why})")
    if len(looks) == 1:
        yield Finding(False, None, "one node: breaker and repeats only, there is nowhere to fail over to")
    versions = {look.version for look in looks.values() if isinstance(look, Look)}
    if len(versions) > 1:
        yield Finding(False, None, f"the nodes run different versions: {', '.join(sorted(versions))}")


def _of_durability(status: Status, looks: Mapping[str, Look | Unusable]) -> Iterator[Finding]:
    """Say what a failover can cost."""
    look = looks.get(status.primary or "")
    if len(looks) > 1 and isinstance(look, Look) and not look.standbys.strip():
        yield Finding(
            False,
            status.primary,
            "replicates asynchronously (synchronous_standby_names is empty): a failover can lose writes that were "
            "acknowledged, and no client can prevent it",
        )


def _of_node(node: NodeStatus, look: Look, settings: Settings, status: Status) -> Iterator[Finding]:
    name = node.name
    if look.number < OLDEST:
        yield Finding(True, name, f"runs PostgreSQL {look.version}; dbguard needs 13 or newer")
    if node.problem:
        yield Finding(True, name, node.problem)
    elif node.role == "fenced":
        yield Finding(
            True,
            name,
            f"claims to be primary on an old timeline ({node.timeline}): stop it, and bring it back as a replica",
        )
    elif node.role == "primary" and node.read_only:
        yield Finding(True, name, "is the primary, and default_transaction_read_only is on: writes are refused")
    elif node.role == "replica" and status.primary is not None:
        if look.streaming is False:
            yield Finding(True, name, "is a replica that receives nothing: see its primary_conninfo and its log")
        elif not node.proven:
            yield Finding(True, name, f"is not proven to follow {status.primary}, so it gets no reads")
        if look.lag is not None and look.lag > settings.reads.max_lag:
            yield Finding(
                True, name, f"is {look.lag:.1f} s behind, and reads.max_lag is {settings.reads.max_lag:g} s: no reads"
            )


def _of_rights(name: str, look: Look) -> Iterator[Finding]:
    if not look.sees_system:
        yield Finding(
            False,
            name,
            f"{look.user} may not call pg_control_system(): a node of another cluster is not noticed; "
            f"GRANT EXECUTE ON FUNCTION pg_control_system() TO {look.user}",
        )
    if look.role == "replica" and not look.sees_stats:
        yield Finding(
            False,
            name,
            f"{look.user} does not see from whom it receives (pg_stat_wal_receiver): after a failover it gets reads only "
            f"after its next checkpoint; GRANT pg_read_all_stats TO {look.user}",
        )
    if look.role == "replica" and not look.sees_checkpoint:
        yield Finding(
            False,
            name,
            f"{look.user} may not call pg_control_checkpoint(): GRANT EXECUTE ON FUNCTION pg_control_checkpoint() "
            f"TO {look.user}",
        )
