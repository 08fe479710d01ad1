"""asyncpg in the simulation: connections and pools with its methods and its exceptions, over simulated ones.

Only what `dbguard.drivers.asyncpg` and the clients of the simulation use is here; the statements are `READ`, `WRITE`
and `CHANGE`, and the questions of the monitor.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from heapq import heappop, heappush
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from dbguard.core.topology import Role
from dbguard.drivers import outcome_sql
from dbguard.drivers.base import TooOld
from dbguard.drivers.control import BURY
from dbguard.drivers.probe import END_OF_RECOVERY
from dbguard.drivers.registry import DURABLE
from dbguard.testing.simulation.agenda import LATE
from dbguard.testing.simulation.messages import Answer, Request
from dbguard.testing.simulation.network import Connection, dial

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from dbguard.core.state import GuardState
    from dbguard.testing.simulation.judge import Judge
    from dbguard.testing.simulation.network import Link
    from dbguard.testing.simulation.servers import Server
    from dbguard.testing.simulation.world import World

__all__ = ["CHANGE", "READ", "WRITE", "Dial", "LoopAgenda", "LoopSignal", "SimulatedPool"]

READ = "SELECT value FROM item"
WRITE = "INSERT INTO item VALUES ($1, $2)"
CHANGE = "UPDATE item SET value = $1 WHERE key = $2"

MARKED = re.compile(r"SELECT (\d+), '([0-9a-f-]{36})'")
TOKEN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")

ERRORS: dict[str, type[asyncpg.PostgresError]] = {
    "23505": asyncpg.UniqueViolationError,
    "25006": asyncpg.ReadOnlySQLTransactionError,
    "40001": asyncpg.SerializationError,
    "53300": asyncpg.TooManyConnectionsError,
    "55P03": asyncpg.LockNotAvailableError,
    "57P01": asyncpg.AdminShutdownError,
    "57P03": asyncpg.CannotConnectNowError,
}


class LoopSignal:
    """A signal that a task can wait for."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()

    @property
    def done(self) -> bool:
        """Whether it was woken, or nobody waits for it any more."""
        return self.future.done()

    def wake(self, value: Any = None) -> None:
        """Let the task go on."""
        if not self.future.done():
            self.future.set_result(value)

    wake_last = wake


class LoopAgenda:
    """The agenda of the model, kept by an event loop. What is due at the same moment keeps its order here too."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._turns = count()
        self._timer: asyncio.TimerHandle | None = None
        self.clock = loop.time
        self.happened = 0

    @property
    def now(self) -> float:
        """The loop's time."""
        return self._loop.time()

    def at(self, when: float, act: Callable[..., Any], *args: Any) -> None:
        """Put down that ``act(*args)`` happens at *when*."""
        heappush(self._heap, (when, next(self._turns), act, args))
        if self._timer is None or when < self._timer.when():
            self._set_timer(when)

    def after(self, delay: float, act: Callable[..., Any], *args: Any) -> None:
        """Put down that ``act(*args)`` happens in *delay* seconds."""
        self.at(self.now + delay, act, *args)

    def signal(self, until: float | None = None) -> LoopSignal:
        """Return a signal that says `LATE` at *until*."""
        signal = LoopSignal(self._loop)
        if until is not None:
            self.at(until, signal.wake, LATE)
        return signal

    def sleep(self, seconds: float) -> LoopSignal:
        """Return a signal that comes in *seconds*."""
        return self.signal(self.now + seconds)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._act)

    def _act(self) -> None:
        """Let happen what is due."""
        self._timer = None
        heap = self._heap
        while heap and heap[0][0] <= self.now:
            _, _, act, args = heappop(heap)
            self.happened += 1
            act(*args)
        if heap:
            self._set_timer(heap[0][0])


