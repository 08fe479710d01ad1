"""What a scenario can do inside a server: end and crash sessions, pause what a replica applies, and run statements.

(Annotations are evaluated here, since `Section` reads the rules in them.)
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Annotated, Self

from chaos.clients import CLIENTS_NAME
from chaos.faults.base import Breakage, Nothing
from chaos.stage import Stage
from dbguard.config.quantities import Flag, Number
from dbguard.config.values import Fault, Text
from dbguard.testing.cluster import ClusterNode

__all__ = ["Crash", "PauseReplay", "Sql", "Terminate"]

_BACKENDS = f"SELECT pid FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}' ORDER BY backend_start, pid"
_END = f"""
    WITH ours AS MATERIALIZED (
        SELECT pid, state <> 'idle' AS working, count(*) OVER () AS of,
            row_number() OVER (ORDER BY state = 'idle', md5(pid || $1::text)) AS n
        FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}' AND state IS NOT NULL
    ), ended AS MATERIALIZED (
        SELECT working, pg_terminate_backend(pid) AS gone FROM ours
        WHERE n <= greatest(1, round(of * $2::float8)) AND (NOT $3::bool OR (SELECT bool_or(working) FROM ours))
    )
    SELECT (SELECT count(*) FROM ended WHERE gone), (SELECT count(*) FROM ours), coalesce(bool_or(working), false) FROM ours
"""
"""Ends some of the client's sessions, those at work first: just looked at, as a call lasts for a millisecond. With $3 it
ends none unless one is at work."""

_WORKING = 0.5  # seconds to wait for a session at work
_LOOK = 0.005  # seconds between two looks
_UP = 30.0  # seconds for a server to take connections again after one of its sessions crashed; usually 0.2
_SHOWS = 5.0  # seconds for what was done to show on the server


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class _InServer(Breakage):
    """Something that is done inside one server."""

    node: Annotated[str, Text()] = "primary"
    """Where, by letter or role. Default the primary."""

    def resolved(self, stage: Stage) -> Self:
        """Return it with the node's letter."""
        return replace(self, node=stage.node(self.node).name)

    def names(self) -> dict[str, str]:
        """Return the node."""
        return {"node": self.node}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Terminate(_InServer):
    """Sessions of the client are ended as an administrator does (57P01), those first that are at work."""

    momentary = True
    share: Annotated[float, Number(0, 1)] = 1.0
    """The share of them that is ended, 0 to 1, at least one; who of those at work, and of the others, the run's seed
    decides. If none is at work it waits for one, up to 0.5 s. Default 1: all."""

    def inject(self, stage: Stage) -> AbstractContextManager[str]:
        """End them."""
        return contextlib.nullcontext(self._end(stage))

    def _end(self, stage: Stage) -> str:
        node, salt = stage.node(self.node), stage.chance.random()
        until = time.monotonic() + _WORKING
        while True:
            patient = time.monotonic() < until
            ((ended, of, working),) = stage.cluster.sql(node, _END, str(salt), self.share, patient)
            if working or not patient:
                said = f"{ended} of {of} sessions on {node.name} ended"
                return said if ended else Nothing(said)
            time.sleep(_LOOK)

    def __str__(self) -> str:
        return f"{self.share:.0%} of the sessions on {self.node} ended"


class Crash(_InServer):
    """One session of the client is killed by SIGKILL: its server ends all others, recovers, and goes on."""

    __slots__ = ()
    momentary = True

    def inject(self, stage: Stage) -> AbstractContextManager[str]:
        """Kill it."""
        return self._crashed(stage)

    @contextlib.contextmanager
    def _crashed(self, stage: Stage) -> Iterator[str]:
        node = stage.node(self.node)
        pids = [pid for (pid,) in stage.cluster.sql(node, _BACKENDS)]
        if pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(stage.chance.choice(pids), signal.SIGKILL)
        yield f"session on {node.name} crashed" if pids else Nothing(f"no session on {node.name} to crash")
        if node.running and not node.frozen:
            stage.cluster.wait_for(node, "SELECT true", _UP)

    def __str__(self) -> str:
        return f"session on {self.node} crashed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PauseReplay(_InServer):
    """A replica receives, and does not apply: it serves what is older and older."""

    node: Annotated[str, Text()] = "replica"
    """Which, by letter or role. Default the first replica by name that runs."""

    def inject(self, stage: Stage) -> AbstractContextManager[str]:
        """Pause it."""
        return self._paused(stage)

    @contextlib.contextmanager
    def _paused(self, stage: Stage) -> Iterator[str]:
        node = stage.node(self.node)
        stage.cluster.pause_replay(node)
        try:
            yield f"replay on {node.name} paused"
        finally:
            resume = "SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery()"  # by now it may be the primary
            stage.undo(node, lambda: stage.cluster.sql(node, resume))

    def effect(self, stage: Stage) -> str | None:
        """Say whether something has come that is not applied."""
        try:
            stage.cluster.wait_for(self.node, "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()", _SHOWS)
        except TimeoutError:
            return None
        return f"{self.node} has not applied what it received"

    def _contradictions(self) -> list[Fault]:
        return [(("node",), "should be a replica: a primary replays nothing")] if self.node == "primary" else []

    @property
    def tells(self) -> bool:
        """It does."""
        return True

    def __str__(self) -> str:
        return f"replay on {self.node} paused"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Sql(_InServer):
    """A statement of the superuser, and another that undoes what it did; each in autocommit."""

    do: Annotated[str, Text()]
    """What is done, such as ``ALTER SYSTEM SET ...``. No default."""
    undo: Annotated[str, Text(empty=True)] = ""
    """What undoes it, on the same node. Default nothing."""
    reload: Annotated[bool, Flag()] = False
    """Whether the server reads its configuration again after each of the two. Default no."""
    shows: Annotated[str, Text(empty=True)] = ""
    """A query that is true once it has worked, where clients do not feel it by itself. Default none."""

    def inject(self, stage: Stage) -> AbstractContextManager[str]:
        """Do it."""
        return self._done(stage)

    @contextlib.contextmanager
    def _done(self, stage: Stage) -> Iterator[str]:
        node = stage.node(self.node)
        try:
            self._run(stage, node, self.do)
            yield f"{self.do} on {node.name}"
        finally:
            if self.undo:
                stage.undo(node, lambda: self._run(stage, node, self.undo))

    def effect(self, stage: Stage) -> str | None:
        """Say whether it has worked."""
        if not self.shows:
            return None
        try:
            stage.cluster.wait_for(self.node, self.shows, _SHOWS)
        except TimeoutError:
            return None
        return f"{self.shows} on {self.node}"

    @property
    def tells(self) -> bool:
        """Whether it has been told how that shows."""
        return bool(self.shows)

    def _run(self, stage: Stage, node: ClusterNode, statement: str) -> None:
        stage.cluster.sql(node, statement)
        if self.reload:
            stage.cluster.sql(node, "SELECT pg_reload_conf()")

    def __str__(self) -> str:
        return f"{self.do} on {self.node}"
