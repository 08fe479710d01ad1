"""Looking at a cluster with a guard's own eyes, and without its pools: the monitor alone, one connection per node."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbguard.status import status_of
from dbguard.wiring import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from dbguard.config import Settings
    from dbguard.events import Listener
    from dbguard.status import NodeStatus, Status

__all__ = ["Observer", "observe", "problems", "settled", "why_primary"]

SETTLE_WITHIN = 2.0
"""Seconds to find the primary and to prove the replicas: some rounds of probes."""


@dataclass(frozen=True, slots=True)
class Observer:
    """A cluster that is being looked at.

    status: takes the picture. misconfigured: the nodes that refuse the configuration, if nobody that answers takes it.
    """

    status: Callable[[], Status]
    misconfigured: Callable[[], Mapping[str, str]]


@contextlib.asynccontextmanager
async def observe(settings: Settings, listener: Listener | None = None) -> AsyncIterator[Observer]:
    """Ask all nodes, again and again, until the block ends. Nothing is sent to them but questions who they are."""
    engine, monitor, _ = wire(settings, {}, looks_only=True)
    if listener is not None:
        engine.listeners.append(listener)
    monitor.start()
    try:
        yield Observer(lambda: status_of(engine.state), monitor.misconfigured)
    finally:
        await monitor.stop()


async def settled(status: Callable[[], Status]) -> Status:
    """Return the status once every node has its place, or after `SETTLE_WITHIN` seconds as it is then."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_WITHIN
    while True:
        seen = status()
        if is_settled(seen) or loop.time() > until:
            return seen
        await asyncio.sleep(0.02)


def is_settled(status: Status) -> bool:
    """Say whether time alone can tell nothing more: every node is silent or in its place.

    Without a node that claims to be primary no replica can have one; only another event can change that.
    """
    heard = [node for node in status.nodes if node.reachable and not node.problem]
    if any(not node.reachable and not node.problem for node in status.nodes):
        return False
    if not any(node.role == "primary" for node in heard):
        return True
    placed = all(node.role != "replica" or (node.proven and node.lag is not None) for node in heard)
    return (status.writes == "open" or "split brain" in status.why or "contested" in status.why) and placed


def problems(status: Status, max_lag: float) -> tuple[str, ...]:
    """Return what is wrong now, one phrase each."""
    claimed = any(node.role in {"primary", "fenced"} and node.reachable for node in status.nodes)
    found = [f"writes do not flow: {status.why}"] if claimed and status.writes != "open" else []
    for node in status.nodes:
        if node.problem:
            found.append(f"{node.name}: {node.problem}")
        elif node.role == "fenced":
            found.append(
                f"{node.name} claims to be primary on an older timeline: stop it, and bring it back as a replica"
            )
        elif node.role == "replica" and status.primary is not None and not node.proven:
            found.append(f"{node.name} is not proven to follow {status.primary}: it gets no reads")
        elif node.role == "replica" and node.lag is not None and node.lag > max_lag:
            found.append(
                f"{node.name} is {node.lag:.1f} s behind, and reads.max_lag is {max_lag:g} s: it gets no reads"
            )
        elif node.name == status.primary and node.read_only:
            found.append(f"{node.name} has default_transaction_read_only on: it refuses writes")
    return tuple(found)


def why_primary(status: Status) -> str:
    """Say why the primary is the primary, or why there is none."""
    claims = [node for node in status.nodes if node.role in {"primary", "fenced"}]
    if status.primary is None:
        said = _names(node for node in status.nodes if node.reachable)
        return f"no node answers as primary ({said or 'none'} answered)" if not claims else status.why
    others = [node for node in claims if node.name != status.primary]
    if not others:
        return "it alone is not in recovery"
    mine = next(node for node in status.nodes if node.name == status.primary)
    return f"its timeline {mine.timeline} is above that of {_names(others)}, which claims to be primary, too"


def _names(nodes: Iterable[NodeStatus]) -> str:
    return " and ".join(node.name for node in nodes)
