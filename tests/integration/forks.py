"""Programs that fork with a guard in their hands, each run in a process of its own: ``python -m tests.integration.forks NAME DSN``.

Each prints what parent and child have seen as one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg_pool
from sqlalchemy import text

import dbguard
from dbguard.integrations.sqlalchemy import create_async_engine
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DOCS = Path(__file__).parents[2] / "docs"
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'parent'"
# Those of pools: the one that probes the node is renewed from time to time, whoever forks. (In two pieces, so that this
# question does not hold what it looks for.)
BACKENDS = f"{SESSIONS} AND query NOT LIKE '%pg_stat_wal_' || 'receiver%'"
PARENT = {"server_settings": {"application_name": "parent"}}
# A parent that stands still while its child works does not take its server for silent.
PATIENT = {"probe": {"timeout": "1min"}}


class Child:
    """A forked process. *leave* ends it; what *work* returned or raised is read by the parent."""

    def __init__(self, work: Callable[[], Any], leave: Callable[[int], Any] = os._exit) -> None:
        out, into = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(into)
            self.out = out
            return
        os.close(out)
        try:
            said = work()
        except Exception as error:  # noqa: BLE001  told to the parent
            said = [type(error).__name__, str(error), traceback.format_exc()]
        os.write(into, json.dumps(said).encode())
        os.close(into)
        leave(0)

    def told(self) -> Any:
        """Return what it said, as soon as it did."""
        with os.fdopen(self.out, "rb") as pipe:
            return json.loads(pipe.read())

    def said(self) -> Any:
        """Wait for its end; returns what it said, and how it ended."""
        return self.told(), os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def raised(act: Callable[[], Any]) -> str:
    """Return the text of the `GuardClosed` that *act* raises."""
    try:
        act()
    except dbguard.GuardClosed as error:
        return str(error)
    return "nothing"


def refused(work: Callable[[], Awaitable[Any]]) -> str:
    """The same for a coroutine, on an event loop of its own."""
    return raised(lambda: asyncio.run(work()))  # type: ignore[arg-type]


async def backends(con: Any) -> list[int]:
    return sorted(row["pid"] for row in await con.fetch(BACKENDS))


class Watched:
    """A guard of the parent's with a connection out, and how they fare."""

    def __init__(self, guard: dbguard.Guard, con: Any) -> None:
        self.guard = guard
        self.con = con

    @classmethod
    async def begin(cls, dsn: str) -> Watched:
        guard = await dbguard.Guard({"dsn": dsn, "pool": {"min_size": 2, "max_size": 3}, **PATIENT}, **PARENT).open()
        watched = cls(guard, await guard.acquire())
        watched.before = await watched.look()
        for _ in range(5):  # what comes and goes at the opening is none that is kept
            await asyncio.sleep(0.1)
            watched.before[0] = [pid for pid in (await watched.look())[0] if pid in watched.before[0]]
        return watched

    async def look(self) -> Any:
        """Return all backends of this process, and who answers on the connection that is out."""
        return [await backends(self.con), await self.con.fetchval("SELECT pg_backend_pid()")]

    async def after(self) -> dict[str, Any]:
        """Go on for several rounds of probes; say whether each connection is still there, and answers."""
        for _ in range(12):
            assert await self.guard.fetchval("SELECT 1") == 1
            await asyncio.sleep(0.05)
        now = await self.look()
        await self.guard.release(self.con)
        await self.guard.close()
        return {
            "kept": now[1] == self.before[1] and set(self.before[0]) <= set(now[0]),
            "had": len(self.before[0]) >= 2,
        }

    def misuse(self) -> list[str]:
        """Do in a child all that must not touch the parent's connections; returns what was said."""
        guard, con = self.guard, self.con
        said = [
            refused(lambda: guard.execute("CREATE TABLE by_a_fork ()")),
            refused(lambda: guard.using(role="replica").fetchval("SELECT 1")),
            refused(lambda: con.execute("CREATE TABLE by_a_fork ()")),
            raised(guard.status),
        ]

        async def end() -> None:
            await guard.release(con)
            await guard.close()
            guard.terminate()

        asyncio.run(end())
        gc.collect()
        return said


def stopped_loop(dsn: str) -> Any:
    """The parent's loop stands still at the fork; the child ends as a script does, with everything collected."""
    loop = asyncio.new_event_loop()
    watched = loop.run_until_complete(Watched.begin(dsn))

    def work() -> Any:
        said = watched.misuse()
        watched.guard = watched.con = None
        gc.collect()
        return said

    said, code = Child(work, sys.exit).said()
    return {"said": said, "code": code, **loop.run_until_complete(watched.after())}


