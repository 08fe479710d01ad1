"""What psycopg's errors say about the token of a write: see `dbguard.drivers.tokens`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from dbguard.drivers import outcome_sql

if TYPE_CHECKING:
    from dbguard.core.statement import Token
    from dbguard.drivers.tokens import Tokens

__all__ = ["burnt", "claimed", "judge_ending", "refused_ending"]


def burnt(error: BaseException) -> bool:
    """Say whether a write met its own token in the table: somebody has claimed it, so that nothing was applied."""
    if not isinstance(error, psycopg.errors.UniqueViolation):
        return False
    told = error.diag
    return (told.schema_name, told.table_name, told.constraint_name) == outcome_sql.CONSTRAINT


def claimed() -> psycopg.errors.SerializationFailure:
    """Return the error for a write whose token was claimed before it could commit. It may be repeated as it is."""
    return psycopg.errors.SerializationFailure(
        "nothing was committed: somebody asked for the fate of this write while it ran"
    )


def judge_ending(tokens: Tokens, error: BaseException) -> Token | None:
    """Return in which form the end of a block, refused with *error*, may pass; None: for another reason."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return None
    told = error.diag
    return tokens.judge_ending(
        error.sqlstate, within=told.context is not None, pointed=told.statement_position is not None
    )


def refused_ending(tokens: Tokens, error: Exception) -> psycopg.errors.SerializationFailure | None:
    """Return the error for a block whose end was refused because of its token; None: for another reason.

    It may be repeated as it is, and is raised as what can be: a transaction that met another one.
    """
    if burnt(error):
        return claimed()
    if judge_ending(tokens, error) is not None:
        state = getattr(error, "sqlstate", None)
        return psycopg.errors.SerializationFailure(f"nothing was committed: the token could not be stored ({state})")
    return None
