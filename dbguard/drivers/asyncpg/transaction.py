"""How a transaction ends on asyncpg.

asyncpg's own `Transaction` sends BEGIN and keeps its books (cursors need them); that it hides what COMMIT answered, and
what it does on a time-out, is mended here: the tag is read, the notice of a cancelled wait for a standby is heard, and
time is up by terminating the connection, never by a cancel request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.drivers.asyncpg.failures import NotReplicated

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dbguard.drivers.asyncpg.lease import Lease

__all__ = ["commit", "heard", "rollback", "rolled_back"]

WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The server's function whose notice says that a commit was not waited for; its text is localized."""


def rolled_back() -> asyncpg.InFailedSQLTransactionError:
    """Return the error for a COMMIT that the server answered with ROLLBACK."""
    return asyncpg.InFailedSQLTransactionError(
        "the transaction was rolled back, because a statement in it had failed: nothing was committed"
    )


async def commit(con: Any, inner: Any, lease: Lease, limit: float | None) -> None:
    """Send COMMIT and return only if the server says COMMIT, with what was promised for it.

    limit: seconds; then the connection is terminated and `TimeoutError` raised. None: no limit.
    """
    tag = lease.tag
    tag.last_status = ""
    if lease.raw_touched:
        await con.fetchval("SELECT 1")  # raises 25P02 if the transaction has failed unseen
    await _in_time(con, heard(con, lease, inner.commit()), limit)
    if tag.last_status not in ("", "COMMIT"):
        raise rolled_back()


async def rollback(con: Any, inner: Any, limit: float) -> None:
    """Send ROLLBACK; after *limit* seconds the connection is terminated, which rolls back as well."""
    await _in_time(con, inner.rollback(), limit)


async def heard(con: Any, lease: Lease, work: Awaitable[Any]) -> Any:
    """Do what commits something, and raise `NotReplicated` if its wait for a standby was cut short."""
    if not lease.tag.synchronous:
        return await work
    notices: list[Any] = []

    def hear(_: Any, notice: Any) -> None:
        if notice.server_source_function == WAIT_FOR_STANDBY:
            notices.append(notice)

    con.add_log_listener(hear)
    try:
        value = await work
    finally:
        if not con.is_closed():
            con.remove_log_listener(hear)
    if notices:
        raise NotReplicated("the commit's wait for a synchronous standby was cut short")
    return value


async def _in_time(con: Any, work: Awaitable[Any], limit: float | None) -> Any:
    if limit is None:
        return await work
    over = False

    def end() -> None:
        nonlocal over
        over = True
        con.terminate()

    timer = asyncio.get_running_loop().call_later(limit, end)
    try:
        return await work
    except Exception as error:
        if over:
            raise TimeoutError(f"no answer within {limit:.3g} s") from error
        raise
    finally:
        timer.cancel()
