"""Whether the primary flaps, and how long the next one must have stayed before writes go on.

Each change of primary that is followed costs something, however quick it is: with asynchronous replication the writes
that the last primary acknowledged and nobody received; the fate of those under way, which is asked for or unknown; and
new connections from every process, to a server that has just been promoted. Following once is worth it. Following a
primary that is gone again in a second, over and over, pays that price each time and gets no work done between.

So the first changes within a window are followed at once. With each further one writes wait until the new primary has
stayed in office for a while, which doubles up to a limit. However the primaries alternate, writes never wait longer
than that limit for this: then they go on with whoever is in office.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dbguard.core.topology import Reign

__all__ = ["Flaps", "Hold"]

REMEMBERED = 64
"""Changes kept at most; the time to stay is at its limit long before."""


class Hold(NamedTuple):
    """Writes wait although there is a primary.

    changes: of primary within *window* seconds. stay: seconds that this one must stay in office.
    until: when writes go on at the latest, on the clock that was handed in.
    begun: another change has just been heard of.
    """

    changes: int
    window: float
    stay: float
    until: float
    begun: bool

    @property
    def why(self) -> str:
        """What is going on, for people."""
        return (
            f"the primary has changed {self.changes} times within {self.window:g} s;"
            f" writes wait until this one has stayed for {self.stay:g} s"
        )


class Flaps:
    """The changes of primary of late.

    allowed: changes within *window* seconds that are followed at once, >= 1; None: all. Default 2: a switchover and back.
    first, most: seconds that the next primary must stay; doubles with each change, from the one up to the other. Default
        1 and 10: one such primary costs its callers a second, and ten fit into the default deadline of a call.
    """

    __slots__ = ("_allowed", "_began", "_changes", "_first", "_gone", "_most", "_reign", "_stay", "_until", "_window")

    def __init__(
        self, allowed: int | None = 2, window: float = 60.0, *, first: float = 1.0, most: float = 10.0
    ) -> None:
        self._allowed = allowed
        self._window = window
        self._first = first
        self._most = most
        self._changes: deque[float] = deque(maxlen=REMEMBERED)
        self._reign: Reign | None = None
        self._gone = False
        self._began: float | None = None
        self._until = 0.0
        self._stay = 0.0

    def found(self, now: float, reign: Reign | None) -> Hold | None:
        """Take in that there is a primary, under *reign*; None: writes may go on."""
        changed = reign is not None and reign != self._reign
        if changed:
            if self._reign is not None:
                self._changes.append(now)
            self._reign = reign
            self._judge(now)
        elif self._gone and self._began is not None:
            self._until = min(now + self._stay, self._began + self._most)
        self._gone = False
        if self._began is None or now >= self._until:
            self._began = None
            return None
        return Hold(len(self._changes), self._window, self._stay, self._until, changed)

    def lost(self) -> None:
        """Take in that there is no primary: one that comes back has to stay from then on."""
        self._gone = True

    def _judge(self, now: float) -> None:
        """Say after a change how long the new primary has to stay."""
        while self._changes and self._changes[0] <= now - self._window:
            self._changes.popleft()
        beyond = len(self._changes) - self._allowed if self._allowed is not None else 0
        if beyond <= 0:
            return
        self._stay = min(self._first * 2.0 ** (beyond - 1), self._most)
        if self._began is None:
            self._began = now
        self._until = min(now + self._stay, self._began + self._most)
