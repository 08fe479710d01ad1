"""An ambient deadline for a stretch of application code: every guarded call inside ends by it."""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from numbers import Real
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Deadline", "ambient", "check_seconds", "check_wait", "deadline"]

_until: ContextVar[float | None] = ContextVar("dbguard_deadline", default=None)


class Deadline:
    """A deadline that holds inside its ``with`` block, in child tasks too. An inner one only shortens."""

    __slots__ = ("_token", "seconds", "until")

    def __init__(self, seconds: float) -> None:
        if not (isinstance(seconds, int | float) and seconds > 0):
            raise ValueError(f"a deadline must lie ahead: above 0 seconds, not {seconds!r}")
        self.seconds = seconds
        self.until = 0.0
        self._token: Token[float | None] | None = None

    @property
    def remaining(self) -> float:
        """Seconds left; 0 once it has passed. Counts from entering the block."""
        return max(0.0, self.until - time.monotonic())

    def __enter__(self) -> Self:
        outer = _until.get()
        mine = time.monotonic() + self.seconds
        self.until = mine if outer is None else min(mine, outer)
        self._token = _until.set(self.until)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _until.reset(self._token)
            self._token = None


def deadline(seconds: float) -> Deadline:
    """Bound all guarded calls in a ``with`` block together: ``with dbguard.deadline(2.0): ...``.

    seconds: from entering the block, above 0. A call's own ``timeout`` and an outer deadline count where they are
    shorter. It bounds what dbguard does, not the application's own code between the calls.

    Calls that it ends raise `DeadlineExceeded`, `NoPrimary`, or for a write of open fate `OutcomeUnknown`; all of them
    are `TimeoutError`s then.
    """
    return Deadline(seconds)


def check_seconds(timeout: object) -> None:
    """Check the timeout that a call was given. Raises `TypeError` if it is no number, `ValueError` if it is NaN."""
    if isinstance(timeout, bool) or not isinstance(timeout, Real):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if timeout != timeout:  # noqa: PLR0124  NaN alone differs from itself
        raise ValueError("timeout must be a number of seconds or None, not NaN")


def check_wait(timeout: object) -> None:
    """Check how long something shall be waited for: as `check_seconds`, and 0 or more, else `ValueError`."""
    check_seconds(timeout)
    if isinstance(timeout, Real) and timeout < 0:
        raise ValueError(f"timeout must be 0 seconds or more, not {timeout!r}")


ambient = _until.get
"""Return the deadline in force, on the monotonic clock; None: there is none. On the way of every call."""
