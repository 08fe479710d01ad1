"""Deliberate defects: each switches one rule of no harm off, and the simulation has to find it.

A judge that finds nothing proves nothing unless it finds what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from dbguard.core import plan
from dbguard.core.causal import Box
from dbguard.core.retry import Act, Purse, Verdict
from dbguard.core.state import GuardState
from dbguard.core.topology import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from dbguard.core.failure import Failure
    from dbguard.core.retry import Work
    from dbguard.core.route import Node
    from dbguard.core.topology import Changes, Sighting

__all__ = ["DEFECTS", "Defect"]


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


class _Ungated(GuardState):
    """Reads go to any replica, whatever their context has written."""

    def _fit(self, consistency: str, box: Box) -> Sequence[Node]:  # noqa: ARG002  all get the same
        return self.eventual


def _no_pin(box: Box, orphan: object) -> None:
    """Let reads go on while a write of unknown fate may still be applied."""


DEFECTS: dict[str, Defect] = {
    "repeat": Defect("duplicate", "everything is repeated", patch=lambda: patch.object(plan, "judge", _repeat)),
    "fence": Defect("lost", "an old primary is written to", state=_Unfenced),
    "gate": Defect("stale", "reads do not wait for their own writes", state=_Ungated),
    "pin": Defect(
        "stale", "a write of unknown fate does not pin its reads", patch=lambda: patch.object(Box, "pin", _no_pin)
    ),
}
