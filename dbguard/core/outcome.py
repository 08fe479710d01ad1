"""What proves the fate of a write: its token, how it is carried, and what a claim of it says.

The rules:

* Each attempt carries a token of its own. A token that was claimed and found free is burnt: the attempt that carried it
  can never commit, and the repeat carries another one.
* A commit may take the call's time less a reserve, which is kept for asking what became of it.
* A block that only read carries none. One in which nothing but plain statements ran carries it if something was written;
  one in which more may have happened carries it always, since not everything that matters has a transaction id (NOTIFY).
  A block that may have turned READ ONLY after it wrote carries none: it could not store it, and it commits all the same.
* Whoever holds up a claim is asked for while it waits. A backend that waits for a standby is left alone: its end would
  show rows that no standby has. The write's own backend is ended. Anybody else is waited for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from dbguard.core.lexer import tokens
from dbguard.core.retry import Stake
from dbguard.core.statement import Kind, Touch
from dbguard.errors import OutcomeUnknown, ResultLost, TokenInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbguard.core.failure import Failure
    from dbguard.core.plan import Call
    from dbguard.core.statement import Statement
    from dbguard.core.topology import Reign

__all__ = [
    "RESERVE",
    "Answer",
    "Applied",
    "Holder",
    "Mark",
    "NotApplied",
    "StillOpen",
    "commit_until",
    "is_plain",
    "known_token",
    "left_open",
    "new_token",
    "result_lost",
    "to_end",
    "turns_read_only",
]

RESERVE = 2.0
"""Seconds of a call kept for asking what became of its commit, unless it is configured; a third of what is left at most.
Asking a living primary takes milliseconds, finding the next one after a promotion one or two seconds."""

_LOW = 62


def new_token(at: float, chance: int) -> UUID:
    """Return a UUIDv7: tokens of one clock sort by their time, so that the table's index grows on one side.

    at: seconds since the epoch, by the wall clock. chance: 74 random bits.
    """
    milliseconds = int(at * 1000) & ((1 << 48) - 1)
    high = (chance >> _LOW) & 0xFFF
    low = chance & ((1 << _LOW) - 1)
    return UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low)


def known_token(text: str) -> UUID:
    """Return the token that *text* stands for, as `OutcomeUnknown.token` gave it. Raises `TokenInvalid`."""
    try:
        token = UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise TokenInvalid(f"{text!r} is not a write's token: hand in what `OutcomeUnknown.token` said") from None
    if token.version != 7:
        raise TokenInvalid(f"{text!r} is not a write's token: it is no UUIDv7")
    return token


def commit_until(deadline: float, now: float, reserve: float) -> float:
    """Return until when a commit that begins now may take, so that its fate can still be asked within the call.

    reserve: seconds kept for asking; never more than a third of what is left. 0: nothing is asked.
    """
    return deadline - max(0.0, min(reserve, (deadline - now) / 3))


# ---------------------------------------------------------------------- what a claim says


@dataclass(frozen=True, slots=True)
class Applied:
    """The write had committed, as durably as the cluster promises."""


@dataclass(frozen=True, slots=True)
class NotApplied:
    """The write has not committed and never will, under *reign*: under another one it has to be asked again."""

    reign: Reign | None


@dataclass(frozen=True, slots=True)
class StillOpen:
    """It could not be found out in time. why: one phrase, for the error."""

    why: str


Answer = Applied | NotApplied | StillOpen


@dataclass(frozen=True, slots=True)
class Holder:
    """A backend that holds up a claim.

    pid, started: which one, and when it began (seconds since the epoch; None: not told).
    waits_for: its wait event; None: none, or not told.
    """

    pid: int
    started: float | None
    waits_for: str | None


def to_end(holders: Sequence[Holder], own: tuple[int, float | None]) -> int | None:
    """Return which of the backends that hold up a claim is to be ended; None: wait.

    own: the backend that the write was sent to, and when it began; 0 if it is not known, as behind a pooler.
    """
    pid, began = own
    if not pid or began is None:
        return None
    for holder in holders:
        if holder.pid == pid and holder.started is not None and abs(holder.started - began) < 0.001:
            return pid if holder.waits_for != "SyncRep" else None
    return None


def left_open(call: Call, failure: Failure, where: str, why: str | None) -> OutcomeUnknown:
    """Return the error for a write of unknown fate.

    where: the node it was sent to, for people. why: what else is known, as one phrase.
    """
    what = "the COMMIT" if call.work.stake is Stake.COMMIT else "the write"
    ended = f"the time ran out ({call.account})" if failure.timed_out else "the connection was lost"
    way_out = "Ask `await guard.resolve(error.token)` before" if call.token else "Check before"
    error = OutcomeUnknown(
        f"{what} was sent to {where} and {ended} before the answer came: it may have been applied"
        f"{f' ({why})' if why else ''}. {way_out} repeating it.",
        node=where,
        phase=failure.phase.value,
        token=call.token,
    )
    return call.ended(error) if failure.timed_out else error


def result_lost(call: Call, where: str) -> ResultLost:
    """Return the error for a write that was applied, and whose rows went with the connection."""
    return ResultLost(
        f"the write was applied once, and its rows were lost with the connection to {where}: do not repeat it.",
        node=where,
        token=call.token,
    )


# ---------------------------------------------------------------------- how a block carries its token


class Mark(Enum):
    """Whether a transaction's end stores its token."""

    NONE = "none"
    """It cannot, or nothing hangs on it."""
    IF_WRITTEN = "if written"
    """If the transaction was assigned an id: nothing ran in it that matters without one."""
    ALWAYS = "always"
    """Whatever it did: functions of the user's may have run, settings changed, or notifications been sent."""

    @staticmethod
    def of(*, writes: bool, read_only: bool, touched: Touch, unseen: bool) -> Mark:
        """Return what a block needs.

        writes: something in it may have written. read_only: it is, or may have been turned, READ ONLY.
        touched: the worst that was done to the session. unseen: the application held the driver's own connection.
        """
        if not writes or read_only or unseen:
            return Mark.NONE
        return Mark.IF_WRITTEN if touched is Touch.NOTHING else Mark.ALWAYS


_PLAIN = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "COPY"})
_NOTIFIES = re.compile(r"notify", re.IGNORECASE)
_MAY_TURN = re.compile(r"only|set_config", re.IGNORECASE)


def is_plain(statement: Statement, query: str, touched: Touch) -> bool:
    """Say whether *query* does nothing that matters unless it writes rows, and so is assigned a transaction id.

    touched: what it may leave on the session, by its text and by the relations it names: NOTHING means that no function
    of the user's can run in it.
    """
    return touched is Touch.NOTHING and statement.verb in _PLAIN and not _NOTIFIES.search(query)


def turns_read_only(statement: Statement, query: str) -> bool:
    """Say whether *query* may turn the open transaction READ ONLY. Functions of the user's are not looked into.

    (One that does so itself makes the commit fail, with 25006 and nothing applied.)
    """
    if statement.kind is Kind.READ or not _MAY_TURN.search(query):
        return False
    words = tokens(query)
    sets = statement.verb in {"SET", "RESET", "BEGIN", "START"} or statement.several
    if sets and any(word == "only" or "read_only" in word for word in words):
        return True
    for at, word in enumerate(words):
        if word == "set_config":
            name = words[at + 2] if at + 2 < len(words) else ""
            if not name.startswith("'") or "read_only" in name:
                return True
    return False
