"""Two-phase commits in psycopg's words. What has been prepared outlives its session, which is not used again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.retry import Stake
from dbguard.core.statement import Touch
from dbguard.drivers.psycopg.connection import (
    NotSupportedError,
    ProgrammingError,
    Unprepared,
    Xid,
    is_idle,
    status_name,
    two_phase,
)

if TYPE_CHECKING:
    from dbguard.pg.held import Held

__all__ = ["begin", "commit", "prepare", "recover", "rollback"]


def _named(xid: Any) -> Any:
    return xid if isinstance(xid, Xid) else Xid.from_string(xid)


async def begin(held: Held, xid: Any) -> None:
    """Begin a transaction that will be prepared as *xid*."""
    xid = _named(xid)
    _ = held.line
    if not is_idle(held.raw):
        raise ProgrammingError(f"can't start two-phase transaction: connection in status {status_name(held.raw)}")
    if held.autocommit:
        raise ProgrammingError("can't use two-phase transactions in autocommit mode")
    held.session.touch(Touch.LOST)
    await held.begin()
    held.tpc = (xid, False)


async def prepare(held: Held) -> None:
    """Prepare the transaction. Its outcome may be unknown, as that of a commit."""
    _ = held.line
    if not held.tpc:
        raise ProgrammingError("'tpc_prepare()' must be called inside a two-phase transaction")
    xid, prepared = held.tpc
    if prepared:
        raise ProgrammingError("'tpc_prepare()' cannot be used during a prepared two-phase transaction")
    held.tpc = (xid, True)
    try:
        await _send(held, two_phase("PREPARE TRANSACTION", xid))
    except Unprepared as error:
        raise NotSupportedError(str(error)) from None
    held.open = False


async def commit(held: Held, xid: Any = None) -> None:
    """Commit what was prepared, or the transaction if it was not."""
    if (name := _ended(held, "commit", xid)) is None:
        held.tpc = None
        await held.commit()
        return
    await _send(held, two_phase("COMMIT PREPARED", name))
    held.tpc = None


async def rollback(held: Held, xid: Any = None) -> None:
    """Roll back what was prepared, or the transaction if it was not."""
    if (name := _ended(held, "rollback", xid)) is None:
        held.tpc = None
        await held.rollback()
        return
    await _send(held, two_phase("ROLLBACK PREPARED", name))
    held.tpc = None


async def recover(held: Held) -> Any:
    """Return the names of the transactions that are prepared on the server."""
    line = held.line
    await held.free()
    return await held.do(lambda: line.run(held.raw.tpc_recover), Stake.READ)


def _ended(held: Held, action: str, xid: Any) -> Any:
    """Return the name of the prepared transaction that *action* ends; None: it has not been prepared."""
    _ = held.line
    if xid is None:
        if not held.tpc:
            raise ProgrammingError(f"tpc_{action}() without xid must be called inside a two-phase transaction")
        return held.tpc[0] if held.tpc[1] else None
    if held.tpc:
        raise ProgrammingError(f"tpc_{action}() with xid must be called outside a two-phase transaction")
    held.session.touch(Touch.LOST)
    return _named(xid)


async def _send(held: Held, text: str) -> None:
    """Send a command that ends a transaction for good, on this session or another one."""
    line = held.line
    await held.free()
    async with held.pipes.outside():
        stake, whole, single = held.noted(text)
        await held.do(lambda: line.execute(text), stake, whole=whole, single=single)
