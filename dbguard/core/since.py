"""When each thing that is shown took the value that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Since"]


class Since:
    """Times of the last changes, by name. A name that was never noted has none."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[Hashable, float]] = {}

    def note(self, value: Hashable, now: float, *name: str) -> None:
        """Note that *name* has *value*; where it had it before, the earlier time stays."""
        known = self._known.get(name)
        if known is None or known[0] != value:
            self._known[name] = (value, now)

    def get(self, *name: str) -> float | None:
        """Return when *name* took its value, on the guard's clock; None if it was never noted."""
        known = self._known.get(name)
        return None if known is None else known[1]
