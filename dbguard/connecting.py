"""Connectors: connections for a pool of the application's, made to wherever they belong by now, whichever driver's.

Each new connection goes to the present primary, or to a fit replica, and is asked who it is before it is handed over. No
driver tells which pool a connection is for, so nothing can be drained through the pool: a connection that belongs there
no more is ended, and its pool dials another one.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dbguard.core.failure import Family
from dbguard.core.topology import Role
from dbguard.drivers.base import WrongNode
from dbguard.errors import GuardClosed, NoPrimary, NoReplica
from dbguard.forked import watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.route import Node
    from dbguard.core.topology import Instance, Sighting
    from dbguard.runtime.engine import Engine

__all__ = ["BaseConnector", "Made"]

LOOK = 0.5
"""Seconds between two looks at the connections made, at most; a change of the topology wakes at once."""

MOVED = 4
"""Connections of one pool that go over to other replicas between two looks, at most: one that came back is not drowned."""

AGAIN = 0.05
"""Seconds before another dial after one that has failed: as the monitor's own first pause."""


@dataclass(frozen=True, slots=True)
class Made:
    """A connection that was made: to which node, and to which server of it. hold: by which it is ended."""

    node: str
    instance: Instance
    hold: Hold


class Hold(Protocol):
    """What a connector keeps of a connection that it has made."""

    def cut(self) -> None:
        """End it at once, from any thread, whatever it is doing."""

    def close(self) -> None:
        """Let go of it: it has ended."""


