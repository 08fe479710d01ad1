"""What every facade's calls are made of: where one may go, how long it may take, and blocks on one connection.

A guard and what its `using` returns are both `Calling`: the same engine, other options.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dbguard.blocks import Checkout, Function
from dbguard.core.causal import Box
from dbguard.core.plan import Call, Choice, Nowhere
from dbguard.core.reasons import Route, against, instead
from dbguard.core.retry import Stake, Work
from dbguard.deadlines import ambient, check_seconds
from dbguard.errors import GuardClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from dbguard.blocks import Dialect
    from dbguard.errors import DbGuardError
    from dbguard.runtime.engine import Engine
    from dbguard.session import Session
    from dbguard.texts import Text, Texts
    from dbguard.transaction import Transaction

__all__ = ["NOT_OPEN", "Calling", "Core", "Lent", "Options"]

View = TypeVar("View")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How calls are made; see `Calling.using`."""

    role: str | None = None
    consistency: str = "own-writes"
    fallback: str = "primary"
    timeout: float = 30.0
    limit: str = "the default timeout"
    wait: bool = True
    idempotent: bool = False


NOT_OPEN = "the guard is not open: use `async with guard:` or `await guard.open()` first"


class Core:
    """What all views of one guard share: the engine while it is open, the texts, the writes' tokens, the own box.

    shut: what to tell who calls while it is not open.
    """

    __slots__ = ("box", "dialect", "engine", "shut", "texts", "tokens")

    def __init__(self, texts: Texts, dialect: Dialect) -> None:
        self.dialect = dialect
        self.engine: Engine | None = None
        self.shut = NOT_OPEN
        self.tokens: Any = None
        self.texts = texts
        self.box = Box()

    def current_box(self) -> Box:
        """Return the box of the context that asks: the nearest one opened, or the guard's own."""
        return _boxes.get().get(id(self), self.box)


_boxes: ContextVar[Mapping[int, Box]] = ContextVar("dbguard_boxes", default={})  # noqa: B039  never changed in place


