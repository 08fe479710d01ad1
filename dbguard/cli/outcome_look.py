"""Looking at the schema of tokens on one server: what is there, who may use it, and how much it holds. Reads only."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["TokenSchema", "look_at_schema", "seconds_of"]

# Catalogues that every role may read, on versions 13 to 18.
_CATALOGUE = """
SELECT current_database()::text AS database,
    current_user::text AS role,
    current_setting('server_version_num')::int AS number,
    n.oid IS NOT NULL AS present,
    obj_description(n.oid, 'pg_namespace') AS comment,
    pg_get_userbyid(n.nspowner)::text AS owner,
    ARRAY(SELECT DISTINCT pg_get_userbyid(c.relowner)::text FROM pg_class c WHERE c.relnamespace = n.oid
          UNION SELECT pg_get_userbyid(p.proowner)::text FROM pg_proc p WHERE p.pronamespace = n.oid) AS owners,
    ARRAY(SELECT concat_ws(' ', c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod),
              CASE WHEN a.attnotnull THEN 'not null' END, 'default ' || pg_get_expr(d.adbin, d.adrelid))
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
          WHERE c.relnamespace = n.oid AND c.relkind = 'r') AS columns,
    ARRAY(SELECT c.relname || '(' || pg_get_indexdef(i.indexrelid, 1, true) || ')'
          FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid
          WHERE c.relnamespace = n.oid AND i.indisprimary AND i.indisvalid AND i.indnkeyatts = 1) AS keys,
    ARRAY(SELECT c.relname::text FROM pg_class c
          WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND c.relpersistence <> 'p') AS unlogged,
    ARRAY(SELECT c.relname::text FROM pg_class c
          WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND c.relreplident = 'n') AS without_identity,
    ARRAY(SELECT c.relname || ': ' || what FROM pg_class c, LATERAL (
              SELECT 'trigger ' || t.tgname FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
              UNION ALL SELECT 'rule ' || r.rulename FROM pg_rewrite r WHERE r.ev_class = c.oid
              UNION ALL SELECT 'row security' WHERE c.relrowsecurity
          ) AS found (what) WHERE c.relnamespace = n.oid AND c.relkind = 'r') AS hooks,
    ARRAY(SELECT p.proname || '(' || oidvectortypes(p.proargtypes) || ')' FROM pg_proc p
          WHERE p.pronamespace = n.oid AND p.prosecdef AND p.provolatile = 'v'
          AND p.proconfig = ARRAY['search_path=pg_catalog, pg_temp']) AS functions,
    ARRAY(SELECT pubname::text FROM pg_publication WHERE puballtables) AS publish_all,
    ARRAY(SELECT DISTINCT pubname::text FROM pg_publication_tables WHERE schemaname = 'dbguard') AS published,
    ARRAY(SELECT nspname::text FROM pg_namespace s WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema',
          'dbguard') AND EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = s.oid AND c.relkind IN ('r', 'p'))
          ORDER BY 1) AS others,
    extract(epoch FROM clock_timestamp())::float8 AS now
FROM (SELECT) AS one LEFT JOIN pg_namespace n ON n.nspname = 'dbguard'
"""

# Asked only where the shape is right. $1: the role that guards log in as. By number: names need USAGE on the schema.
_RIGHTS = """
SELECT has_schema_privilege($1, at.home, 'usage') AS usage,
    has_table_privilege($1, at.token, 'select')
        AND has_column_privilege($1, at.token, 'token', 'insert')
        AND has_column_privilege($1, at.token, 'kind', 'insert')
        AND has_column_privilege($1, at.token, 'n', 'update') AS token,
    has_table_privilege($1, at.horizon, 'select') AND has_column_privilege($1, at.horizon, 'one', 'update') AS horizon,
    has_table_privilege($1, at.reign, 'select')
        AND has_column_privilege($1, at.reign, 'timeline', 'insert')
        AND has_column_privilege($1, at.reign, 'mark', 'insert') AS reign,
    has_function_privilege($1, at.mark, 'execute') AS mark,
    has_function_privilege($1, at.prune, 'execute') AS prune,
    has_table_privilege($1, at.token, 'delete') AS deletes,
    EXISTS (SELECT FROM pg_proc p, aclexplode(p.proacl) g WHERE p.oid = at.mark AND g.grantee = 0) AS mark_is_public,
    has_schema_privilege(at.home, 'usage') AND has_table_privilege(at.token, 'select')
        AND has_table_privilege(at.horizon, 'select') AS readable
