"""Boxes: what a context has written, so that its reads see it.

A *box* belongs to a context: one opened by ``guard.causal()``, one per web request by the middleware, or the guard's own
for everything else. It is mutable and shared by child tasks, because writes made in `gather` or a `TaskGroup` belong to
the parent too.

A write stamps its box with the reign of its lease when it ends, *however* it ends, and at no cost: no position is
fetched. The position is learnt later: any insert position of the same reign that was asked for after the write's end
lies behind it, and the steady probe of the primary asks twice a second.

Under another reign a write is either part of the new primary's history, and then it lies below any position that the new
primary tells, or it is lost. So a context that wrote under an older reign reads from the new primary until a position
of its reign has been learnt, and from replicas that have reached that position afterwards; the event that its writes
may be lost is told once.

A write of unknown fate pins its box to the primary until it is resolved or its backend is gone: else the user's own check would read the
past and insert again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbguard.core.topology import Instance, Reign, View

__all__ = ["Box", "Orphan"]


class Orphan:
    """A backend whose client gave it up with something in flight.

    node: the name it was reached by. instance: the server it runs on. pid, started: which backend of that server.
    reign: the reign it wrote under; under another one, what it still does belongs to a fenced past.
    doomed: it may be ended (its COMMIT was not sent, or can no longer be applied).
    gone: a probe has seen that it is no more.
    resolved: what became of its commit is known.
    """

    __slots__ = ("doomed", "gone", "instance", "node", "pid", "reign", "resolved", "started")

    def __init__(
        self,
        *,
        node: str,
        instance: Instance,
        pid: int,
        started: float | None,
        reign: Reign | None,
        doomed: bool,
    ) -> None:
        self.reign = reign
        self.node = node
        self.instance = instance
        self.pid = pid
        self.started = started
        self.doomed = doomed
        self.gone = False
        self.resolved = False

    def is_past(self, view: View) -> bool:
        """Whether nothing that it still does can be applied any more, as *view* knows.

        So it is under another reign, unless its very server holds the office, trusted anew by an operator: its backends
        go on. And where its server is seen no more and another one holds the office, as after a restart: that one has
        begun from what this one had written, and takes nothing from it since.
        """
        if self.reign != view.reign:
            return view.primary is not None and not view.nodes[view.primary].instance.is_surely(self.instance)
        holder = view.writable
        return holder is not None and not self.names(view) and view.nodes[holder].instance.differs(self.instance)

    def names(self, view: View) -> Sequence[str]:
        """Return the names under which its server may be asked, the one it was reached by first.

        A process number means nothing on another server: a name that leads elsewhere by now is none of them.
        """
        names = sorted(view.nodes, key=lambda name: name != self.node)
        return [name for name in names if not view.nodes[name].instance.differs(self.instance)]


class Box:
    """What one context has written.

    reign: the reign of its last write; None before the first.
    position: an insert position behind its writes, in bytes; None while it has not been learnt.
    written_at: when its last write ended, on the guard's monotonic clock.
    """

    __slots__ = ("pins", "position", "reign", "written_at")

    def __init__(self) -> None:
        self.reign: Reign | None = None
        self.position: int | None = None
        self.written_at = 0.0
        self.pins: list[Orphan] = []

    def wrote(self, reign: Reign | None, now: float) -> None:
        """Note that a write of this context has ended, however it ended."""
        if reign is not None:
            self.reign = reign
        self.position = None
        self.written_at = now

    def pin(self, orphan: Orphan) -> None:
        """Keep this context's reads on the primary until *orphan* is gone, or its fate is known."""
        self.pins.append(orphan)

    def floor(self, reign: Reign | None, learnt: int | None, learnt_at: float) -> int | None:
        """Return the position a replica must have replayed for this context's reads; None: only the primary will do.

        reign: the reign that is accepted now.
        learnt, learnt_at: an insert position of that reign's primary, and when it was asked for.
        """
        if self.pins:
            self.pins = [
                orphan for orphan in self.pins if not (orphan.gone or orphan.resolved) and orphan.reign == reign
            ]
            if self.pins:
                return None
        if not self.written_at:
            return 0
        if learnt is not None and learnt_at > self.written_at and (self.position is None or self.reign != reign):
            self.reign, self.position = reign, learnt
        return self.position if self.reign is not None and self.reign == reign else None
