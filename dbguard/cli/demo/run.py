"""The command ``dbguard demo``: starts a cluster, lets both sides work through a failover, reads back, and judges."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.cli import running
from dbguard.cli.demo.clients import FACADES, missing
from dbguard.cli.demo.failover import Failover, Script
from dbguard.cli.demo.history import History
from dbguard.cli.demo.journal import Entry, Journal
from dbguard.cli.demo.judging import NOTHING_PROVED, Proofs, excuse, faults, judge
from dbguard.cli.demo.picture import photograph
from dbguard.cli.demo.report import as_json, report
from dbguard.cli.demo.view import make_view
from dbguard.cli.demo.workload import READERS, TABLE, WRITERS, Side
from dbguard.cli.output import Output, complain
from dbguard.drivers import outcome_sql
from dbguard.errors import ConfigError
from dbguard.events import OutcomeLeftOpen, OutcomeResolved
from dbguard.testing.cluster import Cluster, ClusterError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine, Iterator

    from dbguard.cli.demo.clients import Facade
    from dbguard.cli.demo.judging import Figures
    from dbguard.cli.demo.view import View
    from dbguard.events import Event
    from dbguard.status import Status

__all__ = ["Demo", "run"]

GUARDED, CONTROL = "guarded", "control"
"""The sides, and their tables."""

POOL_SIZE = 16
"""Connections at most, per node of the guard and of the control's pool: one for each client."""

USER = "postgres"
"""Whom the guard logs in as; the cluster of the demo has no other role."""

TIMEOUT = 30.0
"""Seconds that a guarded call has, the default; an outage that takes less must leave no write of unknown outcome."""

