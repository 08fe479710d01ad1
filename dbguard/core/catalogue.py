"""What the live catalogue says about statements: which connections need no reset, and which reads must not be spread.

Two questions, and two different answers to "may this be trusted?":

* Leaving out the reset between two uses of a connection trusts nobody's word on volatility: a plain SELECT on a table
  whose policy calls a STABLE function left another tenant's setting on the session. So a relation is *plain* only if
  nothing about it can run a function that is not PostgreSQL's own: no policy, rule or trigger; no column of a type made
  by users (enums aside); nothing but PostgreSQL's functions in its defaults, checks, generated columns and indexes, or
  in the view's own query; and only if that holds for everything a statement on it reaches: partitions and children,
  tables tied to it by foreign keys, relations under a view. What is not plain is reset after use, as in any pool.
* Routing may trust volatility: a replica refuses a write by itself, and one that was refused is remembered. A user's
  function is *trusted* if every function of its name is STABLE or IMMUTABLE; a relation is *tainted* if reading it can
  run one that is not (a view, a policy); so is a text with an operator or a domain of the users' that runs a volatile
  function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbguard.core.statement import Kind, Touch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dbguard.core.statement import Statement

__all__ = ["NOTHING_KNOWN", "Catalogue", "Function", "Knowledge", "Relation", "conclude", "trusted_functions"]

NEXT_VALUE = "SELECT nextval("
"""A default that draws from a sequence: PostgreSQL's own; the sequence state it leaves is what any INSERT leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One relation as the catalogue has it.

    names: the ways a statement may name it: with its schema, and without where the search path finds it.
    bare: nothing hangs on it that runs users' functions, as far as flags and types tell.
    notifies: a rule makes a NOTIFY of statements on it.
    """

    oid: int
    names: tuple[str, ...]
    bare: bool
    notifies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One name of users' functions.

    names: the ways a statement may call it. stable: all functions of that name are STABLE or IMMUTABLE.
    hides: PostgreSQL has a function of that name, too.
    """

    names: tuple[str, ...]
    stable: bool
    hides: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What was read from the server.

    expressions: (relation, expression) for defaults, checks, generated columns and indexes.
    queries: (view, its query), and (table, "SELECT " and the expression of a policy).
    reaches: (relation, relation that a statement on it can reach).
    volatile_words: what of users' runs a volatile function without a call of it: operators, casts (by their types), and
        functions that can be written as a column of a row, as a text would hold them.
    checks: (domain, an expression that casting to it runs).
    calling_words: types of users' (a cast to a domain runs its check), and functions that can be written as a column of
        a row (``t.f`` is ``f(t)``): names by which a text runs a user's function without calling one.
    foul: users have redefined what PostgreSQL's own names mean (operators, casts, functions): nothing is plain.
    blind: texts cannot be read as they are written here (``standard_conforming_strings`` is off, or the client's
        encoding is one whose bytes can look like quotes): nothing is taken for a read, and nothing is plain.
    """

    relations: Sequence[Relation]
    expressions: Sequence[tuple[int, str]] = ()
    queries: Sequence[tuple[int, str]] = ()
    reaches: Sequence[tuple[int, int]] = ()
    functions: Sequence[Function] = ()
    volatile_words: Sequence[str] = ()
    checks: Sequence[tuple[str, str]] = ()
    calling_words: Sequence[str] = ()
    foul: bool = False
    blind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What follows for statements.

    plain: relations after whose use no reset is needed. tainted: relations whose reading may write.
    words: what makes a text that holds it go to the primary, lower-cased. blind: no text can be read for what it is.
    calls: what makes a text that holds it one after which a reset is needed, lower-cased.
    unsure: what PostgreSQL's own names mean is not known, or not theirs: a reset is needed after every text.
    unread: the catalogue was not read yet, or not since the last DDL: what reading a relation runs is not known.
    telling: relations by which a statement reaches a rule that makes a NOTIFY of it.
    """

    plain: frozenset[str] = frozenset()
    tainted: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    blind: bool = False
    calls: tuple[str, ...] = ()
    unsure: bool = False
    unread: bool = False
    telling: frozenset[str] = frozenset()

    def notifies(self, statement: Statement) -> bool:
        """Whether nothing but a NOTIFY may be left of a statement, and its WITH dropped."""
        if not self.telling:
            return False
        relations = statement.relations
        return relations is None or not relations.isdisjoint(self.telling)

    def is_clean(self, statement: Statement, text: str) -> bool:
        """Whether nothing of users' can have run, so that the session is as the text left it."""
        relations = statement.relations
        if self.blind or self.unsure or statement.user_functions or relations is None or not relations <= self.plain:
            return False
        return not _calls(text, self.calls)

    def taints(self, statement: Statement, text: str) -> str | None:
        """Say what makes a read of PostgreSQL's eyes one that may write; None: nothing."""
        if self.blind:
            return "standard_conforming_strings is off, or the client's encoding hides quotes"
        if self.tainted:
            relations = statement.relations
            if relations is None:
                return "which relations it reads is not clear, and reading some of them may write"
            if found := sorted(relations & self.tainted):
                return f"reading {found[0]} may run a volatile function"
        folded = text.lower() if self.words else ""
        return next((f"{word} may run a volatile function" for word in self.words if word in folded), None)


