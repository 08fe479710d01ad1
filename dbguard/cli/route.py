"""The command ``dbguard route``: says where a statement would go, and why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from dbguard.cli import running
from dbguard.cli.check import source
from dbguard.cli.observing import settled
from dbguard.cli.output import Cell, Output
from dbguard.config import load
from dbguard.core.classify import Classifier
from dbguard.core.plan import Choice
from dbguard.core.reasons import instead
from dbguard.core.statement import Kind
from dbguard.errors import ConfigError
from dbguard.guard import Guard

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from dbguard.config import Settings
    from dbguard.core.statement import Statement

__all__ = ["run", "statements"]

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
                output.json({"sql": query} | _said(statement, statement.why, reads=statement.is_read))
            else:
                _show(output, query, statement, statement.why, reads=statement.is_read)
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
    async with Guard(settings, min_size=0) as guard:
        await settled(guard.status)
        for query in queries:
            choice, text, others = guard._explain(query)  # noqa: SLF001  `route`, without raising where it can go nowhere
            node, role = (choice.node, choice.role) if isinstance(choice, Choice) else (None, None)
            code = code if node else 1
            route = choice.why if isinstance(choice, Choice) else instead(choice)
            if as_json:
                where = {"node": node, "role": role, "route": route, "against": others}
                output.json({"sql": query} | _said(text.statement, text.why, reads=text.reads) | where)
                continue
            _show(output, query, text.statement, text.why, reads=text.reads)
            said = f"{node} ({role}): {route}" if node else f"nowhere now, {route}"
            output.item("    ->", said, "" if node else "bold red")
            for name, reason in others.items():
                output.item("      ", f"not {name}: {reason}", "dim")
    return code


def _said(statement: Statement, why: str, *, reads: bool) -> dict[str, Any]:
    return {
        "kind": statement.kind.value,
        "goes_to": "replica" if reads else "primary",
        "why": why,
        "one_transaction": statement.one_transaction,
        "repeatable": statement.repeatable,
        "touches_session": statement.touch.name.lower(),
    }


def _show(output: Output, query: str, statement: Statement, why: str, *, reads: bool) -> None:
    shown = " ".join(query.split())
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
    kind = Cell(statement.kind.value, _STYLES.get(statement.kind, "bold"))
    output.line(shown)
    if reads and statement.kind is not Kind.READ:
        means = "not understood; may go to a replica, as its hint says"
    elif not reads and statement.kind is Kind.READ:
        means = _MEANS[Kind.WRITE]
    else:
        means = _MEANS[statement.kind]
    output.item(f"    {kind.text}:", f"{means} ({why})", kind.style)