class BaseConnector:
    """Makes connections for one role, and ends those that belong to it no more.

    engine: returns the guard's; raises `GuardClosed` while it is not open. within: seconds that one connection may take,
    waiting for a node included. fallback: where no replica is fit, the primary will do.
    """

    def __init__(self, role: str, *, engine: Callable[[], Engine], within: float, fallback: bool) -> None:
        self._role = role
        self._engine = engine
        self._within = within
        self._fallback = fallback
        self._begin()
        watch(self)

    def _begin(self) -> None:
        self._made: weakref.WeakKeyDictionary[Any, Made] = weakref.WeakKeyDictionary()
        self._watch: asyncio.Task[None] | None = None
        self._crowd: dict[str, int] = {}
        self._lock = threading.Lock()

    def forked(self) -> None:
        """Forget, in a forked child, what was made for the parent: names that were looked up there, and connections.

        These lead nowhere any more. The child's own pool gets connections once the guard is opened in the child.
        """
        self._begin()

    def __repr__(self) -> str:
        return f"<dbguard.Connector to {self._role}>"

    @abstractmethod
    async def _reach(self, node: Node, given: dict[str, Any]) -> Any:
        """Dial *node* with what the application's pool gives; returns the driver's connection."""

    @abstractmethod
    async def _ask(self, engine: Engine, con: Any, node: Node) -> Sighting:
        """Ask a new connection's server who it is."""

    @abstractmethod
    def _hold(self, con: Any) -> Hold:
        """Return what to keep of *con*."""

    @abstractmethod
    def _is_closed(self, con: Any) -> bool:
        """Whether *con* is closed, as far as is known without asking."""

    async def _connect(self, given: dict[str, Any], within: float | None = None) -> Any:
        """Return a new connection, within so many seconds.

        Raises `NoPrimary` or `NoReplica` if there was none in time; else what the driver raised last.
        """
        engine = self._engine()
        clock = engine.state.clock
        until = clock() + min(self._within, within or self._within)
        last: Exception | None = None
        while True:
            node = self._choose(engine)
            if node is not None:
                try:
                    return await self._dial(engine, node, given)
                except Exception as error:
                    failure = engine.driver.name_dial(error, node.name)
                    if failure.family is Family.CONFIG:
                        raise
                    engine.hurry()
                    last = error
            left = until - clock()
            if left <= 0:
                raise engine.driver.dress(self._nobody()) if last is None else last
            pause = min(AGAIN if node is not None else LOOK, left)
            await engine.colour.elsewhere(engine.room.pause(pause))
            if engine.closed:
                raise engine.driver.dress(GuardClosed("the guard was closed while a connection was made"))

    async def _dial(self, engine: Engine, node: Node, given: dict[str, Any]) -> Any:
        """Dial, and hand over only what leads to the server that was meant."""
        state = engine.state
        con = await self._reach(node, given)
        hold = self._hold(con)
        try:
            seen = await self._ask(engine, con, node)
            refusal = state.met(seen)
            engine.flush()
            wanted = Role.PRIMARY if node is state.primary else Role.REPLICA
            if refusal is None and (seen.role is not wanted or not node.is_here(seen.instance)):
                refusal = f"{node.name} answers as {seen.role.value}, not as {wanted.value}"
            if refusal is not None:
                raise WrongNode(refusal)  # noqa: TRY301  closed as after any other failure
        except BaseException:
            hold.cut()
            hold.close()
            raise
        with self._lock:
            self._made[con] = Made(node.name, seen.instance, hold)
        weakref.finalize(con, hold.close)
        engine.colour.on_loop(self._look, engine)
        return con

    def _look(self, engine: Engine) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(self._look_after(engine), name="dbguard connector")

    def _known(self) -> list[tuple[Any, Made]]:
        with self._lock:
            return list(self._made.items())

    def serves(self, con: Any) -> bool:
        """Whether *con*, made here, is open and leads where a new one would be let by now; asks no server.

        For a pool that can look at a connection before it hands it out. One to the primary does not serve while writes
        are held back or refused, nor one to a replica that has stopped answering, fell behind or is not proven any more.
        Where a replica has come back, of those to the others just as many do not serve, a few at a time, as it is short
        of. Nothing serves while the guard is closed.
        """
        made, engine = self._made.get(con), self._running()
        if made is None or engine is None or self._is_closed(con) or self._is_misplaced(engine, made):
            return False
        state = engine.state
        node = state.nodes[made.node]
        if node is state.primary:
            return state.gate.writable and (self._role == "primary" or not state.readers)
        view = node.view
        return (
            self._role == "replica"
            and view.reachable
            and view.proven
            and view.lag is not None
            and view.lag <= state.reads.max_lag
            and not self._leaves(node)
        )

    def _leaves(self, node: Node) -> bool:
        """Whether a connection to *node* is one of those too many; the next one may not be."""
        if not self._crowd.get(node.name):
            return False
        with self._lock:
            many = self._crowd.get(node.name, 0)
            self._crowd[node.name] = many - 1
        return many > 0

    def is_news(self, con: Any) -> bool:
        """Whether nothing was known yet that ends *con*, made here: others to its server may have ended as well."""
        made, engine = self._made.get(con), self._running()
        return made is not None and engine is not None and not self._is_misplaced(engine, made)

    def node_of(self, con: Any) -> str | None:
        """Return the name of the node that *con* was made to; None once it was seen to have ended."""
        made = self._made.get(con)
        return None if made is None else made.node

    def doubt(self) -> None:
        """Let all nodes be asked at once who they are: a connection was lost, or a server said that it is a standby."""
        engine = self._running()
        if engine is not None:
            engine.hurry()

    def _running(self) -> Engine | None:
        """Return the guard's engine; None while it is closed."""
        try:
            engine = self._engine()
        except GuardClosed:
            return None
        return None if engine.closed else engine

    def _nobody(self) -> NoPrimary | NoReplica:
        error = NoPrimary if self._role == "primary" else NoReplica
        return error(f"no {self._role} within {self._within:g} s to connect to", retry_after=1.0)

    def _choose(self, engine: Engine) -> Node | None:
        state = engine.state
        if self._role == "replica":
            fit = state.readers
            if fit:
                fewest = min(self._out(node) for node in fit)
                least = [node for node in fit if self._out(node) == fewest]
                return least[int(state.rng.random() * len(least))]
            if not self._fallback:
                return None
        return state.primary if state.gate.writable else None

    def _out(self, node: Node) -> float:
        """Return how many connections there are to *node*, per weight."""
        return sum(made.node == node.name and not self._is_closed(con) for con, made in self._known()) / node.weight

    def _crowds(self, engine: Engine) -> dict[str, int]:
        """Return how many connections each fit replica has beyond its share, whole ones, `MOVED` at most."""
        fit = engine.state.readers if self._role == "replica" else ()
        out = {node: self._out(node) for node in fit}
        mean = sum(out[node] * node.weight for node in fit) / (sum(node.weight for node in fit) or 1)
        beyond = {node.name: int((out[node] - mean) * node.weight) for node in fit}
        return {name: min(MOVED, many) for name, many in beyond.items() if many > 0}

    async def _look_after(self, engine: Engine) -> None:
        """Terminate connections that belong to their node no more, until the guard is closed."""
        while not engine.closed:
            for con, made in self._known():
                if self._is_closed(con):
                    made.hold.close()
                    with self._lock:
                        self._made.pop(con, None)
                elif self._is_misplaced(engine, made):
                    made.hold.cut()
            self._crowd = self._crowds(engine)
            await engine.room.pause(LOOK)

    def _is_misplaced(self, engine: Engine, made: Made) -> bool:
        """Whether a connection must not be used any more for its role.

        A replica's that was promoted meanwhile goes on: it reads what is right, and new ones go to replicas.
        """
        state = engine.state
        node, primary = state.nodes[made.node], state.primary
        view = node.view
        if view.fenced or view.misconfigured is not None or (view.reachable and not node.is_here(made.instance)):
            return True
        if self._role == "replica":
            return False
        return (primary is not None and primary is not node) or (view.reachable and view.role is Role.REPLICA)
