"""Episodes: one failover told as one story, from the first sign of trouble until the calls that waited were let go.

    first sign        writes stop          a primary is found        the last waiting call goes      announced
    |---- noticed ----|------ stopped ------|-- drained --|                    |                         |
                                            |------------- released -----------|------ AFTERMATH --------|

An episode begins with whatever is heard first: a call that fails on the primary, a probe that it leaves unanswered,
another node that claims to be primary. All events told until it is announced carry its id. Starting up is an episode
of its own. Which kind it was is known at its end: see `Episode.kind`.

`Chronicle` folds events into episodes. It learns nothing in any other way, so that whoever has the events has the story.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dbguard.events import (
    BreakerChanged,
    Contested,
    Drained,
    EpisodeEnded,
    Event,
    GateChanged,
    NodeDown,
    NodeFenced,
    NodeUp,
    OutcomeLeftOpen,
    OutcomeResolved,
    PrimaryChanged,
    RoleChanged,
    SplitBrainSeen,
    WriteMayBeLost,
    WritesPaused,
    WritesResumed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dbguard.core.gate import Gate

__all__ = ["AFTERMATH", "Chronicle", "Episode"]

AFTERMATH = 1.0
"""Seconds of calm after which an episode is announced: calls whose connections were ended hear of it at once, and what
becomes of their writes belongs to the story. Trouble within it belongs to the same episode."""

SETTLING = 10.0
"""Seconds after its end for which an episode is kept open at most, while outcomes of its writes are still being told."""

KEPT = 8
"""Episodes remembered; suspicions that cost nothing are not among them."""

_STOPPED = ("failover", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One disturbance of writes. Durations are in seconds; None: there was no such phase.

    id: the second when it began (since the epoch, in hexadecimal digits) and its number: short, and ids of many processes
        sort by time. number: counts from 1 in this process, start-up included.
    kind: ``start-up``; ``switchover``: another primary, during a pause by the application; ``pause``: one without that;
        ``failover``: another primary, or another reign; ``interruption``: writes stopped, and the same
        primary came back; ``refusal``: writes were refused (split brain, contested) and go on under the same primary;
        ``suspicion``: writes never stopped.
    over: it has ended; what follows is as far as it has come otherwise. began_at: seconds since the epoch.
    why: the first sign. was, primary: the primary before and after.
    seconds: from the first sign until the last waiting call was let go.
    noticed: from the first sign until writes were stopped. stopped: until a primary was found. drained: from then until
        stale connections were told to end. released: until the last waiting call was let go.
    stops: how often writes were stopped. refused: why they were refused, if they were. lost_bytes: how far the new reign
        begins below an acknowledged position, if it was seen to.
    waited, repeated: calls that waited for a primary; attempts that were repeated. unknown: `OutcomeUnknown` raised.
    settled: how often a token proved one. connections: closed or ended because they were stale.
    """

    id: str
    number: int
    kind: str
    over: bool
    began_at: float | None
    why: str
    was: str | None
    primary: str | None
    seconds: float
    noticed: float | None
    stopped: float | None
    drained: float | None
    released: float | None
    stops: int
    refused: str | None
    lost_bytes: int | None
    waited: int
    repeated: int
    unknown: int
    settled: int
    connections: int

    @property
    def harmless(self) -> bool:
        """Whether it was a suspicion that cost nobody anything."""
        return self.kind == "suspicion" and not (self.waited or self.unknown or self.connections)

    def text(self) -> str:
        """Return the whole of it as one line."""
        name = f"{self.kind} {self.number}"
        if not self.over:
            return f"{name}, not over yet: began {self.seconds:.2f} s ago ({self.why}); {self._counts()}"
        match self.kind:
            case "start-up":
                waited = f"; {_many(self.waited, 'call')} waited" if self.waited else ""
                return f"{name}: primary {self.primary} found after {self.seconds:.2f} s{waited}"
            case "suspicion":
                return f"{name}: over after {self.seconds:.2f} s ({self.why}); writes did not stop; {self._counts()}"
            case "failover" | "switchover":
                what = f"{self.was} -> {self.primary} in {self.seconds:.2f} s"
            case "refusal" | "pause":
                what = f"writes go to {self.primary} again after {self.seconds:.2f} s"
            case _:
                what = f"{self.primary} is back after {self.seconds:.2f} s"
        also = f"; writes were refused: {self.refused}" if self.refused else ""
        if self.lost_bytes:
            also += f"; WRITES MAY BE LOST ({self.lost_bytes:,} bytes)"
        return f"{name}: {what} ({self._phases()}){also}; {self._counts()}"

    def _phases(self) -> str:
        said = []
        if self.stopped is None:
            return "writes did not stop"
        if self.noticed is not None:
            said.append(f"noticed in {self.noticed:.2f}")
        again = f" ({self.stops} times)" if self.stops > 1 else ""
        said.append(f"writes stopped for {self.stopped:.2f}{again}")
        if self.drained is not None:
            said.append(f"connections drained in {self.drained:.2f}")
        said.append(f"waiting calls released in {self.released or 0.0:.2f} s")
        return ", ".join(said)

    def _counts(self) -> str:
        said = [
            f"{_many(self.waited, 'call')} waited",
            f"{_many(self.unknown, 'outcome')} unknown",
            f"{_many(self.connections, 'connection')} ended",
        ]
        if self.settled:
            said.insert(2, f"{self.settled} settled by token")
        return ", ".join(said)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass(slots=True)
