"""The SQL of the schema ``dbguard``: its tables and rights, and what writes, claims and the pruner say to it.

What a token proves:

* A write puts its token into ``dbguard.token`` (kind ``w``) in its own transaction: the row is there if and only if the
  transaction committed.
* A claim puts the same token there (kind ``x``). The primary key lets one of the two win. If it finds ``w``, the write
  had committed. If it leaves ``x``, the write has not committed, and cannot any more: it would break the key.
* The pruner removes old ``w`` rows, and moves the horizon first: a claim below the horizon has no answer, never a wrong
  one. It keeps ``x`` rows for 30 days, because each holds a door closed behind which a late write may still stand.

The schema is the same on PostgreSQL 13 to 18. Every statement here names its objects in full, so no ``search_path``
changes what it means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

__all__ = [
    "BATCH",
    "BLOCKERS",
    "CLAIM",
    "CLAIM_BEGIN",
    "CLAIM_HORIZON",
    "CONSTRAINT",
    "CTE_NAME",
    "PRUNE",
    "REIGN_BEGIN",
    "REIGN_READ",
    "VERSION",
    "cte_item",
    "grants",
    "joined",
    "quoted",
    "reign_add",
    "schema",
    "settings",
]

VERSION = 1
"""The version of the schema, kept in its comment. A later one upgrades an earlier one; never the other way round."""

BATCH = 10_000
"""Tokens that one transaction of the pruner deletes: claims wait at most for one (some 50 ms)."""

CONSTRAINT = ("dbguard", "token", "token_pkey")
"""Schema, table and constraint of the 23505 that a write gets if its token was claimed before it could commit."""

CTE_NAME = '"dbguard token"'
"""The name of the item that carries the token in a statement's WITH. No table that a statement means has such a name."""


# --- what writes say


def cte_item(parameter: str) -> str:
    """Return the first item of a write's WITH, which stores the token; *parameter*: its placeholder, such as ``$3``.

    Nothing refers to the item, so the server runs it last: a write that waits for a lock has stored no token yet.
    """
    return f"{CTE_NAME} AS (INSERT INTO dbguard.token (token) VALUES ({parameter}))"  # noqa: S608  a placeholder


def joined(token: UUID, *, direct: bool, always: bool) -> str:
    """Return the token and COMMIT as one simple query; if the token is refused, the server does not reach COMMIT.

    direct: an INSERT as the present role, some 10 us cheaper, where the block saw neither SET ROLE nor READ ONLY;
    otherwise `dbguard.mark`, which works under any role. always: store it even if the transaction has written nothing
    that the server tells of (a NOTIFY has no transaction id): a READ ONLY block fails then (25006). Otherwise a block
    that only read stores nothing, is assigned no transaction id, and does not fail where it is READ ONLY; one that wrote
    or notified and is READ ONLY *then* commits without its token, so it must not be given one. Where every statement is
    known to read, end the block with a plain COMMIT: the condition alone costs some 60 us.
    """
    stored = f"'{token}'::pg_catalog.uuid"
    wrote = "pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
    writable = "pg_catalog.current_setting('transaction_read_only') = 'off'"
    if direct:
        return f"INSERT INTO dbguard.token (token) SELECT {stored}{'' if always else f' WHERE {wrote}'}; COMMIT"
    return f"SELECT dbguard.mark({stored}){'' if always else f' WHERE {wrote} AND {writable}'}; COMMIT"


# --- what a claim says, on a control connection to the fenced primary, in this order, and then COMMIT

CLAIM_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
"""Whatever the role's defaults are: a new snapshot for each statement, and writable. A standby refuses it with 0A000
("cannot set transaction read-write mode during recovery"), not with 25006."""


def settings(*, synchronous_commit: str, lock_timeout: float) -> str:
    """Return what holds for the claim's transaction alone.

    synchronous_commit: the write's, but at least ``on``: on, remote_apply. With less, the claim could call a write
    applied that no standby has. lock_timeout: seconds, above 0, after which a claim that waits gets 55P03.
    Raises ValueError for any other value.
    """
    if synchronous_commit not in ("on", "remote_apply"):
        raise ValueError(f"a claim cannot be made with synchronous_commit = {synchronous_commit}")
    milliseconds = round(lock_timeout * 1000)
    if milliseconds < 1:
        raise ValueError("a claim's lock_timeout should be 1 ms at least: 0 waits for ever")
    return (
        f"SET LOCAL synchronous_commit = {synchronous_commit}; SET LOCAL lock_timeout = {milliseconds}; "
        "SET LOCAL client_min_messages = warning"
    )


