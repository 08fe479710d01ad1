"""The commands ``list`` and ``validate``: what scenarios there are, and what is wrong with files."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

from chaos.faults import FAULTS
from chaos.scenario import every, load
from chaos.workloads import WORKLOADS
from dbguard.cli.output import Output
from dbguard.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from chaos.scenario import Scenario

__all__ = ["show", "validate"]

_NARROWEST = 30  # columns for what a scenario is about


def show(given: argparse.Namespace) -> int:
    """List all scenarios."""
    output = Output(sys.stdout)
    listed = [_described(load(path)) for path in every()]
    if given.json:
        output.json({"scenarios": listed})
        return 0
    rows = []
    for one in listed:
        faults = f"{one['faults']} {', '.join(one['kinds'])}"
        rows.append([one["name"], f"{one['seconds']:.0f} s", faults, one["workload"]])
    used = sum(max(len(row[n]) for row in rows) + 2 for n in range(4)) + 2
    lines: list[list[str]] = []
    for row, one in zip(rows, listed, strict=True):
        first, *more = textwrap.wrap(one["about"], max(_NARROWEST, output.width - used))
        lines += [[*row, first], *([""] * 4 + [line] for line in more)]
    output.table(["name", ">length", "faults", "workload", "about"], lines)
    total = sum(one["faults"] for one in listed)
    output.line(f"\n{len(listed)} scenarios, {total} faults, {sum(one['seconds'] for one in listed) / 60:.0f} minutes")
    return 0


def validate(given: argparse.Namespace) -> int:
    """Look at files; say what is wrong with each."""
    wrong = 0
    for path in given.files or every():
        try:
            scenario = load(path)
        except ConfigError as e:
            print(e, file=sys.stderr)
            wrong += 1
        else:
            print(f"{path}: ok, {len(scenario.schedule(1))} faults in {scenario.duration:g} s")
    return 2 if wrong else 0


def _described(scenario: Scenario) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "about": scenario.about,
        "seconds": scenario.warm_up + scenario.duration,
        "faults": len(scenario.schedule(1)),
        "kinds": list(dict.fromkeys(_name(FAULTS, step.fault) for step in scenario.timeline)),
        "workload": _name(WORKLOADS, scenario.workload),
        "checkers": list(scenario.checkers),
    }


def _name(kinds: Mapping[str, type[Any]], made: object) -> str:
    """Return the key by which a scenario has it."""
    return next(name for name, kind in kinds.items() if type(made) is kind)
