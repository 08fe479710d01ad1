"""What a scenario can break by too much of something: connections, cancelled calls, locks, changes of the table.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import asyncpg

from chaos.clients.base import CLIENTS_NAME
from chaos.faults.base import Breakage
from chaos.interruptions import Storm
from chaos.stage import Stage
from dbguard.config.quantities import Duration, Number
from dbguard.config.values import Choice, Text
from dbguard.testing.cluster import ClusterNode
from dbguard.testing.proxied import ProxiedCluster

__all__ = ["Cancel", "Conflict", "Connections", "Ddl"]

_CROWD = "dbguard-chaos-crowd"  # the application_name of the sessions that fill a node
_PATIENCE = 5.0  # seconds for a server on this machine to answer
_RUTHLESS = {"max_standby_streaming_delay": "0", "hot_standby_feedback": "off"}  # of a replica that replays
_LOCKS = 5  # times that the table is locked between two vacuums
_APART = 0.04  # seconds from one lock to the next: most reads come through, and none of them again and again not
_AGAIN = 0.01  # seconds between two tries to take what has become free

_IN_THE_WAY = 0.5  # seconds that a read takes which is to be ended
_AWAY = (OSError, asyncpg.PostgresError)  # another fault has the primary: what it is told again does no harm

_LAST = """
    SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum DESC LIMIT 1
"""

_END = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}'"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Connections(Breakage):
    """A node has no connection left: idle sessions of others take all it allows, and what the clients had is ended."""

    node: Annotated[str, Text()]
    """Which. No default."""

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Take all connections, and go on taking each that becomes free."""
        return self._filled(stage)

    @contextmanager
    def _filled(self, stage: Stage) -> Iterator[str]:
        node = stage.node(self.node)
        with ExitStack() as sessions:
            until = time.monotonic() + _PATIENCE
            while (first := _session(node)) is None:  # filled by another fault
                if time.monotonic() > until:
                    raise TimeoutError(f"{node} has had no room for {_PATIENCE:g} s")
                time.sleep(_AGAIN)
            sessions.enter_context(first)
            _fill(node, sessions)
            _ask(first, _END)

            def go_on(over: threading.Event) -> None:
                while not over.wait(_AGAIN):
                    with suppress(OSError):  # another fault has the node
                        _fill(node, sessions)

            with _meanwhile(go_on):
                yield f"no connection left on {node.name}"

    def effect(self, stage: Stage) -> str | None:
        """Say that the node turns away whoever comes."""
        if (session := _session(stage.node(self.node))) is None:
            return "53300"
        session.close()
        return None

    def names(self) -> dict[str, str]:
        """Return the node."""
        return {"node": self.node}

    def __str__(self) -> str:
        return f"no connection left on {self.node}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Cancel(Breakage):
    """Callers give up calls at random points: they cancel them, or where that cannot be done, give them that little time."""

    in_calls: ClassVar[bool] = True
    share: Annotated[float, Number(0, 1)] = 0.3
    """The share of calls that are given up, 0 to 1. Default 0.3."""
    within: Annotated[float, Duration(above=True)] = 0.02
    """Seconds after its beginning by which such a call is given up, at random, above 0. Default 20 ms."""

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Begin to give up calls."""
        return self._storm(stage)

    @contextmanager
    def _storm(self, stage: Stage) -> Iterator[None]:
        calls = stage.application.calls
        assert calls is not None, "this run has no calls that could be given up"
        calls.storm = Storm(self.share, self.within, stage.chance)
        stage.application.counted[self] = -calls.given_up
        try:
            yield
        finally:
            calls.storm = None

    def effect(self, stage: Stage) -> str | None:
        """Say how many calls were given up."""
        calls = stage.application.calls
        given_up = 0 if calls is None else calls.given_up + stage.application.counted[self]
        return f"{given_up} calls given up" if given_up else None

    @property
    def tells(self) -> bool:
        """It does."""
        return True

    def __str__(self) -> str:
        return f"{self.share:.0%} of calls given up within {self.within:g} s"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Conflict(Breakage):
    """What replicas replay conflicts with their reads, and wins at once (40001).

    On the primary the table is locked, and rows are changed and vacuumed, again and again; replicas neither wait for their
    reads nor tell the primary of them.
    """

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Begin."""
        return self._conflicts(stage)

    @contextmanager
    def _conflicts(self, stage: Stage) -> Iterator[None]:
        cluster, table = stage.cluster, stage.application.table
        some = f"SELECT ctid FROM {table} LIMIT 20"
        lock = f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; COMMIT; PERFORM pg_sleep({_APART});"
        statements = (
            f"DO $$BEGIN FOR n IN 1..{_LOCKS} LOOP {lock} END LOOP; END$$",
            f"UPDATE {table} SET key = key WHERE ctid = ANY (ARRAY({some}))",
            f"VACUUM {table}",
        )

        def go_on(over: threading.Event) -> None:
            while not over.wait(_AGAIN):
                with suppress(*_AWAY):
                    for statement in statements:
                        cluster.sql(cluster.primary, statement)

        with ExitStack() as settings:
            for node in stage.replicas():
                settings.callback(stage.undo, node, partial(_tell, cluster, node, "RESET {}"))
                _tell(cluster, node, "SET {} = {}")
            stage.application.counted[self] = -_cancelled(stage)
            with _meanwhile(go_on):
                yield

    def effect(self, stage: Stage) -> str | None:
        """Say how many reads it has ended; where no client was in the way, one of the harness's own is put there."""
        if not (ended := _cancelled(stage) + stage.application.counted[self]) and (replicas := stage.replicas()):
            with suppress(*_AWAY):
                stage.cluster.sql(replicas[0], f"SELECT pg_sleep({_IN_THE_WAY}) FROM {stage.application.table} LIMIT 1")
            ended = _cancelled(stage) + stage.application.counted[self]
        return f"{ended} reads ended" if ended else None

    @property
    def tells(self) -> bool:
        """It does."""
        return True

    def __str__(self) -> str:
        return "recovery conflicts on the replicas"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Ddl(Breakage):
    """The workload's table is changed again and again, and is as it was afterwards."""

    what: Annotated[Literal["column", "type", "index"], Choice(Literal["column", "type", "index"])]
    """column: one is added and dropped; type: that of the values is changed from bigint to integer and back, so that what
    statements return changes; index: one is made and dropped. No default."""

    def inject(self, stage: Stage) -> AbstractContextManager[object]:
        """Begin to change it."""
        return self._changing(stage)

    @contextmanager
    def _changing(self, stage: Stage) -> Iterator[None]:
        cluster = stage.cluster
        there, back = self._statements(stage)
        stage.application.counted[self] = 0

        def go_on(over: threading.Event) -> None:
            while not over.wait(_AGAIN):
                with suppress(*_AWAY):
                    cluster.sql(cluster.primary, there)
                    stage.application.counted[self] += 1
                    cluster.sql(cluster.primary, back)

        try:
            with _meanwhile(go_on):
                yield
        finally:
            stage.undo(cluster.primary, lambda: cluster.sql(cluster.primary, back))

    def _statements(self, stage: Stage) -> tuple[str, str]:
        table = stage.application.table
        match self.what:
            case "column":
                return (
                    f"ALTER TABLE {table} ADD IF NOT EXISTS extra int DEFAULT 1",
                    f"ALTER TABLE {table} DROP IF EXISTS extra",
                )
            case "index":
                return (
                    f"CREATE INDEX IF NOT EXISTS {table}_extra ON {table} (key)",
                    f"DROP INDEX IF EXISTS {table}_extra",
                )
            case "type":
                ((name, kind),) = stage.cluster.sql(stage.cluster.primary, _LAST, table)
                change = f"ALTER TABLE {table} ALTER {name} TYPE"
                return f"{change} {kind.replace('bigint', 'integer')}", f"{change} {kind}"

    def effect(self, stage: Stage) -> str | None:
        """Say how often it was changed."""
        return f"changed {stage.application.counted[self]} times" if stage.application.counted[self] else None

    @property
    def tells(self) -> bool:
        """It does."""
        return True

    def __str__(self) -> str:
        return f"{self.what} of the table changes"


