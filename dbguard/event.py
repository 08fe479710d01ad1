"""What all events have in common: `dbguard.events` has the events themselves, and these names, too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

__all__ = ["Event", "Listener"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One observation.

    at: seconds on the guard's monotonic clock.
    episode: the id of the episode that it belongs to; None if it belongs to none.
    quiet: another record says the same, so that the log gets this one at DEBUG.
    """

    level: ClassVar[int] = logging.INFO
    at: float
    episode: str | None = None
    quiet: bool = False

    @property
    def severity(self) -> int:
        """The level of this record's line: `level`, unless the record itself says otherwise."""
        return logging.DEBUG if self.quiet else self.level

    def text(self) -> str:
        """Return what happened, as one line."""
        said = " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name not in _OF_ALL)
        return f"{type(self).__name__} {said}"

    def line(self) -> str:
        """Return the line for the log: the text, and the id of the episode."""
        return self.text() if self.episode is None else f"{self.text()} [{self.episode}]"

    def alike(self) -> object | None:
        """Return what lines have in common of which a log needs a few and their number; None: it needs each."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data, for JSON."""
        return {"event": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}


Listener = Callable[[Event], object]

_OF_ALL = frozenset({"at", "episode", "quiet"})
