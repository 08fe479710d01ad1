"""The calls: asyncpg's methods, routed, and dbguard's own words around them.

`Guard` and what `using` returns are both `Calls`: the same engine, other options.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from inspect import isasyncgenfunction, isgeneratorfunction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from dbguard.connection import Connection
from dbguard.core.causal import Box
from dbguard.core.outcome import is_plain
from dbguard.core.plan import Call, Choice, Nowhere
from dbguard.core.reasons import Route, against, instead
from dbguard.core.retry import Stake, Work
from dbguard.core.statement import Token, Touch
from dbguard.deadlines import ambient, check_seconds, check_wait
from dbguard.dialect import Statements
from dbguard.drivers.asyncpg.connection import not_ours
from dbguard.drivers.asyncpg.failures import dress
from dbguard.drivers.asyncpg.sending import Sender
from dbguard.errors import GuardClosed
from dbguard.jobs import Checkout, Copy, Feed, Function, Run, Written, again, not_a_function

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
    from types import TracebackType

    from dbguard.connection import Transaction
    from dbguard.drivers.asyncpg.outcome import Tokens
    from dbguard.runtime.attempt import Job
    from dbguard.runtime.engine import Engine
    from dbguard.session import Session
    from dbguard.texts import Text, Texts

__all__ = ["Acquiring", "Calls", "Core", "Options"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How calls are made; see `Calls.using`."""

    role: str | None = None
    consistency: str = "own-writes"
    fallback: str = "primary"
    timeout: float = 30.0
    limit: str = "the default timeout"
    wait: bool = True
    idempotent: bool = False


class Core:
    """What all views of one guard share: the engine while it is open, the texts, the writes' tokens, the own box."""

    __slots__ = ("box", "engine", "texts", "tokens")

    def __init__(self, texts: Texts) -> None:
        self.engine: Engine | None = None
        self.tokens: Tokens | None = None
        self.texts = texts
        self.box = Box()

    def current_box(self) -> Box:
        """Return the box of the context that asks: the nearest one opened, or the guard's own."""
        return _boxes.get().get(id(self), self.box)


_boxes: ContextVar[Mapping[int, Box]] = ContextVar("dbguard_boxes", default={})  # noqa: B039  never changed in place


