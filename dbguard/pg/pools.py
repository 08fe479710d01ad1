"""What `PsycopgGuard.wrap` and `SyncGuard.wrap` are given: pools of `psycopg_pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.wrapping import Kind, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbguard.wrapping import Wrapped

__all__ = ["checked_pools"]

USED = ("getconn", "putconn", "closed", "get_stats", "connection_class", "conninfo", "kwargs", "max_size")
_GUARDS = {"AsyncConnectionPool": "PsycopgGuard", "ConnectionPool": "SyncGuard"}


def checked_pools(primary: Any, replicas: Sequence[Any], hold: int, kind: str) -> Mapping[str, Wrapped]:
    """Name the pools, and check that each is a `psycopg_pool` of *kind*. Raises as `dbguard.wrapping.wrapped`."""
    psycopg = Kind(
        name=f"a psycopg_pool.{kind}",
        opens=f"dbguard.{_GUARDS[kind]}",
        used=USED,
        closed=lambda pool: bool(pool.closed),
        most=lambda pool: int(pool.max_size),
        fits=lambda pool: any(base.__name__ == kind for base in type(pool).__mro__),
    )
    return wrapped(primary, replicas, hold, psycopg)
