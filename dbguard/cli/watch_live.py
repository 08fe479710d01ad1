"""The picture of ``dbguard watch``: nodes, episodes, and events that scroll. Fits 80 columns."""

from __future__ import annotations

import textwrap
import time
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dbguard.cli.watch import brief, shown_for

if TYPE_CHECKING:
    from collections import deque
    from types import TracebackType

    from dbguard.cli.watch import Heard
    from dbguard.core.episode import Episode
    from dbguard.status import NodeStatus, Status

__all__ = ["LiveWatch"]

_ROLES = {"primary": "bold green", "replica": "green", "unknown": "yellow"}
_LEVELS = {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold white on red"}
_WRITES = {"open": "bold green", "suspect": "yellow"}
_SAID = {"open": "writes flow", "suspect": "writes flow, in doubt", "failover": "WRITES STOPPED", "down": "WRITES FAIL"}
_EPISODES = 3
_OTHER_LINES = 10
"""Lines of the picture beside nodes, episodes and events."""


class LiveWatch:
    """Draws on a terminal, and leaves the last picture standing."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._console = Console(file=stream, highlight=False)
        self._name = name
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, e, at)

    def note(self, heard: Heard) -> None:
        """Nothing to do: the next picture has it."""

    def show(self, status: Status, heard: deque[Heard]) -> None:
        """Draw the present state: as many of the last events as there are lines left."""
        width, height = self._console.size
        episodes = [_episode(episode, width) for episode in status.episodes[-_EPISODES:]]
        left = height - _OTHER_LINES - len(status.nodes) - sum(text.plain.count("\n") + 1 for text in episodes)
        picture = Group(
            self._head(status),
            Text("\nnodes", "bright_black"),
            _nodes(status),
            Text("\nepisodes", "bright_black"),
            *episodes,
            Text("\nevents", "bright_black"),
            _events(heard, width, max(2, left)),
        )
        self._live.update(picture, refresh=True)

    def _head(self, status: Status) -> Text:
        now = time.strftime("%H:%M:%S", time.localtime(status.at))
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("dbguard watch ", "bold").append(f"{self._name}  {now}\n", "bright_black")
        text.append(_SAID[status.writes], _WRITES.get(status.writes, "bold red"))
        text.append(f" for {shown_for(status.writes_since, status.at)}")
        if status.writes != "open":
            text.append(f": {status.why}", "yellow")
        elif status.primary is not None:
            text.append(f", to {status.primary}")
        return text


def _nodes(status: Status) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    table.add_column("", max_width=20, no_wrap=True, overflow="ellipsis")
    for name in ("role", "answers", "breaker"):
        table.add_column(name, no_wrap=True)
    for name in ("lag", "tli", "epoch"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in status.nodes:
        table.add_row(*_cells(node, status))
    return table


def _cells(node: NodeStatus, status: Status) -> tuple[str | Text, ...]:
    answers = Text("yes" if node.reachable else "NO", "green" if node.reachable else "bold red")
    breaker = Text(node.breaker, "green" if node.breaker == "closed" else "bold red")
    unusable = brief(node) == "unusable"
    return (
        node.name,
        Text(
            "unusable" if unusable else node.role,
            _ROLES.get(node.role, "bold red") if node.reachable else "bright_black",
        ).append(f" {shown_for(node.role_since, status.at)}", "bright_black"),
        answers.append(f" {shown_for(node.reachable_since, status.at)}", "bright_black"),
        breaker.append(f" {shown_for(node.breaker_since, status.at)}", "bright_black"),
        "" if node.lag is None or not node.proven or not node.reachable else f"{node.lag:.1f} s",
        "" if node.timeline is None or not node.reachable else str(node.timeline),
        str(node.epoch),
    )


def _episode(episode: Episode, width: int) -> Text:
    style = "green" if episode.kind == "start-up" and episode.over else "yellow" if episode.over else "bold red"
    return Text("\n".join(textwrap.wrap(episode.text(), width, subsequent_indent="    ")), style)


def _events(heard: deque[Heard], width: int, lines: int) -> Text:
    """Return the last *lines* lines of the events; an event that is longer than a line goes on below, indented."""
    said: list[tuple[str, str]] = []
    for event in heard:
        wrapped = textwrap.wrap(event.text, width - 10, break_long_words=True) or [""]
        style = _LEVELS.get(event.level, "")
        for number, line in enumerate(wrapped):
            said.append((f"{event.clock if number == 0 else '':8}  {line}", style))
    text = Text(no_wrap=True, overflow="ellipsis")
    for line, style in said[-lines:]:
        text.append(line[:10], "bright_black").append(line[10:] + "\n", style)
    return text
