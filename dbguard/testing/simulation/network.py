"""A model of the network between the application and its nodes, and of a connection as the application sees it.

A link loses what it is told to lose, in each direction by itself: silently (a hole), with a reset (the connection dies
with the message), or it keeps it and delivers it when it heals. What is lost silently, nobody is told of; a connection
that lost something so is found dead by its keepalives once the link is well again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.testing.simulation.messages import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.testing.simulation.agenda import Agenda, Signal
    from dbguard.testing.simulation.servers import Backend, Server

__all__ = ["LOST", "Connection", "Link", "dial"]

LOST = Answer(dead=True)
"""The connection died, and the server said nothing."""

REFUSED = Answer(code="refused", dead=True)

KEEPALIVE = 0.3
"""Seconds after which a connection that lost something is found dead, once its link is well."""


class Link:
    """The way from the application to one node's name, and back.

    servers: which servers the name leads to: each new connection to any of them.
    delay: seconds one way, at least; up to twice that.
    requests, replies: what happens to messages in either direction: ``"ok"``, ``"hole"``, ``"held"``, or a share in
        (0, 1): of so many one is lost together with its connection.
    """

    def __init__(self, node: str, server: Server, agenda: Agenda, rng: Random) -> None:
        self.node = node
        self.servers = [server]
        self.agenda = agenda
        self.rng = rng
        self.delay = 0.0005
        self.requests: str | float = "ok"
        self.replies: str | float = "ok"
        self.open: set[Connection] = set()
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._wounded: dict[Connection, None] = {}

    def choose(self) -> Server:
        """Return the server that a new connection reaches."""
        servers = self.servers
        return servers[0] if len(servers) == 1 else servers[int(self.rng.random() * len(servers))]

    def carry(self, state: str | float, connection: Connection | None, act: Callable[..., None], *args: Any) -> None:
        """Carry one message, as the link's *state* in that direction allows."""
        if state == "hole":
            if connection is not None:
                self._wounded[connection] = None
            return
        if state == "held":
            self._held.append((act, args))
            return
        delay = self.delay * (1.0 + self.rng.random())
        if (
            isinstance(state, float)
            and connection is not None
            and act not in connection.farewells
            and self.rng.random() < state
        ):
            self.agenda.after(delay, connection.break_off, LOST)
            return
        self.agenda.after(delay, act, *args)

    def heal(self) -> None:
        """Carry everything again, what was held back included."""
        self.requests = self.replies = "ok"
        self.delay = 0.0005
        held, self._held = self._held, []
        for act, args in held:
            self.agenda.after(self.delay, act, *args)
        wounded, self._wounded = self._wounded, {}
        for connection in wounded:
            self.agenda.after(KEEPALIVE, connection.find_dead)

    def reset(self) -> None:
        """End every connection over it, as a firewall does that forgets them."""
        for connection in sorted(self.open, key=lambda one: one.number):
            connection.break_off(LOST)


class Connection:
    """One connection as the application holds it.

    closed: it cannot be used any more.
    """

    __slots__ = ("_waiter", "backend", "closed", "link", "number", "server")

    def __init__(self, link: Link, server: Server, number: int) -> None:
        self.link = link
        self.server = server
        self.number = number
        self.backend: Backend | None = None
        self.closed = False
        self._waiter: Signal | None = None

    def send(self, request: Request, until: float | None) -> Signal:
        """Send a request; the signal brings its `Answer`, or `LATE`."""
        link = self.link
        signal = self._waiter = link.agenda.signal(until)
        link.carry(link.requests, self, self._arrive, request)
        return signal

    def _arrive(self, request: Request) -> None:
        """At the server's door."""
        server, backend = self.server, self.backend
        if not server.up or backend is None or not backend.alive:
            self.link.carry(self.link.replies, self, self.break_off, LOST)
        else:
            server.take(backend, request, self._reply)

    def _reply(self, answer: Answer) -> None:
        self.link.carry(self.link.replies, self, self._answered, answer)

    def _answered(self, answer: Answer) -> None:
        if not self.closed and self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            waiter.wake_last(answer)

    def hang_up(self, answer: Answer) -> None:
        """Close, on the server's side."""
        self.link.carry(self.link.replies, self, self.break_off, answer)

    def break_off(self, answer: Answer) -> None:
        """Notice that the connection is dead; so does the server, when it can be told."""
        if not self.closed:
            self._close()
            self.drop()
            if self._waiter is not None:
                self._waiter.wake(answer)

    @property
    def farewells(self) -> tuple[Callable[..., None], ...]:
        """What says that the connection has ended: it dies with nothing."""
        return (self.break_off, self._left)

    def find_dead(self) -> None:
        """Let keepalives find out, on both sides."""
        self.break_off(LOST)
        self._left()

    def end(self) -> None:
        """Terminate it from here: whoever waits on it is told at once, the server when it can be."""
        if not self.closed:
            self._close()
            if self._waiter is not None:
                self._waiter.wake(LOST)
            self.drop()

    def drop(self) -> None:
        """Let the server know that the client is gone."""
        if self.backend is not None:
            self.link.carry(self.link.requests, self, self._left)

    def _left(self) -> None:
        backend = self.backend
        if backend is not None and backend.alive:
            # After whatever was sent before: bytes on one connection do not overtake each other.
            self.server.later(2 * self.link.delay, self.server.leave, backend)

    def _close(self) -> None:
        self.closed = True
        self.link.open.discard(self)


def dial(link: Link, until: float, number: int) -> Signal:
    """Connect over *link*; the signal brings a `Connection`, the `Answer` that refuses it, or `LATE`."""
    signal = link.agenda.signal(until)
    server = link.choose()
    connection = Connection(link, server, number)

    def reach() -> None:
        if not server.up:
            link.carry(link.replies, None, signal.wake, REFUSED)
        else:
            server.later(0.001, accept)

    def accept() -> None:
        taken = server.connect(connection.hang_up)
        if isinstance(taken, Answer):
            link.carry(link.replies, None, signal.wake, taken)
            return
        connection.backend = taken
        link.carry(link.replies, None, welcome)

    def welcome() -> None:
        if signal.done:
            connection.drop()
        elif not connection.closed:
            link.open.add(connection)
            signal.wake(connection)
        else:
            signal.wake(LOST)

    link.carry(link.requests, None, reach)
    return signal
