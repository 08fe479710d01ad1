"""What the state has decided and somebody else must do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbguard.core.topology import Drain
    from dbguard.events import Event

__all__ = ["Effects"]


@dataclass(slots=True)
class Effects:
    """What the runtime has to do once the lock is free.

    epochs: nodes whose connections became stale, their epochs now, and how it is with those of older ones.
    silent: nodes that do not answer, and that nobody writes to: whoever waits for them goes elsewhere.
    hurry: probe all nodes at once.
    changed: wake whoever waits for the topology.
    """

    events: list[Event] = field(default_factory=list)
    epochs: dict[str, tuple[int, Drain]] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    hurry: bool = False
    changed: bool = False
