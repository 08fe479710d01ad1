"""Every problem of a configuration, collected, placed and worded.

Only keys that exist, and slips of them, are ever shown; never a value and never any other key: one wrong character makes
a password a key (``{user: app, password, "..."}``).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from dbguard.config.section import Section, key_of
from dbguard.config.settings import Settings
from dbguard.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dbguard.config.values import Path

__all__ = ["Mark", "Report", "keys_at", "near"]


class Mark(NamedTuple):
    """Where something stands in a file: the key and the value, lines and columns from 1."""

    key: tuple[int, int]
    value: tuple[int, int]


def near(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the word of *known* that *word* may have been meant to be."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), 1, cutoff)), None)


def _is_slip(key: str, meant: str) -> bool:
    """Return whether *key* is so like *meant* that showing it tells no secret."""
    return re.fullmatch(r"[a-z_]+", key) is not None and abs(len(key) - len(meant)) <= 3


def keys_at(path: Path) -> tuple[str, ...]:
    """Return the keys that the section at *path* knows; none if no section stands there."""
    kind: Any = Settings
    for part in path:
        here = {key_of(entry.name): entry.type for entry in fields(kind)}
        if isinstance(part, str) and part in here:
            kind = here[part]
        elif isinstance(part, str):
            return ()
        kind = next((k for k in _mentioned(kind) if isinstance(k, type) and issubclass(k, Section)), None)
        if kind is None:
            return ()
    names = tuple(key_of(entry.name) for entry in fields(kind))
    return (*names, "dsn") if path == () or (path[0] == "nodes" and len(path) == 2) else names


def _mentioned(kind: Any) -> Iterable[Any]:
    """Yield *kind* and every type that it is made of."""
    yield kind
    for part in get_args(kind):
        yield from _mentioned(part)


class Report:
    """The problems found so far.

    where: what is read, for the message: the file's name, ``DSN``; empty for a mapping.
    marks: where each path stands in the file; empty if it is none.
    """

    def __init__(self, where: str = "", marks: Mapping[Path, Mark] | None = None) -> None:
        self._where = where
        self._marks = dict(marks or {})
        self._found: list[tuple[tuple[int, int], str, str]] = []  # place, path as shown, text
        self._settled: set[Path] = set()

    def add(self, path: Path, *texts: str, at: tuple[int, int] | None = None) -> None:
        """Add problems of *path*, unless it or what holds it has some already: what follows from them is not told."""
        if any(path[:n] in self._settled for n in range(len(path) + 1)):
            return
        self._settled.add(path)
        self._found += [(at or self._place(path), _dotted(path), text) for text in texts]

    def settle(self, path: Path) -> None:
        """Tell nothing more about *path*: what is wrong there follows from another problem."""
        self._settled.add(path)

    def stand_in(self, path: Path, source: Path) -> None:
        """Place problems of *path*, which the file does not have, where *source* stands, which gave it."""
        if source in self._marks:
            self._marks.setdefault(path, self._marks[source])

    def unknown_key(self, section: Path, key: object) -> Path | None:
        """Add that *section* knows no such key. Returns the path of the one that may have been meant."""
        known = keys_at(section)
        path = (*section, str(key))
        named = _dotted(section)
        meant = near(str(key), known)
        elsewhere = [f"{home}.{key}" for home in keys_at(()) if key in keys_at((home,))]
        if meant or elsewhere:
            if elsewhere or (meant and _is_slip(str(key), meant)):
                named = f"{named}{'.' if named else ''}{key}"
            text = f"unknown key; did you mean {' or '.join([*elsewhere, meant] if meant else elsewhere)}?"
        else:
            text = f"unknown key; known here: {', '.join(known)}"
        mark = self._marks.get(path)
        self._found.append((mark.key if mark else self._place(section), named, text))
        return (*section, meant) if meant else None

    def _place(self, path: Path) -> tuple[int, int]:
        """Return where *path* stands, or the nearest that holds it."""
        for length in range(len(path), -1, -1):
            if mark := self._marks.get(path[:length]):
                return mark.value
        return 0, 0

    def error(self) -> ConfigError | None:
        """Return the error that tells all problems, in the order of the file; None if there are none."""
        if not self._found:
            return None
        found = sorted(self._found, key=lambda problem: problem[0])
        lines = []
        for (line, column), named, text in found:
            place = ":".join(([self._where] if self._where else []) + ([f"{line}:{column}"] if line else []))
            lines.append(": ".join(part for part in (place, named, text) if part))
        message = lines[0]
        if len(lines) > 1:
            message = f"{len(lines)} problems in {self._where or 'the configuration'}:\n  " + "\n  ".join(lines)
        return ConfigError(message, path=found[0][1] or None, problems=tuple(lines))


def _dotted(path: Path) -> str:
    """Write *path* as ``nodes[2].port``, as far as its keys are known."""
    text = ""
    for n, part in enumerate(path):
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in keys_at(path[:n]):
            text += f".{part}" if text else part
        else:
            break
    return text