class Calls(Statements):
    """Statements, transactions and connections, over the guard's nodes.

    The methods that `asyncpg.Pool` has keep its signatures; *timeout* bounds the whole call here, waiting and repeats
    included.
    """

    _core: Core
    _options: Options

    # ------------------------------------------------------------------ connections and transactions

    def acquire(self, *, timeout: float | None = None) -> Acquiring:
        """Take a connection to the primary, or with ``using(role="replica")`` to a replica; as `asyncpg.Pool.acquire`.

        Use it with ``async with`` or ``await``. Nothing that is done on it is repeated.
        """
        return Acquiring(self, timeout, None)

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give back a connection taken with ``await acquire()``; what must be awaited happens in the background.

        timeout: as asyncpg's, and without effect, since nothing is waited for.

        One that was given back already is let be. Raises `asyncpg.InterfaceError` if it is not of this guard.
        """
        if timeout is not None:
            check_wait(timeout)
        session = getattr(connection, "_session", None)
        if session is None or session.texts is not self._core.texts:
            raise not_ours(connection)
        session.give_back()

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> Acquiring:
        """Open a block on one connection, committed at its end, rolled back on an exception; never repeated.

        isolation: ``read_committed``, ``repeatable_read``, ``serializable``; None: the server's default.
        readonly: a block that only reads may go to a replica, unless it is serializable.
        timeout: seconds for taking the connection and BEGIN.

        Raises `OutcomeUnknown` if the COMMIT was sent and its answer lost; with any other error nothing was committed.
        """
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return Acquiring(self, timeout, begin)

    async def run_in_transaction(
        self,
        fn: Callable[[Connection], Awaitable[T]],
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Run *fn*, which must have no effect outside the transaction, in one; repeat it whole where that is safe.

        fn: gets the connection; its `attempt` counts from 1. What a failed attempt returned is never seen.
        isolation, readonly, deferrable: as in `transaction`.
        timeout: seconds for all attempts together. Default: the guard's.

        Repeated on serialization failures, deadlocks, a connection lost before COMMIT, and a change of roles. Raises
        what *fn* raises; `OutcomeUnknown` if a COMMIT was sent and its answer lost; `TypeError` if *fn* is no function
        that returns an awaitable.
        """
        if not callable(fn) or isasyncgenfunction(fn) or isgeneratorfunction(fn):
            raise not_a_function(fn)
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        reads = readonly and isolation != "serializable"
        engine = self._engine()
        call = self._call(
            engine,
            reads=reads,
            work=Work(stake=Stake.TRANSACTION, idempotent=self._options.idempotent),
            timeout=timeout,
        )
        tokens = self._core.tokens
        call.reserve = tokens.reserve if tokens is not None else 0.0
        return await engine.call(call, Function(engine, self._core.texts, call, fn, begin, tokens))  # type: ignore[no-any-return]

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
    ) -> Calls:
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
        view = Calls.__new__(Calls)
        view._core = self._core  # noqa: SLF001  another view of this very object
        view._options = replace(  # noqa: SLF001  same
            options,
            role=role or options.role,
            consistency=consistency or options.consistency,
            fallback=fallback or options.fallback,
            timeout=options.timeout if timeout is None else timeout,
            limit=options.limit if timeout is None else "using(timeout=)",
            wait=options.wait if writes is None else writes == "wait",
            idempotent=options.idempotent if idempotent is None else idempotent,
        )
        return view

    @asynccontextmanager
    async def causal(self) -> AsyncIterator[None]:
        """Open a context of its own: its reads see its own writes, and nobody else's hold them on the primary.

        Child tasks belong to it. Open one per web request or job: without one, all calls of the process share the
        guard's own context.
        """
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
            raise dress(GuardClosed("the guard is not open: use `async with guard:` or `await guard.open()` first"))
        return engine

    def _call(
        self, engine: Engine, *, reads: bool, work: Work, timeout: float | None, text: Text | None = None
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
            reads=reads,
            work=work,
            box=core.current_box(),
            deadline=until,
            limit=limit,
            began=now,
            consistency=options.consistency,
            fallback=options.fallback,
            role=options.role if text is None else text.hint or options.role or text.rule,
            group=text.group if text is not None and options.role is None else None,
            wait=options.wait,
            text=text,
        )

    def _reads(self, text: Text) -> bool:
        role = self._options.role
        if text.hint is not None:
            return text.reads
        role = role or text.rule
        return role != "primary" and (text.reads or (role == "replica" and text.liftable))

    async def _run(
        self,
        method: str,
        query: str,
        args: tuple[Any, ...],
        limit: float | None,
        *,
        final: bool = False,
        kind: type[Run] = Run,
        **extra: Any,
    ) -> Any:
        engine = self._engine()
        text = self._core.texts.get(query) or self._core.texts.learn(query)
        work = replace(text.work, final=True) if final else text.work
        if self._options.idempotent:
            work = replace(work, idempotent=True)
        call = self._call(engine, reads=self._reads(text), work=work, timeout=limit, text=text)
        writes = work.stake is not Stake.READ
        may_write = writes or text.doubtful
        run = kind(
            method,
            args,
            extra,
            text.touched,
            writes=may_write,
            controls=text.controls,
            recalls=text.recalls,
            until=call.deadline,
        )
        job: Job = run
        tokens = self._core.tokens
        if tokens is not None and writes:
            form = text.token
            if form is Token.CTE and kind is not Run:
                form = Token.BLOCK
            plain = is_plain(text.statement, query, text.touched)
            job = _carrying(tokens, call, run, query, form, rows=text.statement.returns_rows, plain=plain)
        if not text.ddl:
            return await engine.call(call, job)
        self._core.texts.changed()
        try:
            return await engine.call(call, job)
        finally:
            self._core.texts.changed()

    async def _many(self, method: str, query: str, args: Any, limit: float | None, **extra: Any) -> Any:
        rows, readable = again(args)
        return await self._run(method, query, (query, rows), limit, final=not readable, kind=Feed, **extra)

    async def _copy_query(
        self, method: str, query: str, args: tuple[Any, ...], limit: float | None, **extra: Any
    ) -> Any:
        return await self._run(method, query, args, limit, final=True, kind=Copy, **extra)

    async def _copy(self, method: str, table: str, limit: float | None, **extra: Any) -> Any:
        reads = method == "copy_from_table"
        # What is read from a path or a buffer can be read again; what was written cannot be taken back.
        final = reads or not isinstance(extra.get("source"), str | bytes | os.PathLike | bytearray | memoryview)
        if "records" in extra:
            extra["records"], readable = again(extra["records"])
            final = not readable
        work = Work(stake=Stake.READ if reads else Stake.WRITE, final=final)
        engine = self._engine()
        call = self._call(engine, reads=reads, work=work, timeout=limit)
        run = Copy(method, (table,), extra, Touch.SETTINGS, writes=not reads, until=call.deadline)
        job: Job = run
        tokens = self._core.tokens
        if tokens is not None and not reads:
            job = _carrying(tokens, call, run, f"COPY {table}", Token.BLOCK, rows=False, plain=False)
        return await engine.call(call, job)


