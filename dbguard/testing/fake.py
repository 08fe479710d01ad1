"""A fake driver: nodes whose attempts end as they are told, without a server, a socket or a wait.

`FakeDriver` answers the `Attempt`s of a plan, `known_state` is a `GuardState` that has seen its cluster, and
`ThreadRunner` runs plans over both on as many threads as one likes: the way of a synchronous guard, without a driver.

    clock = ManualClock()
    driver = FakeDriver(clock)
    driver.on("b", lost, 1)                 # the first attempt on b loses its connection, the next returns 1
    ThreadRunner(known_state(clock), driver).call(read)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dbguard.core.breaker import BreakerPolicy
from dbguard.core.causal import Box
from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.gate import Gate
from dbguard.core.merge import Topology
from dbguard.core.outcome import StillOpen
from dbguard.core.plan import Attempt, Bury, Call, Done, Pause, Resolve, Stopped, recover
from dbguard.core.retry import RetryPolicy, Stake, Work
from dbguard.core.router import ReadPolicy
from dbguard.core.state import GuardState
from dbguard.core.topology import Instance, Missed, Role, Sighting
from dbguard.runtime.backoff import Backoff
from dbguard.runtime.colour import now
from dbguard.runtime.drive import drive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbguard.core.plan import Reply
    from dbguard.core.route import Rng
    from dbguard.testing.clock import ManualClock

__all__ = [
    "DriverError",
    "Ending",
    "FakeDriver",
    "ThreadRunner",
    "answered",
    "conflict",
    "demoted",
    "ended_by_us",
    "known_state",
    "lost",
    "new_call",
    "refused",
    "seen",
    "timed_out",
    "unsent",
]

Ending = Callable[[str], Failure]
"""How an attempt on the node of that name fails."""


class DriverError(Exception):
    """What the fake driver raises; *sqlstate* is None if the server said nothing."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def _failure(node: str, phase: Phase, family: Family, what: str, code: str | None = None, **more: bool) -> Failure:
    cause = DriverError(f"{what} on {node}", code)
    return Failure(node=node, phase=phase, family=family, cause=cause, sqlstate=code, **more)


def refused(node: str) -> Failure:
    """Nobody took the connection: nothing was sent."""
    return _failure(node, Phase.CONNECT, Family.HARD, "connection refused", broken=True)


def unsent(node: str) -> Failure:
    """The pooled connection was dead before anything was sent on it."""
    return _failure(node, Phase.UNSENT, Family.HARD, "connection is closed", broken=True)


def lost(node: str) -> Failure:
    """The connection was lost after sending."""
    return _failure(node, Phase.SENT, Family.HARD, "connection was lost", broken=True)


def ended_by_us(node: str) -> Failure:
    """The lease was ended after sending, by a drain or a fence of the guard's own."""
    return _failure(node, Phase.SENT, Family.HARD, "connection was terminated", broken=True, ours=True)


def timed_out(node: str) -> Failure:
    """No answer came in time."""
    return _failure(node, Phase.SENT, Family.SOFT, "no answer in time", broken=True, timed_out=True)


def demoted(node: str) -> Failure:
    """The node is in recovery, and says so (25006)."""
    return _failure(node, Phase.ERROR, Family.ROLE, "cannot execute in a read-only transaction", "25006")


def conflict(node: str) -> Failure:
    """The transaction met another one (40001)."""
    return _failure(node, Phase.ERROR, Family.CONTENTION, "could not serialize access", "40001")


def answered(node: str) -> Failure:
    """The server did its job and said no (23505)."""
    return _failure(node, Phase.ERROR, Family.ANSWERED, "duplicate key value", "23505")


class FakeDriver:
    """Nodes whose attempts end as told, in that order, and then succeed with None.

    clock: moved by *takes* seconds for each attempt; 0 by default.
    attempts: the names of the nodes that were tried, in order.
    tokens: each attempt of a write carries a token, token 1 and so on, and is known to return ``"kept"``.
    answers: what is said of writes of unknown fate, in order. asked: the questions.
    """

    def __init__(self, clock: ManualClock, *, takes: float = 0.0) -> None:
        self.clock = clock
        self.takes = takes
        self.attempts: list[str] = []
        self.tokens = False
        self.asked: list[Resolve | Bury] = []
        self._endings: dict[str, deque[Any]] = {}
        self.answers: deque[Reply] = deque()

    def resolve(self, step: Resolve | Bury) -> Reply:
        """Answer a question about a write's fate: the next of *answers*; where there is none, it stays open."""
        self.asked.append(step)
        return self.answers.popleft() if self.answers else StillOpen("nobody knows")

    def on(self, node: str, *endings: Any) -> None:
        """Let the next attempts on *node* end so: an `Ending`, or the value that the attempt returns."""
        self._endings.setdefault(node, deque()).extend(endings)

    def attempt(self, node: str) -> Done | Failure:
        """Make one attempt on *node*."""
        self.clock.advance(self.takes)
        self.attempts.append(node)
        endings = self._endings.get(node)
        ending = endings.popleft() if endings else None
        return ending(node) if callable(ending) else Done(ending)


