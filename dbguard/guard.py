"""`Guard`: the facade over asyncpg, for asyncio."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from dbguard.calls import Core, Options
from dbguard.core.outcome import Applied, StillOpen, known_token
from dbguard.deadlines import check_wait
from dbguard.drivers.asyncpg.failures import dress
from dbguard.errors import ConfigError, GuardClosed, OutcomeUnknown
from dbguard.events import OutcomeResolved, WriteWithoutToken
from dbguard.pausing import Pausing
from dbguard.runtime.resolve import resolve
from dbguard.status import Status, status_of
from dbguard.texts import Direction, Texts
from dbguard.wrapping import wrapped

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType

    import asyncpg

    from dbguard.config.settings import Settings
    from dbguard.connector import Connector
    from dbguard.drivers.asyncpg.outcome import Tokens
    from dbguard.events import Listener
    from dbguard.lifetime import Lifetime
    from dbguard.runtime.engine import Engine
    from dbguard.wrapping import Following, Wrapped

__all__ = ["Connecting", "Guard", "connect"]

CLOSE_WITHIN = 10.0
"""Seconds `Guard.close` lets calls go on before it ends them."""


class Guard(Pausing):
    """A PostgreSQL cluster, guarded: asyncpg's methods, sent to the right node, through failovers.

    config: settings, a mapping, a DSN of one or several hosts, or the path of a YAML file.
    on_event: called with each `dbguard.events.Event`.
    retry_wait, retry_stop: tenacity strategies for the pauses between attempts and for giving up. Default: full jitter.
    arguments: any argument of `asyncpg.create_pool`, for the guard's own pools; they win over *config*.

    Making one does no I/O and needs no running loop, so it can live at module level; `open` or ``async with`` starts it.

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
        # Loaded here, not above: `import dbguard` stays quick, for command lines and workers.
        from dbguard.config import load  # noqa: PLC0415

        self._settings = load(config)
        self._arguments = _checked(arguments, self._settings)
        self._wrapped: Mapping[str, Wrapped] | None = None
        self._wait = retry_wait
        self._stop = retry_stop
        self._listeners: list[Listener] = [_listener(on_event)] if on_event is not None else []
        self._life: Lifetime | None = None
        functions = self._settings.routing.functions
        self._core = Core(Texts(frozenset(functions.read), frozenset(functions.write), _directions(self._settings)))
        self._options = Options(
            consistency=self._settings.reads.consistency,
            fallback=self._settings.reads.fallback,
            timeout=self._settings.timeout,
            wait=self._settings.failover.writes == "wait",
        )

    @classmethod
    def wrap(
        cls,
        primary: asyncpg.Pool[Any] | Following,
        replicas: Sequence[asyncpg.Pool[Any] | Following] = (),
        *,
        hold: int = 0,
        config: Mapping[str, Any] | None = None,
        on_event: Listener | None = None,
    ) -> Guard:
        """Guard pools that the application has already, by their public API; they stay its own and are never closed.

        primary, replicas: open `asyncpg.Pool`s, one per node. Roles are found out, never believed.
        hold: connections of each pool that stay out between calls at most, below its ``max_size``. Default 0: each call
            is one checkout and one return. With your word that no ``setup=`` or ``reset=`` hook need run between two
            calls (a tenant's role, say), reads and writes that leave nothing on the session are as fast as on pools of
            the guard's own. They are given back after ``pool.max_idle``, and as soon as the pool is being closed.
        config: sections of the configuration that do not say where nodes are: ``reads``, ``retry``, ``breaker``, ...

        A wrapped pool can be reset and drained, but not moved to an address that it does not know: after a failover the
        new primary must be among the pools, or behind one that `follows` the primary. Probes, and questions about writes
        of open fate, borrow their connections from it. What the application's own use leaves on a session is not seen.

        Raises `TypeError` for what is no pool; `ConfigError` for one that is closed, or given twice. Opening the guard
        raises `ConfigError` if a pool is not open, or if the pools are of several clusters.
        """
        if not isinstance(config, Mapping | None):
            raise ConfigError("config= of wrapped pools is a mapping of sections, such as {'reads': {'max_lag': 2}}")
        given = dict(config or {})
        for key in ("nodes", "dsn", "connection"):
            if key in given:
                raise ConfigError(f"{key} has no meaning for wrapped pools: they know their servers", path=key)
        pools = wrapped(primary, replicas, hold)
        # The addresses are never dialled: the pools do that.
        given["nodes"] = [{"name": name, "host": f"{name}.pool.invalid"} for name in pools]
        guard = cls(given, on_event=on_event)
        guard._wrapped = pools
        return guard

    # ------------------------------------------------------------------ life cycle

    async def open(self) -> Self:
        """Connect, and wait until what ``startup.need`` says answers. A guard that was closed may be opened again.

        Raises `ConfigError` if every node that answered refuses the configuration (password, database, TLS, another
        cluster); `NoPrimary` or `NotAttempted` if nobody answered within ``startup.wait``; `GuardClosed` if it is
        closed meanwhile; `RuntimeError` if it is open on another event loop.
        """
        while (life := self._life) is not None and life.over:
            await life.gone()
            if self._life is life:
                self._life = None
        if life is None:
            life = self._life = self._begin()
        await life.opened()
        return self

    def _begin(self) -> Lifetime:
        # The machinery is loaded when it runs: `import dbguard` is quick.
        from dbguard.lifetime import Lifetime  # noqa: PLC0415
        from dbguard.refresh import Refresh  # noqa: PLC0415
        from dbguard.wiring import wire  # noqa: PLC0415

        engine, monitor, own = wire(self._settings, self._arguments, self._wrapped, wait=self._wait, stop=self._stop)
        engine.listeners = self._listeners
        self._core.tokens = _tokens(self._settings, engine)
        return Lifetime(
            self._core,
            engine,
            monitor,
            own,
            Refresh(self._core.texts, self.using(role="primary", writes="wait")),
            startup=self._settings.startup,
            warm=self._arguments.get("min_size", self._settings.pool.min_size),
            warm_within=self._settings.pool.acquire_timeout,
            one_cluster=self._wrapped is not None,
        )

    async def close(self, *, timeout: float = CLOSE_WITHIN) -> None:
        """Let calls end for *timeout* seconds, then end them; close what the guard opened.

        timeout: seconds, >= 0. Default 10. What is left then is terminated, which takes some tenths of a second more
            at most, in a black hole too.

        Calls that have sent nothing yet (they wait for a primary, for a connection, or to be repeated) raise
        `GuardClosed` at once, as new ones do. May be called twice, and while the guard is being opened; a second call
        waits for the first one and can only shorten it. If it is cancelled, everything is terminated.

        Raises `TypeError` or `ValueError` if *timeout* is no such number; then nothing is closed.
        """
        check_wait(timeout)
        life = self._life
        if life is not None:
            await life.close(timeout)
            if self._life is life:
                self._life = None

    def terminate(self) -> None:
        """End everything at once, as `asyncpg.Pool.terminate`: calls, connections, probes. Nothing need be awaited.

        A write that was sent may have been applied: its call raises `OutcomeUnknown`.
        """
        if self._life is not None:
            self._life.terminate()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        """Close the guard; in the background if the block is being cancelled, or the program interrupted.

        A cancellation goes on at once. Calls of other tasks may end meanwhile, as in `close`; if the event loop comes
        to its end first, they are cancelled with it, and the guard ends with the loop.
        """
        if error is None or isinstance(error, Exception):
            await self.close()
        elif self._life is not None:
            self._life.begin_to_close(CLOSE_WITHIN)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    # ------------------------------------------------------------------ looking at it

    def status(self) -> Status:
        """Return a picture of the moment. Raises `GuardClosed` while the guard is not open."""
        return status_of(self._engine().state)

    def on_event(self, listener: Listener) -> Callable[[], None]:
        """Call *listener* with each event from now on; returns what takes it off again.

        Raises `TypeError` if it cannot be called.
        """
        self._listeners.append(_listener(listener))

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return remove

    async def ready(self, *, role: str = "primary", timeout: float = 30.0) -> None:
        """Wait until a node serves in *role*: ``primary`` or ``replica``.

        Raises `NoPrimary` after *timeout* seconds; `GuardClosed` if the guard is closed meanwhile.
        """
        from dbguard.lifetime import is_fit, nobody  # noqa: PLC0415  as `open`

        check_wait(timeout)
        engine, life = self._engine(), self._life
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while not is_fit(engine, role):
            if engine.closed or life is None:
                raise dress(GuardClosed("the guard was closed while it was waited for"))
            if loop.time() >= until:
                raise dress(nobody(life.monitor, timeout))
            await engine.room.pause(min(0.5, until - loop.time()))

    async def resolve(self, token: str, *, timeout: float | None = None) -> bool:
        """Say whether the write that `OutcomeUnknown.token` stands for was applied; from another process, too.

        False: it was not, and never will be: it may be repeated. Asking closes the door on it, if it is still under way.
        timeout: seconds. Default: the guard's.

        Raises `OutcomeUnknown` if that cannot be told now, or the token is older than what the pruner has kept;
        `TokenInvalid` if it is none; `ConfigError` if the configuration does not say ``outcome.resolve: token-table``.
        """
        if timeout is not None:
            check_wait(timeout)
        engine = self._engine()
        asked = known_token(token)
        if not engine.registries:
            raise ConfigError("tokens are kept with `outcome: {resolve: token-table}` alone", path="outcome.resolve")
        until = engine.state.clock() + (self._options.timeout if timeout is None else timeout)
        answer = await resolve(engine, asked, until, None)
        if isinstance(answer, StillOpen):
            node = engine.state.view.primary or "no primary"
            raise dress(
                OutcomeUnknown(
                    f"what became of this write cannot be told now: {answer.why}", node=node, phase="sent", token=token
                )
            )
        applied = isinstance(answer, Applied)
        node, outcome = engine.state.view.primary or "", "applied" if applied else "not applied"
        engine.tell(OutcomeResolved(at=engine.state.clock(), node=node, token=str(asked), outcome=outcome))
        return applied

    def trust(self, node: str) -> None:
        """Decide a contest or a split brain, or end the memory of a time before a restore: *node* is the primary.

        node: its name. It is taken for the primary as soon as it claims to be; whoever else claims it now is fenced.
        For operators: nothing is checked, and what the others have acknowledged is given up.

        Raises `ValueError` if there is no node of that name.
        """
        engine = self._engine()
        if node not in engine.state.nodes:
            raise ValueError(f"there is no node {node!r}; the nodes are {', '.join(engine.state.nodes)}")
        engine.state.trust(node)
        engine.hurry()
        engine.flush()

    def connector(self, role: str = "primary") -> Connector:
        """Return what connects a pool of the application's: ``asyncpg.create_pool(connect=guard.connector("primary"))``.

        role: ``primary`` or ``replica``. Each new connection goes to the present primary, or to a replica that is fit (where
        none is, to the primary, where it stays, unless the guard says ``fallback: error``), and is asked who it is first. It waits for one as
        a call does, no longer than the pool's ``timeout``. A connection to what is the primary no more, to a fenced node, or
        to a server that its name has left, is terminated, whatever it is doing; its pool then dials another one.
        What runs on them is the application's: nothing is repeated, routed or resolved, none of it is held back by
        `pause` or while writes are refused, and a replica that falls behind later, or follows another server than the
        primary, keeps the connections that it has. For all of that, use the guard itself.

        Needs an open guard with nodes of its own whenever the pool connects. Raises `ValueError` for another role;
        `ConfigError` for a guard of wrapped pools.
        """
        from dbguard.connector import Connector  # noqa: PLC0415  as `load`

        if role not in ("primary", "replica"):
            raise ValueError(f"role must be primary or replica, not {role!r}")
        if self._wrapped is not None:
            raise ConfigError("wrapped pools connect by themselves: open a guard on nodes for connector()")
        options = self._options
        return Connector(
            role,
            self._settings,
            self._arguments,
            engine=self._engine,
            within=options.timeout,
            fallback=options.fallback == "primary",
        )

    # ------------------------------------------------------------------ asyncpg.Pool's own words

    async def expire_connections(self) -> None:
        """Replace all connections: idle ones now, those in use when they are given back."""
        engine = self._engine()
        for name in engine.pools:
            engine.state.renew(name)
        engine.flush()

    def is_closing(self) -> bool:
        """Whether the guard is closed, or not open yet."""
        engine = self._core.engine
        return engine is None or engine.closed

    def get_size(self) -> int:
        """Return the connections there are, in use or at hand, over all nodes."""
        return self.get_idle_size() + sum(node.load.in_use for node in self._engine().state.nodes.values())

    def get_idle_size(self) -> int:
        """Return the connections at hand, over all nodes."""
        return sum(pool.idle for pool in self._engine().pools.values())

    def get_min_size(self) -> int:
        """Return the connections kept open per node; of wrapped pools, the primary's."""
        if self._wrapped is not None:
            return int(self._wrapped["primary"].pool.get_min_size())
        return int(self._arguments.get("min_size", self._settings.pool.min_size))

    def get_init_size(self) -> int:
        """Return the connections dialled per node at the start."""
        if self._wrapped is not None:
            return int(self._wrapped["primary"].pool.get_init_size())
        return self.get_min_size()

    def get_max_size(self) -> int:
        """Return the connections at most, per node; of wrapped pools, the primary's."""
        if self._wrapped is not None:
            return int(self._wrapped["primary"].pool.get_max_size())
        return int(self._arguments.get("max_size", self._settings.pool.max_size))

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Not supported: raises `NotImplementedError`. Nodes are the configuration's: close this guard, open another."""
        raise NotImplementedError(
            "a guard's nodes come from its configuration: close it and open another one; for passwords that change, "
            "give password= a function"
        )


