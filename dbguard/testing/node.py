"""One PostgreSQL server of a local cluster: its directory, its port and its processes."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Literal

from dbguard.testing import processes
from dbguard.testing.processes import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from dbguard.testing.binaries import Binaries
    from dbguard.testing.processes import Sandbox

__all__ = ["ClusterNode", "PortTaken", "StopMode"]

StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_LOG_TAIL = 12  # lines of the log that a failed start shows
_POLL = 0.005  # seconds between two looks at a server that is starting


class PortTaken(ClusterError):
    """Another program listens on the node's port."""


class ClusterNode:
    """One server. `Cluster` makes it and has the operations; this is also what a test reads.

    name: ``a``, ``b``, ...; also its cluster_name, and its application_name as a replica.
    host: ``127.0.0.1``.
    port: its TCP port; the same for the cluster's whole life.
    data: its data directory.
    log: its log file, kept over restarts.
    """

    host = "127.0.0.1"

    def __init__(self, name: str, port: int, binaries: Binaries, sandbox: Sandbox) -> None:
        self.name = name
        self.port = port
        self.data = sandbox.path / name
        self.log = sandbox.path / f"{name}.log"
        self._binaries = binaries
        self._sandbox = sandbox
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        # guards the two above; held while starting and stopping, so that two threads do not do it at once
        self._lock = threading.RLock()

    def __str__(self) -> str:
        return f"{self.name} ({self.host}:{self.port})"

    __repr__ = __str__

    @property
    def running(self) -> bool:
        """Whether its postmaster lives (a frozen one does)."""
        return (process := self._process) is not None and process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether it was frozen and not thawed since."""
        return self._frozen and self.running

    @property
    def is_replica(self) -> bool:
        """Whether it is set up as a replica, running or not. A primary of old is none until it has rejoined."""
        return (self.data / "standby.signal").exists()

    def start(self, timeout: float) -> None:
        """Start the server and wait until it takes connections.

        Raises PortTaken, or ClusterError with the tail of the log, if it does not within *timeout* seconds.
        """
        with self._lock:
            if self.running:
                raise ClusterError(f"{self} is running already")
            self._frozen = False
            self._reap()
            options = {
                "port": self.port,
                "cluster_name": self.name,
                "listen_addresses": self.host,
                "unix_socket_directories": "",
            }
            # on the command line, as pg_rewind overwrites a node's configuration files with those of its source
            argv: list[str | Path] = [self._binaries.program("postgres"), "-D", self.data]
            argv += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
            with self.log.open("ab") as log:
                begin = log.tell()
                self._process = process = self._sandbox.start(argv, output=log)
            end = time.monotonic() + timeout
            while not self._is_ready(process.pid):
                if process.poll() is not None:
                    self._reap()
                    raise self._start_failed(f"did not start (exit code {process.returncode})", begin)
                if time.monotonic() > end:
                    self.kill()
                    raise self._start_failed(f"was not ready within {timeout:g} s and was killed", begin)
                time.sleep(_POLL)

    def stop(self, mode: StopMode, timeout: float) -> None:
        """Stop the server as ``pg_ctl stop -m`` does. Raises ClusterError if it does not within *timeout* seconds."""
        with self._lock:
            process = self._alive()
            if self._frozen:
                raise ClusterError(f"{self} is frozen and cannot stop; thaw it first, or kill it")
            process.send_signal(_STOP_SIGNALS[mode])
            try:
                self._reap(timeout)
            except subprocess.TimeoutExpired:
                raise ClusterError(f"{self} did not stop ({mode}) within {timeout:g} s\n{self.log_tail()}") from None

    def kill(self) -> None:
        """SIGKILL all of its processes at once: they are all stopped first, so that nothing is flushed or said."""
        with self._lock:
            process = self._alive()
            processes.kill_tree(process.pid)
            self._reap()
            self._frozen = False

    def freeze(self) -> None:
        """SIGSTOP all of its processes: connections stay open, nothing answers."""
        with self._lock:
            processes.freeze_tree(self._alive().pid)
            self._frozen = True

    def thaw(self) -> None:
        """Let a frozen server run on."""
        with self._lock:
            processes.thaw_tree(self._alive().pid)
            self._frozen = False

    def gone(self) -> None:
        """Collect the exit of a server that the sandbox has killed."""
        with self._lock:
            self._reap()

    def log_tail(self, begin: int = 0) -> str:
        """Return the last lines of its log, from the byte *begin* on."""
        if not self.log.exists():
            return f"(no log at {self.log})"
        with self.log.open("rb") as log:
            log.seek(begin)
            lines = log.read().decode(errors="replace").splitlines()[-_LOG_TAIL:]
        return "\n".join([f"end of {self.log}:", *lines])

    def _alive(self) -> subprocess.Popen[bytes]:
        """Lock held."""
        if self._process is None or self._process.poll() is not None:
            raise ClusterError(f"{self} is not running")
        return self._process

    def _reap(self, timeout: float | None = None) -> None:
        """Lock held. Collect the exit of the present process, if there is one."""
        if self._process is not None:
            self._sandbox.reap(self._process, timeout)
            self._process = None

    def _is_ready(self, pid: int) -> bool:
        """As pg_ctl finds out: line 1 of postmaster.pid is whose it is, line 8 how far the server is."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _start_failed(self, what: str, begin: int) -> ClusterError:
        tail = self.log_tail(begin)
        kind = PortTaken if "Address already in use" in tail else ClusterError
        return kind(f"{self} {what}; {tail}")
