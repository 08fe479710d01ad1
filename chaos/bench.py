"""A client that stays open on a cluster while scenarios are run with it: one, or many in a row."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from chaos import aftermath
from chaos.clients import CLIENTS, Place
from chaos.interruptions import Interruptible
from dbguard.drivers import outcome_sql
from dbguard.testing.proxied import APPLICATION
from dbguard.testing.threads import in_thread
from dbguard.testing.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from chaos.clients import Client
    from chaos.faults import Breakage
    from chaos.history import Leak
    from dbguard.testing.proxied import ProxiedCluster

__all__ = ["THREADS", "Bench"]

THREADS = "chaos"
"""What the harness's own threads are called at first."""

_AT_ONCE = 8  # things that block and are done at the same time: faults are
_DDL = 10.0  # seconds to connect, and to make or remove the schema of tokens

T = TypeVar("T")


class Bench:
    """A client under test, opened on a running cluster; an asynchronous context manager.

    client: its name in `CLIENTS`.
    size: how many callers it is for at most.
    guard: the scenario's settings of the guard. Where they ask for tokens, and the client takes them, their schema is on
        the cluster while this is open.
    faults: what is to be broken. Where they need them, there are wires between the client and its links, or calls that can
        be given up.
    say: told in one line what happens.

    left_off: what of the settings this client cannot be told, and why; None if nothing.
    """

    def __init__(
        self,
        cluster: ProxiedCluster,
        client: str,
        *,
        size: int,
        guard: Mapping[str, Any],
        faults: Iterable[Breakage] = (),
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.cluster = cluster
        self.name = client
        self.say = say
        kind = CLIENTS[client]
        settings, self.left_off = kind.settings_for(guard)
        self._tokens = kind.takes_tokens and settings.get("outcome", {}).get("resolve", "none") != "none"
        links = {node.name: cluster.link(APPLICATION, node) for node in cluster.nodes}
        kinds = {type(fault) for fault in faults}
        wired = any(made.on_wire for made in kinds)
        self.wires = {name: Wire(link.host, link.port) for name, link in links.items()} if wired else {}
        self._interrupted = any(made.in_calls for made in kinds)
        self.calls: Interruptible | None = None
        self._addresses = {name: (link.host, link.port) for name, link in links.items()}
        self._size, self._settings = size, settings
        self._listener: Callable[[Mapping[str, Any]], object] | None = None
        self._unheard: list[Mapping[str, Any]] = []
        self._exits = contextlib.AsyncExitStack()
        self._opened = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._threads: ThreadPoolExecutor
        self.client: Client

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as exits:
            self._threads = exits.enter_context(ThreadPoolExecutor(_AT_ONCE, THREADS))
            if self.left_off:
                self.say(f"     ...  {self.name} does without {self.left_off}")
            if self._tokens:
                exits.push_async_callback(self._on_primary, "DROP SCHEMA IF EXISTS dbguard CASCADE")
                await self._on_primary(outcome_sql.schema() + outcome_sql.grants("postgres"))
            self._tasks = asyncio.all_tasks()
            await exits.enter_async_context(self._opened)
            addresses = dict(self._addresses)
            for name, wire in self.wires.items():
                await self._opened.enter_async_context(wire)
                addresses[name] = (addresses[name][0], wire.port)
            place = Place(addresses=addresses, size=self._size, guard=self._settings, tell=self._heard)
            client = CLIENTS[self.name](place)
            if self._interrupted:
                client = self.calls = Interruptible(client)
            self.client = await self._opened.enter_async_context(client)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._exits.__aexit__(kind, e, at)

    async def close(self) -> None:
        """Close the client; does nothing if it is closed."""
        await self._opened.aclose()

    async def left(self) -> list[Leak]:
        """Return what the closed client left behind."""
        return await aftermath.tasks(self._tasks) + await self.do(aftermath.sessions, self.cluster)

    @contextlib.contextmanager
    def heard_by(self, listener: Callable[[Mapping[str, Any]], object]) -> Iterator[None]:
        """Let *listener* have what the client tells meanwhile, and what it told before while nobody listened."""
        self._listener = listener
        try:
            unheard, self._unheard = self._unheard, []
            for event in unheard:
                listener(event)
            yield
        finally:
            self._listener = None

    async def do(self, work: Callable[..., T], *args: object) -> T:
        """Do what blocks, in a thread. A cancellation waits for its end, since it cannot be stopped halfway."""
        return await in_thread(partial(work, *args), self._threads)

    def _heard(self, event: Mapping[str, Any]) -> None:
        if self._listener is None:
            self._unheard.append(event)
        else:
            self._listener(event)

    async def _on_primary(self, script: str) -> None:
        """Run several statements as one transaction, on the node itself."""
        node = self.cluster.primary
        connection = await asyncpg.connect(
            host=node.host, port=node.port, user="postgres", database="postgres", ssl=False, timeout=_DDL
        )
        try:
            await connection.execute(script, timeout=_DDL)
        finally:
            connection.terminate()
