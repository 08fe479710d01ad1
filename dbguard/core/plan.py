"""Recovery as a generator that decides *between* attempts.

A plan yields `Attempt`, `Pause`, `Resolve` or `Bury`, and is sent what came of it. It owns no connection, so it may be
dropped at any yield: a cancelled call loses nothing here. Some fifteen lines run it on asyncio (`runtime.drive`), their
twin on threads, a third in the simulation; all run the code below.

    first attempt failed --> may it be repeated? (retry.judge) --no--> the driver's exception
                                     |                         --unknown--> resolve by its token: applied: the result
                                     |                                      not applied: judge again; open: OutcomeUnknown
                                     | yes
                             can it be afforded? (tally, budget, deadline) --no--> the driver's exception, with a note
                                     | yes
                             pause --> where to? (state.route) --nowhere now--> wait for the topology --> ...
                                                     | a node
                                                  Attempt
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dbguard.core.failure import Failure, Family, Phase
from dbguard.core.outcome import Applied, NotApplied, StillOpen
from dbguard.core.retry import Act, Purse, Stake, Tally, Verdict, Work, judge
from dbguard.errors import DbGuardError, DeadlineExceeded, NoPrimary, NoReplica, Overloaded

if TYPE_CHECKING:
    from collections.abc import Generator

    from dbguard.core.causal import Box, Orphan
    from dbguard.core.state import GuardState
    from dbguard.core.topology import Reign

__all__ = [
    "Attempt",
    "Bury",
    "Call",
    "Choice",
    "Done",
    "Gone",
    "Known",
    "Nowhere",
    "Pause",
    "Refuted",
    "Reply",
    "Resolve",
    "Step",
    "Stopped",
    "recover",
    "settle",
]

E = TypeVar("E", bound=DbGuardError)

HARDLY = 0.01
"""Seconds before a deadline in which there is no time left for a pause and another attempt: a dial alone takes as long."""

UNPAID = 0.25
"""Seconds that a repeat after contention pauses at least, and twice that at most, where its purse is empty.

It slows down and does not fail: every 40001 says that another transaction has committed, so these repeats cannot keep
a cluster from getting work done, as those after failures can; four a second per call cannot drown it either. Measured
(`tools/bench_hot_rows.py`, 16 callers, one row): with it 1.3 attempts per transaction, and more transactions a second
than the 2 to 3 attempts that each takes where all repeats go at the quick pace.
"""


class Known(Protocol):
    """What is known of a statement's text.

    reads: it may go to a replica. doubtful: it may write, if it is run on a primary.
    refused: a replica has refused it as a write. why: one short phrase.
    """

    reads: bool
    doubtful: bool
    refused: bool
    why: str

    def refuse(self) -> None:
        """Take in that a replica has refused it as a write."""


@dataclass(slots=True)
class Call:
    """One call of the application, from its beginning to its end. Made for each: by position, which costs a third.

    reads: it may go to a replica.
    group: the only nodes whose replicas are fit; None: all.
    role: what the caller asked for, ``"primary"`` or ``"replica"``; None: what the statement needs.
    consistency: ``own-writes``, ``eventual``, ``bounded`` or ``primary``.
    work: what is at stake in the attempt under way; whoever runs the attempt keeps it true.
    box: the context's box.
    deadline: absolute, on the guard's monotonic clock, in seconds.
    began: when it began, on the same clock. sent: when what hangs in the air was sent; None: not yet.
    limit: whose limit the deadline is, for the error that names it.
    wait: whether it waits while there is no primary, or fails at once.
    text: what is known of the statement; None for a transaction.
    reserve: seconds that commits leave for asking what became of them; 0 where writes carry no tokens.
    token: under which the commit of the last attempt was sent; None: under none, or none was sent.
    result: what the call returns if that commit is proved; None: its rows were to come with it.
    orphan: the backend that the last attempt was lost with, if its commit was sent there.
    spent: seconds by where they went.
    """

    reads: bool
    work: Work
    box: Box
    deadline: float
    began: float
    limit: str = "timeout="
    consistency: str = "own-writes"
    fallback: str = "primary"
    role: str | None = None
    group: frozenset[str] | None = None
    wait: bool = True
    text: Known | None = None
    reserve: float = 0.0
    token: str | None = None
    result: Done | None = None
    orphan: Orphan | None = None
    sent: float | None = None
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Where the time went, for people: ``acquire 0.012 s, execute 0.487 s``."""
        spent = [f"{name} {seconds:.3f} s" for name, seconds in self.spent.items() if seconds >= 0.001]
        return ", ".join(spent) or "at once"

    @property
    def account(self) -> str:
        """Whose limit the deadline is, and where the time went."""
        return f"{self.limit}; {self.where}"

    def ended(self, error: E) -> E:
        """Note on *error* that the call's time ended it."""
        error.__dict__.update(timed_out=True, limit=self.limit, spent=dict(self.spent))
        return error


