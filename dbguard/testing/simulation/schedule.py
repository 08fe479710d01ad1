"""What happens in one run, as data: drawn from a seed, printed when it fails, and shrunk.

A schedule holds everything but the small chances of the run itself (latencies, think times), which come from the seed
again. Leaving out a fault leaves the others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["KINDS", "NODES", "RENAMED", "Fault", "Schedule", "draw"]

NODES = ("a", "b", "c")

LASTS = 5.0
"""Seconds in which faults begin; then everything is healed."""

OUSTED = ("crash", "stop", "freeze", "isolate", "cut off", "alive", "twice")
"""How the old primary is out of the way when another one is promoted. Isolated: from the application; cut off: from its
replicas; alive: it is not, and answers as before; twice: it crashes, and so does its successor, or freezes, and the third
takes over under the same timeline number, while a replica may follow the wrong one of the two."""

CHOSEN = ("", "", "", "behind", "behind", "stranger", "newcomer")
"""Who is promoted: the replica that has most, or least; one that this application never reached before; or a server that
no name led to, to which a name is moved."""

RENAMED = ("moved", "swapped", "grouped", "aliased")
"""What happens to names. Moved: one leads to a new replica, and the old one lives on for a while; swapped: two lead to
each other's servers; grouped: a second server answers under one; aliased: a replica's leads to the primary for a while."""

KINDS = (
    "restart",
    "freeze",
    "hole",
    "requests swallowed",
    "replies swallowed",
    "held back",
    "resets",
    "requests lost",
    "replies lost",
    "replay paused",
    "replication cut",
    "waits cut short",
    "full",
    "slow",
    "switchover",
    *RENAMED,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    at: seconds after the beginning. kind: one of `KINDS`, or ``promote``. lasts: seconds until it is healed.
    node: which; ``primary`` and ``replica`` are looked up when it happens.
    how: of a promotion, what became of the old primary; one of `OUSTED`. who: is promoted; one of `CHOSEN`.
    share: of messages that are lost, in (0, 1).
    """

    at: float
    kind: str
    node: str
    lasts: float
    how: str = ""
    who: str = ""
    share: float = 0.0

    def __str__(self) -> str:
        more = f", {self.how}{', ' if self.who else ''}{self.who}" if self.kind == "promote" else ""
        more += f", {self.share:.0%}" if self.share else ""
        return f"{self.at:6.3f}  {self.kind} ({self.node}{more}) for {self.lasts:.3f} s"


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run.

    sync: commits wait for a standby. clients: how many; each makes *calls* calls. shared: clients that share a context.
    size: connections per node. lag: seconds that a replica takes to replay, at most. conflicts: chance of 40001 per change of a shared row.
    budget, floor: of the retry policy. tokens: writes carry tokens, by which their fate is asked for. faults: in order; at least one promotion and three others.
    """

    seed: int
    sync: bool
    clients: int
    calls: int
    shared: int
    size: int
    lag: float
    conflicts: float
    budget: float
    floor: float
    tokens: bool
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {'synchronous' if self.sync else 'asynchronous'}, {self.clients} clients with"
            f" {self.calls} calls each{' and tokens' if self.tokens else ''}, {self.shared} of them in one context, {self.size} connections per node,"
            f" replicas up to {self.lag:g} s behind, budget {self.budget:g}, floor {self.floor:g}"
        )
        return "\n".join([head, *(f"  {fault}" for fault in self.faults)])


def draw(seed: int) -> Schedule:
    """Draw the schedule of *seed*."""
    rng = Random(seed)  # noqa: S311  a simulation, not a secret
    faults = [_fault(rng) for _ in range(rng.randint(3, 5))]
    faults += [_promotion(rng) for _ in range(rng.choice((1, 1, 1, 2)))]
    clients = rng.choice((5, 6, 8))
    return Schedule(
        seed=seed,
        sync=rng.random() < 0.4,
        clients=clients,
        calls=-(-rng.randint(50, 58) // clients),
        shared=rng.choice((0, 2, 3)),
        size=rng.choice((1, 2, 4)),
        lag=rng.choice((0.01, 0.01, 0.2)),
        conflicts=rng.choice((0.02, 0.2)),
        budget=rng.choice((0.0, 0.1, 0.2)),
        floor=rng.choice((0.0, 0.3, 3.0)),
        tokens=rng.random() < 0.5,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )


def _fault(rng: Random) -> Fault:
    kind = rng.choice(KINDS)
    return Fault(
        at=round(0.2 + (LASTS - 1.0) * rng.random(), 3),
        kind=kind,
        node=rng.choice(("primary", "primary", "replica", *NODES)),
        lasts=round(0.05 + 1.2 * rng.random() ** 2, 3),
        share=round(0.1 + 0.6 * rng.random(), 2) if kind in ("requests lost", "replies lost") else 0.0,
    )


def _promotion(rng: Random) -> Fault:
    return Fault(
        at=round(0.5 + (LASTS - 1.5) * rng.random(), 3),
        kind="promote",
        node="primary",
        lasts=round(0.1 + 1.5 * rng.random(), 3),
        how=rng.choice(OUSTED),
        who=rng.choice(CHOSEN),
    )
