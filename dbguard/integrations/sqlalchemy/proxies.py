"""Whether the application has asked for the driver's own connection: what it runs there, SQLAlchemy's events do not see.

Every public way to it from a `Connection` leads through the pool's proxy of one checkout (`Connection.connection`,
`AsyncConnection.get_raw_connection`), which SQLAlchemy uses as well. So the proxy notes who asks it: a driver's connection or
cursor given to anybody but SQLAlchemy may have been written on.
"""

from __future__ import annotations

from sys import _getframe  # there is no other way to ask who calls
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

    from sqlalchemy.pool import PoolProxiedConnection

__all__ = ["was_lent", "watch"]

_WITHIN = ("sqlalchemy.", "dbguard.")
"""Modules that ask the proxy for what they need themselves; they run no statement there that the events do not see."""

_POOL, _EXECUTION, _ENDS = "sqlalchemy.pool.base", "sqlalchemy.engine.default", ("commit", "rollback")
"""Who of them asks for each checkout, and for each statement, and for what at each end: looked for first, to be cheap."""

_LENT = "dbguard_lent"

_classes: dict[type, type] = {}


def watch(proxy: PoolProxiedConnection) -> None:
    """Let *proxy*, one checkout of a pool's, note from now on whether the application asks it for the driver's connection."""
    kind = type(proxy)
    if kind not in _classes:
        watched = _classes[kind] = _watched(kind)
        _classes[watched] = watched  # some pools give the same one again
    proxy.__class__ = _classes[kind]


def was_lent(proxy: PoolProxiedConnection) -> bool:
    """Whether the application has asked *proxy*, which is watched, for the driver's connection, or for a cursor of it."""
    return _LENT in vars(proxy)


def _watched(base: Any) -> type:
    """Return *base*, a class of proxies, with notes of who asks."""
    own = base.dbapi_connection
    get = own.__get__

    class Watched(base):  # type: ignore[misc]  # SQLAlchemy's class, which has no public name
        __slots__ = ()

        @property
        def driver_connection(self) -> Any:
            _note(self, _getframe(1))
            return super().driver_connection

        @property
        def dbapi_connection(self) -> Any:
            asks = _getframe(1)
            if asks.f_globals.get("__name__") != _POOL:
                _note(self, asks)
            return get(self)

        @dbapi_connection.setter
        def dbapi_connection(self, value: Any) -> None:
            own.__set__(self, value)

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            asks = _getframe(1)
            if asks.f_globals.get("__name__") != _EXECUTION:
                _note(self, asks)
            return get(self).cursor(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            if name not in _ENDS:
                _note(self, _getframe(1))
            return getattr(get(self), name)

    Watched.__name__ = Watched.__qualname__ = f"Watched{base.__name__}"
    return Watched


def _note(proxy: Any, asks: FrameType) -> None:
    if not asks.f_globals.get("__name__", "").startswith(_WITHIN):
        vars(proxy)[_LENT] = True
