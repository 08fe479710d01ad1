"""The place of `dbguard.drivers.identity` until its users have moved."""

from __future__ import annotations

from dbguard.drivers.identity import forget_sequences

__all__ = ["forget_sequences"]
