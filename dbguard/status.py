"""What a guard says about itself: a picture of one moment, as frozen values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.core.episode import Episode
    from dbguard.core.state import GuardState

__all__ = ["NodeStatus", "Status", "status_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One node.

    role: ``primary``, ``replica``, ``unknown``, or ``fenced``. lag: seconds behind the primary; None: unknown.
    proven: a replica proven to follow the accepted primary. in_use, size: leases out, and how many can be.
    problem: why it cannot be used as it is configured, or why it does not answer; None: neither.
    role_since, reachable_since, breaker_since: when *role*, *reachable* and *breaker* took their value, in seconds since
        the epoch.
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
    role_since: float | None = None
    reachable_since: float | None = None
    breaker_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A guard at one moment.

    at: when it was taken, in seconds since the epoch.
    mark: of the reign, the same in all processes; None: not known, or no table keeps it (``outcome.resolve``).
    writes: ``open``, ``suspect``, ``failover`` or ``down``, since *writes_since*; ``paused`` where there is a primary and
        `Guard.pause` holds calls back. paused: seconds after which a pause ends by itself; None: there is none.
    waiting: calls that wait for a primary.
    episodes: the last disturbances of writes, the oldest first; the last one may be under way.
    counts: since the guard was opened: repeats, unknown outcomes, waits, reads refused as writes. proved_applied and
    proved_not_applied count what tokens were asked for after an answer was lost, not writes.
    """

    primary: str | None
    reign: str | None
    mark: str | None = None
    writes: str
    why: str
    waiting: int
    nodes: tuple[NodeStatus, ...]
    counts: Mapping[str, int]
    at: float | None = None
    writes_since: float | None = None
    episodes: tuple[Episode, ...] = ()
    paused: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return asdict(self) | {"counts": dict(self.counts)}


def status_of(state: GuardState) -> Status:
    """Take the picture."""
    view = state.view
    now = state.clock()
    wall = state.wall() if state.wall is not None else None

    def since(*name: str) -> float | None:
        at = state.since.get(*name)
        return None if at is None or wall is None else round(wall - (now - at), 3)

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
                role_since=since(name, "role"),
                reachable_since=since(name, "reachable"),
                breaker_since=since(name, "breaker"),
            )
        )
    gate = state.gate
    paused = None if gate.paused_until is None else max(0.0, gate.paused_until - state.clock())
    held = paused is not None and gate.open
    return Status(
        primary=view.primary,
        reign=str(view.reign) if view.reign else None,
        mark=view.reign.agreed if view.reign else None,
        writes="paused" if held else gate.state.value,
        why="guard.pause()" if held else view.refused or gate.why,
        waiting=state.waiting,
        nodes=tuple(nodes),
        counts=dict(state.counts),
        at=None if wall is None else round(wall, 3),
        writes_since=since("writes"),
        episodes=state.chronicle.episodes(now),
        paused=paused,
    )
