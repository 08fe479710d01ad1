"""What is asked of a text after its kind: what DML leaves behind and hands back, and which relations are named."""

from __future__ import annotations

from typing import Final

from dbguard.core.lexer import tokens
from dbguard.core.query import Trust, examine
from dbguard.core.statement import Effects, Touch

__all__ = ["effects_of", "relations_of"]

_TRUST: Final = Trust(frozenset(), frozenset())


def effects_of(sql: str) -> Effects:
    """Return what one INSERT, UPDATE, DELETE or MERGE leaves on the session and hands back."""
    toks = tokens(sql)
    found = examine(toks, 0, len(toks), _TRUST, sql)
    return Effects(
        max((finding.touch for finding in found), default=Touch.NOTHING),
        any(finding.user for finding in found),
        returns_rows="returning" in toks,
    )


def relations_of(sql: str) -> frozenset[str] | None:
    """Return the relations a text names; None if they are not known."""
    del sql
    return None
