"""The calls of `dbguard.pg.calls`, for threads."""

from __future__ import annotations

import warnings
from asyncio import _get_running_loop  # as documented for frameworks: no exception where there is none
from contextlib import contextmanager
from inspect import (
    currentframe,
    isasyncgenfunction,
    isawaitable,
    iscoroutine,
    iscoroutinefunction,
    isgeneratorfunction,
)
from typing import TYPE_CHECKING, Any

from dbguard import calling
from dbguard.errors import GuardClosed
from dbguard.pg.calls import AsyncDialect, PsycopgCalling
from dbguard.pg.held import Held
from dbguard.pg.sync_connection import Connection
from dbguard.runtime.colour import now

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType, TracebackType
    from typing import TypeVar

    from psycopg.abc import Params, Query

    from dbguard.calling import Options
    from dbguard.core.reasons import Route
    from dbguard.errors import DbGuardError
    from dbguard.pg.result import Result
    from dbguard.runtime.home import Home
    from dbguard.session import Session

    T = TypeVar("T")

__all__ = ["SyncBorrowing", "SyncCalls", "ThreadsCalling", "ThreadsDialect"]


NOT_OPEN = "the guard is not open: use `with guard:` or `guard.open()` first"

IN_A_LOOP = (
    "a SyncGuard is used in the thread of a running event loop, which stands still meanwhile: use dbguard.PsycopgGuard "
    "there, or asyncio.to_thread"
)


class ThreadsDialect(AsyncDialect):
    """What psycopg's facade for threads calls things; one for all views of a guard.

    home: where what is nobody's call runs; None before the guard was opened. warned: that a loop is held up was told.
    """

    home: Home | None = None
    warned = False

    async def apply(self, fn: Callable[[Any], Any], session: Session, attempt: int) -> Any:
        """See `Dialect.apply`."""
        made = fn(Connection(Held(session, depth=1), attempt))
        if isawaitable(made):
            if iscoroutine(made):
                made.close()
            raise _not_a_function(fn)
        return made


class ThreadsCalling(PsycopgCalling):
    """The inner side of a view of `SyncGuard`: the calls, as coroutines that never suspend."""

    def _with(self, options: Options) -> Any:
        view = ThreadsCalling.__new__(ThreadsCalling)
        view._core, view._options = self._core, options  # noqa: SLF001  another view of this very object
        return view

    def _not_open(self) -> DbGuardError:
        shut = self._core.shut
        return self._core.dialect.dress(GuardClosed(NOT_OPEN if shut == calling.NOT_OPEN else shut))