CLAIM_HORIZON = "SELECT token FROM dbguard.horizon FOR SHARE"
"""One row, one column: the horizon. A token below it gets no answer. The lock keeps the pruner out until the claim ends;
a claim that had to wait for the pruner reads what the pruner wrote. 55P03 here: the pruner holds it. No row: unfit."""

CLAIM = (
    "INSERT INTO dbguard.token AS t (token, kind) VALUES ($1, 'x') "
    "ON CONFLICT (token) DO UPDATE SET n = t.n + 1 RETURNING kind::pg_catalog.text"
)
"""One row, one column: ``w``, it had committed; ``x``, it has not and never will.

Both branches write, so COMMIT waits for a standby whichever it was. DO NOTHING would take a resolver's own ``x`` for the
write's token when it is asked again, and would wait for no standby. 55P03: the write, or another claim, is under way."""

BLOCKERS = """
SELECT pid, extract(epoch FROM backend_start)::float8 AS started, wait_event, state
FROM pg_catalog.pg_stat_activity WHERE pid = ANY (pg_catalog.pg_blocking_pids($1))
"""
"""Who holds up the claim of backend $1, asked on another connection while it waits: each backend, when it began (seconds
since 1970), and what it waits for itself (``SyncRep``: a standby). Columns of another role's backend are NULL unless the
asking role has pg_read_all_stats."""

# --- what marks a reign

REIGN_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL lock_timeout = 100"
"""What stands before `REIGN_READ`: who locks the table holds up no probe for longer than that, in milliseconds."""

REIGN_READ = "SELECT timeline, mark FROM dbguard.reign ORDER BY timeline DESC LIMIT 1"
"""The last mark, on the primary or on a replica: of the reign that it follows, or of an earlier one. No row: no mark yet."""


def reign_add(timeline: int, mark: UUID) -> str:
    """Return what marks the reign that began on *timeline*, as one transaction; whoever comes first wins.

    It waits for no standby: after a promotion there may be none yet, and a mark that is lost is lost with its reign. Under
    another timeline than the server's it does nothing.
    """
    return (
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = local; "
        "SET LOCAL lock_timeout = 100; "
        f"INSERT INTO dbguard.reign (timeline, mark) SELECT {timeline:d}, '{mark}'::pg_catalog.uuid "
        "WHERE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) "
        f"= '{timeline:08X}' ON CONFLICT (timeline) DO NOTHING"
    )


# --- what the pruner says

PRUNE = "SELECT dbguard.prune(pg_catalog.make_interval(secs => $1), $2)"
"""Delete one batch: tokens older than $1 seconds, $2 at most; returns how many. Repeat until fewer than $2 came back."""

# --- what `dbguard outcome install` says

