"""A model of PostgreSQL servers: what a client and a replica can notice of one, and no more.

A server has a role, a timeline and a log (`wal`): the commits of its history, each with the position behind it. A
replica receives what its upstream appends and replays it a moment later; promoted, it goes on under the next timeline
with what it had received. A commit is durable at once; with synchronous replication it is answered when a standby has
it. Backends hold row locks until their transaction ends, and do not notice that their client is gone while they wait.

Left out: tables, SQL, disks that fail, cascades of replicas, time-outs of the server's own, standbys by name or quorum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dbguard.core.topology import Instance, Role, Sighting
from dbguard.testing.simulation.messages import Answer, Commit, Missing

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.testing.simulation.agenda import Agenda
    from dbguard.testing.simulation.messages import Request

__all__ = ["Backend", "Server"]

BASE = 1_000
"""The position at which every history begins, in bytes."""

SYSTEM = "42"


@dataclass(slots=True, eq=False)
class Backend:
    """The server's side of one connection."""

    pid: int
    hang_up: Callable[[Answer], None]
    """Tells the client that the connection has ended."""
    alive: bool = True
    left: bool = False
    """The client is gone, and the server has been told."""
    busy: bool = False
    waits_for_standby: bool = False
    pending: list[str] = field(default_factory=list)
    locks: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Stream:
    """Replication from one server to another; a new one for each reconnection."""

    upstream: Server
    timeline: int
    open: bool = True
    flows: bool = True
    """False: the link between the two is down, and neither has noticed."""
    last: float = 0.0


