"""Where a call goes: candidates, balance, position. Pure; chance is handed in.

Strategies get the fit candidates and return one of them. They do not wait, connect or look at a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from dbguard.core.topology import Role

if TYPE_CHECKING:
    from dbguard.core.breaker import Breaker
    from dbguard.core.topology import Instance, NodeView

__all__ = ["STRATEGIES", "Load", "Node", "Rng", "Strategy", "caught_up"]

SOFT_FOR = 10.0
"""Seconds for which an overloaded node's weight is halved."""


class Rng(Protocol):
    """The one method of `random.Random` that is used, so that a seeded one is the test twin."""

    def random(self) -> float:
        """Return a float in [0, 1)."""


class Load:
    """How busy a node's pool is; the pool writes it, the balance reads it.

    in_use: leases out.
    size: leases that can be out.
    """

    __slots__ = ("in_use", "size")

    def __init__(self, size: int = 1) -> None:
        self.in_use = 0
        self.size = size


class Node:
    """One node as the router sees it: what the view says of it, and what this process knows beside.

    epoch: its generation; a lease born under another is stale.
    doubted_at: when a call last met a hard failure or a role error here; only a probe sent later answers the doubt.
    seen_at: when the last probe that answered was sent.
    soft_until: its weight is halved until then (the node is overloaded, not dead).
    shut: the application has closed its own way there, for good: waiting is of no use.
    """

    __slots__ = ("breaker", "doubted_at", "epoch", "load", "name", "seen_at", "shut", "soft_until", "view", "weight")

    def __init__(self, name: str, breaker: Breaker, view: NodeView, *, weight: int = 1) -> None:
        self.name = name
        self.breaker = breaker
        self.view = view
        self.epoch = view.epoch
        self.weight = weight
        self.load = Load()
        self.doubted_at = -2.0
        self.seen_at = -1.0
        self.soft_until = -1.0
        self.shut = False

    @property
    def doubted(self) -> bool:
        """Whether a call's failure here has not been answered by a probe yet."""
        return self.doubted_at >= self.seen_at

    def is_here(self, instance: Instance | None) -> bool:
        """Whether a connection to *instance* is one to this node, as far as is known now.

        Asked of a new connection: what its server said may have been overtaken by news of another server under the same
        name. Where several replicas answer under it, each is as good as any; beside a primary, none is.
        """
        view = self.view
        if instance is None or (view.group and view.role is Role.REPLICA):
            return True
        return not view.instance.differs(instance)

    def serves(self, now: float) -> bool:
        """Whether calls may come here: it answers, as one of this cluster that is neither overloaded nor in doubt."""
        view = self.view
        fit = view.reachable and not view.fenced and view.misconfigured is None and view.role is not Role.UNKNOWN
        return fit and self.breaker.granted and not self.doubted and now >= self.soft_until

    def is_surely_here(self, instance: Instance | None) -> bool:
        """Whether a connection to *instance* is known to be one to the only server behind this node."""
        view = self.view
        return instance is not None and not view.group and instance.is_surely(view.instance)

    def soften(self, now: float) -> None:
        """Halve its weight for a while: it is alive, and has too much to do."""
        self.soft_until = now + SOFT_FOR

    def pull(self, now: float) -> float:
        """Return its weight; half of it while the node is overloaded."""
        return self.weight / 2 if now < self.soft_until else self.weight

    def cost(self, now: float) -> float:
        """Return leases out per pool slot, per weight."""
        return (self.load.in_use + 1) / (self.load.size * self.pull(now))


Strategy = Callable[[Sequence[Node], Rng, float], Node]


def least_busy(candidates: Sequence[Node], rng: Rng, now: float) -> Node:
    """Choose two at random and take the one with fewer leases out per pool slot ("power of two choices").

    With two or more candidates two different ones are drawn, so that clients do not move in step and yet no busy node
    is chosen blindly (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
    """
    count = len(candidates)
    if count == 1:
        return candidates[0]
    i = int(rng.random() * count)
    j = int(rng.random() * (count - 1))
    one, other = candidates[i], candidates[j if j < i else j + 1]
    return one if one.cost(now) <= other.cost(now) else other


def at_random(candidates: Sequence[Node], rng: Rng, now: float) -> Node:
    """Choose one at random, by weight."""
    mark = rng.random() * sum(node.pull(now) for node in candidates)
    for node in candidates:
        mark -= node.pull(now)
        if mark < 0:
            return node
    return candidates[-1]


class RoundRobin:
    """Choose one after the other; the order starts anew when the candidates change. Weights do not count."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = 0

    def __call__(self, candidates: Sequence[Node], rng: Rng, now: float) -> Node:  # noqa: ARG002  a strategy's signature
        """Return the next one."""
        self._turn = (self._turn + 1) % len(candidates)
        return candidates[self._turn]


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "least-busy": lambda: least_busy,
    "random": lambda: at_random,
    "round-robin": RoundRobin,
}
"""Balancing strategies by their names in the configuration; each guard makes its own."""


def caught_up(candidates: Sequence[Node], floor: int) -> Sequence[Node]:
    """Return those candidates that are known to have replayed *floor*, a position in bytes."""
    if floor == 0:
        return candidates
    return [node for node in candidates if node.view.position is not None and node.view.position >= floor]
