"""Whether a failed attempt may be repeated, and how often: the repeat table and its limits.

The phase decides, never the exception. A failure is first named by how the attempt *ended*, and that ending, with what
was at stake, is looked up:

    ended               read     write     transaction, COMMIT not sent     COMMIT
    not sent            repeat   repeat    repeat from BEGIN                repeat from BEGIN
    unusable node       repeat   raise     raise                            raise
    transient answer    repeat   repeat    repeat from BEGIN                repeat from BEGIN
    final answer        raise    raise     raise                            raise
    lost                repeat   UNKNOWN   repeat from BEGIN                UNKNOWN
    client's exception  raise    raise     raise                            UNKNOWN
    done                raise    raise     raise                            raise

What a table of these two cannot see takes a repeat away, and once gives one:

* Work that is not one transaction by itself is never repeated once it was sent: parts of it may have been applied.
* Work whose input was consumed or whose output was handed out (`final`), and a block of the application's, is never
  repeated. (What was not sent has consumed nothing.)
* A write that leaves nothing behind is repeated although it was lost; an idempotent one once its old backend is gone;
  any that its token has proved not applied.

What was not sent is repeated for nothing; all else is paid from a budget (`core.budget`). A cancelled call is not
judged: its cancellation goes on at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from dbguard.core.failure import Family, Outcome, Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.core.failure import Failure

__all__ = [
    "ACTS",
    "READ",
    "Act",
    "Ending",
    "Purse",
    "RetryPolicy",
    "Stake",
    "Tally",
    "Verdict",
    "Work",
    "ending",
    "judge",
    "outcome",
]

PARTS = "parts may have been applied"
LATER = "may still be applied later"
NOTHING = "nothing of this transaction was committed"
MAYBE = "it may have been applied"
NOT_APPLIED = "it was not applied: its token proves it"


class Stake(Enum):
    """What was at stake in the failed attempt."""

    READ = "read"
    """Nothing could be written: an autocommit read, or a whole transaction that the server held READ ONLY."""
    WRITE = "write"
    """An autocommit write, or a statement of which that cannot be ruled out."""
    TRANSACTION = "transaction"
    """A transaction whose COMMIT was not sent."""
    COMMIT = "commit"
    """The COMMIT of a transaction."""


READ = Stake.READ
"""The member itself, for what runs on every call: to look it up through its class costs three times as much."""


class Act(Enum):
    """What to do about a failed attempt."""

    REPEAT = "repeat"
    RAISE = "raise"
    """The driver's exception, as it is."""
    UNKNOWN = "unknown"
    """The write's fate is open: resolve it, or raise `OutcomeUnknown`."""


class Purse(Enum):
    """Who pays for a repeat: three purses, so that a hot row cannot eat the allowance for a failover."""

    INFRASTRUCTURE = "infrastructure"
    CONTENTION = "contention"
    HEDGE = "hedge"


class Ending(Enum):
    """How an attempt ended, as far as repeating goes."""

    NOT_SENT = "not sent"
    UNUSABLE = "the node cannot be used as it is configured"
    TRANSIENT = "refused for now"
    FINAL = "answered"
    LOST = "lost"
    CLIENT = "an exception of the client after sending"
    DONE = "done"


def _acts(read: Act, write: Act, transaction: Act, commit: Act) -> Mapping[Stake, Act]:
    return MappingProxyType(dict(zip(Stake, (read, write, transaction, commit), strict=True)))


