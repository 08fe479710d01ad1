"""YAML files: plain values, each with its line and column. The one place that imports yaml.

Scalars are read as YAML 1.2's core schema has them, narrowed to what has one meaning: ``on``, ``no``, ``010``, ``5432:30``,
``0x10`` and ``1_000`` are text (PyYAML would say True, False, 8, 325950, 16, 1000). Duplicate keys, merge keys and tags
are problems. Nothing of a broken file is shown, since any piece of it may be a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from dbguard.config.problems import Mark, Report

if TYPE_CHECKING:
    from dbguard.config.values import Path

__all__ = ["MAX_BYTES", "MAX_DEPTH", "read"]

MAX_BYTES = 256 * 1024
"""Larger files are refused: PyYAML takes seconds for them, and no cluster needs them."""

MAX_DEPTH = 10
"""Deeper structures are refused; settings have five levels."""

MAX_NODES = 20_000
"""More values are refused: aliases of aliases can make a small file endless."""

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)
_TOKENS = {repr(token) for token in (",", ":", "-", "?", "]", "}", "<stream end>", "<block end>", "<document start>")}
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),  # the value, not a flag
    **dict.fromkeys(("false", "False", "FALSE"), False),  # the value, not a flag
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
}


def read(text: str, where: str) -> tuple[Any, Report]:
    """Return what a YAML text says, as dicts, tuples and scalars, and the problems found in reading it.

    where: the file's name, for the problems.
    """
    walk = _Walk()
    tree = None
    slip: tuple[tuple[int, int], str] | None = None
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        if root is not None:
            tree = walk.value(root, ())
    except yaml.MarkedYAMLError as error:
        slip = _place(error.problem_mark or error.context_mark), _said(error.problem or "")
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        slip = (
            (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1),
            "a character that cannot stand here",
        )
    except RecursionError:
        slip = (0, 0), "it is nested too deeply"
    except (ValueError, OverflowError, yaml.YAMLError):  # the first two: an escape beyond Unicode
        slip = (0, 0), "it cannot be read"
    report = Report(where, walk.marks)
    if slip:
        report.add((), f"is not valid YAML: {slip[1]}", at=slip[0])
    for path, problem, place in walk.problems:
        report.add(path, problem, at=place)
    return tree, report


def _place(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _said(problem: str) -> str:
    """Return PyYAML's words without what it quotes from the file, and with the way out where there is a usual one."""
    said = re.sub(r"""'[^']*'|"[^"]*\"""", lambda quoted: quoted[0] if quoted[0] in _TOKENS else "something", problem)
    if "cannot start any token" in said:
        return "a value that begins with such a character must stand in quotes (found a character that cannot start any token)"
    if "mapping values are not allowed" in said:
        return "mapping values are not allowed here; a value that holds a colon and a space must stand in quotes"
    return said


class _Walk:
    """Turns PyYAML's nodes into plain values and remembers where they stood."""

    def __init__(self) -> None:
        self.marks: dict[Path, Mark] = {}
        self.problems: list[tuple[Path, str, tuple[int, int]]] = []
        self._nodes = 0
        self._cut = False

    def value(self, node: yaml.Node, path: Path) -> Any:
        """Return what *node* says."""
        place = _place(node.start_mark)
        self.marks.setdefault(path, Mark(place, place))
        self._nodes += 1
        if len(path) > MAX_DEPTH or self._nodes > MAX_NODES:
            if not self._cut:
                self._cut = True
                self.problems.append(((), "is nested too deeply, or too large", place))
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return tuple(self.value(item, (*path, n)) for n, item in enumerate(node.value))
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return _scalar(node.value) if node.style is None else node.value
        self.problems.append((path, "bears a tag; there are none here", place))
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _place(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(((*path, f"{place}"), "a key should be a word", place))
                continue
            key = key_node.value
            if key in found:
                first = self.marks[(*path, key)].key
                self.problems.append(((*path, key), f"the same key stands at {first[0]}:{first[1]}", place))
                continue
            self.marks[(*path, key)] = Mark(place, _place(value_node.start_mark))
            found[key] = self.value(value_node, (*path, key))
        return found


def _scalar(text: str) -> Any:
    """Return what a plain scalar says."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if any(digit in text for digit in "0123456789") and _FLOAT.fullmatch(text):
        return float(text)
    return text
