"""What callers were told of their writes, to be compared with what the table holds in the end.

    ledger = Ledger()
    with ledger.entry(value):                  # one write of a value that no other write has
        shop.order(value)                      # ends well: acknowledged; raises Refused: refused; anything else: unknown
    ...
    audit = ledger.audit(row[0] for row in cluster.sql(cluster.primary, "SELECT number FROM orders"))
    audit.check()                              # raises AssertionError if a write was lost, or applied twice
    print(audit)

The column must not be unique, else the table hides a second application by refusing it: look at an effect instead, such
as what is left in stock. Nothing here knows a database, and time comes from the clock that is handed in.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

__all__ = ["Audit", "Entry", "Ledger", "Refused"]

_SHOWN = 5  # values that a message names; the rest is counted


class Refused(Exception):
    """Raised by a test inside `Ledger.entry`: the answer promised that nothing was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One write, as its caller saw it.

    value: what was written; no other entry has it.
    acknowledged: the call ended well, which promises that the write was applied once.
    refused: the call promised that nothing was applied. Neither of the two: unknown.
    began, ended: seconds on the ledger's clock.
    error: the name of the exception's class; None if there was none.
    """

    value: Hashable
    acknowledged: bool
    refused: bool
    began: float
    ended: float
    error: str | None


class Ledger:
    """What became of each write. Entries may be made from any thread and any task.

    refused: exceptions by which the application promises that nothing was applied, such as ``dbguard.NotAttempted``;
        `Refused` is always among them.
    clock: the time in seconds. Default ``time.monotonic``.
    """

    def __init__(
        self, *, refused: tuple[type[BaseException], ...] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._refused: tuple[type[BaseException], ...] = (Refused, *refused)
        self._clock = clock
        self._lock = threading.Lock()  # guards the list below
        self._entries: list[Entry] = []

    @contextlib.contextmanager
    def entry(self, value: Hashable) -> Iterator[None]:
        """Note what becomes of the block that writes *value*: acknowledged if it ends well. Its exception goes on.

        An exception that promises nothing, a cancellation among them, leaves the fate of the write unknown.
        """
        began, error = self._clock(), None
        try:
            yield
        except BaseException as e:
            error = e
            raise
        finally:
            made = Entry(
                value=value,
                acknowledged=error is None,
                refused=isinstance(error, self._refused),
                began=began,
                ended=self._clock(),
                error=None if error is None else _named(error),
            )
            with self._lock:
                self._entries.append(made)

    @property
    def entries(self) -> Sequence[Entry]:
        """All entries until now, in the order in which they ended."""
        with self._lock:
            return tuple(self._entries)

    @property
    def acknowledged(self) -> int:
        """How many entries were acknowledged until now."""
        return sum(entry.acknowledged for entry in self.entries)

    @property
    def errors(self) -> Counter[str]:
        """How often callers saw which exception, by the name of its class and, of `Refused`, its message."""
        return Counter(entry.error for entry in self.entries if entry.error is not None)

    def longest_silence(self) -> float:
        """Return the longest time without an acknowledgement, in seconds: what callers felt of an outage.

        Counted from the begin of the first entry to the end of the last one; 0 if there is none.
        """
        entries = self.entries
        if not entries:
            return 0.0
        good = sorted(entry.ended for entry in entries if entry.acknowledged)
        moments = [min(entry.began for entry in entries), *good, max(entry.ended for entry in entries)]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    def audit(self, found: Iterable[Hashable]) -> Audit:
        """Compare with *found*: the value of each row that the table holds in the end, twice if it is there twice.

        Raises ValueError if two entries have the same value: then nobody could say whose row it is.
        """
        entries = self.entries
        twice = [value for value, times in Counter(entry.value for entry in entries).items() if times > 1]
        if twice:
            raise ValueError(f"each entry needs a value of its own; there are several of {_some(twice)}")
        there = Counter(found)
        told = {entry.value: entry for entry in entries}
        unknown = [entry.value for entry in entries if not entry.acknowledged and not entry.refused]
        return Audit(
            acknowledged=sum(entry.acknowledged for entry in entries),
            refused=sum(entry.refused for entry in entries),
            unknown=len(unknown),
            applied=sum(value in there for value in unknown),
            lost=tuple(entry.value for entry in entries if entry.acknowledged and entry.value not in there),
            duplicated=tuple(value for value, times in there.items() if times > 1),
            denied=tuple(entry.value for entry in entries if entry.refused and entry.value in there),
            strange=tuple(value for value in there if value not in told),
            errors=self.errors,
            silence=self.longest_silence(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A ledger, compared with the table. Printed, it is a report.

    acknowledged, refused, unknown: how many writes ended so. applied: how many of the unknown ones are there.
    lost: values that were acknowledged and are not there.
    duplicated: values that are there more than once.
    denied: values that were refused and are there all the same.
    strange: values that are there and in no entry.
    errors: how often callers saw which exception. silence: see `Ledger.longest_silence`, in seconds.
    """

    acknowledged: int
    refused: int
    unknown: int
    applied: int
    lost: tuple[Hashable, ...]
    duplicated: tuple[Hashable, ...]
    denied: tuple[Hashable, ...]
    strange: tuple[Hashable, ...]
    errors: Counter[str]
    silence: float

    @property
    def broken(self) -> Sequence[str]:
        """The promises that were broken, in words; empty if all were kept. A ledger without success proves nothing."""
        said = {
            "lost: acknowledged, and not there": self.lost,
            "duplicated: there more than once": self.duplicated,
            "denied: refused, and there all the same": self.denied,
            "strange: there, and in no entry": self.strange,
        }
        found = [f"{what}: {_some(values)}" for what, values in said.items() if values]
        return found if self.acknowledged else [*found, "nothing was acknowledged, which proves nothing"]

    def check(self) -> None:
        """Raise AssertionError with the whole report if a promise was broken."""
        if self.broken:
            raise AssertionError(f"a promise was broken\n{self}")

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {times}" for name, times in self.errors.most_common()) or "none"
        said = f"{self.unknown} unknown of which {self.applied} applied"
        return "\n".join(
            [
                f"writes: {self.acknowledged} acknowledged, {self.refused} refused, {said}",
                f"errors that callers saw: {errors}",
                f"longest time without an acknowledgement: {self.silence:.2f} s",
                *(self.broken or ["lost: none; applied twice: none"]),
            ]
        )


def _named(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, Refused) and str(error) else name


def _some(values: Sequence[Hashable]) -> str:
    shown = ", ".join(map(repr, values[:_SHOWN]))
    return f"{shown} and {len(values) - _SHOWN} more" if len(values) > _SHOWN else shown
