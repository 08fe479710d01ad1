"""The application in the simulation: clients that read, write and run transactions, and hold the guard to its word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.causal import Box
from dbguard.core.outcome import RESERVE, NotApplied, commit_until, new_token
from dbguard.core.plan import Call, Done, Resolve
from dbguard.core.retry import Stake, Work
from dbguard.errors import DbGuardError, OutcomeUnknown
from dbguard.testing.fake import DriverError
from dbguard.testing.simulation.agenda import LATE
from dbguard.testing.simulation.claims import PRUNED, resolve
from dbguard.testing.simulation.messages import Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from dbguard.testing.simulation.guard import SimulatedGuard, Waits
    from dbguard.testing.simulation.judge import Judge
    from dbguard.testing.simulation.pool import Lease
    from dbguard.testing.simulation.world import World

__all__ = ["Client", "Context"]

ROWS = ("row 1", "row 2")
"""Rows that all clients change: they wait for each other's locks, and meet conflicts."""

CHECKS = 5
"""Reads with which a client looks after a write of unknown fate."""

DEADLINES = (0.3, 1.0, 3.0, 10.0)

WORK = {stake: Work(stake=stake) for stake in Stake}


class Context:
    """What one context has written: its box, and the values that it sent, unless it was told that they failed."""

    def __init__(self) -> None:
        self.box = Box()
        self.sent: list[str] = []


