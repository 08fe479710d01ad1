"""The least rights of the role that a guard logs in as, beside those that the application's own statements need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.drivers import outcome_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["rights"]


def rights(role: str, database: str, *, tokens: bool) -> Iterator[str]:
    """Yield lines of SQL that grant them, each with its reason; granted again they change nothing.

    tokens: with those for the schema of tokens, whose own statements `dbguard outcome install` prints, too.
    """
    name = outcome_sql.quoted(role)
    yield "-- To log in."
    yield f"GRANT CONNECT ON DATABASE {outcome_sql.quoted(database)} TO {name};"
    yield "-- To notice a node of another cluster, and a replica's timeline. PUBLIC has both unless they were revoked."
    yield f"GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint() TO {name};"
    yield "-- To see from whom a replica receives: without it a replica gets reads after a failover only once it has made a"
    yield "-- checkpoint. It is the part of pg_monitor that is needed."
    yield f"GRANT pg_read_all_stats TO {name};"
    yield "-- None to end the sessions that lost connections left behind: a role may end its own. pg_signal_backend would"
    yield "-- only help where the application changes its session's user."
    if tokens:
        yield from outcome_sql.grants(role).splitlines()