class SyncCalls:
    """Statements, transactions and connections, over the guard's nodes, for threads.

    *timeout*: seconds for the whole call.
    """

    def __init__(self, inner: PsycopgCalling) -> None:
        self._inner: Any = inner

    def _now(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a call on this thread."""
        if _get_running_loop() is not None:
            self._in_a_loop(work)
        return now(work)

    def _in_a_loop(self, work: Coroutine[Any, Any, Any]) -> None:
        """Refuse a call in a listener, which would wait for itself; tell others, once, that they hold up an event loop."""
        dialect: ThreadsDialect = self._inner._core.dialect  # noqa: SLF001  the same object, from outside
        if dialect.home is not None and dialect.home.colour.is_own_thread:
            work.close()
            dialect.home.colour.check_thread()
        if not dialect.warned:
            dialect.warned = True
            warnings.warn(IN_A_LOOP, RuntimeWarning, stacklevel=_level(currentframe()))

    def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
        timeout: float | None = None,
    ) -> Result[Any]:
        """Execute a statement by itself, committed; routed, and repeated where that is safe. Its rows are already there.

        query, params, prepare, binary: as of `psycopg.Connection.execute`. timeout: seconds for the whole call,
        waiting and repeats included; default: the guard's.
        """
        return self._now(self._inner._statement(query, params, timeout, {"prepare": prepare, "binary": binary}))  # noqa: SLF001  same

    def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Execute a statement as `execute` does; return its first row, or None."""
        return self.execute(query, params, prepare=prepare, binary=binary, timeout=timeout).fetchone()

    def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """Execute a statement as `execute` does; return its rows."""
        return self.execute(query, params, prepare=prepare, binary=binary, timeout=timeout).fetchall()

    def connection(self, timeout: float | None = None, *, role: str | None = None) -> SyncBorrowing:
        """Take a connection, as of `psycopg_pool.ConnectionPool`: a transaction, committed when the block ends.

        timeout: seconds for taking it. role: ``replica``: a read-only one, to a replica. Default: to the primary.
        Nothing that is done on it is repeated. Raises `OutcomeUnknown` if the COMMIT was sent and its answer lost.
        """
        return SyncBorrowing(self, timeout, role, None)

    def getconn(self, timeout: float | None = None) -> Connection[Any]:
        """Take a connection, as of `psycopg_pool.ConnectionPool`; give it back with `putconn`, whatever happens.

        timeout: seconds for taking it. One that is dropped instead is ended when Python collects it, and an event tells
        (`ConnectionDropped`). Better use `connection`, or `transaction`.
        """
        return Connection._out_of_blocks(self._now(self._inner._take(timeout)))  # noqa: SLF001  same

    def putconn(self, conn: Connection[Any]) -> None:
        """Give back a connection taken with `getconn`; what was not committed is rolled back, and nothing is raised for that.

        Raises `ValueError` for one that was not taken so, or was given back already.
        """
        self._now(self._inner._put(conn))  # noqa: SLF001  same

    def transaction(
        self,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> SyncBorrowing:
        """Open a block on one connection, committed at its end, rolled back on an exception; never repeated.

        isolation: ``read_committed``, ``repeatable_read``, ``serializable``; None: the server's default.
        readonly: a block that only reads may go to a replica, unless it is serializable.
        timeout: seconds for taking the connection and BEGIN.

        Raises `OutcomeUnknown` if the COMMIT was sent and its answer lost; with any other error nothing was committed.
        """
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return SyncBorrowing(self, timeout, None, begin)

    def run_in_transaction(
        self,
        fn: Callable[[Connection[Any]], T],
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
    ) -> T:
        """Run *fn*, which must have no effect outside the transaction, in one; repeat it whole where that is safe.

        fn: gets the connection; its `attempt` counts from 1. What a failed attempt returned is never seen.
        isolation, readonly, deferrable: as in `transaction`. timeout: seconds for all attempts together.

        Repeated on serialization failures, deadlocks, a connection lost before COMMIT, and a change of roles. Raises
        what *fn* raises; `OutcomeUnknown` if a COMMIT was sent and its answer lost; `TypeError` if *fn* is no plain function.
        """
        if not callable(fn) or iscoroutinefunction(fn) or isasyncgenfunction(fn) or isgeneratorfunction(fn):
            raise _not_a_function(fn)
        begin = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return self._now(self._inner._run_function(fn, begin, timeout))  # type: ignore[no-any-return]  # noqa: SLF001  same

    def using(
        self,
        *,
        role: str | None = None,
        consistency: str | None = None,
        fallback: str | None = None,
        timeout: float | None = None,
        writes: str | None = None,
        idempotent: bool | None = None,
    ) -> SyncCalls:
        """Return the same guard with other options: a cheap, immutable view. See `dbguard.Guard.using`."""
        return SyncCalls(
            self._inner.using(
                role=role,
                consistency=consistency,
                fallback=fallback,
                timeout=timeout,
                writes=writes,
                idempotent=idempotent,
            )
        )

    @contextmanager
    def causal(self) -> Iterator[None]:
        """Open a context of its own: its reads see its own writes, and nobody else's hold them on the primary.

        Open one per request or job: without one, all calls of the process share the guard's own context.
        """
        with self._inner._own_box():  # noqa: SLF001  same
            yield

    def route(self, query: Query) -> Route:
        """Say where *query* would go now, or why it would wait or fail. Sends nothing."""
        return self._inner.route(query)  # type: ignore[no-any-return]  # as the guard inside says


class SyncBorrowing:
    """What `connection` and `transaction` return, for ``with``."""

    def __init__(self, calls: SyncCalls, timeout: float | None, role: str | None, begin: dict[str, Any] | None) -> None:
        self._calls = calls
        self._borrowing = calls._inner._borrow(timeout, role, begin)  # noqa: SLF001  two halves of one thing

    def __enter__(self) -> Connection[Any]:
        return Connection(self._calls._now(self._borrowing.enter()))  # noqa: SLF001  same

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        ended: bool = self._calls._now(self._borrowing.exit(error))  # noqa: SLF001  same
        return ended


def _level(frame: FrameType | None) -> int:
    """Return the ``stacklevel`` for a warning in *frame* that names the line of the application's."""
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in {"dbguard", "contextlib"}:
        frame, level = frame.f_back, level + 1
    return level


def _not_a_function(fn: object) -> TypeError:
    """Return the error for what `run_in_transaction` was given in the place of a plain function."""
    return TypeError(f"run_in_transaction of a SyncGuard needs a plain function that takes the connection, not {fn!r}")