@dataclass(frozen=True, slots=True)
class Attempt:
    """Try it on *node*."""

    node: str
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait until the topology changes, for *at_most* seconds.

    After contention the topology is no news: its changes, and every round of probes, would wake all who contend at once.

    gate: the call waits for its turn to go on; otherwise it backs off, and the runtime asks the retry policy how long.
    at_least: seconds, whatever the retry policy says.
    """

    at_most: float
    number: int
    family: Family
    gate: bool
    failure: Failure | None = None
    at_least: float = 0.0

    @property
    def deaf(self) -> bool:
        """Whether it goes on although the topology changes."""
        return self.family is Family.CONTENTION


@dataclass(frozen=True, slots=True)
class Resolve:
    """Ask whether the commit that carried *token* was applied: `Applied`, `NotApplied`, or at *until* `StillOpen`.

    orphan: the backend it was sent to; None if that is not known.
    """

    token: str
    until: float
    orphan: Orphan | None = None


@dataclass(frozen=True, slots=True)
class Bury:
    """End the backend that the last attempt was lost with, and wait until it is gone, or another server holds the office.

    The reply is `Gone`, or `StillOpen` at *until*.
    """

    orphan: Orphan
    until: float


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing that the backend did can be applied any more, unless it had been already."""


@dataclass(slots=True)
class Done:
    """The attempt succeeded. Not frozen, which would double the price of what every call makes."""

    value: Any


@dataclass(frozen=True, slots=True)
class Stopped:
    """The retry policy's own ``stop`` says that it is enough; the answer to a `Pause`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a call goes.

    node: the node's name.
    role: the role in which it is asked, ``"primary"`` or ``"replica"``.
    why: one phrase.
    """

    node: str
    role: str
    why: str


@dataclass(frozen=True, slots=True)
class Nowhere:
    """No node is fit now.

    error: what to raise if the call does not wait.
    """

    why: str
    error: type[NoPrimary | NoReplica | Overloaded]
    waits: bool
    retry_after: float | None = None


Step = Attempt | Pause | Resolve | Bury
Reply = Done | Failure | Stopped | Applied | NotApplied | StillOpen | Gone | None


def recover(call: Call, state: GuardState, last: Failure | None = None) -> Generator[Step, Reply, Any]:
    """Decide between attempts until the call is done, and return its value.

    last: the failure of an attempt that was made before the plan was entered (the fast path).

    Raises the driver's own exception with a note of attempts and nodes, or, where dbguard decided, `NotAttempted`,
    `DeadlineExceeded`, `OutcomeUnknown` or `ResultLost`.
    """
    tally = Tally()
    refuted: dict[str, Refuted] = {}
    number = 1 if last is not None else 0
    doubted: frozenset[str] = frozenset()
    forgiven = False
    while True:
        if last is not None:
            verdict = judge(last, call.work)
            if verdict.act is Act.UNKNOWN:
                settled = yield from settle(call, state, last, refuted)
                if isinstance(settled, Done):
                    return settled.value
                verdict = settled
            if verdict.act is Act.RAISE:
                raise _noted(last, call, number, verdict.note, state.clock())
            tally.count(last)
            exhausted = tally.exhausted(state.retry)
            if exhausted:
                raise _noted(last, call, number, exhausted, state.clock())
            if state.clock() >= call.deadline:
                raise _too_late(call, last, number, state.clock())
            free = verdict.purse is None or (last.ours and not forgiven)
            forgiven = forgiven or last.ours
            paid = free or state.budget.take(state.clock(), verdict.purse or Purse.INFRASTRUCTURE)
            if not paid and verdict.purse is not Purse.CONTENTION:
                raise _noted(last, call, number, "retry budget exhausted", state.clock())
            doubted = doubted | {last.node} if verdict.elsewhere or verdict.reresolve else doubted
            state.repeats(last, number, verdict.why)
            pause = _backoff(call, state, last, verdict, number, paid=paid)
            if pause is not None and isinstance((yield pause), Stopped):
                raise _noted(last, call, number, "stopped by RetryPolicy.stop", state.clock())
        waited = False
        while True:
            route = state.route(call, doubted, queued=waited)
            now = state.clock()
            if isinstance(route, Nowhere):
                if not route.waits or now >= call.deadline:
                    raise _nowhere(route, call, last, number, now)
                yield Pause(call.deadline - now, number, Family.ROLE, gate=True, failure=last)
                waited = True
                continue
            if now >= call.deadline:
                raise _too_late(call, last, number, now)
            # What was proved under another reign is proved anew: this primary may have what that one lacked.
            stale = next((proof for proof in refuted.values() if proof.reign != state.view.reign), None)
            if stale is None:
                break
            call.token, call.result, call.orphan = stale.token, stale.result, stale.orphan
            settled = yield from settle(call, state, stale.failure, refuted)
            if isinstance(settled, Done):
                return settled.value
        call.token = call.result = call.orphan = None
        number += 1
        reply = yield Attempt(route.node, number, route.why)
        if isinstance(reply, Done):
            return reply.value
        assert isinstance(reply, Failure)  # noqa: S101  an attempt is answered by Done or a Failure
        last = reply


