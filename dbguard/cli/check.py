"""The command ``dbguard check``: says whether a configuration is right, and a cluster fit for it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbguard.cli import running
from dbguard.cli.findings import Room, clusters, find, room
from dbguard.cli.looking import Look, Unusable, look_at_all
from dbguard.cli.observing import settled
from dbguard.cli.outcome_findings import find_in_schema
from dbguard.cli.output import Cell, Output, complain
from dbguard.cli.rights import rights
from dbguard.config import describe, load
from dbguard.errors import ConfigError
from dbguard.guard import Guard

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from dbguard.cli.findings import Finding
    from dbguard.config import Settings
    from dbguard.status import Status

__all__ = ["ask_status", "run", "source"]


def run(arguments: argparse.Namespace) -> int:
    """Check a configuration. Returns 0 if nothing is wrong, 1 if something is, 2 if no node can be used."""
    settings = load(source(arguments.config))
    output = Output(sys.stdout)
    looks = running.run(look_at_all(settings, _say_waiting))
    addresses = {node.name: _shown(settings, index) for index, node in enumerate(settings.nodes)}
    if not any(isinstance(look, Look) for look in looks.values()):
        lines = [f"{addresses[name]}: {look.why}" for name, look in looks.items() if isinstance(look, Unusable)]
        complain("no node can be used\n  " + "\n  ".join(lines))
        return 2
    by_cluster = clusters(looks)
    if len(by_cluster) > 1:
        lines = [f"{', '.join(names)}: system identifier {system_id}" for system_id, names in by_cluster.items()]
        complain("the nodes belong to different clusters: leave out those that are wrong\n  " + "\n  ".join(lines))
        return 2
    status = running.run(ask_status(settings))
    found = find(settings, looks, status, arguments.processes) + tuple(_of_tokens(settings, looks, status))
    found = tuple(sorted(found, key=lambda finding: not finding.grave))
    rooms = {name: room(look, settings, arguments.processes) for name, look in looks.items() if isinstance(look, Look)}
    if arguments.json:
        said = _as_json(settings, looks, status, rooms, found, with_settings=arguments.settings)
        output.json(said | ({"rights": list(_rights(settings, looks, status))} if arguments.rights else {}))
    else:
        _show(output, settings, looks, status, rooms, found, arguments.processes)
        if arguments.settings:
            _show_settings(output, settings)
        if arguments.rights:
            output.line()
            for line in _rights(settings, looks, status):
                output.line(line)
    return 1 if any(finding.grave for finding in found) else 0


def source(config: str) -> str | Path:
    """Return what CONFIG names: a DSN as it is, and everything else as a file, whatever its name ends in.

    Raises `ConfigError` for what is neither, such as ``host=db1 password=...``; it is not shown, as it may hold a secret.
    """
    if "://" in config:
        return config
    if not config.endswith((".yaml", ".yml")) and not os.path.exists(config):  # noqa: PTH110  Path's raises for a long one
        raise ConfigError("CONFIG should be a .yaml file, or a DSN: postgresql://user@host1,host2/database")
    return Path(config)


async def ask_status(settings: Settings) -> Status:
    """Open a guard, which needs one node only here, and ask it."""
    patient = replace(settings, startup=replace(settings.startup, need="any", wait=max(5.0, settings.startup.wait)))
    async with Guard(patient, min_size=0) as guard:
        return await settled(guard.status)


def _of_tokens(settings: Settings, looks: Mapping[str, Look | Unusable], status: Status) -> Iterator[Finding]:
    """Yield what is found in the schema of tokens, where there is a primary that can have one."""
    look = looks.get(status.primary or "")
    if isinstance(look, Look) and look.tokens is not None:
        yield from find_in_schema(
            status.primary or "",
            look.tokens,
            wanted=settings.outcome.resolve != "none",
            retention=settings.outcome.retention,
        )


def _rights(settings: Settings, looks: Mapping[str, Look | Unusable], status: Status) -> Iterator[str]:
    """Yield the least rights, as SQL for the primary."""
    look = looks.get(status.primary or "")
    if not isinstance(look, Look) or look.tokens is None:
        yield "-- Which rights are needed is told where the primary answers."
        return
    tokens = settings.outcome.resolve != "none" or look.tokens.installed
    yield from rights(look.user, look.tokens.database, tokens=tokens)


def _say_waiting(seconds: float, said: Mapping[str, Unusable]) -> None:
    sys.stderr.write(f"no node answers yet: trying for {seconds:.1f} s more (startup.wait)\n")
    for name, look in said.items():
        sys.stderr.write(f"  {name}: {look.why}\n")


def _shown(settings: Settings, index: int) -> str:
    """Name a node by its place in the configuration, its name and its address."""
    node = settings.nodes[index]
    return f"nodes[{index}] {node.name}" + ("" if node.name == node.address else f" ({node.address})")


def _show(
    output: Output,
    settings: Settings,
    looks: Mapping[str, Look | Unusable],
    status: Status,
    rooms: Mapping[str, Room],
    found: tuple[Finding, ...],
    processes: int,
) -> None:
    rows: list[list[Cell | str]] = []
    named = any(node.name != node.address for node in settings.nodes)
    for node, configured in zip(status.nodes, settings.nodes, strict=True):
        look = looks[node.name]
        address = [configured.address] if named else []
        if isinstance(look, Unusable):
            rows.append([node.name, *address, Cell("not usable", "red"), *[""] * 5])
            continue
        style = {"primary": "bold green", "replica": "green"}.get(node.role, "red")
        lag = "" if look.role == "primary" else "unknown" if look.lag is None else f"{look.lag:.1f} s"
        has = rooms[node.name]
        rows.append(
            [
                node.name,
                *address,
                Cell(node.role, style),
                look.version,
                "" if node.timeline is None else str(node.timeline),
                lag,
                Cell(str(has.needed), "red" if has.needed > has.free else ""),
                str(has.free),
            ]
        )
    count = len(settings.nodes)
    output.line(
        f"{count} {'node' if count == 1 else 'nodes'}, reads.consistency {settings.reads.consistency}, mode {settings.mode}"
    )
    output.line()
    output.table(
        ["node", *(["address"] if named else []), "role", "version", ">timeline", ">lag", ">needs", ">free"], rows
    )
    output.line()
    output.item(
        "needs:",
        f"connections at most, on each node: {processes} x ({settings.pool.max_size} for pool.max_size, 1 for the monitor); "
        "free: those not reserved and not in use by others",
        "dim",
    )
    for finding in found:
        about = f"{finding.node}: " if finding.node else ""
        output.item(
            "wrong:" if finding.grave else "note: ", about + finding.text, "bold red" if finding.grave else "yellow"
        )
    if not any(finding.grave for finding in found):
        output.item("fine: ", f"writes go to {status.primary}, reads to {_readers(status)}", "bold green")


def _readers(status: Status) -> str:
    return ", ".join(node.name for node in status.nodes if node.proven) or str(status.primary)


def _show_settings(output: Output, settings: Settings) -> None:
    output.line()
    output.line("settings as they take effect, times in seconds (empty: left to the driver):")
    for path, value in _flat(describe(settings)):
        output.line(f"  {path}: {'' if value is None else value}")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every single value with its path."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, value


def _as_json(
    settings: Settings,
    looks: Mapping[str, Look | Unusable],
    status: Status,
    rooms: Mapping[str, Room],
    found: tuple[Finding, ...],
    *,
    with_settings: bool,
) -> dict[str, Any]:
    nodes = []
    for node, configured in zip(status.nodes, settings.nodes, strict=True):
        look = looks[node.name]
        said: dict[str, Any] = {"name": node.name, "address": configured.address, "usable": isinstance(look, Look)}
        if isinstance(look, Look):
            has = rooms[node.name]
            said |= asdict(look) | {"role": node.role, "timeline": node.timeline, "proven": node.proven}
            said |= {"connections_needed": has.needed, "connections_free": has.free}
        nodes.append(said)
    result: dict[str, Any] = {
        "ok": not any(finding.grave for finding in found),
        "primary": status.primary,
        "writes": status.writes,
        "nodes": nodes,
        "problems": [{"node": finding.node, "text": finding.text} for finding in found if finding.grave],
        "notes": [{"node": finding.node, "text": finding.text} for finding in found if not finding.grave],
    }
    return result | ({"settings": describe(settings)} if with_settings else {})
