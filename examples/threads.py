"""psycopg's words in threads: a write by itself, a transaction, a function that is repeated, and four threads at once.

DATABASE_URL=postgresql://app@db1,db2,db3/shop python threads.py

Any thread may use the guard. What watches the nodes runs in one daemon thread of its own.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dbguard

if TYPE_CHECKING:
    import psycopg


def main() -> None:
    """Sell ten of one item, from four threads."""
    with dbguard.SyncGuard(os.environ["DATABASE_URL"]) as guard:
        guard.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY, n int)")
        guard.execute("INSERT INTO item VALUES (7, 100) ON CONFLICT (id) DO UPDATE SET n = 100")
        use(guard)
        with ThreadPoolExecutor(4) as threads:
            sold = sum(threads.map(lambda _: guard.run_in_transaction(sell, isolation="serializable"), range(8)))
        print("sold by functions:", sold)
        print("left:", guard.fetchone("SELECT n FROM item WHERE id = 7"))


def use(guard: dbguard.SyncGuard) -> None:
    """Write by itself, then in a transaction."""
    guard.execute("UPDATE item SET n = n - 1 WHERE id = %s", (7,))  # by itself, routed, repeated where that is safe
    with guard.connection() as con:  # psycopg's meaning: a transaction on the primary, committed at the end
        con.execute("UPDATE item SET n = n - 1 WHERE id = %s", (7,))


def sell(con: psycopg.Connection[Any]) -> int:
    """Sell one; run again where another transaction was in the way, so it must have no effect outside."""
    con.execute("UPDATE item SET n = n - 1 WHERE id = 7")
    return 1


if __name__ == "__main__":
    main()
