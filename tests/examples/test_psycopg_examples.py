"""The examples over psycopg: a pool that is wrapped, and a web application in threads, run as a reader would run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.cluster import Cluster

EXAMPLES = Path(__file__).parents[2] / "examples"


def started(example: str, dsn: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments],
        env={**os.environ, "DATABASE_URL": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_wrapped_pool_follows_the_primary_and_stays_open(calm_cluster: Cluster) -> None:
    dsn = calm_cluster.dsn("c", "b", "a") + "?target_session_attrs=primary"
    try:
        for visits in ("1", "2"):
            program = started("wrap_psycopg_pool.py", dsn)
            out, errors = program.communicate(timeout=180)
            assert (program.returncode, errors) == (0, "")
            assert out.splitlines() == [f"visits: {visits}", "on primary as postgres", "pool still open: True"]
    finally:
        calm_cluster.sql("a", "DROP TABLE IF EXISTS visit")


class Web:
    """The web application, in a process of its own."""

    def __init__(self, dsn: str) -> None:
        self.program = started("threaded_web.py", dsn, "0")
        assert self.program.stdout is not None
        self.port = int(self.program.stdout.readline().rpartition(" ")[2])

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, Any, str | None]:
        data = None if body is None else body.encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return answer.status, json.load(answer), None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error), error.headers.get("Retry-After")

    def end(self) -> tuple[int, str, str]:
        self.program.send_signal(signal.SIGTERM)
        out, errors = self.program.communicate(timeout=180)
        return self.program.returncode, out, errors


@pytest.fixture
def web(cluster: Cluster) -> Iterator[Web]:
    made = Web(cluster.dsn())
    yield made
    if made.program.poll() is None:
        made.program.kill()
        made.program.communicate()


def test_threads_share_one_guard_through_a_failover_and_it_ends_gracefully(cluster: Cluster, web: Web) -> None:
    names = {node.name: f"127.0.0.1:{node.port}" for node in cluster.nodes}
    assert web.ask("PUT", "/articles/7", "3") == (200, {"id": 7, "price": 3}, None)
    assert web.ask("PUT", "/articles/7", "x") == (400, "a price is a number", None)
    with ThreadPoolExecutor(8) as threads:
        numbers = range(10, 50)
        put = threads.map(lambda n: web.ask("PUT", f"/articles/{n}", str(n)), numbers)
        assert list(put) == [(200, {"id": n, "price": n}, None) for n in numbers]
    assert web.ask("GET", "/articles/8") == (404, "no such article", None)
    status, told, _ = web.ask("GET", "/health")
    assert (status, told["writes"]) == (200, "open")
    assert told["nodes"] == {names["a"]: "primary", names["b"]: "replica", names["c"]: "replica"}

    for replica in cluster.replicas:
        cluster.wait_for(replica, "SELECT count(*) = 41 FROM article")
    cluster.kill("a")
    later = threading.Timer(1.0, cluster.promote, ("b",))
    later.start()
    assert web.ask("PUT", "/articles/7", "4")[0] in {200, 503}  # its connection may have died under it
    later.join()
    assert web.ask("PUT", "/articles/7", "5") == (200, {"id": 7, "price": 5}, None)
    assert web.ask("GET", "/health")[1]["nodes"][names["b"]] == "primary"

    with ThreadPoolExecutor(1) as threads, psycopg.connect(cluster.dsn("b")) as other:
        other.execute("UPDATE article SET price = 6 WHERE id = 7")
        waits = threads.submit(web.ask, "PUT", "/articles/7", "7")
        cluster.wait_for("b", "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
        web.program.send_signal(signal.SIGTERM)
        other.commit()
        assert waits.result(90) == (200, {"id": 7, "price": 7}, None)
    assert web.end() == (0, "closed\n", "")


def test_without_a_primary_writes_are_told_to_come_again_and_reads_go_on(cluster: Cluster, web: Web) -> None:
    web.ask("PUT", "/articles/7", "3")
    for replica in cluster.replicas:
        cluster.wait_for(replica, "SELECT count(*) = 1 FROM article")
    cluster.kill("a")
    web.ask("PUT", "/articles/7", "4")  # its connection may die under it

    said = web.ask("PUT", "/articles/7", "4")

    assert said == (503, "The database is away for a moment. Nothing was changed.", "1")
    assert web.ask("GET", "/articles/7") == (200, {"id": 7, "price": 3}, None)
    status, told, _ = web.ask("GET", "/health")
    assert (status, told["writes"]) == (200, "failover")
