"""quickstart.py: a write, a read that sees it, and where the next read would go."""

import asyncio
import os

import dbguard


async def main() -> None:
    """DATABASE_URL names all nodes, in any order: postgresql://app@db1,db2,db3/shop."""
    async with dbguard.connect(os.environ["DATABASE_URL"]) as guard:
        await guard.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY, n int)")  # the primary
        await guard.execute("INSERT INTO item VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET n = item.n + 1", 7)
        print(await guard.fetchval("SELECT n FROM item WHERE id = $1", 7))  # sees the write above, wherever it runs
        async with guard.causal():  # a context of its own, such as a web request; it has written nothing
            print(guard.route("SELECT n FROM item"))  # so its reads may go to a replica


asyncio.run(main())
