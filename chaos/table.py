"""What is kept of runs when their histories are gone: a table, for people and for Markdown, and one document."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import dbguard
from chaos.checkers import State
from chaos.summary import Summary, summary_of, total
from dbguard.cli.output import Cell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaos.history import Fault
    from chaos.play import Result
    from dbguard.cli.output import Output

__all__ = ["EXIT_CODES", "INTERRUPTED", "STYLES", "Entry", "document", "markdown", "table", "write_document", "written"]

_COLUMNS = (
    "scenario",
    "client",
    ">faults",
    ">calls",
    ">lost",
    ">duplicated",
    ">stale",
    ">unknown",
    ">failed reads",
    ">reads paused",
    ">writes paused",
    "verdict",
)
EXIT_CODES = {State.OK: 0, State.BROKEN: 1, State.UNKNOWN: 2}
INTERRUPTED = 130
"""The exit code after Ctrl-C."""

STYLES = {State.OK: "green", State.UNKNOWN: "yellow", State.BROKEN: "red bold"}
_COUNTS = ("faults", "calls", "lost", "duplicated", "stale", "unknown", "failed_reads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run.

    seconds: that it took, all in all.
    verdicts: state and reason, by checker.
    summary, error: its figures; None with the reason, if it could not be run to its end.
    """

    scenario: str
    about: str
    client: str
    seed: int
    seconds: float
    summary: Summary | None = None
    verdicts: Mapping[str, tuple[State, str]] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    error: str | None = None

    @classmethod
    def of(cls, result: Result, about: str, seconds: float) -> Entry:
        """Keep what is needed of a result."""
        head = result.history.head
        return cls(
            scenario=head["scenario"],
            about=about,
            client=head["client"],
            seed=head["seed"],
            seconds=seconds,
            summary=summary_of(result),
            verdicts={name: (verdict.state, verdict.told) for name, verdict in result.verdicts.items()},
            faults=result.history.faults,
        )

    @property
    def state(self) -> State:
        """The worst of the verdicts; of a run that came to no end, unknown."""
        return State.UNKNOWN if self.error else max(state for state, _ in self.verdicts.values())

    @property
    def verdict(self) -> str:
        """The state, and which checkers say so if it is not ok."""
        if self.error:
            return "not run"
        which = [name for name, (state, _) in self.verdicts.items() if state is self.state]
        return "ok" if self.state is State.OK else f"{self.state.name.lower()}: {', '.join(which)}"

    def cells(self) -> list[str]:
        """Return its line of the table."""
        said = self.summary
        if said is None:
            return [self.scenario, self.client, *["-"] * (len(_COLUMNS) - 3), self.verdict]
        counts = [getattr(said, name) for name in _COUNTS]
        shown = ["?" if count is None else f"{count:,}" for count in counts]
        return [
            self.scenario,
            self.client,
            *shown,
            f"{said.read_pause:.2f} s",
            f"{said.append_pause:.2f} s",
            self.verdict,
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        figures = {} if self.summary is None else asdict(self.summary)
        return {
            "scenario": self.scenario,
            "about": self.about,
            "client": self.client,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            **({"error": self.error} if self.error else {}),
            **figures,
            "state": self.state.name.lower(),
            "verdicts": {name: {"state": s.name.lower(), "why": why} for name, (s, why) in self.verdicts.items()},
            "injected": [{"what": fault.what, "start": fault.start, "end": fault.end} for fault in self.faults],
        }


def table(output: Output, entries: Sequence[Entry]) -> None:
    """Write the table, and the sums below it."""
    rows: list[list[Cell | str]] = [
        [*entry.cells()[:-1], Cell(entry.verdict, STYLES[entry.state])] for entry in entries
    ]
    if len(entries) > 1:
        rows.append([Cell(cell, "bold") for cell in _total(entries)])
    output.table(_COLUMNS, rows)


def markdown(entries: Sequence[Entry]) -> str:
    """Return the table as Markdown; several rounds of a scenario are one line, with their sums and longest pauses."""
    rules = ["---:" if name.startswith(">") else "---" for name in _COLUMNS]
    rounds: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        rounds.setdefault((entry.scenario, entry.client), []).append(entry)
    lines = [[name.removeprefix(">") for name in _COLUMNS], rules]
    lines += [_total(all_, *which) if len(all_) > 1 else all_[0].cells() for which, all_ in rounds.items()]
    if len(entries) > 1:
        lines.append([f"**{cell}**" if cell else "" for cell in _total(entries)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def document(entries: Sequence[Entry], *, postgres: str, interrupted: bool) -> dict[str, Any]:
    """Return everything as plain data. postgres: the version of the servers."""
    return {
        "dbguard": dbguard.__version__,
        "python": platform.python_version(),
        "postgres": postgres,
        "interrupted": interrupted,
        "state": max((entry.state for entry in entries), default=State.UNKNOWN).name.lower(),
        "total": {"runs": len(entries), **_sums(entries)},
        "runs": [entry.as_dict() for entry in entries],
    }


def write_document(said: Mapping[str, Any], file: str) -> None:
    """Write a document into *file*, or for ``-`` to standard output."""
    text = json.dumps(said, indent=1) + "\n"
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text, encoding="utf-8")


def written(people: TextIO, *files: Path | str | None) -> None:
    """Say which files were written; None, and ``-`` for standard output, are none."""
    if paths := [str(file) for file in files if file not in {None, "-"}]:
        people.write(f"written: {', '.join(paths)}\n")


def _sums(entries: Sequence[Entry]) -> dict[str, int | None]:
    """Sum up what was run; None where a run does not know its own figure."""
    known = [entry.summary for entry in entries if entry.summary is not None]
    return {name: total(getattr(summary, name) for summary in known) for name in _COUNTS}


def _total(entries: Sequence[Entry], scenario: str = "all", client: str = "") -> list[str]:
    known = [entry.summary for entry in entries if entry.summary is not None]
    reads = max((summary.read_pause for summary in known), default=0.0)
    writes = max((summary.append_pause for summary in known), default=0.0)
    good = sum(entry.state is State.OK for entry in entries)
    sums = ["?" if count is None else f"{count:,}" for count in _sums(entries).values()]
    return [scenario, client, *sums, f"{reads:.2f} s", f"{writes:.2f} s", f"{good} of {len(entries)} ok"]
