"""What a checker says: a verdict of three values, with its reasons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from dbguard.config.section import Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chaos.history import History

__all__ = ["Checker", "State", "Verdict", "broken", "ok", "unknown"]

_SHOWN = 5  # pieces of evidence that a verdict's line shows


class State(IntEnum):
    """A verdict; of several, the highest is the whole run's."""

    OK = 0
    UNKNOWN = 1
    BROKEN = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checker found.

    why: in one line; for ok with the figures that it was judged by.
    evidence: of broken, what it is broken by: operations, values, leaks, pauses.
    """

    state: State
    why: str
    evidence: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.state.name.lower()}: {self.told}"

    @property
    def told(self) -> str:
        """The reason, with the first pieces of evidence."""
        if not self.evidence:
            return self.why
        more = f"; and {len(self.evidence) - _SHOWN} more" if len(self.evidence) > _SHOWN else ""
        return f"{self.why}: {'; '.join(map(str, self.evidence[:_SHOWN]))}{more}"


def ok(why: str) -> Verdict:
    """Say that the promise was kept."""
    return Verdict(State.OK, why)


def unknown(why: str) -> Verdict:
    """Say that nothing is proved."""
    return Verdict(State.UNKNOWN, why)


def broken(why: str, evidence: Iterable[object]) -> Verdict:
    """Say that the promise was not kept."""
    return Verdict(State.BROKEN, why, tuple(evidence))


class Checker(Section, ABC):
    """A promise, with its bounds."""

    __slots__ = ()

    @abstractmethod
    def judge(self, history: History) -> Verdict:
        """Say whether the promise was kept."""

    def names(self) -> dict[str, str]:
        """Return the nodes that the bounds name, by the field that does."""
        return {}
