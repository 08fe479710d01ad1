"""The command ``dbguard watch``: a cluster live, as a guard sees it. Lines here; the picture for terminals is `watch_live`."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from dbguard.cli import running
from dbguard.cli.check import source
from dbguard.cli.observing import observe, settled
from dbguard.cli.output import Output, complain
from dbguard.config import load

if TYPE_CHECKING:
    import argparse
    from types import TracebackType

    from dbguard.config import Settings
    from dbguard.events import Event
    from dbguard.status import NodeStatus, Status

__all__ = ["Heard", "PlainWatch", "WatchView", "brief", "run", "shown_for"]

KEPT = 200
"""Events kept for the picture: more than any terminal has lines."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One event. at: seconds since the epoch. level: its name. text: its line."""

    at: float
    level: str
    text: str

    @property
    def clock(self) -> str:
        """The local time of day."""
        return time.strftime("%H:%M:%S", time.localtime(self.at))


class WatchView(Protocol):
    """Shows statuses and events; a context manager, so that a terminal is left as it was found."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        """Leave the terminal as it was."""

    def show(self, status: Status, heard: deque[Heard]) -> None:
        """Show how things stand, and what was heard so far."""

    def note(self, heard: Heard) -> None:
        """Show one event, as it happens."""


class PlainWatch:
    """One line per view, and one per event."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        pass

    def show(self, status: Status, heard: deque[Heard]) -> None:  # noqa: ARG002  a view's signature
        """Write how things stand."""
        now = time.strftime("%H:%M:%S", time.localtime(status.at))
        nodes = "; ".join(_of_node(node, status) for node in status.nodes)
        self._output.line(f"{now}  writes {status.writes} for {shown_for(status.writes_since, status.at)}; {nodes}")

    def note(self, heard: Heard) -> None:
        """Write the event."""
        self._output.line(f"{heard.clock}  {heard.level} {heard.text}")


def run(arguments: argparse.Namespace) -> int:
    """Watch until Ctrl-C, or for ``--count`` views. Returns 0; 2 if no node takes the configuration."""
    settings = load(source(arguments.config))
    output = Output(sys.stdout)
    try:
        return running.run(_watch(settings, _view(output, arguments.config), arguments.interval, arguments.count))
    except KeyboardInterrupt:
        return 0  # that is how it ends


async def _watch(settings: Settings, view: WatchView, interval: float, count: int | None) -> int:
    heard: deque[Heard] = deque(maxlen=KEPT)

    def listen(event: Event) -> None:
        if event.severity >= logging.INFO:
            said = Heard(time.time(), logging.getLevelName(event.severity), event.line())
            heard.append(said)
            view.note(said)

    async with observe(settings, listen) as observer:
        with view:
            status = await settled(observer.status)
            shown = 0
            while not (wrong := observer.misconfigured()):
                view.show(status, heard)
                shown += 1
                if shown == count:
                    return 0
                await asyncio.sleep(interval)
                status = observer.status()
    complain("no node can be used as it is configured\n  " + "\n  ".join(f"{n}: {why}" for n, why in wrong.items()))
    return 2


def _view(output: Output, config: str) -> WatchView:
    """Choose the view: a picture on a terminal where rich is installed, otherwise lines."""
    if output.can_draw:
        try:
            from dbguard.cli.watch_live import LiveWatch  # noqa: PLC0415  it needs rich, which is an extra
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.partition(".")[0] != "rich":
                raise
            output.line("(for a picture: pip install rich)", "dim")
        else:
            return LiveWatch(output.stream, "a DSN" if "://" in config else config)
    return PlainWatch(output)


def shown_for(since: float | None, now: float | None) -> str:
    """Return how long, as one short word: ``3s``, ``12m``, ``5h``, ``2d``; empty if it is not known."""
    if since is None or now is None:
        return ""
    seconds = max(0.0, now - since)
    for limit, size, unit in ((120, 1, "s"), (7_200, 60, "m"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds // 86_400)}d"


def brief(node: NodeStatus) -> str:
    """Return what a node is now, in one word: its role, ``silent``, or ``unusable``."""
    if node.problem:
        return "unusable" if node.reachable else "silent"
    return node.role if node.reachable else "silent"


def _of_node(node: NodeStatus, status: Status) -> str:
    since = node.role_since if node.reachable else node.reachable_since
    said = f"{node.name} {brief(node)} for {shown_for(since, status.at)}"
    if node.role == "replica" and node.reachable:
        said += "" if node.lag is None or not node.proven else f", lag {node.lag:.1f} s"
    return said + (f", breaker {node.breaker}" if node.breaker != "closed" else "")