_SCHEMA = """
-- One installation at a time.
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('dbguard outcome install'));

CREATE SCHEMA IF NOT EXISTS dbguard{authorization};
{set_role}
-- One row per write of the last hour, and one per write whose fate was asked.
-- Logged, always: an unlogged table is empty after a crash and on a promoted
-- standby, and an absent token says that its write was not applied.
CREATE TABLE IF NOT EXISTS dbguard.token (
    token uuid PRIMARY KEY,                         -- UUIDv7: new ones go to the right end of the index
    kind  "char" NOT NULL DEFAULT 'w',              -- w: stored by the write; x: by a claim that came first
    at    timestamptz NOT NULL DEFAULT now(),       -- for people; decides nothing
    n     int NOT NULL DEFAULT 0                    -- how often it was claimed again
);
-- Many inserts on the right, many deletes on the left, hardly an update: full
-- pages; a vacuum after deletes, and none for inserts, which are deleted soon.
ALTER TABLE dbguard.token SET (
    fillfactor = 100,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_threshold = -1
);

-- One row: tokens below it may have been deleted, so nothing is said of them.
CREATE TABLE IF NOT EXISTS dbguard.horizon (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    token uuid NOT NULL,
    at    timestamptz NOT NULL DEFAULT now()        -- when the pruner ran last
);
INSERT INTO dbguard.horizon (token) VALUES ('00000000-0000-0000-0000-000000000000') ON CONFLICT DO NOTHING;

-- One row per primary's time in office: two promotions can bear one timeline number.
CREATE TABLE IF NOT EXISTS dbguard.reign (
    timeline int PRIMARY KEY,
    mark     uuid NOT NULL
);

-- Stores a write's token under whatever role the application has taken on.
CREATE OR REPLACE FUNCTION dbguard.mark(uuid) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$BEGIN INSERT INTO dbguard.token (token) VALUES ($1); END$$;

-- Moves the horizon, which locks it, and deletes one batch; returns how many.
-- An x holds the door closed behind which a late write may still stand (one
-- that waits for a lock since yesterday), so it stays for 30 days more.
CREATE OR REPLACE FUNCTION dbguard.prune(retention interval DEFAULT '1 hour', batch int DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept_w uuid;
    kept_x uuid;
    gone bigint;
BEGIN
    IF retention < interval '0' OR batch < 1 THEN
        RAISE EXCEPTION 'retention should not be negative, and batch be 1 at least' USING ERRCODE = '22023';
    END IF;
    -- The first UUIDv7 of that millisecond.
    kept_w := (lpad(to_hex(floor(extract(epoch FROM clock_timestamp() - retention) * 1000)::bigint), 12, '0')
        || '70008000000000000000')::uuid;
    kept_x := (lpad(to_hex(floor(extract(epoch FROM clock_timestamp() - retention - interval '30 days') * 1000)::bigint),
        12, '0') || '70008000000000000000')::uuid;
    UPDATE dbguard.horizon SET token = greatest(token, kept_w), at = clock_timestamp();
    DELETE FROM dbguard.token WHERE token IN (
        SELECT token FROM dbguard.token WHERE token < kept_w AND (kind = 'w' OR token < kept_x)
        ORDER BY token LIMIT batch
    );
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

REVOKE ALL ON ALL TABLES IN SCHEMA dbguard FROM PUBLIC;
REVOKE ALL ON FUNCTION dbguard.prune(interval, int) FROM PUBLIC;
GRANT USAGE ON SCHEMA dbguard TO PUBLIC;
GRANT EXECUTE ON FUNCTION dbguard.mark(uuid) TO PUBLIC;

COMMENT ON SCHEMA dbguard IS 'dbguard: tokens that prove what became of a write; schema version {version}';
""".strip()

_GRANTS = """
-- What the role of the guard needs, and no more: to store and to claim tokens,
-- to lock the horizon (`one` can only ever be true), to mark a reign, to prune.
GRANT SELECT, INSERT (token, kind), UPDATE (n) ON dbguard.token TO {role};
GRANT SELECT, UPDATE (one) ON dbguard.horizon TO {role};
GRANT SELECT, INSERT (timeline, mark) ON dbguard.reign TO {role};
GRANT EXECUTE ON FUNCTION dbguard.prune(interval, int) TO {role};
""".strip()


def quoted(name: str) -> str:
    """Return *name* as an SQL identifier. Raises ValueError for an empty one or one with a NUL."""
    if not name or "\x00" in name:
        raise ValueError("a role's name should not be empty, nor hold a NUL")
    return '"' + name.replace('"', '""') + '"'


def schema(owner: str | None = None) -> str:
    """Return the schema's DDL, for one transaction; run again, it changes nothing, or upgrades an earlier version.

    owner: the role that shall own everything; it needs no login. Default: whoever runs it.
    """
    return _SCHEMA.format(
        authorization="" if owner is None else f" AUTHORIZATION {quoted(owner)}",
        set_role="" if owner is None else f"SET LOCAL ROLE {quoted(owner)};\n",
        version=VERSION,
    )


def grants(role: str) -> str:
    """Return the least rights of *role*, which a guard logs in as, for the same transaction."""
    return _GRANTS.format(role=quoted(role))
