"""The gate of a cluster: whether writes can flow now, and how those that waited are let go.

    open <---- found ---- suspect
     | ^  -- suspected -->   |
     | +------ found ------+ |
     |                     | | lost, refused
     +-- lost, refused --> failover -- timed out --> down -- found --> open

Rules:

* It begins in failover, since "no primary has been seen yet": a call may wait for the first primary as it waits for the next.
* Suspicion stops nothing: writes flow until the primary is known to be lost.
* In failover calls wait, each within its own deadline, up to `max_waiting` of them. After `max_wait` it is down: calls
  fail at once, the search goes on.
* Writes can be refused although a primary answers (contested, split brain): a failover for which no call waits. It is
  judged anew with every probe: whoever finds a primary, or none, says so, and the refusal is over.
* Where the primary flaps, one that was found opens the gate only once it has stayed (`dbguard.core.flap`).
* The application can pause it, whatever its state: calls wait, and the state goes on following the cluster. A pause is
  over when it was resumed, or at its limit.
* Who waited goes on as earlier ones come back, as many at a time as the server bears. The whole herd at once is how a
  cluster that just recovered is lost again.

Whatever changes the state returns the change; nothing is called back. A step that the table does not know raises
ValueError and leaves all as it was.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from dbguard.core.flap import Flaps, Hold

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.core.topology import Reign

__all__ = ["FIRST", "PACE", "TRANSITIONS", "Change", "Gate", "GateState", "Release", "Signal", "step"]

FIRST = 2
"""Calls that go first in a release: they dial, and show whether the server answers."""

PACE = 0.1
"""Seconds per step of a release, and the share of a second that it is: long enough to hear of a failure."""


class GateState(Enum):
    """Whether writes can flow."""

    OPEN = "open"
    SUSPECT = "suspect"
    FAILOVER = "failover"
    DOWN = "down"


class Signal(Enum):
    """What can happen to the gate."""

    SUSPECTED = "suspected"
    LOST = "lost"
    REFUSED = "refused"
    FOUND = "found"
    TIMED_OUT = "timed out"


TRANSITIONS: Mapping[GateState, Mapping[Signal, GateState]] = MappingProxyType(
    {
        GateState.OPEN: {
            Signal.SUSPECTED: GateState.SUSPECT,
            Signal.LOST: GateState.FAILOVER,
            Signal.REFUSED: GateState.FAILOVER,
        },
        GateState.SUSPECT: {
            Signal.FOUND: GateState.OPEN,
            Signal.LOST: GateState.FAILOVER,
            Signal.REFUSED: GateState.FAILOVER,
        },
        GateState.FAILOVER: {
            Signal.FOUND: GateState.OPEN,
            Signal.LOST: GateState.FAILOVER,
            Signal.REFUSED: GateState.FAILOVER,
            Signal.TIMED_OUT: GateState.DOWN,
        },
        GateState.DOWN: {
            Signal.FOUND: GateState.OPEN,
            Signal.LOST: GateState.DOWN,
            Signal.REFUSED: GateState.DOWN,
        },
    }
)
"""Every step there is; a missing key is an illegal one."""


def step(state: GateState, signal: Signal) -> GateState:
    """Return the state that follows *state* on *signal*; ValueError if there is no such step."""
    following = TRANSITIONS[state].get(signal)
    if following is None:
        raise ValueError(f"a gate that is {state.value} knows no step {signal.value!r}")
    return following


class Change(NamedTuple):
    """What changed: the state, or the reason why writes do not flow in it.

    hold: writes wait for a primary that flaps to stay; None: that is not what changed.
    """

    was: GateState
    now: GateState
    why: str
    hold: Hold | None = None


class Release(NamedTuple):
    """How many waiting calls may go.

    again_at: when to ask for the others, on the clock that was handed in, unless one comes back before; None: there is
    nothing to ask for.
    """

    go: int
    again_at: float | None


class Gate:
    """Whether writes can flow. Not locked: whoever holds the guard's lock calls it.

    max_wait: seconds without a primary after which calls no longer wait, > 0. Default 60.
    max_waiting: calls that may wait at a time, >= 0. Default 10,000: memory, not the server, is what it protects.
    flaps: which changes of primary are followed at once.

    state: where it is. why: the reason.
    clear: open, with no release under way and no pause: a call may pass without asking further.
    refused: writes are refused although a primary answers.
    paced: a release is under way, and whoever comes now should wait behind those that came before.
    hold: writes wait although a primary was found; None: they do not.
    paused_until: when the application's pause ends by itself; None: there is none.
    released_at: when the last paced release ended, on the clock that was handed in; None: there was none.
    episode: how often writes have stopped, start-up included. releases: how often those that waited were let go.
    """

    __slots__ = (
        "_answered",
        "_failed",
        "_flaps",
        "_fresh",
        "_max_wait",
        "_next_at",
        "_out",
        "_proven",
        "_since",
        "_slots",
        "_swift",
        "_window",
        "clear",
        "episode",
        "hold",
        "max_waiting",
        "paced",
        "paused_until",
        "refused",
        "released_at",
        "releases",
        "state",
        "why",
    )

    def __init__(self, max_wait: float = 60.0, max_waiting: int = 10_000, *, flaps: Flaps | None = None) -> None:
        self._max_wait = max_wait
        self.max_waiting = max_waiting
        self._flaps = flaps or Flaps()
        self._since: float | None = None
        self._slots = self._window = self._swift = FIRST
        self._out = 0
        self._fresh = 0
        self._answered = 0
        self._proven = False
        self._next_at = 0.0
        self._failed = False
        self.state = GateState.FAILOVER
        self.why = "no primary has been seen yet"
        self.clear = False
        self.refused = False
        self.paced = False
        self.hold: Hold | None = None
        self.paused_until: float | None = None
        self.released_at: float | None = None
        self.episode = 1
        self.releases = 0

    @property
    def open(self) -> bool:
        """Whether there is a primary to write to: open, or merely suspect."""
        return self.state is GateState.OPEN or self.state is GateState.SUSPECT

    @property
    def writable(self) -> bool:
        """Whether writes flow: there is a primary, and no pause."""
        return self.open and self.paused_until is None

    # ------------------------------------------------------------------ signals

    def suspect(self, now: float, why: str) -> Change | None:  # noqa: ARG002  every signal comes with its time
        """Take in that the primary may be lost. A release under way halves its pace."""
        self.setback()
        return self._move(Signal.SUSPECTED, why) if self.state is GateState.OPEN else None

    def primary_lost(self, now: float, why: str) -> Change | None:
        """Take in that there is no primary. Where that is known already, the first reason stays."""
        self._forget_hold()
        return self._stop(now, Signal.LOST, why)

    def refuse(self, now: float, why: str) -> Change | None:
        """Take in that no primary can be trusted. The last reason counts: contested can become split brain."""
        self._forget_hold()
        return self._stop(now, Signal.REFUSED, why)

    def primary_found(
        self, now: float, reign: Reign | None = None, *, slots: int = 20, pace: bool = True
    ) -> Change | None:
        """Take in that there is a primary, or still is.

        reign: its time in office; by that it is known whether it is another one than before.
        slots: connections that its pool can lend, >= 1: as many released calls are under way at a time, at most.
        pace: let those who waited go as earlier ones come back, not all at once.
        """
        hold = self._flaps.found(now, reign)
        if hold is not None and self.state is not GateState.DOWN:
            return self._wait_for_it_to_stay(now, hold)
        self.hold = None
        if self.state is GateState.OPEN:
            return None
        if not self.open:
            self.refused = False
            self._slots = slots
            self._let_go(now, pace=pace)
        return self._move(Signal.FOUND, "the primary answers")

    def tick(self, now: float) -> Change | None:
        """Let time pass: a failover that has lasted for `max_wait` turns to down."""
        if self.state is not GateState.FAILOVER:
            return None
        if self._since is None:
            self._since = now
        if self.hold is not None or now - self._since < self._max_wait:
            return None
        return self._move(Signal.TIMED_OUT, f"no primary within {self._max_wait:g} s: {self.why}")

    def _stop(self, now: float, signal: Signal, why: str) -> Change | None:
        """Stop writes, or renew the reason for which they are stopped."""
        refused = signal is Signal.REFUSED
        if self.open:
            self.refused = refused
            self.paced = False
            self.episode += 1
            self._since = now
            return self._move(signal, why)
        if self._since is None:
            self._since = now
        if self.refused is refused:
            self.why = why if refused else self.why
            return None
        self.refused = refused
        return self._move(signal, why)

    def _wait_for_it_to_stay(self, now: float, hold: Hold) -> Change | None:
        """Keep writes back, or stop them, until a primary that flaps has stayed."""
        self.hold = hold
        was = self.state
        change = self._stop(now, Signal.LOST, hold.why)
        self.why = hold.why
        return Change(was, self.state, hold.why, hold) if hold.begun else change

    def _forget_hold(self) -> None:
        self._flaps.lost()
        self.hold = None

    def _move(self, signal: Signal, why: str) -> Change:
        """Take the step: the only place where the state changes."""
        change = Change(self.state, step(self.state, signal), why)
        self.state = change.now
        self.why = why
        self._look()
        return change

    def _look(self) -> None:
        self.clear = self.state is GateState.OPEN and not self.paced and self.paused_until is None

    # ------------------------------------------------------------------ the application's pause

    def pause(self, until: float) -> None:
        """Let no more calls pass before `resume`, or *until*; a pause that is on already ends then."""
        self.paused_until = until
        self.paced = False
        self._look()

    def resume(self, now: float) -> None:
        """End the pause: who waited goes on, if there is a primary."""
        self.paused_until = None
        if self.open:
            self._let_go(now, pace=True)
        self._look()

    # ------------------------------------------------------------------ waiting calls

    def may_wait(self, waiting: int, deadline: float, now: float) -> str | None:
        """Say whether one more call may wait, beside *waiting* others; the reason if it may not."""
        if self.refused:
            return f"writes are refused: {self.why}"
        if self.state is GateState.DOWN:
            return f"the cluster is down: {self.why}"
        if waiting >= self.max_waiting:
            return f"{waiting} calls are waiting already (failover.max_waiting)"
        if deadline <= now:
            return "no time is left to wait"
        return None

    @property
    def declines(self) -> bool:
        """Whether nobody waits: those who do are told so."""
        return self.refused or self.state is GateState.DOWN

    def earliest(self, now: float) -> float:
        """Return the earliest moment at which one more waiting call can go, as far as that is known."""
        if self.hold is not None:
            return self.hold.until
        return self._next_at if self.paced and self._failed else now

    def release(self, now: float, waiting: int) -> Release:
        """Say how many of *waiting* calls may go now. They are under way until they come back (`returned`).

        It is over when nobody is left waiting. Once as many are under way as the pool has slots, and those left would be
        through in a second at the pace of the last step, all may go: the pool's own queue serves them well before its
        time-out, and costs less.
        """
        if not self.writable:
            return Release(0, None)
        if not self.paced:
            return Release(waiting, None)
        if now >= self._next_at:
            self._step(now, waiting)
        room = 0 if self._failed else waiting if self._proven else max(0, self._window - self._out)
        go = min(waiting, room)
        self._out += go
        self.paced = go < waiting
        if not self.paced:
            self.released_at = now
        self._look()
        return Release(go, self._next_at if self.paced else None)

    def returned(self, release: int) -> None:
        """Take in that a call let go in the release of that number has come back: more may be under way at a time.

        One more for each that comes back, up to the pool's slots: the number doubles each time the server answers, and
        a server that is slow to answer is asked for less. After a failure, from half of what was under way on, one more
        each time as many have come back as are under way.
        """
        if release != self.releases:
            return
        self._out -= 1
        self._fresh += 1
        self._answered += 1
        if self._window < self._swift or self._fresh >= self._window:
            self._widen()

    def unused(self, places: int) -> None:
        """Take in that of those who might go, so many were not there any more."""
        self._out -= places

    def setback(self) -> None:
        """Take in that a released call failed: nobody more goes in this step, and half as many from the next."""
        self._failed = True

    def _let_go(self, now: float, *, pace: bool) -> None:
        """Begin a release."""
        self.releases += 1
        self.paced = pace
        self._window = min(FIRST, self._slots)
        self._swift = self._slots
        self._out = self._fresh = 0
        self._next_at = now + PACE
        self._failed = self._proven = False
        self._answered = 0

    def _step(self, now: float, waiting: int) -> None:
        """Look back on a step. Where nobody came back and nobody failed, statements may be slow: one more is let go."""
        if self._failed:
            self._window = self._swift = max(1, self._window // 2)
        elif not self._answered:
            self._widen()
        else:
            self._proven = self._window == self._slots and waiting * PACE <= self._answered
        self._failed = False
        self._answered = 0
        self._next_at = now + PACE

    def _widen(self) -> None:
        self._window = min(self._window + 1, self._slots)
        self._fresh = 0
