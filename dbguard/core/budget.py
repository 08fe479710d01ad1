"""What repeats may cost: a share of the first attempts made lately, and a floor.

A cluster in trouble must not be hit harder than one in health. Every first attempt deposits a share of a repeat, and
deposits expire, so yesterday's traffic pays for nothing today (the shape is Finagle's `RetryBudget`). There are three
purses, so that a hot row cannot eat the allowance for a failover. What holds at every moment:

    repeats taken from a purse within the window  <=  share * first attempts within the window + floor * expiry

What a purse cannot pay is refused; a repeat after contention is made all the same, and slower (`plan.UNPAID`).
A first attempt never pays, nor does a repeat of what was not sent, nor a rejection.
"""

from __future__ import annotations

from collections import deque
from math import inf

from dbguard.core.retry import Purse

__all__ = ["HEDGE_RATIO", "Budget", "Window"]

HEDGE_RATIO = 0.05
"""Hedges allowed per first attempt: enough to cut the slowest percent, too few to be felt ("The Tail at Scale")."""


class Window:
    """A count over the last *span* seconds, in slices that leave it one by one.

    What is added counts for at least *span* less one slice, and at most *span*. Adding is one comparison and one
    integer addition. Time that stands still or goes back stays in the present slice.
    """

    __slots__ = ("_closed", "_present", "_sum", "_turns_at", "_width")

    def __init__(self, span: float, slices: int = 10) -> None:
        self._width = span / slices
        self._closed = deque([0] * (slices - 1), maxlen=slices - 1)
        self._sum = 0
        self._present = 0
        self._turns_at = -inf

    def add(self, now: float) -> None:
        """Count one."""
        if now >= self._turns_at:
            self._turn(now)
        self._present += 1

    def total(self, now: float) -> int:
        """Return the count over the window that ends now."""
        if now >= self._turns_at:
            self._turn(now)
        return self._sum + self._present

    def clear(self) -> None:
        """Forget everything."""
        self._closed.extend([0] * len(self._closed))
        self._sum = self._present = 0

    def _turn(self, now: float) -> None:
        """Close the present slice, and with it those that passed in silence."""
        if self._turns_at == -inf:
            self._turns_at = now + self._width
            return
        silent = int((now - self._turns_at) // self._width)
        self._closed.append(self._present)
        self._closed.extend([0] * min(silent, len(self._closed)))
        self._sum = sum(self._closed)
        self._present = 0
        self._turns_at += (silent + 1) * self._width


class Budget:
    """Three purses that first attempts fill. Not locked: whoever holds the guard's lock calls it.

    ratio: repeats allowed per first attempt, in [0, 1]; the same for infrastructure and contention. Default 0.2.
    expiry: seconds for which deposits and repeats count, > 0. Default 10.
    floor: repeats per second allowed however few first attempts there are, >= 0. Default 3. Hedges have no floor:
        nobody is owed one.
    """

    __slots__ = ("_deposits", "_floors", "_ratios", "_taken", "deposit")

    def __init__(self, ratio: float = 0.2, expiry: float = 10.0, floor: float = 3.0) -> None:
        self._deposits = Window(expiry)
        self._taken = {purse: Window(expiry) for purse in Purse}
        self._ratios = {Purse.INFRASTRUCTURE: ratio, Purse.CONTENTION: ratio, Purse.HEDGE: HEDGE_RATIO}
        self._floors = {Purse.INFRASTRUCTURE: floor * expiry, Purse.CONTENTION: floor * expiry, Purse.HEDGE: 0.0}
        self.deposit = self._deposits.add
        """Count one first attempt, made *now*. The window's own method: it is on the way of every call."""

    def balance(self, now: float, purse: Purse) -> float:
        """Return how many repeats *purse* can pay for; below 1 none, and never below 0."""
        filled = self._ratios[purse] * self._deposits.total(now) + self._floors[purse]
        return max(0.0, filled - self._taken[purse].total(now))

    def take(self, now: float, purse: Purse) -> bool:
        """Pay for one repeat; False if *purse* cannot."""
        if self.balance(now, purse) < 1.0:
            return False
        self._taken[purse].add(now)
        return True
