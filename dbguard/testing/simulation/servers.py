"""A model of PostgreSQL servers: what a client and a replica can notice of one, and no more.

A server has a role, a timeline and a log (`replication`): the commits of its history, each with the position behind it.
Promoted, it goes on under the next timeline with what it had received. A commit is durable at once; with synchronous
replication it is seen and answered when a standby has it. Backends hold row locks until their transaction ends, and do
not notice that their client is gone while they wait.

Left out: tables, SQL, disks that fail, time-outs of the server's own, standbys by name or quorum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dbguard.core.outcome import Holder
from dbguard.core.topology import Instance, Mark, Role, Sighting
from dbguard.testing.simulation import tokens
from dbguard.testing.simulation.messages import Answer, Missing
from dbguard.testing.simulation.replication import Replicated, Stream
from dbguard.testing.simulation.tokens import burnt, horizon, time_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.testing.simulation.agenda import Agenda
    from dbguard.testing.simulation.messages import Request

__all__ = ["Backend", "Server"]

LOCK_TIMEOUT = 0.2
"""Seconds that a claim waits for a lock before it looks at who holds it."""

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


Waiting = tuple[int, Backend, "Callable[[Answer], None]", tuple[str, ...], Answer]
"""A commit that waits for a standby: up to which position, whose, what is told, what it shows, and what is answered."""


class Server(Replicated):
    """One PostgreSQL server.

    starting: it takes nobody in yet (57P03). full: no slot is left. sync: commits wait for a standby.
    conflicts: chance of 40001 per change.
    branched: where its timeline began, if a promotion of its own has begun it.
    confirmed_upto: the position up to which a standby has what clients were told is committed.
    rightful: says who is the primary by right. accepted: says whom the guard accepted last as primary, None at first.
    """

    def __init__(
        self, name: str, agenda: Agenda, rng: Random, *, role: Role, sync: bool, lag: float, conflicts: float
    ) -> None:
        super().__init__(name, agenda, rng, role=role, lag=lag)
        self.sync = sync
        self.conflicts = conflicts
        self.starting = False
        self.full = False
        self.control_timeline = 1
        self.backends: dict[int, Backend] = {}
        self.confirmed_upto = 0
        self.branched: int | None = None
        self.rightful: Callable[[], Server]
        self.accepted: Callable[[], Server | None]
        self._pids = 0
        self._locks: dict[str, Backend] = {}
        self._queues: dict[str, list[tuple[Backend, Request, Any]]] = {}
        self._waiting: list[Waiting] = []

    # ------------------------------------------------------------------ what can be seen

    @property
    def instance(self) -> Instance:
        """What it is known by until it is started again."""
        return Instance(SYSTEM, f"{self.name} {self.started}")

    @property
    def born(self) -> float:
        """When its backends began, as far as that tells its instance from all others."""
        return 100.0 * ord(self.name[0]) + self.started

    def sighting(self, node: str, at: float, *, fresh: bool, marks: bool = False) -> Sighting:
        """Return what the server says of itself; *marks*: it is asked for the mark of its reign, too."""
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
            branched=self.branched if primary else None,
            streaming=None if primary else received is not None,
            confirmed=self.sync,
            marked=self.marked if marks else None,
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
        elif kind == "blockers":
            answer = Answer(self._holder(request.value))
        elif kind == "begin":
            answer = Answer()
        elif kind == "rollback":
            self._release(backend)
            answer = Answer()
        elif self.role is Role.REPLICA:
            self._release(backend)
            answer = Answer(code="25006")
        elif kind == "claim":
            self._claim(backend, request, reply)
            return
        elif kind == "mark":
            self.mark(*request.value)
            answer = Answer()
        elif not self._lock(backend, request, reply):
            return
        elif request.token is not None and burnt(self.visible, request.token):
            self._release(backend)
            answer = Answer(code="23505")
        elif kind == "commit":
            self._commit(backend, request.token, reply)
            return
        elif request.key is not None and self.rng.random() < self.conflicts:
            self._release(backend)
            answer = Answer(code="40001")
        elif kind == "write":
            backend.pending.append(request.value)
            self._commit(backend, request.token, reply)
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
        """Lock the request's row and its token, one after the other, or wait for them."""
        for key in _keys(request):
            if self._locks.setdefault(key, backend) is not backend:
                self._queues.setdefault(key, []).append((backend, request, reply))
                return False
            if key not in backend.locks:
                backend.locks.append(key)
        return True

    def _claim(self, backend: Backend, request: Request, reply: Callable[[Answer], None]) -> None:
        """Claim a token, or wait for who holds it; not for long."""
        token = request.token
        assert token is not None  # noqa: S101  a claim names one
        if not self._lock(backend, request, reply):
            self.later(LOCK_TIMEOUT, self._give_up, backend, request, reply)
            return
        if time_of(token) < horizon(self.visible):
            self._release(backend)
            self._done(backend, reply, Answer(code="pruned"))
            return
        found = tokens.claim(self.visible, token)
        self._append(found.writes, seen=not self.sync)
        self._settle(backend, reply, found.writes, Answer(found.kind), waits=found.waits)

    def _give_up(self, backend: Backend, request: Request, reply: Callable[[Answer], None]) -> None:
        """End a wait for a lock."""
        key = _keys(request)[0]
        queue, waiting = self._queues.get(key, []), (backend, request, reply)
        if waiting in queue:
            held = self._holder(backend.pid)
            queue.remove(waiting)
            self._done(backend, reply, Answer(held, code="55P03"))

    def _holder(self, pid: int) -> Holder | None:
        """Return who holds up a backend; None if nobody does."""
        for key, queue in self._queues.items():
            if any(waiter.pid == pid for waiter, _, _ in queue):
                holder = self._locks[key]
                return Holder(holder.pid, self.born, "SyncRep" if holder.waits_for_standby else None)
        return None

    def prune(self) -> None:
        """Take away the tokens that are too old to be asked for, and say so with the horizon."""
        if self.up and not self.frozen and self.role is Role.PRIMARY:
            self._append((f"h:{self.agenda.now - tokens.RETENTION:.4f}",))

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

    def _commit(self, backend: Backend, token: str | None, reply: Callable[[Answer], None]) -> None:
        values = tuple(backend.pending)
        if token is not None and values:
            values = (*values, f"w:{token}")
        self._append(values, seen=not self.sync)
        self._settle(backend, reply, values, Answer(self.timeline), waits=bool(values))

    def _settle(
        self,
        backend: Backend,
        reply: Callable[[Answer], None],
        values: tuple[str, ...],
        answer: Answer,
        *,
        waits: bool,
    ) -> None:
        """End a transaction: show what it wrote, and answer; where it waits for a standby, when one has it."""
        entry = (self.wal[-1].position, backend, reply, values, answer)
        if waits and self.sync:
            backend.waits_for_standby = True
            self._waiting.append(entry)
        else:
            self._show(entry)

    def _show(self, entry: Waiting, *, unproven: bool = False) -> None:
        _, backend, reply, values, answer = entry
        backend.waits_for_standby = False
        self.reveal(values)
        self._release(backend)
        self._done(backend, reply, answer._replace(unproven=True) if unproven else answer)

    def confirmed(self, stream: Stream, position: int) -> None:
        """A standby has everything up to *position*: answer the commits that waited for it."""
        if not stream.open or self.role is not Role.PRIMARY:
            return
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            if entry[0] > position:
                self._waiting.append(entry)
            elif entry[1].alive:
                self.confirmed_upto = max(self.confirmed_upto, entry[0])
                self._show(entry)

    def cut_waits_short(self) -> None:
        """Cancel every wait for a standby, as an operator does who sees everything hang: committed here, and only here."""
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            if entry[1].alive:
                self._show(entry, unproven=True)

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
        self.visible, self.marked = set(), Mark(0, "")
        for commit in self.wal:
            self.reveal(commit.values)
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
        self.branched = self.position
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


def _keys(request: Request) -> list[str]:
    """Return what a request locks, in order: a statement may store its token before or after it meets its row."""
    keys = [request.key] if request.key is not None else []
    if request.token is not None:
        keys.insert(int(request.token[-1], 16) % 2 * len(keys), f"token {request.token}")
    return keys
