"""Records of whether writes can flow; read them as part of `dbguard.events`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from dbguard.event import Event

__all__ = ["Flapping", "GateChanged", "WritesPaused", "WritesResumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateChanged(Event):
    """Whether writes can flow has changed. States: open, suspect, failover, down."""

    level: ClassVar[int] = logging.WARNING
    was: str
    now: str
    why: str
    waiting: int = 0

    @property
    def severity(self) -> int:
        """INFO for a doubt, and for its end: writes do not stop for that."""
        if self.quiet:
            return logging.DEBUG
        return logging.INFO if {self.was, self.now} == {"open", "suspect"} else self.level

    def text(self) -> str:
        """Return the line for the log."""
        match self.now:
            case "suspect":
                what, then = "writes are in doubt", "waiting"
            case "open" if self.was == "suspect":
                what, then = "writes are not in doubt any more", "waiting"
            case "open":
                what, then = "writes flow", "waiting, and may go now"
            case "down":
                what, then = "writes fail at once", "waited in vain"
            case _:
                what, then = "writes stopped", "waiting"
        calls = "1 call" if self.waiting == 1 else f"{self.waiting} calls"
        return f"{what} ({self.was} -> {self.now}): {self.why}" + (f"; {calls} {then}" if self.waiting else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flapping(Event):
    """The primary has changed too often of late: writes wait until *node* has stayed in office.

    changes: of primary, *within* seconds. stay: seconds that writes wait for this one, at most.
    """

    level: ClassVar[int] = logging.ERROR
    node: str
    changes: int
    within: float
    stay: float

    def text(self) -> str:
        """Return the line for the log."""
        return (
            f"the primary has changed {self.changes} times within {self.within:g} s: writes wait until {self.node} has"
            f" stayed for {self.stay:.1f} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WritesPaused(Event):
    """The application has paused what needs the primary.

    node: the primary; None: there is none. at_most: seconds after which the pause ends by itself.
    """

    level: ClassVar[int] = logging.WARNING
    node: str | None
    at_most: float

    def text(self) -> str:
        """Return the line for the log."""
        return f"guard.pause(): nothing more goes to the primary, for {self.at_most:g} s at most"


@dataclass(frozen=True, slots=True, kw_only=True)
class WritesResumed(Event):
    """A pause is over.

    forgotten: nobody resumed it, it came to its limit. waiting: calls that waited for it.
    """

    level: ClassVar[int] = logging.WARNING
    forgotten: bool
    waiting: int

    def text(self) -> str:
        """Return the line for the log."""
        how = (
            "the pause came to its limit, and nobody had called guard.resume()" if self.forgotten else "guard.resume()"
        )
        return f"{how}: calls go to the primary again, {self.waiting} were waiting"
