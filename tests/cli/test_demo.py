from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dbguard.cli.demo.failover import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.binaries import Binaries
    from tests.cli.conftest import Ran

FIGURES = {
    "reads": int,
    "writes": int,
    "errors": int,
    "proved_applied": int,
    "proved_not_applied": int,
    "unknown": int,
    "unknown_applied": int,
    "result_lost": int,
    "failed_applied": int,
    "lost": int,
    "duplicated": int,
    "read_gap_s": float,
    "write_gap_s": float,
    "longest_read_s": float,
    "write_gap_after_promotion_s": float,
}


@pytest.mark.parametrize("seconds", [5.0, 20.0, 300.0])
def test_steps_follow_each_other_whatever_the_length(seconds: float) -> None:
    script = Script.of(seconds)

    assert 0 < script.kill < script.promote < script.rejoin < script.end == seconds
    assert script.promote - script.kill <= 1.0


def test_default_run_promotes_one_second_after_the_kill() -> None:
    assert Script.of(20.0) == Script(kill=6.0, promote=7.0, rejoin=12.0, end=20.0)


@pytest.fixture
def environment(binaries: Binaries, tmp_path: Path) -> dict[str, str]:
    """The wheel's PostgreSQL, and a temporary directory of its own to look for leftovers in."""
    return os.environ | {"DBGUARD_PG_BINDIR": str(binaries.directory), "PYTHONWARNINGS": "error"}


@pytest.mark.parametrize("facade", ["asyncpg", "psycopg", "threads"])
def test_demo_loses_nothing_and_its_control_sees_errors(
    environment: dict[str, str], tmp_path: Path, facade: str
) -> None:
    file = tmp_path / "result.json"

    ran = subprocess.run(
        [sys.executable, "-m", "dbguard", "demo", "--seconds", "6", "--facade", facade, f"--json={file}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    result = json.loads(file.read_text())

    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert set(result) == {"outage_s", "guarded", "control", "events"}
    for side in (result["guarded"], result["control"]):
        assert {name: type(value) for name, value in side.items()} == FIGURES
        assert side["reads"] > 0
        assert side["writes"] > 0
    guarded = result["guarded"]
    assert [guarded[figure] for figure in ("errors", "lost", "duplicated", "unknown", "result_lost")] == [0] * 5
    assert not [event for event in result["events"] if event.get("event") in {"OutcomeLeftOpen", "WriteWithoutToken"}]
    assert result["control"]["errors"] > 0
    steps = [event["step"] for event in result["events"] if event["source"] == "demo"]
    assert steps == ["kill", "promote", "promoted", "rejoin", "rejoined"]
    moments = {event["step"]: event["at_s"] for event in result["events"] if event["source"] == "demo"}
    assert 0 < result["outage_s"] <= moments["promoted"] - moments["kill"] + 0.5
    promoted = next(event["node"] for event in result["events"] if event.get("step") == "promoted")
    changes = [event["node"] for event in result["events"] if event.get("event") == "PrimaryChanged"]
    assert changes == [promoted]
    assert "longest pause between two reads" in ran.stdout
    assert f"OK:      read back on {promoted}" in ran.stdout


def test_demo_without_tokens_proves_nothing_and_forgives_unknown_outcomes(environment: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "dbguard", "demo", "--seconds", "5", "--outcome", "none", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    guarded = json.loads(ran.stdout)["guarded"]

    assert ran.returncode == 0, ran.stderr
    assert (guarded["proved_applied"], guarded["proved_not_applied"], guarded["lost"], guarded["duplicated"]) == (
        0,
    ) * 4
    assert "each guarded write carries a token" not in ran.stderr


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        pytest.param(signal.SIGINT, 130, "dbguard: interrupted; nothing was left behind\n", id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, "", id="SIGTERM"),
    ],
)
def test_interrupted_demo_leaves_nothing_behind(
    sent: signal.Signals, code: int, said: str, environment: dict[str, str]
) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "dbguard", "demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    while " reads/s" not in "".join(lines[-1:]):
        lines.append(demo.stdout.readline())
        assert lines[-1], demo.stderr.read()

    servers = servers_of(demo.pid)
    demo.send_signal(sent)
    _, complaint = demo.communicate(timeout=60)

    assert servers
    assert (demo.returncode, complaint) == (code, said)
    assert not [pid for pid in servers if alive(pid)]


def stat_of(pid: str) -> list[str]:
    """What the system says of a process behind its name: state, parent, ...; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def servers_of(demo: int) -> list[int]:
    """All processes below *demo*."""
    pids = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    parents = {int(pid): int(stat[1]) for pid in pids if (stat := stat_of(pid))}
    found: list[int] = []
    below = {demo}
    while below := {pid for pid, parent in parents.items() if parent in below}:
        found += below
    return found


def alive(pid: int) -> bool:
    return stat_of(str(pid))[:1] not in ([], ["Z"])


def test_demo_without_postgresql_says_how_to_get_it(
    dbguard: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DBGUARD_PG_BINDIR", str(tmp_path))

    ran = dbguard("demo")

    assert ran.code == 2
    assert ran.err.startswith(
        "dbguard: error: no PostgreSQL server programs found; install PostgreSQL, or pip install "
    )
    assert "Traceback" not in ran.err


def test_result_that_cannot_be_written_is_told_before_the_demo_runs(
    dbguard: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "result.json"

    ran = dbguard("demo", f"--json={file}")

    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"dbguard: error: {file}: cannot be written: No such file or directory\n"
