"""Everything dbguard itself raises, named by what the caller may do next.

A database's own error reaches the caller as the driver raised it. The classes here stand for what dbguard decided:

* `ConfigError`: the configuration is wrong; mend it.
* `NotAttempted` and below: nothing was sent; the call may be repeated as it is.
* `OutcomeUnknown`: a write may have been applied; check before repeating.
* `ResultLost`: a write was applied once, its rows were lost on the way; do not repeat it.
* `DeadlineExceeded`: time ran out and nothing was applied; a write of open fate raises `OutcomeUnknown` instead.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ConfigError",
    "DbGuardError",
    "DeadlineExceeded",
    "GuardClosed",
    "NoPrimary",
    "NoReplica",
    "NotAttempted",
    "OutcomeUnknown",
    "Overloaded",
    "ResultLost",
    "SplitBrain",
    "TokenInvalid",
]


class DbGuardError(Exception):
    """Root of everything dbguard itself raises.

    Instances can be pickled: what they carry beside the message travels in `__dict__`. The `__cause__`, a driver's
    exception, does not (Python's pickle leaves causes out).

    limit: whose time ended the call: ``timeout=``, ``using(timeout=)``, ``deadline()`` or ``the default timeout``; None
        where it was not the call's time that ended it.
    spent: seconds by where they went, where time ended the call: ``acquire``, ``wait`` (for a primary), ``backoff``,
        ``execute``; empty otherwise.
    """

    limit: str | None = None
    spent: Mapping[str, float] = MappingProxyType({})


class ConfigError(DbGuardError):
    """The configuration is wrong. Nothing was sent to any server.

    path: where in the configuration, such as ``nodes[2].port``; None if the whole of it is meant.
    problems: every problem found, one line each, with file, line, column and path where they are known.
    """

    def __init__(self, message: str, *, path: str | None = None, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.path = path
        self.problems = problems or (message,)


class NotAttempted(DbGuardError):
    """Nothing was sent. Safe to repeat.

    retry_after: seconds after which another try makes sense; None if that is not known.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoPrimary(NotAttempted):
    """There is no node that writes can go to now: none known, none reachable, or one that must not be trusted."""


class SplitBrain(NoPrimary):
    """Two servers claim to be the primary of one cluster, so writes are refused until one of them is gone."""


class NoReplica(NotAttempted):
    """No replica is fit for this read, and the configuration does not let it fall back to the primary."""


class Overloaded(NotAttempted):
    """dbguard declined the call to protect the cluster: too many calls are waiting already."""


class GuardClosed(NotAttempted):
    """The guard is closed, or was never opened."""


class OutcomeUnknown(DbGuardError):
    """A write may have been applied. Check before repeating.

    node: the node it was sent to, as ``name (host:port)``.
    phase: how far the call had come, in the words of `dbguard.core.failure.Phase`.
    reign: the time in office of the primary it was sent to, as text; None if it was not known.
    sent_at: when it was sent, in seconds since the epoch.
    token: the write's identity; None where writes carry none.
    """

    def __init__(
        self,
        message: str,
        *,
        node: str,
        phase: str,
        reign: str | None = None,
        sent_at: float | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(message)
        self.node = node
        self.phase = phase
        self.reign = reign
        self.sent_at = sent_at
        self.token = token

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class ResultLost(DbGuardError):
    """A write was applied once, but its rows were lost on the way. Do not repeat it.

    node: the node it was sent to.
    token: the write's identity.
    """

    def __init__(self, message: str, *, node: str, token: str | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.token = token

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class DeadlineExceeded(DbGuardError, TimeoutError):
    """The call's time ran out, and nothing of it was applied: it is safe to repeat.

    A write whose fate was open when time ran out raises `OutcomeUnknown` instead.

    retry_after: seconds after which another try makes sense; None if that is not known.
    """

    def __init__(
        self, message: str, *, spent: Mapping[str, float] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.spent = spent or {}
        self.retry_after = retry_after


class TokenInvalid(DbGuardError, ValueError):
    """A token handed in is not one of ours, was changed on its way, or is too old."""


def _rebuild(kind: type[DbGuardError], args: tuple[Any, ...], state: dict[str, Any]) -> DbGuardError:
    """Unpickle an error whose constructor has keyword-only parameters without a default."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
