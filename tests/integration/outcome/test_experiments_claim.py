"""RULES 3.1 to 3.3, tried on real servers with plain connections: what a claim answers, and which simpler claims lie."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from dbguard.drivers import outcome_sql
from tests.integration.outcome.conftest import ask_claim, begin_claim, claim, install, is_blocked, new_token
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from dbguard.testing.cluster import Cluster

pytestmark = pytest.mark.every_postgres

DO_NOTHING = "INSERT INTO dbguard.token (token, kind) VALUES ($1, 'x') ON CONFLICT DO NOTHING RETURNING 1"
"""The claim that RULES 3.1 forbids: a row back means not applied, none means applied."""

CTE = f"WITH {outcome_sql.cte_item('$1')} UPDATE item SET n = n + 1 WHERE id = $2"


async def committed(con: Any, token: UUID, row: int) -> None:
    await con.execute(CTE, token, row)


async def rolled_back(con: Any, token: UUID, row: int) -> None:
    await con.execute("BEGIN")
    await con.execute(CTE, token, row)
    await con.execute("ROLLBACK")


async def never_sent(con: Any, token: UUID, row: int) -> None:
    pass


async def terminated(con: Any, token: UUID, row: int) -> None:
    await con.execute("BEGIN")
    await con.execute(CTE, token, row)
    con.terminate()


@pytest.mark.parametrize(
    ("original", "answer"), [(committed, "w"), (rolled_back, "x"), (never_sent, "x"), (terminated, "x")]
)
async def test_the_answer_is_the_same_however_often_and_by_whomever_it_is_asked(
    original: Callable[..., Awaitable[None]], answer: str, home: Cluster, connect: Any, item: Any
) -> None:
    writer, one, other = [await connect(home) for _ in range(3)]
    token, row = new_token(), await item(home)
    await original(writer, token, row)

    answers = [await claim(con, token) for con in (one, other, one, one, other)]

    assert set(answers) == {answer}
    assert home.sql("a", "SELECT n FROM item WHERE id = $1", row) == [(1 if answer == "w" else 0,)]


@pytest.mark.parametrize(("end", "answer"), [("COMMIT", "w"), ("ROLLBACK", "x")])
async def test_a_claim_waits_for_an_original_that_has_stored_its_token_and_answers_as_it_ends(
    end: str, answer: str, home: Cluster, connect: Any, item: Any
) -> None:
    writer, asker, looker = [await connect(home) for _ in range(3)]
    token, row = new_token(), await item(home)
    await writer.execute("BEGIN")
    await writer.execute(CTE, token, row)

    asked = asyncio.ensure_future(claim(asker, token))
    await until(lambda: is_blocked(looker, asker))
    await writer.execute(end)

    assert await asked == answer
    assert await claim(looker, token) == answer


async def test_a_claim_closes_the_door_on_an_original_that_is_still_at_work(
    home: Cluster, connect: Any, item: Any
) -> None:
    writer, asker, blocker = [await connect(home) for _ in range(3)]
    token, row = new_token(), await item(home)
    await blocker.execute("BEGIN")
    await blocker.execute("UPDATE item SET n = 10 WHERE id = $1", row)
    original = asyncio.ensure_future(writer.execute(CTE, token, row))
    await until(lambda: is_blocked(asker, writer))

    answer = await claim(asker, token, lock_timeout=0.05)  # the token comes last, so there is nothing to wait for
    await blocker.execute("COMMIT")

    assert answer == "x"
    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        await original
    assert (raised.value.schema_name, raised.value.table_name, raised.value.constraint_name) == outcome_sql.CONSTRAINT
    assert home.sql("a", "SELECT n FROM item WHERE id = $1", row) == [(10,)]


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "mark"])
async def test_a_block_whose_token_was_claimed_does_not_reach_its_commit(
    *, level: str, direct: bool, home: Cluster, connect: Any, item: Any
) -> None:
    writer, asker = await connect(home), await connect(home)
    token, row = new_token(), await item(home)
    await writer.execute(f"BEGIN ISOLATION LEVEL {level}")
    await writer.execute("UPDATE item SET n = n + 1 WHERE id = $1", row)
    assert await claim(asker, token) == "x"

    with pytest.raises(asyncpg.UniqueViolationError) as raised:
        await writer.execute(outcome_sql.joined(token, direct=direct, always=False))

    assert (raised.value.schema_name, raised.value.table_name, raised.value.constraint_name) == outcome_sql.CONSTRAINT
    assert writer.is_in_transaction()  # so it has to be rolled back
    await writer.execute("ROLLBACK")
    assert home.sql("a", "SELECT n FROM item WHERE id = $1", row) == [(0,)]


@pytest.mark.parametrize(("stored", "answer"), [(True, "w"), (False, "x")])
async def test_two_resolvers_at_once_get_one_answer(
    *, stored: bool, answer: str, home: Cluster, connect: Any, item: Any
) -> None:
    writer, one, other = [await connect(home) for _ in range(3)]
    token, row = new_token(), await item(home)
    if stored:
        await committed(writer, token, row)
    await begin_claim(one)
    first = await ask_claim(one, token)

    second = asyncio.ensure_future(claim(other, token))
    await until(lambda: is_blocked(writer, other))
    await one.execute("COMMIT")

    assert (first, await second) == (answer, answer)


async def test_many_resolvers_at_once_get_one_answer(home: Cluster, connect: Any) -> None:
    askers = [await connect(home) for _ in range(8)]
    for _ in range(20):
        token = new_token()
        assert await asyncio.gather(*(claim(asker, token) for asker in askers)) == ["x"] * 8


async def test_do_nothing_takes_the_resolvers_own_row_for_the_write(home: Cluster, connect: Any) -> None:
    """The forbidden claim: not applied at first, and applied when it is asked again. That loses the write."""
    asker = await connect(home)
    token = new_token()

    assert await asker.fetchval(DO_NOTHING, token) == 1
    assert await asker.fetchval(DO_NOTHING, token) is None


async def test_the_blocker_is_named_and_can_be_ended_by_its_own_role(home: Cluster, connect: Any, item: Any) -> None:
    writer, asker, looker = [await connect(home) for _ in range(3)]
    token, row = new_token(), await item(home)
    await writer.execute("BEGIN")
    await writer.execute(CTE, token, row)
    began = await writer.fetchval(
        "SELECT extract(epoch FROM backend_start)::float8 FROM pg_stat_get_activity($1)", writer.get_server_pid()
    )

    asked = asyncio.ensure_future(claim(asker, token, lock_timeout=3.0))
    (held,) = await until(lambda: looker.fetch(outcome_sql.BLOCKERS, asker.get_server_pid()))
    with pytest.raises(asyncpg.LockNotAvailableError):
        await asked

    assert (held["pid"], held["started"], held["state"]) == (writer.get_server_pid(), began, "idle in transaction")
    assert await looker.fetchval("SELECT pg_terminate_backend($1)", held["pid"])
    assert await claim(asker, token) == "x"
    assert home.sql("a", "SELECT n FROM item WHERE id = $1", row) == [(0,)]


async def test_a_blocker_of_another_role_tells_no_more_than_its_pid(home: Cluster, connect: Any, item: Any) -> None:
    writer = await connect(home, user="postgres")
    asker, looker = await connect(home), await connect(home)
    token, row = new_token(), await item(home)
    await writer.execute("BEGIN")
    await writer.execute(CTE, token, row)

    asked = asyncio.ensure_future(claim(asker, token))
    (held,) = await until(lambda: looker.fetch(outcome_sql.BLOCKERS, asker.get_server_pid()))

    assert dict(held) == {"pid": writer.get_server_pid(), "started": None, "wait_event": None, "state": None}
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await looker.fetchval("SELECT pg_terminate_backend($1)", held["pid"])
    await writer.execute("COMMIT")
    assert await asked == "w"


async def test_a_standby_takes_no_claim(pair: Cluster, connect: Any) -> None:
    standby = await connect(pair, "b")

    with pytest.raises(asyncpg.PostgresError) as raised:
        await standby.execute(outcome_sql.CLAIM_BEGIN)

    assert raised.value.sqlstate == "0A000"  # not 25006: BEGIN READ WRITE itself is refused


async def test_a_claim_does_not_depend_on_what_the_role_is_set_to(home: Cluster, connect: Any, item: Any) -> None:
    home.sql("a", "CREATE ROLE odd LOGIN IN ROLE app")
    for setting, value in (
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "serializable"),
        ("synchronous_commit", "off"),
        ("lock_timeout", "1"),
        ("search_path", "nowhere"),
        ("row_security", "off"),
    ):
        home.sql("a", f"ALTER ROLE odd SET {setting} = '{value}'")
    writer, asker, looker = await connect(home), await connect(home, user="odd"), await connect(home)
    token, row = new_token(), await item(home)
    assert await claim(asker, new_token()) == "x"
    await writer.execute("BEGIN")
    await writer.execute(CTE, token, row)

    asked = asyncio.ensure_future(claim(asker, token))
    await until(lambda: is_blocked(looker, asker))
    await writer.execute("COMMIT")

    assert await asked == "w"  # with a snapshot of its beginning: 40001


# --- with a synchronous standby that does not answer


@pytest.fixture
async def unreplicated(pair: Cluster, connect: Any, item: Any) -> AsyncIterator[UUID]:
    """The token of a write that is committed on the primary alone: its wait for the frozen standby was cancelled."""
    token, row = new_token(), await item(pair)
    writer, looker = await connect(pair), await connect(pair)
    pair.freeze("b")
    original = asyncio.ensure_future(writer.execute(CTE, token, row))
    await until(lambda: waits_for_standby(looker, writer))
    await looker.execute("SELECT pg_cancel_backend($1)", writer.get_server_pid())
    assert await original == "UPDATE 1"  # an acknowledgement that is none (RULES 2.2)
    yield token
    pair.thaw("b")
    await asyncio.to_thread(pair.wait_streaming)


async def waits_for_standby(con: Any, other: Any) -> bool:
    return bool(
        await con.fetchval("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1", other.get_server_pid())
    )


async def test_a_claim_answers_only_what_a_standby_has(unreplicated: UUID, pair: Cluster, connect: Any) -> None:
    asker, looker = await connect(pair), await connect(pair)

    asked = asyncio.ensure_future(claim(asker, unreplicated))
    await until(lambda: waits_for_standby(looker, asker))
    assert not asked.done()
    await asyncio.to_thread(pair.thaw, "b")

    assert await asked == "w"
    assert pair.sql("b", "SELECT kind FROM dbguard.token WHERE token = $1", unreplicated) == [(b"w",)]


async def test_do_nothing_waits_for_no_standby(unreplicated: UUID, pair: Cluster, connect: Any) -> None:
    """The forbidden claim answers "applied" for what no standby has."""
    asker = await connect(pair)

    assert await asker.fetchval(DO_NOTHING, unreplicated, timeout=30) is None


async def test_without_synchronous_commit_a_claim_waits_for_no_standby(
    unreplicated: UUID, pair: Cluster, connect: Any
) -> None:
    """The same claim under ``off`` answers "applied" for what no standby has; a promotion now would lose it."""
    asker = await connect(pair)

    await begin_claim(asker)
    await asker.execute("SET LOCAL synchronous_commit = off")
    assert await ask_claim(asker, unreplicated) == "w"
    await asker.execute("COMMIT", timeout=30)


async def test_a_write_that_waits_for_a_standby_holds_the_claim_and_is_known_by_it(
    pair: Cluster, connect: Any, item: Any
) -> None:
    writer, asker, later, looker = [await connect(pair) for _ in range(4)]
    token, row = new_token(), await item(pair)
    pair.freeze("b")
    try:
        original = asyncio.ensure_future(writer.execute(CTE, token, row))
        await until(lambda: waits_for_standby(looker, writer))
        asked = asyncio.ensure_future(claim(asker, token))
        held = await until(lambda: looker.fetch(outcome_sql.BLOCKERS, asker.get_server_pid()))
    finally:
        pair.thaw("b")

    assert [(row["pid"], row["wait_event"]) for row in held] == [(writer.get_server_pid(), "SyncRep")]
    assert (await original, await asked, await claim(later, token)) == ("UPDATE 1", "w", "w")


async def test_an_earlier_claim_that_waits_for_a_standby_holds_the_next_and_is_known_by_it(
    pair: Cluster, connect: Any
) -> None:
    first, second, looker = [await connect(pair) for _ in range(3)]
    token = new_token()
    pair.freeze("b")
    try:
        asked = asyncio.ensure_future(claim(first, token))
        await until(lambda: waits_for_standby(looker, first))
        with pytest.raises(asyncpg.LockNotAvailableError):
            await claim(second, token, lock_timeout=0.2)
        again = asyncio.ensure_future(claim(second, token))
        held = await until(lambda: looker.fetch(outcome_sql.BLOCKERS, second.get_server_pid()))
    finally:
        pair.thaw("b")

    assert [(row["pid"], row["wait_event"]) for row in held] == [(first.get_server_pid(), "SyncRep")]
    assert (await asked, await again) == ("x", "x")


async def test_what_a_hasty_claim_called_applied_is_lost_by_the_promotion(cluster_factory: Any, connect: Any) -> None:
    """The whole story: a claim under ``synchronous_commit = off`` says w, and the write is on no server any more."""
    cluster = cluster_factory(replicas=1, synchronous=True)
    await asyncio.to_thread(cluster.sql, "a", "CREATE ROLE app LOGIN")
    await asyncio.to_thread(install, cluster)
    writer, asker = await connect(cluster), await connect(cluster)
    token = new_token()
    await asyncio.to_thread(cluster.kill, "b")  # not frozen: what waits in its socket would reach it after all
    original = asyncio.ensure_future(writer.execute("INSERT INTO dbguard.token (token) VALUES ($1)", token))
    await until(lambda: waits_for_standby(asker, writer))
    writer.terminate()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await original
    await asyncio.to_thread(cluster.terminate_backends, "a", where="wait_event = 'SyncRep'")
    await begin_claim(asker)
    await asker.execute("SET LOCAL synchronous_commit = off")
    assert await ask_claim(asker, token) == "w"
    await asker.execute("COMMIT", timeout=30)

    await asyncio.to_thread(cluster.kill, "a")
    await asyncio.to_thread(cluster.start_node, "b")
    await asyncio.to_thread(cluster.promote, "b")
    await asyncio.to_thread(cluster.sql, "b", "ALTER SYSTEM SET synchronous_standby_names = ''")
    await asyncio.to_thread(cluster.sql, "b", "SELECT pg_reload_conf()")

    assert await claim(await connect(cluster, "b"), token) == "x"
