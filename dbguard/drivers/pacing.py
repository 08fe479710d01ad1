"""When the next connection of a pool may be dialled.

A server that has just come back, or is full, is not helped by being dialled by everybody who waits: each dial is a new
process there. So a few are dialled at a time, and after one that failed one alone, at a pace (RULES 4.9: 50 ms doubling
to 1 s, full jitter).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from dbguard.drivers.named import NotDialled

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.route import Node, Rng

__all__ = ["AT_ONCE", "Pacing"]

AT_ONCE = 4
"""Connections of one pool that are dialled at a time. At 4 ms each (a server on the same network) that fills a pool of 20
in 20 ms; and it is the most that a process keeps in the queue of a server to which a thousand processes come at once."""

FIRST, MOST = 0.05, 1.0
"""Seconds until the next dial after one that failed: at most the first, doubling up to the second, by chance."""


class Pacing:
    """The pace at which one pool dials. clock: monotonic. rng: for jitter."""

    def __init__(self, node: Node, *, clock: Callable[[], float], rng: Rng) -> None:
        self._node = node
        self._clock = clock
        self._rng = rng
        self._fails = 0
        self._failed_at = 0.0
        self._next_at = 0.0
        self._why: Exception | None = None
        self._full = False

    def dialled(self) -> None:
        """Take in that the server has let somebody in."""
        self._fails, self._why = 0, None

    def refused(self, error: Exception, began: float, *, full: bool) -> None:
        """Take in that a dial that *began* then has failed. Those under way at one time fail as one.

        full: the server takes no more connections.
        """
        self._why, self._full = error, full
        if self._fails and began <= self._failed_at:
            return
        self._failed_at = self._clock()
        self._next_at = self._failed_at + min(MOST, FIRST * 2 ** min(self._fails, 10)) * self._rng.random()
        self._fails += 1

    @property
    def pauses(self) -> bool:
        """Whether the pause after a dial that failed goes on.

        A probe that was answered since then ends it, unless the node was full: that no probe over an old connection sees.
        """
        if not self._fails or self._clock() >= self._next_at:
            return False
        return self._full or self._node.seen_at <= self._failed_at

    @property
    def left(self) -> float:
        """Seconds that the pause may still take."""
        return self._next_at - self._clock()

    def admits(self, busy: int) -> bool:
        """Whether one more may be dialled while *busy* are."""
        return busy < (1 if self._fails else AT_ONCE) and not self.pauses

    def refusal(self) -> NotDialled:
        """Return the error for who waits in vain; one has failed before."""
        assert self._why is not None  # noqa: S101  nobody is refused before one has failed
        # A copy, because each call adds notes and a traceback to what it raises.
        return NotDialled(copy.copy(self._why))
