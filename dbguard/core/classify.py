"""What one SQL text is, from the text alone: a read, a write, or something about the session or the transaction.

The rules:

1. It fails closed. A text is READ only if every part of it is understood: each statement is a query (or EXPLAIN, SHOW,
   COPY ... TO STDOUT), without INTO, without a locking clause, without INSERT, UPDATE, DELETE or MERGE where a statement
   can start, and each function it calls is on an allow-list. UNKNOWN is treated as a write.
2. A parenthesis behind a name is a call, unless the name is a key word that cannot name a function, or the name stands
   where no expression can begin: behind an operand (then it is an alias with columns), AS, `::` or WITH.
3. Of several statements in one text the worst decides; transaction control in any of them makes it TRANSACTION.
4. A hint stands in a leading comment (`/* dbguard: primary */`, `/* dbguard: replica */`). `replica` lifts UNKNOWN, never
   WRITE, SESSION or TRANSACTION.

What a view, an operator, a cast, a default or a trigger does is not in the text: that is for the catalogue to find.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from dbguard.core.lexer import HEAD, tokens
from dbguard.core.query import Trust, closing, examine
from dbguard.core.quick import plainly_read
from dbguard.core.statement import Effects, Kind, Statement, Token, Touch, about
from dbguard.core.verbs import DML, QUERIES, UTILITIES, not_understood

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Classifier", "Kind", "Statement", "Token", "Touch", "classify"]

CACHED_TEXTS: Final = 4096
"""How many texts a classifier remembers."""
CACHED_LENGTH: Final = 4096
"""Longest text that is remembered, in characters; longer ones are classified each time."""

# How most texts begin, so that the first word is looked up and not looked for.
_BEGINNINGS: Final = {
    f"{word} ": verb for verb in ("select", "insert", "update", "delete") for word in (verb, verb.upper())
}
_HINT: Final = re.compile(r"dbguard:\s*(primary|replica)\b", re.IGNORECASE)
_WORST: Final = (Kind.READ, Kind.UNKNOWN, Kind.SESSION, Kind.WRITE, Kind.TRANSACTION)
_CHANGES: Final = {
    verb: Statement.of(kind=Kind.WRITE, reason=verb.upper(), verb=verb.upper(), one_transaction=True, token=Token.CTE)
    for verb in DML
}


class Classifier:
    """Classifies texts, and remembers what it has seen by the exact text.

    read_functions: functions of the user's that neither write nor touch the session, as `name` for calls without a
        schema and `schema.name` for those with one.
    write_functions: functions that must be taken for writes, whatever else is known; also for names of PostgreSQL's own
        that a schema of the user's hides.
    cache: text -> Statement, for a look-up in the caller's own line; only this class writes to it. It holds CACHED_TEXTS
        at most, and begins anew when it is full; a text longer than CACHED_LENGTH characters is not kept.
    """

    __slots__ = ("_trust", "cache")

    def __init__(
        self, *, read_functions: frozenset[str] = frozenset(), write_functions: frozenset[str] = frozenset()
    ) -> None:
        self._trust = Trust(read_functions, write_functions)
        self.cache: dict[str, Statement] = {}

    def classify(self, sql: str) -> Statement:
        """Return what *sql* is. Never raises on a text; `TypeError` on anything else."""
        statement = self.cache.get(sql)
        if statement is not None:
            return statement
        if not isinstance(sql, str):
            raise TypeError(f"a statement is a str, not {type(sql).__name__}")
        statement = self._look(sql)
        if len(sql) <= CACHED_LENGTH:
            if len(self.cache) >= CACHED_TEXTS:
                self.cache.clear()  # a flood of distinct texts gains nothing by being remembered one by one
            self.cache[sql] = statement
        return statement

    def _look(self, sql: str) -> Statement:
        verb = _BEGINNINGS.get(sql[:7], "")
        lead = ""
        if not verb and (head := HEAD.match(sql)) is not None and head[1]:
            verb = head[1].lower()
            lead = sql[: head.start(1)]
        if verb in DML and _is_single(sql):
            statement = about(sql, _CHANGES[verb])
        elif verb in QUERIES and plainly_read(sql, self._trust.backwards, verb):
            statement = about(sql, _READS[verb])
        else:
            statement = self._read(sql, verb)
        if lead and (hint := _hint(lead)):
            statement = statement.but(hint=hint)
        return statement

    def _read(self, sql: str, verb: str) -> Statement:
        toks = tokens(sql)
        bounds = _parts(toks)
        if not bounds:
            return _EMPTY
        found = [self._part(sql, toks, start, end) for start, end in bounds]
        whole = found[0] if len(found) == 1 else _together(found)
        return whole.but(verb=verb.upper(), text=sql)

    def _part(self, sql: str, toks: Sequence[str], start: int, end: int) -> Statement:
        first = start
        while first < end and toks[first] == "(":
            first += 1
        verb = toks[first] if first < end else ""
        if verb in QUERIES or (verb in DML and first == start):
            return self._query(sql, toks, start, end, verb)
        if first != start:
            return not_understood(f"{verb.upper()} in parentheses")
        if verb == "explain":
            return self._explain(sql, toks, start, end)
        if verb == "copy":
            return self._copy(sql, toks, start, end)
        rule = UTILITIES.get(verb)
        if rule is None:
            return not_understood(verb.upper() or "a character", at=start)
        return rule(toks[start:end])

    def _query(self, sql: str, toks: Sequence[str], start: int, end: int, verb: str) -> Statement:
        found = examine(toks, start, end, self._trust, sql)
        main = _main_verb(toks, start, end) if verb == "with" else verb
        if not main:
            return not_understood("WITH of nothing")
        if not found and verb in QUERIES:
            return _READS[verb]
        changes = main in DML
        worst, touch = None, Touch.NOTHING
        user = locks = pins = ddl = False
        locks_only, sets_only, understood = not changes, not changes, True
        for finding in found:
            touch = max(touch, finding.touch)
            user = user or finding.user
            locks = locks or finding.lock
            pins = pins or finding.pins
            ddl = ddl or finding.ddl
            sets_only = sets_only and finding.what == "set_config()"
            if finding.kind is not Kind.READ:
                locks_only = locks_only and finding.lock
                understood = understood and finding.touch is not Touch.LOST
                if worst is None or _WORST.index(finding.kind) > _WORST.index(worst.kind):
                    worst = finding
        if worst is None:  # it calls trusted functions of the user's, or it is DML with nothing to remark
            kind, reason, at = (Kind.WRITE if changes else Kind.READ), main.upper(), -1
            locks_only = sets_only = False
        else:
            kind, reason, at = worst.kind, worst.what, worst.at
        if changes and toks[start] != "(":
            token = Token.CTE
        elif locks_only or kind is Kind.READ or kind is Kind.SESSION:
            token = Token.NONE
        else:
            token = Token.BLOCK
        rows = "returning" in toks[start:end] if changes else not ddl
        return Statement.of(
            kind=Kind.WRITE if verb in DML else kind,
            reason=reason,
            at=at,
            one_transaction=understood or kind is not Kind.UNKNOWN,
            token=token,
            locks_only=locks_only,
            locks_rows=locks,
            sets_only=sets_only,
            pins_session=pins,
            ddl=ddl,
            known=Effects(touch, user, rows),
        )

    def _explain(self, sql: str, toks: Sequence[str], start: int, end: int) -> Statement:
        at = start + 1
        runs = False
        if toks[at : at + 1] == ["("] and toks[at + 1 : at + 2] and toks[at + 1] not in {*QUERIES, "("}:
            close = closing(toks, at, end)
            runs = _option_on(toks[at + 1 : close])
            at = close + 1
        else:
            while at < end and toks[at] in {"analyze", "analyse", "verbose"}:
                runs = runs or toks[at] != "verbose"
                at += 1
        if at >= end or toks[at] not in _EXPLAINED:
            return not_understood("EXPLAIN of no statement")
        inner = self._part(sql, toks, at, end)
        if runs:
            effects = Effects(inner.touch, inner.user_functions, returns_rows=True)
            token = Token.BLOCK if inner.token is Token.CTE else inner.token
            return inner.but(reason=f"EXPLAIN ANALYZE of {inner.reason}", token=token, known=effects)
        if "execute" in toks[at:end]:
            return inner.but(kind=Kind.SESSION, reason="EXPLAIN EXECUTE", pins_session=True, token=Token.NONE)
        # The planner runs no volatile function, only immutable and stable ones with constant arguments. Their declaration
        # is trusted in routing elsewhere too: what writes in spite of it is refused by the replica and remembered, and
        # what it leaves on the session (a setting, an advisory lock) is reset after it, since `user` is told.
        found = examine(toks, at, end, self._trust, sql)
        planned = next((finding for finding in found if finding.planned), None)
        user = any(finding.user for finding in found)
        if planned is not None:
            reason = f"EXPLAIN of {planned.what}"
            kind = planned.kind
            return Statement.of(kind=kind, reason=reason, at=planned.at, one_transaction=True, known=_UNSURE)
        effects = Effects(Touch.SETTINGS if user else Touch.NOTHING, user, returns_rows=True)
        return Statement.of(kind=Kind.READ, reason="EXPLAIN", one_transaction=True, known=effects)

    def _copy(self, sql: str, toks: Sequence[str], start: int, end: int) -> Statement:
        at = start + 1
        inner = None
        if toks[at : at + 1] == ["("]:
            close = closing(toks, at, end)
            if toks[at + 1 : at + 2] not in _COPIED:
                return not_understood("COPY of no query")
            inner = self._part(sql, toks, at + 1, close)
            at = close + 1
        else:
            while at < end and toks[at] not in {"to", "from"}:
                at += 1
        if toks[at : at + 1] == ["from"]:
            return _COPY_FROM
        if toks[at : at + 2] not in _TO_CLIENT:
            return Statement.of(kind=Kind.WRITE, reason="COPY to the server's own files", known=_KEEPS)
        if inner is None or inner.kind is Kind.READ:
            known = Effects(inner.touch, inner.user_functions, returns_rows=True) if inner else _ROWS
            return Statement.of(kind=Kind.READ, reason="COPY TO STDOUT", one_transaction=True, known=known)
        token = Token.BLOCK if inner.token is Token.CTE else inner.token
        return inner.but(reason=f"COPY of {inner.reason}", token=token)


_KEEPS: Final = Effects()
_ROWS: Final = Effects(returns_rows=True)
_UNSURE: Final = Effects(Touch.SETTINGS, user_functions=True, returns_rows=True)
_READS: Final = {
    verb: Statement.of(kind=Kind.READ, reason=verb.upper(), verb=verb.upper(), one_transaction=True, known=_ROWS)
    for verb in QUERIES
}
_EXPLAINED: Final = QUERIES | DML | {"(", "create", "declare", "refresh", "execute"}
_TO_CLIENT: Final = (["to", "stdout"], ["to", "stdin"])  # the server takes either word for the client
_COPIED: Final = [[word] for word in (*QUERIES, *DML, "(")]
_EMPTY: Final = Statement.of(kind=Kind.READ, reason="no statement", one_transaction=True, known=_KEEPS)
_COPY_FROM: Final = Statement.of(
    kind=Kind.WRITE, reason="COPY FROM", one_transaction=True, token=Token.BLOCK, known=_KEEPS
)


def _is_single(sql: str) -> bool:
    """Whether the text plainly holds one statement: no semicolon but at its end."""
    at = sql.find(";")
    return at < 0 or (at > len(sql) - 64 and not sql[at + 1 :].strip())


def _parts(toks: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each statement of the text begins and ends, empty ones left out."""
    if ";" not in toks:
        return [(0, len(toks))] if toks else []
    bounds = []
    start = depth = body = 0  # body: how deep in a function's body in standard SQL, BEGIN ATOMIC ... END
    for i, word in enumerate([*toks, ";"]):
        if word == "(":
            depth += 1
        elif word == ")":
            depth -= 1
        elif word == "atomic":
            body = int(toks[i - 1] == "begin" and toks[start] == "create")
        elif body and word in {"case", "end"} and toks[i - 1] not in {"as", "."}:
            body += 1 if word == "case" else -1
        elif word == ";" and ((depth <= 0 and not body) or i == len(toks)):
            if i > start:
                bounds.append((start, i))
            start = i + 1
    return bounds


