"""Deliberate defects: each switches one rule of no harm off, and the simulation has to find it.

A judge that finds nothing proves nothing unless it finds what is there. Beside the rules themselves stand defects that
the simulation has found in dbguard and that were mended: switched on again, they are found again.

A defect is a patch of what both engines run (``core``), or of both twins at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from dbguard.core import plan
from dbguard.core.budget import Budget
from dbguard.core.causal import Box
from dbguard.core.node import Node as Memory
from dbguard.core.plan import Pause
from dbguard.core.retry import Act, Purse, Verdict
from dbguard.core.route import Node as RoutedNode
from dbguard.core.state import GuardState
from dbguard.core.succession import Claim
from dbguard.core.topology import Role
from dbguard.runtime import monitor
from dbguard.testing.simulation import monitor as twin
from dbguard.testing.simulation import tokens
from dbguard.testing.simulation.tokens import Claimed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from dbguard.core.failure import Failure
    from dbguard.core.plan import Call
    from dbguard.core.retry import Work
    from dbguard.core.route import Node
    from dbguard.core.topology import Changes, NodeView, Reign, Sighting

__all__ = ["DEFECTS", "Defect"]

_VIEW = Memory.view


class Defect(NamedTuple):
    """One rule that is switched off.

    finds: the promise that is broken by it. why: what is wrong. state, patch: how.
    """

    finds: str
    why: str
    state: type[GuardState] | None = None
    patch: Callable[[], AbstractContextManager[object]] | None = None


def _repeat(failure: Failure, work: Work) -> Verdict:
    """Repeat everything, as a naive client does."""
    return Verdict(
        act=Act.REPEAT,
        reresolve=True,
        elsewhere=work.stake.value == "read",
        purse=Purse.INFRASTRUCTURE,
        why=failure.why,
    )


class _Unfenced(GuardState):
    """Writes go to the first node that says it is a primary, and no lease is ended when another reign begins."""

    def publish(self) -> None:
        super().publish()
        for name, node in self.nodes.items():
            if node.view.role is Role.PRIMARY and node.view.reachable:
                self.primary = self.nodes[name]
                return

    def _absorb(self, changes: Changes, now: float) -> None:
        super()._absorb(changes, now)
        for name in list(self.effects.epochs):
            self.nodes[name].epoch = 0
        self.effects.epochs.clear()

    def met(self, seen: Sighting) -> str | None:
        super().met(seen)
        return None


class _Credulous(GuardState):
    """A claim is answered by whoever stands behind the primary's name, now or when it was asked."""

    def met_to_claim(self, seen: Sighting) -> str | None:
        return self.met(seen)

    def still_asked(self, node: Node, epoch: int, reign: Reign | None) -> bool:  # noqa: ARG002  what it breaks is called so
        return self.view.reign == reign


class _Ungated(GuardState):
    """Reads go to any replica, whatever their context has written."""

    def _behind(self, box: Box) -> Sequence[Node]:  # noqa: ARG002  all get the same
        return self.eventual


class _Stubborn(GuardState):
    """A call that waited for a connection goes where it wanted to go, whatever has become of that node."""

    def overtaken(self, call: Call, node: Node, epoch: int) -> Failure | None:  # noqa: ARG002  never
        return None


def _no_pin(box: Box, orphan: object) -> None:
    """Let reads go on while a write of unknown fate may still be applied."""


def _see_no_twin(
    node: Memory,
    *,
    lag: float | None,
    reign: Reign | None,
    doubted: bool,  # noqa: ARG001  what it breaks is called so
    twinned: bool,  # noqa: ARG001  what it breaks is called so
) -> NodeView:
    """Take a timeline's number for its identity."""
    return _VIEW(node, lag=lag, reign=reign, doubted=False, twinned=False)


def _pay(budget: Budget, now: float, purse: object) -> bool:  # noqa: ARG001  whatever it costs
    """Pay for every repeat."""
    return True


def _wait_longer(at_most: float, *args: Any, **options: Any) -> Pause:
    """Wait a little longer than the call may take."""
    return Pause(at_most + 0.5, *args, **options)


@contextmanager
def _no_renewal() -> Iterator[None]:
    """Dial no node anew that answers, though there is no primary."""
    with patch.object(monitor, "RENEW_FIRST", 1e9), patch.object(twin, "RENEW_FIRST", 1e9):
        yield


def _do_nothing(visible: Collection[str], token: str) -> Claimed:
    """Claim by ON CONFLICT DO NOTHING: what is there already is taken for the write, and no standby is waited for."""
    if f"w:{token}" in visible or f"x:{token}" in visible:
        return Claimed("w", (), waits=False)
    return Claimed("x", (f"x:{token}",), waits=True)


def _believe_any(node: object, instance: object) -> bool:  # noqa: ARG001  every connection
    return True


def _begins_where_it_stands(claim: Claim, after: Reign) -> int | None:  # noqa: ARG001  whatever it follows
    """Take the first position that was seen for a reign's beginning."""
    return claim.position


DEFECTS: dict[str, Defect] = {
    "repeat": Defect("duplicate", "everything is repeated", patch=lambda: patch.object(plan, "judge", _repeat)),
    "fence": Defect("lost", "an old primary is written to", state=_Unfenced),
    "gate": Defect("stale", "reads do not wait for their own writes", state=_Ungated),
    "pin": Defect(
        "stale", "a write of unknown fate does not pin its reads", patch=lambda: patch.object(Box, "pin", _no_pin)
    ),
    "number": Defect(
        "stale", "a timeline's number is its identity", patch=lambda: patch.object(Memory, "view", _see_no_twin)
    ),
    "office": Defect("duplicate", "a claim is answered by a server that does not hold the office", state=_Credulous),
    "budget": Defect("budget", "repeats cost nothing", patch=lambda: patch.object(Budget, "take", _pay)),
    "deadline": Defect("late", "waits outlast the call", patch=lambda: patch.object(plan, "Pause", _wait_longer)),
    "overtaken": Defect("fenced", "a node is written to that changed while the call waited", state=_Stubborn),
    "nothing": Defect(
        "lost", "tokens are claimed by DO NOTHING", patch=lambda: patch.object(tokens, "claim", _do_nothing)
    ),
    "elsewhere": Defect(
        "fenced",
        "a new connection is used although its name leads elsewhere by now",
        patch=lambda: patch.object(RoutedNode, "is_here", _believe_any),
    ),
    "branch": Defect(
        "silent",
        "a reign is taken to begin where its primary was first seen",
        patch=lambda: patch.object(Claim, "begins", _begins_where_it_stands),
    ),
    "renewal": Defect("dead", "a primary behind a name that was moved is never found", patch=_no_renewal),
}
