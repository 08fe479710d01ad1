"""Words on a terminal or into a pipe: lines, tables, colours.

Colours are for terminals alone, and not where ``NO_COLOR`` is set or ``TERM`` is ``dumb``.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Cell", "Output", "complain"]

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_NARROWEST = 60


@dataclass(frozen=True, slots=True)
class Cell:
    """A text with a style: words of ``bold dim red green yellow cyan``."""

    text: str
    style: str = ""


class Output:
    """One stream that people or programs read.

    terminal: somebody looks at it. can_draw: and the cursor can be moved there.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self.can_draw = self.terminal and os.environ.get("TERM") != "dumb"
        self._coloured = self.can_draw and not os.environ.get("NO_COLOR")

    @property
    def width(self) -> int:
        """Columns to write in."""
        return max(_NARROWEST, get_terminal_size((100, 30)).columns) if self.terminal else 100

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line."""
        self.stream.write(self._styled(text, style) + "\n")
        self.stream.flush()

    def item(self, mark: str, text: str, style: str = "") -> None:
        """Write a text behind a mark, wrapped and indented."""
        lines = textwrap.wrap(text, self.width - len(mark) - 1) or [""]
        for number, line in enumerate(lines):
            shown = self._styled(mark, style) if number == 0 else " " * len(mark)
            self.stream.write(f"{shown} {line}\n")
        self.stream.flush()

    def json(self, value: Any) -> None:
        """Write a value as one line of JSON."""
        self.stream.write(json.dumps(value, default=str, ensure_ascii=False) + "\n")
        self.stream.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, indent: str = "  ") -> None:
        """Write a table; a column whose name begins with ``>`` is right-aligned."""
        right = [name.startswith(">") for name in columns]
        cells = [[Cell(name.removeprefix(">"), "dim") for name in columns]]
        cells += [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        widths = [max(len(cell.text) for cell in column) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = [
                Cell(cell.text.rjust(width) if to_right else cell.text.ljust(width), cell.style)
                for cell, width, to_right in zip(row, widths, right, strict=True)
            ]
            shown = "  ".join(self._styled(cell.text, cell.style) for cell in padded)
            self.stream.write(f"{indent}{shown}".rstrip() + "\n")
        self.stream.flush()

    def _styled(self, text: str, style: str) -> str:
        if not self._coloured or not style:
            return text
        codes = ";".join(_COLOURS[word] for word in style.split())
        return f"\x1b[{codes}m{text}\x1b[0m"


def complain(text: str) -> None:
    """Write an error to standard error, in the one form that all commands have."""
    sys.stderr.write(f"dbguard: error: {text}\n")
