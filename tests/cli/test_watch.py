"""``dbguard watch``: lines for a pipe, a picture of 80 columns for a terminal, and an end by Ctrl-C."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING

import pytest

from dbguard.cli.watch import Heard, shown_for
from dbguard.cli.watch_live import LiveWatch
from dbguard.core.episode import Episode
from dbguard.status import NodeStatus, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.cluster import Cluster
    from tests.cli.conftest import Ran

NOW = 1_700_000_000.0


def node(name: str, role: str, **more) -> NodeStatus:
    known = {
        "breaker": "closed",
        "epoch": 3,
        "timeline": 12,
        "lag": None,
        "proven": role == "replica",
        "read_only": False,
        "in_use": 0,
        "size": 20,
        "problem": None,
        "reachable": True,
        "role_since": NOW - 4_000,
        "reachable_since": NOW - 130,
        "breaker_since": NOW - 300_000,
    }
    return NodeStatus(name=name, role=role, **(known | more))


def episode(number: int, kind: str, **more) -> Episode:
    known = dict.fromkeys(("noticed", "stopped", "drained", "released"), 1.25)
    known |= dict.fromkeys(("waited", "repeated", "unknown", "settled", "connections"), 1_234)
    known |= {"id": "x", "over": True, "began_at": NOW, "why": "db1.example.com missed a probe", "seconds": 12.5}
    known |= {"was": "db1.example.com", "primary": "db2.example.com", "stops": 1, "refused": None, "lost_bytes": None}
    return Episode(number=number, kind=kind, **(known | more))


STATUS = Status(
    primary="db2.example.com",
    reign="timeline 12 (mark 0123abcd)",
    writes="failover",
    why="db2.example.com is lost",
    waiting=0,
    nodes=(
        node(
            "db1.a-rather-long-name.example.com", "primary", reachable=False, problem="no answer", breaker="half-open"
        ),
        node("db2.example.com", "replica", lag=123.4),
    ),
    counts={},
    at=NOW,
    writes_since=NOW - 5,
    episodes=(*(episode(n, "failover") for n in range(1, 9)), episode(9, "interruption", over=False)),
)


def drawn(monkeypatch: pytest.MonkeyPatch, heard: deque[Heard], *, width: int = 80, height: int = 30) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(height))
    stream = io.StringIO()
    with LiveWatch(stream, "/etc/shop/guard.yaml") as view:
        view.show(STATUS, heard)
    return stream.getvalue().splitlines()


def test_picture_fits_80_columns_and_the_terminals_height(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = deque(Heard(NOW + n, "WARNING", f"event {n}: " + "so many words " * 12) for n in range(100))
    lines = drawn(monkeypatch, heard)

    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30
    text = "\n".join(lines)
    assert "WRITES STOPPED for 5s: db2.example.com is lost" in text
    assert re.search(r"db1\.a-rather-long-n… +primary 66m +NO 2m +half-open 3d", text)
    assert "123.4 s" in text
    assert "interruption 9, not over yet" in text
    assert "event 99" in text, "the newest event is always there"


def test_picture_shows_the_newest_events_however_few_lines_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = deque([Heard(NOW, "INFO", "an old one"), Heard(NOW, "ERROR", "the newest")])
    lines = drawn(monkeypatch, heard, height=12)

    assert "the newest" in "\n".join(lines)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d"), (-1, "0s")],
)
def test_durations_are_one_short_word(seconds: float, shown: str) -> None:
    assert shown_for(NOW - seconds, NOW) == shown
    assert shown_for(None, NOW) == ""


def test_a_pipe_gets_lines(calm_cluster: Cluster, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("watch", calm_cluster.dsn(), "--count", "20", "--interval", "0.1")

    assert (ran.code, ran.err) == (0, "")
    events = [line for line in ran.out.splitlines() if re.match(r"\d\d:\d\d:\d\d  (INFO|WARNING) ", line)]
    views = [line for line in ran.out.splitlines() if re.match(r"\d\d:\d\d:\d\d  writes open for \d+s; ", line)]
    assert len(views) == 20
    assert any("primary is" in line for line in events)
    assert any(re.search(r"replica for \ds, lag \d\.\d s", view) for view in views)


def test_wrong_configuration_ends_it(locked_cluster: Cluster, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard(
        "watch", f"postgresql://postgres@{locked_cluster.node('a').host}:{locked_cluster.node('a').port}/postgres"
    )

    assert ran.code == 2
    assert "password" in ran.err


def test_ctrl_c_ends_it_without_a_word(calm_cluster: Cluster) -> None:
    command = [sys.executable, "-m", "dbguard", "watch", calm_cluster.dsn(), "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "writes open" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (0, "")
