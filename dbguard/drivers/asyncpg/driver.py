"""asyncpg, as the runtime and the facades ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.drivers.asyncpg import transaction
from dbguard.drivers.asyncpg.connection import released
from dbguard.drivers.asyncpg.failures import AsyncpgDriver, is_conflict, is_drivers, is_refusal
from dbguard.drivers.asyncpg.interrupt import interruptible
from dbguard.drivers.asyncpg.outcome import refused_ending

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dbguard.drivers.asyncpg.lease import Lease

__all__ = ["Asyncpg"]


class Asyncpg(AsyncpgDriver):
    """See `dbguard.drivers.base.Driver`."""

    is_drivers = staticmethod(is_drivers)
    is_conflict = staticmethod(is_conflict)
    is_refusal = staticmethod(is_refusal)
    released = staticmethod(released)
    cut_off = staticmethod(transaction.cut_off)
    rolled_back = staticmethod(transaction.rolled_back)
    fed = staticmethod(interruptible)
    refused_ending = staticmethod(refused_ending)

    @staticmethod
    def heard(lease: Lease, work: Any) -> Awaitable[Any]:
        """See `Driver.heard`."""
        return transaction.heard(lease.con, lease, work)

    @staticmethod
    async def commit(lease: Lease, inner: Any, ending: str = "") -> None:
        """See `Driver.commit`."""
        await transaction.commit(lease.con, inner, lease, ending)
