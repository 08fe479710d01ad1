"""The command ``dbguard status``: how a cluster stands now, as a guard that has just been opened sees it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dbguard.cli import running
from dbguard.cli.check import source
from dbguard.cli.observing import observe, problems, settled, why_primary
from dbguard.cli.output import Cell, Output, complain
from dbguard.config import load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from dbguard.config import Settings
    from dbguard.status import NodeStatus, Status

__all__ = ["as_json", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Show the cluster. Returns 0 if writes can flow, 1 if not, 2 if no node takes the configuration."""
    settings = load(source(arguments.config))
    status, wrong = running.run(_look(settings))
    output = Output(sys.stdout)
    found = problems(status, settings.reads.max_lag)
    if wrong:
        complain("no node can be used as it is configured\n  " + "\n  ".join(f"{n}: {why}" for n, why in wrong.items()))
        return 2
    if arguments.json:
        output.json(as_json(status, found))
    else:
        _show(output, status, found)
    return 0 if _writable(status) else 1


def as_json(status: Status, found: tuple[str, ...]) -> dict[str, Any]:
    """Return what the command tells programs: what this process knows of itself alone is left out."""
    nodes = []
    for node in status.nodes:
        said = asdict(node)
        for name in ("breaker", "epoch", "in_use", "size", "role_since", "reachable_since", "breaker_since"):
            del said[name]
        nodes.append(said)
    return {
        "writable": _writable(status),
        "primary": status.primary,
        "why": why_primary(status),
        "writes": status.writes,
        "at": status.at,
        "nodes": nodes,
        "problems": list(found),
    }


async def _look(settings: Settings) -> tuple[Status, Mapping[str, str]]:
    async with observe(settings) as observer:
        return await settled(observer.status), observer.misconfigured()


def _writable(status: Status) -> bool:
    primary = next((node for node in status.nodes if node.name == status.primary), None)
    return status.writes == "open" and primary is not None and not primary.read_only


def _show(output: Output, status: Status, found: tuple[str, ...]) -> None:
    why = why_primary(status)
    if _writable(status):
        output.line(f"writes go to {status.primary}: {why}", "bold green")
    elif status.writes == "open":
        output.line(f"{status.primary} is the primary, and refuses writes", "bold red")
    else:
        output.line(f"no writes: {why}", "bold red")
    output.line()
    output.table(
        ["node", "role", "answers", ">timeline", ">lag", "reads"], [_row(node, status) for node in status.nodes]
    )
    if found:
        output.line()
    for problem in found:
        output.item("problem:", problem, "bold yellow")


def _row(node: NodeStatus, status: Status) -> list[Cell | str]:
    style = {"primary": "bold green", "replica": "green", "fenced": "red"}.get(node.role, "dim")
    reads = "" if node.role != "replica" else "yes" if node.proven and node.reachable else "no"
    if node.name == status.primary and not any(other.proven and other.reachable for other in status.nodes):
        reads = "yes"
    return [
        node.name,
        Cell(node.role if node.reachable else "", style),
        "yes" if node.reachable else Cell("no", "red"),
        "" if node.timeline is None or not node.reachable else str(node.timeline),
        "" if node.lag is None or not node.proven else f"{node.lag:.1f} s",
        reads,
    ]
