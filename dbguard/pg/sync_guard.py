"""`SyncGuard`: the facade over psycopg 3, for threads."""

from __future__ import annotations

from asyncio import _get_running_loop  # as documented for frameworks: no exception where there is none
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self

from dbguard.deadlines import check_wait
from dbguard.forked import Turn
from dbguard.guarding import CLOSE_WITHIN
from dbguard.pg.guard import PsycopgGuard
from dbguard.pg.pool_names import not_resized
from dbguard.pg.sync_calls import SyncCalls, ThreadsCalling, ThreadsDialect
from dbguard.runtime.home import Home

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import TypeVar

    from psycopg_pool import ConnectionPool

    from dbguard.config.settings import Settings
    from dbguard.errors import GuardClosed
    from dbguard.events import Listener
    from dbguard.pg.calls import AsyncDialect
    from dbguard.pg.connector import SyncConnector
    from dbguard.status import Status
    from dbguard.wrapping import Following

    T = TypeVar("T")

__all__ = ["SyncGuard"]


class _Inner(ThreadsCalling, PsycopgGuard):
    """The guard itself: it lives on the loop of its home, and its calls are made on the callers' threads."""

    @staticmethod
    def _dialect(arguments: dict[str, Any]) -> AsyncDialect:
        return ThreadsDialect.of(arguments)


