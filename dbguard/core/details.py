"""What is asked of a text after its kind: what DML leaves behind and hands back, and which relations are named.

Naming too much costs a reset of a connection; naming too little would hand on a session that a view or a trigger has
touched. So a name that may be a relation is one, and a text that is not understood names nobody knows what (None).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dbguard.core.functions import RESERVED
from dbguard.core.lexer import spelled, tokens, written
from dbguard.core.query import Trust, examine
from dbguard.core.statement import Effects, Touch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["effects_of", "relations_of"]

_TRUST: Final = Trust(frozenset(), frozenset())
_VERBS: Final = frozenset({"select", "with", "values", "table", "insert", "update", "delete", "merge", "copy", "show"})
_FROM_CALLS: Final = frozenset({"extract", "substring", "trim", "overlay", "position"})  # f(a FROM b)
_END_OF_LIST: Final = frozenset(
    {"where", "group", "having", "window", "union", "intersect", "except", "order", "limit", "offset", "fetch", "for"}
    | {"returning", "select", "set", "values", "when"}
)
_MODIFIERS: Final = frozenset({"temp", "temporary", "unlogged", "local", "global"})
_UPDATE_REACH: Final = 16


def effects_of(sql: str) -> Effects:
    """Return what one INSERT, UPDATE, DELETE or MERGE leaves on the session and hands back."""
    toks = tokens(sql)
    found = examine(toks, 0, len(toks), _TRUST, sql)
    return Effects(
        max((finding.touch for finding in found), default=Touch.NOTHING),
        any(finding.user for finding in found),
        returns_rows="returning" in toks,
    )


@dataclass(slots=True)
class _Level:
    """What one pair of parentheses is about.

    listing: a comma introduces another relation. expecting: the next name is one. call: FROM is an argument's word.
    items: names of WITH items that can be seen here. item: where the name of the WITH item stands that is not closed yet.
    """

    listing: bool = False
    expecting: bool = False
    call: bool = False
    recursive: bool = False
    items: set[str] = field(default_factory=set)
    item: int | None = None


def relations_of(sql: str) -> frozenset[str] | None:
    """Return the relations a text names; None if they are not known."""
    toks = tokens(sql)
    if not toks or "" in toks:
        return None
    return _Walk(toks, written(sql)).relations()


class _Walk:
    """One pass over the tokens, with a level for each open parenthesis."""

    def __init__(self, toks: Sequence[str], raw: Sequence[str]) -> None:
        self.toks = [*toks, ";", ";", ";", ";"]
        self.raw = raw
        self.levels = [_Level()]
        self.found: set[str] = set()

    def relations(self) -> frozenset[str] | None:
        begin = True
        i = 0
        while i < len(self.toks):
            word = self.toks[i]
            if begin and word not in {"(", ";"}:
                first = self._skip_explain(i) if word == "explain" else i
                if self.toks[first] not in _VERBS:
                    return None
                begin = False
                if self.toks[first] == "copy" and self.toks[first + 1] != "(":
                    i = self._copied(first + 1)
                    continue
            if word == ";":
                self.levels = [_Level()]
                begin = True
            elif word == "into" and self.toks[i + 1] in _MODIFIERS:
                return None  # INTO TEMP t, or INSERT INTO temp
            i = self._step(i, word)
        return frozenset(self.found)

    def _skip_explain(self, i: int) -> int:
        i += 1
        if self.toks[i] == "(" and self.toks[i + 1] not in {*_VERBS, "("}:
            while self.toks[i] not in {")", ";"}:
                i += 1
            i += 1
        while self.toks[i] in {"analyze", "analyse", "verbose", "("}:
            i += 1
        return i

    def _copied(self, i: int) -> int:
        """Take the relation of a COPY without a query; return what follows FROM STDIN, TO STDOUT or a file's name."""
        self._name(i + (self.toks[i] == "binary" and _is_name(self.toks[i + 1])), target=True)
        while self.toks[i] not in {"from", "to", ";"}:
            i += 1
        return min(i + 2, len(self.toks) - 1)

    def _step(self, i: int, word: str) -> int:
        """Take in the token at *i*; return the index of the next one."""
        level = self.levels[-1]
        before = self.toks[i - 1] if i else ";"
        if word == "(":
            inner = _Level(level.expecting, level.expecting, call=before in _FROM_CALLS)
            level.expecting = False
            self.levels.append(inner)
        elif word == ")":
            if len(self.levels) > 1:
                self.levels.pop()
            self._close_item(i)
        elif word == ",":
            level.expecting = level.listing
        elif word == "from":
            distinct_from = before == "distinct" and self.toks[i - 2] in {"is", "not"}
            if not level.call and not distinct_from:
                if before == "delete":
                    return self._name(i + 1, target=True)
                level.listing = level.expecting = True
        elif word in {"join", "table"}:
            level.expecting = True
        elif word == "into":
            return self._name(i + 1, target=True)
        elif word == "update" and before not in {"for", "key"}:
            if self.toks[i + 1] != "set" and "set" in self.toks[i + 2 : i + _UPDATE_REACH]:
                return self._name(i + 1, target=True)
        elif word == "using":
            if self.toks[i + 1] != "(" or self.toks[i + 2] in {"select", "with", "values", "table", "("}:
                level.listing = level.expecting = True  # of DELETE and MERGE; of a join it names columns
        elif word == "with":
            self._begin_items(i)
        elif word in _END_OF_LIST:
            level.listing = level.expecting = False
        elif (level.expecting and word not in {"only", "lateral", "rows"}) or (
            level.expecting and word == "rows" and self.toks[i + 1] != "from"
        ):
            level.expecting = False
            return self._name(i, target=False)
        return i + 1

    def _name(self, i: int, *, target: bool) -> int:
        """Take the name at *i* for a relation, unless it is a call or an item of a WITH; return what follows it."""
        while self.toks[i] == "only" or (target and self.toks[i] in {"table", "("}):
            if self.toks[i] == "(":
                self.levels.append(_Level())
            i += 1
        path = []
        while _is_name(self.toks[i]):
            path.append(_plain(self.toks[i], self.raw[i]))
            i += 1
            if self.toks[i] != ".":
                break
            i += 1
        if not path:
            return i + (self.toks[i] not in {"(", ")", ",", ";"} and self.toks[i] not in RESERVED)
        call = self.toks[i] == "(" and not target
        item = len(path) == 1 and not target and any(path[0] in level.items for level in self.levels)
        if not call and not item:
            self.found.add(".".join(path))
        return i

    def _begin_items(self, i: int) -> None:
        recursive = self.toks[i + 1] == "recursive"
        at = i + 1 + recursive
        if not recursive and self.toks[at + 1] == "as" and self.toks[at + 2] not in {"(", "not", "materialized"}:
            return  # WITH ORDINALITY AS t
        if _is_name(self.toks[at]) and self.toks[at + 1] in {"as", "("}:
            level = self.levels[-1]
            level.listing = level.expecting = False
            level.recursive = recursive
            self._open_item(at)

    def _open_item(self, at: int) -> None:
        level = self.levels[-1]
        level.item = at
        if level.recursive:
            level.items.add(_plain(self.toks[at], self.raw[at]))

    def _close_item(self, i: int) -> None:
        """At a closing parenthesis: end the WITH item whose body it was, and begin the next one."""
        level = self.levels[-1]
        if level.item is None or self.toks[i + 1] == "as":
            return  # not in a WITH, or the item's list of columns
        level.items.add(_plain(self.toks[level.item], self.raw[level.item]))
        level.item = None
        if self.toks[i + 1] == "," and _is_name(self.toks[i + 2]):
            self._open_item(i + 2)


def _is_name(word: str) -> bool:
    first = word[:1]
    return (first.isalpha() or first in {"_", '"'} or first > "\x7f") and word[-1] not in {")", "'"}


def _plain(word: str, raw: str) -> str:
    """Return a name as the server reads it, in quotes if it is not a plain lower-case word."""
    if word[0] != '"':
        return word
    return spelled(raw[1:-1].replace('""', '"'))