FROM (
    SELECT n.oid AS home,
        (SELECT c.oid FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'token') AS token,
        (SELECT c.oid FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'horizon') AS horizon,
        (SELECT c.oid FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'reign') AS reign,
        (SELECT p.oid FROM pg_proc p WHERE p.pronamespace = n.oid AND p.proname = 'mark'
            AND oidvectortypes(p.proargtypes) = 'uuid') AS mark,
        (SELECT p.oid FROM pg_proc p WHERE p.pronamespace = n.oid AND p.proname = 'prune'
            AND oidvectortypes(p.proargtypes) = 'interval, integer') AS prune
    FROM pg_namespace n WHERE n.nspname = 'dbguard'
) AS at
"""

# Asked only where the role that looks may read the tables.
_CONTENT = """
SELECT (SELECT token FROM dbguard.token WHERE kind = 'w' ORDER BY token LIMIT 1) AS oldest,
    (SELECT token FROM dbguard.token ORDER BY token DESC LIMIT 1) AS newest,
    (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'dbguard.token'::regclass) AS rows,
    pg_total_relation_size('dbguard.token') AS bytes,
    pg_stat_get_dead_tuples('dbguard.token'::regclass) AS dead,
    pg_stat_get_live_tuples('dbguard.token'::regclass) AS live,
    (SELECT token FROM dbguard.horizon) AS horizon,
    (SELECT extract(epoch FROM at)::float8 FROM dbguard.horizon) AS pruned_at,
    (SELECT count(*)::int FROM dbguard.horizon) AS horizons