class SyncGuard(SyncCalls):
    """A PostgreSQL cluster, guarded: psycopg's words, sent to the right node, through failovers; for threads.

    config: settings, a mapping, a DSN of one or several hosts, or the path of a YAML file.
    on_event: called with each `dbguard.events.Event`, on the guard's own thread: it should not wait for anything.
    retry_wait, retry_stop: tenacity strategies for the pauses between attempts and for giving up. Default: full jitter.
    arguments: of `psycopg_pool.ConnectionPool`, for the guard's own pools: ``kwargs``, ``connection_class``,
        ``min_size``, ``max_size``, ``configure``, ``check``, ``reset``, ``max_lifetime``, ``max_idle``; they win over *config*.

    Making one does no I/O, so it can live at module level; `open` or ``with`` starts it. Any thread may use it. What
    watches the nodes runs in one daemon thread of the guard's own.

    Raises `ConfigError` if the configuration is wrong.
    """

    def __init__(
        self,
        config: Settings | Mapping[str, Any] | str | os.PathLike[str],
        *,
        on_event: Listener | None = None,
        retry_wait: object | None = None,
        retry_stop: object | None = None,
        **arguments: Any,
    ) -> None:
        self._become(_Inner(config, on_event=on_event, retry_wait=retry_wait, retry_stop=retry_stop, **arguments))

    def _become(self, inner: _Inner) -> None:
        super().__init__(inner)
        self._home: Home | None = None
        self._turn = Turn()

    @classmethod
    def wrap(
        cls,
        primary: ConnectionPool[Any] | Following,
        replicas: Sequence[ConnectionPool[Any] | Following] = (),
        *,
        hold: int = 0,
        config: Mapping[str, Any] | None = None,
        on_event: Listener | None = None,
    ) -> SyncGuard:
        """Guard pools that the application has already, by their public API; they stay its own and are never closed.

        primary, replicas: open `psycopg_pool.ConnectionPool`, one per node. Roles are found out, never believed.
        hold, config, on_event, and what is raised: as of `PsycopgGuard.wrap`.
        """
        guard = cls.__new__(cls)
        guard._become(_Inner._wrap(primary, replicas, "ConnectionPool", hold, config, on_event))  # noqa: SLF001  its other half
        return guard

    # ------------------------------------------------------------------ life cycle

    def open(self) -> Self:
        """Connect, and wait until what ``startup.need`` says answers. A guard that was closed may be opened again.

        Raises as `dbguard.Guard.open`.
        """
        opening = self._inner.open()
        if _get_running_loop() is not None:
            self._in_a_loop(opening)
        with self._turn:
            home = self._home
            if home is None or home.over:
                home = self._home = self._inner._core.dialect.home = Home()  # noqa: SLF001  two halves of one thing
                self._inner._colour = home.colour  # noqa: SLF001  same
        try:
            home.run(opening)
        except BaseException:
            self._leave(home)
            raise
        return self

    def close(self, timeout: float = CLOSE_WITHIN) -> None:
        """Let calls end for *timeout* seconds, then end them; close what the guard opened. See `dbguard.Guard.close`."""
        check_wait(timeout)
        home = self._home
        if home is not None and not home.over:
            try:
                home.run(self._inner.close(timeout=timeout))
            finally:
                self._leave(home)

    def terminate(self) -> None:
        """End everything at once: calls, connections, probes.

        A write that was sent may have been applied: its call raises `OutcomeUnknown`.
        """

        async def terminate() -> None:
            self._inner.terminate()

        home = self._home
        if home is not None and not home.over:
            home.run(terminate())

    def _leave(self, home: Home) -> None:
        """Stop the home of a guard that has ended."""

        async def over() -> bool:  # asked there: what was called off there is taken in first
            life = self._inner._life  # noqa: SLF001  same
            return life is None or life.over

        with self._turn:  # who opens it again meanwhile waits until it has ended
            if not home.over and home.run(over()):
                home.stop()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Exception):
            self.close()
        else:
            self.close(timeout=0)  # Ctrl-C: nobody wants to wait

    # ------------------------------------------------------------------ looking at it

    def status(self) -> Status:
        """Return a picture of the moment. Raises `GuardClosed` while the guard is not open."""
        return self._inner.status()  # type: ignore[no-any-return]  # as the guard inside says

    def on_event(self, listener: Listener) -> Callable[[], None]:
        """Call *listener* with each event from now on, on the guard's own thread; returns what takes it off again.

        Raises `TypeError` if it cannot be called.
        """
        return self._inner.on_event(listener)  # type: ignore[no-any-return]  # as the guard inside says

    def ready(self, *, role: str = "primary", timeout: float = 30.0) -> None:
        """Wait until a node serves in *role*: ``primary`` or ``replica``.

        Raises `NoPrimary` after *timeout* seconds; `GuardClosed` if the guard is closed meanwhile.
        """
        self._at_home(self._inner.ready(role=role, timeout=timeout))

    def resolve(self, token: str, *, timeout: float | None = None) -> bool:
        """Say whether the write that `OutcomeUnknown.token` stands for was applied. See `dbguard.Guard.resolve`."""
        return self._at_home(self._inner.resolve(token, timeout=timeout))  # type: ignore[no-any-return]  # as the guard inside says

    def trust(self, node: str) -> None:
        """Decide a contest or a split brain: *node* is the primary. See `dbguard.Guard.trust`."""
        self._inner.trust(node)

    def pause(self, *, timeout: float = 10.0, at_most: float = 60.0) -> int:
        """Let nothing more go to the primary until `resume`, and let what is under way there end. See `dbguard.Guard.pause`."""
        return self._at_home(self._inner.pause(timeout=timeout, at_most=at_most))  # type: ignore[no-any-return]  # as the guard inside says

    def resume(self) -> None:
        """End the pause, if there is one."""
        self._inner.resume()

    @contextmanager
    def paused(self, *, timeout: float = 10.0, at_most: float = 60.0) -> Iterator[int]:
        """Pause for a block, such as one that promotes a replica; gives what `pause` returns."""
        left = self.pause(timeout=timeout, at_most=at_most)
        try:
            yield left
        finally:
            if self._inner._core.engine is not None:  # noqa: SLF001  same
                self.resume()

    def connector(self, role: str = "primary") -> SyncConnector:
        """Return what connects a pool of the application's: ``ConnectionPool(connection_class=c.connection_class, check=c.check)``.

        role: ``primary`` or ``replica``. Each new connection goes to the present primary, or to a replica that is fit (where
        none is, to the primary, unless the guard says ``fallback: error``), and is asked who it is first. A connection to what
        is the primary no more, to a fenced node, or to a server that its name has left, is ended, whatever it is doing; `check`
        keeps the pool from handing it out. It can be called itself as well, where something takes a function that connects.
        What runs on them is the application's: nothing is repeated, routed or resolved. See `dbguard.Guard.connector`.

        Needs an open guard with nodes of its own whenever the pool connects. Raises `ValueError` for another role;
        `ConfigError` for a guard of wrapped pools.
        """
        from dbguard.pg.connector import SyncConnector  # noqa: PLC0415  as the machinery

        return self._inner._connecting(role, SyncConnector)  # type: ignore[no-any-return]  # noqa: SLF001  same

    # ------------------------------------------------------------------ psycopg_pool's own words

    @property
    def closed(self) -> bool:
        """Whether the guard is closed, or not open yet."""
        return bool(self._inner.closed)

    @property
    def min_size(self) -> int:
        """The connections kept open per node; of wrapped pools, the primary's."""
        return int(self._inner.min_size)

    @property
    def max_size(self) -> int:
        """The connections at most, per node; of wrapped pools, the primary's."""
        return int(self._inner.max_size)

    def get_stats(self) -> dict[str, int]:
        """Return how many connections there are, over all nodes. See `PsycopgGuard.get_stats`."""
        return self._inner.get_stats()  # type: ignore[no-any-return]  # as the guard inside says

    def pop_stats(self) -> dict[str, int]:
        """Return what `get_stats` returns: there are no counters in it that could be set back."""
        return self.get_stats()

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until there is a primary that takes writes; as `ready`. The guard stays open if there is none.

        Raises `NoPrimary` after *timeout* seconds; `GuardClosed` if the guard is closed, or was not opened.
        """
        self.ready(timeout=timeout)

    def drain(self) -> None:
        """Replace all connections: idle ones now, those in use when they are given back."""
        self._at_home(self._inner.drain())

    def check(self) -> None:
        """Close connections at hand that were lost, as is done after each round of probes; nothing is sent."""
        self._at_home(self._inner.check())

    def resize(self, min_size: int, max_size: int | None = None) -> NoReturn:
        """Not supported: raises `NotImplementedError`. Sizes are the configuration's: close this guard, open another."""
        raise NotImplementedError(not_resized(min_size, max_size))

    # ------------------------------------------------------------------ within

    def _at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for what runs on the guard's own loop."""
        if _get_running_loop() is not None:
            self._in_a_loop(work)
        home = self._home
        if home is None or home.over:
            work.close()
            closed: GuardClosed = self._inner._not_open()  # noqa: SLF001  same
            raise closed
        return home.run(work)
