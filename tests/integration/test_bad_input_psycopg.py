"""What guards over psycopg refuse, each with an error that says what to do instead."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import dbguard
from dbguard import PsycopgGuard, SyncGuard
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbguard.testing.binaries import Binaries

NOWHERE = "postgresql://app@127.0.0.1:1/shop"
HELD_UP = (
    "a SyncGuard is used in the thread of a running event loop, .* use dbguard.PsycopgGuard there, or asyncio.to_thread"
)


@pytest.fixture(scope="module")
def other(binaries: Binaries) -> Iterator[Cluster]:
    """A cluster that has nothing to do with the calm one."""
    with Cluster(binaries=binaries, replicas=0) as cluster:
        yield cluster


def idle(kind: Any) -> Any:
    """A pool that connects to nothing."""
    return kind(NOWHERE, min_size=0, max_size=2, open=False)


def refused(kind: Any, *pools: Any, **options: Any) -> str:
    with pytest.raises((TypeError, dbguard.ConfigError)) as caught:
        kind.wrap(pools[0], pools[1:], **options)
    return str(caught.value)


# ---------------------------------------------------------------------- wrapping


@pytest.mark.parametrize("kind", [PsycopgGuard, SyncGuard])
async def test_what_is_no_pool_of_the_right_kind_is_told_who_takes_it(kind: Any) -> None:
    asyncpgs = asyncpg.create_pool(NOWHERE, min_size=0)
    engine = sqlalchemy.create_engine("postgresql+psycopg://app@127.0.0.1:1/shop")
    tasks = kind is PsycopgGuard
    own, theirs = ("AsyncConnectionPool", "ConnectionPool") if tasks else ("ConnectionPool", "AsyncConnectionPool")
    another = idle(ConnectionPool if tasks else AsyncConnectionPool)

    begins = f"primary should be a psycopg_pool.{own}, not "
    ends = f"; `dbguard.{kind.__name__}` takes a DSN, and opens pools of its own"
    taker = "SyncGuard" if tasks else "PsycopgGuard"
    assert refused(kind, asyncpgs) == f"{begins}Pool (dbguard.Guard.wrap takes that){ends}"
    assert refused(kind, another) == f"{begins}{theirs} (dbguard.{taker}.wrap takes that){ends}"
    for made in (engine, engine.pool):
        name = f"{type(made).__name__} (dbguard.integrations.sqlalchemy makes engines over a guard)"
        assert refused(kind, made) == f"{begins}{name}{ends}"
    assert refused(kind, NOWHERE) == f"{begins}str{ends}"


@pytest.mark.parametrize(("kind", "pool"), [(PsycopgGuard, AsyncConnectionPool), (SyncGuard, ConnectionPool)])
async def test_a_closed_pool_is_refused(kind: Any, pool: Any) -> None:
    assert refused(kind, idle(pool)) == "the pool of primary is closed: wrap open pools, and close them after the guard"


def test_one_pool_given_twice_and_sizes_that_do_not_fit_are_refused() -> None:
    with ConnectionPool(NOWHERE, min_size=0, max_size=2, open=True) as pool:
        twice = refused(SyncGuard, pool, pool)
        assert twice.startswith("replica1 is the same pool as primary: give one pool per node, each once")
        assert "at most 1, or a larger max_size" in refused(SyncGuard, pool, hold=2)
        with pytest.raises(TypeError, match="replicas= is a list of pools, not one pool"):
            SyncGuard.wrap(pool, pool)
        assert refused(SyncGuard, pool, config={"dsn": NOWHERE}).startswith("dsn has no meaning for wrapped pools")


def test_pools_of_two_clusters_are_refused_by_threads(calm_cluster: Cluster, other: Cluster) -> None:
    with ConnectionPool(calm_cluster.dsn("a"), open=True) as one, ConnectionPool(other.dsn("a"), open=True) as two:
        guard = SyncGuard.wrap(one, [two])
        with pytest.raises(dbguard.ConfigError, match=r"the pools are of 2 clusters .*open a guard for each"):
            guard.open()
        assert guard.closed
        assert not one.closed


async def test_pools_of_two_clusters_are_refused_by_tasks(calm_cluster: Cluster, other: Cluster) -> None:
    async with (
        AsyncConnectionPool(calm_cluster.dsn("a"), open=False) as one,
        AsyncConnectionPool(other.dsn("a"), open=False) as two,
    ):
        guard = PsycopgGuard.wrap(one, [two])
        with pytest.raises(dbguard.ConfigError, match=r"the pools are of 2 clusters .*open a guard for each"):
            await guard.open()


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize("kind", [PsycopgGuard, SyncGuard])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_sizes", ": did you mean max_size?"),
        ("failover", ": it is a setting, as in {'dsn': ..., 'failover': ...}"),
        ("conninfo", ": a guard's nodes come from its configuration"),
        ("nonsense", " (nor of psycopg_pool's pools)"),
    ],
)
def test_an_argument_that_there_is_not_is_named(kind: Any, name: str, said: str) -> None:
    with pytest.raises(dbguard.ConfigError) as caught:
        kind(NOWHERE, **{name: 1})
    assert str(caught.value).endswith(f"{name} is no argument of this guard{said}")


@pytest.mark.parametrize("missing", ["psycopg", "psycopg_pool"])
def test_a_missing_extra_is_named_with_how_to_install_it(missing: str) -> None:
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name={missing!r})
sys.meta_path.insert(0, Missing())
import dbguard
for name in ("SyncGuard", "PsycopgGuard"):
    try:
        getattr(dbguard, name)
    except ModuleNotFoundError as error:
        print(error)
    else:
        print("works")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    needs = "dbguard.{} needs psycopg: pip install 'dbguard-postgres[psycopg]', or psycopg[binary,pool]"
    told = [needs.format(name) for name in ("SyncGuard", "PsycopgGuard")]
    assert done.stdout.splitlines() == (
        told if missing == "psycopg" else ["works", "works"]
    )  # pools of its own need none


# ---------------------------------------------------------------------- calls at the wrong time, or place


def test_calls_before_open_and_after_close_are_refused_and_say_how_to_open_it(calm_cluster: Cluster) -> None:
    guard = SyncGuard(calm_cluster.dsn())
    token = "0199d0a0-0000-7000-8000-000000000000"
    calls: list[Callable[[], Any]] = [
        lambda: guard.execute("SELECT 1"),
        lambda: guard.using(role="replica").fetchone("SELECT 1"),
        lambda: guard.run_in_transaction(lambda _: None),
        lambda: guard.connection().__enter__(),
        lambda: guard.transaction().__enter__(),
        guard.getconn,
        guard.status,
        lambda: guard.route("SELECT 1"),
        guard.ready,
        guard.pause,
        guard.resume,
        lambda: guard.trust("a"),
        lambda: guard.resolve(token),
        guard.drain,
    ]

    def all_refuse() -> None:
        for call in calls:
            with pytest.raises(dbguard.GuardClosed, match=r"use `with guard:` or `guard\.open\(\)` first") as caught:
                call()
            assert isinstance(caught.value, psycopg.Error)

    all_refuse()
    guard.close()
    with guard:
        assert guard.fetchone("SELECT 1") == (1,)
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            guard.close(timeout=-1)
    all_refuse()
    with guard:
        assert guard.fetchone("SELECT 1") == (1,)


async def test_a_guard_in_a_running_event_loops_thread_warns_once_and_names_the_line(calm_cluster: Cluster) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guard = SyncGuard(calm_cluster.dsn("a"))
        guard.open()  # this line
        line = sys._getframe().f_lineno - 1
        guard.fetchone("SELECT 1")
        view = guard.using(timeout=5)
        view.fetchone("SELECT 1")
        with guard.connection() as con:
            con.execute("SELECT 1")
        guard.ready()
        guard.close()
        again = await asyncio.to_thread(SyncGuard(calm_cluster.dsn("a")).open)
        with again.using(timeout=5).connection():
            pass
        with again.paused():  # no second warning
            pass
        await asyncio.to_thread(again.close)

    told = [
        (warned.category, warned.filename, warned.lineno) for warned in caught if "SyncGuard" in str(warned.message)
    ]
    assert told == [(RuntimeWarning, __file__, line), (RuntimeWarning, __file__, line + 10)]
    with pytest.warns(RuntimeWarning, match=HELD_UP), pytest.raises(dbguard.GuardClosed), SyncGuard(NOWHERE).paused():
        pass


def test_a_listener_that_calls_its_guard_is_told_to_do_so_on_another_thread(calm_cluster: Cluster) -> None:
    said: list[str] = []
    views: list[Any] = []
    done = threading.Event()

    def listener(_event: Any) -> None:
        if done.is_set() or not views:
            return
        guard, view = views
        token = "0199d0a0-0000-7000-8000-000000000000"
        for call in (
            lambda: guard.execute("SELECT 1"),
            lambda: view.fetchone("SELECT 1"),
            lambda: guard.run_in_transaction(lambda _: None),
            lambda: guard.connection().__enter__(),
            guard.getconn,
            guard.ready,
            guard.pause,
            lambda: guard.resolve(token),
            guard.open,
            guard.close,
            guard.terminate,
        ):
            try:
                call()
            except RuntimeError as error:
                said.append(str(error))
        said.append(guard.status().primary)
        done.set()

    with SyncGuard(calm_cluster.dsn(), on_event=listener) as guard:
        views.extend([guard, guard.using(timeout=5)])
        guard.pause(timeout=1)
        guard.resume()
        assert done.wait(10)
        assert guard.fetchone("SELECT 1") == (1,)
    assert len(said) == 12
    assert set(said[:-1]) == {
        "this is the guard's own thread, on which listeners for events run: hand the call to another thread"
    }
    assert said[-1] is not None


async def test_a_function_of_the_other_colour_is_refused(calm_cluster: Cluster) -> None:
    async def for_tasks(con: Any) -> None:
        await con.execute("SELECT 1")

    def for_threads(con: Any) -> None:
        """Never gets to wait for anything."""

    async with PsycopgGuard(calm_cluster.dsn("a")) as guard:
        with pytest.raises(TypeError, match=r"needs an async function that takes the connection, not .*for_threads"):
            await guard.run_in_transaction(for_threads)  # type: ignore[arg-type,type-var]

    def with_threads() -> None:
        with SyncGuard(calm_cluster.dsn("a")) as guard:
            for wrong in (for_tasks, lambda con: for_tasks(con)):  # noqa: PLW0108  it is no async function
                with pytest.raises(TypeError, match=r"of a SyncGuard needs a plain function .*(for_tasks|lambda)"):
                    guard.run_in_transaction(wrong)

    await asyncio.to_thread(with_threads)
