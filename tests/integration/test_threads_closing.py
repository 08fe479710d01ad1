"""A guard for threads that is closed while calls wait: each ends, with what is true of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

import dbguard
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.testing.cluster import Cluster


@pytest.mark.parametrize("within", ["a statement", "a block"])
async def test_a_write_of_open_fate_is_told_of_when_the_guard_is_closed(
    cluster_factory: Callable[..., Cluster], configured: Callable[..., dict[str, Any]], within: str
) -> None:
    """What would be asked is asked no more: nobody waits for the answer beyond the guard's end."""
    cluster = cluster_factory(replicas=0)
    cluster.sql("a", "CREATE TABLE kept (n int)")
    cluster.sql(
        "a", "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'"
    )
    cluster.sql(
        "a",
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON kept DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    guard = dbguard.SyncGuard(configured(cluster), min_size=0, max_size=2)
    await asyncio.to_thread(guard.open)
    # An idempotent write waits until its old backend is gone, of which a server that is down says nothing.
    idempotent = guard.using(idempotent=True)

    def write() -> None:
        if within == "a statement":
            idempotent.execute("INSERT INTO kept VALUES (1)", timeout=30)
        else:
            idempotent.run_in_transaction(lambda tx: tx.execute("INSERT INTO kept VALUES (1)"), timeout=30)

    writing = asyncio.ensure_future(asyncio.to_thread(write))
    await asyncio.to_thread(
        cluster.wait_for, "a", "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    )
    cluster.kill("a")
    await until(lambda: not guard.status().nodes[0].reachable)
    assert not writing.done()
    await asyncio.to_thread(guard.close, timeout=0.2)
    with pytest.raises(dbguard.OutcomeUnknown):
        await asyncio.wait_for(writing, 20)
    assert "dbguard" not in {thread.name for thread in threading.enumerate()}


def test_an_opening_that_is_interrupted_leaves_no_thread() -> None:
    node = {"name": "a", "host": "127.0.0.1", "port": 9}
    guard = dbguard.SyncGuard({"nodes": [node], "connection": {"user": "postgres", "database": "postgres"}})
    main = threading.main_thread().ident
    assert main == threading.get_ident()
    interrupts = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  however late this thread goes on, it is met in here
        interrupts.start()
        guard.open()
    assert "dbguard" not in {thread.name for thread in threading.enumerate()}


async def test_one_thread_may_open_what_another_one_closes(calm_cluster: Cluster, configured: Any) -> None:
    guard = dbguard.SyncGuard(configured(calm_cluster), min_size=0, max_size=2)

    def open_and_close() -> None:
        for _ in range(6):
            with contextlib.suppress(dbguard.GuardClosed):
                guard.open()
                guard.close(timeout=0.2)

    await asyncio.gather(*(asyncio.to_thread(open_and_close) for _ in range(3)))
    assert "dbguard" not in {thread.name for thread in threading.enumerate()}
