"""What goes to the log: one line per event, but not five hundred that say the same.

A failover can leave hundreds of writes open within a second. Lines that differ in nothing that somebody needs are told a
few times; what comes after is counted, and the number told once. Listeners get every event.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.events import Event

__all__ = ["MOST_ALIKE", "WINDOW", "Lines"]

log = logging.getLogger("dbguard")
log.addHandler(logging.NullHandler())

MOST_ALIKE = 10
"""Lines that say the same, as `Event.alike` has it, which are told within one window."""

WINDOW = 10.0
"""Seconds, from the first of them."""


@dataclass(slots=True)
class _Group:
    first: Event
    count: int = 0


class Lines:
    """The log of one guard. later: calls a function after so many seconds."""

    def __init__(self, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._later = later
        self._groups: dict[object, _Group] = {}

    def tell(self, event: Event) -> None:
        """Write the event's line, unless many that say the same were written just now."""
        if not log.isEnabledFor(event.severity):
            return
        alike = event.alike()
        if alike is not None:
            key = (type(event), alike)
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = _Group(event)
                self._later(WINDOW, partial(self._sum_up, key))
            group.count += 1
            if group.count > MOST_ALIKE:
                return
        log.log(event.severity, "%s", event.line(), extra={"dbguard": event})

    def close(self) -> None:
        """Tell the numbers that are still due."""
        for key in list(self._groups):
            self._sum_up(key)

    def _sum_up(self, key: object) -> None:
        group = self._groups.pop(key, None)
        if group is not None and group.count > MOST_ALIKE:
            more = group.count - MOST_ALIKE
            first = group.first
            log.log(
                first.severity, "%d more within %g s like: %s", more, WINDOW, first.line(), extra={"dbguard": first}
            )
