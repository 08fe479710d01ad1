"""How a transaction begins and ends on a line of psycopg's: by our own text, so that what COMMIT answered is seen.

psycopg's `commit` hides the tag, and so that a COMMIT after an error answers ROLLBACK; nor does it hear that a wait for a
standby was cut short.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import psycopg

from dbguard.core.statement import Touch
from dbguard.drivers.psycopg.failures import NotReplicated

if TYPE_CHECKING:
    from dbguard.drivers.psycopg.lease import Lease
    from dbguard.drivers.psycopg.line import Line

__all__ = ["Block", "begin", "commit", "cut_off", "ended", "heard", "left_open", "roll_back", "rolled_back"]

QUIET = "SELECT current_setting('client_min_messages') = 'error'"

ISOLATIONS = frozenset({"READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"})

_numbers = count(1)


def rolled_back() -> psycopg.errors.InFailedSqlTransaction:
    """Return the error for a COMMIT that the server answered with ROLLBACK."""
    return psycopg.errors.InFailedSqlTransaction(
        "the transaction was rolled back, because a statement in it had failed: nothing was committed"
    )


def cut_off() -> psycopg.InterfaceError:
    """Return the error for a transaction that ends while another task or thread still uses its connection."""
    return psycopg.InterfaceError(
        "the transaction was rolled back: as it ended, something else still ran an operation on its connection; wait for "
        "every task and thread that uses the connection before the transaction ends"
    )


def left_open() -> psycopg.InterfaceError:
    """Return the error for a statement that left a transaction open on a connection that is given back."""
    return psycopg.InterfaceError(
        "the statement left a transaction open, which was rolled back: use `guard.transaction()`, or take a connection "
        "with `guard.connection()`"
    )


def ended() -> psycopg.OperationalError:
    """Return the error for what went without one on a connection that was ended meanwhile."""
    return psycopg.OperationalError("the connection was ended meanwhile")


def begin(*, isolation: str | None = None, readonly: bool | None = None, deferrable: bool | None = None) -> str:
    """Return the statement that begins a transaction; what is None is left to the session's settings.

    isolation: its name in SQL, in any case, with blanks or underscores. Raises `ValueError` for another.
    """
    words = ["BEGIN"]
    if isolation is not None:
        name = isolation.upper().replace("_", " ")
        if name not in ISOLATIONS:
            raise ValueError(f"isolation is one of {', '.join(sorted(ISOLATIONS)).lower()}, not {isolation!r}")
        words.append(f"ISOLATION LEVEL {name}")
    if readonly is not None:
        words.append("READ ONLY" if readonly else "READ WRITE")
    if deferrable is not None:
        words.append("DEFERRABLE" if deferrable else "NOT DEFERRABLE")
    return " ".join(words)


class Block:
    """A transaction on a line or, inside another one, a savepoint. See `begin` for the arguments."""

    def __init__(
        self,
        line: Line,
        *,
        isolation: str | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> None:
        self._line = line
        self._begin = begin(isolation=isolation, readonly=readonly, deferrable=deferrable)
        self._savepoint = ""

    async def start(self) -> None:
        """Send BEGIN or SAVEPOINT."""
        if self._line.is_in_transaction():
            self._savepoint = f"dbguard_{next(_numbers)}"
            await self._line.execute(f"SAVEPOINT {self._savepoint}")
        else:
            await self._line.execute(self._begin)

    async def commit(self) -> None:
        """Release the savepoint. A transaction is ended by `commit` of this module, which looks at what is answered."""
        await self._line.execute(f"RELEASE {self._savepoint}")

    async def rollback(self) -> None:
        """Send ROLLBACK, or go back to the savepoint."""
        name = self._savepoint
        await self._line.execute(f"ROLLBACK TO {name}; RELEASE {name}" if name else "ROLLBACK")


async def roll_back(line: Line) -> None:
    """End what is open on *line* after an error; a connection that cannot even do that is terminated."""
    if line.is_closed() or not line.is_in_transaction():
        return
    try:
        await line.execute("ROLLBACK")
    except Exception:  # noqa: BLE001  it goes, and the transaction with it; the error that led here counts
        line.terminate()


async def commit(lease: Lease, ending: str = "") -> None:
    """Send COMMIT and return only if the server says COMMIT, with what was promised for it.

    ending: a token and COMMIT as one simple query; empty: COMMIT alone.
    """
    if await heard(lease, _end(lease.con, ending)) != "COMMIT":
        raise rolled_back()


async def _end(line: Line, ending: str) -> str:
    try:
        return await line.execute(ending or "COMMIT")
    except psycopg.Error:
        await roll_back(line)
        raise


async def heard(lease: Lease, work: Any) -> Any:
    """Await *work*, a coroutine that commits something; raise `NotReplicated` if its wait for a standby was cut short.

    Raised, too, where that could not have been heard: the application has turned warnings off.
    """
    line, tag = lease.con, lease.tag
    if line.is_closed():  # there nothing commits: psycopg says so
        return await work
    before, quiet = tag.cut_short, False
    if lease.synchronous:
        try:
            # Only what was done in this use can have changed it: between two uses the session is reset.
            quiet = await line.fetchval(QUIET) if lease.touched is not Touch.NOTHING else tag.quiet
        except BaseException:
            work.close()
            raise
    value = await work
    if tag.cut_short != before:
        raise NotReplicated("the commit's wait for a synchronous standby was cut short")
    if quiet:
        raise NotReplicated("client_min_messages hides whether the commit waited for its standby: set it to warning")
    return value
