"""Marking the present reign, so that all processes call it by one name.

It is done after the round that has accepted it: nobody waits for it. Until then this process's own mark serves, which is
also the one that it proposes; whoever comes first wins, and the next probes read the winner's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.core.topology import Role, Sighting
from dbguard.events import ReignUnmarked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.core.topology import Missed, View
    from dbguard.drivers.base import Control
    from dbguard.events import Event

__all__ = ["Marking"]

TRIED_AGAIN = 10.0
"""Seconds after which a reign that could not be marked is tried again."""


class Marking:
    """Keeps the present reign marked, and says once why it is not.

    tell: told of it. clock: seconds, monotonic.
    """

    def __init__(self, tell: Callable[[Event], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._said: tuple[str, str] | None = None
        self._tried: tuple[str, float] | None = None

    async def look(
        self, view: View, last: Mapping[str, Sighting | Missed], controls: Mapping[str, Control], *, within: float
    ) -> Sighting | None:
        """Mark the reign of *view* if it is not marked, and return what its primary says then; None: nothing was done.

        last: what the last round saw. controls: connections that may be used. within: seconds for each question.
        """
        node, reign = view.writable, view.reign
        seen = last.get(node) if node is not None else None
        control = controls.get(node) if node is not None else None
        if node is None or reign is None or reign.agreed is not None or control is None or not control.alive:
            return None
        if not isinstance(seen, Sighting) or seen.role is not Role.PRIMARY or seen.timeline != reign.timeline:
            return None
        now = self._clock()
        if self._tried is not None and self._tried[0] == reign.own and now < self._tried[1]:
            return None
        try:
            if seen.marked is None:
                seen = await control.ask(within)
            self._tried = reign.own, now + TRIED_AGAIN
            if seen.marked is None or seen.marked.timeline == reign.timeline:
                self._say(node, seen.unmarked, now)
                return seen
            why = await control.mark(reign.timeline, reign.own, within)
            if why is None:
                self._said = None
                return await control.ask(within)
        except Exception as error:  # noqa: BLE001  the next round finds out what is wrong with the node
            why = f"the connection was lost ({type(error).__name__})"
        self._say(node, why, now)
        return None

    def _say(self, node: str, why: str | None, now: float) -> None:
        if why is not None and self._said != (node, why):
            self._said = node, why
            self._tell(ReignUnmarked(at=now, node=node, why=why))