class _Course:
    """An episode that is under way."""

    id: str
    number: int
    began: float
    began_at: float | None
    why: str
    was: str | None
    counts: Mapping[str, int]
    """As they were when it began."""
    starting: bool = False
    flows: bool = True
    """Writes flow: the gate is open, and there is no pause."""
    open: bool = True
    paused: bool = False
    planned: bool = False
    """The application has paused writes in it."""
    stopped_at: float | None = None
    found_at: float | None = None
    drained_at: float | None = None
    last_at: float = 0.0
    """When the last sign of trouble, or of its end, was heard."""
    settling_at: float = float("-inf")
    """When the last outcome of a write was told."""
    stops: int = 0
    changed: bool = False
    refused: str | None = None
    lost_bytes: int | None = None
    connections: int = 0
    unknown_on: set[str] = field(default_factory=set)


class Chronicle:
    """The episodes of one guard: the one under way, and the last ones. Not locked: whoever holds the guard's lock calls.

    counts: the guard's, live: what was counted in an episode is the difference. gate: asked how far a release is.
    now: when the guard begins, on its clock. wall: seconds since the epoch; None: ids bear the number alone.
    """

    def __init__(
        self, counts: Mapping[str, int], gate: Gate, now: float, wall: Callable[[], float] | None = None
    ) -> None:
        self._counts = counts
        self._gate = gate
        self._wall = wall
        self._number = 0
        self._primary: str | None = None
        self._past: deque[Episode] = deque(maxlen=KEPT)
        self._course: _Course | None = self._begin(now, now, "the guard was opened")
        self._course.starting = True
        self._course.open = self._course.flows = False

    @property
    def id(self) -> str | None:
        """The id of the episode under way; None if there is none."""
        return self._course.id if self._course is not None else None

    def episodes(self, now: float) -> tuple[Episode, ...]:
        """Return the last ones, the oldest first, with the one under way at the end."""
        if self._course is None:
            return tuple(self._past)
        return (*self._past, self._told(self._course, now, over=False))

    # ------------------------------------------------------------------ folding

    def fold(self, events: Sequence[Event], now: float) -> list[Event]:
        """Take in what was told at one time, in order; return it with the episode's id.

        Of several events that are one change, one stays loud: the others are `quiet`.
        """
        told: list[Event] = []
        for event in events:
            since = _sign(event, self._primary)
            if since is not None and self._course is not None and (ended := self._end(self._course, since, now)):
                told.append(ended)
            if since is not None and self._course is None:
                self._course = self._begin(since, now, event.why if isinstance(event, GateChanged) else event.text())
            if self._course is not None:
                self._take(event, self._course)
                if since is not None:
                    self._course.last_at = max(self._course.last_at, event.at)
            quiet = event.quiet or self._is_told(event, events)
            told.append(replace(event, episode=event.episode or self.id, quiet=quiet))
        return told

    def tick(self, now: float) -> EpisodeEnded | None:
        """Let time pass: announce the episode once writes flow, nobody waits for a turn, and all was calm for a while."""
        course = self._course
        if course is None or self._gate.paced:
            return None
        return self._end(course, now, now)

    def close(self, now: float) -> EpisodeEnded | None:
        """Tell how far the episode under way has come, because nobody will look any more; None: there is none."""
        return None if self._course is None else self._tell(self._course, now, over=self._course.flows)

    def _end(self, course: _Course, calm_until: float, now: float) -> EpisodeEnded | None:
        """End the episode if writes flow and there was calm; what comes later is another one. A start-up needs no calm."""
        over_at = max(course.last_at, self._released_at(course))
        calm = calm_until - max(over_at, min(course.settling_at, over_at + SETTLING))
        if not course.flows or calm < (0.0 if course.starting else AFTERMATH):
            return None
        return self._tell(course, now, over=True)

    def _tell(self, course: _Course, now: float, *, over: bool) -> EpisodeEnded:
        episode = self._told(course, now, over=over)
        self._course = None
        if not episode.harmless:
            self._past.append(episode)
        return EpisodeEnded(
            at=now,
            episode=episode.id,
            quiet=episode.harmless,
            kind=episode.kind,
            summary=episode.text(),
            details=asdict(episode),
        )

    def _released_at(self, course: _Course) -> float:
        """When the last waiting call was let go: with the first step where there was no pace."""
        at = self._gate.released_at
        return course.last_at if at is None else max(at, course.found_at or course.began)

    def _take(self, event: Event, course: _Course) -> None:
        match event:
            case GateChanged(now="failover", was="open" | "suspect"):
                course.open = False
                _stop(course, event.at)
            case GateChanged(now="open"):
                course.open = True
                course.found_at = event.at if event.was in _STOPPED else course.found_at
            case GateChanged():
                course.open = False
            case WritesPaused():
                course.paused = course.planned = True
                _stop(course, event.at)
            case WritesResumed():
                course.paused = False
                course.found_at = event.at if course.open else None
            case PrimaryChanged():
                course.changed = True
                course.found_at = event.at if course.flows else None
                self._primary = event.node
            case OutcomeLeftOpen() | OutcomeResolved():
                course.settling_at = event.at
            case WriteMayBeLost():
                course.lost_bytes = event.lost_bytes
            case Contested() | SplitBrainSeen():
                course.refused = event.text().removesuffix("; writes are refused")
            case Drained():
                course.drained_at = event.at
                course.connections += event.idle + event.in_use
            case _:
                pass
        course.flows = course.open and not course.paused

    def _begin(self, since: float, now: float, why: str) -> _Course:
        self._number += 1
        name, began_at = str(self._number), None
        if self._wall is not None:
            began_at = self._wall() - (now - since)
            name = f"{int(began_at):08x}-{self._number}"
        return _Course(
            id=name,
            number=self._number,
            began=since,
            began_at=began_at,
            why=why,
            was=self._primary,
            counts=dict(self._counts),
            last_at=since,
        )

    def _is_told(self, event: Event, beside: Sequence[Event]) -> bool:
        """Return whether another line says the same."""
        match event:
            case OutcomeLeftOpen(token=None) if self._course is not None:
                # Each caller is told; the log needs it once, and the number at the end.
                known = event.node in self._course.unknown_on
                self._course.unknown_on.add(event.node)
                return known
            case BreakerChanged(now="open"):
                return any(isinstance(other, NodeDown) and other.node == event.node for other in beside)
            case BreakerChanged(now="closed"):
                return any(isinstance(other, NodeUp) and other.node == event.node for other in beside)
            case RoleChanged():
                return any(isinstance(other, PrimaryChanged | NodeUp) and other.node == event.node for other in beside)
            case GateChanged(now="open") if self._course is not None and self._course.starting:
                return any(isinstance(other, PrimaryChanged) for other in beside)
            case GateChanged(now="failover"):
                return any(isinstance(other, Contested | SplitBrainSeen) for other in beside)
            case _:
                return False

    def _told(self, course: _Course, now: float, *, over: bool) -> Episode:
        found, stopped = course.found_at, course.stopped_at
        if course.starting:
            stopped = course.began if found is not None else None
        released = None if found is None else self._released_at(course)
        end = (released or course.last_at) if over else now
        return Episode(
            id=course.id,
            number=course.number,
            kind=_kind(course),
            over=over,
            began_at=None if course.began_at is None else round(course.began_at, 3),
            why=course.why,
            was=course.was,
            primary=self._primary,
            seconds=round(max(0.0, end - course.began), 3),
            noticed=None if course.starting or course.planned else _between(course.began, stopped),
            stopped=_between(stopped, found),
            drained=_between(found, course.drained_at),
            released=_between(found, released),
            stops=course.stops,
            refused=course.refused,
            lost_bytes=course.lost_bytes,
            connections=course.connections,
            **self._counted(course),
        )

    def _counted(self, course: _Course) -> dict[str, Any]:
        gained = {name: count - course.counts[name] for name, count in self._counts.items()}
        return {
            "waited": gained["waited"],
            "repeated": gained["repeats"],
            "unknown": gained["unknown"],
            "settled": gained["proved_applied"] + gained["proved_not_applied"],
        }


def _kind(course: _Course) -> str:
    if course.starting:
        return "start-up"
    if course.planned:
        return "switchover" if course.changed else "pause"
    if course.changed:
        return "failover"
    if course.refused:
        return "refusal"
    return "interruption" if course.stops else "suspicion"


def _stop(course: _Course, at: float) -> None:
    """Note that writes stop; they may have been stopped already, for another reason."""
    course.stops += course.stopped_at is None or course.found_at is not None
    course.stopped_at = at if course.stopped_at is None else course.stopped_at
    course.found_at = None


def _sign(event: Event, primary: str | None) -> float | None:
    """Return since when there is what *event* tells of, if it concerns writes; None if it does not."""
    match event:
        case NodeDown():
            return event.at - event.waited if event.node == primary else None
        case RoleChanged():
            return event.at if event.node == primary or event.now == "primary" else None
        case NodeFenced():
            return event.at if event.node == primary else None
        case GateChanged() | PrimaryChanged() | Contested() | SplitBrainSeen() | WriteMayBeLost():
            return event.at
        case WritesPaused() | WritesResumed():
            return event.at
        case _:
            return None


def _between(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(max(0.0, other - one), 3)