class Client:
    """One client: call after call, with a little time between.

    count: hands out the numbers of calls. tell: called with a call's number and what happens in it.
    """

    raises: tuple[type[BaseException], ...] = (DbGuardError, DriverError)
    """What is caught of a call. A cancelled one says nothing about its write."""
    known: tuple[type[BaseException], ...] = raises
    """What an application expects of it: the driver's exceptions, and dbguard's."""

    def __init__(
        self,
        name: str,
        guard: SimulatedGuard,
        world: World,
        judge: Judge,
        rng: Random,
        context: Context,
        *,
        count: Callable[[], int],
        tell: Callable[[int, str], None],
    ) -> None:
        self.name = name
        self.guard = guard
        self.world = world
        self.judge = judge
        self.rng = rng
        self.context = context
        self.count = count
        self.tell = tell
        self.over = False
        self.calls = 0
        self.failed = 0

    def run(self, calls: int, spread: float, healed_at: float) -> Waits:
        """Make *calls* calls over *spread* seconds; and when all is well again, two that have to succeed."""
        agenda, rng = self.guard.agenda, self.rng
        for _ in range(calls):
            yield agenda.sleep(2 * spread / calls * rng.random())
            error = yield from self._some_call()
            if isinstance(error, OutcomeUnknown):
                if error.token is not None and rng.random() < 0.5:
                    answer = yield from self._resolve(error.token, agenda.now + 5.0)
                    if isinstance(answer, NotApplied):
                        self.judge.refutes(error.token, error)
                for _ in range(CHECKS):  # it looks whether the write is there, and may well write it again if not
                    yield agenda.sleep(0.12 * rng.random())
                    yield from self._call(Stake.READ, 3.0, key=None)
        if agenda.now < healed_at:
            yield agenda.sleep(healed_at - agenda.now + 0.01 * rng.random())
        for stake in (Stake.WRITE, Stake.READ):
            error = yield from self._call(stake, 10.0, key=None)
            if error is not None and self.world.renamed:  # old connections live on until one call finds out
                error = yield from self._call(stake, 10.0, key=None)
            if error is not None:
                self.judge.break_("dead", agenda.now, f"a {stake.value} fails in a healthy cluster: {error!r}")
        self.over = True

    def _resolve(self, token: str, until: float) -> Waits:
        """Ask later what became of a write; ends with the answer."""
        return (yield from resolve(self.guard, 0, Resolve(token, until)))

    def _some_call(self) -> Waits:
        rng = self.rng
        deadline = DEADLINES[int(rng.random() * len(DEADLINES))]
        dice = rng.random()
        if dice < 0.35:
            return (yield from self._call(Stake.WRITE, deadline, key=ROWS[dice < 0.08] if dice < 0.16 else None))
        if dice < 0.5:
            return (yield from self._call(Stake.TRANSACTION, deadline, key=ROWS[dice < 0.42]))
        consistency = "own-writes" if dice < 0.9 else "eventual"
        return (yield from self._call(Stake.READ, deadline, key=None, consistency=consistency))

    def _call(self, stake: Stake, seconds: float, *, key: str | None, consistency: str = "own-writes") -> Waits:
        """Make one call, and tell the judge how it ended; ends with the error it raised, or None."""
        guard, judge, agenda = self.guard, self.judge, self.guard.agenda
        number = self.count()
        self.calls += 1
        now = agenda.now
        guard.state.budget.deposit(now)
        call = Call(
            reads=stake is Stake.READ,
            work=WORK[stake],
            box=self.context.box,
            deadline=now + seconds,
            began=now,
            consistency=consistency,
            reserve=RESERVE if guard.tokens else 0.0,
        )
        value = f"{self.name}{self.calls}"
        job: Any
        if stake is Stake.READ:
            expected = tuple(self.context.sent) if consistency == "own-writes" else ()
            job = self._read(expected)
        else:
            job = self._write(value, key) if stake is Stake.WRITE else self._transaction(value, key)
        self.tell(number, f"{self.name} {stake.value} {value if stake is not Stake.READ else consistency}")
        error: BaseException | None = None
        try:
            yield from guard.call(number, call, job)
        except self.raises as raised:
            error = raised
            self.failed += 1
            if not isinstance(raised, self.known):
                judge.break_("alien", agenda.now, f"call {number} raised {raised!r}")
            denied = isinstance(raised, Exception) and not isinstance(raised, OutcomeUnknown)
        else:
            denied = False
        if stake is not Stake.READ:
            if error is not None and denied:
                judge.denies([value], error)
            else:
                self.context.sent.append(value)
        self.tell(number, f"ends: {'ok' if error is None else repr(error)}")
        asked = isinstance(error, OutcomeUnknown) and error.token is not None
        if asked and agenda.now < call.deadline - 0.001 and PRUNED not in str(error):
            judge.break_("open", agenda.now, f"call {number} was not asked about until its deadline: {error}")
        judge.ends(f"call {number} ({self.name} {stake.value})", call.deadline, agenda.now)
        return error

    def _read(self, expected: tuple[str, ...]) -> Any:
        def job(lease: Lease, call: Call) -> Waits:
            answer = yield lease.connection.send(Request("read", expected), call.deadline)
            if answer is not LATE and answer.value:
                self.judge.reads(answer.value, lease.connection.server, self.guard.agenda.now)
            return answer

        return job

    def _write(self, value: str, key: str | None) -> Any:
        def job(lease: Lease, call: Call) -> Waits:
            return (yield from self._commits(lease, call, Request("write", value, key), value))

        return job

    def _commits(self, lease: Lease, call: Call, request: Request, value: str) -> Waits:
        """Send what commits *value*."""
        guard, judge, connection = self.guard, self.judge, lease.connection
        now, until = guard.agenda.now, call.deadline
        judge.sends((value,), now)
        if guard.tokens:
            call.token, call.result = str(new_token(now, self.count())), Done(None)
            judge.carries(call.token, value)
            request = request._replace(token=call.token)
            until = commit_until(until, now, call.reserve)
        answer = yield connection.send(request, until)
        if answer is not LATE and not answer.dead and not answer.unproven:
            if answer.code is None:
                judge.acknowledges((value,), connection.server, answer, guard.state.view, guard.agenda.now)
            else:
                judge.refuses((value,))
        return answer

    def _idle(self) -> float:
        """Seconds for which a transaction keeps its lock before it commits: mostly none, now and then too many."""
        return 0.8 * self.rng.random() if self.rng.random() < 0.3 else 0.0

    def _transaction(self, value: str, key: str | None) -> Any:
        idle = self._idle()

        def job(lease: Lease, call: Call) -> Waits:
            call.work = WORK[Stake.TRANSACTION]
            for request in (Request("begin"), Request("change", value, key)):
                answer = yield lease.connection.send(request, call.deadline)
                if answer is LATE or answer.code is not None or answer.dead:
                    return answer
            agenda = self.guard.agenda
            if idle:
                yield agenda.signal(min(call.deadline, agenda.now + idle))
                if agenda.now >= call.deadline:
                    return LATE
            call.work = WORK[Stake.COMMIT]
            return (yield from self._commits(lease, call, Request("commit", value), value))

        return job
