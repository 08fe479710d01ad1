"""What a server is told at connecting, whichever driver connects."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SERVER_SETTINGS"]

SERVER_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "tcp_keepalives_idle": "15",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "20000",
        "idle_in_transaction_session_timeout": "300000",
        "client_min_messages": "notice",
    }
)
"""What the server is told at connecting, so that it ends the backend of a client that is gone, and its locks with it:
within about 30 s of silence on the line, and after 5 min of silence inside a transaction. Milliseconds where PostgreSQL
counts in them. PostgreSQL's own default for messages, so that no setting of the role's keeps back the notice that a
commit's wait for its standby was cut short. What the application sets itself wins."""