class Acquiring:
    """What `acquire` and `transaction` return: for ``async with``, or ``await``."""

    __slots__ = ("_begin", "_calls", "_limit", "_session", "_transaction")

    def __init__(self, calls: Calls, limit: float | None, begin: dict[str, Any] | None) -> None:
        self._calls = calls
        self._limit = limit
        self._begin = begin
        self._session: Session | None = None
        self._transaction: Transaction | None = None

    async def _take(self) -> Connection:
        calls, begin = self._calls, self._begin
        reads = begin is not None and begin["readonly"] and begin["isolation"] != "serializable"
        reads = reads or calls._options.role == "replica"  # noqa: SLF001  two halves of one thing
        # Entering a block leaves nothing behind, so that it may be repeated as a read is.
        engine = calls._engine()  # noqa: SLF001  same
        call = calls._call(engine, reads=reads, work=Work(stake=Stake.READ), timeout=self._limit)  # noqa: SLF001  same
        options, core = calls._options, calls._core  # noqa: SLF001  same
        job = Checkout(engine, core.texts, call, (options.timeout, options.limit), begin, core.tokens)
        self._session, self._transaction = await engine.call(call, job)
        self._session.lend(core.current_box)
        return Connection(self._session)

    def __await__(self) -> Generator[Any, None, Connection]:
        return self._take().__await__()

    async def __aenter__(self) -> Connection:
        return await self._take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            if self._transaction is None:
                if error is not None and not isinstance(error, Exception) and not session.closed:
                    session.con.terminate()
            elif error is None:
                await self._transaction.commit()
            else:
                await self._transaction.abandon(error)
        finally:
            session.give_back()


def _carrying(tokens: Tokens, call: Call, run: Run, query: str, form: Token, *, rows: bool, plain: bool) -> Job:
    """Return *run* so that it carries a token, if its text allows one."""
    if form is Token.NONE or not tokens.on:
        return run
    call.reserve = tokens.reserve
    method, args, extra = run.method, run.args[1:], run.extra
    return Written(
        run, Sender(tokens, call, query, form, rows=rows, plain=plain, method=method, args=args, extra=extra)
    )


def _one_of(name: str, value: str | None, *allowed: str) -> None:
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
