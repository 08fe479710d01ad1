"""What a statement that is no query says by its first words: one row, or one short function, per verb.

Each function gets the tokens of one statement and answers with a `Statement`. A verb that is not in the table is not
understood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dbguard.core.statement import Effects, Kind, Statement, Token, Touch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DML", "QUERIES", "UTILITIES", "not_understood"]

QUERIES: Final = frozenset({"select", "with", "values", "table"})
DML: Final = frozenset({"insert", "update", "delete", "merge"})

_KEEPS: Final = Effects()
_ROWS: Final = Effects(returns_rows=True)
_SETS: Final = Effects(Touch.SETTINGS)
_BECOMES: Final = Effects(Touch.IDENTITY)
_LOSES: Final = Effects(Touch.LOST, returns_rows=True)
_RUNS: Final = Effects(Touch.SETTINGS, user_functions=True)
_ANYTHING: Final = Effects(Touch.LOST, user_functions=True, returns_rows=True)

# RULES 1.1: what is known to be one transaction by itself. Eleven other kinds refuse to run in a block.
_PLAIN_DDL: Final = frozenset(
    {"table", "view", "index", "sequence", "type", "function", "schema", "role", "user", "group", "policy", "trigger"}
)
_BETWEEN: Final = frozenset(
    {"or", "replace", "temp", "temporary", "local", "global", "unlogged", "unique", "recursive", "constraint"}
    | {"materialized"}
)


def not_understood(what: str, at: int = -1) -> Statement:
    """Return the statement for a text, or a part of one, that is not understood; *at*: the index of the token."""
    return Statement.of(kind=Kind.UNKNOWN, reason=f"not understood: {what}", at=at, known=_ANYTHING)


def _write(why: str, effects: Effects = _KEEPS, **more: object) -> Statement:
    return Statement.of(kind=Kind.WRITE, reason=why, known=effects, **more)


def _session(why: str, effects: Effects = _KEEPS, **more: object) -> Statement:
    return Statement.of(kind=Kind.SESSION, reason=why, known=effects, **more)


def _transaction(why: str) -> Statement:
    return Statement.of(kind=Kind.TRANSACTION, reason=why, known=_KEEPS)


def _ddl(toks: Sequence[str]) -> Statement:
    """CREATE, ALTER, DROP."""
    at = 1
    while at < len(toks) and toks[at] in _BETWEEN:
        at += 1
    what = toks[at] if at < len(toks) else ""
    temporary = bool({"temp", "temporary", "local", "global"}.intersection(toks[1:at])) or toks[at + 1 : at + 2] == [
        "pg_temp"
    ]
    plain = what in _PLAIN_DDL and "concurrently" not in toks
    if what in {"user", "role", "group"} and toks[at + 1 : at + 2] == ["mapping"]:
        plain = False
    # Event triggers, defaults and AS SELECT run functions of the user's.
    effects = Effects(Touch.IDENTITY if temporary else Touch.NOTHING, user_functions=True)
    words = " ".join([toks[0], *([what] if what else [])]).upper()
    return _write(
        words,
        effects,
        one_transaction=plain,
        token=Token.BLOCK if plain else Token.NONE,
        pins_session=temporary,
        ddl=True,
    )


def _set(toks: Sequence[str]) -> Statement:
    """Every form of SET."""
    rest = list(toks[1:6])
    local = rest[:1] == ["local"]
    if rest[:1] == ["transaction"] or rest[:2] in (["local", "transaction"], ["session", "transaction"]):
        return _transaction("SET TRANSACTION")
    if rest[:1] == ["constraints"]:
        return _transaction("SET CONSTRAINTS")
    if rest[:1] in (["session"], ["local"]) and rest[1:2] not in (["authorization"], ["="], ["to"], ["."]):
        rest = rest[1:]
    name = rest[0] if rest else ""
    identity = name in {"role", '"role"', "session_authorization", '"session_authorization"'} or (
        name == "session" and rest[1:2] == ["authorization"]
    )
    if name == "characteristics":
        name = "session characteristics"
    why = f"SET {name.upper()}".strip()
    if name in {"seed", '"seed"'}:  # setseed() by another name, LOCAL or not
        return _session(why, Effects(Touch.LOST), one_transaction=True, sets_only=True, pins_session=True)
    if local:
        return _session(why, one_transaction=True, sets_only=True)
    return _session(why, _BECOMES if identity else _SETS, one_transaction=True, sets_only=True, pins_session=True)


def _reset(toks: Sequence[str]) -> Statement:
    identity = toks[1:2] in (["role"], ["session"], ["session_authorization"])
    return _session("RESET", _BECOMES if identity else _SETS, one_transaction=True, sets_only=True)


def _discard(toks: Sequence[str]) -> Statement:
    what = toks[1] if len(toks) > 1 else "all"
    effects = {"plans": _KEEPS, "sequences": _BECOMES, "temp": _BECOMES, "temporary": _BECOMES}.get(what, _LOSES)
    return _session(f"DISCARD {what.upper()}", effects, sets_only=True)


def _prepare(toks: Sequence[str]) -> Statement:
    if toks[1:2] == ["transaction"]:
        return _transaction("PREPARE TRANSACTION")
    return _session("PREPARE", _LOSES, one_transaction=True, pins_session=True)


def _row(statement: Statement) -> Callable[[Sequence[str]], Statement]:
    return lambda _: statement


_ALTER_SYSTEM: Final = _write("ALTER SYSTEM")


def _block(why: str, effects: Effects = _KEEPS, *, ddl: bool = False) -> Statement:
    return _write(why, effects, one_transaction=True, token=Token.BLOCK, ddl=ddl)


UTILITIES: Final[dict[str, Callable[[Sequence[str]], Statement]]] = {
    "create": _ddl,
    "alter": lambda toks: _ALTER_SYSTEM if toks[1:2] == ["system"] else _ddl(toks),
    "drop": _ddl,
    "grant": _row(_block("GRANT", ddl=True)),
    "revoke": _row(_block("REVOKE", ddl=True)),
    "comment": _row(_block("COMMENT", ddl=True)),
    "truncate": _row(_block("TRUNCATE", _RUNS)),
    "security": _row(_write("SECURITY LABEL", ddl=True)),
    "reassign": _row(_write("REASSIGN OWNED", ddl=True)),
    "import": _row(_write("IMPORT FOREIGN SCHEMA", ddl=True)),
    "refresh": _row(_write("REFRESH", _RUNS)),
    "vacuum": _row(_write("VACUUM", _RUNS)),
    "analyze": _row(_write("ANALYZE", _RUNS)),
    "analyse": _row(_write("ANALYZE", _RUNS)),
    "cluster": _row(_write("CLUSTER", _RUNS)),
    "reindex": _row(_write("REINDEX", _RUNS)),
    "repack": _row(_write("REPACK", _RUNS)),
    "checkpoint": _row(_write("CHECKPOINT")),
    "wait": _row(_write("WAIT")),
    "notify": _row(_block("NOTIFY")),
    "lock": _row(_write("LOCK", one_transaction=True, locks_only=True)),
    "call": _row(_write("CALL", Effects(Touch.SETTINGS, user_functions=True, returns_rows=True))),
    "do": _row(_write("DO", Effects(Touch.LOST, user_functions=True), ddl=True)),
    "set": _set,
    "reset": _reset,
    "discard": _discard,
    "listen": _row(_session("LISTEN", _SETS, one_transaction=True, pins_session=True)),
    "unlisten": _row(_session("UNLISTEN", _SETS, one_transaction=True, sets_only=True)),
    "load": _row(_session("LOAD", _LOSES, pins_session=True)),
    "prepare": _prepare,
    "execute": _row(_session("EXECUTE", _ANYTHING, one_transaction=True, pins_session=True)),
    "deallocate": _row(_session("DEALLOCATE", _LOSES, pins_session=True)),
    "declare": _row(_session("DECLARE", _RUNS, one_transaction=True, pins_session=True)),
    "fetch": _row(_session("FETCH", _ROWS, one_transaction=True, pins_session=True)),
    "move": _row(_session("MOVE", one_transaction=True, pins_session=True)),
    "close": _row(_session("CLOSE", one_transaction=True, pins_session=True)),
    "begin": _row(_transaction("BEGIN")),
    "start": _row(_transaction("START TRANSACTION")),
    "commit": _row(_transaction("COMMIT")),
    "end": _row(_transaction("END")),
    "rollback": _row(_transaction("ROLLBACK")),
    "abort": _row(_transaction("ABORT")),
    "savepoint": _row(_transaction("SAVEPOINT")),
    "release": _row(_transaction("RELEASE")),
    "show": _row(Statement.of(kind=Kind.READ, reason="SHOW", known=_ROWS, one_transaction=True)),
}
"""Verb in lower case -> what its statement is. A new verb is one more row."""
