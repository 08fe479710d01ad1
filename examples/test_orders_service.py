"""The order service through a failover: what its clients saw, for how long, and whether an order was lost or doubled.

pytest examples/test_orders_service.py -s
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from orders_service import create_app

from dbguard.testing.callers import Callers
from dbguard.testing.ledger import Ledger, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dbguard.testing.cluster import Cluster
    from dbguard.testing.faults import Faults

pytestmark = [pytest.mark.asyncio, pytest.mark.dbguard(synchronous=True)]  # so that a failover may lose nothing


@asynccontextmanager
async def service(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run the service, and give a client of it."""
    app = create_app(dsn)
    web = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=web, base_url="http://shop") as client:
        yield client


async def test_failover_loses_no_order_and_takes_none_twice(
    dbguard_cluster: Cluster, dbguard_faults: Faults, dbguard_dsn: str
) -> None:
    """Eight clients order while the primary dies, and another node takes over a second later."""
    ledger = Ledger()
    async with service(dbguard_dsn) as client:

        async def order(number: int) -> None:
            answer = await client.post("/orders", json={"number": number, "article": 1})
            if answer.status_code == 503 and "Retry-After" in answer.headers:
                raise Refused("503, come again")
            answer.raise_for_status()

        async with Callers(order, ledger, count=8) as callers:
            await callers.acknowledged(50)
            async with dbguard_faults.failover(after=1.0):
                await callers.acknowledged(50)
            await callers.acknowledged(50)  # the old primary is back, as a replica

    orders = [number for (number,) in dbguard_cluster.sql("b", "SELECT number FROM purchase")]
    audit = ledger.audit(orders)
    print(audit)
    audit.check()
    assert audit.unknown <= 8, "at most one for each client: its order was on the way when the primary died"
    assert audit.silence < 30, "seconds"
    assert dbguard_cluster.sql("b", "SELECT left_over FROM stock") == [(1_000_000 - len(orders),)]
