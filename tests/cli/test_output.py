from __future__ import annotations

import io
import json

import pytest

from dbguard.cli.output import Cell, Output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_aligns_its_columns_and_leaves_no_blanks_at_the_end() -> None:
    stream = io.StringIO()

    Output(stream).table(["name", ">count", "why"], [["a", "1", ""], ["longer", Cell("10", "red"), "x"]])

    assert stream.getvalue().splitlines() == [
        "  name    count  why",
        "  a           1",
        "  longer     10  x",
    ]


def test_item_is_wrapped_behind_its_mark() -> None:
    stream = io.StringIO()

    Output(stream).item("note:", "word " * 30)
    lines = stream.getvalue().splitlines()

    assert len(lines) == 2
    assert lines[0].startswith("note: word")
    assert lines[1].startswith("      word")


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    pipe, terminal = io.StringIO(), Terminal()

    for stream in (pipe, terminal):
        Output(stream).line("text", "bold red")

    assert pipe.getvalue() == "text\n"
    assert terminal.getvalue() == "\x1b[1;31mtext\x1b[0m\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    terminal = Terminal()

    Output(terminal).line("text", "red")

    assert terminal.getvalue() == "text\n"


def test_json_is_one_line() -> None:
    stream = io.StringIO()

    Output(stream).json({"text": "ä\n"})

    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue()) == {"text": "ä\n"}
