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
* Who waited goes on at a rising pace. The whole herd at once is how a cluster that just recovered is lost again.

Whatever changes the state returns the change; nothing is called back. A step that the table does not know raises
ValueError and leaves all as it was.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PACE", "TRANSITIONS", "Change", "Gate", "GateState", "Release", "Signal", "step"]

PACE = 0.1
"""Seconds per step of a paced release: long enough to hear of a failure, and 10,000 calls are through in 1.3 s."""


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
    """What changed: the state, or the reason why writes do not flow in it."""

    was: GateState
    now: GateState
    why: str


class Release(NamedTuple):
    """How many waiting calls may go.

    again_at: when to ask for the others, on the clock that was handed in; None: there is nothing to ask for.
    """

    go: int
    again_at: float | None


class Gate:
    """Whether writes can flow. Not locked: whoever holds the guard's lock calls it.

    max_wait: seconds without a primary after which calls no longer wait, > 0. Default 60.
    max_waiting: calls that may wait at a time, >= 0. Default 10,000: memory, not the server, is what it protects.
    slots: connections that a pool can lend, >= 1; a tenth of them, at least 2, go in the first step of a release.
        Default 20.

    state: where it is. why: the reason.
    refused: writes are refused although a primary answers.
    paced: a release is under way, and whoever comes now should wait behind those that came before.
    released_at: when the last paced release ended, on the clock that was handed in; None: there was none.
    episode: how often writes have stopped, start-up included.
    """

    __slots__ = (
        "_failed",
        "_left",
        "_max_wait",
        "_max_waiting",
        "_next_at",
        "_pace",
        "_since",
        "_slots",
        "episode",
        "paced",
        "refused",
        "released_at",
        "state",
        "why",
    )

    def __init__(self, max_wait: float = 60.0, max_waiting: int = 10_000, *, slots: int = 20) -> None:
        self._max_wait = max_wait
        self._max_waiting = max_waiting
        self._slots = slots
        self._since: float | None = None
        self._pace = 0
        self._left = 0
        self._next_at = 0.0
        self._failed = False
        self.state = GateState.FAILOVER
        self.why = "no primary has been seen yet"
        self.refused = False
        self.paced = False
        self.released_at: float | None = None
        self.episode = 1

    @property
    def writable(self) -> bool:
        """Whether writes flow: open, or merely suspect."""
        return self.state is GateState.OPEN or self.state is GateState.SUSPECT

    # ------------------------------------------------------------------ signals

    def suspect(self, now: float, why: str) -> Change | None:  # noqa: ARG002  every signal comes with its time
        """Take in that the primary may be lost. A release under way halves its pace."""
        self.setback()
        return self._move(Signal.SUSPECTED, why) if self.state is GateState.OPEN else None

    def primary_lost(self, now: float, why: str) -> Change | None:
        """Take in that there is no primary. Where that is known already, the first reason stays."""
        return self._stop(now, Signal.LOST, why)

    def refuse(self, now: float, why: str) -> Change | None:
        """Take in that no primary can be trusted. The last reason counts: contested can become split brain."""
        return self._stop(now, Signal.REFUSED, why)

    def primary_found(self, now: float, *, pace: bool = True) -> Change | None:
        """Take in that there is a primary; *pace*: let those who waited go step by step, not all at once."""
        if self.state is GateState.OPEN:
            return None
        if not self.writable:
            self.refused = False
            self.paced = pace
            self._pace = self._left = max(2, self._slots // 10)
            self._next_at = now + PACE
            self._failed = False
        return self._move(Signal.FOUND, "the primary answers")

    def tick(self, now: float) -> Change | None:
        """Let time pass: a failover that has lasted for `max_wait` turns to down."""
        if self.state is not GateState.FAILOVER:
            return None
        if self._since is None:
            self._since = now
        if now - self._since < self._max_wait:
            return None
        return self._move(Signal.TIMED_OUT, f"no primary within {self._max_wait:g} s: {self.why}")

    def _stop(self, now: float, signal: Signal, why: str) -> Change | None:
        """Stop writes, or renew the reason for which they are stopped."""
        refused = signal is Signal.REFUSED
        if self.writable:
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

    def _move(self, signal: Signal, why: str) -> Change:
        """Take the step: the only place where the state changes."""
        change = Change(self.state, step(self.state, signal), why)
        self.state = change.now
        self.why = why
        return change

    # ------------------------------------------------------------------ waiting calls

    def may_wait(self, waiting: int, deadline: float, now: float) -> str | None:
        """Say whether one more call may wait, beside *waiting* others; the reason if it may not."""
        if self.refused:
            return f"writes are refused: {self.why}"
        if self.state is GateState.DOWN:
            return f"the cluster is down: {self.why}"
        if waiting >= self._max_waiting:
            return f"{waiting} calls are waiting already (failover.max_waiting)"
        if deadline <= now:
            return "no time is left to wait"
        return None

    def release(self, now: float, waiting: int) -> Release:
        """Say how many of *waiting* calls may go now. They count as gone.

        The pace doubles with every step in which no `setback` was reported, and halves after one. It is over when
        nobody is left waiting.
        """
        if not self.writable:
            return Release(0, None)
        if not self.paced:
            return Release(waiting, None)
        if now >= self._next_at:
            # One doubling however late we are asked: a step in which nobody went proves nothing.
            self._pace = max(1, self._pace // 2) if self._failed else self._pace * 2
            self._left = self._pace
            self._next_at = now + PACE
            self._failed = False
        go = min(waiting, self._left)
        self._left -= go
        self.paced = go < waiting
        if not self.paced:
            self.released_at = now
        return Release(go, self._next_at if self.paced else None)

    def setback(self) -> None:
        """Take in that a released call failed: nobody more goes in this step, and half as many in the next."""
        self._failed = True
        self._left = 0
