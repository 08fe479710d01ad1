"""The log of a server in the model, and its replication to others: in order, with delays, along streams that can be cut.

A replica receives what its upstream appends and replays it a moment later. Cascades are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbguard.core.topology import Mark, Role
from dbguard.testing.simulation.messages import Commit
from dbguard.testing.simulation.tokens import is_mark

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.testing.simulation.agenda import Agenda

__all__ = ["Replicated", "Stream"]

BASE = 1_000
"""The position at which every history begins, in bytes."""


@dataclass(slots=True, eq=False)
class Stream:
    """Replication from one server to another; a new one for each reconnection."""

    upstream: Replicated
    timeline: int
    open: bool = True
    flows: bool = True
    """False: the link between the two is down, and neither has noticed."""
    last: float = 0.0


class Replicated(ABC):
    """A server's history, and where it comes from and goes to.

    name, role: as the world has set them. lag: seconds that replay takes, at most.
    up: its processes run. frozen: nothing moves. started: how often it was started. replaying: replay is not paused.
    timeline: which it writes, or receives. wal: the commits of its history. visible: what a reader sees. marked: the last
    mark of a reign that a reader sees.
    applied: called with each value that is committed.
    """

    applied: Callable[[Any, str], None]

    def __init__(self, name: str, agenda: Agenda, rng: Random, *, role: Role, lag: float) -> None:
        self.name = name
        self.agenda = agenda
        self.rng = rng
        self.role = role
        self.lag = lag
        self.up = True
        self.frozen = False
        self.started = 1
        self.replaying = True
        self.timeline = 1
        self.wal: list[Commit] = []
        self.replayed = 0
        self.visible: set[str] = set()
        self.marked = Mark(0, "")
        self.source: Stream | None = None
        self.streams: list[tuple[Stream, Replicated]] = []
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    @abstractmethod
    def confirmed(self, stream: Stream, position: int) -> None:
        """A standby has everything up to *position*."""

    def later(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        """Do something in *delay* seconds, unless this instance has ended by then; frozen, when it thaws."""
        self.agenda.after(delay, self._do, self.started, act, args)

    def _do(self, instance: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if instance != self.started or not self.up:
            return
        if self.frozen:
            self._inbox.append((act, args))
        else:
            act(*args)

    @property
    def position(self) -> int:
        """Of a primary where it inserts, of a replica how far it has replayed."""
        done = len(self.wal) if self.role is Role.PRIMARY else self.replayed
        return self.wal[done - 1].position if done else BASE

    @property
    def streaming(self) -> bool:
        """Whether its WAL receiver streams."""
        return self.source is not None and self.source.open

    def _append(self, values: tuple[str, ...], *, seen: bool = True) -> int:
        """Write a record; *seen*: everybody sees it from now on."""
        commit = Commit((self.wal[-1].position if self.wal else BASE) + self.rng.randrange(50, 250), values)
        self.wal.append(commit)
        if seen:
            self.reveal(values)
        self.replayed = len(self.wal)
        for value in values:
            if not is_mark(value):
                self.applied(self, value)
        for stream, replica in self.streams:
            self._stream(stream, replica, commit)
        return commit.position

    def reveal(self, values: tuple[str, ...]) -> None:
        """Show to readers what a commit has written."""
        self.visible.update(values)
        if values and values[0][:2] == "r:":
            _, timeline, mark = values[0].split(":")
            self.marked = Mark(int(timeline), mark)

    def mark(self, timeline: int, mark: str) -> None:
        """Add the mark of the reign on *timeline*, if it is this one and has none."""
        if self.role is Role.PRIMARY and self.timeline == timeline != self.marked.timeline:
            self._append((f"r:{timeline}:{mark}",))

    def advance(self) -> None:
        """Commit something that nobody asks for: other applications write, too."""
        self._append(())

    def _stream(self, stream: Stream, replica: Replicated, commit: Commit) -> None:
        """Send one record on: in order, each after the one before."""
        if stream.flows:
            stream.last = max(stream.last, self.agenda.now + 0.001 + 0.004 * self.rng.random())
            replica.later(stream.last - self.agenda.now, replica.receive, stream, commit)

    def receive(self, stream: Stream, commit: Commit) -> None:
        """Take in a record; tell the upstream, and replay it soon."""
        if not (stream.open and stream.flows) or stream is not self.source:
            return
        self.wal.append(commit)
        stream.upstream.later(0.001, stream.upstream.confirmed, stream, commit.position)
        self.later(0.001 + self.lag * self.rng.random(), self.replay, len(self.wal))

    def replay(self, upto: int) -> None:
        """Replay what was received."""
        if self.replaying and self.role is Role.REPLICA:
            for commit in self.wal[self.replayed : upto]:
                self.reveal(commit.values)
            self.replayed = max(self.replayed, upto)

    def is_ahead_of(self, other: Replicated) -> bool:
        """Return whether *other*'s log is the beginning of this one's."""
        count = len(other.wal)
        return count <= len(self.wal) and (not count or self.wal[count - 1] is other.wal[-1])

    def follow(self, upstream: Replicated) -> bool:
        """Stream from *upstream*, if the histories fit; say whether they do."""
        self.unfollow()
        if not (
            self.up and upstream.up and not upstream.frozen and upstream is not self and upstream.is_ahead_of(self)
        ):
            return False
        self.timeline = upstream.timeline
        stream = self.source = Stream(upstream, upstream.timeline)
        upstream.streams.append((stream, self))
        for commit in upstream.wal[len(self.wal) :]:
            upstream._stream(stream, self, commit)
        if self.wal:
            upstream.later(0.002, upstream.confirmed, stream, self.wal[-1].position)
        return True

    def unfollow(self) -> None:
        """Stop streaming."""
        stream, self.source = self.source, None
        if stream is not None:
            stream.open = False
            stream.upstream.streams = [pair for pair in stream.upstream.streams if pair[0] is not stream]
