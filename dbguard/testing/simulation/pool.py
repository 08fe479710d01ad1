"""The guard's leases in the simulation: dialled, handed on, drained and fenced as `dbguard.drivers` does it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from dbguard.core.failure import Failure, Family, Phase
from dbguard.testing.fake import DriverError
from dbguard.testing.simulation.agenda import LATE
from dbguard.testing.simulation.messages import Request
from dbguard.testing.simulation.network import Connection, dial

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dbguard.core.route import Node
    from dbguard.core.topology import Drain, Sighting
    from dbguard.testing.simulation.agenda import Signal
    from dbguard.testing.simulation.network import Link

__all__ = ["Lease", "Pool", "name_dial"]


GONE = object()
"""What a wait for a connection says when there is no use in it any more."""


def name_dial(node: str, answer: Any, *, full: bool = False) -> Failure:
    """Name why there is no connection: an `Answer`, `LATE`, `GONE`, or the reason why the server must not be used."""
    code: str | None = None
    if isinstance(answer, str):
        family, what = Family.ROLE, answer
    elif answer is GONE:
        family, what = Family.HARD, "no use in waiting for a connection"
    elif answer is LATE:
        family, what = (Family.NEUTRAL, "no connection came free") if full else (Family.HARD, "no answer")
    else:
        code = answer.code if answer.code != "refused" else None
        family, what = Family.SOFT if code == "53300" else Family.HARD, f"{answer.code or 'reset'}"
    return Failure(
        node=node,
        phase=Phase.CONNECT,
        family=family,
        cause=DriverError(f"{what} on {node}", code),
        sqlstate=code,
        broken=True,
        timed_out=answer is LATE,
        ours=answer is GONE,
    )


class Lease:
    """A connection in use. ours: it was ended by a drain or a fence."""

    __slots__ = ("connection", "epoch", "ours", "reused")

    def __init__(self, connection: Connection, epoch: int) -> None:
        self.connection = connection
        self.epoch = epoch
        self.ours = False
        self.reused = False


class Pool:
    """The connections of one node; *size* at most.

    check: what a new connection must pass; returns the reason if it does not.
    """

    def __init__(
        self, node: Node, link: Link, size: int, check: Callable[[Sighting], str | None], numbers: Callable[[], int]
    ) -> None:
        self.node = node
        self.link = link
        self.size = size
        self.free: list[Lease] = []
        self.out: dict[Lease, None] = {}
        self.taken = 0
        self._check = check
        self._numbers = numbers
        self._waiters: deque[Signal] = deque()
        self._awaited: dict[Signal, None] = {}
        self._kept_from = node.epoch
        node.load.size = size

    @property
    def full(self) -> bool:
        """Whether every connection there may be is out."""
        return self.taken >= self.size and not self.free

    def take_now(self) -> Lease | None:
        """Return a lease if one is at hand."""
        while self.free:
            lease = self.free.pop()
            if lease.epoch == self.node.epoch and not lease.connection.closed:
                return self._lend(lease)
            self._close(lease)
        return None

    def _lend(self, lease: Lease) -> Lease:
        self.out[lease] = None
        self.node.load.in_use = len(self.out)
        lease.ours = False
        return lease

    def take(self, until: float) -> Generator[Signal, Any, Lease | Failure]:
        """Return a lease, waiting for one or dialling; or why there is none."""
        while (lease := self.take_now()) is None:
            if self.taken < self.size:
                self.taken += 1
                fresh = yield from self._dial(until)
                if isinstance(fresh, Failure):
                    self._spare()
                    return fresh
                here = self.node.is_here(fresh.connection.server.instance)
                if self._fits(fresh) and here and not fresh.connection.closed:
                    return self._lend(fresh)
                self._close(fresh)
                continue
            turn = self.link.agenda.signal(until)
            self._waiters.append(turn)
            said = yield from self._wait(turn)
            if said is not None:
                return name_dial(self.node.name, said, full=True)
        return lease

    def _wait(self, signal: Signal) -> Generator[Signal, Any, Any]:
        """Wait for *signal*, unless `dismiss` says that there is no use in it."""
        self._awaited[signal] = None
        said = yield signal
        self._awaited.pop(signal, None)
        return said

    def dismiss(self) -> None:
        """Let nobody wait any longer for a connection to this node."""
        for signal in list(self._awaited):
            signal.wake(GONE)

    def _dial(self, until: float) -> Generator[Signal, Any, Lease | Failure]:
        """Dial, and ask the server once who it is. The epoch is the one in which the dial began."""
        epoch = self.node.epoch
        answer: Any = yield from self._wait(dial(self.link, until, self._numbers()))
        if not isinstance(answer, Connection):
            return name_dial(self.node.name, answer)
        at = self.link.agenda.now
        said = yield from self._wait(answer.send(Request("ask"), until))
        if said is LATE or said is GONE or said.value is None:
            answer.end()
            return name_dial(self.node.name, said)
        refusal = self._check(said.value.sighting(self.node.name, at, fresh=True))
        if refusal is not None:
            answer.end()
            return name_dial(self.node.name, refusal)
        return Lease(answer, epoch)

    def give(self, lease: Lease, *, close: bool = False) -> None:
        """Take a lease back."""
        self.out.pop(lease, None)
        self.node.load.in_use = len(self.out)
        if close or lease.connection.closed or not self._fits(lease):
            self._close(lease)
        else:
            lease.reused = True
            self.free.append(lease)
            self._call_next()

    def _fits(self, lease: Lease) -> bool:
        """Whether it may be handed on: of this epoch, or taken over into it by a drain that keeps such connections."""
        if lease.epoch == self.node.epoch:
            return True
        if lease.epoch < self._kept_from or not self.node.is_surely_here(lease.connection.server.instance):
            return False
        lease.epoch = self.node.epoch
        return True

    def expire(self, how: Drain) -> None:
        """End what was born under an older epoch; ``"now"``: leases in use too; ``"keep"``: not what leads to this very server."""
        if how != "keep":
            self._kept_from = self.node.epoch
        for lease in list(self.free):
            if not self._fits(lease):
                self.free.remove(lease)
                self._close(lease)
        if how == "now":
            self.end_in_use()

    def end_in_use(self, *, stale: bool = False) -> None:
        """Terminate the leases in use; *stale*: only those of an older epoch."""
        for lease in list(self.out):
            if not stale or lease.epoch != self.node.epoch:
                lease.ours = True
                lease.connection.end()

    def _close(self, lease: Lease) -> None:
        lease.connection.end()
        self._spare()

    def _spare(self) -> None:
        self.taken -= 1
        self._call_next()

    def _call_next(self) -> None:
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done:
                turn.wake()
                return
