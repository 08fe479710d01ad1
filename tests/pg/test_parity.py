"""One guard, three facades: what dbguard adds has the same names and parameters everywhere, and psycopg_pool's are decided upon.

The names of psycopg_pool's are taken from its pools, so that a new one fails here until it is decided upon.
"""

from __future__ import annotations

import inspect
from typing import Any

import asyncpg
import psycopg_pool
import pytest

import dbguard
from dbguard.pg import guard as facade

TASKS, THREADS = dbguard.PsycopgGuard, dbguard.SyncGuard
FACADES = [TASKS, THREADS]
PAIRS = [(psycopg_pool.AsyncConnectionPool, TASKS), (psycopg_pool.ConnectionPool, THREADS)]

OUTSIDE = {
    "check_connection": "psycopg_pool's own function: check=psycopg_pool.ConnectionPool.check_connection works as it is",
    "reconnect_failed": "a guard never gives up on a node; events tell of nodes",
    "run_task": "psycopg_pool's own workings",
    "schedule_task": "psycopg_pool's own workings",
    "worker": "psycopg_pool's own workings",
    "conninfo": "a guard has nodes, which its configuration names",
    "kwargs": "an argument; what the pools were made with stays with them",
    "connection_class": "an argument, as kwargs",
    "name": "an argument of psycopg_pool's; application_name tells servers who asks",
    "timeout": "a setting: pool.acquire_timeout, and the guard's own timeout",
    "max_waiting": "a setting: failover.max_waiting",
    "max_lifetime": "an argument and a setting",
    "max_idle": "an argument and a setting",
    "reconnect_timeout": "a guard never gives up on a node",
    "num_workers": "a guard dials beside its calls",
    "close_returns": "a connection that is closed is gone",
}
"""Names of psycopg_pool's pools that guards do not have, and why."""

OTHERWISE = {
    "open": "it always waits, for what startup.need says and as long as startup.wait says",
    "close": "what is under way has 10 seconds, as of every guard",
    "connection": "role= besides",
}
"""Names that have other parameters here, and why."""


def public(kind: Any) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def own() -> set[str]:
    return public(dbguard.Guard) - public(asyncpg.Pool)


def parameters(method: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(method).parameters.values()]


def waits(method: Any) -> bool:
    """Whether it is for tasks: a coroutine, or a block for ``async with``."""
    plain = inspect.unwrap(method)
    return inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain)


@pytest.mark.parametrize("name", sorted(own()))
@pytest.mark.parametrize("kind", FACADES, ids=lambda kind: kind.__name__)
def test_dbguards_own_names_are_on_every_facade(kind: Any, name: str) -> None:
    ours, theirs = getattr(kind, name), getattr(dbguard.Guard, name)

    assert parameters(ours) == parameters(theirs)
    assert waits(ours) == (waits(theirs) and kind is TASKS)
    assert inspect.getdoc(ours)


def test_both_guards_over_psycopg_have_the_same_names() -> None:
    assert public(TASKS) == public(THREADS)


@pytest.mark.parametrize("name", sorted(public(TASKS)))
def test_a_name_has_the_same_parameters_for_tasks_and_for_threads(name: str) -> None:
    tasks, threads = getattr(TASKS, name), getattr(THREADS, name)

    assert isinstance(tasks, property) == isinstance(threads, property)
    assert inspect.getdoc(threads)
    if callable(tasks):
        there, here = inspect.signature(tasks).parameters, inspect.signature(threads).parameters
        assert [(p.name, p.kind, p.default) for p in there.values()] == [
            (p.name, p.kind, p.default) for p in here.values()
        ]
        assert not waits(threads)


def test_what_using_returns_has_the_same_names_for_tasks_and_for_threads() -> None:
    dsn = "postgresql://app@db1/shop"

    assert public(TASKS(dsn).using(role="replica")) == public(THREADS(dsn).using(role="replica"))


def of_pools() -> list[Any]:
    pools = [theirs("", open=False, min_size=0, max_size=1) for theirs, _ in PAIRS]
    return [
        pytest.param(pool, ours, name, id=f"{type(pool).__name__}.{name}")
        for pool, (_, ours) in zip(pools, PAIRS, strict=True)
        for name in sorted(public(pool))
    ]


@pytest.mark.parametrize(("pool", "ours", "name"), of_pools())
def test_every_name_of_psycopg_pools_is_decided_upon(pool: Any, ours: Any, name: str) -> None:
    if name in OUTSIDE:
        assert not hasattr(ours, name)
        return
    theirs, mine = inspect.getattr_static(type(pool), name), getattr(ours, name)
    assert isinstance(theirs, property) == isinstance(mine, property)
    if callable(theirs):
        its = [(p.name, p.kind, p.default) for p in inspect.signature(theirs).parameters.values()]
        found = [(p.name, p.kind, p.default) for p in inspect.signature(mine).parameters.values()]
        assert found == its or name in OTHERWISE
        assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(mine) or name == "resize"


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=lambda kind: kind.__name__)
def test_every_argument_of_psycopg_pools_is_taken_or_refused_with_what_to_do(theirs: Any, ours: Any) -> None:
    given = set(inspect.signature(theirs.__init__).parameters) - {"self"}

    assert set(facade.OF_POOLS) | set(facade.INSTEAD) == given
    assert set(facade.OF_POOLS).isdisjoint(facade.INSTEAD)
    for name, instead in facade.INSTEAD.items():
        with pytest.raises(dbguard.ConfigError) as refused:
            ours("postgresql://app@db1/shop", **{name: None})
        assert str(refused.value).endswith(f"{name} is no argument of this guard: {instead}")


def test_no_row_of_the_tables_is_stale() -> None:
    theirs = {name for _, _, name in (param.values for param in of_pools())}

    assert set(OUTSIDE) | set(OTHERWISE) <= theirs
