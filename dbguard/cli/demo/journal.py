"""What happened in the demo, in order: its own steps and what the guard tells of. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Entry", "Journal"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    at: seconds since the demo's clients began; negative: before.
    source: ``demo`` (done to the cluster) or ``guard`` (seen by dbguard).
    text: one line.
    facts: the same as plain data.
    counted: one of many alike, which the views show as a count and leave out here.
    """

    at: float
    source: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    counted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON; its time replaces the facts' own, which is another clock's."""
        return {"at_s": round(self.at, 3), "source": self.source, "text": self.text} | {
            name: fact for name, fact in self.facts.items() if name != "at"
        }


class Journal:
    """The entries so far.

    listener: called with each entry as it is made.
    """

    def __init__(self, listener: Callable[[Entry], object]) -> None:
        self.entries: list[Entry] = []
        self._listener = listener

    def add(self, entry: Entry) -> None:
        """Take in one entry."""
        self.entries.append(entry)
        self._listener(entry)
