"""The clients' side of a run, for faults that act there."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chaos.interruptions import Interruptible
    from dbguard.testing.wire import Armed, Wire

__all__ = ["Application"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Application:
    """Where clients work, and what can be broken there.

    loop: the run's, on which all of this lives.
    table: the workload's.
    wires: by node, what breaks requests one by one, between the clients and their link; empty where nothing does.
    calls: the client, where its calls can be given up.
    armed: the strikes that are under way, by their faults.
    counted: what faults have counted that are under way, by their own.
    """

    loop: asyncio.AbstractEventLoop
    table: str
    wires: Mapping[str, Wire] = field(default_factory=dict)
    calls: Interruptible | None = None
    armed: defaultdict[object, list[Armed]] = field(default_factory=lambda: defaultdict(list))
    counted: Counter[object] = field(default_factory=Counter)

    def do(self, work: Callable[[], T]) -> T:
        """Do something on the loop, from another thread, and wait for it."""

        async def on_loop() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result()