def _together(found: list[Statement]) -> Statement:
    """Return what several statements are as one text."""
    worst = max(found, key=lambda statement: _WORST.index(statement.kind))
    one = all(statement.one_transaction for statement in found)
    effects = Effects(
        max(statement.touch for statement in found),
        any(statement.user_functions for statement in found),
        any(statement.returns_rows for statement in found),
    )
    writes = worst.kind in {Kind.WRITE, Kind.UNKNOWN} and one and worst.token is not Token.NONE
    unsafe = [statement for statement in found if statement.kind is not Kind.READ]
    return Statement.of(
        kind=worst.kind,
        reason=f"{len(found)} statements: {worst.reason}",
        at=worst.at,
        one_transaction=one,
        token=Token.BLOCK if writes else Token.NONE,
        locks_only=bool(unsafe) and all(statement.locks_only for statement in unsafe),
        locks_rows=any(statement.locks_rows for statement in found),
        sets_only=bool(unsafe) and all(statement.sets_only for statement in unsafe),
        several=True,
        pins_session=any(statement.pins_session for statement in found),
        ddl=any(statement.ddl for statement in found),
        known=effects,
    )


def _main_verb(toks: Sequence[str], start: int, end: int) -> str:
    """Return the verb of the statement itself, behind its WITH items."""
    while toks[start] == "(":
        start += 1
    depth = 0
    for i in range(start, end):
        word = toks[i]
        if word == "(":
            depth += 1
        elif word == ")":
            depth -= 1
        elif depth == 0 and word in _MAIN:
            return word
        if word == "(" and depth == 1 and toks[i - 1] == ")":
            return "select"  # WITH a AS (...) (SELECT ...): a query in parentheses
    return ""


_MAIN: Final = DML | {"select", "values", "table"}


def _option_on(options: Sequence[str]) -> bool:
    """Whether EXPLAIN's options ask it to run the statement."""
    for i, word in enumerate(options):
        if word == "":
            return True
        if word in {"analyze", "analyse", '"analyze"'}:
            value = options[i + 1] if i + 1 < len(options) else ","
            if value not in {"false", "off", "0", "'false'", "'off'", "'0'"}:
                return True
    return False


def _hint(lead: str) -> str | None:
    hints = {match[1].lower() for match in _HINT.finditer(lead)}
    return "primary" if "primary" in hints else "replica" if hints else None


_default: Final = Classifier()
classify: Final = _default.classify
