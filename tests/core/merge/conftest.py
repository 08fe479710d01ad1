"""A cluster on paper: servers that do what they are told, and a topology that looks at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import pytest

from dbguard.core.merge import Topology
from dbguard.core.topology import Changes, Instance, Mark, Missed, NodeView, Role, Sighting, View

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.events import Event


@dataclass
class Server:
    """One name, and the server that answers there."""

    name: str
    started: str | None
    system: str | None = "42"
    role: Role = Role.REPLICA
    timeline: int | None = 1
    control_timeline: int | None = 1
    position: int | None = 1000
    flushed: int | None = None
    branched: int | None = None
    streaming: bool | None = True
    read_only: bool = False
    marked: Mark | None = None
    unmarked: str | None = None
    silent: Missed | None = None

    def answer(self, at: float) -> Sighting | Missed:
        if self.silent is not None:
            return replace(self.silent, node=self.name, at=at)
        primary = self.role is Role.PRIMARY
        return Sighting(
            node=self.name,
            at=at,
            role=self.role,
            instance=Instance(self.system, self.started),
            timeline=self.timeline if primary or self.streaming else None,
            control_timeline=self.control_timeline,
            position=self.position,
            flushed=(self.position if self.flushed is None else self.flushed) if primary else None,
            branched=self.branched if primary else None,
            streaming=None if primary else self.streaming,
            read_only=self.read_only,
            marked=self.marked,
            unmarked=self.unmarked,
        )


class Cluster:
    """Servers, the first of them primary on timeline 1, and the topology under test."""

    def __init__(self, *names: str, **options: object) -> None:
        self._starts = count(1)
        self._marks = count(1)
        self.now = 100.0
        self.servers = {name: Server(name, self.start()) for name in names}
        self[names[0]].role = Role.PRIMARY
        self.topology = Topology(names, new_mark=lambda: f"m{next(self._marks)}", **options)  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.epochs: dict[str, str] = {}

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    @property
    def view(self) -> View:
        return self.topology.view

    def node(self, name: str) -> NodeView:
        return self.view.nodes[name]

    def start(self) -> str:
        return f"start {next(self._starts)}"

    # what happens to servers

    def promote(self, name: str, timeline: int | None = None) -> None:
        server = self[name]
        server.role, server.streaming = Role.PRIMARY, None
        server.timeline = (server.timeline or 0) + 1 if timeline is None else timeline

    def silence(self, *names: str, why: str = "no answer", **how: bool) -> None:
        for name in names:
            self[name].silent = Missed(node=name, at=0.0, why=why, **how)

    def heal(self, *names: str) -> None:
        for name in names:
            self[name].silent = None

    def restart(self, name: str) -> None:
        self[name].silent, self[name].started = None, self.start()

    def rejoin(self, name: str, timeline: int) -> None:
        """Come back as a replica that streams *timeline*."""
        self.restart(name)
        server = self[name]
        server.role, server.streaming, server.timeline = Role.REPLICA, True, timeline

    def write(self, size: int = 100) -> None:
        """Let the primary write, and every streaming replica replay it."""
        for server in self.servers.values():
            if server.position is not None and (server.role is Role.PRIMARY or server.streaming):
                server.position += size

    # what the topology is told

    def round(self, times: int = 1) -> Changes:
        """Ask all nodes in parallel."""
        for _ in range(times):
            self.now += 0.5
            changes = self._note(
                self.topology.merge([s.answer(self.now) for s in self.servers.values()], self.now + 0.01, full=True)
            )
        return changes

    def probe(self, name: str) -> Changes:
        """Ask one node, as a steady probe does."""
        self.now += 0.1
        return self._note(self.topology.merge([self[name].answer(self.now)], self.now + 0.01, full=False))

    def lost(self, name: str) -> Changes:
        self.now += 0.1
        return self._note(self.topology.lost(name, self.now))

    def trust(self, name: str) -> Changes:
        self.now += 0.1
        return self._note(self.topology.trust(name, self.now))

    def said(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def forget(self) -> None:
        """Start counting events and epochs anew."""
        self.events.clear()
        self.epochs.clear()

    def _note(self, changes: Changes) -> Changes:
        self.events += changes.events
        for name, (epoch, how) in changes.epochs.items():
            assert epoch == self.node(name).epoch
            self.epochs[name] = how
        return changes


@pytest.fixture
def build() -> Callable[..., Cluster]:
    """Make a cluster of the named nodes, the first of them primary; nothing was seen yet."""
    return Cluster


@pytest.fixture
def cluster() -> Cluster:
    """Three nodes, a the primary, seen once by all probes."""
    made = Cluster("a", "b", "c")
    made.round()
    made.forget()
    return made
