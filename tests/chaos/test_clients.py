"""What the clients' errors promise, how the naive one repeats, and that all do the same on a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from chaos import aftermath
from chaos.clients import CLIENTS, CLIENTS_NAME, Client, Place, pools
from chaos.clients.pools import NaiveRetry, Plain
from chaos.history import Kind, Outcome
from dbguard.drivers import outcome_sql
from dbguard.testing.proxied import APPLICATION, ProxiedCluster
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dbguard.testing.binaries import Binaries

GUARDED = ("guard", "psycopg", "sync", "wrapped", "sqlalchemy")
TOKENLESS = ("sqlalchemy", "plain", "naive-retry")
NOT_SENT = pools._NotSentError("no connection")
LOST = asyncpg.ConnectionDoesNotExistError("gone")
TERMINATED = asyncpg.AdminShutdownError("terminated")
REFUSED = asyncpg.UniqueViolationError("there already")


def place(told: list[Mapping[str, Any]] | None = None) -> Place:
    told = [] if told is None else told
    return Place(addresses={"a": ("127.0.0.1", 1)}, size=4, guard={}, tell=told.append)


def unknown() -> dbguard.OutcomeUnknown:
    return dbguard.OutcomeUnknown("?", node="a", phase="sent")


@pytest.mark.parametrize(
    ("client", "error", "outcome"),
    [
        ("guard", unknown(), Outcome.UNKNOWN),
        ("guard", dbguard.ResultLost("!", node="a"), Outcome.RESULT_LOST),
        ("guard", dbguard.NoPrimary("none"), Outcome.FAILED),
        ("guard", REFUSED, Outcome.FAILED),
        ("plain", NOT_SENT, Outcome.FAILED),
        ("plain", REFUSED, Outcome.FAILED),
        ("plain", LOST, Outcome.UNKNOWN),
        ("plain", TERMINATED, Outcome.UNKNOWN),
        ("plain", TimeoutError(), Outcome.UNKNOWN),
        ("plain", ConnectionResetError(), Outcome.UNKNOWN),
        ("plain", asyncpg.InterfaceError("connection is closed"), Outcome.UNKNOWN),
        ("naive-retry", LOST, Outcome.UNKNOWN),
    ],
)
async def test_error_is_read_as_its_library_means_it(client: str, error: Exception, outcome: Outcome) -> None:
    made = CLIENTS[client](place())

    assert made.outcome_of(Kind.APPEND, error) is outcome
    assert made.outcome_of(Kind.READ, error) is Outcome.FAILED


class Script:
    """Stands in for what `Plain` does: raises or returns what comes next; the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: Any) -> None:
        self.steps = list(steps)
        self.calls = 0
        monkeypatch.setattr(Plain, "_do", self.do)
        monkeypatch.setattr(pools, "_PAUSE", 0.001)

    async def do(self, kind: Kind, use: Any, timeout: float) -> Any:
        assert timeout > 0
        self.calls += 1
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step


async def test_naive_client_repeats_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    script, told = Script(monkeypatch, LOST, REFUSED, NOT_SENT, {"node": "a"}), list[Any]()

    assert await NaiveRetry(place(told)).call(Kind.APPEND, "INSERT", (1,), 10) == {"node": "a"}

    assert script.calls == 4
    assert [(event["event"], event["attempt"]) for event in told] == [("CallRepeated", n) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("steps", "outcome"), [((LOST, NOT_SENT), Outcome.UNKNOWN), ((REFUSED, NOT_SENT), Outcome.FAILED)]
)
async def test_naive_client_that_gives_up_says_unknown_if_any_attempt_was(
    steps: tuple[Exception, ...], outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, *steps)
    monkeypatch.setattr(pools, "time", SimpleNamespace(monotonic=itertools.count(0.0, 0.03).__next__))
    client = NaiveRetry(place())

    with pytest.raises((asyncpg.PostgresError, pools._NotSentError)) as e:
        await client.call(Kind.APPEND, "INSERT", (1,), 0.2)

    assert client.outcome_of(Kind.APPEND, e.value) is outcome
    assert script.calls > 1


# --- tokens


ASKED = {"outcome": {"resolve": "token-table", "reserve": "1s"}, "reads": {"max_lag": "3s"}}


@pytest.mark.parametrize("name", TOKENLESS)
async def test_client_that_takes_no_tokens_refuses_them_and_does_without_if_it_may(name: str) -> None:
    kind = CLIENTS[name]

    with pytest.raises(dbguard.ConfigError, match="its writes carry no tokens") as e:
        kind(replace(place(), guard=ASKED))
    settings, left_off = kind.settings_for(ASKED)

    assert e.value.path == "outcome"
    assert (settings, left_off) == ({"reads": {"max_lag": "3s"}}, "outcome.resolve: its writes carry no tokens")
    kind(replace(place(), guard=settings))


@pytest.mark.parametrize("name", [name for name in CLIENTS if name not in TOKENLESS])
def test_client_that_takes_tokens_is_told_all(name: str) -> None:
    assert CLIENTS[name].settings_for(ASKED) == (ASKED, None)