def in_a_coroutine(dsn: str) -> Any:
    """Forked by a coroutine, with calls under way: as `multiprocessing` does."""

    async def main() -> Any:
        watched = await Watched.begin(dsn)
        busy = asyncio.create_task(watched.guard.fetchval("SELECT pg_sleep(0.4)::text"))
        await asyncio.sleep(0.1)
        child = Child(watched.misuse)
        said, code = await asyncio.to_thread(child.said)
        await busy
        return {"said": said, "code": code, **await watched.after()}

    return asyncio.run(main())


def goes_on_in_the_block(dsn: str) -> Any:
    """The child leaves the parent's blocks by the way that it came."""

    async def main() -> Any:
        watched = await Watched.begin(dsn)
        try:
            async with watched.guard:
                async with watched.guard.transaction() as tx:
                    await tx.execute("CREATE TABLE of_the_parent ()")
                    child = Child(lambda: raised(watched.guard.status), sys.exit)
                    said, code = await asyncio.to_thread(child.said)
                    await tx.execute("DROP TABLE of_the_parent")
                return {"said": [said], "code": code, **await watched.after()}
        except SystemExit:
            os._exit(0)  # asyncio.run would take the parent's loop off the pipe that wakes it

    return asyncio.run(main())


def by_another_thread(dsn: str) -> Any:
    """The guard's loop runs in a thread, and another one forks."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def do(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    watched = do(Watched.begin(dsn))
    said, code = Child(watched.misuse, sys.exit).said()
    return {"said": said, "code": code, **do(watched.after())}


def opened_afresh(dsn: str) -> Any:
    """A guard that is open in the parent is opened in the child as well; both write."""
    loop = asyncio.new_event_loop()
    watched = loop.run_until_complete(Watched.begin(dsn))
    loop.run_until_complete(watched.guard.execute("CREATE TABLE IF NOT EXISTS shared (pid int)"))

    def work() -> Any:
        guard = watched.guard

        async def write() -> int:
            async with guard:
                await guard.execute("INSERT INTO shared VALUES ($1)", os.getpid())
                return await guard.fetchval("SELECT count(*) FROM shared")

        inherited = []
        try:
            loop.run_until_complete(guard.open())
        except RuntimeError as error:
            inherited.append(str(error))
        return [*inherited, asyncio.run(write()), asyncio.run(write()), raised(guard.status)]

    said, code = Child(work, sys.exit).said()
    loop.run_until_complete(watched.guard.execute("INSERT INTO shared VALUES ($1)", os.getpid()))
    count = loop.run_until_complete(watched.guard.fetchval("SELECT count(*) FROM shared"))
    loop.run_until_complete(watched.guard.execute("DROP TABLE shared"))
    return {"said": said, "count": count, "code": code, **loop.run_until_complete(watched.after())}


def parent_ends(dsn: str) -> Any:
    """The parent dies with connections out; the child lives, and looks at what the server has left of it."""

    def parent() -> Any:
        loop = asyncio.new_event_loop()
        watched = loop.run_until_complete(Watched.begin(dsn))
        loop.run_until_complete(watched.con.execute("SELECT pg_advisory_lock(4711)"))
        out, into = os.pipe()
        if os.fork():
            os.close(into)
            os._exit(0)
        os.close(out)

        async def look() -> list[int]:
            con = await asyncpg.connect(dsn)

            async def is_gone() -> bool:
                return not (await con.fetch(SESSIONS) or await con.fetch("SELECT FROM pg_locks WHERE objid = 4711"))

            await until(is_gone)
            await con.close()
            return [len(watched.before[0])]

        return asyncio.run(look())

    return Child(parent).told()


def connector(dsn: str) -> Any:
    """A pool of the application's, connected by the guard."""
    loop = asyncio.new_event_loop()
    do = loop.run_until_complete
    guard = do(dbguard.Guard({"dsn": dsn, **PATIENT}).open())
    connect = guard.connector("primary")
    pool = do(asyncpg.create_pool(connect=connect, min_size=1, max_size=1, loop=loop, **PARENT))
    pid = do(pool.fetchval("SELECT pg_backend_pid()"))

    def work() -> Any:
        async def inherited() -> str:
            # Not looked after by the loop that it is on, such a pool never goes on: what counts is what is sent.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1):
                    await pool.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
            async with asyncpg.create_pool(connect=connect, min_size=0, max_size=1) as own:
                return await own.fetchval("SELECT 'connected'")

        async def own() -> Any:
            async with guard, asyncpg.create_pool(connect=connect, min_size=0, max_size=1) as other:
                return await other.fetchval("SELECT 'connected'")

        return [refused(inherited), asyncio.run(own())]

    said, code = Child(work, sys.exit).said()
    same = do(pool.fetchval("SELECT pg_backend_pid()")) == pid
    do(pool.close())
    do(guard.close())
    return {"said": said, "code": code, "kept": same}


