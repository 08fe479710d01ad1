# a script beside the package
"""Write `docs/chaos-files.md` from the docstrings of what a scenario can have.

python tools/generate_chaos.py
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.checkers import CHECKERS
from chaos.clients import CLIENTS
from chaos.faults import FAULTS
from chaos.scenario import Scenario, Step, Topology
from chaos.workloads import WORKLOADS
from dbguard.config.section import Section, key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

TARGET = Path(__file__).resolve().parent.parent / "docs" / "chaos-files.md"

HEAD = """\
# Scenario files

<!-- Made by tools/generate_chaos.py from the docstrings in chaos/; do not edit. -->

All keys of a scenario, all faults, workloads, checkers and clients. [Chaos](chaos.md) says what they are for and how to
begin. Times are `250ms`, `5s`, `2min`, or a plain number of seconds; shares are `20%` or `0.2`. Unknown keys are errors,
and `python -m chaos validate FILE` tells all that is wrong at once, each with line and column.

**Nodes** are called by letter, `a` (the primary at first), `b`, `c`, ..., or by role: who it is, is decided when the
fault is injected. **Links** are written from who dials to who listens: `app->b` or `app->primary` for the application's
way to a node, `b->a` or `replica->primary` for a replica's to its upstream.

"""


def keys(kind: type[Any]) -> dict[str, str]:
    """Return the docstring that stands below each field of a section, inherited ones included, by the field's key."""
    told: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not issubclass(base, Section) or base is Section:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)  # noqa: S101  it is the source of a class
        for entry, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and isinstance(below, ast.Expr):
                assert isinstance(below.value, ast.Constant)  # noqa: S101  a docstring
                told[key_of(entry.target.id)] = line(str(below.value.value))
    known = {made.__name__: made for made in (*FAULTS.values(), *CHECKERS.values())}
    for key, text in told.items():
        if said := re.fullmatch(r"As of `(\w+)`\.", text):
            told[key] = keys(known[said[1]])[key]
    return {key_of(entry.name): told[key_of(entry.name)] for entry in fields(kind)}


def line(text: str) -> str:
    """Turn a docstring into one line of Markdown."""
    return re.sub(r"\s+", " ", text).replace("``", "`").replace("|", r"\|").strip()


def table(kind: type[Any], *, without: tuple[str, ...] = ()) -> str:
    """Return the keys of a section as a table; nothing if it has none."""
    rows = [f"| `{key}` | {text} |\n" for key, text in keys(kind).items() if key not in without]
    return f"\n| key | meaning |\n| --- | --- |\n{''.join(rows)}" if rows else ""


def kinds(title: str, about: str, known: Mapping[str, type[Any]]) -> str:
    """Return a chapter with one part for each kind of something."""
    parts = [f"\n## {title}\n\n{about}\n"]
    for name, kind in known.items():
        note = " Over at once: `for` may be left out." if getattr(kind, "momentary", False) else ""
        parts.append(f"\n### `{name}`\n\n{line(inspect.getdoc(kind) or '')}{note}\n{table(kind)}")
    return "".join(parts)


def page() -> str:
    """Return the whole page."""
    roles = "\n".join(
        f"| `{role}` | {meaning} |"
        for role, meaning in {
            "primary": "who was promoted last",
            "replica": "the first replica by name that runs",
            "other-replica": "the last one by name, where there are two or more",
            "old-primary": "who was the primary before",
        }.items()
    )
    return "".join(
        [
            HEAD,
            f"| role | who |\n| --- | --- |\n{roles}\n",
            f"\n## The file\n{table(Scenario, without=('name',))}",
            f"\n## `topology`\n\n{line(inspect.getdoc(Topology) or '')}\n{table(Topology)}",
            f"\n## A step of the `timeline`\n\n{line(inspect.getdoc(Step) or '')}\n{table(Step, without=('fault',))}",
            kinds("Faults", "One in each step of the timeline.", FAULTS),
            kinds("Workloads", "One, below the key `workload`.", WORKLOADS),
            kinds(
                "Checkers", "As many as are wanted, below the key `checkers`, each with its bounds or `{}`.", CHECKERS
            ),
            "\n## Clients\n\nGiven on the command line, by `--client`.\n\n| client | what it is |\n| --- | --- |\n",
            *(f"| `{name}` | {line(inspect.getdoc(kind) or '')} |\n" for name, kind in CLIENTS.items()),
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
