"""Programs that leave nothing behind: run as an unprivileged user, watched, gone with their directory.

A `Sandbox` is a directory and the programs that live in it. Three rules hold:

* Each program runs in a session of its own, so a terminal's Ctrl-C reaches the test first and not the server.
* PostgreSQL's children leave their parent's process group, so a group is not enough to find them: the table of all
  processes is read, and a program means its group *and* all its descendants.
* A watchdog, this file run as a script, waits on a pipe for the end of its parent: a normal end, an exception, a
  Ctrl-C and a SIGKILL look the same to it. It then ends the programs and removes the directory. It is the only way in
  which a sandbox is cleared, so it is proven by every test. (PR_SET_PDEATHSIG was rejected: it fires when the *thread*
  that started the program ends.)
* There is no moment in which a program runs and the watchdog does not know it: a shell waits at a gate, under the id
  that the program will have, until the watchdog was told. If this process dies before that, the gate never opens.

Standard library only: the watchdog starts without site-packages, in some 40 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ClusterError", "RunAs", "Sandbox", "freeze_tree", "kill_tree", "thaw_tree"]

USER_VARIABLE = "DBGUARD_PG_USER"
_GRACE = 30.0  # seconds for a process to obey SIGKILL or SIGSTOP, or for a directory to go
_PAUSE = 0.005  # seconds between two looks at the table of processes
_GATE = ("/bin/sh", "-c", 'read -r _ && exec "$0" "$@" </dev/null')  # end of file: no exec


class ClusterError(RuntimeError):
    """A local cluster could not do what it was asked to; the message says which node and why."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that PostgreSQL runs as; PostgreSQL refuses to run as root.

    name: the user's name; None: whoever runs this process. initdb wants a *named* user, so a bare id does not do.
    """

    name: str | None = None
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def detect(cls) -> RunAs:
        """Choose the user: the caller, or for root ``DBGUARD_PG_USER``, ``postgres`` or ``nobody``, the first there is.

        Raises ClusterError if ``DBGUARD_PG_USER`` names nobody or root, or if no user is fit.
        """
        if os.geteuid() != 0:
            return cls()
        asked = os.environ.get(USER_VARIABLE)
        for name in (asked,) if asked else ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                if entry.pw_uid:
                    return cls(name, entry.pw_uid, entry.pw_gid)
        raise ClusterError(
            f"{USER_VARIABLE}={asked}: no such unprivileged user"
            if asked
            else f"PostgreSQL refuses to run as root, and there is no user postgres or nobody; set {USER_VARIABLE}"
        )

    def own(self, path: Path) -> None:
        """Give *path* to the user; nothing to do where the user is the caller."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        output: IO[bytes] | int,
        input: int = subprocess.DEVNULL,  # noqa: A002  the pair of output
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program as the user, in a session of its own, without PG* variables and in the C locale.

        output: where its standard output and error go: a file, not a pipe (a server's children would hold it open).
        input: its standard input. Default: nothing.
        Raises ClusterError if the user may not run it or not enter *cwd*.
        """
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        try:
            return subprocess.Popen(
                [str(a) for a in argv],
                bufsize=0,
                stdin=input,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=clean | {"LC_ALL": "C", "TZ": "UTC"} | (env or {}),
                start_new_session=True,
                user=self.uid,
                group=self.gid,
                extra_groups=None if self.uid is None else [],
            )
        except PermissionError as e:
            who = self.name or "the current user"
            raise ClusterError(f"{who} may not run {argv[0]} in {cwd} ({e}): is a directory on the way closed?") from e


class Sandbox:
    """A directory and the programs that live in it; all gone when it closes, or when this process ends in any way.

    Methods may be called from any thread.

    path: the directory, mode 700, owned by the user that the programs run as.
    """

    def __init__(self, run_as: RunAs, *, below: Path) -> None:
        self.run_as = run_as
        self.path = below.resolve() / f"dbguard-{secrets.token_hex(6)}"
        self._lock = threading.Lock()  # guards _roots and writing to the watchdog; nothing slow happens under it
        self._roots: set[int] = set()
        self._watchdog: subprocess.Popen[bytes] | None = self._watch()  # before there is anything to remove
        try:
            self.path.mkdir(mode=0o700)
            run_as.own(self.path)
        except BaseException:
            self.close()
            raise

    def start(
        self, argv: Sequence[str | Path], *, output: IO[bytes], env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program here. Wait for it with `reap`. Raises ClusterError if it cannot be run, or after `close`."""
        with self._lock:
            if self._watchdog is None:
                raise ClusterError(f"{self.path} is closed")
        gate = [*_GATE, *argv]
        process = self.run_as.start(gate, cwd=self.path, output=output, input=subprocess.PIPE, env=env)
        self._tell(process.pid)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # closed by another thread: then it was killed
                process.stdin.write(b"\n")
        return process

    def run(self, argv: Sequence[str | Path], *, timeout: float = 120.0, env: dict[str, str] | None = None) -> str:
        """Run a program to its end; return what it printed.

        timeout: seconds after which it is killed, > 0. Default 120.
        Raises ClusterError with the program's own words if it fails or takes too long.
        """
        name = Path(argv[0]).name
        with tempfile.TemporaryFile() as output:
            process = self.start(argv, output=output, env=env)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise ClusterError(f"{name} did not end within {timeout:g} s") from None
            finally:
                if process.returncode is None:
                    kill_tree(process.pid)
                self.reap(process)
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        if code:
            raise ClusterError(f"{name} failed (exit code {code}): {said}")
        return said

    def reap(self, process: subprocess.Popen[bytes], timeout: float | None = None) -> None:
        """Wait for the end of a program. Raises subprocess.TimeoutExpired after *timeout* seconds (None: never)."""
        process.wait(timeout)
        self._tell(-process.pid)

    def close(self) -> None:
        """Kill every program and remove the directory. Returns when both are gone; may be called again.

        Raises ClusterError if they are still there after some 30 seconds.
        """
        with self._lock:
            watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        if self._dismiss(watchdog):  # the watchdog itself was killed, say by an impatient operator: send another
            again = self._watch()
            with contextlib.suppress(BrokenPipeError):
                for root in self._roots:
                    _send(again, root)
            if self._dismiss(again):
                raise ClusterError(f"{self.path} could not be cleared; processes {sorted(self._roots)}")

    def _watch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.path), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )

    @staticmethod
    def _dismiss(watchdog: subprocess.Popen[bytes]) -> int:
        if watchdog.stdin is not None:
            watchdog.stdin.close()
        return watchdog.wait()

    def _tell(self, change: int) -> None:
        """Note a new program (its id), or one that has ended (its id, negative)."""
        with self._lock:
            if change > 0:
                self._roots.add(change)
            else:
                self._roots.discard(-change)
            if self._watchdog is not None:
                with contextlib.suppress(BrokenPipeError):  # close() sends another one
                    _send(self._watchdog, change)
                return
        if change > 0:  # started while another thread was closing: nobody watches it
            kill_tree(change)