def engines(dsn: str) -> Any:
    """An engine of SQLAlchemy over a guard: its pool is inherited, and is of use again once the guard is opened."""
    loop = asyncio.new_event_loop()
    do = loop.run_until_complete
    guard = do(dbguard.Guard({"dsn": dsn, **PATIENT}).open())
    engine = create_async_engine(guard)

    async def ask() -> Any:
        async with engine.connect() as con:
            return (await con.execute(text("SELECT pg_backend_pid()"))).scalar()

    pid = do(ask())

    def work() -> Any:
        async def own() -> Any:
            async with guard:
                said = await ask() != pid
                await engine.dispose()
                return said

        return [refused(ask), asyncio.run(own())]

    said, code = Child(work).said()
    same = do(ask()) == pid
    do(engine.dispose())
    do(guard.close())
    return {"said": said, "code": code, "kept": same}


def wrapped(dsn: str) -> Any:
    """A pool that the application has opened, with connections held by the guard."""
    loop = asyncio.new_event_loop()
    do = loop.run_until_complete
    pool = do(asyncpg.create_pool(dsn, min_size=2, max_size=2, loop=loop, **PARENT))
    guard = do(dbguard.Guard.wrap(pool, hold=1, config=PATIENT).open())
    pid = do(guard.fetchval("SELECT pg_backend_pid()"))

    def work() -> Any:
        said = refused(lambda: guard.execute("CREATE TABLE by_a_fork ()"))
        asyncio.run(guard.close())
        return [said]

    said, code = Child(work).said()
    same = do(guard.fetchval("SELECT pg_backend_pid()")) == pid
    do(guard.close())
    do(pool.close())
    return {"said": said, "code": code, "kept": same}


# ---------------------------------------------------------------------- psycopg


def threads(dsn: str) -> Any:
    """A guard for threads: its loop runs in a thread of its own, which a child does not have. It is opened afresh there."""
    parent = {"kwargs": {"application_name": "parent"}, "min_size": 2, "max_size": 2}
    guard = dbguard.SyncGuard({"dsn": dsn, **PATIENT}, **parent).open()
    with guard.connection() as con:

        def look() -> Any:
            con.commit()
            with guard.connection() as other:
                return [one.execute("SELECT pg_backend_pid()").fetchone() for one in (con, other)]

        def work() -> Any:
            said = [
                raised(lambda: guard.execute("CREATE TABLE by_a_fork ()")),
                raised(lambda: guard.using(role="replica").fetchone("SELECT 1")),
                raised(lambda: con.execute("CREATE TABLE by_a_fork ()")),
                raised(lambda: guard.run_in_transaction(lambda tx: tx.execute("CREATE TABLE by_a_fork ()"))),
                raised(guard.pause),
                raised(guard.status),
                raised(guard.ready),
            ]
            guard.close()
            guard.terminate()
            gc.collect()
            with guard:
                guard.execute("CREATE TABLE of_the_child ()")
                guard.execute("DROP TABLE of_the_child")
                said.append(
                    guard.fetchone("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
                )
            return [*said, raised(guard.status)]

        before = look()
        said, code = Child(work, sys.exit).said()
        for _ in range(12):
            guard.fetchone("SELECT 1")
            time.sleep(0.05)
        after = look()
    with guard.transaction() as tx:
        tx.execute("SELECT 1")
        left = Child(lambda: raised(lambda: tx.execute("SELECT 1")), _raise).said()
    guard.close()
    return {"said": said, "code": code, "kept": after == before, "had": before[0] != before[1], "left": left}


def _raise(code: int) -> None:
    """Leave the blocks that the parent is in."""
    raise Left(code)


class Left(BaseException):
    """A child leaves the parent's blocks."""


def psycopg_tasks(dsn: str) -> Any:
    """The same on asyncio."""
    loop = asyncio.new_event_loop()
    do = loop.run_until_complete
    parent = {"kwargs": {"application_name": "parent"}, "min_size": 2, "max_size": 2}
    guard = dbguard.PsycopgGuard({"dsn": dsn, **PATIENT}, **parent)
    do(guard.open())

    async def look() -> Any:
        async with guard.connection() as con, guard.connection() as other:
            return {await (await one.execute("SELECT pg_backend_pid()")).fetchone() for one in (con, other)}

    def work() -> Any:
        said = [refused(lambda: guard.execute("CREATE TABLE by_a_fork ()")), raised(guard.status)]
        asyncio.run(guard.close())
        gc.collect()

        async def afresh() -> Any:
            async with guard:
                return await guard.fetchone("SELECT 42")

        return [*said, asyncio.run(afresh())]

    before = do(look())
    said, code = Child(work, sys.exit).said()
    for _ in range(12):
        do(guard.fetchone("SELECT 1"))
        do(asyncio.sleep(0.05))
    after = do(look())
    do(guard.close())
    return {"said": said, "code": code, "kept": after == before, "had": len(before) == 2}


def wrapped_threads(dsn: str) -> Any:
    """A `psycopg_pool.ConnectionPool` that the application has opened, with connections held by the guard."""
    pool = psycopg_pool.ConnectionPool(dsn, min_size=2, max_size=2, open=True)
    guard = dbguard.SyncGuard.wrap(pool, hold=1, config=PATIENT).open()
    pid = guard.fetchone("SELECT pg_backend_pid()")

    def work() -> Any:
        said = raised(lambda: guard.execute("CREATE TABLE by_a_fork ()"))
        guard.close()
        gc.collect()
        return [said]

    said, code = Child(work).said()
    same = guard.fetchone("SELECT pg_backend_pid()") == pid
    guard.close()
    pool.close()
    return {"said": said, "code": code, "kept": same}


# ---------------------------------------------------------------------- the page's recipes


def recipe(name: str, dsn: str) -> types.ModuleType:
    """Return the module of that name from the page, with the cluster in the place of its file."""
    blocks = (DOCS / "forking.md").read_text().split("```python\n")
    (code,) = (block.split("```")[0] for block in blocks if block.startswith(f"# {name}.py"))
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(code.replace('"guard.yaml"', repr(dsn)), f"{name}.py", "exec"), vars(module))
    return module


