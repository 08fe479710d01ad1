"""Guard pools that the application has already: one asyncpg pool per node, named in any order.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop python wrap_pool.py

The pools stay the application's: `setup=` and `reset=` hooks run as before, and closing the guard leaves them open.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import asyncpg

import dbguard


def one_per_node(dsn: str) -> list[str]:
    """Split a DSN of several hosts into one for each."""
    scheme, _, rest = dsn.partition("://")
    authority, slash, database = rest.partition("/")
    login, at, hosts = authority.rpartition("@")
    return [f"{scheme}://{login}{at}{host}{slash}{database}" for host in hosts.split(",")]


async def main() -> None:
    """Write through one pool and read through another; which is which is found out."""
    async with AsyncExitStack() as stack:
        dsns = one_per_node(os.environ["DATABASE_URL"])
        pools = [await stack.enter_async_context(asyncpg.create_pool(dsn, min_size=1)) for dsn in dsns]
        async with dbguard.Guard.wrap(primary=pools[0], replicas=pools[1:]) as guard:
            await guard.execute("CREATE TABLE IF NOT EXISTS visit (at timestamptz NOT NULL DEFAULT now())")
            await guard.execute("INSERT INTO visit DEFAULT VALUES")
            print("visits:", await guard.fetchval("SELECT count(*) FROM visit"))
            for node in guard.status().nodes:
                print(f"{node.name}: {node.role}")
        print("pools still open:", sum(not pool.is_closing() for pool in pools))


if __name__ == "__main__":
    asyncio.run(main())
