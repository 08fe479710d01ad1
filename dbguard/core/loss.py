"""What a failover has lost: up to where acknowledged commits can lie, and where a new reign begins (RULES 4.5).

No server tells where a commit lies, so its position is bounded by what probes tell.

*Without a synchronous standby.* An insert position of the same primary that was asked for *after* a commit was
acknowledged lies behind that commit. So `Acknowledged` remembers when the first commit was acknowledged that no position
lies behind yet, and the next probe of the same reign that was sent after it gives one. Others' records between the
commit and that position are taken for ours: if they alone are lost, "may be lost" is said of nothing. What was
acknowledged after the last probe (half a second, by default) has no position, and is not noticed if it alone is lost.

*With one.* An insert position is no bound that a standby has confirmed: while commits wait for a standby that never
comes, the primary goes on writing, and a statement that changed nothing is answered all the same. Nothing acknowledged
is lost when that primary is. So such positions count only up to where some replica of the same reign was seen to have
replayed them. A commit is acknowledged when a standby has *flushed* it, a moment before it is replayed: a replica that
holds its replay back makes this bound lower, never too high. (What a replica has *received* would be too high: a record
received by half is thrown away by a promotion.) A standby that is none of the nodes is not seen at all. Whoever promotes
the replica that has most therefore never causes an alarm.

*Where a reign begins*: where its timeline branched off, as its control file tells until the first checkpoint is done,
or else that checkpoint's beginning, or else the first position that was seen. Each is too high, if it is not exact.
Where a reign between was never accepted here, that one began below any position asked for once its mark was there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dbguard.core.topology import Reign

__all__ = ["Acknowledged", "Ledger"]


class Acknowledged:
    """Whether commits were acknowledged that no position is known to lie behind. Costs a call two stores.

    reign: the one under which they were; None: none was yet.
    """

    __slots__ = ("_first", "_last", "reign")

    def __init__(self) -> None:
        self.reign: Reign | None = None
        self._first: float | None = None
        self._last = 0.0

    def note(self, reign: Reign | None, now: float) -> None:
        """Note that a commit which was sent under *reign* is acknowledged *now*."""
        if reign is not self.reign:
            if reign != self.reign:
                self._first = None
            self.reign = reign
        if self._first is None:
            self._first = now
        self._last = now

    def lies_before(self, reign: Reign, at: float) -> bool:
        """Say whether a position of the primary of *reign*, asked for *at*, bounds a commit that none bounded before.

        Commits that were acknowledged since are left for the next position.
        """
        first = self._first
        if first is None or first >= at or self.reign != reign:
            return False
        self._first = self._last if self._last >= at else None
        return True


class Ledger:
    """Up to where acknowledged commits can lie in the history of the present reign, in bytes.

    alone: a position behind those that no standby had to confirm. waited: behind those that waited for one.
    replayed: up to where a replica of the reign was seen to have replayed.
    """

    __slots__ = ("_alone", "_replayed", "_waited")

    def __init__(self) -> None:
        self._alone = self._waited = self._replayed = 0

    def note(self, position: int, *, confirmed: bool) -> None:
        """Note a position behind acknowledged commits; *confirmed*: they waited for a standby."""
        if confirmed:
            self._waited = max(self._waited, position)
        else:
            self._alone = max(self._alone, position)

    def replay(self, position: int) -> None:
        """Note that a replica of the reign has replayed everything below *position*."""
        self._replayed = max(self._replayed, position)

    def branch(self, begin: int) -> None:
        """Go on under a reign that begins at *begin*: what it shares with the one before, the next can lose as well."""
        self._alone = min(self._alone, begin)
        self._waited = min(self._waited, begin)
        self._replayed = min(self._replayed, begin)

    def lost(self, begin: int) -> int:
        """Return how far below the acknowledged commits a reign begins that begins at *begin*; 0: not below."""
        return max(0, self._alone - begin, min(self._waited, self._replayed) - begin)
