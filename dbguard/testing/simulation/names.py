"""Servers, and the names that lead to them, which may come to lead elsewhere.

A server that no name leads to any more is retired: nobody promotes it, and it ends before long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dbguard.core.topology import Role
from dbguard.testing.simulation.network import Link
from dbguard.testing.simulation.schedule import NODES, Schedule
from dbguard.testing.simulation.servers import Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.testing.simulation.agenda import Agenda

__all__ = ["RECOVERY", "Names"]

RECOVERY = 0.15
"""Seconds that a server needs to start."""


class Names(ABC):
    """Three servers and the links to them, and later perhaps a fourth; the first begins as primary.

    truth: the primary by right. links: by name. applied: called with each value that is committed, and by whom.
    accepted: says whom the guard accepted last as primary.
    """

    def __init__(self, schedule: Schedule, agenda: Agenda, rng: Random) -> None:
        self.agenda = agenda
        self.rng = rng
        self._plan = schedule
        self.applied: Callable[[Server, str], None] = _ignore
        self.accepted: Callable[[], Server | None] = _nobody
        self.servers = {name: self._server(name) for name in NODES}
        self.servers[NODES[0]].role = Role.PRIMARY
        self.links = {name: Link(name, server, agenda, rng) for name, server in self.servers.items()}
        self.truth = self.servers[NODES[0]]

    @abstractmethod
    def _return(self, server: Server) -> None:
        """Let a server come back as a copy of the truth."""

    def _server(self, name: str) -> Server:
        """Make a server: an empty replica."""
        plan = self._plan
        server = Server(
            name, self.agenda, self.rng, role=Role.REPLICA, sync=plan.sync, lag=plan.lag, conflicts=plan.conflicts
        )
        server.rightful = self._rightful
        server.accepted = self._accepted
        server.applied = self._applied
        return server

    def _rightful(self) -> Server:
        return self.truth

    def _accepted(self) -> Server | None:
        return self.accepted()

    def _applied(self, server: Server, value: str) -> None:
        self.applied(server, value)

    def _links_of(self, server: Server) -> list[Link]:
        """Return the links that lead to *server*; none if it is retired."""
        return [link for link in self.links.values() if server in link.servers]

    def _hire(self, model: Server) -> Server | None:
        """Return a new server, a copy of *model* that was a replica until now; None if there is one too many."""
        if len(self.servers) > len(NODES) or not model.up or model.frozen:
            return None
        spare = self.servers["d"] = self._server("d")
        spare.up = False
        spare.rewind(model)
        spare.start(RECOVERY)
        return spare

    def _move(self, link: Link, server: Server, lasts: float) -> None:
        """Let a replica's name lead to a new one; the old one lives on for a while, as do connections to it."""
        spare = self._hire(self.truth) if server is not self.truth and server.role is Role.REPLICA else None
        if spare is None:
            self._swap(link)
            return
        spare.follow(self.truth)
        link.servers = [spare]
        self.agenda.after(lasts, self._retire, server)

    def _swap(self, link: Link) -> None:
        """Let two names change places."""
        others = [other for other in self.links.values() if other is not link]
        other = others[self.rng.randrange(len(others))]
        link.servers, other.servers = other.servers, link.servers

    def _group(self, link: Link, server: Server, lasts: float) -> None:
        """Let a second server answer under a name: for good under a replica's, for a while under the primary's."""
        second = self._hire(self.truth) if server is not self.truth and self.rng.random() < 0.7 else None
        if second is not None:
            second.follow(self.truth)
        else:
            others = [other for other in self.servers.values() if other is not server and self._links_of(other)]
            if not others:
                return  # every name leads to this one server already
            second = others[self.rng.randrange(len(others))]
            self.agenda.after(2 * lasts, self._ungroup, link)
        link.servers = [server, second]

    def _ungroup(self, link: Link) -> None:
        """Let a name lead to one server again: to the primary by right, where nothing else leads there."""
        truth = self.truth
        if truth in link.servers and self._links_of(truth) == [link]:
            link.servers = [truth]
        elif len(link.servers) > 1:
            link.servers = [server for server in link.servers if server is not truth][:1]

    def _alias(self, link: Link, server: Server, lasts: float) -> None:
        """Let a replica's name lead to the primary, as reader endpoints do that have no reader left."""
        if server is not self.truth and server.role is Role.REPLICA:
            link.servers = [self.truth]
            self.agenda.after(lasts, self._unalias, link, server)

    def _unalias(self, link: Link, server: Server) -> None:
        if len(self._links_of(link.servers[0])) > 1 and not self._links_of(server):
            link.servers = [server]
            if not server.up:
                self._return(server)

    def _retire(self, server: Server) -> None:
        """End a server that no name leads to."""
        if not self._links_of(server) and server is not self.truth:
            server.die("57P01")


def _ignore(server: Server, value: str) -> None:
    """Nobody watches."""


def _nobody() -> Server | None:
    """Nobody is accepted."""
    return None