def _send(watchdog: subprocess.Popen[bytes], change: int) -> None:
    if watchdog.stdin is not None:
        watchdog.stdin.write(b"%d\n" % change)


# --- the table of processes -------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    parent: int
    group: int
    state: str  # as ps shows it: T stopped, Z dead and not yet reaped

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def _table() -> dict[int, _Row]:
    """Read all processes, by id.

    From the stat files in /proc, which everybody may read (links such as cwd are closed to a container's root), or
    from ps where there is no /proc.
    """
    rows: dict[int, _Row] = {}
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    # pid (command, which may hold anything) state parent group ...
                    state, parent, group = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:3]
                    rows[int(entry.name)] = _Row(int(parent), int(group), state.decode())
        return rows
    ps = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,state="], capture_output=True, check=True, text=True)  # noqa: S607  wherever the system keeps it
    for line in ps.stdout.splitlines():
        pid, parent_, group_, state_ = line.split(maxsplit=3)
        rows[int(pid)] = _Row(int(parent_), int(group_), state_[0])
    return rows


def _tree(roots: Iterable[int], table: dict[int, _Row]) -> list[int]:
    """List what lives of *roots*, of their process groups and of all their descendants."""
    roots = set(roots)
    found = {pid for pid, row in table.items() if pid in roots or row.group in roots}
    grown = True
    while grown:
        more = {pid for pid, row in table.items() if row.parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(pid for pid in found if table[pid].alive)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze_tree(root: int) -> list[int]:
    """Stop *root*, so that it starts nothing more, then all its descendants. Returns all of them."""
    _signal([root], signal.SIGSTOP)
    end = time.monotonic() + _GRACE
    while (row := _table().get(root)) is not None and row.state not in "TtZX":
        if time.monotonic() > end:
            raise ClusterError(f"process {root} does not stop")
        time.sleep(_PAUSE / 5)
    tree = _tree([root], _table())
    _signal(tree, signal.SIGSTOP)
    return tree


def thaw_tree(root: int) -> None:
    """Let *root* and all its descendants run on, the descendants first."""
    tree = _tree([root], _table())
    _signal([pid for pid in tree if pid != root], signal.SIGCONT)
    _signal([root], signal.SIGCONT)


def kill_tree(root: int) -> None:
    """SIGKILL *root* and all its descendants, all stopped first so that none of them has a last word."""
    tree = freeze_tree(root)
    _signal(tree, signal.SIGKILL)
    end = time.monotonic() + _GRACE
    while any(pid in table and table[pid].alive for table in [_table()] for pid in tree):
        if time.monotonic() > end:
            raise ClusterError(f"processes {tree} survive SIGKILL")
        time.sleep(_PAUSE / 5)


# --- the watchdog -----------------------------------------------------------------------------------------------------


def _release_shared_memory(directory: Path) -> None:
    """Remove the System V segments of killed servers: a few bytes each, but the kernel has only 4096 places.

    The id is the last number in line 7 of postmaster.pid. Only the owner may remove one (a container's root has no
    say), so this process takes on the owner's identity for the moment; it has one thread. One of a server that was killed in
    the moment before it wrote that line is not found.
    """
    libc = ctypes.CDLL(None)
    for pid_file in directory.glob("*/postmaster.pid"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            segment = int(pid_file.read_text().splitlines()[6].split()[1])
            me, owner = os.geteuid(), pid_file.stat().st_uid
            if me == 0:
                os.seteuid(owner)
            libc.shmctl(segment, 0, None)  # 0 is IPC_RMID
            os.seteuid(me)


def _clear(directory: Path, roots: set[int]) -> bool:
    """Kill the programs and remove the directory; whether both are gone."""
    end = time.monotonic() + _GRACE
    while time.monotonic() < end:
        alive = _tree(roots, _table())
        _signal(alive, signal.SIGKILL)
        if not alive:
            _release_shared_memory(directory)
            shutil.rmtree(directory, ignore_errors=True)
            if not directory.exists():
                return True
        time.sleep(_PAUSE)
    return False


def _watchdog(directory: Path, parent: int) -> bool:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    roots: set[int] = set()
    unread = b""
    while True:
        if select.select([0], [], [], 1.0)[0]:
            if not (data := os.read(0, 65536)):
                break
            *lines, unread = (unread + data).split(b"\n")
            for change in map(int, lines):
                roots.add(change) if change > 0 else roots.discard(-change)
        elif os.getppid() != parent:  # the parent is gone, but a fork of it still holds the pipe
            break
    return _clear(directory, roots)


if __name__ == "__main__":
    sys.exit(not _watchdog(Path(sys.argv[1]), int(sys.argv[2])))
