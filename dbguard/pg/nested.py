"""Transaction blocks in psycopg's meaning: the outermost one begins and commits, those inside are savepoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.drivers.psycopg.connection import (
    DriverTransaction,
    OutOfOrderTransactionNesting,
    Rollback,
    is_idle,
    quoted,
)

if TYPE_CHECKING:
    from dbguard.pg.held import Held

__all__ = ["Nested"]

Status = DriverTransaction.Status


class Savepoint:
    """A savepoint, as something to be rolled back to."""

    __slots__ = ("_line", "_name")

    def __init__(self, line: Any, name: str) -> None:
        self._line = line
        self._name = name

    async def rollback(self) -> None:
        """Go back to the savepoint, and forget it."""
        await self._line.execute(f"ROLLBACK TO {self._name}")
        await self._line.execute(f"RELEASE {self._name}")


class Nested:
    """One transaction block. savepoint_name, force_rollback, status: as psycopg's."""

    def __init__(self, held: Held, savepoint_name: str | None, *, force_rollback: bool) -> None:
        self.held = held
        self.savepoint_name = savepoint_name or ""
        self.force_rollback = force_rollback
        self.status = Status.NOT_STARTED
        self._outer = False
        self._depth = 0

    async def enter(self) -> None:
        """Send BEGIN, or SAVEPOINT where a transaction is open."""
        if self.status is not Status.NOT_STARTED:
            raise TypeError("transaction blocks can be used only once")
        held = self.held
        _ = held.line
        await held.free()
        self._outer = is_idle(held.raw)
        if self._outer:
            await held.begin()
        elif not self.savepoint_name:
            self.savepoint_name = f"_pg3_{held.depth + 1}"
        if self.savepoint_name:
            await held.command(f"SAVEPOINT {self._quoted()}")
        self.status = Status.ACTIVE
        self._depth = held.depth
        held.depth += 1

    async def leave(self, error: BaseException | None, block: object) -> bool:
        """Commit, or roll back because of *error*; return whether it ends here. *block*: what the application knows it as."""
        held, session = self.held, self.held.session
        held.depth -= 1
        action = "commit" if error is None and not self.force_rollback else "rollback"
        if held.depth != self._depth:
            raise OutOfOrderTransactionNesting(f"transaction {action} at the wrong nesting level: {block!r}")
        late: Exception | None = None
        if held.pipes.driver is not None and not session.closed:
            try:
                await held.pipes.synchronize()
            except Exception as failed:  # noqa: BLE001  what was queued has failed, and the block with it
                if error is None:
                    error, late = failed, failed
        if error is None and not self.force_rollback:
            if held.lost_nothing():
                self.status = Status.FAILED
            else:
                await self._commit()
            return False
        await self._roll_back(error)
        if late is not None:
            raise late
        return isinstance(error, Rollback) and error.transaction in (None, block)

    async def _commit(self) -> None:
        self.status = Status.FAILED
        held = self.held
        if self._outer:
            await held.end()
        else:
            await held.command(f"RELEASE {self._quoted()}")
        self.status = Status.COMMITTED

    async def _roll_back(self, error: BaseException | None) -> None:
        held, session = self.held, self.held.session
        if session.closed:
            self.status = Status.FAILED
            return
        explicit = isinstance(error, Rollback) or self.force_rollback
        self.status = Status.ROLLED_BACK_EXPLICITLY if explicit else Status.ROLLED_BACK_WITH_ERROR
        undo = held.undo if self._outer else self._back
        if error is None:
            await undo()
        else:
            await held.abandon(error, undo)

    async def _back(self) -> None:
        held = self.held
        await held.free()
        async with held.pipes.outside():
            if not is_idle(held.raw):  # else the application has ended the transaction by a statement of its own
                await held.session.rollback(Savepoint(held.line, self._quoted()))

    def _quoted(self) -> str:
        return quoted(self.savepoint_name, self.held.raw)
