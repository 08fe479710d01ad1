"""A history on disk is the history that was written, as far as it was written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from chaos.history import Fault, History, Kind, Leak, LeakKind, Operation, Outcome
from chaos.journal import Journal, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HISTORY = History(
    head={"scenario": "x", "client": "guard", "seed": 7},
    operations=(
        Operation(client="w", kind=Kind.APPEND, start=-0.5, end=0.25, outcome=Outcome.RESULT_LOST, key=1, value=3),
        Operation(client="r", kind=Kind.READ, start=0.5, end=1.0, outcome=Outcome.FAILED, error="OSError: ü\n", key=1),
        Operation(
            client="r",
            kind=Kind.READ,
            start=1.5,
            end=2.1,
            outcome=Outcome.OK,
            seen=(3, 4),
            key=1,
            node="b",
            deadline=11.5,
        ),
        Operation(client="r", kind=Kind.READ, start=1.5, end=2.1, outcome=Outcome.OK, seen=(), key=2, node="b"),
    ),
    faults=(Fault(what="a hole", start=0.25, end=1.25, shown=False), Fault(what="another", start=0.5)),
    events=({"event": "NodeDown", "at": 1.0, "node": "b"},),
    samples=({"at": -0.5, "waiting": 0}, {"at": 0.5, "gate": "open", "nodes": {"a": "primary"}}),
    stopped=2.0,
    leaks=(Leak(kind=LeakKind.LOCK, what="b: 1 holds X"),),
    final={1: (3, 4), 10: ()},
)


def write(history: History, file: Path | None = None) -> History:
    """Write a history as a run would; return what the journal has in memory."""
    with Journal(0.0, path=file, **history.head) as journal:
        numbers = [journal.broke(fault.what, fault.start) for fault in history.faults]
        for op in history.operations:
            journal.operation(op)
        for number, fault in zip(numbers, history.faults, strict=True):
            if fault.end is not None:
                journal.healed(number, fault.end, shown=fault.shown)
        for event in history.events:
            journal.event(event)
        for sample in history.samples:
            journal.sample(sample)
        if history.stopped is not None:
            journal.stopped(history.stopped)
        if history.leaks is not None:
            journal.leaks(history.leaks)
        if history.final is not None:
            journal.final(history.final)
        return journal.history()


@pytest.mark.parametrize(
    "history", [HISTORY, History(), History(final={}, leaks=()), replace(HISTORY, final=None, leaks=None, stopped=None)]
)
def test_history_is_read_as_it_was_written(history: History, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"

    assert write(history, file) == history
    found = read(file)
    assert found == history
    assert all(isinstance(op.outcome, Outcome) and isinstance(op.kind, Kind) for op in found.operations)


def test_history_that_was_written_before_there_were_samples_is_read(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    write(HISTORY, file)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith('{"sample"')))

    assert read(file) == replace(HISTORY, samples=())


def test_every_history_comes_back(honest: Callable[[int], History], tmp_path: Path) -> None:
    for seed in range(20):
        file = tmp_path / f"{seed}.jsonl"
        write(honest(seed), file)
        assert read(file) == honest(seed)


def test_journal_without_a_file_keeps_the_same() -> None:
    assert write(HISTORY) == HISTORY


def test_every_line_is_one_json_object_and_is_there_at_once(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    journal = Journal(0.0, path=file, seed=1)
    seen = [file.read_text()]
    number = journal.broke("a hole", 1.0)
    seen.append(file.read_text())
    journal.operation(HISTORY.operations[0])
    seen.append(file.read_text())
    journal.healed(number, 2.0)
    seen.append(file.read_text())

    assert [len(text.splitlines()) for text in seen] == [1, 2, 3, 4]
    assert [next(iter(json.loads(line))) for line in seen[-1].splitlines()] == ["run", "fault", "operation", "healed"]
    with journal:
        pass  # closes it


def test_history_that_was_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    file, cut = tmp_path / "history.jsonl", tmp_path / "cut.jsonl"
    write(HISTORY, file)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)

    for length in range(len(lines[0]), len(whole)):
        cut.write_bytes(whole[:length])
        found = read(cut)
        # a line of which only the end is missing is whole
        complete = whole[:length].count(b"\n") + (whole[length : length + 1] == b"\n")
        kinds = [next(iter(json.loads(line))) for line in lines[:complete]]
        assert len(found.operations) == kinds.count("operation")
        assert found.operations == HISTORY.operations[: len(found.operations)]
        assert len(found.faults) == kinds.count("fault")
        assert (found.final is not None) is ("final" in kinds)
        assert (found.leaks is not None) is ("leaks" in kinds)


@pytest.mark.parametrize("line", ["", "7", "{}", '{"what": 1}', '{"final": [], "fault": {}}', '{"operation": {"cli'])
def test_strange_line_is_told_with_its_number(line: str, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(f'{{"run": {{}}}}\n{line}\n{{"final": []}}\n')

    with pytest.raises(ValueError, match=rf"{file}:2: "):
        read(file)


@pytest.mark.parametrize("text", ["", '{"run": {', '{"final": []}\n', '{"run": {}}\n{"run": {}}\n'])
def test_file_that_does_not_begin_as_a_history_is_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(text)

    with pytest.raises(ValueError, match=f"{file}: is no history"):
        read(file)


@pytest.mark.parametrize("said", [{}, {"kind": "dance"}, {"kind": "read", "outcome": "ok", "clients": "r"}])
def test_operation_that_is_none_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(f'{{"run": {{}}}}\n{json.dumps({"operation": said})}\n')

    with pytest.raises(ValueError, match="is no history of this version"):
        read(file)


def test_operations_of_the_warm_up_are_not_of_the_run() -> None:
    assert [op.start for op in HISTORY.of(Kind.READ)] == [0.5, 1.5, 1.5]
    assert HISTORY.of(Kind.APPEND) == []