class Calling(Generic[View]):
    """Where a call may go, and what belongs around it. View: what `using` returns, which has no life of its own."""

    _core: Core
    _options: Options

    @abstractmethod
    def _with(self, options: Options) -> View:
        """Return the same guard with other options."""

    # ------------------------------------------------------------------ options and contexts

    def using(
        self,
        *,
        role: str | None = None,
        consistency: str | None = None,
        fallback: str | None = None,
        timeout: float | None = None,
        writes: str | None = None,
        idempotent: bool | None = None,
    ) -> View:
        """Return the same guard with other options: a cheap, immutable view.

        role: ``"primary"`` or ``"replica"``; a definite write is never lifted to a replica.
        consistency: ``own-writes``, ``eventual``, ``bounded`` or ``primary``, for reads.
        fallback: ``primary`` or ``error``: what a read does where no replica is fit.
        timeout: seconds for each call in all, > 0; `math.inf` is none.
        writes: ``wait`` or ``fail``: what a write does while there is no primary.
        idempotent: the caller's word that applying a write twice is as good as once, whatever was written in between.
            One whose answer was lost is then repeated, once its old backend is gone or another server is the primary.
        """
        _one_of("role", role, "primary", "replica")
        _one_of("consistency", consistency, "own-writes", "eventual", "bounded", "primary")
        _one_of("fallback", fallback, "primary", "error")
        _one_of("writes", writes, "wait", "fail")
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
        options = self._options
        changed = replace(
            options,
            role=role or options.role,
            consistency=consistency or options.consistency,
            fallback=fallback or options.fallback,
            timeout=options.timeout if timeout is None else timeout,
            limit=options.limit if timeout is None else "using(timeout=)",
            wait=options.wait if writes is None else writes == "wait",
            idempotent=options.idempotent if idempotent is None else idempotent,
        )
        return self._with(changed)

    @asynccontextmanager
    async def causal(self) -> AsyncIterator[None]:
        """Open a context of its own: its reads see its own writes, and nobody else's hold them on the primary.

        Child tasks belong to it. Open one per web request or job: without one, all calls of the process share the
        guard's own context.
        """
        with self._own_box():
            yield

    @contextmanager
    def _own_box(self) -> Iterator[None]:
        token = _boxes.set({**_boxes.get(), id(self._core): Box()})
        try:
            yield
        finally:
            _boxes.reset(token)

    def route(self, query: str) -> Route:
        """Say where *query* would go now, or why it would wait or fail, and what speaks against the other nodes.

        Sends nothing.
        """
        choice, text, others = self._explain(query)
        node, role, why = (
            (None, None, instead(choice)) if isinstance(choice, Nowhere) else (choice.node, choice.role, choice.why)
        )
        return Route(
            node=node,
            role=role,
            why=why,
            kind=text.statement.kind,
            because=text.why,
            others=MappingProxyType(others),
        )

    def _explain(self, query: str) -> tuple[Choice | Nowhere, Text, dict[str, str]]:
        """Choose as for a call of *query*; return the choice, what is known of the text, and the reasons of the others."""
        state = self._engine().state
        text = self._core.texts.learn(query)
        call = self._call(self._engine(), reads=self._reads(text), work=text.work, timeout=None, text=text)
        choice = state.route(call)
        return choice, text, against(state, call, text.statement.kind, choice)

    # ------------------------------------------------------------------ within

    def _engine(self) -> Engine:
        engine = self._core.engine
        if engine is None:
            raise self._not_open()
        return engine

    def _not_open(self) -> DbGuardError:
        return self._core.dialect.dress(GuardClosed(self._core.shut))

    def _call(
        self, engine: Engine, work: Work, timeout: float | None, text: Text | None = None, *, reads: bool
    ) -> Call:
        options = self._options
        core = self._core
        if timeout is not None:
            check_seconds(timeout)
        now = engine.state.clock()
        engine.state.budget.deposit(now)
        until, limit = (now + options.timeout, options.limit) if timeout is None else (now + timeout, "timeout=")
        outer = ambient()
        if outer is not None and outer < until:
            until, limit = outer, "deadline()"
        return Call(
            reads,
            work,
            _boxes.get().get(id(core), core.box),
            until,
            now,
            limit,
            options.consistency,
            options.fallback,
            options.role if text is None else text.hint or options.role or text.rule,
            text.group if text is not None and options.role is None else None,
            options.wait,
            text,
        )

    def _reads(self, text: Text) -> bool:
        role = self._options.role or text.rule
        if role is None or text.hint is not None:
            return text.reads
        return role != "primary" and (text.reads or (role == "replica" and text.liftable))

    async def _run_function(self, fn: Callable[[Any], Any], begin: dict[str, Any], timeout: float | None) -> Any:
        """Run *fn* in a transaction that begins as *begin* says, as often as is needed and safe."""
        reads = begin["readonly"] and begin["isolation"] != "serializable"
        engine = self._engine()
        call = self._call(
            engine,
            reads=reads,
            work=Work(stake=Stake.TRANSACTION, idempotent=self._options.idempotent),
            timeout=timeout,
        )
        tokens = self._core.tokens
        call.reserve = tokens.reserve if tokens is not None else 0.0
        return await engine.call(call, Function(self._core.dialect, engine, self._core.texts, call, fn, begin, tokens))


class Lent:
    """One connection in the application's hands, from its taking to its giving back.

    begin: how its transaction begins; None: there is none. limit: seconds for taking it, BEGIN included; None: the guard's.
    """

    __slots__ = ("_begin", "_calls", "_limit", "session", "transaction")

    def __init__(self, calls: Calling[Any], limit: float | None, begin: dict[str, Any] | None) -> None:
        self._calls = calls
        self._limit = limit
        self._begin = begin
        self.session: Session | None = None
        self.transaction: Transaction | None = None

    async def take(self) -> Session:
        """Take it. Raises what any call raises that finds no connection."""
        calls, begin = self._calls, self._begin
        reads = begin is not None and begin["readonly"] and begin["isolation"] != "serializable"
        reads = reads or calls._options.role == "replica"  # noqa: SLF001  two halves of one thing
        # Entering a block leaves nothing behind, so that it may be repeated as a read is.
        engine = calls._engine()  # noqa: SLF001  same
        call = calls._call(engine, reads=reads, work=Work(stake=Stake.READ), timeout=self._limit)  # noqa: SLF001  same
        options, core = calls._options, calls._core  # noqa: SLF001  same
        job = Checkout(core.dialect, engine, core.texts, call, (options.timeout, options.limit), begin, core.tokens)
        self.session, self.transaction = await engine.call(call, job)
        self.session.lend(core.current_box)
        return self.session

    async def leave(self, error: BaseException | None) -> None:
        """Commit, or roll back because of *error*, and give it back."""
        session, self.session = self.session, None
        if session is None:
            return
        try:
            if self.transaction is None:
                if error is not None and not isinstance(error, Exception) and not session.closed:
                    session.con.terminate()
            elif error is None:
                await self.transaction.commit()
            else:
                await self.transaction.abandon(error)
        finally:
            session.give_back()


def _one_of(name: str, value: str | None, *allowed: str) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
