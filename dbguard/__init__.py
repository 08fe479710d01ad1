"""dbguard: a resilience layer for PostgreSQL.

Routes each statement to the right node, follows failovers, repeats only what is safe to repeat, and says truthfully
what became of every write.
"""

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
    "ResultLost",
    "Route",
    "SplitBrain",
    "Statement",
    "Status",
    "TokenInvalid",
    "Transaction",
    "__version__",
    "classify",
    "connect",
    "deadline",
    "follows",
]
