"""The command ``dbguard route``: says where a statement would go, and why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from dbguard.cli import running
from dbguard.cli.check import settled, source
from dbguard.cli.output import Cell, Output
from dbguard.config import load
from dbguard.core.classify import Classifier
from dbguard.core.statement import Kind
from dbguard.errors import ConfigError, NotAttempted
from dbguard.guard import Guard

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from dbguard.config import Settings
    from dbguard.core.statement import Statement
    from dbguard.status import NodeStatus

__all__ = ["against", "run", "statements"]

_MEANS = {
    Kind.READ: "may go to a replica, and may be repeated",
    Kind.WRITE: "goes to the primary",
    Kind.SESSION: "goes to the primary, and may leave something on its session",
    Kind.TRANSACTION: "controls a transaction: use guard.transaction() instead",
    Kind.UNKNOWN: "not understood, so it is treated as a write",
}
_STYLES = {Kind.READ: "bold green", Kind.WRITE: "bold cyan", Kind.UNKNOWN: "bold yellow"}
_SHOWN = 76
"""Characters of a statement that are shown."""


def run(arguments: argparse.Namespace) -> int:
    """Say where statements would go. Returns 0; 1 if one could go nowhere now."""
    output = Output(sys.stdout)
    queries = statements(arguments.sql, sys.stdin)
    if arguments.config is None:
        classifier = Classifier()
        for query in queries:
            statement = classifier.classify(query)
            if arguments.json:
                output.json({"sql": query} | _said(statement))
            else:
                _show(output, query, statement)
        return 0
    return running.run(_ask(output, load(source(arguments.config)), queries, as_json=arguments.json))


def statements(words: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    """Return the statements: *words* as they are, and for ``-`` one per line of *lines*, plain or JSON.

    A line that is a JSON string, or an object with the key ``sql``, is taken for that; empty ones are left out.
    Raises `ConfigError` for an object without it.
    """
    for word in words:
        if word != "-":
            yield word
            continue
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _from_line(line.strip(), number)


def _from_line(line: str, number: int) -> str:
    if line[0] not in '{"':
        return line
    try:
        value = json.loads(line)
    except ValueError:
        raise ConfigError(f"standard input, line {number}: begins as JSON does, and is none") from None
    query = value.get("sql") if isinstance(value, dict) else value
    if not isinstance(query, str):
        raise ConfigError(
            f'standard input, line {number}: should be {{"sql": "..."}}, a JSON string or a plain statement'
        )
    return query


async def _ask(output: Output, settings: Settings, queries: Iterable[str], *, as_json: bool) -> int:
    """Ask a guard for each statement; nothing of them is sent."""
    code = 0
    known = settings.routing.functions
    classifier = Classifier(read_functions=frozenset(known.read), write_functions=frozenset(known.write))
    async with Guard(settings, min_size=0) as guard:
        status = await settled(guard)
        for query in queries:
            statement = classifier.classify(query)
            node, role = None, "replica" if statement.is_read else "primary"
            try:
                route = guard.route(query)
                node, role, why = route.node, route.role, route.why
            except NotAttempted as error:
                why, code = str(error), 1
            others = {
                other.name: against(other, role, settings.reads.max_lag) for other in status.nodes if other.name != node
            }
            if as_json:
                output.json(
                    {"sql": query} | _said(statement) | {"node": node, "role": role, "route": why, "against": others}
                )
            else:
                _show(output, query, statement)
                output.item(
                    "    ->", f"{node} ({role}): {why}" if node else f"nowhere now: {why}", "" if node else "bold red"
                )
                for name, reason in others.items():
                    output.item("      ", f"not {name}: {reason}", "dim")
    return code


def against(node: NodeStatus, role: str, max_lag: float) -> str:
    """Say what speaks against *node* for a call that goes to a node in *role*, the first thing that does."""
    if node.problem:
        return node.problem
    if not node.reachable:
        return "does not answer"
    if node.role == "fenced":
        return "fenced: claims to be primary on an old timeline"
    if role == "primary":
        return "a replica takes no writes" if node.role == "replica" else f"is {node.role}"
    if node.role == "primary":
        return "the primary is spared: a replica is fit"
    if node.breaker not in ("closed", "disabled", "metrics_only"):
        return f"its breaker is {node.breaker}"
    if not node.proven:
        return "not proven to follow the primary"
    if node.lag is None or node.lag > max_lag:
        return f"lag {'unknown' if node.lag is None else f'{node.lag:.1f} s'}, allowed {max_lag:g} s"
    return "fit as well: chosen among the fit ones by load and chance"


def _said(statement: Statement) -> dict[str, Any]:
    return {
        "kind": statement.kind.value,
        "goes_to": "replica" if statement.is_read else "primary",
        "why": statement.why,
        "one_transaction": statement.one_transaction,
        "repeatable": statement.repeatable,
        "touches_session": statement.touch.name.lower(),
    }


def _show(output: Output, query: str, statement: Statement) -> None:
    shown = " ".join(query.split())
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
    kind = Cell(statement.kind.value, _STYLES.get(statement.kind, "bold"))
    output.line(shown)
    lifted = statement.is_read and statement.kind is not Kind.READ
    means = "not understood; may go to a replica, as its hint says" if lifted else _MEANS[statement.kind]
    output.item(f"    {kind.text}:", f"{means} ({statement.why})", kind.style)
