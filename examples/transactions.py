"""Move money in a transaction function: repeated whole where that is safe, and never twice.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop python transactions.py

Each transfer has an id of the application's own, written in the same transaction. That makes it safe to send it again
after `OutcomeUnknown`: if the first one was applied, the second finds its id and does nothing.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import TYPE_CHECKING

import asyncpg

import dbguard

if TYPE_CHECKING:
    from dbguard import Connection, Guard

TABLES = """
    CREATE TABLE IF NOT EXISTS account (name text PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0));
    CREATE TABLE IF NOT EXISTS transfer (id uuid PRIMARY KEY, source text, target text, amount int);
    INSERT INTO account VALUES ('anna', 100), ('ben', 100) ON CONFLICT (name) DO UPDATE SET balance = 100
"""

TAKE = "UPDATE account SET balance = balance - $2 WHERE name = $1"
GIVE = "UPDATE account SET balance = balance + $2 WHERE name = $1"
NOTE = "INSERT INTO transfer VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id"


async def transfer(guard: Guard, source: str, target: str, amount: int) -> str:
    """Move *amount*, and say in a word what became of it."""
    number = uuid.uuid4()

    async def move(tx: Connection) -> int:
        # Runs again from its first line in a new transaction, so it has no effect outside of `tx`.
        if await tx.fetchval(NOTE, number, source, target, amount) is not None:
            await tx.execute(TAKE, source, amount)
            await tx.execute(GIVE, target, amount)
        return tx.attempt

    for _ in range(3):
        try:
            attempt = await guard.run_in_transaction(move, isolation="serializable", timeout=10)
        except dbguard.OutcomeUnknown:
            continue  # the COMMIT was sent and its answer lost: ask again, with the same id
        except dbguard.NotAttempted as error:
            return f"not sent, nothing was moved; try again in {error.retry_after or 1:g} s"
        except dbguard.DeadlineExceeded:
            return "no time left, nothing was moved"
        except asyncpg.CheckViolationError:  # PostgreSQL's own answers come as asyncpg raises them
            return f"refused, {source} has too little"
        else:
            return "moved" if attempt == 1 else f"moved at attempt {attempt}"
    return f"unknown: look for transfer {number} before you move it again"


async def main() -> None:
    """Let three transfers meet on the same rows, and a fourth fail; no money appears or vanishes."""
    async with dbguard.connect(os.environ["DATABASE_URL"]) as guard:
        await guard.execute(TABLES)
        for outcome in await asyncio.gather(*(transfer(guard, "anna", "ben", 10) for _ in range(3))):
            print(outcome)
        print(await transfer(guard, "anna", "ben", 1000))
        for row in await guard.fetch("SELECT name, balance FROM account ORDER BY name"):
            print(f"{row['name']} has {row['balance']}")


if __name__ == "__main__":
    asyncio.run(main())