class SimulatedConnection:
    """A connection with asyncpg's methods.

    guard_tag: set by the guard's pool. last_status: what the last command said.
    """

    def __init__(self, connection: Connection, world: World, judge: Judge, state: GuardState) -> None:
        self.connection = connection
        self.guard_tag: Any = None
        self._world = world
        self._judge = judge
        self._state = state
        self._in_transaction = False
        self._pending: list[str] = []
        self._claim: Any = None
        self._claimed_under: Any = None
        self._listeners: dict[Callable[[Any, Any], None], None] = {}
        self._standby = connection.server.role is Role.REPLICA

    # ------------------------------------------------------------------ asyncpg's own

    @property
    def guarded(self) -> SimulatedConnection:
        """This object itself."""
        return self

    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        return self.connection.closed

    def terminate(self) -> None:
        """End it at once."""
        self.connection.end()

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002  as asyncpg's
        """End it in order."""
        await asyncio.sleep(self.connection.link.delay)
        self.connection.end()

    async def reset(self, *, timeout: float | None = None) -> None:
        """Make the session as new."""
        await self._ask(Request("rollback"), timeout)
        self._in_transaction = False

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._in_transaction

    def get_settings(self) -> SimpleNamespace:
        """What the server said of itself with its last answer."""
        return SimpleNamespace(in_hot_standby="on" if self._standby else "off")

    def add_log_listener(self, listener: Callable[[Any, Any], None]) -> None:
        """Let *listener* hear the server's notices."""
        self._listeners[listener] = None

    def remove_log_listener(self, listener: Callable[[Any, Any], None]) -> None:
        """Let it hear no more."""
        self._listeners.pop(listener, None)

    def transaction(self, **options: Any) -> SimulatedTransaction:  # noqa: ARG002  as asyncpg's
        """Return a transaction, not begun."""
        return SimulatedTransaction(self)

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run one of the statements."""
        if query == WRITE or outcome_sql.CTE_NAME in query:
            token = args[2] if len(args) > 2 else None
            await self._commits(Request("write", args[0], args[1], token), [args[0]], timeout)
        elif query.startswith(outcome_sql.CLAIM_BEGIN):
            self._claimed_under = self._state.view.reign
            await self._ask(Request("begin"), timeout)
        elif query == "COMMIT" and self._claim is not None:
            self._conclude()
        elif query.startswith("SET TRANSACTION"):
            (timeline, mark), *_ = MARKED.findall(query)
            await self._ask(Request("mark", (int(timeline), mark.replace("-", ""))), timeout)
        elif query == "ROLLBACK":
            await self.end("rollback")
        elif query == CHANGE:
            await self._ask(Request("change", args[0], args[1]), timeout)
            self._pending.append(args[0])
        elif query not in {outcome_sql.REIGN_BEGIN, "COMMIT"} and not query.startswith("RESET"):
            raise asyncpg.PostgresSyntaxError(f"the simulation does not know {query!r}")
        return "OK"

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]:
        """Run `READ`, which is given the values that its reader expects; or end a backend."""
        if query == READ:
            answer = await self._ask(Request("read", args[0]), timeout)
            if answer.value is not None:
                self._judge.reads(answer.value, self.connection.server, self._world.agenda.now)
            return []
        if query == outcome_sql.BLOCKERS:
            holder = (await self._ask(Request("blockers", args[0]), timeout)).value
            return (
                []
                if holder is None
                else [{"pid": holder.pid, "started": holder.started, "wait_event": holder.waits_for}]
            )
        pid, started, doomed = args
        if started != self.connection.server.born:
            return []
        answer = await self._ask(Request("end", (pid, doomed)), timeout)
        return [] if answer.value else [False]

    async def fetchval(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Claim a token, or one of the questions beside it; or ask whether the session keeps notices back: it does not."""
        if query == outcome_sql.CLAIM_HORIZON:
            return UUID(int=0)  # the server looks at it when the claim is made
        if query == DURABLE:
            return "on"
        if query != outcome_sql.CLAIM:
            await self._ask(Request("read", ()), timeout)
            return False
        token = str(args[0])
        answer = await self._ask(Request("claim", token=token), timeout)
        self._claim = token, answer
        return answer.value

    def _conclude(self) -> None:
        """End a claim's transaction, whose answer has come already: tell whether its standby was waited for."""
        (token, answer), self._claim = self._claim, None
        state, now = self._state, self._world.agenda.now
        if answer.unproven:
            self._notice()
        elif state.view.reign == self._claimed_under:
            self._judge.resolves(token, answer.value, self.connection.server, state.view, now)

    def _notice(self) -> None:
        for listener in self._listeners:
            listener(self, SimpleNamespace(server_source_function="SyncRepWaitForLSN"))

    def get_server_pid(self) -> int:
        """The backend's number."""
        backend = self.connection.backend
        return backend.pid if backend is not None else 0

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> dict[str, Any] | None:
        """Ask the server who it is; or end a backend of one server."""
        if query == BURY:
            pid, _, doomed, started = args
            if started != self.connection.server.instance.started:
                return None
            return {"gone": (await self._ask(Request("end", (pid, doomed)), timeout)).value}
        server: Server = (await self._ask(Request("ask"), timeout)).value
        if query == outcome_sql.REIGN_READ:
            marked = server.marked
            return {"timeline": marked.timeline, "mark": UUID(marked.mark)} if marked.timeline else None
        seen = server.sighting(self.connection.link.node, 0.0, fresh=True)
        backend = self.connection.backend
        told = {
            "recovery": seen.role is Role.REPLICA,
            "started": seen.instance.started,
            "timeline": seen.timeline,
            "position": seen.position,
            "flushed": seen.flushed,
            "received": seen.timeline if seen.role is Role.REPLICA else None,
            "streaming": seen.streaming,
            "read_only": False,
            "synchronous": server.sync,
            "waits": True,
            "address": server.name,
            "pid": backend.pid if backend is not None else 0,
            "backend_start": server.born,
            "plain_role": True,
            "system_id": seen.instance.system_id,
            "control_timeline": seen.control_timeline,
            "branch_timeline": None if seen.branched is None else seen.timeline,
            "branch": None if seen.branched is None else seen.branched + END_OF_RECOVERY,
        }
        return defaultdict(lambda: None, told)  # what is asked beside, the server does not tell

    # ------------------------------------------------------------------ within

    async def begin(self) -> None:
        """Send BEGIN."""
        await self._ask(Request("begin"), None)
        self._in_transaction, self._pending = True, []

    async def end(self, kind: str) -> None:
        """Send COMMIT or ROLLBACK."""
        pending, self._pending = self._pending, []
        if kind == "commit":
            found = TOKEN.search(self.guard_tag.ending)
            await self._commits(Request(kind, pending, token=found[0] if found else None), pending, None)
        else:
            await self._ask(Request(kind), None)
        self._in_transaction = False

    async def _commits(self, request: Request, values: list[str], timeout: float | None) -> None:
        """Send what commits *values*, and let the judge know."""
        judge, now = self._judge, self._world.agenda.now
        if not self.is_closed():
            judge.sends(values, now)
            if request.token is not None:
                judge.carries(request.token, values[0])
        try:
            answer = await self._ask(request, timeout)
        except asyncpg.PostgresError:
            if not self.is_closed():
                judge.refuses(values)
            raise
        if answer.unproven and self._listeners:
            self._notice()
        else:
            judge.acknowledges(values, self.connection.server, answer, self._state.view, self._world.agenda.now)

    async def _ask(self, request: Request, timeout: float | None) -> Answer:
        """Send one request, and raise what asyncpg would raise."""
        connection = self.connection
        if connection.closed:
            raise asyncpg.InterfaceError("connection is closed")
        signal: Any = connection.send(request, None if timeout is None else self._world.agenda.now + timeout)
        answer = await signal.future
        if answer is LATE:
            connection.end()
            raise TimeoutError
        if answer.dead:
            raise ERRORS.get(answer.code, asyncpg.ConnectionDoesNotExistError)("connection was closed")
        self._standby = connection.server.role is Role.REPLICA
        if answer.code == "pruned":
            raise TooOld("its token is older than what the pruner has kept")
        if answer.code is not None:
            error: Any = ERRORS[answer.code](f"error {answer.code}")
            if answer.code == "23505":
                error.schema_name, error.table_name, error.constraint_name = outcome_sql.CONSTRAINT
            raise error
        return answer  # type: ignore[no-any-return]  # as a server of ours sends it


