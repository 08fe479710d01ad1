"""What a guard says about itself: a picture of one moment, as frozen values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.core.state import GuardState

__all__ = ["NodeStatus", "Status", "status_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One node.

    role: ``primary``, ``replica``, ``unknown``, or ``fenced``. lag: seconds behind the primary; None: unknown.
    proven: a replica proven to follow the accepted primary. in_use, size: leases out, and how many can be.
    problem: why it cannot be used as it is configured, or why it does not answer; None: neither.
    """

    name: str
    role: str
    reachable: bool
    breaker: str
    epoch: int
    timeline: int | None
    lag: float | None
    proven: bool
    read_only: bool
    in_use: int
    size: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A guard at one moment.

    writes: ``open``, ``suspect``, ``failover`` or ``down``. waiting: calls that wait for a primary.
    counts: since the guard was opened: repeats, unknown outcomes, waits, reads refused as writes. proved_applied and
    proved_not_applied count what tokens were asked for after an answer was lost, not writes.
    """

    primary: str | None
    reign: str | None
    writes: str
    why: str
    waiting: int
    nodes: tuple[NodeStatus, ...]
    counts: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return asdict(self) | {"counts": dict(self.counts)}


def status_of(state: GuardState) -> Status:
    """Take the picture."""
    view = state.view
    nodes = []
    for name, node in state.nodes.items():
        seen = view.nodes[name]
        role = "fenced" if seen.fenced else seen.role.value
        nodes.append(
            NodeStatus(
                name=name,
                role=role,
                reachable=seen.reachable,
                breaker=node.breaker.state.value,
                epoch=seen.epoch,
                timeline=seen.timeline,
                lag=seen.lag if seen.role.value == "replica" else None,
                proven=seen.proven,
                read_only=seen.read_only,
                in_use=node.load.in_use,
                size=node.load.size,
                problem=seen.misconfigured or seen.silent,
            )
        )
    return Status(
        primary=view.primary,
        reign=str(view.reign) if view.reign else None,
        writes=state.gate.state.value,
        why=view.refused or state.gate.why,
        waiting=state.waiting,
        nodes=tuple(nodes),
        counts=dict(state.counts),
    )
