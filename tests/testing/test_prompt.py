"""`python -m dbguard.testing.cluster`: a cluster by hand, from a pipe and from a terminal, and nothing left behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from dbguard.testing.prompt import COMMANDS, Prompt, main

if TYPE_CHECKING:
    from pathlib import Path

    from dbguard.testing.cluster import Cluster

COMMAND = [sys.executable, "-m", "dbguard.testing.cluster", "--postgres", "wheel"]
SOON = 60  # seconds for a cluster to start and do as it is told, on a busy machine


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options], input=script, capture_output=True, text=True, timeout=2 * SOON, check=False
    )


def rows(table: str) -> dict[str, list[str]]:
    """Return the cells of the last table, by node; several words of one cell are apart by one blank."""
    last = table[table.rindex("node  ") :]
    found = re.findall(r"^([a-j])  (.+)$", last, re.MULTILINE)
    return {name: re.split(r"\s{2,}", cells.strip())[1:4] for name, cells in found}


def is_silent(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


FOLLOWED = (
    "DO $$BEGIN WHILE NOT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming') "
    "LOOP PERFORM pg_sleep(0.01), pg_stat_clear_snapshot(); END LOOP; END$$"
)


@pytest.mark.cluster
def test_script_breaks_the_cluster_and_heals_it_and_leaves_nothing_behind() -> None:
    done = run(
        "# a comment and an empty line\n\nsql CREATE TABLE t (n int)\nfailover b 100ms\nsleep 0.01\n"
        f"sql b {FOLLOWED}\nstatus\n"
        "sql old-primary SELECT 1\n"
        "status\n"
    )
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", done.stdout)]

    assert done.returncode == 1, done.stderr
    assert "a killed, b promoted" in done.stdout
    assert rows(done.stdout) == {
        "a": ["down", "old primary", "-"],
        "b": ["up", "primary", "-"],
        "c": ["up", "replica", "b"],
    }
    assert re.search(r"^line 8: sql old-primary SELECT 1: .*Connect", done.stderr, re.MULTILINE)
    assert ports
    assert all(map(is_silent, ports))


@pytest.mark.chaos
def test_links_break_by_command_and_one_command_heals_all() -> None:
    done = run(
        "hole app->b\nlatency replica->primary 5ms\ndown app->primary\ntoxic app->c bandwidth rate=10\n"
        "pause-replay c\nkill b\nfreeze a\nstatus\nheal\nquit\nnever read\n",
        "--proxied",
        "--synchronous",
    )
    broken, healed = done.stdout[: done.stdout.index("> heal")], done.stdout[done.stdout.index("> heal") :]

    assert (done.returncode, done.stderr.splitlines()[1:]) == (0, [])
    assert re.findall(r"^broken: (\S+) (?:has the toxic )?(.+)$", broken, re.MULTILINE) == [
        ("app-a", "is down"),
        ("app-b", "timeout-downstream-2"),
        ("app-b", "timeout-upstream-1"),
        ("app-c", "bandwidth-downstream-1"),
        ("b-a", "latency-downstream-1"),
    ]
    assert rows(broken) == {
        "a": ["frozen", "primary", "-"],
        "b": ["down", "replica", "-"],
        "c": ["up", "replica, paused", rows(broken)["c"][2]],
    }
    assert "broken" not in healed
    assert rows(healed) == {"a": ["up", "primary", "-"], "b": ["up", "replica", "a"], "c": ["up", "replica", "a"]}


def ended_by(process: subprocess.Popen[bytes], number: int) -> int:
    process.send_signal(number)
    return process.wait(SOON)


def read_until(end: int, text: str) -> str:
    said = ""
    while text not in said:
        said += os.read(end, 4096).decode()
    return said


@pytest.mark.cluster
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_terminal_forgives_errors_and_a_signal_leaves_nothing_behind(number: int, code: int) -> None:
    mine, theirs = pty.openpty()
    try:
        process = subprocess.Popen([*COMMAND, "--replicas", "0"], stdin=theirs, stdout=theirs, stderr=theirs)
        try:
            (port,) = map(int, re.findall(r"^a +127\.0\.0\.1:(\d+)", read_until(mine, "cluster> "), re.MULTILINE))
            os.write(mine, b"brake a\n")
            assert "error: no command brake; `help` lists them" in read_until(mine, "them\r\ncluster> ")
            os.write(mine, b"sql SELECT 6 * 7\n")
            assert "42" in read_until(mine, "(1 rows)\r\ncluster> ")
            assert not is_silent(port)

            assert ended_by(process, number) == code
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(mine)
        os.close(theirs)

    assert is_silent(port)


# ---------------------------------------------------------------------- without breaking anything


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("brake a", "no command brake; `help` lists them"),
        ("kill", "something is missing; usage: kill NODE"),
        ("kill a b", "too many words; usage: kill NODE"),
        ("kill z", "no node 'z'; there are a, b, c, and the roles"),
        ("thaw replica x", "too many words"),
        ("sleep soon", "should be a duration such as 250ms"),
        ("failover b 5x", "should be a duration"),
        ("sql", "which statement?; usage: sql"),
        ("hole app->a", "only with the option --proxied"),
        ("promote primary x", "too many words"),
    ],
)
def test_line_that_cannot_be_done_says_what_to_write(line: str, said: str, calm_cluster: Cluster) -> None:
    with pytest.raises(Exception, match=re.escape(said)):
        Prompt(calm_cluster).do(line)


def test_looking_breaks_nothing(calm_cluster: Cluster) -> None:
    prompt = Prompt(calm_cluster)

    assert prompt.do("dsn b primary") == calm_cluster.dsn("b", "a")
    assert prompt.do("sql b SHOW cluster_name") == "b\n(1 rows)"
    assert prompt.do("  sql   SHOW cluster_name ") == "a\n(1 rows)"
    assert "end of" in str(prompt.do("log replica"))
    assert rows(str(prompt.do("status")))["c"] == ["up", "replica", "a"]
    listed = str(prompt.do("help"))
    assert "hole" not in listed
    assert all(f"\n{name} " in f"\n{listed}" for name, command in COMMANDS.items() if not command.links)
    with pytest.raises(EOFError):
        prompt.do("quit")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in COMMANDS)


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--replicas", "10"], "0 to 9, not 10"), (["--set", "work_mem"], "NAME=VALUE, such as --set work_mem=8MB")],
)
def test_wrong_option_says_what_to_write(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)

    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_without_a_postgresql_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBGUARD_PG_BINDIR", str(tmp_path))

    done = subprocess.run(
        [*COMMAND[:3], "--replicas", "0"], input="", capture_output=True, text=True, timeout=SOON, check=False
    )

    assert done.returncode == 1
    assert done.stderr.startswith("error: no PostgreSQL server programs found; install PostgreSQL, or pip install")
