"""From settings to what libpq is told at connecting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.config.values import Secret

if TYPE_CHECKING:
    from dbguard.config.settings import Connection, NodeSettings

__all__ = ["libpq_keywords"]

KEYWORDS = {
    "user": "user",
    "database": "dbname",
    "passfile": "passfile",
    "krbsrvname": "krbsrvname",
    "gsslib": "gsslib",
}
"""Fields of `Connection`, and libpq's names for them."""


def libpq_keywords(connection: Connection, node: NodeSettings) -> dict[str, Any]:
    """Return what libpq is told of *node*, by its own names, but for `server_settings`; secrets in clear.

    A password that is a function stays one. What the settings leave out is left to libpq.
    """
    said = {"host": node.host, "port": node.port, **connection.tls()}
    for name, keyword in KEYWORDS.items():
        value = getattr(connection, name)
        if value is not None:
            said[keyword] = value
    password = connection.password
    if password is not None:
        said["password"] = password.reveal() if isinstance(password, Secret) else password
    return said
