"""Bad input gets a clear error that names the place and the way out, before any statement, and no secret."""

from __future__ import annotations

import asyncio
import re

import asyncpg
import pytest

import dbguard
from dbguard.testing.relay import StreamServer

SECRET = "s3cr3t-w0rd"


@pytest.fixture(scope="module")
def locked(binaries):
    """A node that asks for a password."""
    from dbguard.testing.cluster import Cluster  # noqa: PLC0415  as conftest does

    with Cluster(binaries=binaries, replicas=0, password="the right one") as cluster:
        yield cluster


async def hang_up(reader, writer):
    """Serve nobody."""


async def refused(config, kind, **arguments):
    guard = dbguard.Guard(config, **arguments)
    with pytest.raises(kind) as caught:
        await guard.open()
    with pytest.raises(dbguard.GuardClosed):
        await guard.execute("SELECT 1")
    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {vars(caught.value)}"
    assert SECRET not in shown
    return caught.value


async def test_an_unreachable_cluster_is_reported_after_startup_wait(calm_cluster):
    async with StreamServer(hang_up) as server:
        pass
    config = {"nodes": [{"name": "gone", "host": "127.0.0.1", "port": server.port}], "startup": {"wait": "2s"}}
    began = asyncio.get_running_loop().time()

    error = await refused(config | {"connection": {"password": SECRET}}, dbguard.NoPrimary)

    assert 1.9 < asyncio.get_running_loop().time() - began < 20.0  # by default it is 30 s
    assert "gone: connection refused" in str(error)
    assert isinstance(error, asyncpg.PostgresConnectionError)


async def test_a_black_hole_is_reported_after_startup_wait(calm_cluster):
    async def swallow(reader, writer):
        await reader.read()

    async with StreamServer(swallow) as server:
        config = {"nodes": [{"name": "hole", "host": "127.0.0.1", "port": server.port}], "startup": {"wait": "300ms"}}
        began = asyncio.get_running_loop().time()
        error = await refused(config, dbguard.NoPrimary)

        assert asyncio.get_running_loop().time() - began < 20.0
    assert "hole" in str(error)


async def test_a_line_that_breaks_while_tls_is_asked_for_is_no_configuration_error():
    async with StreamServer(hang_up) as server:
        config = {"nodes": [{"host": "127.0.0.1", "port": server.port}], "startup": {"wait": "200ms"}}

        await refused(config, dbguard.NoPrimary)


async def test_tls_that_the_server_does_not_have_is_a_configuration_error(calm_cluster, configured):
    error = await refused(configured(calm_cluster, connection={"sslmode": "require"}), dbguard.ConfigError)

    assert "a: " in str(error)


@pytest.mark.parametrize("setting", ["sslrootcert", "sslcrl", "sslcert", "sslkey"])
@pytest.mark.parametrize("content", [None, "nonsense"])
async def test_a_file_that_tls_cannot_use_is_a_configuration_error_that_names_it(
    calm_cluster, configured, tmp_path, setting, content
):
    path = tmp_path / "theirs.pem"
    if content:
        path.write_text(content)
    others = {"sslcert": str(path)} if setting == "sslkey" else {}
    others |= {"sslkey": str(path)} if setting == "sslcert" else {}
    tls = {"sslmode": "require", **others, setting: str(path)}

    error = await refused(configured(calm_cluster, connection=tls), dbguard.ConfigError)

    assert re.search(f"a: connection.ssl(key|cert|rootcert|crl): '{path}' cannot be used: ", str(error))
    assert others or f"connection.{setting}: " in str(error)


async def test_a_socket_that_is_not_there_is_no_configuration_error(tmp_path):
    config = {"nodes": [{"host": str(tmp_path)}], "startup": {"wait": "200ms"}}

    await refused(config, dbguard.NoPrimary)


async def test_a_wrong_password_fails_at_once(locked, configured):
    began = asyncio.get_running_loop().time()

    error = await refused(configured(locked, connection={"password": SECRET}), dbguard.ConfigError)

    assert asyncio.get_running_loop().time() - began < 15.0  # of 30 s
    assert "a: the password was refused" in str(error)
    assert "(28P01)" in str(error)


async def test_a_wrong_password_in_a_dsn_fails_at_once(locked):
    error = await refused(
        f"postgresql://postgres:{SECRET}@127.0.0.1:{locked.primary.port}/postgres", dbguard.ConfigError
    )

    assert "28P01" in str(error)


async def test_a_wrong_database_fails_at_once(calm_cluster, configured):
    error = await refused(configured(calm_cluster, connection={"database": "no_such"}), dbguard.ConfigError)

    for node in "abc":
        assert f"{node}: there is no such database" in str(error)


async def test_a_wrong_user_fails_at_once(calm_cluster, configured):
    error = await refused(configured(calm_cluster, connection={"user": "nobody_known"}), dbguard.ConfigError)

    assert "28000" in str(error)


