"""psycopg, as the runtime and the facades ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.drivers.psycopg import transaction
from dbguard.drivers.psycopg.connection import released
from dbguard.drivers.psycopg.failures import PsycopgDriver, is_conflict, is_drivers, is_refusal
from dbguard.drivers.psycopg.outcome import refused_ending

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dbguard.drivers.psycopg.lease import Lease

__all__ = ["Psycopg"]


class Psycopg(PsycopgDriver):
    """See `dbguard.drivers.base.Driver`."""

    is_drivers = staticmethod(is_drivers)
    is_conflict = staticmethod(is_conflict)
    is_refusal = staticmethod(is_refusal)
    released = staticmethod(released)
    cut_off = staticmethod(transaction.cut_off)
    rolled_back = staticmethod(transaction.rolled_back)
    heard = staticmethod(transaction.heard)
    refused_ending = staticmethod(refused_ending)

    @staticmethod
    def fed(con: Any, work: Any) -> Awaitable[Any]:  # noqa: ARG004  a line meets every interruption by itself
        """See `Driver.fed`."""
        return work  # type: ignore[no-any-return]  # a call of the driver's is awaited

    @staticmethod
    async def commit(lease: Lease, inner: Any, ending: str = "") -> None:  # noqa: ARG004  psycopg keeps no books of it
        """See `Driver.commit`."""
        await transaction.commit(lease, ending)
