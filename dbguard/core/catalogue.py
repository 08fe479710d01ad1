"""Which relations are *plain*: a statement that names only them runs no user-defined function by way of them.

Leaving out the reset between two uses of a connection may trust nobody's word on volatility: a plain SELECT on a table
whose policy calls a STABLE function left another tenant's setting on the session. So a relation is plain only if
nothing about it can run a function that is not PostgreSQL's own: no policy, rule or trigger; no column of a type made by
users (enums aside); nothing but PostgreSQL's functions in its defaults, checks, generated columns and indexes, or in the
view's own query. And only if that holds for everything a statement on it reaches: partitions and children, tables that
foreign keys cascade to, relations under a view.

What is not in the set is simply reset after use, as asyncpg's pool does after every use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbguard.core.statement import Kind, Touch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dbguard.core.statement import Statement

__all__ = ["Catalogue", "Relation", "plain_relations"]

NEXT_VALUE = "SELECT nextval("
"""A default that draws from a sequence: PostgreSQL's own; the sequence state it leaves is what any INSERT leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One relation as the catalogue has it.

    names: the ways a statement may name it: with its schema, and without where the search path finds it.
    bare: nothing hangs on it that runs users' functions, as far as flags and types tell.
    """

    oid: int
    names: tuple[str, ...]
    bare: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What was read from the server.

    expressions: (relation, expression) for defaults, checks, generated columns and indexes.
    queries: (view, its query).
    reaches: (relation, relation that a statement on it can reach).
    foul: users have redefined what PostgreSQL's own names mean (operators, casts, functions): nothing is plain.
    """

    relations: Sequence[Relation]
    expressions: Sequence[tuple[int, str]]
    queries: Sequence[tuple[int, str]]
    reaches: Sequence[tuple[int, int]]
    foul: bool = False


def plain_relations(catalogue: Catalogue, classify: Callable[[str], Statement]) -> frozenset[str]:
    """Return the names of all plain relations, as statements may write them."""
    if catalogue.foul:
        return frozenset()
    plain = {relation.oid for relation in catalogue.relations if relation.bare}
    plain -= {oid for oid, text in catalogue.expressions if not _is_own(f"SELECT {text}", classify)}
    plain -= {oid for oid, text in catalogue.queries if not _is_own(text, classify)}
    plain -= _reaching(plain, catalogue.reaches)
    return frozenset(name for relation in catalogue.relations if relation.oid in plain for name in relation.names)


def _is_own(text: str, classify: Callable[[str], Statement]) -> bool:
    """Whether *text* runs nothing but functions of PostgreSQL's own that leave the session alone."""
    statement = classify(text)
    if statement.user_functions:
        return False
    if text.startswith(NEXT_VALUE):
        return True
    return statement.kind is Kind.READ and statement.touch is Touch.NOTHING


def _reaching(plain: set[int], reaches: Iterable[tuple[int, int]]) -> set[int]:
    """Return those of *plain* from which something that is not plain can be reached."""
    into: dict[int, set[int]] = {}
    for start, end in reaches:
        into.setdefault(end, set()).add(start)
    tainted = {end for end in into if end not in plain}
    open_ends = list(tainted)
    while open_ends:
        for start in into.get(open_ends.pop(), ()):
            if start not in tainted:
                tainted.add(start)
                open_ends.append(start)
    return tainted
