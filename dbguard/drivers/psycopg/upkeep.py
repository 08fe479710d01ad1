"""What is done to a session between two uses: psycopg has no reset of its own, and its pools send none.

The application's functions are called as `psycopg_pool` calls them: with the connection, which they must leave idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from dbguard.core.statement import Touch
from dbguard.drivers.identity import DEEP_RESET, FORGET_SEQUENCES, identify

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.drivers.psycopg.lease import Lease
    from dbguard.drivers.psycopg.line import Line

__all__ = ["RESET", "called", "cleaned", "in_autocommit"]

RESET = "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL"
"""What asyncpg's pools send between two uses."""


async def called(line: Line, hook: Callable[[Any], Any] | None) -> None:
    """Let one of the application's functions have the connection. Raises what it raises."""
    if hook is None:
        return
    await line.run(hook, line.raw)
    status = line.raw.pgconn.transaction_status
    if status != TransactionStatus.IDLE:
        name = TransactionStatus(status).name
        raise psycopg.ProgrammingError(f"connection left in status {name} by {hook}: discarded")


async def in_autocommit(line: Line) -> None:
    """Let each statement be a transaction by itself, as all that we send is."""
    if not line.raw.autocommit:
        await line.run(line.raw.set_autocommit, True)


async def cleaned(lease: Lease, worst: Touch, configure: Callable[[Any], Any] | None) -> bool:
    """Take back what a use may have left, *worst* at most; say whether the session is now who it was at its birth.

    Deep for settings too: what only may have been touched was touched by functions of the application's, in triggers
    and policies, and they can set a role or make a temporary table as well. What `configure` had set is set again.
    """
    line, tag = lease.con, lease.tag
    await in_autocommit(line)
    if line.stale_plans:
        await line.execute("DEALLOCATE ALL")
        line.stale_plans = False
    if worst is Touch.NOTHING:
        return True
    await line.execute(f"{DEEP_RESET if tag.plain_role else FORGET_SEQUENCES}; {RESET}")
    tag.drew = False
    await called(line, configure)
    await in_autocommit(line)
    return tag.plain_role or not (await identify(line)).differs(tag.identity)
