"""What a process and its servers hold while nothing happens, and whether that grows.

Memory is resident memory of the whole process, harness included, after a collection of garbage and after the allocator
was told to give back what is free. What comes and goes in large pieces leaves holes that are not given back, and looks as
if something grew: so histories are kept in files, and judged in another process.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import math
import os
import statistics
import subprocess
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from chaos.bench import THREADS
from chaos.checkers import State
from chaos.clients import CLIENTS_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.bench import Bench

__all__ = ["ALLOWED", "Growth", "Rest", "give_back_large_pieces", "growth", "measure"]

ALLOWED = 0.02
"""The share by which memory may grow."""

_SETTLED = 0.2  # the share of the first rests in which pools fill and caches grow: they are not judged
_LEAST = 8  # rests that must be left to judge
_FEW = 3  # rests at each end of which the median is taken for memory
_SURE = 4.0  # standard deviations: by chance once in 30,000 figures
_SAME = 1e-9  # two figures that differ by less are one, but for the rounding of floating point
_PER_SESSION = ("tasks", "files")  # a connection, and the wire in its way, have some of each
_LOOKS = 5  # at one rest; the lowest counts, as probes come and go
_APART = 0.2  # seconds between two looks
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE = 128 * 1024  # bytes
_BACKENDS = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What is held at one quiet moment.

    memory: resident, in bytes. tasks: of asyncio. threads: without those of the harness that wait for work. files: open
    file descriptors, sockets among them. leases: connections that are out. backends: sessions of the client on all
    servers together.
    """

    memory: int
    tasks: int
    threads: int
    files: int
    leases: int
    backends: int

    def __str__(self) -> str:
        counts = ", ".join(f"{getattr(self, name)} {name}" for name in ("tasks", "threads", "files", "backends"))
        return f"{self.memory / 2**20:.1f} MiB, {counts}"


class Growth(NamedTuple):
    """One figure at the beginning and in the end; unknown: there were too few rests to tell.

    trend: by how much it has grown steadily from one end to the other; 0 if that can be chance, and for memory.
    """

    what: str
    before: float
    after: float
    state: State
    trend: float = 0.0

    def __str__(self) -> str:
        if self.state is State.UNKNOWN:
            return f"{self.what}: too few rests to judge"
        if self.what == "memory":
            change = self.after / self.before - 1
            return f"memory: {self.before / 2**20:.1f} MiB, then {self.after / 2**20:.1f} MiB ({change:+.1%})"
        said = f"{self.what}: {self.before:g} at most, then {self.after:g} at least"
        return said + (f", {self.trend:+.1f} along the way" if self.trend else "")


async def measure(bench: Bench) -> Rest:
    """Look several times, and take the lowest of each figure."""
    gc.collect()
    _give_back()
    looks = []
    for _ in range(_LOOKS):
        await asyncio.sleep(_APART)
        backends = [await bench.do(bench.cluster.sql, node, _BACKENDS) for node in bench.cluster.nodes]
        looks.append(
            Rest(
                memory=_resident(),
                tasks=len(asyncio.all_tasks()),
                threads=sum(not thread.name.startswith(THREADS) for thread in threading.enumerate()),
                files=len(os.listdir("/dev/fd")),  # noqa: PTH208  names, of which some are gone by now
                leases=bench.client.leases(),
                backends=sum(count for ((count,),) in backends),
            )
        )
    return Rest(**{entry.name: min(getattr(look, entry.name) for look in looks) for entry in fields(Rest)})


def growth(rests: Sequence[Rest]) -> list[Growth]:
    """Judge each figure: memory by its medians at both ends, all else by whether it has left its range for good.

    The first fifth is not judged. For a count the highest of the first half must be reached again, from below, by the
    lowest of the last quarter: what comes and goes does not grow. Pools come and go in large numbers, and what is left
    behind one by one hides among them: so it must not rise steadily either, and of tasks and files, not what is left of
    them when as many are taken off as each session accounts for.
    """
    judged = rests[int(len(rests) * _SETTLED) :]
    sessions = [rest.backends for rest in judged]
    found = []
    for what in (entry.name for entry in fields(Rest)):
        values: list[int] = [getattr(rest, what) for rest in judged]
        if len(values) < _LEAST:
            found.append(Growth(what, 0, 0, State.UNKNOWN))
        elif what == "memory":
            before, after = statistics.median(values[:_FEW]), statistics.median(values[-_FEW:])
            grown = after >= before * (1 + ALLOWED)
            found.append(Growth(what, before, after, State.BROKEN if grown else State.OK))
        else:
            most, least = max(values[: len(values) // 2]), min(values[-(len(values) // 4) :])
            beside = _beside(values, sessions) if what in _PER_SESSION else []
            trend = max(_trend(values), _trend(beside))
            found.append(Growth(what, most, least, State.BROKEN if least > most or trend else State.OK, trend))
    return found


def _trend(values: Sequence[float]) -> float:
    """Return how much *values* have grown by their median slope; 0 for less than 1, or for what can be chance (Kendall's tau)."""
    pairs = [(late - early, n - m) for (m, early), (n, late) in itertools.combinations(enumerate(values), 2)]
    if not pairs:
        return 0.0
    rising = sum((change > _SAME) - (change < -_SAME) for change, _ in pairs)
    count = len(values)
    chance = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    grown = statistics.median(change / apart for change, apart in pairs) * (count - 1)
    return grown if grown >= 1 - _SAME and rising > _SURE * chance else 0.0


def _beside(values: Sequence[int], sessions: Sequence[int]) -> list[float]:
    """Return what is left of *values* without the part that goes with the number of sessions."""
    if len(set(sessions)) < 2:
        return list(values)
    each, rest = statistics.linear_regression(sessions, values)
    return [value - each * count - rest for value, count in zip(values, sessions, strict=True)]


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], check=True, capture_output=True, text=True)
    return int(said.stdout) * 1024  # macOS has no /proc


def give_back_large_pieces() -> None:
    """Let glibc's allocator give back each piece of 128 KiB or more as soon as it is free, in all of this process.

    That is its limit at first; after the first such piece it takes larger ones from its heap as well, where they leave
    holes (mallopt(3), M_MMAP_THRESHOLD). Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _give_back() -> None:
    """Let the C library give back what is free; one that is not glibc does so by itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
