"""Drop-in: every public name of psycopg's objects is decided upon, and both colours have the same ones.

The names are taken from psycopg itself, so that a new one fails here until it is decided upon.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import psycopg
import pytest

from dbguard.pg import connection, cursor, sync_connection, sync_cursor

PAIRS = [
    (psycopg.AsyncConnection, connection.AsyncConnection),
    (psycopg.AsyncTransaction, connection.AsyncTransaction),
    (psycopg.AsyncPipeline, connection.AsyncPipeline),
    (psycopg.AsyncCursor, cursor.AsyncCursor),
    (psycopg.AsyncServerCursor, cursor.AsyncServerCursor),
    (psycopg.AsyncCopy, cursor.AsyncCopy),
    (psycopg.Connection, sync_connection.Connection),
    (psycopg.Transaction, sync_connection.Transaction),
    (psycopg.Pipeline, sync_connection.Pipeline),
    (psycopg.Cursor, sync_cursor.Cursor),
    (psycopg.ServerCursor, sync_cursor.ServerCursor),
    (psycopg.Copy, sync_cursor.Copy),
]
COLOURS = list(zip(PAIRS[:6], PAIRS[6:], strict=True))

EXCEPTIONS = {name for name in dir(psycopg.Connection) if isinstance(getattr(psycopg.Connection, name), type)}
INHERITED = {
    **dict.fromkeys(EXCEPTIONS, "the driver's own classes of errors"),
    "Status": "the driver's own names for how far a transaction is",
    "is_supported": "of the library alone: there is no connection in it",
}
"""Names that are the driver's own here, and why."""

OUTSIDE = {
    "command_queue": "what psycopg has queued: its own books, on the pipeline of the driver's connection",
    "result_queue": "as command_queue",
}
"""Names that are not here, and why."""

OTHERWISE = {
    "connect": "raises: a guard makes its connections itself",
    "__init__": "made by the guard",
}
"""Names that have another signature here, and why."""

MORE = {"node", "raw", "attempt", "mogrify"}
"""What is here besides: which node it is, the driver's own, the attempt of a transaction, and ClientCursor's own name."""


def public(kind: type) -> set[str]:
    """The public names of a class, and those that psycopg's constructors give to its instances."""
    names = set(dir(kind))
    for base in kind.__mro__:
        names |= set(vars(base).get("__annotations__", {}))
        if base.__module__.startswith("psycopg") and "__init__" in vars(base):
            names |= set(re.findall(r"self\.(\w+)(?:: [^=\n]+)? =", inspect.getsource(base.__init__)))
    return {name for name in names if not name.startswith("_")}


def origin(kind: type, name: str) -> str:
    """The module of the class that *name* comes from."""
    return next((base.__module__ for base in kind.__mro__ if name in vars(base)), "")


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


EACH = [pytest.param(a, b, name, id=f"{a.__name__}.{name}") for a, b in PAIRS for name in sorted(public(a))]


@pytest.mark.parametrize(("theirs", "ours", "name"), EACH)
def test_every_name_of_psycopgs_is_decided_upon(theirs: type, ours: type, name: str) -> None:
    if name in OUTSIDE:
        assert name not in vars(ours)
    elif name in INHERITED:
        assert getattr(ours, name) is getattr(theirs, name) or name == "is_supported"
    else:
        assert origin(ours, name).startswith("dbguard."), f"{name} is psycopg's own here: decide upon it"


@pytest.mark.parametrize(("theirs", "ours", "name"), [p for p in EACH if callable(getattr(*p.values[::2], None))])
def test_a_name_has_psycopgs_signature(theirs: type, ours: type, name: str) -> None:
    if name in OTHERWISE or name in INHERITED:
        return
    mine, its = getattr(ours, name), getattr(theirs, name)

    assert parameters(mine) == parameters(its)
    assert inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(its)
    assert inspect.isasyncgenfunction(mine) == inspect.isasyncgenfunction(its)
    assert inspect.isgeneratorfunction(mine) == inspect.isgeneratorfunction(its)
    assert inspect.getdoc(mine)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda kind: kind.__name__)
def test_it_is_an_instance_of_psycopgs(theirs: type, ours: type) -> None:
    assert issubclass(ours, theirs)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda kind: kind.__name__)
def test_every_special_method_of_psycopgs_is_ours(theirs: type, ours: type) -> None:
    special = {
        name
        for base in theirs.__mro__[:-1]
        if base.__module__.startswith("psycopg")
        for name, value in vars(base).items()
        if name.startswith("__") and name.endswith("__") and inspect.isfunction(value)
    }

    assert special - {"__init__", "__class_getitem__"} <= {n for n in special if origin(ours, n).startswith("dbguard.")}


@pytest.mark.parametrize(("tasks", "threads"), COLOURS, ids=lambda pair: pair[1].__name__)
def test_both_colours_have_the_same_names_and_parameters(tasks: tuple[Any, Any], threads: tuple[Any, Any]) -> None:
    ours, twin = tasks[1], threads[1]
    mine = {n for n in public(ours) if origin(ours, n).startswith("dbguard.")}

    assert mine == {n for n in public(twin) if origin(twin, n).startswith("dbguard.")}
    for name in mine:
        if callable(getattr(ours, name)):
            assert parameters(getattr(ours, name)) == parameters(getattr(twin, name)), name
            assert not inspect.iscoroutinefunction(getattr(twin, name)), name


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda kind: kind.__name__)
def test_what_is_here_besides_is_said(theirs: type, ours: type) -> None:
    assert public(ours) - public(theirs) <= MORE
