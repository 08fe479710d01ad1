"""Connections that the application took with ``await guard.acquire()`` and dropped without giving them back.

Nobody can give such a lease back any more, so its place in the pool would be lost for good, with its locks. It is ended
when Python collects it, and told as an event; in asyncio's debug mode, with the line that took it.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from dbguard.core.statement import Touch
from dbguard.events import ConnectionDropped

if TYPE_CHECKING:
    from dbguard.runtime.engine import Engine

__all__ = ["caller", "dropped"]


def caller() -> str | None:
    """Return the line of the application's code that is being run: ``app.py:12 in main``."""
    for frame, line in traceback.walk_stack(None):
        if not frame.f_globals.get("__name__", "").startswith("dbguard."):
            return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
    return None


def dropped(engine: Engine, node: str, lease: Any, taken_at: str | None) -> None:
    """End a lease that was dropped, free its place, and tell of it."""
    lease.end()
    engine.pools[node].give(lease, Touch.LOST)
    engine.tell(ConnectionDropped(at=engine.state.clock(), node=node, taken_at=taken_at))
