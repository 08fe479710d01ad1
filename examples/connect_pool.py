"""Keep the application's own pool object, and let a guard choose where its connections lead.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop python connect_pool.py

After a failover the pools lead to the new primary and to its replicas, without a restart and without another address.
What runs on them stays the application's: nothing is repeated. Where that is wanted, use the guard itself.
"""

from __future__ import annotations

import asyncio
import os

import asyncpg

import dbguard


async def main() -> None:
    """Write through a pool of connections to the primary, read through one of connections to replicas."""
    async with (
        dbguard.connect(os.environ["DATABASE_URL"]) as guard,
        asyncpg.create_pool(connect=guard.connector("primary"), min_size=1) as writer,
        asyncpg.create_pool(connect=guard.connector("replica"), min_size=1) as reader,
    ):
        await writer.execute("CREATE TABLE IF NOT EXISTS visit (at timestamptz NOT NULL DEFAULT now())")
        await writer.execute("INSERT INTO visit DEFAULT VALUES")
        print("writer on a standby:", await writer.fetchval("SELECT pg_is_in_recovery()"))
        print("reader on a standby:", await reader.fetchval("SELECT pg_is_in_recovery()"))


if __name__ == "__main__":
    asyncio.run(main())
