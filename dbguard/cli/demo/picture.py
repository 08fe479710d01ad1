"""One moment of the demo, as a value that any view can draw. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from dbguard.cli.demo.history import BEAT, Ending
from dbguard.cli.demo.judging import Proofs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbguard.cli.demo.history import History, Kind
    from dbguard.cli.demo.journal import Entry
    from dbguard.status import NodeStatus, Status

__all__ = ["Mood", "Picture", "SidePicture", "Tile", "photograph"]

_RATE_OVER = 4
"""Beats that a rate is taken over."""

Mood = str
"""``calm``: calls are acknowledged; ``waiting``: none is, and none fails; ``failing``: calls fail; ``""``: not yet."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A stretch of time in a strip: how much ended in it, from 0 to 1 of the most, and how that went."""

    height: float
    mood: Mood


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePicture:
    """One side: rates per second over the last second, totals, and a strip of the whole run per kind.

    unknown: writes of unknown outcome; proved: writes whose answer was lost, settled by their tokens. None: nobody tells.
    """

    reads_per_s: int
    writes_per_s: int
    acknowledged: int
    errors: int
    unknown: int | None
    proved: int | None
    mood: Mood
    reads: tuple[Tile, ...]
    writes: tuple[Tile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The whole demo.

    elapsed, seconds: how much of how much time is over. down: the node that was killed and is not back.
    """

    elapsed: float
    seconds: float
    guarded: SidePicture
    control: SidePicture
    nodes: tuple[NodeStatus, ...]
    writes: str
    waiting: int
    down: str | None
    entries: tuple[Entry, ...]


def photograph(
    guarded: History,
    control: History,
    status: Status,
    *,
    now: float,
    seconds: float,
    down: str | None,
    entries: Sequence[Entry],
    width: int,
) -> Picture:
    """Take the picture; *width*: tiles per strip."""
    elapsed = min(now - guarded.began, seconds)
    return Picture(
        elapsed=elapsed,
        seconds=seconds,
        guarded=_side(guarded, elapsed, seconds, width, Proofs.of(status.counts).all),
        control=_side(control, elapsed, seconds, width, None),
        nodes=status.nodes,
        writes=status.writes,
        waiting=status.waiting,
        down=down,
        entries=tuple(entries),
    )


def _side(history: History, elapsed: float, seconds: float, width: int, proved: int | None) -> SidePicture:
    reads, writes = (_strip(history, kind, elapsed, seconds, width) for kind in ("read", "write"))
    last = int(elapsed / BEAT)
    recent = [history.beat(kind, number) for kind in ("read", "write") for number in (last - 1, last)]
    failing = any(beat.failed for beat in recent)
    moods = {_mood(history, kind, range(last - 1, last + 1)) for kind in ("read", "write")}
    return SidePicture(
        reads_per_s=_rate(history, "read", last),
        writes_per_s=_rate(history, "write", last),
        acknowledged=history.count(Ending.ACKNOWLEDGED),
        errors=history.count(Ending.FAILED),
        unknown=None if proved is None else history.count(Ending.UNKNOWN),
        proved=proved,
        mood="failing" if failing else "waiting" if "waiting" in moods else "calm",
        reads=reads,
        writes=writes,
    )


def _rate(history: History, kind: Kind, last: int) -> int:
    """Acknowledged per second, over the full beats before *last*."""
    beats = [history.beat(kind, number) for number in range(max(0, last - _RATE_OVER), last)]
    return round(sum(beat.acknowledged for beat in beats) / (len(beats) * BEAT)) if beats else 0


def _mood(history: History, kind: Kind, numbers: range) -> Mood:
    beats = [history.beat(kind, number) for number in numbers]
    if any(beat.failed for beat in beats):
        return "failing"
    return "calm" if any(beat.acknowledged for beat in beats) else "waiting"


def _strip(history: History, kind: Kind, elapsed: float, seconds: float, width: int) -> tuple[Tile, ...]:
    """Cut the run into *width* tiles of whole beats, as equal as they can be."""
    total = max(1, round(seconds / BEAT))
    over = int(elapsed / BEAT)
    edges = [round(total * n / width) for n in range(width + 1)]
    spans = [range(low, max(low + 1, high)) for low, high in pairwise(edges)]
    ended = [sum(_all(history, kind, number) for number in span) / len(span) for span in spans]
    most = max(*ended, 1.0) if len(ended) > 1 else max(ended[0], 1.0)
    return tuple(
        Tile(count / most, _mood(history, kind, span) if span.stop <= over else "")
        for count, span in zip(ended, spans, strict=True)
    )


def _all(history: History, kind: Kind, number: int) -> int:
    beat = history.beat(kind, number)
    return beat.acknowledged + beat.failed
