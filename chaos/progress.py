"""What is shown while runs are under way: lines in a pipe; on a terminal, bars below the runs that are over."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from chaos.checkers import State

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import RenderableType

__all__ = ["Progress", "progress_on"]

_BAR = 30  # columns
_CURSOR = b"\x1b[?25h\n"  # shown again, as bars hide it, and below them
_LINES = 6  # of what happened last
_MARKS = {State.OK: ("✓", "green"), State.UNKNOWN: ("?", "yellow"), State.BROKEN: ("✗", "bold red")}


class Progress(AbstractContextManager["Progress"], ABC):
    """Shows how far runs are."""

    @abstractmethod
    def begin(self, title: str, about: str, *, number: int, count: int, seconds: float, left: float) -> None:
        """Say that the run *number* of *count* begins.

        seconds: that it will take, about; left: that all will take from here on.
        """

    @abstractmethod
    def say(self, line: str) -> None:
        """Tell what happens in it."""

    @abstractmethod
    def warn(self, line: str) -> None:
        """Tell what is to stay in sight; from any thread."""

    @abstractmethod
    def let_go(self) -> None:
        """Give the terminal back in whatever state this is, waiting for nothing: the process ends at once."""

    @abstractmethod
    def end(self, state: State, brief: str, whole: str) -> None:
        """Say how it ended: in one line, and with all verdicts."""


def progress_on(stream: TextIO) -> Progress:
    """Return what fits to the stream."""
    console = Console(file=stream, highlight=False)
    return _Bars(console) if console.is_terminal and not console.is_dumb_terminal else _Lines(stream)


class _Lines(Progress):
    """A line for everything that happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        pass

    def begin(self, title: str, about: str, *, number: int, count: int, seconds: float, left: float) -> None:  # noqa: ARG002  bars need it
        self.say(f"[{number}/{count}, {_rough(left)} to go] {title}: {about}")

    def say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()  # also into a pipe

    def warn(self, line: str) -> None:
        self.say(line)

    def let_go(self) -> None:
        pass

    def end(self, state: State, brief: str, whole: str) -> None:  # noqa: ARG002  the lines have it
        self.say(f"\n{whole}\n")


class _Bars(Progress):
    """Two bars, and what happened last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = deque[str](maxlen=_LINES)
        self._title = self._about = self._warning = ""
        self._number, self._count = 0, 1
        self._began, self._seconds, self._left, self._whole = time.monotonic(), 1.0, 0.0, 1.0
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=5, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, e, at)

    def begin(self, title: str, about: str, *, number: int, count: int, seconds: float, left: float) -> None:
        if number == 1:
            self._whole = left
        self._title, self._about, self._number, self._count = title, about, number, count
        self._began, self._seconds, self._left = time.monotonic(), seconds, left
        self._lines.clear()

    def say(self, line: str) -> None:
        self._lines.append(line)

    def warn(self, line: str) -> None:
        self._warning = line

    def let_go(self) -> None:
        os.write(self._console.file.fileno(), _CURSOR)  # past the console, whose locks others may hold

    def end(self, state: State, brief: str, whole: str) -> None:
        mark, style = _MARKS[state]
        said = brief if state is State.OK else whole
        self._console.print(Text.assemble((mark, style), " ", said))

    def _picture(self) -> RenderableType:
        took = time.monotonic() - self._began
        left = max(0.0, self._left - took)
        done = 1 - left / max(self._whole, left, 1.0)
        parts: list[RenderableType] = [
            Text.assemble(
                (f"{self._title}  ", "bold"),
                *_bar(took / self._seconds),
                (f"  {min(took, self._seconds):3.0f}/{self._seconds:.0f} s", "cyan"),
            ),
            Text(f"  {self._about}", "bright_black", no_wrap=True, overflow="ellipsis"),
            *(Text(f"  {line}", _colour(line), no_wrap=True, overflow="ellipsis") for line in self._lines),
            Text.assemble(
                (f"run {self._number} of {self._count}  ", "bold"),
                *_bar(done),
                (f"  {_rough(left)} to go", "cyan"),
            ),
        ]
        if self._warning:
            parts.append(Text(self._warning, "bold yellow"))
        return Group(*parts)


def _bar(share: float) -> list[tuple[str, str]]:
    done = round(_BAR * min(1.0, max(0.0, share)))
    return [("━" * done, "cyan"), ("━" * (_BAR - done), "bright_black")]


def _colour(line: str) -> str:
    return "yellow" if " broken: " in line else "green" if " healed: " in line else "bright_black"


def _rough(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