def gunicorn(dsn: str) -> Any:
    """``--preload``: the application is imported, the arbiter forks workers, and each one runs the lifespan."""
    app = recipe("app", dsn)

    def worker() -> Any:
        async def serve() -> int:
            async with app.app.router.lifespan_context(app.app):
                return await app.guard.fetchval("SELECT 42")

        return asyncio.run(serve())

    workers = [Child(worker, sys.exit) for _ in range(2)]
    return [one.said() for one in workers]


def gunicorn_threads(dsn: str) -> Any:
    """The same with workers that are threads: the arbiter calls a hook in each worker."""
    shop, hooks = recipe("shop", dsn), recipe("gunicorn.conf", dsn)

    def worker() -> Any:
        hooks.post_fork(None, None)
        said: list[str] = []
        return [b"".join(shop.application({}, lambda status, headers: said.append(status))).decode(), *said]

    workers = [Child(worker, sys.exit) for _ in range(2)]
    return [one.said() for one in workers]


def celery(dsn: str) -> Any:
    """The tasks are imported, the pool forks, and each child is told of its beginning and its end."""

    class Signal(list[Any]):
        def connect(self, receiver: Any) -> Any:
            self.append(receiver)
            return receiver

        def send(self) -> None:
            for receiver in self:
                receiver(signal=self, sender=None)

    signals = types.ModuleType("celery.signals")
    begins, ends = signals.worker_process_init, signals.worker_process_shutdown = Signal(), Signal()
    package = types.ModuleType("celery")
    package.Celery = lambda name: types.SimpleNamespace(task=lambda function: function)
    sys.modules |= {"celery": package, "celery.signals": signals}
    tasks = recipe("tasks", dsn)

    async def prepare() -> None:
        con = await asyncpg.connect(dsn)
        await con.execute("CREATE TABLE item (id int, n int); INSERT INTO item VALUES (7, 10)")
        await con.close()

    async def left() -> int:
        con = await asyncpg.connect(dsn)
        n = await con.fetchval("SELECT n FROM item")
        await con.execute("DROP TABLE item")
        await con.close()
        return n

    def worker() -> Any:
        begins.send()
        said = [tasks.sell(7), tasks.sell(7)]
        ends.send()
        return said

    asyncio.run(prepare())
    workers = [Child(worker, sys.exit) for _ in range(2)]
    return [[one.said() for one in workers], asyncio.run(left())]


def processes(dsn: str) -> Any:
    """`multiprocessing`'s processes, started by fork."""
    jobs = recipe("jobs", dsn)
    return jobs.counted(["pg_class WHERE false", "pg_class WHERE false"])


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    try:
        sys.stdout.write(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
    except Left as left:
        sys.exit(*left.args)