@dataclass(frozen=True, slots=True)
class Refuted:
    """An attempt that its token has proved not applied under *reign*, and what the call had returned if it were."""

    token: str
    reign: Reign | None
    result: Done | None
    orphan: Orphan | None
    failure: Failure


def settle(
    call: Call, state: GuardState, last: Failure, refuted: dict[str, Refuted]
) -> Generator[Step, Reply, Done | Verdict]:
    """Find out what became of the commit of the last attempt, whose fate its failure leaves open.

    refuted: by token, what has been proved not applied; it is added to.

    Returns the call's result if it was applied; a verdict if it was not, or may be sent again. Raises `OutcomeUnknown`
    if it stays open, `ResultLost` if it was applied and its rows were lost.
    """
    if call.token is not None:
        answer = yield Resolve(call.token, call.deadline, call.orphan)
        if isinstance(answer, StillOpen):
            raise state.left_open(call, last, answer.why) from last.cause
        assert isinstance(answer, Applied | NotApplied)  # noqa: S101  what a Resolve is answered by
        state.resolved(call, last.node, answer)
        if isinstance(answer, Applied):
            if call.result is None:
                raise state.result_lost(call, last) from last.cause
            return call.result
        refuted[call.token] = Refuted(call.token, answer.reign, call.result, call.orphan, last)
        verdict = judge(last, call.work, refuted=True)
    elif call.work.idempotent and call.orphan is not None:
        reply = yield Bury(call.orphan, call.deadline)
        verdict = judge(last, call.work, gone=isinstance(reply, Gone))
    else:
        verdict = judge(last, call.work)
    if verdict.act is Act.UNKNOWN:
        raise state.left_open(call, last, verdict.note) from last.cause
    return verdict


def _backoff(
    call: Call, state: GuardState, last: Failure, verdict: Verdict, number: int, *, paid: bool
) -> Pause | None:
    """Say how long to back off; None where another node can be asked at once, or a gate will hold the call anyway.

    At most half of what is left: a pause to the very deadline leaves no time for what it waits for. Where hardly anything
    is left, all of it: halves of halves would be attempts without end.
    """
    if verdict.reresolve or last.phase is Phase.UNSENT:
        return None
    if verdict.elsewhere and number == 1 and last.family is not Family.CONTENTION and state.has_other(call, last.node):
        return None
    left = max(0.0, call.deadline - state.clock())
    at_most = left / 2 if left > HARDLY else left
    at_least = 0.0 if paid else UNPAID * (1 + state.rng.random())
    return Pause(at_most, number, last.family, gate=False, failure=last, at_least=at_least)


def _noted(last: Failure, call: Call, number: int, why: str | None, now: float) -> BaseException:
    """Return the driver's own exception, with a note where dbguard has something to add."""
    if last.timed_out:
        return _too_late(call, last, number, now)
    if number > 1 or why:
        attempts = "1 attempt" if number == 1 else f"{number} attempts"
        note = f"dbguard: {attempts}, the last on {last.node}" + (f"; {why}" if why else "")
        if note not in getattr(last.cause, "__notes__", ()):
            last.cause.add_note(note)
    return last.cause


def _too_late(call: Call, last: Failure | None, number: int, now: float) -> DeadlineExceeded:
    """Return the error for a call that time has ended: its own, or that of its last attempt."""
    attempts = f"{number} attempt{'' if number == 1 else 's'}"
    said = ""
    if last is not None:
        said = f"; last: {last.why}" + (f": {last.cause}" if last.timed_out and str(last.cause) else "")
    if now >= call.deadline:
        limit = call.deadline - call.began
        error = call.ended(
            DeadlineExceeded(
                f"the call's {limit:.3g} s are over after {attempts} ({call.account}){said}; nothing was applied"
            )
        )
    else:
        error = DeadlineExceeded(
            f"no answer in time after {attempts} ({call.where}){said}; nothing was applied", spent=dict(call.spent)
        )
    if last is not None:
        error.__cause__ = last.cause
    return error


def _nowhere(route: Nowhere, call: Call, last: Failure | None, number: int, now: float) -> BaseException:
    late = now >= call.deadline
    if late and number and call.work.stake is Stake.READ:
        return _too_late(call, last, number, now)
    after = f" after {now - call.began:.3g} s ({call.account})" if late else ""
    error = route.error(f"{route.why}{after}", retry_after=route.retry_after)
    error.__cause__ = last.cause if last is not None else None
    return call.ended(error) if late else error