SHOWN_FROM = logging.INFO
"""Events of this level and above are shown; those below tell of single calls."""


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. Returns 0 if the guarded side kept its promises, 1 if not, 2 if the demo could not run."""
    to_stdout = arguments.json == "-"
    output = Output(sys.stderr if to_stdout else sys.stdout)
    lacking = missing(arguments.facade)
    if lacking is not None:
        complain(lacking)
        return 2
    try:
        if arguments.json and not to_stdout:
            _write(arguments.json, "")  # a run of a minute should not end in an error
        with _terminable():
            output.line("dbguard demo: starting PostgreSQL, a primary with two streaming replicas ...")
            began = time.monotonic()
            with Cluster(synchronous=True) as cluster:
                took = time.monotonic() - began
                facade = FACADES[arguments.facade]
                demo = Demo(cluster, arguments.seconds, output, facade, tokens=arguments.outcome == "token-table")
                output.line(f"ready after {took:.1f} s: {_described(cluster)}")
                output.line(f"guarded: {facade.guarded}; control: {facade.control}")
                output.line(demo.about_outcomes)
                running.run(_until_terminated(demo.play()))
                guarded, control = demo.judge()
                survivor = cluster.primary.name
            report(output, guarded, control, demo.guarded.errors, demo.control.errors, survivor, excuse=demo.excuse)
            result = json.dumps(as_json(guarded, control, demo.journal.entries, demo.outage), indent=2) + "\n"
            if to_stdout:
                sys.stdout.write(result)
            elif arguments.json:
                _write(arguments.json, result)
            return 1 if faults(guarded, demo.excuse) else 0
    except ClusterError as error:
        complain(str(error))
        return 2


class Demo:
    """One run on *cluster*, a primary with two synchronous replicas.

    facade: what both sides' clients call. tokens: guarded writes carry them.
    guarded, control: what the clients of each side did. journal: what happened.
    """

    def __init__(self, cluster: Cluster, seconds: float, output: Output, facade: Facade, *, tokens: bool) -> None:
        now = time.monotonic()
        self.guarded, self.control = History(now), History(now)
        self._cluster = cluster
        self._script = Script.of(seconds)
        self._output = output
        self._facade = facade
        self._view: View = make_view(output, facade.guarded, facade.control)
        self.journal = Journal(self._view.note)
        self._failover = Failover(cluster, self._script, self._step)
        self._tokens = tokens
        self._proofs = NOTHING_PROVED

    @property
    def outage(self) -> float:
        """Seconds without a primary; infinite if nobody took its place."""
        return self._failover.outage

    @property
    def excuse(self) -> str | None:
        """Why guarded writes may stay of unknown outcome; None: none may."""
        return excuse(tokens=self._tokens, outage=self.outage, timeout=TIMEOUT)

    @property
    def about_outcomes(self) -> str:
        """What is done about guarded writes whose answer is lost, as one line."""
        if self._tokens:
            return "each guarded write carries a token, which proves what became of it if its answer is lost"
        return "no tokens: guarded writes whose answer is lost are of unknown outcome"

    async def play(self) -> None:
        """Let both sides work through the failover. Raises `ClusterError` if PostgreSQL does not obey."""
        if self._tokens:
            await self._install_tokens()
        await asyncio.to_thread(self._make_tables)
        loop = asyncio.get_running_loop()

        def hear(event: Event) -> None:
            loop.call_soon_threadsafe(self._event, event)  # a guard for threads tells on a thread of its own

        async with self._facade.open(self._config(), self._cluster.dsn(), POOL_SIZE) as opened:
            guard = opened.guard
            guard.on_event(hear)
            sides = (
                Side(GUARDED, opened.guarded, self.guarded, time.monotonic, opened.context),
                Side(CONTROL, opened.control, self.control, time.monotonic),
            )
            with self._view:
                drawing = asyncio.create_task(self._draw(guard.status))
                began = self.guarded.began = self.control.began = time.monotonic()
                try:
                    for side in sides:
                        side.start()
                    await self._failover.play(began)
                    await asyncio.gather(*(side.stop() for side in sides))
                finally:
                    drawing.cancel()
                    for side in sides:
                        await side.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await drawing
            self._proofs = Proofs.of(guard.status().counts)

    def judge(self) -> tuple[Figures, Figures]:
        """Read both tables back on the surviving primary, and compare; the guarded side first."""
        promoted = self._failover.promoted_at
        return (
            judge(self.guarded, self._rows(GUARDED), promoted, self._proofs),
            judge(self.control, self._rows(CONTROL), promoted),
        )

    def _config(self) -> dict[str, Any]:
        nodes = [{"name": node.name, "host": node.host, "port": node.port} for node in self._cluster.nodes]
        return {
            "nodes": nodes,
            "connection": {"user": USER, "database": "postgres"},
            "pool": {"min_size": 2, "max_size": POOL_SIZE},
            "outcome": {"resolve": "token-table" if self._tokens else "none"},
            "timeout": TIMEOUT,
        }

    async def _install_tokens(self) -> None:
        """Do what `dbguard outcome install --apply` does."""
        con = await asyncpg.connect(self._cluster.dsn(self._cluster.primary, user=USER))
        try:
            await con.execute(outcome_sql.schema() + outcome_sql.grants(USER))
        finally:
            await con.close()

    def _make_tables(self) -> None:
        cluster = self._cluster
        for table in (GUARDED, CONTROL):
            cluster.sql(cluster.primary, TABLE.format(table))
        # a commit waits until a replica has it, not until all have applied it
        for replica in cluster.replicas:
            cluster.wait_for(replica, f"SELECT to_regclass('{table}') IS NOT NULL")

    def _rows(self, table: str) -> dict[int, int]:
        query = f"SELECT value, count(*) FROM {table} GROUP BY value"  # noqa: S608  the demo's own name
        return {int(value): int(count) for value, count in self._cluster.sql(self._cluster.primary, query)}

    async def _draw(self, status: Callable[[], Status]) -> None:
        view = self._view
        while True:
            await asyncio.sleep(view.every)
            view.show(
                photograph(
                    self.guarded,
                    self.control,
                    status(),
                    now=time.monotonic(),
                    seconds=self._script.end,
                    down=self._failover.killed,
                    entries=[entry for entry in self.journal.entries if not entry.counted][-view.entries :],
                    width=view.width,
                )
            )

    def _step(self, step: str, node: str, text: str) -> None:
        at = time.monotonic() - self.guarded.began
        self.journal.add(Entry(at, "demo", text, {"step": step, "node": node}))

    def _event(self, event: Event) -> None:
        if event.severity >= SHOWN_FROM:
            at = event.at - self.guarded.began
            counted = isinstance(event, OutcomeLeftOpen | OutcomeResolved)
            self.journal.add(Entry(at, "guard", event.text(), event.as_dict(), counted=counted))


def _described(cluster: Cluster) -> str:
    version = cluster.sql(cluster.primary, "SELECT current_setting('server_version')")[0][0]
    return (
        f"PostgreSQL {str(version).split()[0]}, {WRITERS} writers and {READERS} readers on each side; a commit waits for "
        "one of the two replicas, so that what is acknowledged survives the kill"
    )


def _write(path: str, text: str) -> None:
    """Write a file. Raises `ConfigError` if that is not possible."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, while no loop runs: servers ended, terminal as it was."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> None:  # noqa: ARG001  a signal handler's signature
    raise SystemExit(128 + number)


async def _until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Run *work*; cancel it at SIGTERM, and raise SystemExit then.

    An exception raised in a signal handler would be lost where it meets a driver's callback, so none is raised here.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    terminated: list[int] = []

    def terminate(number: int, frame: object) -> None:  # noqa: ARG001  a signal handler's signature
        terminated.append(number)
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        await work
    except asyncio.CancelledError:
        if terminated:
            raise SystemExit(128 + terminated[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
