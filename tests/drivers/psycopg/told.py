"""Errors as psycopg raises them, made without a server."""

from __future__ import annotations

import psycopg

WHERE = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '


def refused(message: str, severity: str = "FATAL") -> psycopg.OperationalError:
    """Make the error of a dial that a server refuses, as libpq 14 to 18 write it."""
    return psycopg.OperationalError(f"{WHERE}{severity}:  {message}")


def server_error(code: str, *, severity: str = "ERROR", **more: str) -> psycopg.Error:
    """Make an error as the server tells it, with the fields that it has beside its text."""
    fields = psycopg.pq.DiagnosticField
    info = {
        fields.SQLSTATE: code,
        fields.SEVERITY_NONLOCALIZED: severity,
        **{fields[name.upper()]: value for name, value in more.items()},
    }
    told = {int(field): value.encode() for field, value in info.items()}
    return psycopg.errors.lookup(code)("no", info=told)
