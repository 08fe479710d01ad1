"""A history while it happens: in memory, or line by line in a file that can be read whatever becomes of the run, or both.

In the file each line is one JSON object with one key that says what it is: ``run`` (first), ``operation``, ``fault``,
``healed``, ``event``, ``sample``, ``stopped``, ``leaks``, ``final``. A line is written as soon as the thing has happened,
in one piece.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from chaos.history import Fault, History, Kind, Leak, LeakKind, Operation, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self, TextIO

__all__ = ["Journal", "read"]

_FIELDS = tuple(field.name for field in fields(Operation))


class Journal:
    """Keeps what happens in a run; a context manager, which closes the file. Not for several threads at once.

    zero: the run's time zero, on `time.monotonic`.
    path: the file to write, replaced if it is there. Default: none is written.
    keep: whether to keep it all in memory; otherwise just the head, the faults and when callers were told to stop.
    head: what is run, as plain data.
    """

    def __init__(self, zero: float, *, path: Path | None = None, keep: bool = True, **head: Any) -> None:
        self.zero = zero
        self._keep = keep
        self._history = History(head=head)
        self._operations: list[Operation] = []
        self._faults: list[Fault] = []
        self._events: list[Mapping[str, Any]] = []
        self._samples: list[Mapping[str, Any]] = []
        # line by line, so that nothing is lost in a buffer when the process is killed
        self._file: TextIO | None = path.open("w", buffering=1, encoding="utf-8") if path is not None else None
        self._write("run", head)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def now(self) -> float:
        """Return the run's time."""
        return time.monotonic() - self.zero

    def operation(self, op: Operation) -> None:
        """Keep an operation that has ended."""
        if self._keep:
            self._operations.append(op)
        self._write("operation", {name: value for name in _FIELDS if (value := getattr(op, name)) is not None})

    def broke(self, what: str, start: float, *, began: float | None = None) -> int:
        """Keep that something is broken; return the number to say that it was healed by."""
        self._faults.append(Fault(what=what, start=start, began=began))
        number = len(self._faults) - 1
        self._write("fault", {"number": number, "what": what, "start": start, "began": began})
        return number

    def healed(self, number: int, end: float, *, done: float | None = None, shown: bool | None = None) -> None:
        """Keep that it is broken no more: when healing began, when it was done, and whether it said that it did something."""
        self._faults[number] = replace(self._faults[number], end=end, healed=done, shown=shown)
        self._write("healed", {"number": number, "end": end, "done": done, "shown": shown})

    def event(self, event: Mapping[str, Any]) -> None:
        """Keep what a client reported: plain data with ``event``, its name, and ``at``, the run's time."""
        if self._keep:
            self._events.append(event)
        self._write("event", event)

    def sample(self, sample: Mapping[str, Any]) -> None:
        """Keep what a client said of itself: plain data with ``at``, the run's time."""
        if self._keep:
            self._samples.append(sample)
        self._write("sample", sample)

    def stopped(self, at: float) -> None:
        """Keep when callers were told to stop."""
        self._history = replace(self._history, stopped=at)
        self._write("stopped", at)

    def leaks(self, leaks: Sequence[Leak]) -> None:
        """Keep what was left behind, or that nothing was."""
        self._history = replace(self._history, leaks=tuple(leaks))
        self._write("leaks", [{"kind": leak.kind, "what": leak.what} for leak in leaks])

    def final(self, final: Mapping[int, Sequence[int]]) -> None:
        """Keep what the table held in the end."""
        if self._keep:
            self._history = replace(self._history, final={key: tuple(values) for key, values in final.items()})
        self._write("final", list(final.items()))  # pairs: the keys of an object would become text

    def history(self) -> History:
        """Return all that has happened so far, as far as it is kept."""
        return replace(
            self._history,
            operations=tuple(self._operations),
            faults=tuple(sorted(self._faults, key=lambda fault: fault.start)),
            events=tuple(self._events),
            samples=tuple(self._samples),
        )

    def _write(self, kind: str, said: object) -> None:
        if self._file is not None:
            self._file.write(json.dumps({kind: said}, default=str) + "\n")


def read(path: Path) -> History:
    """Read the file of a `Journal`, of a run that has ended or not: a last line that was cut is left out.

    Raises ValueError if it is something else, with the line.
    """
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if last:  # it has no end: the run was cut off while it was written, unless just the end is missing
        with contextlib.suppress(ValueError):
            json.loads(last)
            lines.append(last)
    found: dict[str, list[Any]] = {
        kind: [] for kind in ("run", "operation", "fault", "healed", "event", "sample", "stopped", "leaks", "final")
    }
    for number, line in enumerate(lines, 1):
        try:
            ((kind, said),) = json.loads(line).items()
            found[kind].append(said)
        except (AttributeError, KeyError, ValueError):
            raise ValueError(f"{path}:{number}: is no line of a history") from None
    if len(found["run"]) != 1:
        raise ValueError(f"{path}: is no history, or was cut off at its very beginning")
    try:
        return _history(found)
    except (TypeError, KeyError, ValueError) as e:
        raise ValueError(f"{path}: is no history of this version: {e}") from e


def _history(found: Mapping[str, list[Any]]) -> History:
    ends = {
        healed["number"]: {"end": healed["end"], "healed": healed["done"], "shown": healed.get("shown")}
        for healed in found["healed"]
    }
    faults = [
        Fault(what=f["what"], start=f["start"], began=f["began"], **ends.get(f["number"], {})) for f in found["fault"]
    ]
    (stopped,) = found["stopped"] or [None]
    (leaks,) = found["leaks"] or [None]
    (final,) = found["final"] or [None]
    return History(
        head=found["run"][0],
        operations=tuple(map(_operation, found["operation"])),
        faults=tuple(sorted(faults, key=lambda fault: fault.start)),
        stopped=stopped,
        final=None if final is None else {key: tuple(values) for key, values in final},
        leaks=None if leaks is None else tuple(Leak(kind=LeakKind(x["kind"]), what=x["what"]) for x in leaks),
        events=tuple(found["event"]),
        samples=tuple(found["sample"]),
    )


def _operation(said: dict[str, Any]) -> Operation:
    said = said | {"kind": Kind(said["kind"]), "outcome": Outcome(said["outcome"])}
    return Operation(**said | ({"seen": tuple(said["seen"])} if "seen" in said else {}))