ACTS: Mapping[Ending, Mapping[Stake, Act]] = MappingProxyType(
    {
        Ending.NOT_SENT: _acts(Act.REPEAT, Act.REPEAT, Act.REPEAT, Act.REPEAT),
        Ending.UNUSABLE: _acts(Act.REPEAT, Act.RAISE, Act.RAISE, Act.RAISE),
        Ending.TRANSIENT: _acts(Act.REPEAT, Act.REPEAT, Act.REPEAT, Act.REPEAT),
        Ending.FINAL: _acts(Act.RAISE, Act.RAISE, Act.RAISE, Act.RAISE),
        Ending.LOST: _acts(Act.REPEAT, Act.UNKNOWN, Act.REPEAT, Act.UNKNOWN),
        Ending.CLIENT: _acts(Act.RAISE, Act.RAISE, Act.RAISE, Act.UNKNOWN),
        Ending.DONE: _acts(Act.RAISE, Act.RAISE, Act.RAISE, Act.RAISE),
    }
)
"""The repeat table. UNUSABLE: another replica may take the password; for a write there is one primary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a call does, as far as repeating it goes.

    stake: what is at stake in the attempt under way.
    one_transaction: it is one transaction by itself. False for CALL, DO, CONCURRENTLY forms, VACUUM, strings with
        transaction control; and for a transaction function once a statement in it left the protocol idle.
    final: input that can be read once was consumed, or output was handed out.
    block: an ``async with transaction()`` or an acquired connection, whose body only the application can run again.
        Entering one (acquire, BEGIN) is work of its own without this mark.
    single: it is known to be one statement, so that nothing of it ran if that one was refused before it ran.
    idempotent: the caller says that applying it twice is as good as once.
    leaves_nothing: in autocommit it only locks rows or only sets the session.
    """

    stake: Stake
    one_transaction: bool = True
    final: bool = False
    block: bool = False
    single: bool = False
    idempotent: bool = False
    leaves_nothing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do about a failed attempt, and why.

    elsewhere: another node first, if there is one.
    reresolve: find the primary again first.
    purse: which purse pays; None: it is free, or there is no repeat.
    note: what to add to the caller's exception; None: nothing.
    """

    act: Act
    elsewhere: bool = False
    reresolve: bool = False
    purse: Purse | None = None
    why: str
    note: str | None = None


def ending(failure: Failure) -> Ending:
    """Name how the attempt ended. Where the facts contradict each other, the more careful reading wins."""
    lost = failure.broken or failure.timed_out or failure.ours or failure.family is Family.HARD
    match failure.phase:
        case Phase.DONE:
            return Ending.DONE
        case Phase.CONNECT | Phase.UNSENT:
            if failure.family is Family.CONFIG or failure.family is Family.SHUT:
                return Ending.UNUSABLE
            refused = failure.family is Family.ANSWERED or (failure.family is Family.NEUTRAL and not lost)
            return Ending.FINAL if refused else Ending.NOT_SENT
        case Phase.SENT:
            return Ending.CLIENT if failure.family is Family.NEUTRAL and not lost else Ending.LOST
        case Phase.ERROR:
            # An answer with which the connection died is no answer: of COMMITs that met 57P01, one in twenty had
            # committed.
            if failure.broken or failure.family is Family.HARD:
                return Ending.LOST
            transient = failure.family in {Family.SOFT, Family.ROLE, Family.CONTENTION}
            return Ending.TRANSIENT if transient else Ending.FINAL


def outcome(failure: Failure, work: Work) -> Outcome:
    """Return what became of the work: what can be known without asking the server again."""
    how = ending(failure)
    if how is Ending.DONE:
        return Outcome.APPLIED if work.stake in {Stake.WRITE, Stake.COMMIT} else Outcome.NOT_APPLIED
    if _in_parts(failure, work):
        return Outcome.UNKNOWN
    open_ended = how in {Ending.LOST, Ending.CLIENT} and not _leaves_nothing(work)
    return Outcome.UNKNOWN if open_ended and work.stake in {Stake.WRITE, Stake.COMMIT} else Outcome.NOT_APPLIED


def judge(failure: Failure, work: Work, *, gone: bool = False, refuted: bool = False) -> Verdict:
    """Decide about the failed attempt. Says nothing about limits, budget or deadline: those are asked next.

    gone: the backend of the failed attempt is known to be gone, or the cluster is under another reign, so that nothing
        of it can still be applied later. Only then is an idempotent write of unknown fate repeated.
    refuted: its token has proved that it was not applied and never will be.
    """
    how = ending(failure)
    act = ACTS[how][work.stake]
    barred = (work.final and failure.phase not in {Phase.CONNECT, Phase.UNSENT}) or work.block
    note: str | None = None
    why = f"{how.value}: {failure.why}"
    if _in_parts(failure, work):
        note = PARTS
        if act is Act.REPEAT:
            act, why = Act.UNKNOWN if how is Ending.LOST else Act.RAISE, f"not one transaction by itself; {why}"
    elif act is Act.UNKNOWN and refuted:
        note = NOT_APPLIED
        act, why = Act.REPEAT if how is Ending.LOST else Act.RAISE, f"proved not applied; {why}"
    elif act is Act.UNKNOWN:
        if not barred and how is Ending.LOST and (_leaves_nothing(work) or (work.idempotent and gone)):
            act, why = Act.REPEAT, f"{'leaves nothing behind' if _leaves_nothing(work) else 'idempotent'}; {why}"
        elif _leaves_nothing(work):
            act = Act.RAISE
        elif work.idempotent:
            note = LATER
    elif how is Ending.CLIENT and outcome(failure, work) is Outcome.UNKNOWN:
        note = MAYBE
    if act is Act.REPEAT and barred:
        act, why = Act.RAISE, f"{'input or output was consumed' if work.final else 'a block'}; {why}"
        note = NOTHING if work.stake is Stake.TRANSACTION else note
    if act is not Act.REPEAT:
        return Verdict(act=act, why=why, note=note)
    reads = work.stake is Stake.READ
    return Verdict(
        act=act,
        elsewhere=reads,
        reresolve=failure.family is Family.ROLE
        or (not reads and (failure.family is Family.HARD or how is Ending.LOST)),
        purse=_purse(how, failure),
        why=why,
    )


def _in_parts(failure: Failure, work: Work) -> bool:
    """Whether parts of the work may have been applied. What was not sent, or refused before it ran, has no parts."""
    inside = work.stake in {Stake.TRANSACTION, Stake.COMMIT}
    ran = not (failure.unparsed or (failure.refused and work.single))
    sent = failure.phase not in {Phase.CONNECT, Phase.UNSENT} and ran
    return not work.one_transaction and (inside or sent)


def _leaves_nothing(work: Work) -> bool:
    return work.leaves_nothing and work.stake is Stake.WRITE


def _purse(how: Ending, failure: Failure) -> Purse | None:
    if how in {Ending.NOT_SENT, Ending.UNUSABLE}:
        return None
    return Purse.CONTENTION if failure.family is Family.CONTENTION else Purse.INFRASTRUCTURE


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a call is attempted, and what its repeats may cost. Attempts include the first.

    attempts: when nobody answers, or the role was wrong, >= 1. Default 4: a dead node, its successor, and two to spare.
    contention_attempts: after 40001 and 40P01, >= 1; None: as many as the deadline has room for. Default None: who lost
        the race for a hot row has lost it to a transaction that committed, and will win it.
    soft_attempts: on overload and after an attempt's time-out, >= 1. Default 3: more would feed the overload.
    wait: any tenacity wait strategy; None: full jitter, 10 ms to 2 s, after contention 2 to 500 ms.
    stop: any tenacity stop strategy, asked after the limits above; None: those limits alone.
    budget: repeats allowed per first attempt, in [0, 1]. Default 0.2. Beyond it those after contention slow down, all
        others are refused.
    floor: repeats per second allowed however few first attempts there are, >= 0. Default 3.
    """

    attempts: int = 4
    contention_attempts: int | None = None
    soft_attempts: int = 3
    wait: object | None = None
    stop: object | None = None
    budget: float = 0.2
    floor: float = 3.0


class Tally:
    """How the attempts of one call have failed so far. A rejection, which reached no node, is not an attempt."""

    __slots__ = ("contention", "hard", "soft")

    def __init__(self) -> None:
        self.hard = 0
        self.soft = 0
        self.contention = 0

    def count(self, failure: Failure) -> None:
        """Count one failed attempt."""
        if failure.ours and failure.phase in {Phase.CONNECT, Phase.UNSENT}:
            return
        if failure.family is Family.CONTENTION:
            self.contention += 1
        elif failure.family is Family.SOFT:
            self.soft += 1
        else:
            self.hard += 1

    def exhausted(self, policy: RetryPolicy) -> str | None:
        """Return which limit of *policy* allows no further attempt; None if all do."""
        for failed, allowed, name in (
            (self.hard, policy.attempts, "retry.attempts"),
            (self.contention, policy.contention_attempts, "retry.contention_attempts"),
            (self.soft, policy.soft_attempts, "after overload or time-outs"),
        ):
            if allowed is not None and failed >= allowed:
                return f"{failed} of {allowed} attempts failed ({name})"
        return None
