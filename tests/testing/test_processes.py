"""Nothing stays behind: no process, no directory, no shared memory, however a test process ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dbguard.testing import processes
from dbguard.testing.cluster import _fast_directory
from dbguard.testing.processes import ClusterError, RunAs, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOON = 60.0  # seconds, on a busy machine; usually 0.2

RUN_A_CLUSTER = """if True:
    import os, signal, sys
    from pathlib import Path
    from dbguard.testing.cluster import Cluster

    with Cluster(base=Path(sys.argv[1])) as cluster:
        cluster.kill("b")
        cluster.freeze("c")
        print(*(node.port for node in cluster.nodes), flush=True)
        {ending}
"""


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)  # a poll of the world outside, not a pause


@pytest.fixture
def below() -> Iterator[Path]:
    """A directory that the unprivileged user can enter (pytest's own is closed to him)."""
    with tempfile.TemporaryDirectory(prefix="dbguard-test-", dir=_fast_directory()) as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


@pytest.fixture
def sandbox(below: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(RunAs.detect(), below=below)
    yield sandbox
    sandbox.close()


def child(code: str, below: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(below)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def alive(pids: list[int]) -> list[int]:
    table = processes._table()
    return [pid for pid in pids if pid in table and table[pid].alive]


def descendants(pid: int) -> list[int]:
    """All below *pid*, the watchdog included."""
    return [found for found in processes._tree([pid], processes._table()) if found != pid]


def segments() -> set[str]:
    lines = subprocess.run(["ipcs", "-m"], capture_output=True, check=True, text=True).stdout.splitlines()
    return {line.split()[1] for line in lines if len(line.split()) > 1}


def segments_of(below: Path) -> set[str]:
    return {file.read_text().splitlines()[6].split()[1] for file in below.glob("*/*/postmaster.pid")}


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("ending", "number"),
    [
        pytest.param("signal.pause()", signal.SIGKILL, id="killed"),
        pytest.param("signal.pause()", signal.SIGTERM, id="terminated"),
        pytest.param("signal.pause()", signal.SIGINT, id="ctrl-c"),
        pytest.param("os.read(0, 1); raise RuntimeError", None, id="exception"),
        pytest.param("os.read(0, 1); sys.exit(3)", None, id="exit"),
        pytest.param("os.read(0, 1); os._exit(3)", None, id="exit without clearing up"),
        pytest.param("os.read(0, 1); cluster.stop()", None, id="stop"),
        pytest.param("signal.pause() if os.fork() else os.read(0, 1)", signal.SIGKILL, id="killed, a fork lives on"),
        pytest.param("os.fork(); os.read(0, 1)", None, id="stop, of it and of its fork"),
    ],
)
def test_nothing_stays_behind_however_the_process_ends(ending: str, number: signal.Signals | None, below: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN_A_CLUSTER.format(ending=ending), str(below)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ports = [int(word) for word in process.stdout.readline().split()]
        servers = [int(file.read_text().split()[0]) for file in below.glob("*/*/postmaster.pid")]
        everything = sorted({p for s in servers for p in processes._tree([s], processes._table())})
        shared = segments_of(below)
        assert len(ports) == len(servers) == 3
        assert len(alive(everything)) > 8  # two of the three live, with their children
        assert shared <= segments()

        if number is not None:
            process.send_signal(number)
            process.wait()
        else:
            process.stdin.write("go\n")
            process.stdin.flush()

        until(lambda: not list(below.iterdir()), f"{below} is empty")
        assert alive(everything) == []
        assert not shared & segments()
        for port in ports:
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(("127.0.0.1", port))
        process.stdin.close()
        assert select.select([process.stdout], [], [], SOON)[0], "a fork hangs"
        assert process.stdout.read() == ""


@pytest.mark.cluster
@pytest.mark.parametrize("reached", ["a/PG_VERSION", "a.log", "b/postmaster.pid"])
def test_nothing_stays_behind_when_killed_while_starting(reached: str, below: Path) -> None:
    with child(RUN_A_CLUSTER.format(ending="signal.pause()"), below) as process:
        until(lambda: list(below.glob(f"*/{reached}")), f"{reached} is there")
        family = descendants(process.pid)

        process.kill()

        until(lambda: not list(below.iterdir()), f"{below} is empty")
        until(lambda: not alive(family), "all processes are gone")


@pytest.mark.cluster
def test_program_that_the_watchdog_was_not_told_of_never_runs(below: Path) -> None:
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from dbguard.testing.processes import RunAs, Sandbox

        Sandbox._tell = lambda self, change: os.kill(os.getpid(), signal.SIGKILL)
        marker = Path(sys.argv[1]) / "ran"
        Sandbox(RunAs.detect(), below=Path(sys.argv[1])).run(["sh", "-c", f"touch {marker}; sleep 60"])
    """
    with child(code, below) as process:
        process.wait()

        until(lambda: not list(below.iterdir()), f"{below} is empty, and nothing ran")


def test_programs_are_out_of_the_reach_of_a_terminals_ctrl_c(sandbox: Sandbox) -> None:
    with tempfile.TemporaryFile() as output:
        process = sandbox.start(["sleep", "60"], output=output)

        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        sandbox.close()
        sandbox.reap(process)


def test_program_that_left_its_group_is_found_through_its_parent(sandbox: Sandbox) -> None:
    with tempfile.TemporaryFile() as output:
        process = sandbox.start(["sh", "-c", "setsid sleep 60; true"], output=output)
        until(lambda: descendants(process.pid), "the child has started")
        (grandchild,) = descendants(process.pid)

        processes.kill_tree(process.pid)

        assert alive([grandchild]) == []
        sandbox.reap(process)


def test_orphan_is_found_through_its_group(sandbox: Sandbox) -> None:
    with tempfile.TemporaryFile() as output:
        process = sandbox.start(["sh", "-c", "sleep 60; true"], output=output)
        until(lambda: descendants(process.pid), "the child has started")
        (orphan,) = descendants(process.pid)
        process.kill()
        process.wait()

        sandbox.close()

        assert alive([orphan]) == []


def test_frozen_tree_stands_still_until_thawed(sandbox: Sandbox) -> None:
    with tempfile.TemporaryFile() as output:
        process = sandbox.start(["sh", "-c", "sleep 60; true"], output=output)
        until(lambda: descendants(process.pid), "the child has started")
        family = [process.pid, *descendants(process.pid)]

        assert processes.freeze_tree(process.pid) == sorted(family)
        until(lambda: {processes._table()[pid].state for pid in family} == {"T"}, "all are stopped")

        processes.thaw_tree(process.pid)
        until(lambda: "T" not in {processes._table()[pid].state for pid in family}, "all run on")
        sandbox.close()
        sandbox.reap(process)


def test_sandbox_is_cleared_although_its_watchdog_was_killed(sandbox: Sandbox) -> None:
    with tempfile.TemporaryFile() as output:
        process = sandbox.start(["sleep", "60"], output=output)
        assert sandbox._watchdog is not None
        sandbox._watchdog.kill()
        sandbox._watchdog.wait()

        sandbox.close()

        assert not sandbox.path.exists()
        assert process.wait() == -signal.SIGKILL


def test_failing_program_is_reported_in_its_own_words(sandbox: Sandbox) -> None:
    with pytest.raises(ClusterError, match=r"sh failed \(exit code 3\): no such thing"):
        sandbox.run(["sh", "-c", "echo no such thing; exit 3"])


def test_program_that_takes_too_long_is_killed(sandbox: Sandbox) -> None:
    with pytest.raises(ClusterError, match=r"sleep did not end within 0\.05 s"):
        sandbox.run(["sleep", "60"], timeout=0.05)

    assert sandbox._roots == set()


def test_program_does_not_see_the_environment_of_other_clusters(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")

    assert sandbox.run(["sh", "-c", "echo $PGPORT$LC_ALL"]) == "C"


def test_closed_sandbox_starts_nothing_and_may_be_closed_again(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()

    with pytest.raises(ClusterError, match="is closed"):
        sandbox.run(["true"])