@pytest.mark.parametrize("name", CLIENTS)
def test_nothing_is_left_off_where_no_tokens_are_asked_for(name: str) -> None:
    settings = {"outcome": {"resolve": "none"}, "timeout": 3}

    assert CLIENTS[name].settings_for(settings) == (settings, None)


# --- on a cluster: every client does the same, each in its library's way


NODE = "current_setting('cluster_name') AS node"
TABLE = "chaos_clients"
APPEND = f"INSERT INTO {TABLE} (key, n) VALUES ($1, $2) RETURNING {NODE}, n"
READ = f"SELECT {NODE}, array_agg(n ORDER BY n) AS seen FROM {TABLE} WHERE key = $1"
TIMEOUT = 20.0

keys = itertools.count(1)


@pytest.fixture(scope="module")
def proxied(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries) as cluster:
        cluster.sql("a", f"CREATE TABLE {TABLE} (key bigint NOT NULL, n bigint NOT NULL)")
        asyncio.run(install_tokens(cluster))
        for node in cluster.nodes:
            cluster.wait_for(node, "SELECT to_regclass('dbguard.token') IS NOT NULL")
        yield cluster


async def install_tokens(cluster: ProxiedCluster) -> None:
    a = cluster.node("a")
    connection = await asyncpg.connect(host=a.host, port=a.port, user="postgres", database="postgres", ssl=False)
    await connection.execute(outcome_sql.schema() + outcome_sql.grants("postgres"))
    await connection.close()


def client_on(cluster: ProxiedCluster, name: str, told: list[Mapping[str, Any]], **guard: Any) -> Client:
    links = {node.name: cluster.link(APPLICATION, node) for node in cluster.nodes}
    addresses = {node: (link.host, link.port) for node, link in links.items()}
    return CLIENTS[name](Place(addresses=addresses, size=4, guard=guard, tell=told.append))


async def ask(cluster: ProxiedCluster, query: str) -> Any:
    """Ask the primary, past the proxies."""
    return await asyncio.to_thread(lambda: cluster.sql("a", query)[0][0])


def held(key: int) -> str:
    return f"SELECT count(*) FROM {TABLE} WHERE key = {key}"


@pytest.mark.chaos
@pytest.mark.parametrize("name", CLIENTS)
async def test_client_does_all_that_workloads_ask_for(name: str, proxied: ProxiedCluster) -> None:
    key, told, attempts = next(keys), list[Any](), list[int]()

    def add_up() -> Any:
        attempts.append(1)
        row = yield f"SELECT sum(n)::bigint AS n, '100%' AS share FROM {TABLE} WHERE key = $1", (key,)
        if len(attempts) == 1 and name != "plain":  # another one is faster
            proxied.sql("a", f"UPDATE {TABLE} SET n = 5 WHERE key = {key}")
        none = yield f"UPDATE {TABLE} SET n = $2 WHERE key = $1 AND n < $2 + 1", (key, row["n"])
        assert none is None
        twice = yield "SELECT $1::bigint + $2 + $1 AS n, '100%' AS share", (row["n"], 0)
        return twice["n"], twice["share"]

    async with client_on(proxied, name, told) as client, client.context():
        assert (await client.call(Kind.APPEND, APPEND, (key, 1), TIMEOUT))["node"] == "a"
        summed = await client.transaction(add_up, isolation="repeatable_read", timeout=TIMEOUT)
        copied = await client.copy(TABLE, ("n", "key"), [(n, key) for n in range(100, 150)], TIMEOUT)
        if name not in GUARDED:  # it reads what a replica has
            for node in proxied.replicas:
                await asyncio.to_thread(proxied.wait_for, node, held(key).replace("count(*)", "count(*) = 51"))
        row = await client.call(Kind.READ, READ, (key,), TIMEOUT)
        rows = await client.fetch(
            f"SELECT n, key FROM {TABLE} WHERE key = $1 AND n > $2 ORDER BY n", (key, 147), TIMEOUT
        )
        sessions = await ask(
            proxied, f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{CLIENTS_NAME}'"
        )
        assert client.leases() == 0
        if name in GUARDED:
            roles = {"a": "primary", "b": "replica", "c": "replica"}
            sample = await until(lambda: (said := client.sample())["nodes"] == roles and said)
            assert (sample["gate"], sample["waiting"]) == ("open", 0)
            assert {event["node"] for event in told if "node" in event} == {"a", "b", "c"}
        else:
            assert client.sample() == {}

    assert (len(attempts), summed) == ((1, (2, "100%")) if name == "plain" else (2, (10, "100%")))
    assert copied == 50
    assert list(row["seen"]) == [1 if name == "plain" else 5, *range(100, 150)]
    assert [(row["key"], row["n"]) for row in rows] == [(key, 148), (key, 149)]
    assert sessions > 0


