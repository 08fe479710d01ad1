"""How a transaction ends on asyncpg.

asyncpg's own `Transaction` sends BEGIN and keeps its books (cursors need them); that it hides what COMMIT answered, and
that a wait for a standby was cut short, is mended here: the tag is read, and the notice heard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.core.statement import Touch
from dbguard.drivers.asyncpg.failures import NotReplicated

if TYPE_CHECKING:
    from dbguard.drivers.asyncpg.lease import Lease

__all__ = ["commit", "cut_off", "ended", "heard", "left_open", "roll_back", "rolled_back"]

QUIET = "SELECT current_setting('client_min_messages') = 'error'"


def rolled_back() -> asyncpg.InFailedSQLTransactionError:
    """Return the error for a COMMIT that the server answered with ROLLBACK."""
    return asyncpg.InFailedSQLTransactionError(
        "the transaction was rolled back, because a statement in it had failed: nothing was committed"
    )


def cut_off() -> asyncpg.InterfaceError:
    """Return the error for a transaction that ends while a task that was not awaited still uses its connection."""
    return asyncpg.InterfaceError(
        "the transaction was rolled back: as it ended, another task still ran an operation on its connection; await "
        "every task that uses the connection before the transaction ends"
    )


def left_open() -> asyncpg.InterfaceError:
    """Return the error for a statement that left a transaction open on a connection that is given back."""
    return asyncpg.InterfaceError(
        "the statement left a transaction open, which was rolled back: use `async with guard.transaction()`, or take a "
        "connection with `guard.acquire()`"
    )


def ended() -> asyncpg.ConnectionDoesNotExistError:
    """Return the error for a statement whose connection was ended just as its answer came."""
    return asyncpg.ConnectionDoesNotExistError("the connection was ended as the answer came")


async def roll_back(con: Any) -> None:
    """End what is open on *con* after an error; a connection that cannot even do that is terminated."""
    if con.is_closed() or not con.is_in_transaction():
        return
    try:
        await con.execute("ROLLBACK")
    except Exception:  # noqa: BLE001  it goes, and the transaction with it; the error that led here counts
        con.terminate()


async def commit(con: Any, inner: Any, lease: Lease, ending: str = "") -> None:
    """Send COMMIT and return only if the server says COMMIT, with what was promised for it.

    ending: a token and COMMIT as one simple query; empty: COMMIT alone.
    """
    tag = lease.tag
    tag.last_status = ""
    if lease.doubtful:
        await con.fetchval("SELECT 1")  # raises 25P02 if the transaction has failed unseen
    await heard(con, lease, _end(con, inner, lease, ending) if ending else inner.commit())
    if tag.last_status not in ("", "COMMIT"):
        raise rolled_back()


async def _end(con: Any, inner: Any, lease: Lease, ending: str) -> None:
    """Store the token and COMMIT: in one, where the connection's class is ours; on a wrapped pool one after the other."""
    if hasattr(con, "guarded"):
        lease.tag.ending = ending
        try:
            await inner.commit()
        except asyncpg.PostgresError:
            await roll_back(con)
            raise
        finally:
            lease.tag.ending = ""
        return
    try:
        await con.execute(ending.removesuffix("; COMMIT"))
    except asyncpg.PostgresError:
        await _undo(con, inner)
        raise
    await inner.commit()


async def _undo(con: Any, inner: Any) -> None:
    """End *inner* after an error, in asyncpg's books, too; a connection that cannot even do that is terminated."""
    if con.is_closed():
        return
    try:
        await inner.rollback()
    except Exception:  # noqa: BLE001  as in `roll_back`
        con.terminate()


async def heard(con: Any, lease: Lease, work: Any) -> Any:
    """Await *work*, a coroutine that commits something; raise `NotReplicated` if its wait for a standby was cut short.

    Raised, too, where that could not have been heard: the application has turned warnings off. Connections of own pools
    hear it always, since the server may have been told to wait a moment ago; those of wrapped pools, where to listen
    costs as much as a tenth of a call, where the cluster is known to wait.
    """
    tag, waits = lease.tag, lease.synchronous
    if not (waits or tag.listens) or con.is_closed():  # on a closed connection nothing commits: the driver says so
        return await work
    before, quiet = tag.cut_short, False
    if waits:
        try:
            # Only what was done in this use can have changed it: between two uses the session is reset.
            quiet = await con.fetchval(QUIET) if lease.touched is not Touch.NOTHING else tag.quiet
        except BaseException:
            work.close()
            raise
    if tag.listens:
        value = await work
    else:
        con.add_log_listener(tag.hear)
        try:
            value = await work
        finally:
            if not con.is_closed():
                con.remove_log_listener(tag.hear)
    if tag.cut_short != before:
        raise NotReplicated("the commit's wait for a synchronous standby was cut short")
    if quiet:
        raise NotReplicated("client_min_messages hides whether the commit waited for its standby: set it to warning")
    return value
