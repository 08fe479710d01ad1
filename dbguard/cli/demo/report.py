"""What the demo says at its end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dbguard.cli.demo.judging import faults
from dbguard.cli.output import Cell

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from dbguard.cli.demo.journal import Entry
    from dbguard.cli.demo.judging import Figures
    from dbguard.cli.output import Output

__all__ = ["as_json", "report"]

_MOST_KINDS = 3


def report(
    output: Output,
    guarded: Figures,
    control: Figures,
    guarded_errors: Counter[str],
    control_errors: Counter[str],
    survivor: str,
    *,
    excuse: str | None,
) -> None:
    """Write the table of both sides, and the judgement.

    guarded_errors, control_errors: the classes of errors that clients got, counted.
    survivor: the primary at the end, where the tables were read back.
    excuse: why guarded writes may stay of unknown outcome; None: none may.
    """
    output.line()
    output.table(["", ">guarded", ">control"], _rows(guarded, control))
    output.line()
    for name, errors in (("guarded", guarded_errors), ("control", control_errors)):
        if errors:
            output.item(f"{name}:", f"what its clients got: {_kinds(errors)}")
    if control.failed_applied:
        output.item(
            "control:",
            f"of the writes that raised an error, {_are(control.failed_applied)} in the table all the same: "
            "whoever repeats on every error writes them twice",
        )
    if proved := guarded.proved_applied + guarded.proved_not_applied:
        output.item(
            "guarded:",
            f"{proved} writes lost their answer when the primary died. Their tokens proved on {survivor} what had become "
            f"of them: {guarded.proved_applied} applied, {guarded.proved_not_applied} not applied, and so sent once more",
        )
    if guarded.result_lost:
        output.item(
            "guarded:",
            f"{guarded.result_lost} of those that were applied had rows to return, which are lost: their clients were "
            "told so (ResultLost)",
        )
    if guarded.unknown:
        output.item(
            "guarded:",
            f"{guarded.unknown} writes were in flight when the primary died, and nobody could tell in time what became "
            f"of them: their clients were told so (OutcomeUnknown). {_are(guarded.unknown_applied).capitalize()} in the "
            f"table{'' if excuse is None else '. ' + excuse}",
        )
    found = faults(guarded, excuse)
    if found:
        output.item("FAILED: ", "; ".join(found), "bold red")
    else:
        output.item(
            "OK:     ",
            f"read back on {survivor}: each of the {guarded.writes:,} acknowledged guarded writes is there, once, "
            "and no client saw an error",
            "bold green",
        )


def as_json(guarded: Figures, control: Figures, entries: Sequence[Entry], outage: float) -> dict[str, Any]:
    """Return the result as plain data.

    outage: seconds without a primary; infinite if nobody took its place, which is None in JSON.
    """
    return {
        "outage_s": round(outage, 3) if math.isfinite(outage) else None,
        "guarded": guarded.as_dict(),
        "control": control.as_dict(),
        "events": [entry.as_dict() for entry in entries],
    }


def _rows(guarded: Figures, control: Figures) -> list[list[Cell | str]]:
    both = (guarded, control)
    proved = guarded.proved_applied + guarded.proved_not_applied
    return [
        ["reads acknowledged", *(f"{side.reads:,}" for side in both)],
        ["writes acknowledged", *(f"{side.writes:,}" for side in both)],
        ["errors", *(_must_be_0(side.errors) for side in both)],
        ["writes of unknown outcome", f"{guarded.unknown:,}", Cell("not told", "dim")],
        ["answer lost, outcome proved by a token", f"{proved:,}", Cell("no token", "dim")],
        ["lost: acknowledged, not in the table", *(_must_be_0(side.lost) for side in both)],
        ["duplicated: in the table more than once", *(_must_be_0(side.duplicated) for side in both)],
        ["longest pause between two reads", *(_seconds(side.read_gap_s) for side in both)],
        ["longest pause between two writes", *(_seconds(side.write_gap_s) for side in both)],
        ["first write after the promotion", *(_seconds(side.write_gap_after_promotion_s) for side in both)],
    ]


def _kinds(errors: Counter[str]) -> str:
    said = [f"{count} x {name}" for name, count in errors.most_common(_MOST_KINDS)]
    more = len(errors) - len(said)
    return ", ".join(said) + (f", {more} more kinds" if more else "")


def _must_be_0(count: int) -> Cell:
    return Cell(f"{count:,}", "bold red" if count else "bold green")


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _are(count: int) -> str:
    return "none is" if count == 0 else "one is" if count == 1 else f"{count} are"
