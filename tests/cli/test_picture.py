from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from dbguard.cli.demo.history import Ending, History, Kind, Operation
from dbguard.cli.demo.journal import Entry
from dbguard.cli.demo.live import LiveView
from dbguard.cli.demo.picture import Picture, photograph
from dbguard.cli.demo.view import PlainView, make_view
from dbguard.cli.output import Output
from dbguard.status import NodeStatus, Status


class Screen(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


def node(name: str, role: str = "replica", *, reachable: bool = True) -> NodeStatus:
    return NodeStatus(
        name=name,
        role=role,
        reachable=reachable,
        breaker="closed" if reachable else "open",
        epoch=0,
        timeline=1,
        lag=0.0,
        proven=True,
        read_only=False,
        in_use=1,
        size=16,
        problem=None,
    )


STATUS = Status(
    primary=None,
    reign=None,
    writes="failover",
    why="a is lost",
    waiting=5,
    nodes=(node("a", "primary", reachable=False), node("b"), node("c")),
    counts={"proved_applied": 2, "proved_not_applied": 3, "unknown": 0},
)


def add(history: History, kind: Kind, ending: Ending, *times: float) -> None:
    for at in times:
        history.add(Operation(kind, at, at, ending, error=None if ending is Ending.ACKNOWLEDGED else "OSError"))


def taken(guarded: History, control: History, *, now: float = 4.0, width: int = 8) -> Picture:
    return photograph(
        guarded,
        control,
        STATUS,
        now=now,
        seconds=8.0,
        down="a",
        entries=[Entry(1.5, "demo", "a, the primary, is dead"), Entry(1.6, "guard", "a does not answer")],
        width=width,
    )


def every(step: float, begin: float, end: float) -> list[float]:
    return [begin + step * n for n in range(round((end - begin) / step))]


def picture() -> Picture:
    """Four of eight seconds: all is well for two; then the guarded writes wait, and the control's fail."""
    guarded, control = History(0.0), History(0.0)
    for history in (guarded, control):
        add(history, "read", Ending.ACKNOWLEDGED, *every(0.05, 0, 4))
        add(history, "write", Ending.ACKNOWLEDGED, *every(0.1, 0, 2))
    add(control, "write", Ending.FAILED, *every(0.1, 2, 4))
    return taken(guarded, control)


def test_strip_shows_each_stretch_of_time_by_how_its_calls_went() -> None:
    seen = picture()

    assert [tile.mood for tile in seen.guarded.writes] == ["calm"] * 2 + ["waiting"] * 2 + [""] * 4
    assert [tile.mood for tile in seen.control.writes] == ["calm"] * 2 + ["failing"] * 2 + [""] * 4
    assert [tile.mood for tile in seen.guarded.reads] == ["calm"] * 4 + [""] * 4


def test_one_side_waits_while_the_other_fails() -> None:
    seen = picture()

    assert (seen.guarded.mood, seen.control.mood) == ("waiting", "failing")
    assert (seen.guarded.errors, seen.control.errors) == (0, 20)
    assert (seen.guarded.reads_per_s, seen.guarded.writes_per_s) == (20, 0)


def test_what_the_guard_proves_is_told_of_its_side_alone() -> None:
    seen = picture()

    assert (seen.guarded.unknown, seen.guarded.proved) == (0, 5)
    assert (seen.control.unknown, seen.control.proved) == (None, None)


def test_strip_is_as_wide_as_asked_even_where_a_tile_is_less_than_a_beat() -> None:
    history = History(0.0)
    add(history, "read", Ending.ACKNOWLEDGED, *every(0.05, 0, 2))

    assert len(taken(history, history, width=50).guarded.reads) == 50
    assert len(taken(history, history, width=1).guarded.reads) == 1


def test_live_view_shows_sides_nodes_and_what_happened_within_a_terminal() -> None:
    screen = Screen()
    view = LiveView(screen, "guarded", "plain")
    view._console = view._live.console = Console(file=screen, width=100, height=30, force_terminal=True)

    with view:
        view.show(picture())
    seen = screen.getvalue()

    for text in (
        "guarded",
        "control",
        "20 errors",
        "0 of unknown outcome",
        "5 proved",
        "which writes were applied: not told",
        "5 waiting",
        "down (killed)",
        "a, the primary, is dead",
        "failover",
    ):
        assert text in seen
    assert seen.count("\n") <= 60  # drawn once, taken away once


def test_plain_view_is_one_line_per_picture_and_entry() -> None:
    stream = io.StringIO()
    view = make_view(Output(stream), "guarded", "plain")

    with view:
        view.show(picture())
        view.note(Entry(1.5, "demo", "a, the primary, is dead"))
        view.note(Entry(1.6, "guard", "outcome of a write on a is unknown", counted=True))
    lines = stream.getvalue().splitlines()

    assert isinstance(view, PlainView)
    assert len(lines) == 2
    assert "guarded  20 reads/s   0 writes/s    0 errors,  5 waiting,  5 proved" in lines[0]
    assert "20 errors" in lines[0]
    assert lines[1] == "  1.5 s  >>> demo: a, the primary, is dead"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    return Screen()


def test_terminal_gets_the_live_view(terminal: Screen) -> None:
    assert isinstance(make_view(Output(terminal), "guarded", "plain"), LiveView)


def test_terminal_that_cannot_draw_gets_lines(terminal: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")

    assert isinstance(make_view(Output(terminal), "guarded", "plain"), PlainView)


def test_without_rich_a_terminal_gets_lines_and_a_word_about_it(
    terminal: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dbguard.cli.demo.live")
    monkeypatch.setitem(sys.modules, "rich.columns", None)

    assert isinstance(make_view(Output(terminal), "guarded", "plain"), PlainView)
    assert "pip install rich" in terminal.getvalue()


def test_entry_has_one_clock() -> None:
    entry = Entry(1.23456, "guard", "b was replica", {"event": "RoleChanged", "at": 99.0, "node": "b"})

    assert entry.as_dict() == {
        "at_s": 1.235,
        "source": "guard",
        "text": "b was replica",
        "event": "RoleChanged",
        "node": "b",
    }
