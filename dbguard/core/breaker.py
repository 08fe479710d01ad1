"""A node's circuit breaker: whether calls go there, by whether anyone answers.

    closed ----- tripped -----> open ----- cooled -----> half-open
      ^                          ^ |                        | |
      |                          | +-- reached --> closed   | +-- probe ok, reached --> closed
      |                          +--- probe failed, lost ---+
      +-- reset -- forced open, disabled, metrics only  <-- by hand, from every state

Rules:

* It opens on hard failures in a row, or on their number and share within a sliding window, or when it is told to.
  Overload (soft failures) is counted and opens nothing: a full server is not a dead one.
* When the open time is over one permit is handed out, and the monitor's probe spends it, never a call. The probe says
  how it ended. Lost or cancelled it re-opens the circuit without making the open time grow: absence of news is not
  good news, and not bad news either. A permit that is never answered counts as lost after `PROBE_LIMIT`.
* A full probe that reaches the node closes the circuit at once: no outage is prolonged by a timer.
* A result of a call or probe begun before the last transition is counted as late and moves nothing.
* The open time doubles while probes fail, and is forgotten after the circuit has been closed for `FORGET_AFTER`. Chance
  only shortens it, so that clients do not come back in step and `open_max` is what it says.

Whatever changes the state returns the change; nothing is called back. A step that the table does not know raises
ValueError and leaves all as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from dbguard.core.budget import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbguard.core.route import Rng

__all__ = [
    "FORGET_AFTER",
    "PROBE_LIMIT",
    "TRANSITIONS",
    "Answer",
    "Breaker",
    "BreakerPolicy",
    "BreakerState",
    "Change",
    "Counts",
    "Permit",
    "Signal",
    "step",
]

FORGET_AFTER = 60.0
"""Seconds closed after which earlier open times are forgotten (Envoy's ejection multiplier decays likewise)."""

PROBE_LIMIT = 5.0
"""Seconds after which a permit without an answer is lost: ten times what a probe is given."""


class BreakerState(Enum):
    """Whether calls go to the node."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    FORCED_OPEN = "forced open"
    """By hand: no call goes there, whatever probes say."""
    DISABLED = "disabled"
    """By hand: all calls go there, whatever happens."""
    METRICS_ONLY = "metrics only"
    """By hand: all calls go there, and it is counted how often the circuit would have opened: a dry run."""


class Signal(Enum):
    """What can happen to a breaker."""

    TRIPPED = "tripped"
    COOLED = "cooled"
    PROBE_OK = "probe ok"
    PROBE_FAILED = "probe failed"
    PROBE_LOST = "probe lost"
    REACHED = "reached"
    FORCE = "force open"
    DISABLE = "disable"
    MEASURE = "metrics only"
    RESET = "reset"


_BY_HAND = {
    Signal.FORCE: BreakerState.FORCED_OPEN,
    Signal.DISABLE: BreakerState.DISABLED,
    Signal.MEASURE: BreakerState.METRICS_ONLY,
    Signal.RESET: BreakerState.CLOSED,
}

TRANSITIONS: Mapping[BreakerState, Mapping[Signal, BreakerState]] = MappingProxyType(
    {
        BreakerState.CLOSED: _BY_HAND | {Signal.TRIPPED: BreakerState.OPEN},
        BreakerState.OPEN: _BY_HAND | {Signal.COOLED: BreakerState.HALF_OPEN, Signal.REACHED: BreakerState.CLOSED},
        BreakerState.HALF_OPEN: _BY_HAND
        | {
            Signal.PROBE_OK: BreakerState.CLOSED,
            Signal.PROBE_FAILED: BreakerState.OPEN,
            Signal.PROBE_LOST: BreakerState.OPEN,
            Signal.REACHED: BreakerState.CLOSED,
            Signal.TRIPPED: BreakerState.OPEN,
        },
        BreakerState.FORCED_OPEN: _BY_HAND,
        BreakerState.DISABLED: _BY_HAND,
        BreakerState.METRICS_ONLY: _BY_HAND,
    }
)
"""Every step there is; a missing key is an illegal one."""


def step(state: BreakerState, signal: Signal) -> BreakerState:
    """Return the state that follows *state* on *signal*; ValueError if there is no such step."""
    following = TRANSITIONS[state].get(signal)
    if following is None:
        raise ValueError(f"a breaker that is {state.value} knows no step {signal.value!r}")
    return following


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a node's circuit opens, and for how long.

    consecutive: hard failures in a row that open it, >= 1. Default 5.
    min_failures: hard failures within *window* before their share counts, >= 1. Default 5: libraries that ask for 100
        calls never open at the rates of a database.
    ratio: share of hard failures among hard failures and answers within *window*, in (0, 1]. Default 0.5.
    window: seconds looked back, > 0. Default 10: a failover lasts 5 to 60 s, a longer window would see it too late.
    buckets: slices of the window, >= 1; what is older than the window leaves it slice by slice. Default 10.
    open_min: seconds open the first time, > 0. Default 1; doubles up to *open_max* while probes fail.
    open_max: seconds, >= *open_min*. Default 15: the visible outage is up to the failover plus this.
    jitter: share of the open time that chance may take away, in [0, 1). Default 0.5.
    """

    consecutive: int = 5
    min_failures: int = 5
    ratio: float = 0.5
    window: float = 10.0
    buckets: int = 10
    open_min: float = 1.0
    open_max: float = 15.0
    jitter: float = 0.5


class Change(NamedTuple):
    """A transition that took place."""

    was: BreakerState
    now: BreakerState
    why: str


class Answer(NamedTuple):
    """Whether a call may go to the node.

    retry_after: seconds until that may change by itself; None if it will not, or if it is granted.
    """

    granted: bool
    why: str
    retry_after: float | None = None


class Counts(NamedTuple):
    """What was counted within the window, and in all."""

    answered: int
    hard: int
    soft: int
    in_a_row: int
    late: int
    would_have_opened: int


class Permit:
    """Leave to send one probe to a node whose open time is over. Answer it once, on every way out.

    change: the step to half-open that came with it.
    """

    __slots__ = ("_answer", "_generation", "change")

    def __init__(
        self, answer: Callable[[float, int, Signal, str], Change | None], generation: int, change: Change
    ) -> None:
        self._answer = answer
        self._generation = generation
        self.change = change

    def ok(self, now: float) -> Change | None:
        """Say that the node answered: the circuit closes."""
        return self._answer(now, self._generation, Signal.PROBE_OK, "the probe was answered")

    def failed(self, now: float, why: str = "the probe failed") -> Change | None:
        """Say that the node did not answer: open again, for twice the time."""
        return self._answer(now, self._generation, Signal.PROBE_FAILED, why)

    def lost(self, now: float) -> Change | None:
        """Say that nothing was learnt (cancelled, given up): open again, for the same time."""
        return self._answer(now, self._generation, Signal.PROBE_LOST, "the probe was lost")


class Breaker:
    """The circuit breaker of one node. Not locked: whoever holds the guard's lock calls it.

    state: where it is.
    granted: whether calls may go to the node; the answer of `ask`, as an attribute for the fast path.
    generation: raised by every transition; an attempt remembers the one it began under and hands it back.
    why: the reason for the present state.
    """

    __slots__ = (
        "_answered",
        "_closed_at",
        "_hard",
        "_in_a_row",
        "_open_for",
        "_policy",
        "_probe_since",
        "_rng",
        "_soft",
        "_until",
        "generation",
        "granted",
        "late",
        "state",
        "why",
        "would_have_opened",
    )

    def __init__(self, policy: BreakerPolicy, rng: Rng) -> None:
        self._policy = policy
        self._rng = rng
        self._answered = Window(policy.window, policy.buckets)
        self._hard = Window(policy.window, policy.buckets)
        self._soft = Window(policy.window, policy.buckets)
        self._in_a_row = 0
        self._open_for = 0.0
        self._closed_at = -inf
        self._probe_since = -inf
        self._until = -inf
        self.state = BreakerState.CLOSED
        self.granted = True
        self.generation = 0
        self.late = 0
        self.would_have_opened = 0
        self.why = "new"

    # ------------------------------------------------------------------ results of calls

    def success(self, now: float, generation: int) -> None:
        """Count a call that was answered: rows, or an error that is the statement's own."""
        if generation != self.generation:
            self.late += 1
            return
        self._in_a_row = 0
        self._answered.add(now)

    def failure(self, now: float, generation: int, *, hard: bool = True) -> Change | None:
        """Count a call that failed; *hard* means that nobody answered. May open the circuit."""
        if generation != self.generation:
            self.late += 1
            return None
        if not hard:
            self._soft.add(now)
            return None
        self._in_a_row += 1
        self._hard.add(now)
        why = self._too_many(now) if self.granted else None
        return self.trip(now, why) if why else None

    def _too_many(self, now: float) -> str | None:
        """Say why the circuit should open; None if it should not."""
        policy = self._policy
        if self._in_a_row >= policy.consecutive:
            return f"{self._in_a_row} hard failures in a row"
        hard = self._hard.total(now)
        of = hard + self._answered.total(now)
        if hard >= policy.min_failures and hard >= policy.ratio * of:
            return f"{hard} of {of} calls failed hard within {policy.window:g} s"
        return None

    # ------------------------------------------------------------------ questions

    def ask(self, now: float) -> Answer:
        """Say whether a call may go to the node. Changes nothing: the permit is `take_permit`."""
        if self.granted:
            return Answer(granted=True, why=self.state.value)
        wait = max(0.0, self._until - now) if self.state is BreakerState.OPEN else None
        return Answer(granted=False, why=f"{self.state.value}: {self.why}", retry_after=wait)

    def counts(self, now: float) -> Counts:
        """Return what was counted, for status and metrics."""
        return Counts(
            answered=self._answered.total(now),
            hard=self._hard.total(now),
            soft=self._soft.total(now),
            in_a_row=self._in_a_row,
            late=self.late,
            would_have_opened=self.would_have_opened,
        )

    # ------------------------------------------------------------------ probes

    def take_permit(self, now: float) -> Permit | None:
        """Hand out the one permit for a probe if the open time is over; None otherwise.

        A permit that was never answered is lost here, after `PROBE_LIMIT`: the circuit is open again, and a new one is
        to be had when that time is over.
        """
        if self.state is BreakerState.HALF_OPEN and now - self._probe_since >= PROBE_LIMIT:
            self._probed(now, self.generation, Signal.PROBE_LOST, "the probe was never answered")
        if self.state is not BreakerState.OPEN or now < self._until:
            return None
        self._probe_since = now
        change = self._move(now, Signal.COOLED, "a probe is out")
        return Permit(self._probed, self.generation, change)

    def _probed(self, now: float, generation: int, signal: Signal, why: str) -> Change | None:
        if generation != self.generation:
            self.late += 1
            return None
        if signal is Signal.PROBE_FAILED:
            self._grow()
        return self._move(now, signal, why)

    def close_at_once(self, now: float, why: str) -> Change | None:
        """Close an open circuit: a full probe reached the node. By hand means by hand: other states stay."""
        if Signal.REACHED not in TRANSITIONS[self.state]:
            return None
        return self._move(now, Signal.REACHED, why)

    # ------------------------------------------------------------------ told from outside

    def trip(self, now: float, why: str) -> Change | None:
        """Open the circuit. Where it is open already, or was set by hand, nothing changes."""
        if self.state is BreakerState.METRICS_ONLY:
            if now >= self._until:
                self.would_have_opened += 1
                self._until = now + self._policy.open_max
            return None
        if Signal.TRIPPED not in TRANSITIONS[self.state]:
            return None
        if self.state is BreakerState.CLOSED and now - self._closed_at >= FORGET_AFTER:
            self._open_for = 0.0
        self._grow()
        return self._move(now, Signal.TRIPPED, why)

    def force_open(self, now: float, why: str) -> Change:
        """Let no call through until `reset`."""
        return self._move(now, Signal.FORCE, why)

    def disable(self, now: float, why: str) -> Change:
        """Let all calls through until `reset`."""
        return self._move(now, Signal.DISABLE, why)

    def metrics_only(self, now: float, why: str) -> Change:
        """Let all calls through until `reset`, and count how often it would have opened, at most once per `open_max`."""
        return self._move(now, Signal.MEASURE, why)

    def reset(self, now: float, why: str) -> Change:
        """Close the circuit and forget everything: the end of every state that was set by hand."""
        change = self._move(now, Signal.RESET, why)
        self._open_for = 0.0
        self._closed_at = -inf
        return change

    # ------------------------------------------------------------------ steps

    def _move(self, now: float, signal: Signal, why: str) -> Change:
        """Take the step: the only place where the state changes."""
        change = Change(self.state, step(self.state, signal), why)
        self.state = change.now
        self.granted = change.now in _GRANTED
        self.generation += 1
        self.why = why
        if change.now is BreakerState.OPEN:
            self._until = now + self._open_for * (1.0 - self._policy.jitter * self._rng.random())
        elif change.now is not BreakerState.HALF_OPEN:
            self._forget_counts()
            self._closed_at = self._until = now
        return change

    def _grow(self) -> None:
        """Double the open time; the first one is `open_min`."""
        self._open_for = min(self._policy.open_max, self._open_for * 2) if self._open_for else self._policy.open_min

    def _forget_counts(self) -> None:
        self._in_a_row = 0
        for window in (self._answered, self._hard, self._soft):
            window.clear()


_GRANTED = frozenset({BreakerState.CLOSED, BreakerState.DISABLED, BreakerState.METRICS_ONLY})