class Server:
    """One PostgreSQL server.

    up: its processes run. starting: it takes nobody in yet (57P03). frozen: nothing moves. full: no slot is left.
    replaying: replay is not paused. sync: commits wait for a standby. lag: seconds that replay takes, at most.
    conflicts: chance of 40001 per change.
    confirmed_upto: the position up to which a standby has what clients were told is committed.
    applied: called with each value that is committed. rightful: says who is the primary by right. accepted: says whom
        the guard accepted last as primary, None at first.
    """

    def __init__(
        self, name: str, agenda: Agenda, rng: Random, *, role: Role, sync: bool, lag: float, conflicts: float
    ) -> None:
        self.name = name
        self.agenda = agenda
        self.rng = rng
        self.role = role
        self.sync = sync
        self.lag = lag
        self.conflicts = conflicts
        self.up = True
        self.starting = False
        self.frozen = False
        self.full = False
        self.replaying = True
        self.started = 1
        self.timeline = 1
        self.control_timeline = 1
        self.wal: list[Commit] = []
        self.replayed = 0
        self.visible: set[str] = set()
        self.source: Stream | None = None
        self.streams: list[tuple[Stream, Server]] = []
        self.backends: dict[int, Backend] = {}
        self.confirmed_upto = 0
        self.applied: Callable[[Server, str], None]
        self.rightful: Callable[[], Server]
        self.accepted: Callable[[], Server | None]
        self._pids = 0
        self._locks: dict[str, Backend] = {}
        self._queues: dict[str, list[tuple[Backend, Request, Any]]] = {}
        self._waiting: list[tuple[int, Backend, Any]] = []
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    # ------------------------------------------------------------------ what can be seen

    @property
    def position(self) -> int:
        """Of a primary where it inserts, of a replica how far it has replayed."""
        done = len(self.wal) if self.role is Role.PRIMARY else self.replayed
        return self.wal[done - 1].position if done else BASE

    @property
    def instance(self) -> Instance:
        """What it is known by until it is started again."""
        return Instance(SYSTEM, f"{self.name} {self.started}")

    @property
    def streaming(self) -> bool:
        """Whether its WAL receiver streams."""
        return self.source is not None and self.source.open

    def sighting(self, node: str, at: float, *, fresh: bool) -> Sighting:
        """Return what the server says of itself."""
        primary = self.role is Role.PRIMARY
        stream = self.source
        received = stream.timeline if stream is not None and stream.open else None
        return Sighting(
            node=node,
            at=at,
            role=self.role,
            instance=self.instance,
            timeline=self.timeline if primary else received,
            control_timeline=self.control_timeline,
            position=self.position,
            flushed=self.position if primary else None,
            streaming=None if primary else received is not None,
            fresh=fresh,
        )

    # ------------------------------------------------------------------ clients

    def connect(self, hang_up: Callable[[Answer], None]) -> Backend | Answer:
        """Take a client in, or say why not. Only asked while it is up and not frozen."""
        if self.starting:
            return Answer(code="57P03", dead=True)
        if self.full:
            return Answer(code="53300", dead=True)
        self._pids += 1
        backend = self.backends[self._pids] = Backend(self._pids, hang_up)
        return backend

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

    def take(self, backend: Backend, request: Request, reply: Callable[[Answer], None]) -> None:
        """Take in a request that has arrived; frozen, when it thaws."""
        if self.frozen:
            self._inbox.append((self.take, (backend, request, reply)))
            return
        backend.busy = True
        self.later(0.0005 + 0.002 * self.rng.random(), self._execute, backend, request, reply)

    def leave(self, backend: Backend) -> None:
        """The client has hung up. A backend that is at work notices when it is done, or never."""
        backend.left = True
        if not backend.busy:
            self._bury(backend)

    def _execute(self, backend: Backend, request: Request, reply: Callable[[Answer], None]) -> None:
        if not backend.alive:
            return
        kind = request.kind
        if kind == "ask":
            answer = Answer(self)
        elif kind == "read":
            answer = Answer(self._missing(request.value))
        elif kind == "end":
            answer = Answer(self._end(*request.value))
        elif kind == "begin":
            answer = Answer()
        elif kind == "rollback":
            self._release(backend)
            answer = Answer()
        elif self.role is Role.REPLICA:
            self._release(backend)
            answer = Answer(code="25006")
        elif kind == "commit":
            self._commit(backend, reply)
            return
        elif not self._lock(backend, request, reply):
            return
        elif request.key is not None and self.rng.random() < self.conflicts:
            self._release(backend)
            answer = Answer(code="40001")
        elif kind == "write":
            backend.pending.append(request.value)
            self._commit(backend, reply)
            return
        else:
            backend.pending.append(request.value)
            self._append(())
            answer = Answer()
        self._done(backend, reply, answer)

    def _missing(self, expected: tuple[str, ...]) -> Missing | None:
        """Return what a reader expects, is not seen here, and is seen on the primary by right, and the accepted one."""
        seen, rightful = self.visible, self.rightful()
        missing = tuple(value for value in expected if value not in seen and value in rightful.visible)
        if missing and (accepted := self.accepted()) is not None:
            missing = tuple(value for value in missing if value in accepted.visible)
        if not missing:
            return None
        twin = self.timeline == rightful.timeline and not rightful.is_ahead_of(self)
        return Missing(missing, self.timeline if twin else None)

    def _done(self, backend: Backend, reply: Callable[[Answer], None], answer: Answer) -> None:
        backend.busy = False
        reply(answer)
        if backend.left:
            self._bury(backend)

    def _lock(self, backend: Backend, request: Request, reply: Callable[[Answer], None]) -> bool:
        """Lock the request's row, or wait for it."""
        key = request.key
        if key is None or self._locks.setdefault(key, backend) is backend:
            if key is not None and key not in backend.locks:
                backend.locks.append(key)
            return True
        self._queues.setdefault(key, []).append((backend, request, reply))
        return False

    def _release(self, backend: Backend) -> None:
        """End the backend's transaction, and let those go on that waited for it."""
        backend.pending.clear()
        locks, backend.locks = backend.locks, []
        for key in locks:
            del self._locks[key]
            waiting = self._queues.pop(key, [])
            for other, request, reply in waiting:
                if other.alive:
                    self.later(0.0001, self._execute, other, request, reply)

    def _bury(self, backend: Backend) -> None:
        backend.alive = False
        self.backends.pop(backend.pid, None)
        self._release(backend)

    def _end(self, pid: int, doomed: bool) -> bool:  # noqa: FBT001  two columns of one row
        """End a backend that was given up, and say whether it is gone."""
        backend = self.backends.get(pid)
        if backend is None:
            return True
        if doomed and not backend.waits_for_standby:
            self._bury(backend)
        return False

    # ------------------------------------------------------------------ the log

    def _commit(self, backend: Backend, reply: Callable[[Answer], None]) -> None:
        values = tuple(backend.pending)
        position = self._append(values)
        self._release(backend)
        if values and self.sync:
            backend.waits_for_standby = True
            self._waiting.append((position, backend, reply))
        else:
            self._done(backend, reply, Answer(self.timeline))

    def _append(self, values: tuple[str, ...]) -> int:
        commit = Commit((self.wal[-1].position if self.wal else BASE) + self.rng.randrange(50, 250), values)
        self.wal.append(commit)
        self.visible.update(values)
        self.replayed = len(self.wal)
        for value in values:
            self.applied(self, value)
        for stream, replica in self.streams:
            self._stream(stream, replica, commit)
        return commit.position

    def advance(self) -> None:
        """Commit something that nobody asks for: other applications write, too."""
        self._append(())

    def _stream(self, stream: Stream, replica: Server, commit: Commit) -> None:
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
                self.visible.update(commit.values)
            self.replayed = max(self.replayed, upto)

    def confirmed(self, stream: Stream, position: int) -> None:
        """A standby has everything up to *position*: answer the commits that waited for it."""
        if not stream.open or self.role is not Role.PRIMARY:
            return
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            upto, backend, reply = entry
            if upto > position:
                self._waiting.append(entry)
            elif backend.alive:
                self.confirmed_upto = max(self.confirmed_upto, upto)
                backend.waits_for_standby = False
                self._done(backend, reply, Answer(self.timeline))

    def cut_waits_short(self) -> None:
        """Cancel every wait for a standby, as an operator does who sees everything hang: committed here, and only here."""
        waiting, self._waiting = self._waiting, []
        for _, backend, reply in waiting:
            if backend.alive:
                backend.waits_for_standby = False
                self._done(backend, reply, Answer(self.timeline, unproven=True))

    def is_ahead_of(self, other: Server) -> bool:
        """Return whether *other*'s log is the beginning of this one's."""
        count = len(other.wal)
        return count <= len(self.wal) and (not count or self.wal[count - 1] is other.wal[-1])

    def follow(self, upstream: Server) -> bool:
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

    # ------------------------------------------------------------------ life and death

    def die(self, code: str | None = None) -> None:
        """End at once; with *code*, after telling the clients so. Those who wait for a standby hear nothing."""
        if not self.up:
            return
        self.up, self.frozen, self.starting = False, False, False
        for _, replica in list(self.streams):
            replica.unfollow()
        self.unfollow()
        backends, self.backends = self.backends, {}
        for backend in backends.values():
            backend.alive = False
            backend.hang_up(Answer(code=code, dead=True))
        self._locks.clear()
        self._queues.clear()
        self._waiting.clear()
        self._inbox.clear()

    def start(self, recovery: float) -> None:
        """Start again, as what it was; after *recovery* seconds it takes clients in."""
        if self.up:
            return
        self.started += 1
        self.up = self.starting = self.replaying = True
        self.replayed = len(self.wal)
        self.visible = {value for commit in self.wal for value in commit.values}
        self.later(recovery, self._ready)

    def _ready(self) -> None:
        self.starting = False

    def freeze(self) -> None:
        """Stop all its processes: what arrives is done when they go on."""
        self.frozen = True

    def thaw(self) -> None:
        """Let its processes go on."""
        if self.frozen:
            self.frozen = False
            inbox, self._inbox = self._inbox, []
            for act, args in inbox:
                self.later(0.0, act, *args)

    def promote(self) -> None:
        """Become a primary under the next timeline, with what was received. Connections live on."""
        self.unfollow()
        self.replaying = True
        self.replay(len(self.wal))
        self.role = Role.PRIMARY
        self.timeline += 1

    def rewind(self, upstream: Server) -> None:
        """Become a copy of *upstream*, as a replica. It has to be down."""
        self.role = Role.REPLICA
        self.timeline = self.control_timeline = upstream.timeline
        self.wal = list(upstream.wal)
        self.confirmed_upto = 0
        self.replaying = True

    def resume_replay(self, *, on: bool) -> None:
        """Pause replay, or go on with it."""
        self.replaying = on
        if on and self.up:
            self.replay(len(self.wal))
