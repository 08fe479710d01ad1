"""What the nodes of a local cluster are told: their settings, and how to write values so that PostgreSQL reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SETTINGS", "conninfo", "in_file", "quoted"]

SETTINGS: Mapping[str, str] = {
    # not below 100, which initdb recorded: a copied replica refuses to start with less than its primary had
    "max_connections": "100",
    "shared_buffers": "32MB",
    "huge_pages": "off",
    # memory shared by files in the data directory: a killed server would leave segments in /dev/shm behind
    "dynamic_shared_memory_type": "mmap",
    "wal_level": "replica",
    "hot_standby": "on",
    "hot_standby_feedback": "on",
    "wal_log_hints": "on",  # pg_rewind needs this or checksums
    "max_wal_senders": "10",
    "wal_keep_size": "128MB",
    "max_wal_size": "256MB",
    "fsync": "off",
    "synchronous_commit": "on",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",  # how soon a replica dials its upstream again
    "log_line_prefix": "%m [%p] %b ",
}


def quoted(value: str) -> str:
    """Quote *value* as a string of SQL."""
    return "'" + value.replace("'", "''") + "'"


def in_file(value: str) -> str:
    """Quote *value* for a configuration file, which also knows backslashes."""
    return quoted(value.replace("\\", "\\\\"))


def conninfo(**words: str) -> str:
    """Write a libpq connection string; empty values are left out."""
    escaped = {name: re.sub(r"(['\\])", r"\\\1", value) for name, value in words.items() if value}
    return " ".join(f"{name}='{value}'" for name, value in escaped.items())
