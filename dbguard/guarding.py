"""What all guards have in common, whichever driver and colour they are of: their life, and looking at them."""

from __future__ import annotations

import asyncio
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from dbguard.calling import Core, Options, View
from dbguard.core.outcome import Applied, StillOpen, known_token
from dbguard.deadlines import check_wait
from dbguard.errors import ConfigError, GuardClosed, OutcomeUnknown
from dbguard.events import OutcomeResolved, WriteWithoutToken
from dbguard.pausing import Pausing
from dbguard.runtime.resolve import resolve
from dbguard.status import Status, status_of
from dbguard.texts import Direction, Texts

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType

    from dbguard.blocks import Dialect
    from dbguard.config.settings import Settings
    from dbguard.drivers.base import OwnedPool
    from dbguard.drivers.tokens import Tokens
    from dbguard.events import Listener
    from dbguard.lifetime import Lifetime
    from dbguard.refresh import Refresh
    from dbguard.runtime.engine import Engine
    from dbguard.runtime.monitor import Monitor
    from dbguard.wrapping import Wrapped

__all__ = ["CLOSE_WITHIN", "Guarding", "checked_sizes"]

C = TypeVar("C")

CLOSE_WITHIN = 10.0
"""Seconds `Guarding.close` lets calls go on before it ends them."""


class Guarding(Pausing[View]):
    """A guard: its configuration, its life, and what can be seen of it.

    config: settings, a mapping, a DSN of one or several hosts, or the path of a YAML file. arguments: of the driver's pool.
    Raises `ConfigError` if the configuration is wrong.
    """

    def __init__(
        self,
        config: Settings | Mapping[str, Any] | str | os.PathLike[str],
        dialect: Dialect,
        arguments: dict[str, Any],
        *,
        on_event: Listener | None,
        retry_wait: object | None,
        retry_stop: object | None,
    ) -> None:
        # Loaded here, not above: `import dbguard` stays quick, for command lines and workers.
        from dbguard.config import load  # noqa: PLC0415  loaded when it runs

        self._settings = settings = load(config)
        self._arguments = self._checked(arguments)
        self._wrapped: Mapping[str, Wrapped] | None = None
        self._wait = retry_wait
        self._stop = retry_stop
        self._listeners: list[Listener] = [_listener(on_event)] if on_event is not None else []
        self._life: Lifetime | None = None
        functions = settings.routing.functions
        self._core = Core(Texts(frozenset(functions.read), frozenset(functions.write), _directions(settings)), dialect)
        self._options = Options(
            consistency=settings.reads.consistency,
            fallback=settings.reads.fallback,
            timeout=settings.timeout,
            wait=settings.failover.writes == "wait",
        )

    @staticmethod
    def _sections(config: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the configuration of a guard of wrapped pools. Raises `ConfigError` for one that says where nodes are."""
        if not isinstance(config, Mapping | None):
            raise ConfigError("config= of wrapped pools is a mapping of sections, such as {'reads': {'max_lag': 2}}")
        given = dict(config or {})
        for key in ("nodes", "dsn", "connection"):
            if key in given:
                raise ConfigError(f"{key} has no meaning for wrapped pools: they know their servers", path=key)
        return given

    @classmethod
    def _over(cls, given: dict[str, Any], pools: Mapping[str, Wrapped], on_event: Listener | None) -> Self:
        """Return a guard of these pools."""
        # The addresses are never dialled: the pools, or who connects as they do, know better.
        given["nodes"] = [{"name": name, "host": f"{name}.pool.invalid"} for name in pools]
        make: Any = cls
        guard: Self = make(given, on_event=on_event)
        guard._wrapped = pools
        return guard

    @abstractmethod
    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the driver's pool. Raises `ConfigError` for one that it does not have."""

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

    def _connecting(self, role: str, make: Callable[..., C]) -> C:
        """Make a connector. Raises `ValueError` for another role; `ConfigError` for a guard of wrapped pools."""
        if role not in ("primary", "replica"):
            raise ValueError(f"role must be primary or replica, not {role!r}")
        if self._wrapped is not None:
            raise ConfigError("wrapped pools connect by themselves: open a guard on nodes for connector()")
        options = self._options
        return make(
            role,
            self._settings,
            self._arguments,
            engine=self._engine,
            within=options.timeout,
            fallback=options.fallback == "primary",
        )

    @abstractmethod
    def _begin(self) -> Lifetime:
        """Begin one time for which the guard is open."""

    def _lifetime(
        self,
        engine: Engine,
        monitor: Monitor,
        own: Sequence[OwnedPool],
        refresh: Refresh,
        tokens: Callable[..., Tokens],
    ) -> Lifetime:
        """Tie together what a facade has made for one time for which the guard is open. See `Lifetime`."""
        # The machinery is loaded when it runs: `import dbguard` is quick.
        from dbguard.lifetime import Lifetime  # noqa: PLC0415  loaded when it runs

        engine.listeners = self._listeners
        self._core.tokens = _tokens(self._settings, engine, tokens)
        return Lifetime(
            self._core,
            engine,
            monitor,
            own,
            refresh,
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
        elif self._life is not None and not self._life.engine.forked:
            self._life.begin_to_close(CLOSE_WITHIN)

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    # ------------------------------------------------------------------ looking at it

    def status(self) -> Status:
        """Return a picture of the moment. Raises `GuardClosed` while the guard is not open."""
        state = self._engine().state
        with state.lock:
            return status_of(state)

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
                raise self._core.dialect.dress(GuardClosed("the guard was closed while it was waited for"))
            if loop.time() >= until:
                raise self._core.dialect.dress(nobody(life.monitor, timeout))
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
            raise self._core.dialect.dress(
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


def checked_sizes(arguments: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return *arguments* with a least size that fits the largest. Raises `ConfigError` if both are given and do not."""
    least = arguments.get("min_size", settings.pool.min_size)
    most = arguments.get("max_size", settings.pool.max_size)
    if "max_size" in arguments and "min_size" not in arguments:
        return arguments | {"min_size": min(least, most)}
    if least > most:
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


def _tokens(settings: Settings, engine: Engine, make: Callable[..., Tokens]) -> Tokens | None:
    """Make what gives writes their tokens; None where they carry none."""
    if not engine.registries:
        return None
    outcome, clock = settings.outcome, engine.state.clock
    return make(
        reserve=outcome.reserve,
        keep_result=outcome.keep_result,
        clock=clock,
        say=lambda why: engine.tell(WriteWithoutToken(at=clock(), why=why)),
    )
