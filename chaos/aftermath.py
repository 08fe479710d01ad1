"""What is there once every caller has ended: what was left behind, and what the table holds.

All of it is asked of the servers themselves, past the proxies. Functions block, but for `leases` and `tasks`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from chaos.clients import CLIENTS_NAME
from chaos.history import Leak, LeakKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from chaos.clients import Client
    from chaos.workloads import Workload
    from dbguard.testing.proxied import ProxiedCluster

__all__ = ["FinalTableError", "leases", "locks", "read_back", "read_between", "sessions", "tasks"]

_PATIENCE = 5.0  # seconds in which a client may tidy up; what comes and goes meanwhile is its own work
_GONE = 30.0  # seconds for the servers to notice that the client is gone
_LOOK = 0.02  # seconds between two looks

_OURS = f"application_name = '{CLIENTS_NAME}'"
_SESSIONS = f"SELECT pid, 'session ' || pid || ', ' || coalesce(state, 'starting') FROM pg_stat_activity WHERE {_OURS}"
_LOCKS = f"""
    SELECT pid || ' holds ' || mode || ' on ' || locktype || ' ' || coalesce(relation::regclass::text, '')
    FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE {_OURS} AND locktype <> 'virtualxid'
    UNION SELECT pid || ' is ' || state FROM pg_stat_activity WHERE {_OURS} AND state LIKE 'idle in transaction%'
"""

T = TypeVar("T")


class FinalTableError(Exception):
    """The table cannot be read, or what it holds could still change; the message says why."""


class _BusyError(FinalTableError):
    """The client still has sessions there."""


async def leases(client: Client) -> list[Leak]:
    """Look for connections that are taken and are not given back."""
    until = time.monotonic() + _PATIENCE
    while (out := client.leases()) and time.monotonic() < until:  # noqa: ASYNC110  nobody tells of it
        await asyncio.sleep(_LOOK)
    return [Leak(kind=LeakKind.LEASE, what=f"{number + 1} of {out}") for number in range(out)]


async def tasks(before: Collection[asyncio.Task[object]]) -> list[Leak]:
    """Look for tasks that were not there before, and do not end."""
    until = time.monotonic() + _PATIENCE
    known = {*before, asyncio.current_task()}
    while (left := asyncio.all_tasks() - known) and time.monotonic() < until:
        await asyncio.wait(left, timeout=until - time.monotonic())
    return [Leak(kind=LeakKind.TASK, what=f"{task.get_name()}: {task.get_coro()}") for task in left]


def locks(cluster: ProxiedCluster) -> list[Leak]:
    """Look for locks of the client's sessions on any node that runs, and for transactions left open."""
    return _staying(cluster, LeakKind.LOCK, lambda node: {said for (said,) in cluster.sql(node, _LOCKS)}, _PATIENCE)


def sessions(cluster: ProxiedCluster) -> list[Leak]:
    """Look for sessions of the client on any node that runs, after it was closed."""
    return _staying(cluster, LeakKind.SESSION, lambda node: {said for _, said in cluster.sql(node, _SESSIONS)}, _GONE)


def read_back(cluster: ProxiedCluster, workload: Workload) -> dict[int, tuple[int, ...]]:
    """Read the table of the surviving primary, when every fault is healed and every client gone.

    Raises FinalTableError if it cannot be read, if the node is no primary, or if a client's session is still there,
    which could write more.
    """
    return _read(cluster, workload, "true", "sessions of the client: they could write")


def read_between(cluster: ProxiedCluster, workload: Workload) -> dict[int, tuple[int, ...]]:
    """Read the same while the client stays open, once all its calls have ended.

    Raises FinalTableError as `read_back`, but for sessions that do nothing. One that is at work may write though it has not
    yet: it gets some seconds to end.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return _read(cluster, workload, "state <> 'idle'", "sessions of the client at work, which could write")
        except _BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK)


def _read(cluster: ProxiedCluster, workload: Workload, which: str, so: str) -> dict[int, tuple[int, ...]]:
    primary = cluster.primary
    ours = f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS} AND {which}"
    try:
        (in_recovery, left) = cluster.sql(primary, f"SELECT pg_is_in_recovery(), ({ours})")[0]
        rows = cluster.sql(primary, workload.read_back)
    except OSError as e:  # TimeoutError is one
        raise FinalTableError(f"{primary} cannot be asked: {e}") from e
    if in_recovery:
        raise FinalTableError(f"{primary} is in recovery: it is no primary")
    if left:
        raise _BusyError(f"{primary} still has {left} {so}")
    return {key: tuple(values) for key, values in rows}


def _staying(cluster: ProxiedCluster, kind: LeakKind, look: Callable[[str], set[str]], seconds: float) -> list[Leak]:
    """Look at all nodes until nothing is left of what was there at first; return what is, after *seconds*."""
    until = time.monotonic() + seconds
    found = []
    for node in cluster.nodes:
        if not node.running or node.frozen:
            continue
        left = look(node.name)
        while left and time.monotonic() < until:
            time.sleep(_LOOK)
            left &= look(node.name)
        found += [Leak(kind=kind, what=f"{node.name}: {said}") for said in sorted(left)]
    return found