class SimulatedTransaction:
    """A transaction with asyncpg's methods."""

    def __init__(self, con: SimulatedConnection) -> None:
        self._con = con

    async def start(self) -> None:
        """Begin."""
        await self._con.begin()

    async def commit(self) -> None:
        """Commit."""
        await self._con.end("commit")

    async def rollback(self) -> None:
        """Roll back."""
        await self._con.end("rollback")


class Dial:
    """Opens connections to one node, as `asyncpg.connect` does."""

    def __init__(self, link: Link, number: Callable[[], int], world: World, judge: Judge, state: GuardState) -> None:
        self._link = link
        self._number = number
        self._known = world, judge, state

    async def __call__(self, *, timeout: float = 5.0) -> SimulatedConnection:
        """Open a connection; *timeout* in seconds."""
        signal: Any = dial(self._link, self._link.agenda.now + timeout, self._number())
        answer = await signal.future
        if isinstance(answer, Connection):
            return SimulatedConnection(answer, *self._known)
        if answer is LATE:
            raise TimeoutError
        if answer.code == "refused":
            raise ConnectionRefusedError
        if answer.code is None:
            raise ConnectionResetError
        raise ERRORS[answer.code](f"error {answer.code}")


class SimulatedPool:
    """A pool with asyncpg's methods, as far as the guard's own pools use them."""

    def __init__(self, connect: Callable[[], Awaitable[SimulatedConnection]]) -> None:
        self._connect = connect
        self._idle: list[SimulatedConnection] = []

    def __await__(self) -> Generator[Any, None, SimulatedPool]:
        yield from ()
        return self

    async def acquire(self) -> SimulatedConnection:
        """Return a connection; dials where none is at hand."""
        while self._idle:
            con = self._idle.pop()
            if not con.is_closed():
                return con
        return await self._connect()

    async def release(self, con: SimulatedConnection, *, timeout: float | None = None) -> None:
        """Take a connection back."""
        if not con.is_closed():
            await con.reset(timeout=timeout)
            self._idle.append(con)

    def get_idle_size(self) -> int:
        """Connections at hand."""
        return len(self._idle)

    def terminate(self) -> None:
        """End all connections at hand."""
        for con in self._idle:
            con.terminate()
