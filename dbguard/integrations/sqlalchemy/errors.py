"""dbguard's own errors, as SQLAlchemy's users catch them: each is also a `sqlalchemy.exc.OperationalError`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import exc

from dbguard import errors

__all__ = ["LoadedFromReplica", "NotARead", "dress"]


class NotARead(exc.InvalidRequestError):
    """A statement that is not known to be a read was meant for a replica. Nothing was sent; use the primary for it."""


class LoadedFromReplica(exc.InvalidRequestError):
    """An object that was loaded from a replica was to be written. Nothing was sent; load it from the primary first."""


class NotAttempted(errors.NotAttempted, exc.OperationalError):
    """`dbguard.NotAttempted`, also SQLAlchemy's operational error."""


class NoPrimary(errors.NoPrimary, exc.OperationalError):
    """`dbguard.NoPrimary`, also SQLAlchemy's operational error."""


class NoReplica(errors.NoReplica, exc.OperationalError):
    """`dbguard.NoReplica`, also SQLAlchemy's operational error."""


class GuardClosed(errors.GuardClosed, exc.OperationalError):
    """`dbguard.GuardClosed`, also SQLAlchemy's operational error."""


class OutcomeUnknown(errors.OutcomeUnknown, exc.OperationalError):
    """`dbguard.OutcomeUnknown`, also SQLAlchemy's operational error."""


_DRESSED: dict[type[errors.DbGuardError], type[exc.OperationalError]] = {
    errors.NotAttempted: NotAttempted,
    errors.NoPrimary: NoPrimary,
    errors.NoReplica: NoReplica,
    errors.GuardClosed: GuardClosed,
    errors.OutcomeUnknown: OutcomeUnknown,
}


def _made(kind: type[errors.DbGuardError], args: tuple[Any, ...], state: dict[str, Any]) -> exc.OperationalError:
    """Make a dressed error; also how one is unpickled: it is not found under the name that it shows."""
    dressed = _DRESSED[kind].__new__(_DRESSED[kind], *args)
    dressed.args = args
    dressed.__dict__.update(state)
    return dressed


for _kind, _twin in _DRESSED.items():
    # A traceback shows the name that handlers have, dbguard.NoPrimary, whatever else the error is.
    _twin.__module__, _twin.__name__, _twin.__qualname__ = "dbguard", _kind.__name__, _kind.__name__
    _twin.__reduce__ = (  # type: ignore[method-assign]  # made by `type`
        lambda self, kind=_kind: (_made, (kind, self.args, {**self.__dict__, "orig": None}))  # type: ignore[misc]  # same
    )


def dress(error: errors.DbGuardError, orig: BaseException, *, invalidated: bool) -> exc.OperationalError:
    """Return *error* as one that SQLAlchemy's users catch already; its statement and parameters are none.

    orig: what SQLAlchemy caught. invalidated: the connection is given up.
    """
    kind = next(kind for kind in type(error).__mro__ if kind in _DRESSED)
    shown = exc.OperationalError(None, None, orig, connection_invalidated=invalidated, code=exc.OperationalError.code)
    return _made(kind, (str(error),), {**shown.__dict__, **error.__dict__})
