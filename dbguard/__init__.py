"""dbguard: a resilience layer for PostgreSQL.

Routes each statement to the right node, follows failovers, repeats only what is safe to repeat, and says truthfully
what became of every write.
"""

from typing import TYPE_CHECKING, Any

from dbguard.connection import Connection
from dbguard.core.classify import classify
from dbguard.core.episode import Episode
from dbguard.core.reasons import Route
from dbguard.core.statement import Kind, Statement
from dbguard.deadlines import Deadline, deadline
from dbguard.errors import (
    ConfigError,
    DbGuardError,
    DeadlineExceeded,
    GuardClosed,
    NoPrimary,
    NoReplica,
    NotAttempted,
    OutcomeUnknown,
    Overloaded,
    ResultLost,
    SplitBrain,
    TokenInvalid,
)
from dbguard.guard import Guard, connect
from dbguard.status import NodeStatus, Status
from dbguard.transaction import Transaction
from dbguard.wrapping import Following, follows

if TYPE_CHECKING:
    from dbguard.pg.guard import PsycopgGuard
    from dbguard.pg.sync_guard import SyncGuard

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Connection",
    "DbGuardError",
    "Deadline",
    "DeadlineExceeded",
    "Episode",
    "Following",
    "Guard",
    "GuardClosed",
    "Kind",
    "NoPrimary",
    "NoReplica",
    "NodeStatus",
    "NotAttempted",
    "OutcomeUnknown",
    "Overloaded",
    "PsycopgGuard",
    "ResultLost",
    "Route",
    "SplitBrain",
    "Statement",
    "Status",
    "SyncGuard",
    "TokenInvalid",
    "Transaction",
    "__version__",
    "classify",
    "connect",
    "deadline",
    "follows",
]


def __getattr__(name: str) -> Any:
    """Load the facades over psycopg when they are asked for: it is an extra, and asyncpg's users need none of it."""
    where = {"PsycopgGuard": "guard", "SyncGuard": "sync_guard"}.get(name)
    if where is None:
        raise AttributeError(f"module 'dbguard' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  it is needed here alone

    try:
        return getattr(import_module(f"dbguard.pg.{where}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("psycopg", "psycopg_pool"):
            raise
        raise ModuleNotFoundError(
            f"dbguard.{name} needs {error.name}: pip install 'dbguard-postgres[psycopg]', or psycopg[binary,pool]",
            name=error.name,
        ) from error
