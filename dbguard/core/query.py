"""What a query's tokens say: the calls, clauses and words that make it something else than a read.

A query is SELECT, WITH, VALUES or TABLE, wherever it stands. `examine` looks at every token once and answers with what
it found; an empty answer is a plain read. DML goes through it too, for what it may leave on the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dbguard.core.functions import (
    CALL_PROOF,
    INFORMATION_FUNCTIONS,
    NEWER_WORDS,
    PLANNED_FUNCTIONS,
    READ_FUNCTIONS,
    RESERVED,
    VOLATILE_FUNCTIONS,
)
from dbguard.core.lexer import spelled, written
from dbguard.core.quick import backwards
from dbguard.core.statement import Kind, Touch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Finding", "Trust", "closing", "examine"]


class Finding(NamedTuple):
    """One thing in a text that is not a plain read.

    kind: what it makes of the statement; READ for a user's function that is trusted.
    what: its name, for people.
    at: the index of its token.
    touch: what it may leave on the session.
    planned: it is no read under EXPLAIN either: the planner may run it, or nobody knows what it is.
    lock: it locks rows. user: it runs a function that is not PostgreSQL's own. pins: what it leaves or needs lives on
    the session. ddl: it changes the catalogue.
    """

    kind: Kind
    what: str
    at: int
    touch: Touch = Touch.NOTHING
    planned: bool = False
    lock: bool = False
    user: bool = False
    pins: bool = False
    ddl: bool = False


# Functions about the session: (touch, whether what they leave or need lives on it).
SESSION_FUNCTIONS: Final = {
    "setseed": (Touch.LOST, True),
    "currval": (Touch.NOTHING, True),
    "lastval": (Touch.NOTHING, True),
    "pg_advisory_lock": (Touch.SETTINGS, True),
    "pg_advisory_lock_shared": (Touch.SETTINGS, True),
    "pg_try_advisory_lock": (Touch.SETTINGS, True),
    "pg_try_advisory_lock_shared": (Touch.SETTINGS, True),
    "pg_advisory_unlock": (Touch.NOTHING, True),
    "pg_advisory_unlock_shared": (Touch.NOTHING, True),
    "pg_advisory_unlock_all": (Touch.NOTHING, True),
    "pg_advisory_xact_lock": (Touch.NOTHING, False),
    "pg_advisory_xact_lock_shared": (Touch.NOTHING, False),
    "pg_try_advisory_xact_lock": (Touch.NOTHING, False),
    "pg_try_advisory_xact_lock_shared": (Touch.NOTHING, False),
    "pg_export_snapshot": (Touch.NOTHING, True),
    "lo_open": (Touch.NOTHING, True),
    "lo_close": (Touch.NOTHING, True),
    "loread": (Touch.NOTHING, True),
    "lo_lseek": (Touch.NOTHING, True),
    "lo_lseek64": (Touch.NOTHING, True),
    "lo_tell": (Touch.NOTHING, True),
    "lo_tell64": (Touch.NOTHING, True),
    "pg_stat_clear_snapshot": (Touch.NOTHING, True),
    "pg_stat_force_next_flush": (Touch.NOTHING, True),
    "pg_replication_origin_session_setup": (Touch.LOST, True),
    "pg_replication_origin_session_reset": (Touch.LOST, True),
    "pg_replication_origin_session_is_setup": (Touch.NOTHING, True),
    "pg_replication_origin_session_progress": (Touch.NOTHING, True),
    "pg_replication_origin_xact_setup": (Touch.LOST, True),
    "pg_replication_origin_xact_reset": (Touch.LOST, True),
}

# What a writing function leaves on the session besides; the others leave nothing there.
WRITE_TOUCH: Final = {"nextval": Touch.IDENTITY, "setval": Touch.IDENTITY}

# Words of syntax before a parenthesis that could also name a function: here, behind these words, they do not.
_JOINS: Final = frozenset({"left", "right", "full", "inner", "outer", "cross", "natural"})
_SYNTAX: Final = {
    "sets": frozenset({"grouping"}),
    "by": frozenset({"group", "order", "partition", "siblings"}),
    "zone": frozenset({"time"}),
    "materialized": frozenset({"as"}),
    "join": _JOINS,
    "first": frozenset({"fetch"}),
    "next": frozenset({"fetch"}),
    "varying": frozenset({"bit", "char", "character", "nchar"}),
    "second": frozenset({"interval"}),
    "bernoulli": frozenset({"tablesample"}),
    "system": frozenset({"tablesample"}),
}
# The same, where the words on both sides decide: NOT MATERIALIZED (...) is a CTE's, `NOT materialized(1)` a call.
_SYNTAX_AFTER: Final = {
    ("not", "materialized"): frozenset({"as"}),
    ("to", "second"): frozenset({"day", "hour", "minute"}),
}
# Reserved words that end an operand, and words that are not reserved behind which an expression begins.
_OPERAND_WORDS: Final = frozenset(
    {"null", "true", "false", "end", "current_catalog", "current_date", "current_role", "current_schema"}
    | {"current_time", "current_timestamp", "current_user", "localtime", "localtimestamp", "session_user"}
    | {"system_user", "user"}
)
_EXPRESSION_WORDS: Final = frozenset(
    {"at", "by", "call", "columns", "content", "copy", "document", "escape", "execute", "explain", "filter", "first"}
    | {"groups", "if", "key", "materialized", "nested", "next", "no", "of", "operator", "over", "partition"}
    | {"passing", "path", "prepare", "range", "recursive", "ref", "return", "rows", "set", "sets", "uescape", "value"}
    | {"version", "within", "zone"}
)
_BEFORE_EXPRESSION: Final = (["distinct", "on"], ["returning", "with"])  # in parentheses, and then an expression
_ROW_LOCKS: Final = {"update": "FOR UPDATE", "share": "FOR SHARE", "no": "FOR NO KEY UPDATE", "key": "FOR KEY SHARE"}
_DML_PARTNER: Final = {"insert": "into", "delete": "from", "merge": "into"}
_WATCHED: Final = frozenset({"(", ")", "", "into", "for", "insert", "update", "delete", "merge"})
_PLAIN: Final = frozenset({"(", ",", "=", "<", ">", "<=", ">=", "<>", "!=", "+", "-", "*", "/", "||", "[", "::"})
_OPERATOR_SIGNS: Final = frozenset("-+*/<>=~!@#%^&|`?")
_QUALIFIED: Final = frozenset(f"pg_catalog.{name}" for name in READ_FUNCTIONS)
_UPDATE_REACH: Final = 16  # UPDATE ONLY (a.b.c) * AS x SET: SET is never farther away


class Trust:
    """Which functions a classifier may trust: PostgreSQL's own, and those declared.

    reads, writes: declared, as `schema.name`, or `name` for calls without a schema.
    before_paren: what a parenthesis may follow without being a call that must be looked at: PostgreSQL's own reading
        functions, words of syntax, operators. backwards: the names among these, for `plainly_read`.
    """

    __slots__ = ("backwards", "before_paren", "reads", "writes")

    def __init__(self, reads: frozenset[str], writes: frozenset[str]) -> None:
        self.reads = reads
        self.writes = writes
        names = (CALL_PROOF - NEWER_WORDS) | ((READ_FUNCTIONS | NEWER_WORDS) - writes)
        self.before_paren = names | _PLAIN
        self.backwards = backwards(names, _QUALIFIED - writes)


def examine(toks: Sequence[str], start: int, end: int, trust: Trust, sql: str) -> list[Finding]:
    """Return what makes the tokens from *start* up to *end* more than a plain read."""
    found: list[Finding] = []
    openers: list[int] = []
    raw: list[str] = []  # the tokens as written, once they were needed
    unopened = 0
    closed = -1  # where the parenthesis that was closed last had been opened
    before_paren = trust.before_paren
    for i in range(start, end):
        word = toks[i]
        if word not in _WATCHED:
            continue
        if word == "(":
            openers.append(i)
            if i > start and (toks[i - 1] not in before_paren or (i > start + 1 and toks[i - 2] == ".")):
                finding = _call(toks, start, i, end, closed, trust, sql, raw)
                if finding is not None:
                    found.append(finding)
        elif word == ")":
            unopened += not openers
            closed = openers.pop() if openers else -1
        elif word == "":
            found.append(_not_understood(i))
        elif i > start and toks[i - 1] in {".", "as"}:
            continue  # a column, or a label
        elif word == "into":
            found.append(_into(toks, i, end))
        elif word == "for":
            finding = _lock(toks, start, i, end, openers)
            if finding is not None:
                found.append(finding)
        elif _starts_dml(toks, start, i, end, openers):
            found.append(Finding(Kind.WRITE, word.upper(), i))
    if len(openers) != unopened:
        found.append(_not_understood(start))
    return found


def _not_understood(at: int) -> Finding:
    return Finding(Kind.UNKNOWN, "not understood", at, Touch.LOST, planned=True, user=True)


def _into(toks: Sequence[str], i: int, end: int) -> Finding:
    temporary = i + 1 < end and toks[i + 1] in {"temp", "temporary", "local", "global"}
    touch = Touch.IDENTITY if temporary or toks[i + 1 : i + 2] == ["pg_temp"] else Touch.NOTHING
    return Finding(Kind.WRITE, "SELECT INTO", i, touch, pins=temporary, ddl=True)


def _lock(toks: Sequence[str], start: int, i: int, end: int, openers: list[int]) -> Finding | None:
    name = _ROW_LOCKS.get(toks[i + 1]) if i + 1 < end else None
    if name is None:
        return None
    if openers and openers[-1] > start and toks[openers[-1] - 1] in {"substring", "overlay"}:
        return None  # substring(x FOR n)
    return Finding(Kind.WRITE, name, i, lock=True)


def _starts_dml(toks: Sequence[str], start: int, i: int, end: int, openers: list[int]) -> bool:
    """Whether a statement starts here: these words also name columns, and their partners make them verbs."""
    word = toks[i]
    first = openers[-1] + 1 if openers else start
    if i != first:
        if toks[first] != "with":
            return False
        # The main statement of a WITH stands behind its last item, which may end in a SEARCH or CYCLE clause.
        if toks[i - 1] != ")" and toks[i - 2] not in {"set", "using"}:
            return False
    if word == "update":
        return "set" in toks[i + 1 : min(end, i + _UPDATE_REACH)]
    return i + 1 < end and toks[i + 1] == _DML_PARTNER[word]


def _call(
    toks: Sequence[str], start: int, paren: int, end: int, closed: int, trust: Trust, sql: str, raw: list[str]
) -> Finding | None:
    """Judge the parenthesis at *paren*, whose name is not on the list: a call or not, and what it does."""
    name = toks[paren - 1]
    if not _is_word(name):
        return None  # behind an operator, a number, a string, a bracket
    at = paren - 1
    path = [name]
    while at - 2 >= start and toks[at - 1] == ".":
        at -= 2
        path.insert(0, toks[at])
    before = toks[at - 1] if at > start else ""
    if path == ["operator"]:
        # operator(*) is a call where an expression begins.
        called = toks[paren + 1 : paren + 2] == ["*"] and not _ends_operand(toks, start, at - 1, closed)
        if toks[paren + 2 : paren + 3] == [")"] and _is_operator(toks[paren + 1]) and not called:
            return None
        return Finding(Kind.UNKNOWN, "an operator of another schema", at, Touch.SETTINGS, planned=True, user=True)
    if len(path) == 1 and _is_syntax(toks, start, paren, end, before):
        return None
    if before in {"as", "::", "with", "recursive", "into"} or _ends_operand(toks, start, at - 1, closed):
        return None
    if before == "," and _is_with_item(toks, paren, end):
        return None
    if name[0] == '"' or any(part[:1] == '"' for part in path):
        if not raw:
            raw.extend(written(sql))
        path = [raw[i][1:-1].replace('""', '"') if raw[i][:1] == '"' else toks[i] for i in range(at, paren, 2)]
    return _called(path, at, toks, paren, trust)


def _called(path: list[str], at: int, toks: Sequence[str], paren: int, trust: Trust) -> Finding | None:
    full = ".".join(map(spelled, path))
    if full in trust.writes:
        return Finding(Kind.WRITE, f"{full}(), declared as writing", at, Touch.SETTINGS, planned=True, user=True)
    name = path[-1]
    own = len(path) == 1 or path[:-1] == ["pg_catalog"]
    if own and name in READ_FUNCTIONS:
        return None
    if name in INFORMATION_FUNCTIONS and path[:-1] == ["information_schema"]:
        return None
    if own and name == "set_config":
        return _set_config(toks, paren, at)
    if own and name in SESSION_FUNCTIONS:
        touch, pins = SESSION_FUNCTIONS[name]
        return Finding(Kind.SESSION, f"{name}()", at, touch, pins=pins)
    if own and name in VOLATILE_FUNCTIONS:
        touch = WRITE_TOUCH.get(name, Touch.NOTHING)
        return Finding(Kind.WRITE, f"{name}()", at, touch, planned=name in PLANNED_FUNCTIONS)
    if name.startswith("dblink"):
        return Finding(Kind.WRITE, f"{full}()", at, Touch.LOST, user=True)
    if full in trust.reads:
        return Finding(Kind.READ, f"{full}(), trusted", at, Touch.SETTINGS, user=True)
    return Finding(Kind.UNKNOWN, f"{full}(), a function that is not known", at, Touch.SETTINGS, user=True)


def _set_config(toks: Sequence[str], paren: int, at: int) -> Finding:
    setting, last = toks[paren + 1 : paren + 2], toks[paren + 5 : paren + 7]
    if setting == ["'seed'"]:
        return Finding(Kind.SESSION, "set_config()", at, Touch.LOST, pins=True)
    if last == ["true", ")"]:
        return Finding(Kind.SESSION, "set_config()", at)
    named = bool(setting) and setting[0].startswith("'") and toks[paren + 2 : paren + 3] == [","]
    identity = not named or setting[0] in {"'role'", "'session_authorization'"}
    return Finding(Kind.SESSION, "set_config()", at, Touch.IDENTITY if identity else Touch.SETTINGS, pins=True)


def _is_syntax(toks: Sequence[str], start: int, paren: int, end: int, before: str) -> bool:
    """Whether the word before the parenthesis at *paren*, which could name a function, is syntax where it stands."""
    at = paren - 1
    name = toks[at]
    if before in _SYNTAX.get(name, ()):
        return True
    if (before, name) in _SYNTAX_AFTER:
        return at - 2 >= start and toks[at - 2] in _SYNTAX_AFTER[before, name]
    if name == "join" and toks[paren + 1 : paren + 2] == ["select"]:
        return True  # a query that is an argument stands in parentheses of its own
    if name in {"like", "ilike"} and before == "not":
        return at - 2 >= start and _ends_operand(toks, start, at - 2, -1)
    if name in {"cube", "rollup"} and before in {"by", ",", "(", "all", "distinct"}:
        return _in_group_by(toks, start, at)
    if name == "insert" and before == "then":  # of MERGE; CASE WHEN x THEN insert(1) END is a call
        follows = closing(toks, paren, end) + 1
        return follows < end and toks[follows] in {"values", "overriding"}
    if name == "conflict" and before == "on":  # of INSERT; JOIN t ON conflict(1) is a call
        return _is_followed_by_do(toks, paren, end)
    return False


def _is_followed_by_do(toks: Sequence[str], paren: int, end: int) -> bool:
    """Whether DO follows the list of columns that begins at *paren*, with or without a WHERE between them."""
    depth = 0
    for i in range(paren, end):
        word = toks[i]
        if word == "(":
            depth += 1
        elif word == ")":
            depth -= 1
            if depth < 0:
                return False
        elif depth == 0 and word in {"do", "conflict"}:
            return word == "do"
    return False


def _in_group_by(toks: Sequence[str], start: int, at: int) -> bool:
    depth = 0
    for i in range(at - 1, max(start, at - 200) - 1, -1):
        word = toks[i]
        if word == ")":
            depth += 1
        elif word == "(":
            depth -= 1
            if depth < 0:
                return toks[i - 1] == "sets"  # GROUPING SETS (rollup (a, b), ...)
        elif depth == 0 and word in {"group", "select", "order", "from", "where", "having", "window"}:
            return word == "group" and toks[i + 1] == "by"
    return False


def _ends_operand(toks: Sequence[str], start: int, i: int, closed: int) -> bool:
    """Whether the token at *i* ends an operand, so that no expression can begin behind it."""
    if i < start:
        return False
    word = toks[i]
    if word == ")":
        # Behind DISTINCT ON (...), RETURNING WITH (...) and OPERATOR(...) an expression begins.
        begins = toks[closed - 1] == "operator" or toks[closed - 2 : closed] in _BEFORE_EXPRESSION
        return not (closed > start + 1 and begins)
    if word[-1:] in {"'", '"', "]"} or word[:1] == "$" or word[:1].isdigit():
        return True
    if word[:1] == "%":
        return word[-1] in "sbt"  # psycopg's parameter, not the operator
    if not _is_word(word):
        return False
    return word in _OPERAND_WORDS or toks[i - 1] == "." or not (word in RESERVED or word in _EXPRESSION_WORDS)


def _is_operator(word: str) -> bool:
    """Whether a token is an operator, and not psycopg's parameter."""
    return word[:1] in _OPERATOR_SIGNS and not (word[0] == "%" and word[-1] in "sbt")


def _is_word(word: str) -> bool:
    """Whether a word is a name or a key word, quoted or not."""
    first = word[:1]
    return (first.isalpha() or first in {"_", '"'} or first > "\x7f") and word[-1] not in {")", "'"}


def _is_with_item(toks: Sequence[str], paren: int, end: int) -> bool:
    """Whether `, name (` begins an item of a WITH: a list of names, then AS and a query."""
    i = paren + 1
    while i < end and toks[i] not in {"(", ")", ""}:
        i += 1
    rest = list(toks[i : min(end, i + 6)])
    if rest[:2] != [")", "as"]:
        return False
    rest = [word for word in rest[2:] if word not in {"not", "materialized"}]
    return rest[:1] == ["("] and (rest[1:2] in (["select"], ["with"], ["table"], ["("]) or rest[1:3] == ["values", "("])


def closing(toks: Sequence[str], opener: int, end: int) -> int:
    """Return the index of the parenthesis that closes the one at *opener*; *end* if none does."""
    depth = 0
    for i in range(opener, end):
        if toks[i] == "(":
            depth += 1
        elif toks[i] == ")":
            depth -= 1
            if depth == 0:
                return i
    return end
