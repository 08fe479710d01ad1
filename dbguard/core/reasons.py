"""Where a statement goes, and what speaks against the other nodes: for errors, `Guard.route` and ``dbguard route``.

Nothing here decides. Everything is asked again of what has decided, so that it costs nothing where calls are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbguard.core.plan import Choice
from dbguard.core.retry import Stake
from dbguard.core.statement import Kind
from dbguard.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dbguard.core.plan import Call, Nowhere
    from dbguard.core.route import Node
    from dbguard.core.state import GuardState

__all__ = ["Route", "against", "instead", "why_unfit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a statement goes, and why. Its text is what people want to read: one line per node.

    node: the chosen node's name; None: none is fit now.
    role: the role in which it is asked, ``"primary"`` or ``"replica"``; None: as *node*.
    why: what decided for it, one phrase; where no node is fit, what a call would do: wait, or which error it would raise.
    kind: what the statement is.
    because: the word or function that made it that kind, or the hint or rule that overruled it.
    others: every other node, and what speaks against it.
    """

    node: str | None
    role: str | None
    why: str
    kind: Kind
    because: str
    others: Mapping[str, str]

    def __str__(self) -> str:
        """Return the choice, and a line for each of the other nodes."""
        where = f"{self.node} as {self.role}, {self.why}" if self.node else self.why
        chosen = f"{self.kind.value} ({self.because}): {where}"
        return "\n".join([chosen, *(f"  not {name}: {reason}" for name, reason in self.others.items())])


def against(state: GuardState, call: Call, kind: Kind, choice: Choice | Nowhere) -> dict[str, str]:
    """Say of each node that was not chosen the first thing that speaks against it.

    kind: what the statement of *call* is. choice: what `GuardState.route` answered.
    """
    chosen = choice.node if isinstance(choice, Choice) else None
    return {
        name: _against_primary(node, choice)
        if node.view.role is Role.PRIMARY
        else _against_replica(node, state, call, kind)
        for name, node in state.nodes.items()
        if name != chosen
    }


def instead(choice: Nowhere) -> str:
    """Say what a call does that can go nowhere now."""
    return f"waits: {choice.why}" if choice.waits else f"raises {choice.error.__name__}: {choice.why}"


def why_unfit(nodes: Iterable[Node], consistency: str, max_lag: float) -> str:
    """Say for each node but the primary why it is not fit for a read."""
    behind = "behind this context's writes, or failed this call"
    said = [
        f"{node.name}: {_out(node) or _unfit(node, consistency, max_lag) or behind}"
        for node in nodes
        if node.view.role is not Role.PRIMARY
    ]
    return "; ".join(said) or "no replica is known"


def _out(node: Node) -> str | None:
    """Say why a node serves nobody; None if it may."""
    view = node.view
    if view.misconfigured:
        return view.misconfigured
    if view.fenced:
        return "fenced: claims to be primary on an old timeline"
    if not view.reachable:
        return "does not answer"
    return None


def _unfit(node: Node, consistency: str, max_lag: float) -> str | None:
    """Say why a node that serves is not fit for reads of this consistency; None if it is."""
    view = node.view
    if view.role is not Role.REPLICA:
        return f"is {view.role.value}"
    if not node.breaker.granted:
        return f"its breaker is {node.breaker.state.value}"
    if consistency == "eventual":
        return None
    if not view.proven:
        return "not proven to follow the primary"
    if view.lag is None or view.lag > max_lag:
        lag = "unknown" if view.lag is None else f"{view.lag:.1f} s"
        return f"lag {lag}, allowed {max_lag:g} s"
    return None


def _against_primary(node: Node, choice: Choice | Nowhere) -> str:
    if (out := _out(node)) is not None:
        return out
    if isinstance(choice, Choice) and choice.role == "replica":
        return "the primary is spared: a replica is fit"
    return "another node is the accepted primary" if isinstance(choice, Choice) else choice.why


def _against_replica(node: Node, state: GuardState, call: Call, kind: Kind) -> str:
    if (out := _out(node)) is not None:
        return out
    if not state.spreads(call):
        return _no_read(call, kind)
    if call.consistency == "primary":
        return "consistency: primary"
    if call.group is not None and node.name not in call.group:
        return "not in the group that its rule names"
    unfit = _unfit(node, call.consistency, state.reads.max_lag)
    if unfit is not None:
        return unfit
    if node not in state.candidates(call):
        return "behind this context's writes, or a call failed there just now"
    return "mode: observe" if state.observe else "fit as well: chosen among the fit ones by load and chance"


def _no_read(call: Call, kind: Kind) -> str:
    """Say why a call is not one for replicas."""
    if call.text is not None and call.text.refused:
        return "a replica has refused this text as a write"
    if call.reads:
        return "reads.from: primary" if call.role is None else "the primary was asked for"
    if kind is Kind.READ and call.work.stake is Stake.READ:
        return "the primary was asked for"
    return "not known to be a read" if kind is Kind.UNKNOWN else "a replica takes no writes"
