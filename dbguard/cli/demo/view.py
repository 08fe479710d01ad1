"""What is seen while the demo runs: lines for a pipe. The live view for terminals is `live`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType

    from dbguard.cli.demo.journal import Entry
    from dbguard.cli.demo.picture import Picture, SidePicture
    from dbguard.cli.output import Output

__all__ = ["PlainView", "View", "make_view"]


class View(Protocol):
    """Shows pictures and entries; a context manager, so that a terminal is left as it was found.

    every: seconds between two pictures. width: tiles that a strip has room for. entries: how many entries a picture needs.
    """

    every: float
    width: int
    entries: int

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        """Leave the terminal as it was."""

    def show(self, picture: Picture) -> None:
        """Show the present state."""

    def note(self, entry: Entry) -> None:
        """Show that something happened."""


class PlainView:
    """One line per second, and one for each thing that happens."""

    every = 1.0
    width = 1
    entries = 1

    def __init__(self, output: Output) -> None:
        self._output = output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        pass

    def show(self, picture: Picture) -> None:
        """Write the rates and errors of both sides."""
        sides = "  |  ".join(
            (
                f"guarded {_rates(picture.guarded)}, {picture.waiting:>2} waiting, {picture.guarded.proved:>2} proved",
                f"control {_rates(picture.control)}",
            )
        )
        self._output.line(f"{picture.elapsed:5.1f} s  {sides}")

    def note(self, entry: Entry) -> None:
        """Write what happened."""
        if entry.counted:
            return
        mark = ">>>" if entry.source == "demo" else "   "
        self._output.line(f"{max(0.0, entry.at):5.1f} s  {mark} {entry.source}: {entry.text}")


def make_view(output: Output, guarded: str, control: str) -> View:
    """Choose the view: live on a terminal where rich is installed, otherwise lines. guarded, control: names of the sides."""
    if output.can_draw:
        try:
            from dbguard.cli.demo.live import LiveView  # noqa: PLC0415  it needs rich, which is an extra
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.partition(".")[0] != "rich":
                raise
            output.line("(for a live view: pip install rich)", "dim")
        else:
            return LiveView(output.stream, guarded, control)
    return PlainView(output)


def _rates(side: SidePicture) -> str:
    return f"{side.reads_per_s:>3} reads/s {side.writes_per_s:>3} writes/s {side.errors:>4} errors"