class ThreadRunner:
    """Runs plans on the threads that call it. One lock guards state and driver; nobody holds it while he waits.

    history: every attempt (its node), pause (``"backoff"``, ``"gate"``) and end of each call, in order.
    """

    def __init__(self, state: GuardState, driver: FakeDriver) -> None:
        self.state = state
        self.driver = driver
        self.history: list[str] = []
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self._turns: list[object] = []

    def call(self, call: Call) -> Any:
        """Make *call*; returns its value or raises what the plan raises."""
        backoff = Backoff(self.state.retry, call.began)

        async def attempt(step: Attempt) -> Done | Failure:
            with self.lock:
                return self._attempt(call, step)

        async def pause(step: Pause) -> Stopped | None:
            with self._changed:
                self.history.append("gate" if step.gate else "backoff")
                if step.gate:
                    self._wait(call)
                    return None
                seconds = backoff.seconds(step, self.state.clock())
                if seconds is None:
                    return Stopped()
                self.driver.clock.advance(seconds)
                return None

        async def resolve(step: Resolve | Bury) -> Reply:
            with self.lock:
                self.history.append("resolve" if isinstance(step, Resolve) else "bury")
                return self.driver.resolve(step)

        return now(drive(recover(call, self.state), attempt, pause, resolve, self.lock))

    def tell(self, *results: Sighting | Missed, full: bool = True) -> None:
        """Let a probe say so, and wake who waits for it."""
        with self._changed:
            self.state.probed(results, full=full)
            self._give()

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake those whose deadline it was."""
        with self._changed:
            self.driver.clock.advance(seconds)
            self.state.tick()
            self._give()

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        with self.lock:
            return self.state.waiting

    def _attempt(self, call: Call, step: Attempt) -> Done | Failure:
        state = self.state
        node = state.nodes[step.node]
        generation, reign = node.breaker.generation, state.view.reign
        reply = self.driver.attempt(step.node)
        self.history.append(step.node)
        wrote = call.work.stake is not Stake.READ
        if self.driver.tokens and wrote:
            call.token, call.result = f"token {len(self.driver.attempts)}", Done("kept")
        if isinstance(reply, Done):
            state.succeeded(node, generation)
        else:
            state.failed(reply, generation)
            wrote = wrote and reply.phase not in (Phase.CONNECT, Phase.UNSENT)
        if wrote:
            state.wrote(call.box, reign)
        return reply

    def _wait(self, call: Call) -> None:
        """Wait for a turn at the gate, until the call's deadline. Lock held, given up while waiting."""
        refusal = self.state.admit(call)
        if refusal is not None:
            raise refusal
        turn = object()
        self._turns.append(turn)
        self.state.waiting = len(self._turns)
        self._changed.wait_for(lambda: turn not in self._turns or self.state.clock() >= call.deadline)
        if turn in self._turns:
            self._turns.remove(turn)
            self.state.waiting = len(self._turns)
        else:
            self.state.gate.returned(self.state.gate.releases)  # what it does takes no time
            self._give()

    def _give(self) -> None:
        """Give turns at the gate's pace. Lock held."""
        go, _ = self.state.gate.release(self.state.clock(), len(self._turns))
        del self._turns[:go]
        self.state.waiting = len(self._turns)
        self._changed.notify_all()


def seen(
    node: str, role: Role, at: float, *, timeline: int = 1, position: int = 1_000, started: str = "first", **more: Any
) -> Sighting:
    """Return what a healthy node of the cluster says when it is asked at *at*."""
    return Sighting(
        node=node,
        at=at,
        role=role,
        instance=Instance("42", f"{node} {started}"),
        timeline=timeline,
        control_timeline=1,
        position=position,
        streaming=None if role is Role.PRIMARY else True,
        fresh=True,
        **more,
    )


def known_state(
    clock: ManualClock,
    primary: str | None = "a",
    replicas: Sequence[str] = ("b", "c"),
    *,
    rng: Rng | None = None,
    gate: Gate | None = None,
    retry: RetryPolicy | None = None,
    reads: ReadPolicy | None = None,
) -> GuardState:
    """Return a state that has seen one full round of a healthy cluster; *primary* None: it found replicas alone."""
    names = [name for name in (primary, *replicas) if name is not None]
    state = GuardState(
        Topology(names, new_mark=_Marks()),
        clock=clock,
        rng=rng or _First(),
        retry=retry or RetryPolicy(wait=_no_wait),
        breaker=BreakerPolicy(),
        gate=gate or Gate(),
        reads=reads or ReadPolicy(),
    )
    now = clock()
    state.probed([seen(name, Role.PRIMARY if name == primary else Role.REPLICA, now) for name in names], full=True)
    state.take_effects()
    state.gate.release(now, 0)
    return state


def new_call(state: GuardState, stake: Stake = Stake.READ, *, timeout: float = 30.0, **options: Any) -> Call:
    """Return a call that begins now, and tell the budget of it. *options*: fields of `Call` and of `Work`."""
    now = state.clock()
    state.budget.deposit(now)
    work = {name: options.pop(name) for name in Work.__slots__ if name in options}
    reads = options.pop("reads", stake is Stake.READ)
    box = options.pop("box", None) or Box()
    return Call(reads=reads, work=Work(stake=stake, **work), box=box, deadline=now + timeout, began=now, **options)


def _no_wait(state: object) -> float:  # noqa: ARG001  a tenacity strategy's signature
    return 0.01


class _First:
    """Chance that always says the same: of several, the first."""

    def random(self) -> float:
        return 0.0


class _Marks:
    """Marks that can be read: m1, m2."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"m{self._count}"
