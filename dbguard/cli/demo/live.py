"""The live view: both sides next to each other, the nodes, and what happened last. The one place that imports rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TextIO

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from dbguard.cli.demo.journal import Entry
    from dbguard.cli.demo.picture import Mood, Picture, SidePicture, Tile
    from dbguard.status import NodeStatus

__all__ = ["LiveView"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_COLOURS: dict[Mood, str] = {"calm": "green", "waiting": "yellow", "failing": "red", "": "bright_black"}
_SAID: dict[Mood, str] = {"calm": "ok", "waiting": "no error, calls wait", "failing": "FAILING"}
_OTHER_LINES = 18
"""Lines of the view beside the entries."""


class LiveView:
    """Draws on a terminal, five times a second, and takes the drawing away at the end.

    guarded, control: what the sides are called.
    """

    every = 0.2

    def __init__(self, stream: TextIO, guarded: str, control: str) -> None:
        self._guarded, self._control = guarded, control
        self._console = Console(file=stream)
        self._columns = min(self._console.width, 140)
        self.width = max(10, self._columns // 2 - 24)
        self.entries = max(3, self._console.height - _OTHER_LINES)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, e, at)

    def show(self, picture: Picture) -> None:
        """Draw the present state."""
        sides = Columns(
            [
                self._panel("guarded", self._guarded, picture.guarded, waiting=picture.waiting),
                self._panel("control", self._control, picture.control),
            ],
            width=self._columns // 2,
            padding=0,
        )
        self._live.update(
            Group(self._clock(picture), sides, self._nodes(picture), self._entries(picture.entries)), refresh=True
        )

    def note(self, entry: Entry) -> None:
        """Nothing to do: the next picture has it."""

    def _clock(self, picture: Picture) -> Text:
        bar = self._columns - 26
        done = round(bar * picture.elapsed / picture.seconds)
        text = Text("dbguard demo  ", style="bold")
        text.append("━" * done, "cyan").append("━" * (bar - done), "bright_black")
        return text.append(f" {picture.elapsed:4.1f}/{picture.seconds:g} s", "cyan")

    def _panel(self, name: str, what: str, side: SidePicture, *, waiting: int | None = None) -> Panel:
        colour = _COLOURS["failing" if side.mood == "failing" else "calm"]
        totals = Text().append(f"{side.acknowledged:,}", "bold").append(" acknowledged   ")
        totals.append(f"{side.errors:,} errors", "bold red" if side.errors else "bold green")
        queue = Text("" if waiting is None else f"{waiting} waiting", "yellow" if waiting else "bright_black")
        body = Group(
            self._strip("reads", side.reads, side.reads_per_s),
            self._strip("writes", side.writes, side.writes_per_s),
            totals,
            _outcomes(side),
            queue,
        )
        title = Text.assemble((name, f"bold {colour}"), (f"  {what} ", "bright_black"))
        return Panel(
            body,
            title=title,
            title_align="left",
            subtitle=Text(_SAID[side.mood], _COLOURS[side.mood]),
            border_style=colour,
        )

    def _strip(self, name: str, tiles: tuple[Tile, ...], rate: int) -> Text:
        text = Text(f"{name:<7}", "bright_black", no_wrap=True)
        for tile in tiles:
            if not tile.mood:
                text.append("·", "bright_black")
            else:
                block = _BLOCKS[min(len(_BLOCKS) - 1, int(tile.height * len(_BLOCKS)))]
                text.append(block, _COLOURS[tile.mood])
        return text.append(f" {rate:>4}/s")

    def _nodes(self, picture: Picture) -> Table:
        table = Table(box=None, padding=(0, 3, 0, 1), header_style="bright_black")
        for column in ("node", "role", "breaker", "lag", "leases out", "timeline"):
            table.add_column(column)
        for node in picture.nodes:
            role, style = _role(node, down=node.name == picture.down)
            breaker_style = "green" if node.breaker == "closed" else "red"
            lag = "" if node.lag is None or role != "replica" else f"{node.lag:.1f} s"
            leases = f"{node.in_use} of {node.size}"
            table.add_row(
                node.name,
                Text(role, style),
                Text(node.breaker, breaker_style),
                lag,
                leases,
                "" if node.timeline is None else str(node.timeline),
            )
        style = "green" if picture.writes == "open" else "yellow"
        table.add_row("", Text(f"writes: {picture.writes}", style))
        return table

    def _entries(self, entries: tuple[Entry, ...]) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for entry in entries:
            text.append(f" {max(0.0, entry.at):5.1f} s  ", "bright_black")
            text.append(f"{entry.source:<6}", "cyan" if entry.source == "demo" else "bright_black")
            text.append(f"{entry.text}\n", "bold" if entry.source == "demo" else "")
        return text


def _outcomes(side: SidePicture) -> Text:
    """Say what is known of the writes whose answer was lost."""
    if side.unknown is None:
        return Text("which writes were applied: not told", "bright_black", no_wrap=True)
    text = Text(f"{side.unknown} of unknown outcome", "yellow" if side.unknown else "bright_black", no_wrap=True)
    return text.append(f"   {side.proved} proved", "bold green" if side.proved else "bright_black")


def _role(node: NodeStatus, *, down: bool) -> tuple[str, str]:
    if not node.reachable:
        return ("down (killed)" if down else "not reached"), "red"
    return node.role, {"primary": "bold green", "replica": "green", "fenced": "red"}.get(node.role, "yellow")
