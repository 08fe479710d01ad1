"""What the monitor, the claims and the readings of the catalogue ask of a connection, whichever driver made it.

asyncpg's connections satisfy it as they are; psycopg's by an adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WAIT_FOR_STANDBY", "Speaker", "refusal"]

WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The server's function whose notice says that a commit was not waited for; its text is localized."""


class Speaker(Protocol):
    """A connection outside a transaction of anybody else's, on which one statement runs at a time.

    Parameters are ``$1``, ``$2`` and so on. Rows are read by index and by name, and yield their values in order.
    timeout: seconds for one statement; None: what was agreed on at the dial, or no limit. A statement that takes longer
    raises `TimeoutError`. What else fails raises the driver's own error; one with an ``sqlstate`` on a connection that is
    not closed is the server's refusal, as `refusal` says.
    """

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement, or several where no parameters are given; return the tag of the last."""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]:
        """Run a statement, and return its rows."""

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Run a statement, and return its first row; None: there is none."""

    async def fetchval(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Run a statement, and return the first column of its first row; None: there is none."""

    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""

    def terminate(self) -> None:
        """End it at once, without a word to the server; whoever waits on it is woken with the driver's error."""

    def get_server_pid(self) -> int:
        """Return the number of the server's process behind it."""

    def add_log_listener(self, callback: Callable[[Any, Any], None]) -> None:
        """Let *callback* hear the server's notices from now on: it is given the connection, and the notice.

        A notice tells its `server_source_function`.
        """

    def remove_log_listener(self, callback: Callable[[Any, Any], None]) -> None:
        """Let it hear no more."""


def refusal(error: BaseException, con: Speaker) -> str | None:
    """Return the SQLSTATE with which the server has refused a statement on *con*; None where *error* is no such refusal."""
    sqlstate: str | None = getattr(error, "sqlstate", None)
    return None if sqlstate is None or con.is_closed() else sqlstate
