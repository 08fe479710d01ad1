"""What a PostgreSQL server is asked, and how its answer becomes a `Sighting`.

One statement for primary and replica, on versions 13 to 18. What a server does not tell (NULL, or no right to a
function) is unknown, never a mismatch: a second, smaller statement is asked where the first is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbguard.core.topology import Instance, Role, Sighting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.drivers.speaker import Speaker

__all__ = ["Backend", "ask", "sighting"]

# Positions are bytes since 0/0. The timeline of a primary is read off the name of its WAL file: right from the first
# moment after a promotion, while pg_control_checkpoint() is late by minutes. The *insert* position, because the write
# position is too low under synchronous_commit = off.
_COMMON = """
    pg_is_in_recovery() AS recovery,
    extract(epoch from pg_postmaster_start_time())::text AS started,
    CASE WHEN pg_is_in_recovery() THEN NULL
         ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END AS timeline,
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
          ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn)::bigint AS position,
    CASE WHEN pg_is_in_recovery() THEN NULL
         ELSE (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint END AS flushed,
    (SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming') AS received,
    (SELECT count(*) > 0 FROM pg_stat_wal_receiver WHERE pid IS NOT NULL) AS streaming,
    current_setting('default_transaction_read_only') = 'on' AS read_only,
    current_setting('synchronous_standby_names') <> '' AS synchronous,
    current_setting('synchronous_commit') NOT IN ('off', 'local') AS waits,
    current_setting('client_min_messages') = 'error' AS quiet,
    host(inet_server_addr()) || ':' || inet_server_port() AS address,
    pg_backend_pid() AS pid,
    (SELECT extract(epoch from backend_start) FROM pg_stat_get_activity(pg_backend_pid()))::float8 AS backend_start,
    current_user = session_user AS plain_role
"""
_FULL = f"""SELECT {_COMMON},
    system_identifier::text AS system_id,
    timeline_id AS control_timeline,
    (redo_lsn - '0/0'::pg_lsn)::bigint AS redo,
    min_recovery_end_timeline AS branch_timeline,
    (min_recovery_end_lsn - '0/0'::pg_lsn)::bigint AS branch
FROM pg_control_system(), pg_control_checkpoint(), pg_control_recovery()
"""  # noqa: S608  both parts are constants above
_SMALL = f"SELECT {_COMMON}, NULL AS system_id, NULL AS control_timeline, NULL AS redo, NULL AS branch_timeline, NULL AS branch"

END_OF_RECOVERY = 48
"""Bytes of the record with which a promotion begins its timeline, at least (48 up to PostgreSQL 17, 56 on 18). The control
file tells where that record ends, until the first checkpoint of the new timeline is done."""

_NOT_TOLD = frozenset({"42501", "42883", "0A000"})
"""With what a server refuses that does not tell all: no right, no such function, not supported."""


@dataclass(frozen=True, slots=True)
class Backend:
    """The server's side of one connection: its process, and when that began (seconds since the epoch)."""

    pid: int
    started: float | None


async def ask(con: Speaker, *, timeout: float | None) -> Mapping[str, Any]:
    """Ask *con* who it is talking to; *timeout* None: the caller bounds it. Raises what the driver raises."""
    try:
        row = await con.fetchrow(_FULL, timeout=timeout)
    except Exception as error:
        if getattr(error, "sqlstate", None) not in _NOT_TOLD:
            raise
        row = await con.fetchrow(_SMALL, timeout=timeout)
    return row  # type: ignore[no-any-return]  # what is asked has one row


def sighting(row: Mapping[str, Any], node: str, at: float, *, fresh: bool) -> Sighting:
    """Turn the answer into a value; *at* is when the question was sent."""
    recovery = row["recovery"]
    return Sighting(
        node=node,
        at=at,
        role=Role.REPLICA if recovery else Role.PRIMARY,
        instance=Instance(row["system_id"], row["started"]),
        timeline=row["received"] if recovery else row["timeline"],
        control_timeline=row["control_timeline"],
        position=row["position"],
        flushed=row["flushed"],
        branched=None if recovery else _branched(row),
        streaming=row["streaming"] if recovery else None,
        read_only=bool(row["read_only"]),
        synchronous=bool(row["synchronous"]),
        confirmed=bool(row["synchronous"] and row["waits"]),
        address=row["address"],
        fresh=fresh,
    )


def _branched(row: Mapping[str, Any]) -> int | None:
    """Return where a primary's timeline branched off, or a position above."""
    timeline = row["timeline"]
    if timeline is None:
        return None
    if row["branch_timeline"] == timeline:
        return int(row["branch"]) - END_OF_RECOVERY
    redo = row["redo"]
    return int(redo) if redo is not None and row["control_timeline"] == timeline else None