"""

COLUMNS = frozenset(
    {
        "token.token uuid not null",
        'token.kind "char" not null default \'w\'::"char"',
        "token.at timestamp with time zone not null default now()",
        "token.n integer not null default 0",
        "horizon.one boolean not null default true",
        "horizon.token uuid not null",
        "horizon.at timestamp with time zone not null default now()",
        "reign.timeline integer not null",
        "reign.mark uuid not null",
    }
)
KEYS = frozenset({"token(token)", "horizon(one)", "reign(timeline)"})
FUNCTIONS = frozenset({"mark(uuid)", "prune(interval, integer)"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSchema:
    """What one server says of the schema ``dbguard`` in one database.

    role: who looked. number: ``server_version_num``. version: of the schema, from its comment; None: not there, or not
    ours. owner, owners: of the schema, and of what is in it. misfits: what is missing or not as it was installed, in
    words. unlogged, without_identity: names of tables. published: publications that carry one of its tables.
    publish_all: publications of all tables of the database. others: the other schemas that have tables.
    grantee: the role whose rights these are: usage, token, horizon, reign, mark, prune; deletes: it can delete tokens.
    mark_is_public: every role may call ``mark()``. oldest: age in seconds of the oldest token of a write, newest: of the
    newest of all, negative: dated in the future; None: there is none. rows: an estimate. bytes: of table and indexes.
    dead, live: row versions. retention: seconds that the pruner kept when it ran last, pruned: seconds since; None: it
    never did. ahead: seconds by which this machine's clock is
    before the server's, negative: behind. horizon_ahead: seconds by which the horizon lies in the server's future.
    A right or a figure is None where the shape is not right, or the role that looks may not read it.
    """

    database: str
    role: str
    number: int
    present: bool
    version: int | None
    owner: str | None
    owners: tuple[str, ...]
    misfits: tuple[str, ...]
    unlogged: tuple[str, ...]
    without_identity: tuple[str, ...]
    published: tuple[str, ...]
    publish_all: tuple[str, ...]
    others: tuple[str, ...]
    ahead: float
    grantee: str
    usage: bool | None = None
    token: bool | None = None
    horizon: bool | None = None
    reign: bool | None = None
    mark: bool | None = None
    prune: bool | None = None
    deletes: bool | None = None
    mark_is_public: bool | None = None
    oldest: float | None = None
    newest: float | None = None
    rows: int | None = None
    bytes: int | None = None
    dead: int | None = None
    live: int | None = None
    retention: float | None = None
    pruned: float | None = None
    horizon_ahead: float | None = None

    @property
    def installed(self) -> bool:
        """Whether it is there in a version of ours and in the right shape, rights apart."""
        return self.version is not None and not self.misfits


async def look_at_schema(con: Any, grantee: str | None, *, timeout: float) -> TokenSchema:
    """Look over *con*, an asyncpg connection to a primary or a replica.

    grantee: the role that guards log in as. Default: the connection's. Raises what the driver raises.
    """
    seen = await con.fetchrow(_CATALOGUE, timeout=timeout)
    said = re.search(r"schema version (\d+)", seen["comment"] or "")
    misfits = tuple(_misfits(seen)) if seen["present"] else ()
    found: dict[str, Any] = {
        name: tuple(seen[name])
        for name in ("owners", "unlogged", "without_identity", "published", "publish_all", "others")
    }
    found |= {name: seen[name] for name in ("database", "role", "number", "present", "owner")}
    found |= {"version": int(said[1]) if said else None, "misfits": misfits, "grantee": grantee or seen["role"]}
    found |= {"ahead": time.time() - seen["now"]}
    if seen["present"] and not misfits:
        known = await con.fetchval(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", found["grantee"], timeout=timeout
        )
        rights = await con.fetchrow(_RIGHTS, found["grantee"] if known else seen["role"], timeout=timeout)
        if known:
            found |= dict(rights)
        if rights["readable"]:
            found |= _content(await con.fetchrow(_CONTENT, timeout=timeout), seen["now"])
    names = {field.name for field in fields(TokenSchema)}
    return TokenSchema(**{name: value for name, value in found.items() if name in names})


def seconds_of(token: UUID) -> float:
    """Return when a UUIDv7 was made, in seconds since 1970."""
    return (token.int >> 80) / 1000.0


def _misfits(seen: Any) -> list[str]:
    columns, keys, functions = set(seen["columns"]), set(seen["keys"]), set(seen["functions"])
    found = [f"no column {column}" for column in sorted(COLUMNS - columns)]
    found += [f"no valid primary key {key}" for key in sorted(KEYS - keys)]
    found += [
        f"no function dbguard.{name} that is SECURITY DEFINER with its search_path pinned"
        for name in sorted(FUNCTIONS - functions)
    ]
    # Each of these could keep a row from being stored without an error, and a token that is absent proves something.
    return found + [f"{hook} is not ours" for hook in sorted(seen["hooks"])]


def _content(seen: Any, now: float) -> dict[str, Any]:
    found: dict[str, Any] = {name: seen[name] for name in ("rows", "bytes", "dead", "live")}
    found |= {name: now - seconds_of(seen[name]) for name in ("oldest", "newest") if seen[name] is not None}
    if seen["horizons"] != 1:
        return found | {"misfits": (f"{seen['horizons']} rows in horizon instead of one",)}
    if seen["horizon"].int:
        found["pruned"] = now - seen["pruned_at"]
        found["retention"] = seen["pruned_at"] - seconds_of(seen["horizon"])
        found["horizon_ahead"] = seconds_of(seen["horizon"]) - now
    return found
