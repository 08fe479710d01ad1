"""The connection class of own pools, and what of asyncpg the facade is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from dbguard.drivers.asyncpg.lease import Tag

__all__ = ["DriverConnection", "GuardedConnection", "Record", "connection_class", "not_ours", "released"]

if TYPE_CHECKING:
    DriverConnection = asyncpg.Connection[asyncpg.Record]
else:
    DriverConnection = asyncpg.Connection
Record = asyncpg.Record


def released() -> asyncpg.InterfaceError:
    """Return the error for a connection that was given back and is used again."""
    return asyncpg.InterfaceError("the connection was given back: its block has ended")


def not_ours(connection: object) -> asyncpg.InterfaceError:
    """Return the error for something given back that this guard has not lent."""
    return asyncpg.InterfaceError(f"release() received {connection!r}, which is no connection of this guard")


class GuardedConnection:
    """Mixed into the connection class of own pools, so that what a transaction's end really said is known."""

    guard_tag: Tag

    @property
    def guarded(self) -> GuardedConnection:
        """This object itself; reached through the pool's proxy, which passes unknown attributes on."""
        return self

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg's; the command tag is kept, because asyncpg's `Transaction.commit` hides it.

        A token that the lease wants to store goes before that method's COMMIT.
        """
        tag = getattr(self, "guard_tag", None)
        if tag is not None and tag.ending and query == "COMMIT;":
            query = tag.ending
        status: str = await super().execute(query, *args, timeout=timeout)  # type: ignore[misc]  # the driver's class beside it has it
        if tag is not None:
            tag.last_status = status
        return status

    def get_reset_query(self) -> str:
        """As asyncpg's; what the pool wants to be reset besides goes before it, in one round trip."""
        query: str = super().get_reset_query()  # type: ignore[misc]  # the driver's class beside it has it
        tag = getattr(self, "guard_tag", None)
        return f"{tag.before_reset};\n{query}" if tag is not None and tag.before_reset else query

    async def reset(self, *, timeout: float | None = None) -> None:
        """As asyncpg's, which takes away all listeners: the guard's own goes on to hear of waits that are cut short."""
        try:
            await super().reset(timeout=timeout)  # type: ignore[misc]  # the driver's class beside it has it
        finally:
            tag = getattr(self, "guard_tag", None)
            if tag is not None and tag.listens and not self.is_closed():  # type: ignore[attr-defined]  # same
                self.add_log_listener(tag.hear)  # type: ignore[attr-defined]  # same


_classes: dict[type, type] = {}


def connection_class(base: type[Any]) -> type[Any]:
    """Return *base*, a subclass of `asyncpg.Connection`, with what the guard needs mixed in."""
    if base not in _classes:
        _classes[base] = type(f"Guarded{base.__name__}", (GuardedConnection, base), {})
    return _classes[base]
