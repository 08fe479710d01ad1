"""A real PostgreSQL primary with streaming replicas on this machine, made to be broken.

    with Cluster() as cluster:                        # three nodes, streaming, in about a second
        cluster.sql(cluster.primary, "CREATE TABLE t (id int)")
        cluster.kill(cluster.primary)
        cluster.promote("b")
        cluster.follow("c", "b")
        cluster.rejoin("a")

``python -m dbguard.testing.cluster`` keeps one up by hand, with commands that break it.

For tests and demonstrations only: it does not sync to disk, and without *password* it trusts every user of this
machine. It listens on the loopback interface alone. Nothing stays behind, however the process ends (`Sandbox`).

All methods block and may be called from any thread; from a coroutine, through `asyncio.to_thread`. The cluster never
acts by itself: who kills a primary also promotes a replica, and tells the others whom to follow.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from dbguard.testing.admin import APPLICATION_NAME, Admin
from dbguard.testing.binaries import Binaries, find_binaries, reachable
from dbguard.testing.configuration import SETTINGS, conninfo, in_file, quoted
from dbguard.testing.node import ClusterNode, PortTaken, StopMode
from dbguard.testing.ports import claim_ports
from dbguard.testing.processes import ClusterError, RunAs, Sandbox

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["Cluster", "ClusterError", "ClusterNode"]

NAMES = "abcdefghij"
START_TIMEOUT = 30.0  # seconds for a server to take connections, or to stop
PORT_TRIES = 5
MEMORY_DIRECTORY = Path("/dev/shm")  # noqa: S108  a directory of its own with a random name is made in it
MEMORY_NEEDED = 2 * 2**30  # bytes that must be free there; a busy three-node cluster stays below 1.5 GiB (max_wal_size)


class Cluster:
    """A primary and its streaming replicas; a context manager.

    replicas: how many replicas, 0 to 9. Default 2.
    binaries: the PostgreSQL to run. Default: the best that `find_binaries` finds.
    synchronous: commits wait for any one replica (``synchronous_standby_names = 'ANY 1 (...)'``). Default: they do not.
    settings: server settings for all nodes, over the defaults in `SETTINGS`.
    base: where to make the cluster's directory; the user that PostgreSQL runs as must be able to enter it.
        Default: in memory (``/dev/shm``) if 2 GiB are free there, four times as fast to make; else the temporary directory.
    password: the superuser's password, asked for by SCRAM. Default None: everybody on this machine is trusted.
    """

    def __init__(
        self,
        *,
        replicas: int = 2,
        binaries: Binaries | None = None,
        synchronous: bool = False,
        settings: Mapping[str, str] | None = None,
        base: Path | None = None,
        password: str | None = None,
    ) -> None:
        if not 0 <= replicas < len(NAMES):
            raise ValueError(f"replicas must be 0 to {len(NAMES) - 1}, not {replicas}")
        self._names = NAMES[: replicas + 1]
        self._binaries = binaries
        self._settings = dict(SETTINGS)
        if synchronous and replicas:
            self._settings["synchronous_standby_names"] = f"ANY 1 ({', '.join(self._names)})"
        self._settings |= settings or {}
        self._base = base
        self._password = password
        self._lock = threading.Lock()  # guards the parts below while starting and stopping; each node has its own lock
        self._parts = contextlib.ExitStack()
        self._started = False
        self._owner = os.getpid()
        self._sandbox: Sandbox
        self._admin: Admin
        self._nodes: tuple[ClusterNode, ...] = ()
        self._primary: ClusterNode
        self._claims: list[socket.socket] = []

    # --- life

    def start(self) -> None:
        """Make the cluster and wait until all replicas stream.

        Raises BinariesNotFound, or ClusterError with what PostgreSQL said; nothing stays behind then.
        """
        with self._lock:
            if self._started:
                raise ClusterError("this cluster is started already")
            self._started = True
            self._owner = os.getpid()
        try:
            self._create()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill all servers and remove their directory; does nothing if there is nothing. Data is lost by design.

        Does nothing in a fork of the process that started it either: the cluster is not the fork's.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            parts, self._parts = self._parts, contextlib.ExitStack()
            self._started = False
        parts.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # --- what it is

    @property
    def nodes(self) -> tuple[ClusterNode, ...]:
        """All nodes: ``a``, the first primary, then ``b``, ``c``, ..."""
        if not self._nodes:
            raise ClusterError("this cluster was not started")
        return self._nodes

    @property
    def primary(self) -> ClusterNode:
        """The node last promoted through this class, or ``a``: running or not, and whatever others did behind it."""
        return self.node(self._primary) if self._nodes else self.nodes[0]

    @property
    def replicas(self) -> tuple[ClusterNode, ...]:
        """The nodes set up as replicas, running or not. A primary of old is none until it has rejoined."""
        return tuple(node for node in self.nodes if node is not self._primary and node.is_replica)

    def node(self, node: ClusterNode | str) -> ClusterNode:
        """Find a node by name. Raises ClusterError if there is none, or if it belongs to another cluster."""
        for known in self.nodes:
            if node in (known, known.name):
                return known
        raise ClusterError(f"no node {node} in this cluster; there are {', '.join(self._names)}")

    def dsn(self, *names: ClusterNode | str, user: str = "postgres", database: str = "postgres") -> str:
        """Write a ``postgresql://`` DSN of the named nodes, or of all of them.

        The password is in it if the cluster was given one and *user* is the superuser; others have their own.
        """
        hosts = ",".join(f"{node.host}:{node.port}" for node in map(self.node, names or self.nodes))
        password = f":{quote(self._password, safe='')}" if self._password and user == "postgres" else ""
        return f"postgresql://{quote(user, safe='')}{password}@{hosts}/{quote(database, safe='')}"

    # --- what can happen to a node

    def kill(self, node: ClusterNode | str) -> None:
        """SIGKILL all of the node's processes at once, as a power cut would: nothing is flushed, nobody is told."""
        self.node(node).kill()

    def stop_node(self, node: ClusterNode | str, mode: StopMode = "fast", *, timeout: float = START_TIMEOUT) -> None:
        """Stop a node as an administrator does; *mode* as in ``pg_ctl stop``. Raises ClusterError after *timeout* s."""
        self.node(node).stop(mode, timeout)

    def start_node(self, node: ClusterNode | str, *, timeout: float = START_TIMEOUT) -> None:
        """Start a node as it is, in the role it had: a primary of old comes back as one.

        Raises ClusterError with the tail of its log if it does not take connections within *timeout* seconds.
        """
        self.node(node).start(timeout)

    def freeze(self, node: ClusterNode | str) -> None:
        """SIGSTOP all of the node's processes: its connections stay open, nothing answers."""
        self.node(node).freeze()

    def thaw(self, node: ClusterNode | str) -> None:
        """Let a frozen node run on."""
        self.node(node).thaw()

    def promote(self, node: ClusterNode | str) -> float:
        """Make a replica the primary; return the seconds until it took writes.

        The other replicas are not told: use `follow`. Nothing happens to a primary that still runs.
        """
        node = self.node(node)
        seconds = self._admin.promote(node, START_TIMEOUT)
        self._primary = node
        return seconds

    def follow(
        self, node: ClusterNode | str, upstream: ClusterNode | str, *, host: str | None = None, port: int | None = None
    ) -> None:
        """Point a replica, running or not, at an upstream. A node that is down becomes a replica by it.

        host, port: where to reach the upstream instead, such as a proxy's address.
        Raises ClusterError if the node runs as a primary: `rejoin` it.
        """
        node, upstream = self.node(node), self.node(upstream)
        target = self._conninfo(upstream, node.name, host=host, port=port)
        if not node.running:
            self._write_upstream(node, target)
            return
        if not node.is_replica:
            raise ClusterError(f"{node} runs as a primary and follows nobody; rejoin it, or stop it first")
        self.sql(node, f"ALTER SYSTEM SET primary_conninfo = {quoted(target)}")
        self.sql(node, "SELECT pg_reload_conf()")

    def rejoin(self, node: ClusterNode | str) -> Literal["rewind", "copy"]:
        """Bring back a node, whatever it went through, as a streaming replica of the primary. Its own writes are lost.

        pg_rewind first, as administrators do; a fresh base backup where that is not possible. Returns which it was.
        """
        node, primary = self.node(node), self.primary
        if node is primary:
            raise ClusterError(f"{node} is the primary; start it, or promote another node first")
        if node.frozen:
            node.kill()  # not thawed: it would acknowledge the writes that wait on it
        elif node.running:
            node.stop("fast", START_TIMEOUT)
        try:
            self._rewind(node, primary)
            self._stream(node, primary)
        except (ClusterError, TimeoutError):
            if node.running:
                node.kill()
            self._copy(node, primary)
            self._stream(node, primary)
            return "copy"
        return "rewind"

    def pause_replay(self, node: ClusterNode | str) -> None:
        """Let a replica receive but not apply; return once it has stopped applying."""
        self.sql(node, "SELECT pg_wal_replay_pause()")
        self.wait_for(node, "SELECT pg_get_wal_replay_pause_state() = 'paused'")

    def resume_replay(self, node: ClusterNode | str) -> None:
        """Let a replica apply again."""
        self.sql(node, "SELECT pg_wal_replay_resume()")

    def terminate_backends(self, node: ClusterNode | str, *, where: str = "true") -> int:
        """End client connections as an administrator does (57P01); return how many.

        where: an SQL condition on the columns of ``pg_stat_activity``. The harness's own connections are spared.
        """
        return int(
            self.sql(
                node,
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"  # noqa: S608  a test's own
                f" WHERE backend_type = 'client backend' AND application_name <> '{APPLICATION_NAME}' AND ({where})",
            )[0][0]
        )

    # --- asking

    def sql(
        self,
        node: ClusterNode | str,
        query: str,
        *args: Any,
        database: str = "postgres",
        timeout: float = START_TIMEOUT,
    ) -> list[tuple[Any, ...]]:
        """Run one statement on that very node as superuser, in autocommit, on a connection of its own.

        timeout: seconds, connecting included. Default 30.
        Raises asyncpg's exceptions, OSError if the node is down, TimeoutError.
        """
        return self._admin.query(self.node(node), query, args, database, timeout)

    def wait_for(self, node: ClusterNode | str, query: str, timeout: float = 20.0) -> None:
        """Wait until the first column of *query*'s first row is true; errors count as not yet.

        Raises TimeoutError with the last answer after *timeout* seconds.
        """
        self._admin.wait_for(self.node(node), query, timeout)

    def wait_streaming(self, timeout: float = 20.0) -> None:
        """Wait until every running replica streams from the primary. Raises TimeoutError after *timeout* seconds."""
        self._wait_streaming([node for node in self.replicas if node.running and not node.frozen], timeout)

    # --- making it

    def _create(self) -> None:
        run_as = RunAs.detect()
        binaries = reachable(self._binaries or find_binaries(), run_as)
        self._parts.callback(self._release)  # the last: when the servers are gone
        self._sandbox = Sandbox(run_as, below=self._base or _fast_directory())
        self._parts.callback(self._sandbox.close)
        self._admin = Admin(self._password)
        self._parts.callback(self._admin.close)
        self._tool = binaries.program
        self._initdb(self._sandbox.path / self._names[0])
        # a data directory that was shut down cleanly is a base backup; cp, run by the user, keeps what it needs to keep
        copies = (("cp", "-Rp", self._names[0], name) for name in self._names[1:])
        _all_at_once(self._sandbox.run, copies)
        for tried in range(PORT_TRIES):
            self._claim(binaries)
            try:
                _all_at_once(lambda node: node.start(START_TIMEOUT), self._nodes)
                break
            except PortTaken:
                if tried == PORT_TRIES - 1:
                    raise
                for node in self._nodes:
                    if node.running:
                        node.kill()
        self.wait_streaming()

    def _initdb(self, data: Path) -> None:
        argv: list[str | Path] = [self._tool("initdb"), "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C"]
        argv += ["--data-checksums", "--no-sync"]
        if self._password is None:
            argv += ["-A", "trust"]
        else:
            file = self._sandbox.path / "password"
            file.touch(0o600)
            file.write_text(self._password + "\n")
            self._sandbox.run_as.own(file)
            argv += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={file}"]
        self._sandbox.run(argv)
        with (data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = {in_file(value)}\n" for name, value in self._settings.items())

    def _claim(self, binaries: Binaries) -> None:
        """Give the nodes ports and upstreams."""
        self._release()
        self._claims = claim_ports(len(self._names))
        self._nodes = tuple(
            ClusterNode(name, claim.getsockname()[1], binaries, self._sandbox)
            for name, claim in zip(self._names, self._claims, strict=True)
        )
        self._primary, *replicas = self._nodes
        for replica in replicas:
            self._write_upstream(replica, self._conninfo(self._primary, replica.name))

    def _release(self) -> None:
        """Collect the exits of the killed servers, and give up their ports."""
        for node in self._nodes:
            node.gone()
        for claim in self._claims:
            claim.close()

    def _conninfo(
        self, upstream: ClusterNode, application_name: str, *, host: str | None = None, port: int | None = None
    ) -> str:
        return conninfo(
            host=host or upstream.host,
            port=str(port or upstream.port),
            user="postgres",
            dbname="postgres",
            connect_timeout="5",
            application_name=application_name,
            password=self._password or "",
        )

    def _write_upstream(self, node: ClusterNode, target: str) -> None:
        """Make a node that is down a replica; ALTER SYSTEM writes to the same file."""
        conf, flag = node.data / "postgresql.auto.conf", node.data / "standby.signal"
        lines = [line for line in conf.read_text().splitlines() if not line.startswith("primary_conninfo")]
        conf.write_text("\n".join([*lines, f"primary_conninfo = {in_file(target)}", ""]))
        flag.touch()
        self._sandbox.run_as.own(flag)

    # --- rejoining

    def _rewind(self, node: ClusterNode, primary: ClusterNode) -> None:
        state = self._sandbox.run([self._tool("pg_controldata"), "-D", node.data])
        if node.is_replica and not re.search(r"state: +shut down", state):
            # pg_rewind recovers a crashed primary by itself, but not a replica
            node.start(START_TIMEOUT)
            node.stop("fast", START_TIMEOUT)
        # else the new timeline is not in the source's control file yet, and pg_rewind finds nothing to do
        self.sql(primary, "CHECKPOINT")
        source = self._conninfo(primary, APPLICATION_NAME)
        argv: list[str | Path] = [
            self._tool("pg_rewind"),
            "--no-sync",
            f"--target-pgdata={node.data}",
            f"--source-server={source}",
        ]
        self._sandbox.run(argv)

    def _copy(self, node: ClusterNode, primary: ClusterNode) -> None:
        shutil.rmtree(node.data)
        source = self._conninfo(primary, APPLICATION_NAME)
        argv: list[str | Path] = [self._tool("pg_basebackup"), "-d", source, "-D", node.data]
        argv += ["-X", "stream", "-c", "fast", "--no-sync"]
        self._sandbox.run(argv)

    def _stream(self, node: ClusterNode, primary: ClusterNode) -> None:
        self._write_upstream(node, self._conninfo(primary, node.name))
        node.start(START_TIMEOUT)
        self._wait_streaming([node], timeout=START_TIMEOUT)

    def _wait_streaming(self, replicas: list[ClusterNode], timeout: float) -> None:
        names = ", ".join(quoted(node.name) for node in replicas) or "NULL"
        query = (
            f"SELECT count(DISTINCT application_name) = {len(replicas)} FROM pg_stat_replication"  # noqa: S608  our names
            f" WHERE state = 'streaming' AND application_name IN ({names})"
        )
        self.wait_for(self.primary, query, timeout)


def _fast_directory() -> Path:
    with contextlib.suppress(OSError):
        if (
            shutil.disk_usage(MEMORY_DIRECTORY).free >= MEMORY_NEEDED
            and MEMORY_DIRECTORY.stat().st_mode & 0o1777 == 0o1777
        ):
            return MEMORY_DIRECTORY
    return Path(tempfile.gettempdir())


def _all_at_once(do: Callable[[Any], object], over: Iterable[Any]) -> None:
    """Call *do* for each, in threads. Raises the first error, but a taken port before all others."""
    with ThreadPoolExecutor(len(NAMES)) as pool:
        futures = [pool.submit(do, item) for item in over]
    errors = [e for future in futures if (e := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda e: not isinstance(e, PortTaken))


if __name__ == "__main__":
    from dbguard.testing.prompt import main

    sys.exit(main())