@contextmanager
def _meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do *work* in a thread until this is left; it is told by the event. Raises what it raised."""
    over = threading.Event()
    with ThreadPoolExecutor(1, "chaos-storm") as thread:
        done = thread.submit(work, over)
        try:
            yield
        finally:
            over.set()
            done.result()


def _cancelled(stage: Stage) -> int:
    """Return how many reads recovery has ended on the replicas so far, by their logs: their statistics are late."""
    return sum(node.log.read_bytes().count(b"due to conflict with recovery") for node in stage.replicas())


def _tell(cluster: ProxiedCluster, node: ClusterNode, what: str) -> None:
    """Change the settings that make a replica wait for nobody; *what* is to be done with each, and its value."""
    for name, value in _RUTHLESS.items():
        cluster.sql(node, f"ALTER SYSTEM {what.format(name, value)}")
    cluster.sql(node, "SELECT pg_reload_conf()")


def _fill(node: ClusterNode, sessions: ExitStack) -> None:
    """Open sessions until the node has no room for another."""
    while (session := _session(node)) is not None:
        sessions.enter_context(session)


def _session(node: ClusterNode) -> socket.socket | None:
    """Open an idle session, past all proxies; None if the node has no room for it. Raises OSError otherwise."""
    connection = socket.create_connection((node.host, node.port), _PATIENCE)
    said = f"user\0postgres\0database\0postgres\0application_name\0{_CROWD}\0\0".encode()
    try:
        connection.sendall(struct.pack("!ii", len(said) + 8, 3 << 16) + said)
        error = _answer(connection)
    except BaseException:
        connection.close()
        raise
    if error is None:
        return connection
    connection.close()
    if b"C53300\0" not in error:
        raise OSError(f"{node}: {error!r}")
    return None


def _ask(session: socket.socket, query: str) -> None:
    """Run a statement in a session. Raises OSError if the server does not like it."""
    said = query.encode() + b"\0"
    session.sendall(b"Q" + struct.pack("!i", len(said) + 4) + said)
    if (error := _answer(session)) is not None:
        raise OSError(f"{query}: {error!r}")


def _answer(session: socket.socket) -> bytes | None:
    """Read until the server is ready for a statement; None, or its error."""
    with session.makefile("rb") as replies:
        while True:
            head = replies.read(5)
            if len(head) < 5:
                raise ConnectionError("the server ended the session")
            kind, length = struct.unpack("!ci", head)
            body = replies.read(length - 4)
            if kind == b"E":
                return body
            if kind == b"Z":
                return None