NOTHING_KNOWN = Knowledge(unsure=True, unread=True)
"""Before the catalogue was read."""


def trusted_functions(catalogue: Catalogue) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of users' functions that only read, and of those that must be taken for writes.

    The second are those that are not stable: among them names that PostgreSQL has itself, which the text alone would
    take for PostgreSQL's.
    """
    read = {
        name for function in catalogue.functions if function.stable and not function.hides for name in function.names
    }
    write = {name for function in catalogue.functions if not function.stable for name in function.names}
    return frozenset(read - write), frozenset(write)


def conclude(catalogue: Catalogue, classify: Callable[[str], Statement]) -> Knowledge:
    """Draw the conclusions; *classify* knows the trusted functions already."""
    every = {relation.oid for relation in catalogue.relations}
    calls = tuple(word.lower() for word in catalogue.calling_words)
    writing_domains = {name for name, text in catalogue.checks if not classify(f"SELECT {text}").is_read}
    words = tuple(sorted(word.lower() for word in {*catalogue.volatile_words, *writing_domains}))
    plain: set[int] = set()
    if not catalogue.foul and not catalogue.blind:
        plain = {relation.oid for relation in catalogue.relations if relation.bare}
        plain -= {oid for oid, text in catalogue.expressions if not _is_own(f"SELECT {text}", classify, calls)}
        plain -= {oid for oid, text in catalogue.queries if not _is_own(text, classify, calls)}
        plain -= _reaching(plain, catalogue.reaches)
    telling = {relation.oid for relation in catalogue.relations if relation.notifies}
    writing = {oid for oid, text in catalogue.queries if not classify(text).is_read or _calls(text, words)}
    tainted = writing | _reaching(every - writing, catalogue.reaches, only_into=writing)
    return Knowledge(
        plain=_names(catalogue, plain),
        tainted=_names(catalogue, tainted),
        words=words,
        blind=catalogue.blind,
        calls=calls,
        unsure=catalogue.foul,
        telling=_names(catalogue, telling | _reaching(every - telling, catalogue.reaches, only_into=telling)),
    )


def _names(catalogue: Catalogue, oids: set[int]) -> frozenset[str]:
    return frozenset(name for relation in catalogue.relations if relation.oid in oids for name in relation.names)


def _calls(text: str, words: Iterable[str]) -> bool:
    """Whether *text* may hold one of *words*, lower-cased names; names in escapes (``U&"..."``) are not looked into."""
    folded = text.lower()
    return 'u&"' in folded or any(word in folded for word in words)


def _is_own(text: str, classify: Callable[[str], Statement], calls: Iterable[str]) -> bool:
    """Whether *text* runs nothing but functions of PostgreSQL's own that leave the session alone."""
    statement = classify(text)
    if statement.user_functions or _calls(text, calls):
        return False
    if text.startswith(NEXT_VALUE):
        return True
    return statement.kind is Kind.READ and statement.touch is Touch.NOTHING


def _reaching(among: set[int], reaches: Iterable[tuple[int, int]], *, only_into: set[int] | None = None) -> set[int]:
    """Return those of *among* from which something outside (of *only_into*, if given) can be reached."""
    into: dict[int, set[int]] = {}
    for start, end in reaches:
        into.setdefault(end, set()).add(start)
    found = {end for end in into if (end in only_into if only_into is not None else end not in among)}
    open_ends = list(found)
    while open_ends:
        for start in into.get(open_ends.pop(), ()):
            if start not in found:
                found.add(start)
                open_ends.append(start)
    return found
