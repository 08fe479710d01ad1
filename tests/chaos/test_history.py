"""A history on disk is the history that was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from chaos.history import Fault, History, Kind, Operation, Outcome

if TYPE_CHECKING:
    from pathlib import Path

HISTORY = History(
    operations=(
        Operation(client="w", kind=Kind.APPEND, start=-0.5, end=0.25, outcome=Outcome.RESULT_LOST, value=3),
        Operation(client="r", kind=Kind.READ, start=0.5, end=1.0, outcome=Outcome.FAILED, error="OSError: ü\n"),
        Operation(client="r", kind=Kind.READ, start=1.5, end=2.0, outcome=Outcome.OK, value=3, node="b"),
    ),
    faults=(Fault(what="a hole", start=0.25, end=1.25),),
    final=(3, 4),
    events=({"event": "NodeDown", "at": 1.0, "node": "b"},),
)


@pytest.mark.parametrize("history", [HISTORY, History(), History(final=())])
def test_history_is_read_as_it_was_written(history: History, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text("\n".join(history.lines()) + "\n")

    found = History.read(file)

    assert found == history
    assert found.events == history.events
    assert all(isinstance(op.outcome, Outcome) and isinstance(op.kind, Kind) for op in found.operations)


def test_every_line_is_one_json_object() -> None:
    assert [next(iter(json.loads(line))) for line in HISTORY.lines()] == [
        *("operation", "operation", "operation"),
        *("fault", "event", "final"),
    ]


@pytest.mark.parametrize("line", ["", "7", "{}", '{"what": 1}', '{"final": [1], "fault": {}}', "{"])
def test_strange_line_is_told_with_its_number(line: str, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(f'{{"event": {{}}}}\n{line}\n{{"final": []}}\n')

    with pytest.raises(ValueError, match=rf"{file}:2: "):
        History.read(file)


def test_history_that_was_cut_off_is_no_history(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text("\n".join(list(HISTORY.lines())[:-1]))

    with pytest.raises(ValueError, match="was cut off"):
        History.read(file)


def test_operations_of_the_warm_up_are_not_of_the_run() -> None:
    assert [op.start for op in HISTORY.of(Kind.READ)] == [0.5, 1.5]
    assert HISTORY.of(Kind.APPEND) == []
