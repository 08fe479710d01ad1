"""A process with one client library under test, and callers that read and write through it without a pause for thought.

Started by `failover_rig.Client`, one per measurement, so that nothing else runs on its event loop, in its memory or under
its interpreter lock. It takes one JSON object per line on standard input, ``{"do": ...}``, and answers each with one:

* ``take``: what the callers were told, what the guard told, and how long the event loop stood still, since last asked.
* ``counts``: memory, tasks and connections, after the callers were stopped and garbage was collected.
* ``go``: let the callers work (again). ``end``: stop them, close everything, and leave.

All times are `time.monotonic`, one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import itertools
import json
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import tenacity

import dbguard

if TYPE_CHECKING:
    from collections.abc import Callable

TABLE = "CREATE TABLE written (value bigint NOT NULL, node text NOT NULL DEFAULT current_setting('cluster_name'))"
"""No key is unique: a write that is applied twice is two rows. The node is the one that took the write first."""

INSERT = "INSERT INTO written (value) VALUES ($1)"
SELECT = "SELECT count(*) FROM pg_class WHERE relname = $1"
APPLICATION_NAME = "dbguard-figures"

STALL_FROM = 0.010
"""Seconds between two beats of a 5 ms ticker from which the gap is reported."""

POOL = 16
"""Connections per pool, more than there are callers."""


class Guarded:
    """dbguard."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self._guard = dbguard.Guard(
            {
                "nodes": [{"name": n, "host": h, "port": p} for n, (h, p) in place["addresses"].items()],
                "connection": {
                    "user": "postgres",
                    "password": place["password"],
                    "database": "postgres",
                    "server_settings": {"application_name": APPLICATION_NAME},
                },
                "pool": {"max_size": POOL},
                "timeout": place["timeout"],
                **place["config"],
            },
            on_event=lambda event: self.events.append(event.as_dict()),
        )

    async def open(self) -> None:
        """Connect, and wait for a primary and for every replica to serve reads."""
        await self._guard.open()
        await self._guard.ready()

    async def write(self, value: int) -> None:
        """Write."""
        await self._guard.execute(INSERT, value)

    async def read(self) -> None:
        """Read."""
        await self._guard.fetchval(SELECT, "written")

    def context(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Open what one caller works in, as a web request has one: its reads follow its own writes."""
        return self._guard.causal()

    def connections(self) -> int:
        """Count the connections that the pools have out."""
        return sum(node.in_use for node in self._guard.status().nodes)

    async def close(self) -> None:
        """Close."""
        await self._guard.close(timeout=1.0)


class MultiHost:
    """asyncpg's pools over all hosts, one for the primary and one for a standby; nothing is repeated."""

    def __init__(self, place: dict[str, Any]) -> None:
        # It writes a traceback for each connection that it cannot replace; what callers get is counted.
        logging.getLogger("asyncpg").addHandler(logging.NullHandler())
        self.events: list[dict[str, Any]] = []
        hosts = ",".join(f"{host}:{port}" for host, port in place["addresses"].values())
        self._timeout: float = place["timeout"]
        self._pools = [
            asyncpg.create_pool(
                f"postgresql://postgres@{hosts}/postgres?target_session_attrs={session}",
                password=place["password"],
                ssl=False,
                server_settings={"application_name": APPLICATION_NAME},
                min_size=1,
                max_size=POOL,
                timeout=2.0,
                command_timeout=self._timeout,
            )
            for session in ("read-write", "prefer-standby")
        ]

    async def open(self) -> None:
        """Connect."""
        for pool in self._pools:
            await pool

    async def write(self, value: int) -> None:
        """Write."""
        await self._pools[0].execute(INSERT, value)

    async def read(self) -> None:
        """Read."""
        await self._pools[1].fetchval(SELECT, "written")

    def context(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Open nothing: a pool knows no contexts."""
        return contextlib.nullcontext()

    def connections(self) -> int:
        """Count the connections that are out."""
        return sum(pool.get_size() - pool.get_idle_size() for pool in self._pools)

    async def close(self) -> None:
        """Close."""
        for pool in self._pools:
            pool.terminate()


class Tenacity(MultiHost):
    """The same pools in the loop that is written everywhere: whatever lost its connection is done again."""

    def _again(self) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(
                (
                    OSError,
                    asyncpg.PostgresConnectionError,
                    asyncpg.InterfaceError,
                    asyncpg.OperatorInterventionError,
                    asyncpg.ReadOnlySQLTransactionError,
                    asyncpg.TargetServerAttributeNotMatched,
                )
            ),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            stop=tenacity.stop_after_delay(self._timeout),
            reraise=True,
        )

    async def write(self, value: int) -> None:
        """Write, until it succeeds."""
        await self._again()(super().write, value)

    async def read(self) -> None:
        """Read, until it succeeds."""
        await self._again()(super().read)


SYSTEMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dbguard": Guarded,
    "dbguard with tokens": Guarded,
    "asyncpg multi-host": MultiHost,
    "tenacity": Tenacity,
}
"""What can be measured, by name; `failover_rig` says how each is configured."""


class Callers:
    """Writers, readers and a ticker; what they saw is kept until it is taken.

    calls: lists of kind (``write``, ``read``), value, beginning, end, and how it ended: ``ok``, ``unknown``, ``rows lost``
        or the name of an exception.
    stalls: when the event loop went on after it had stood still, and for how many seconds.
    """

    def __init__(self, system: Any, place: dict[str, Any]) -> None:
        self.calls: list[tuple[str, int, float, float, str]] = []
        self.stalls: list[tuple[float, float]] = []
        self._system = system
        self._place = place
        self._values = itertools.count(1)
        self._work: list[asyncio.Task[None]] = []
        self._over = False
        self._ticking = asyncio.create_task(self._tick(), name="ticker")

    def go(self) -> None:
        """Let all work; does nothing if they do."""
        if self._work:
            return
        self._over = False
        place = self._place
        for kind, many in (("write", place["writers"]), ("read", place["readers"])):
            self._work += [asyncio.create_task(self._call_on(kind), name=f"{kind}r {n}") for n in range(many)]

    async def rest(self) -> None:
        """Let the calls under way end, and make no more."""
        self._over = True
        await asyncio.gather(*self._work)
        self._work.clear()

    async def end(self) -> None:
        """Stop for good."""
        await self.rest()
        self._ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticking

    async def _call_on(self, kind: str) -> None:
        async with self._system.context():
            while not self._over:
                value = next(self._values)
                began, how = time.monotonic(), "ok"
                try:
                    await (self._system.write(value) if kind == "write" else self._system.read())
                except dbguard.OutcomeUnknown:
                    how = "unknown"
                except dbguard.ResultLost:
                    how = "rows lost"
                except Exception as error:  # noqa: BLE001  whatever a caller is told is what is measured
                    how = f"{type(error).__name__}: {error}"[:200]
                self.calls.append((kind, value, began, time.monotonic(), how))
                await asyncio.sleep(self._place["pause"])

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            if now - last >= STALL_FROM:
                self.stalls.append((now, now - last))
            last = now


def counts(system: Any) -> dict[str, int]:
    """Return what may grow: resident memory in KiB (what the allocator holds free is given back before), tasks, ..."""
    for _ in range(3):
        gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    statm = Path("/proc/self/statm")
    if statm.exists():
        resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    else:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # the most ever, in bytes on macOS
    descriptors = Path("/proc/self/fd")
    return {
        "resident_kib": resident,
        "objects": len(gc.get_objects()),
        "tasks": len(asyncio.all_tasks()),
        "in_use": system.connections(),
        "descriptors": len(list(descriptors.iterdir())) if descriptors.exists() else 0,
    }


async def main() -> None:
    """Do what is asked on standard input, until its end."""
    place = json.loads(sys.argv[1])
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    system = SYSTEMS[place["system"]](place)
    await system.open()
    callers = Callers(system, place)
    print(json.dumps({"ready": True}), flush=True)
    while line := await lines.readline():
        asked = json.loads(line)["do"]
        answer: dict[str, Any] = {"done": asked}
        if asked == "go":
            callers.go()
        elif asked == "take":
            calls, callers.calls = callers.calls, []
            stalls, callers.stalls = callers.stalls, []
            events, system.events = system.events, []
            answer |= {"calls": calls, "stalls": stalls, "events": events}
        elif asked == "counts":
            await callers.rest()
            answer |= counts(system)
        else:
            break
        print(json.dumps(answer, default=str), flush=True)
    await callers.end()
    await system.close()
    print(json.dumps({"done": "end"}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