@pytest.mark.chaos
@pytest.mark.parametrize("name", GUARDED)
async def test_caller_sees_its_own_writes_and_others_read_from_replicas(name: str, proxied: ProxiedCluster) -> None:
    key, wrote = next(keys), asyncio.Event()

    async def own() -> list[tuple[str, list[int]]]:
        async with client.context():
            found = []
            for n in range(3):
                await client.call(Kind.APPEND, APPEND, (key, n), TIMEOUT)
                row = await client.call(Kind.READ, READ, (key,), TIMEOUT)
                found.append((row["node"], list(row["seen"])))
            wrote.set()
            return found

    async def read() -> str:
        async with client.context():
            await wrote.wait()
            return str(await until(lambda: reads_there(client)))

    async with client_on(proxied, name, []) as client:
        await until(lambda: set(client.sample()["nodes"].values()) == {"primary", "replica"})
        async with client.context():
            await until(lambda: reads_there(client))
        with proxied.link("b", "a").hole(), proxied.link("c", "a").hole():
            found, node = await asyncio.gather(own(), read())

    for replica in proxied.replicas:
        await asyncio.to_thread(proxied.wait_linked, replica, "a")
    assert found == [("a", [0]), ("a", [0, 1]), ("a", [0, 1, 2])]
    assert node in ("b", "c")


@pytest.mark.chaos
@pytest.mark.parametrize("name", GUARDED)
async def test_plan_that_ddl_overtakes_fails_no_call(name: str, proxied: ProxiedCluster) -> None:
    table = f"altered_{next(keys)}"
    append = f"INSERT INTO {table} (n) VALUES ($1) RETURNING {NODE}, n"
    read = f"SELECT {NODE}, n FROM {table} WHERE n = $1"
    await asyncio.to_thread(proxied.sql, "a", f"CREATE TABLE {table} (n int)")

    async with client_on(proxied, name, []) as client, client.context():
        for kind in ("int", "bigint", "int"):
            await asyncio.to_thread(proxied.sql, "a", f"ALTER TABLE {table} ALTER n TYPE {kind}")
            for _ in range(3):
                n = next(keys)
                assert (await client.call(Kind.APPEND, append, (n,), TIMEOUT))["n"] == n
                assert (await client.call(Kind.READ, read, (n,), TIMEOUT))["n"] == n


async def reads_there(client: Client) -> str | None:
    """Read, and return the replica that served it, if one did: a machine that stood still may have to find them first."""
    node = (await client.call(Kind.READ, READ, (0,), TIMEOUT))["node"]
    return node if node in ("b", "c") else None


def kinds(told: list[Any]) -> set[str]:
    return {event["event"] for event in told}


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("name", "tokens"),
    [*((name, False) for name in CLIENTS), *((name, True) for name in CLIENTS if name not in TOKENLESS)],
)
async def test_commit_whose_answer_is_lost_is_told_as_it_was(
    name: str, *, tokens: bool, proxied: ProxiedCluster
) -> None:
    key, told, attempts, broken = next(keys), list[Any](), list[int](), contextlib.ExitStack()

    # over wrapped pools a token goes before the COMMIT, which is not sent once the answer to that was lost
    lost_sooner = tokens and name == "wrapped"

    def write() -> Any:
        attempts.append(1)
        row = yield APPEND, (key, 7)
        if len(attempts) == 1:
            broken.enter_context(proxied.link(APPLICATION, "a").toxic("limit_data"))  # every reply from now on
        return row["n"]

    with broken:
        async with client_on(proxied, name, told, **(ASKED if tokens else {})) as client, client.context():
            writing = asyncio.create_task(client.transaction(write, isolation=None, timeout=TIMEOUT))
            await until(lambda: "NodeDown" in kinds(told) if lost_sooner else ask(proxied, held(key)))
            await asyncio.to_thread(broken.close)
            await asyncio.wait({writing})

    error = writing.exception()
    if name == "naive-retry":
        assert (error, len(attempts), await ask(proxied, held(key))) == (None, 2, 2)
        return
    assert (len(attempts), await ask(proxied, held(key))) == (2 if lost_sooner else 1, 1)
    if tokens:
        assert writing.result() == 7
    else:
        assert isinstance(error, Exception)
        assert ".invalid" not in str(error), "wrapped pools know their addresses, and no guard does"
        assert client.outcome_of(Kind.APPEND, error) is Outcome.UNKNOWN


@pytest.mark.chaos
async def test_clients_close_in_silence_and_leave_nothing(proxied: ProxiedCluster) -> None:
    key, names = next(keys), list(CLIENTS)
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    clients = [client_on(proxied, name, []) for name in names]
    for client in clients:
        await client.__aenter__()
        for _ in range(4):
            await client.call(Kind.APPEND, APPEND, (key, 1), TIMEOUT)
            await client.call(Kind.READ, READ, (key,), TIMEOUT)

    with contextlib.ExitStack() as silence:
        for node in proxied.nodes:
            await asyncio.to_thread(silence.enter_context, proxied.link(APPLICATION, node).hole())
        began = time.monotonic()
        await asyncio.gather(*(client.__aexit__(None, None, None) for client in clients))
        took = time.monotonic() - began

    left = [thread for thread in set(threading.enumerate()) - threads if not thread.name.startswith("asyncio")]
    assert left == []
    assert asyncio.all_tasks() - tasks == set()
    assert took < 30  # some 6 s at rest; what waits for the network itself waits for minutes
    assert await asyncio.to_thread(aftermath.sessions, proxied) == []