async def test_nodes_of_two_clusters_are_not_mixed(calm_cluster, locked, configured, events, until):
    config = configured(calm_cluster, connection={"password": "the right one"})
    config["nodes"].append({"name": "stranger", "host": "127.0.0.1", "port": locked.primary.port})

    async with dbguard.connect(config, on_event=events.append) as guard:
        status = guard.status()
        assert status.primary == "a"
        stranger = status.nodes[-1]
        assert stranger.role == "unknown"
        assert "another cluster" in stranger.problem
        for _ in range(20):
            assert await guard.fetchval("SELECT current_setting('cluster_name')") in {"a", "b", "c"}
        assert await guard.using(role="primary").fetchval("SELECT inet_server_port()") == calm_cluster.primary.port
    assert [type(event).__name__ for event in events].count("NodeMisconfigured") == 1


async def test_one_node_of_each_of_two_clusters_uses_the_first_named_and_says_so(
    calm_cluster, locked, configured, events
):
    config = configured(calm_cluster, "a", connection={"password": "the right one"})
    config["nodes"].append({"name": "stranger", "host": "127.0.0.1", "port": locked.primary.port})

    async with dbguard.connect(config, on_event=events.append) as guard:
        assert guard.status().primary == "a"
        assert "another cluster" in guard.status().nodes[1].problem


async def test_some_nodes_with_a_wrong_database_are_out_of_rotation(calm_cluster, locked, configured, events):
    calm_cluster.sql("a", "CREATE DATABASE only_here")
    try:
        config = configured(calm_cluster, "a", connection={"database": "only_here", "password": "the right one"})
        config["nodes"].append({"name": "other", "host": "127.0.0.1", "port": locked.primary.port})

        async with dbguard.connect(config, on_event=events.append) as guard:
            assert await guard.fetchval("SELECT current_database()::text") == "only_here"
            assert guard.status().nodes[1].problem
    finally:
        calm_cluster.sql("a", "DROP DATABASE only_here WITH (FORCE)")


@pytest.mark.parametrize("need", ["primary", "all"])
async def test_what_startup_needs_is_waited_for(calm_cluster, configured, need):
    names = ("b",) if need == "primary" else ("a", "b")
    config = configured(calm_cluster, *names, startup={"wait": "300ms", "need": need})
    if need == "all":
        async with StreamServer(hang_up) as server:
            pass
        config["nodes"].append({"name": "gone", "host": "127.0.0.1", "port": server.port})

    await refused(config, dbguard.NoPrimary)


async def test_options_of_using_are_checked(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    for wrong in ({"role": "master"}, {"consistency": "strong"}, {"fallback": "none"}, {"writes": "maybe"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            guard.using(**wrong)
    for timeout in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            guard.using(timeout=timeout)


@pytest.mark.parametrize("timeout", ["2", True, float("nan")])
async def test_a_timeout_that_is_no_number_is_refused_before_anything_is_sent(calm_cluster, open_guard, table, timeout):
    guard = await open_guard(calm_cluster)
    insert = f"INSERT INTO {table} VALUES (1, 1)"

    async def by_function():
        await guard.run_in_transaction(lambda tx: tx.execute(insert), timeout=timeout)

    async def by_block():
        async with guard.transaction(timeout=timeout) as tx:
            await tx.execute(insert)

    async def by_connection():
        async with guard.acquire() as con:
            await con.execute(insert, timeout=timeout)

    async def by_copy():
        await guard.copy_records_to_table(table, records=[(1, 1)], timeout=timeout)

    for run in (guard.execute(insert, timeout=timeout), by_function(), by_block(), by_connection(), by_copy()):
        with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
            await run
    assert await guard.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_what_is_no_function_for_a_transaction_is_named(calm_cluster, open_guard):
    guard = await open_guard(calm_cluster)

    async def called():
        """Never run."""

    async def rows(tx):
        yield await tx.fetch("SELECT 1")

    already = called()
    for wrong, why in (("x", "'x'"), (lambda tx: tx, "<lambda>"), (rows, "rows"), (already, "called already")):
        with pytest.raises(TypeError, match=f"run_in_transaction needs an async function .*{why}"):
            await guard.run_in_transaction(wrong)
    already.close()


@pytest.mark.parametrize("timeout", ["2", True, float("nan"), -1])
async def test_how_long_closing_and_giving_back_may_take_is_checked_before_anything_is_done(
    calm_cluster, open_guard, timeout
):
    guard = await open_guard(calm_cluster, "a")
    con = await guard.acquire()

    for call in (guard.close(timeout=timeout), guard.release(con, timeout=timeout), guard.ready(timeout=timeout)):
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            await call

    assert await con.fetchval("SELECT 1") == 1
    await guard.release(con, timeout=0)


@pytest.mark.parametrize("listener", [5, "print"])
def test_what_cannot_hear_events_is_named(calm_cluster, listener):
    with pytest.raises(TypeError, match=f"on_event should be a function that takes an event, not {listener!r}"):
        dbguard.Guard(calm_cluster.dsn("a"), on_event=listener)
    with pytest.raises(TypeError, match="on_event should be a function"):
        dbguard.Guard(calm_cluster.dsn("a")).on_event(listener)
