"""Leases: connections in use, and what is known of each from its birth on, whichever driver made them.

A lease remembers the epoch it was born under: the one current when its dial *began*. Draining a node is a comparison of
two numbers, not a search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.statement import NOTHING
from dbguard.core.topology import Instance
from dbguard.drivers.identity import Identity
from dbguard.drivers.probe import Backend
from dbguard.drivers.speaker import WAIT_FOR_STANDBY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.core.route import Node
    from dbguard.core.topology import NodeView

__all__ = ["RETURN_WITHIN", "SETTLE_WITHIN", "Books", "Lease", "Tag"]

RETURN_WITHIN = 2.0
"""Seconds a reset or a close may take in the background before the connection is terminated."""

SETTLE_WITHIN = 0.1
"""Seconds for what needs no answer from the server any more: for who was woken or cancelled to end."""


NOBODY = Identity(None, None, None, None)
"""Who a session is that was not asked."""


class Tag:
    """What is known about one connection from its birth on.

    epoch: its node's when the dial began. instance: the running server behind it. backend: its process there.
    born: on the monotonic clock. synchronous: whether commits there waited for a standby then.
    quiet: the session's own setting keeps warnings back, and with them the notice that such a wait was cut short.
    plain_role: at birth, the application's hook for new connections included, the role was the login's and nothing
        temporary was there: all of that can be reset. identity: who it was then, where that is not so.
    drew: an earlier use may have drawn from sequences. uses: calls so far.
    found: the view of its node under which it was found to lead there; None: it was not asked yet.
    listens: it hears all its notices, for as long as it lives. cut_short: how many waits for a standby were.
    """

    __slots__ = (
        "backend",
        "born",
        "cut_short",
        "drew",
        "epoch",
        "found",
        "identity",
        "instance",
        "listens",
        "plain_role",
        "quiet",
        "synchronous",
        "uses",
    )

    def __init__(self, epoch: int, born: float) -> None:
        self.epoch = epoch
        self.born = born
        self.instance: Instance | None = None
        self.backend = Backend(0, None)
        self.synchronous = False
        self.quiet = False
        self.plain_role = True
        self.identity = NOBODY
        self.drew = False
        self.found: NodeView | None = None
        self.listens = False
        self.cut_short = 0
        self.uses = 0

    def learn(self, row: Mapping[str, Any], instance: Instance) -> None:
        """Take in what its server said when it was asked who it is (`probe.ask`)."""
        self.instance = instance
        self.backend = Backend(row["pid"], row["backend_start"])
        self.synchronous = bool(row["synchronous"])
        self.quiet = bool(row["quiet"])
        self.plain_role = bool(row["plain_role"])

    def heard(self, source: str | None) -> None:
        """Take in one of the server's notices, by the function of the server that it came from."""
        self.cut_short += source == WAIT_FOR_STANDBY


class Lease:
    """A connection in use.

    con: what statements are run on. loan: what goes back to its pool. tag: its birth.
    touched: the worst that was done to its session so far.
    ours: it was ended by a drain, a fence or a terminate of ours.
    raw_touched: the application was handed the driver's own connection.
    doubtful: an open transaction on it may have failed without the server's refusal having been seen: in the
        application's own use of the connection, or under an exception of its own, as when a COPY's source raises.
    drew: it may have drawn from sequences in this use, as any write may.
    """

    __slots__ = ("con", "doubtful", "drew", "loan", "ours", "pool", "raw_touched", "tag", "touched", "used_at")

    tag: Any

    def __init__(self, pool: Books, con: Any, loan: Any, tag: Tag) -> None:
        self.pool = pool
        self.con = con
        self.loan = loan
        self.tag = tag
        self.ours = False
        self.used_at = 0.0
        self.touched = NOTHING
        self.raw_touched = self.doubtful = self.drew = False

    def forget(self) -> None:
        """Begin a new use: nothing was done yet."""
        self.touched = NOTHING
        self.raw_touched = self.doubtful = self.drew = False

    @property
    def stale(self) -> bool:
        """Whether it was born under an older epoch than its node's present one."""
        return bool(self.tag.epoch != self.pool.node.epoch)

    @property
    def synchronous(self) -> bool:
        """Whether commits on it wait for a standby: since its birth, or since the server was told so later."""
        return bool(self.tag.synchronous or self.pool.node.view.synchronous)

    @property
    def instance(self) -> Instance:
        """The running server behind it."""
        return self.tag.instance or Instance()

    @property
    def backend(self) -> tuple[int, float | None]:
        """The server's process, and when it began."""
        return self.tag.backend.pid, self.tag.backend.started

    def end(self) -> None:
        """End it because it must not be used any more; what fails by that is our own doing."""
        self.ours = True
        self.terminate()

    def terminate(self) -> None:
        """Terminate the connection at once; whoever waits on it is woken with the driver's error."""
        if not self.con.is_closed():
            self.con.terminate()


class Books:
    """What every pool keeps: which leases are out, and up to which epoch connections are handed on.

    hooked: code of the application's may run at each checkout, so that nothing is known of the role.
    """

    return_within = RETURN_WITHIN
    hooked = False

    def __init__(self, node: Node, *, clock: Callable[[], float], size: int) -> None:
        self.node = node
        self.node.load.size = max(1, size)
        self.clock = clock
        self.out: dict[Any, None] = {}  # in the order of leaving, so that a run can be replayed
        self._kept_from = node.epoch  # the epoch of the last drain that kept none

    def fits(self, tag: Tag) -> bool:
        """Whether a connection may be handed on under the node's present epoch.

        One of an older epoch is taken over into it, if every drain since its birth keeps connections to an instance that
        goes on, and it is known to lead to the one that is seen there now.
        """
        if tag.epoch == self.node.epoch:
            return True
        if tag.epoch < self._kept_from or not self.node.is_surely_here(tag.instance):
            return False
        tag.epoch = self.node.epoch
        return True

    def _leases_out(self) -> list[Any]:
        return list(self.out)

    def end_in_use(self) -> int:
        """Terminate every lease in use."""
        ended = 0
        for lease in self._leases_out():
            lease.end()
            ended += 1
        return ended

    def end_stale(self) -> int:
        """Terminate the leases in use that were born under an older epoch."""
        stale = [lease for lease in self._leases_out() if lease.stale]
        for lease in stale:
            lease.end()
        return len(stale)
