"""A guard in a process that forks: the child refuses and says what to do, and the parent goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.testing.cluster import Cluster

ROOT = Path(__file__).parents[2]
WHAT_TO_DO = "open it in this process, with guard.open() in the ASGI lifespan, gunicorn's post_fork"


@pytest.fixture
def run(calm_cluster: Cluster) -> Callable[[str], Awaitable[Any]]:
    """Run a program of `forks.py`; returns what parent and child have seen."""

    async def run(name: str) -> Any:
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.forks",
            name,
            calm_cluster.dsn(),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(180):
                out, errors = await program.communicate()
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
        assert program.returncode == 0, errors.decode()
        return json.loads(out)

    return run


@pytest.mark.parametrize("how", ["stopped_loop", "in_a_coroutine", "goes_on_in_the_block", "by_another_thread"])
async def test_a_child_refuses_and_never_touches_the_parents_connections(
    run: Callable[[str], Awaitable[Any]], how: str
) -> None:
    seen = await run(how)

    assert all(WHAT_TO_DO in said for said in seen.pop("said"))
    assert seen == {"code": 0, "kept": True, "had": True}


async def test_a_guard_that_is_open_in_the_parent_can_be_opened_afresh_in_the_child(
    run: Callable[[str], Awaitable[Any]],
) -> None:
    seen = await run("opened_afresh")

    inherited, *counts, closed = seen.pop("said")
    assert "this event loop is the parent's" in inherited
    assert counts == [1, 2]
    assert closed.startswith("the guard is not open")
    assert seen == {"count": 3, "code": 0, "kept": True, "had": True}


async def test_a_server_sees_its_clients_go_when_the_parent_ends_though_a_child_lives_on(
    run: Callable[[str], Awaitable[Any]],
) -> None:
    ((had,),) = [await run("parent_ends")]
    assert had >= 2


async def test_a_pool_with_a_connector_connects_in_the_child_once_the_guard_is_opened_there(
    run: Callable[[str], Awaitable[Any]],
) -> None:
    seen = await run("connector")

    refused, connected = seen.pop("said")
    assert WHAT_TO_DO in refused
    assert connected == "connected"
    assert seen == {"code": 0, "kept": True}


async def test_an_engine_of_sqlalchemy_connects_in_the_child_once_the_guard_is_opened_there(
    run: Callable[[str], Awaitable[Any]],
) -> None:
    seen = await run("engines")

    refused, connected = seen.pop("said")
    assert WHAT_TO_DO in refused
    assert connected is True
    assert seen == {"code": 0, "kept": True}


@pytest.mark.parametrize("how", ["wrapped", "wrapped_threads"])
async def test_a_wrapped_pool_is_left_alone_in_the_child(run: Callable[[str], Awaitable[Any]], how: str) -> None:
    seen = await run(how)

    assert all(WHAT_TO_DO in said for said in seen.pop("said"))
    assert seen == {"code": 0, "kept": True}


async def test_a_guard_for_threads_is_opened_afresh_in_a_child_without_the_parents_thread(
    run: Callable[[str], Awaitable[Any]],
) -> None:
    seen = await run("threads")

    *refused, name, closed = seen.pop("said")
    assert len(refused) == 7
    assert all(WHAT_TO_DO in said for said in refused)
    assert (name, closed.split(":")[0]) == (["parent"], "the guard is not open")
    left, code = seen.pop("left")
    assert WHAT_TO_DO in left
    assert code == 0
    assert seen == {"code": 0, "kept": True, "had": True}


async def test_a_guard_for_tasks_over_psycopg_does_the_same(run: Callable[[str], Awaitable[Any]]) -> None:
    seen = await run("psycopg_tasks")

    *refused, row = seen.pop("said")
    assert all(WHAT_TO_DO in said for said in refused)
    assert row == [42]
    assert seen == {"code": 0, "kept": True, "had": True}


async def test_recipe_for_gunicorn_with_threads(run: Callable[[str], Awaitable[Any]]) -> None:
    assert await run("gunicorn_threads") == [[["42", "200 OK"], 0]] * 2


async def test_recipe_for_gunicorn_and_uvicorn(run: Callable[[str], Awaitable[Any]]) -> None:
    assert await run("gunicorn") == [[42, 0], [42, 0]]


async def test_recipe_for_celery(run: Callable[[str], Awaitable[Any]]) -> None:
    worker = [[[True], [True]], 0]

    assert await run("celery") == [[worker, worker], 6]


async def test_recipe_for_multiprocessing(run: Callable[[str], Awaitable[Any]]) -> None:
    assert await run("processes") == [0, 0]
