"""Sessions over a guard: where their statements go, and what may be written."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, exc, func, insert, inspect, select, text, update
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm import joinedload, selectinload, sessionmaker, subqueryload
from sqlalchemy.sql import Delete, Update

from dbguard.integrations.sqlalchemy import (
    AsyncSession,
    LoadedFromReplica,
    NotARead,
    Session,
    replica_engine,
)
from tests.integrations.shop import WHERE, Item, Part

HERE = func.current_setting("cluster_name")
PRIMARY, REPLICAS = "a", {"b", "c"}


def on_replica(statement):
    return statement.execution_options(dbguard_role="replica")


@pytest.fixture
async def sessions(shop):
    return async_sessionmaker(shop, class_=AsyncSession)


@pytest.fixture
async def stocked(calm_cluster, sessions):
    """An item with two parts, on all nodes."""
    async with sessions() as session:
        session.add(Item(id=1, stock=10, parts=[Part(id=1), Part(id=2)]))
        await session.commit()
    for replica in calm_cluster.replicas:
        await asyncio.to_thread(calm_cluster.wait_for, replica, "SELECT count(*) = 2 FROM part")
    return sessions


@pytest.fixture
async def lagging(calm_cluster, stocked):
    """The same, and from now on the replicas replay nothing."""
    for replica in calm_cluster.replicas:
        await asyncio.to_thread(calm_cluster.pause_replay, replica)
    yield stocked
    for replica in calm_cluster.replicas:
        await asyncio.to_thread(calm_cluster.resume_replay, replica)


async def stock(sessions):
    async with sessions() as session:
        return await session.scalar(select(Item.stock))


# ---------------------------------------------------------------------- where statements go


async def test_session_reads_from_the_primary_unless_it_is_asked_otherwise(sessions):
    async with sessions() as session:
        assert await session.scalar(WHERE) == PRIMARY
        assert await session.scalar(on_replica(WHERE)) in REPLICAS
        assert await session.scalar(WHERE, execution_options={"dbguard_role": "replica"}) in REPLICAS
        assert (await session.execute(on_replica(WHERE))).scalar_one() in REPLICAS
        assert (await session.scalars(on_replica(WHERE))).one() in REPLICAS
        assert (await (await session.stream(on_replica(WHERE))).scalars().one()) in REPLICAS
        assert await session.scalar(on_replica(WHERE), execution_options={"dbguard_role": "primary"}) == PRIMARY


WRITES = {
    "for update": select(HERE).select_from(Item).with_for_update(),
    "nextval": select(func.nextval("item_id_seq"), HERE).with_only_columns(HERE, func.nextval("item_id_seq")),
    "text that writes": text("INSERT INTO item VALUES (2, 1) RETURNING current_setting('cluster_name')"),
    "writing CTE": select(HERE).add_cte(insert(Item).values(id=3, stock=1).cte("added")),
    "advisory lock": select(HERE, func.pg_advisory_xact_lock(1)),
    "insert": insert(Item).values(id=4, stock=1).returning(HERE),
    "update": update(Item).values(stock=2).returning(HERE),
    "delete": delete(Part).returning(HERE),
}


@pytest.mark.parametrize("statement", WRITES.values(), ids=WRITES)
async def test_what_writes_or_locks_goes_to_the_primary_whatever_it_asks_for(stocked, statement):
    async with stocked() as session:
        assert await session.scalar(on_replica(statement)) == PRIMARY


@pytest.mark.parametrize("statement", WRITES.values(), ids=WRITES)
async def test_read_only_session_refuses_what_is_for_the_primary(stocked, statement):
    async with stocked(readonly=True) as session:
        with pytest.raises(NotARead, match="this is for the primary, not for a replica"):
            await session.execute(statement)

        assert await session.scalar(WHERE) in REPLICAS


async def test_read_only_session_is_on_one_replica_in_a_read_only_transaction(stocked):
    async with stocked(readonly=True) as session:
        seen = {await session.scalar(WHERE) for _ in range(4)}
        item = await session.get(Item, 1)
        assert item is not None
        assert await session.scalar(text("SHOW transaction_read_only")) == "on"
        await session.execute(text("SET LOCAL work_mem = '8MB'"))
        assert await session.scalar(text("SHOW work_mem")) == "8MB"

        item.stock = 3
        with pytest.raises(NotARead, match="read-only"):
            await session.commit()

    assert len(seen) == 1
    assert seen < REPLICAS


async def test_session_that_has_written_sees_its_own_rows(stocked):
    async with stocked() as session:
        session.add(Item(id=2, stock=1))
        await session.flush()

        assert await session.scalar(on_replica(select(func.count(Item.id)))) == 2
        assert await session.scalar(on_replica(WHERE)) == PRIMARY
        await session.rollback()
        assert await session.scalar(on_replica(WHERE)) in REPLICAS
        await session.execute(text("UPDATE item SET stock = stock"))
        assert await session.scalar(on_replica(WHERE)) == PRIMARY


async def test_session_that_has_copied_on_the_drivers_connection_sees_its_own_rows(stocked):
    async with stocked() as session:
        con = await session.connection()
        assert await session.scalar(on_replica(WHERE)) in REPLICAS
        await session.scalar(WHERE)  # which begins the transaction
        raw = (await con.get_raw_connection()).driver_connection
        await raw.copy_records_to_table("item", records=[(2, 1)], columns=["id", "stock"])

        assert await session.scalar(on_replica(select(func.count(Item.id)))) == 2
        await session.rollback()
        assert await session.scalar(on_replica(WHERE)) in REPLICAS


async def test_rows_that_wait_for_a_flush_are_flushed_first(stocked):
    async with stocked() as session:
        session.add(Item(id=2, stock=1))

        assert await session.scalar(on_replica(select(func.count(Item.id)))) == 2


async def test_session_that_has_only_read_on_the_primary_may_go_on_to_a_replica(stocked):
    async with stocked() as session:
        await session.get(Item, 1)

        assert await session.scalar(on_replica(WHERE)) in REPLICAS


async def test_role_that_is_none_is_an_error(sessions):
    async with sessions() as session:
        with pytest.raises(exc.ArgumentError, match="dbguard_role must be primary or replica, not 'standby'"):
            await session.execute(WHERE.execution_options(dbguard_role="standby"))


# ---------------------------------------------------------------------- lost updates


async def test_recipe_that_everybody_copies_loses_an_update(lagging, shop):
    """Flush and DML to the primary, everything else to a replica: what was loaded there undoes what it did not see."""
    replica = replica_engine(shop).sync_engine

    class Routing(PlainSession):
        def get_bind(self, mapper=None, *, clause=None, **given):
            if self._flushing or isinstance(clause, (Update, Delete)):
                return shop.sync_engine
            return replica

    recipe = async_sessionmaker(sync_session_class=Routing)
    assert await sold_by_two(lagging, recipe) == 9  # not 6


async def test_session_over_a_guard_loses_no_update(lagging):
    assert await sold_by_two(lagging, lagging) == 6


async def sold_by_two(sessions, tried):
    """Sell three of ten, then one more by sessions that are tried; return what is left."""
    async with sessions() as session:
        (await session.get_one(Item, 1)).stock -= 3
        await session.commit()
    async with tried() as session:
        (await session.get_one(Item, 1)).stock -= 1
        await session.commit()
    return await stock(sessions)


async def test_what_was_loaded_from_a_replica_cannot_be_flushed(lagging):
    async with lagging() as session:
        (await session.get_one(Item, 1)).stock = 7
        await session.commit()

    async with lagging() as session:
        old = await session.scalar(on_replica(select(Item)))
        assert old.stock == 10
        old.stock -= 1
        with pytest.raises(LoadedFromReplica, match="Item was loaded by a statement that asked for a replica"):
            await session.commit()
        await session.rollback()

        await session.delete(await session.scalar(on_replica(select(Item))))
        with pytest.raises(LoadedFromReplica):
            await session.flush()

    assert await stock(lagging) == 7


async def test_what_was_loaded_from_a_replica_is_not_found_by_other_reads_of_the_session(lagging):
    async with lagging() as session:
        (await session.get_one(Item, 1)).stock = 7
        await session.commit()

    async with lagging() as session:
        old = await session.scalar(on_replica(select(Item)))
        present = await session.get_one(Item, 1)
        assert (old.stock, present.stock) == (10, 7)
        present.stock -= 1
        await session.commit()

    assert await stock(lagging) == 6


async def test_another_session_does_not_write_it_either(stocked):
    async with stocked() as session:
        old = await session.scalar(on_replica(select(Item)))
    async with stocked() as session:
        session.add(old)
        old.stock = 1
        with pytest.raises(LoadedFromReplica):
            await session.commit()
    async with stocked() as session:
        old.stock = 2
        await session.merge(old)
        with pytest.raises(LoadedFromReplica):
            await session.commit()


async def test_what_was_loaded_from_a_replica_may_be_pointed_at(stocked):
    async with stocked() as session:
        item = await session.scalar(on_replica(select(Item)))
        session.add(Part(id=3, item_id=item.id))
        await session.commit()

        assert await session.scalar(select(func.count(Part.id))) == 3


@pytest.mark.parametrize("load", [joinedload, selectinload, subqueryload])
async def test_eager_loads_go_where_their_statement_went(lagging, load):
    async with lagging() as session:
        await session.execute(delete(Part))
        await session.commit()

    async with lagging() as session:
        item = (await session.scalars(on_replica(select(Item).options(load(Item.parts))))).unique().one()

        assert [part.id for part in item.parts] == [1, 2]
        assert {inspect(part).identity_token for part in item.parts} == {inspect(item).identity_token}


async def test_get_asks_for_a_replica_by_its_options(lagging):
    async with lagging() as session:
        (await session.get_one(Item, 1)).stock = 7
        await session.commit()

    async with lagging() as session:
        asked = {"dbguard_role": "replica"}
        assert (await session.get_one(Item, 1, execution_options=asked)).stock == 10
        assert (await session.run_sync(lambda s: s.query(Item).execution_options(**asked).one())).stock == 10
        assert (await session.run_sync(lambda s: s.query(Item).one())).stock == 7


# ---------------------------------------------------------------------- how sessions are made


async def test_session_class_may_be_given_to_sqlalchemys_own(shop):
    class Mine(Session):
        """A class of the application's."""

    for maker in (
        async_sessionmaker(shop, sync_session_class=Session),
        async_sessionmaker(shop, sync_session_class=Mine),
        async_sessionmaker(shop, sync_session_class=sessionmaker(class_=Session)),
    ):
        async with maker(readonly=True) as session:
            assert type(session) is sa_asyncio.AsyncSession
            assert await session.scalar(WHERE) in REPLICAS


async def test_session_follows_an_engine_with_options_of_its_own(shop):
    derived = shop.execution_options(isolation_level="REPEATABLE READ")
    async with AsyncSession(derived) as session:
        assert await session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert await session.scalar(on_replica(WHERE)) in REPLICAS


async def test_read_only_session_needs_an_engine_over_a_guard(calm_cluster):
    engine = sa_asyncio.create_async_engine(calm_cluster.dsn("a").replace("postgresql:", "postgresql+asyncpg:"))
    async with AsyncSession(engine) as session:
        assert await session.scalar(on_replica(WHERE)) == PRIMARY
    async with AsyncSession(engine, readonly=True) as session:
        with pytest.raises(exc.ArgumentError, match="a read-only session needs an engine made by dbguard"):
            await session.execute(WHERE)
    await engine.dispose()
