"""What is known about one failed attempt, as a value.

The *phase* decides what may be repeated, never the exception: a lost acknowledgement and a lost request raise the same
class in every driver. Drivers make these values; everything above reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Failure", "Family", "Outcome", "Phase"]


class Phase(Enum):
    """How far a call had come when it ended."""

    CONNECT = "connect"
    """Dialling, TLS, authentication, pool checkout, session set-up: nothing of the call was sent."""
    UNSENT = "unsent"
    """The connection was known to be closed before anything was sent on it."""
    SENT = "sent"
    """Bytes were handed to the socket, and the server has not said how it ended."""
    ERROR = "error"
    """The server answered with an error on a connection that lives."""
    DONE = "done"
    """The server reported success."""


class Outcome(Enum):
    """What became of a write."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    UNKNOWN = "unknown"


class Family(Enum):
    """What a failure says about the node, the call and the next attempt."""

    HARD = "hard"
    """Nobody answers: refused, reset, unreachable, connect timeout, or a session ended by the server."""
    SOFT = "soft"
    """The node is alive and has too much to do: 53300, 53200, an attempt's time-out."""
    ROLE = "role"
    """The node is not what it was taken for: 25006 while in recovery, and the like."""
    CONTENTION = "contention"
    """The transaction met another one: 40001, 40P01."""
    ANSWERED = "answered"
    """The server did its job and said no: constraints, data, syntax, rights."""
    CONFIG = "config"
    """The node cannot be used as it is configured: password, role, database, TLS."""
    SHUT = "shut"
    """The application has closed its own way to the node: the pool that was wrapped."""
    NEUTRAL = "neutral"
    """Says nothing about the node: a cancellation, our own pool's wait, an exception of the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed attempt.

    node: the node's name.
    phase: how far the call had come.
    family: what it says about node and call.
    sqlstate: five characters from the server; None if the server said nothing.
    broken: this connection must not be used again.
    timed_out: it was ended by a time limit of ours.
    ours: the lease was ended by a drain, a fence or a `terminate` of our own; the first repeat is free.
    unparsed: the server could not read the text, so that nothing of it ran.
    refused: the server refused a statement of the text before it ran that statement; earlier ones may have run.
    cause: the driver's exception, as it would have reached the application.
    """

    node: str
    phase: Phase
    family: Family
    cause: BaseException
    sqlstate: str | None = None
    broken: bool = False
    timed_out: bool = False
    ours: bool = False
    unparsed: bool = False
    refused: bool = False

    @property
    def unsent(self) -> bool:
        """Whether nothing of the call was sent."""
        return self.phase is Phase.CONNECT or self.phase is Phase.UNSENT

    @property
    def why(self) -> str:
        """One short phrase for logs and notes; never the server's text, which can hold data."""
        code = f"{self.sqlstate or ''} {type(self.cause).__name__}".strip()
        said = _SAID[self.family]
        if self.family is Family.HARD and self.phase is not Phase.CONNECT:
            said = "the connection to {} was lost"
        elif self.timed_out and self.family is not Family.NEUTRAL:
            said = "{} did not answer in time"
        return f"{said.format(self.node)} ({code}), {_TOLD[self.phase]}"


_SAID = {
    Family.HARD: "{} could not be reached",
    Family.SOFT: "{} has too much to do",
    Family.ROLE: "{} has another role than it was taken for",
    Family.CONTENTION: "the transaction met another one on {}",
    Family.ANSWERED: "{} refused it",
    Family.CONFIG: "{} cannot be used as it is configured",
    Family.SHUT: "the application has closed its pool of {}",
    Family.NEUTRAL: "it ended on {}",
}
_TOLD = {
    Phase.CONNECT: "while connecting",
    Phase.UNSENT: "before anything was sent",
    Phase.SENT: "sent and not answered",
    Phase.ERROR: "answered with an error",
    Phase.DONE: "after success was told",
}
