"""How far a replica is behind, in seconds, without any server's clock.

Each time the primary is asked, its insert position is kept with the time at which the probe was *sent*. A replica that
has replayed such a position had, at that time, everything: it lags by at most the time since then. Server-side
measures were rejected: `pg_last_xact_replay_timestamp()` compares the clocks of two machines and grows on an idle
cluster.
"""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["Samples"]

KEPT = 256
SPACING = 0.25  # seconds; with KEPT, at least a minute is remembered however fast the primary is polled


class Samples:
    """Positions of one reign's primary over time."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._positions: list[int] = []

    def add(self, at: float, position: int) -> None:
        """Note that the primary, asked at *at*, was at *position*."""
        times, positions = self._times, self._positions
        if times and at < times[-1]:
            return
        while positions and positions[-1] > position:  # a crash took what was not flushed
            times.pop()
            positions.pop()
        if positions and positions[-1] == position:  # an idle primary: whoever has this, has all until now
            times[-1] = at
            return
        if len(times) > 1 and times[-1] - times[-2] < SPACING:
            times.pop()
            positions.pop()
        times.append(at)
        positions.append(position)
        if len(times) > KEPT:
            del times[0], positions[0]

    def lag(self, position: int, now: float | None) -> float | None:
        """Return how many seconds of writes are missing at *position*; None if that is not known.

        now: None while there is no primary: lag is then counted to the last sample, since nothing was written after
            it that anybody knows of.
        """
        reached = bisect_right(self._positions, position) - 1
        if reached < 0:
            return None
        if reached == len(self._times) - 1:
            return 0.0
        return (self._times[-1] if now is None else now) - self._times[reached]

    def clear(self) -> None:
        """Forget all: another reign began."""
        self._times.clear()
        self._positions.clear()
