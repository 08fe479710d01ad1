"""Guard a pool of psycopg_pool's that the application has already: one line over it.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop?target_session_attrs=primary python wrap_psycopg_pool.py

The pool stays the application's: its hooks run as before, and closing the guard leaves it open. Its DSN leads to whichever
host is the primary, and `follows` says so; with a pool for each node, they are given as `wrap(first, [second, third])`.
"""

from __future__ import annotations

import os

from psycopg_pool import ConnectionPool

import dbguard


def main() -> None:
    """Write and read as before, through a failover, too; each call may be repeated where that is safe."""
    with ConnectionPool(os.environ["DATABASE_URL"], min_size=1) as pool:
        with dbguard.SyncGuard.wrap(dbguard.follows(pool)) as guard:
            guard.execute("CREATE TABLE IF NOT EXISTS visit (at timestamptz NOT NULL DEFAULT now())")
            guard.execute("INSERT INTO visit DEFAULT VALUES")
            print("visits:", guard.fetchone("SELECT count(*) FROM visit")[0])
            with guard.connection() as con:  # what `pool.connection()` means: a transaction, committed at its end
                print("on", con.node, "as", con.execute("SELECT current_user").fetchone()[0])
        print("pool still open:", not pool.closed)


if __name__ == "__main__":
    main()