class Connecting:
    """What `connect` returns: for ``async with``, or ``await``."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __await__(self) -> Generator[Any, None, Guard]:
        return self._guard.open().__await__()

    async def __aenter__(self) -> Guard:
        return await self._guard.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._guard._leave(error)  # noqa: SLF001  two halves of one thing


def connect(config: Settings | Mapping[str, Any] | str | os.PathLike[str], **arguments: Any) -> Connecting:
    """Open a guard: ``async with dbguard.connect(...) as guard``, or ``guard = await dbguard.connect(...)``.

    config and arguments: as for `Guard`.
    """
    return Connecting(Guard(config, **arguments))


def _checked(arguments: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the arguments for `asyncpg.create_pool`; a misspelt one is found now, not by a pool that never connects."""
    from dbguard.drivers.asyncpg.dial import known_arguments  # noqa: PLC0415  as `load`

    if arguments.get("connect") is None:
        known = known_arguments()
        for name in arguments:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {close[0]}?" if close else " (nor of asyncpg.connect)"
                if hasattr(settings, name):
                    hint = f": it is a setting, such as dbguard.connect({{'dsn': ..., '{name}': ...}})"
                raise ConfigError(f"{name} is no argument of asyncpg.create_pool{hint}", path=name)
    least = arguments.get("min_size", settings.pool.min_size)
    most = arguments.get("max_size", settings.pool.max_size)
    if "max_size" in arguments and "min_size" not in arguments:
        arguments = arguments | {"min_size": min(least, most)}
    elif least > most:
        raise ConfigError(f"min_size ({least}) should not be above max_size ({most})", path="min_size")
    return arguments


def _listener(listener: Listener) -> Listener:
    """Return *listener*. Raises `TypeError` for what cannot be called."""
    if not callable(listener):
        raise TypeError(f"on_event should be a function that takes an event, not {listener!r}")
    return listener


def _directions(settings: Settings) -> list[Direction]:
    """Turn the configuration's rules into what texts are held against."""
    groups = settings.routing.groups
    return [
        Direction(re.compile(rule.match), rule.to)
        if rule.to not in groups
        else Direction(re.compile(rule.match), "replica", frozenset(groups[rule.to]))
        for rule in settings.routing.rules
    ]


def _tokens(settings: Settings, engine: Engine) -> Tokens | None:
    """Make what gives writes their tokens; None where they carry none."""
    from dbguard.drivers.asyncpg.outcome import Tokens  # noqa: PLC0415  as `load`

    if not engine.registries:
        return None
    outcome, clock = settings.outcome, engine.state.clock
    return Tokens(
        reserve=outcome.reserve,
        keep_result=outcome.keep_result,
        clock=clock,
        say=lambda why: engine.tell(WriteWithoutToken(at=clock(), why=why)),
    )
