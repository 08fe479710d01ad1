"""The table of tokens in the model: what a claim answers, what it writes, and what the pruner takes away.

Entries lie in the log among the values, told apart by how they begin: ``w:`` stands with the write that carried the
token, ``x:`` was put there by a claim, ``h:`` is the horizon. Writes older than the horizon have been pruned. (``r:`` marks
a reign.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["RETENTION", "Claimed", "burnt", "claim", "horizon", "is_mark", "time_of"]

RETENTION = 4.0
"""Seconds that a token is kept: longer than any request of the model is held back, as the hour of the default is."""


class Claimed(NamedTuple):
    """What a claim finds. kind: ``w`` or ``x``. writes: what it adds to the table. waits: it waits for a standby."""

    kind: str
    writes: tuple[str, ...]
    waits: bool


def time_of(token: str) -> float:
    """Return when *token*, a UUIDv7, was made."""
    return int(token[:8] + token[9:13], 16) / 1000


def is_mark(entry: str) -> bool:
    """Whether a value of the log is an entry of this table."""
    return entry[1:2] == ":"


def horizon(visible: Collection[str]) -> float:
    """Return the time before which tokens are pruned."""
    return max((float(entry[2:]) for entry in visible if entry.startswith("h:")), default=0.0)


def burnt(visible: Collection[str], token: str) -> bool:
    """Whether a write that carries *token* finds it there already: then it fails, with 23505."""
    return f"x:{token}" in visible or (f"w:{token}" in visible and time_of(token) >= horizon(visible))


def claim(visible: Collection[str], token: str) -> Claimed:
    """Claim *token*: INSERT ... ON CONFLICT DO UPDATE ... RETURNING kind. It writes in any case, so it waits for a standby."""
    if f"w:{token}" in visible:
        return Claimed("w", (), waits=True)
    return Claimed("x", () if f"x:{token}" in visible else (f"x:{token}",), waits=True)
