"""`Transaction`: a block on a leased connection, whichever driver it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from dbguard.core.retry import Stake

if TYPE_CHECKING:
    from types import TracebackType

    from dbguard.session import Session

__all__ = ["Transaction"]


class Transaction:
    """A transaction block or, inside another one, a savepoint; with the methods of asyncpg's `Transaction`.

    A COMMIT is an acknowledgement only if the server says so: after an error in the block it answers ROLLBACK, and
    leaving the block then raises `asyncpg.InFailedSQLTransactionError` instead of passing silently.
    """

    def __init__(self, session: Session, inner: Any, *, read_only: bool = False) -> None:
        self._session = session
        self._inner = inner
        self._read_only = read_only
        self._nested = False

    async def start(self) -> None:
        """Send BEGIN or SAVEPOINT."""
        self._nested = self._session.in_transaction
        if not self._nested:
            self._session.begins(read_only=self._read_only)
        await self._session.do(self._inner.start, Stake.READ)

    async def commit(self) -> None:
        """Send COMMIT, or release the savepoint.

        Raises `OutcomeUnknown` if the answer was lost, or if a promised standby was not waited for;
        `asyncpg.InFailedSQLTransactionError` if the transaction had failed, so that nothing was committed.
        """
        if self._nested:
            await self._session.do(self._inner.commit, Stake.READ)
        else:
            await self._session.commit(self._inner)

    async def rollback(self) -> None:
        """Send ROLLBACK, or roll back to the savepoint. A connection that does not answer is terminated instead."""
        await self._session.rollback(self._inner)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.commit()
        else:
            await self.abandon(error)

    async def abandon(self, error: BaseException) -> None:
        """Roll back because of *error*, which goes on; what fails on the way ends the connection, and so rolls back."""
        session = self._session
        if session.closed:
            return
        if not isinstance(error, Exception):
            session.con.terminate()
            return
        try:
            await self.rollback()
        except Exception:  # noqa: BLE001  the connection goes and the transaction with it; the block's error counts
            if not session.closed:
                session.con.terminate()
