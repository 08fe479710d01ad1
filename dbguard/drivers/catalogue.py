"""What is read from a server's catalogue; what follows from it is decided in `core.catalogue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.core.catalogue import Catalogue, Function, Relation
from dbguard.core.lexer import spelled

if TYPE_CHECKING:
    from dbguard.drivers.speaker import Speaker

__all__ = ["MOST_RELATIONS", "read_catalogue"]

MOST_RELATIONS = 20_000
"""Relations above which the catalogue is not read: it would take seconds. Connections are then reset after each use."""

# Objects below this number come with PostgreSQL itself (FirstNormalObjectId in src/include/access/transam.h).
_USERS = 16384

_COUNT = "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND oid >= 16384"

_RELATIONS = f"""
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, pg_table_is_visible(c.oid) AS visible,
    c.relkind IN ('r', 'p', 'v', 'm')
    AND NOT c.relrowsecurity
    AND NOT EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN')
    AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
    AND NOT EXISTS (
        SELECT FROM pg_attribute a
        JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typelem <> 0
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND coalesce(e.oid, t.oid) >= {_USERS} AND coalesce(e.typtype, t.typtype) <> 'e')
    AND NOT EXISTS (
        SELECT FROM pg_index i, unnest(i.indclass::oid[]) AS class
        WHERE i.indrelid = c.oid AND class >= {_USERS})
    AND NOT EXISTS (
        SELECT FROM pg_partitioned_table p, unnest(p.partclass::oid[]) AS class
        WHERE p.partrelid = c.oid AND class >= {_USERS}) AS bare,
    EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN'
        AND pg_get_ruledef(w.oid) ~* 'notify') AS notifies
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp\\_%'
"""  # noqa: S608  a number of ours

_EXPRESSIONS = """
SELECT adrelid::bigint, pg_get_expr(adbin, adrelid) FROM pg_attrdef
UNION ALL SELECT conrelid::bigint, pg_get_expr(conbin, conrelid) FROM pg_constraint
    WHERE contype = 'c' AND conrelid >= 16384
UNION ALL SELECT indrelid::bigint, pg_get_expr(indexprs, indrelid) FROM pg_index WHERE indexprs IS NOT NULL
UNION ALL SELECT indrelid::bigint, pg_get_expr(indpred, indrelid) FROM pg_index WHERE indpred IS NOT NULL
UNION ALL SELECT partrelid::bigint, pg_get_expr(partexprs, partrelid) FROM pg_partitioned_table
    WHERE partexprs IS NOT NULL
"""

_QUERIES = """
SELECT c.oid::bigint, pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
UNION ALL SELECT polrelid::bigint, 'SELECT ' || pg_get_expr(polqual, polrelid) FROM pg_policy
    WHERE polqual IS NOT NULL
"""

# An aggregate is declared immutable whatever its functions are.
_FUNCTIONS = f"""
SELECT n.nspname AS schema, p.proname AS name, bool_or(pg_function_is_visible(p.oid)) AS visible,
    bool_and(p.provolatile <> 'v' AND p.prokind <> 'p' AND NOT EXISTS (
        SELECT FROM pg_aggregate a JOIN pg_proc f ON f.provolatile = 'v' AND f.oid IN (
            a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn,
            a.aggmfinalfn)
        WHERE a.aggfnoid = p.oid)) AS stable,
    EXISTS (SELECT FROM pg_proc b WHERE b.oid < {_USERS} AND b.proname = p.proname) AS hides
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.oid >= {_USERS} GROUP BY 1, 2
"""  # noqa: S608  a number of ours

_VOLATILE_WORDS = f"""
SELECT o.oprname FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode
WHERE o.oid >= {_USERS} AND p.provolatile = 'v'
UNION SELECT t.typname FROM pg_cast c
JOIN pg_proc p ON p.oid = c.castfunc JOIN pg_type t ON t.oid IN (c.castsource, c.casttarget)
WHERE c.oid >= {_USERS} AND p.provolatile = 'v'
UNION SELECT p.proname FROM pg_proc p JOIN pg_type t ON t.oid = p.proargtypes[0]
WHERE p.oid >= {_USERS} AND p.provolatile = 'v' AND p.pronargs - p.pronargdefaults <= 1 AND t.typtype IN ('c', 'p')
"""  # noqa: S608  a number of ours

# A domain's own checks, and those of the domains under it.
_CHECKS = f"""
WITH RECURSIVE under AS (
    SELECT oid, typname, oid AS type FROM pg_type WHERE typtype = 'd' AND oid >= {_USERS}
    UNION ALL SELECT u.oid, u.typname, t.typbasetype FROM under u JOIN pg_type t ON t.oid = u.type WHERE t.typtype = 'd')
SELECT u.typname, pg_get_expr(c.conbin, 0) FROM under u JOIN pg_constraint c ON c.contypid = u.type AND c.contype = 'c'
"""  # noqa: S608  a number of ours

# Row types count where a column's type does; enums run nothing. An array's name is its element's, with brackets.
_CALLING_WORDS = f"""
SELECT t.typname FROM pg_type t
WHERE t.oid >= {_USERS} AND t.typtype <> 'e' AND NOT (t.typelem <> 0 AND t.typlen = -1)
AND (t.typrelid = 0 OR EXISTS (
    SELECT FROM pg_attribute a
    JOIN pg_type u ON u.oid = a.atttypid
    LEFT JOIN pg_type e ON e.oid = u.typelem AND u.typelem <> 0
    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    AND coalesce(e.oid, u.oid) >= {_USERS} AND coalesce(e.typtype, u.typtype) <> 'e'))
UNION SELECT p.proname FROM pg_proc p JOIN pg_type t ON t.oid = p.proargtypes[0]
WHERE p.oid >= {_USERS} AND p.pronargs - p.pronargdefaults <= 1 AND t.typtype IN ('c', 'p')
"""  # noqa: S608  a number of ours

_REACHES = """
SELECT inhparent::bigint, inhrelid::bigint FROM pg_inherits
UNION ALL SELECT inhrelid::bigint, inhparent::bigint FROM pg_inherits
UNION ALL SELECT conrelid::bigint, confrelid::bigint FROM pg_constraint WHERE contype = 'f'
UNION ALL SELECT confrelid::bigint, conrelid::bigint FROM pg_constraint WHERE contype = 'f'
UNION ALL SELECT w.ev_class::bigint, d.refobjid::bigint FROM pg_rewrite w
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
        AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> w.ev_class
    WHERE d.refobjid >= 16384
"""

# An operator, cast or function of a user's that can stand in for one of PostgreSQL's own where only PostgreSQL's types
# are in play: then no text tells what runs.
_FOUL = f"""
SELECT EXISTS (
    SELECT FROM pg_operator WHERE oid >= {_USERS} AND oprleft < {_USERS} AND oprright < {_USERS}
) OR EXISTS (
    SELECT FROM pg_cast WHERE oid >= {_USERS} AND castsource < {_USERS} AND casttarget < {_USERS}
) OR EXISTS (
    SELECT FROM pg_proc p WHERE p.oid >= {_USERS}
    AND EXISTS (SELECT FROM pg_proc b WHERE b.oid < {_USERS} AND b.proname = p.proname)
) OR EXISTS (
    SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'v' AND n.nspname = 'pg_catalog' AND c.oid >= {_USERS}
)
"""  # noqa: S608  a number of ours


# Client encodings whose later bytes can be quotes or backslashes (src/common/encnames.c: client-only encodings).
_BLIND = """
SELECT current_setting('standard_conforming_strings') <> 'on'
OR current_setting('client_encoding') IN ('SJIS', 'SHIFT_JIS_2004', 'BIG5', 'GBK', 'UHC', 'GB18030', 'JOHAB')
"""


async def read_catalogue(con: Speaker, *, timeout: float) -> Catalogue | None:
    """Read the catalogue over *con*; None if it is too large. Raises what the driver raises."""
    if await con.fetchval(_COUNT, timeout=timeout) > MOST_RELATIONS:
        return None
    relations = [
        Relation(
            oid=row["oid"],
            names=_both(row["schema"], row["name"], visible=row["visible"]),
            bare=row["bare"],
            notifies=row["notifies"],
        )
        for row in await con.fetch(_RELATIONS, timeout=timeout)
    ]
    return Catalogue(
        relations=relations,
        expressions=[tuple(row) for row in await con.fetch(_EXPRESSIONS, timeout=timeout)],
        queries=[tuple(row) for row in await con.fetch(_QUERIES, timeout=timeout)],
        reaches=[tuple(row) for row in await con.fetch(_REACHES, timeout=timeout)],
        functions=[
            Function(
                names=_both(row["schema"], row["name"], visible=row["visible"]),
                stable=row["stable"],
                hides=row["hides"],
            )
            for row in await con.fetch(_FUNCTIONS, timeout=timeout)
        ],
        volatile_words=[row[0] for row in await con.fetch(_VOLATILE_WORDS, timeout=timeout)],
        checks=[tuple(row) for row in await con.fetch(_CHECKS, timeout=timeout)],
        calling_words=[row[0] for row in await con.fetch(_CALLING_WORDS, timeout=timeout)],
        foul=await con.fetchval(_FOUL, timeout=timeout),
        blind=await con.fetchval(_BLIND, timeout=timeout),
    )


def _both(schema: str, name: str, *, visible: bool) -> tuple[str, ...]:
    """Return the ways a statement may name a thing."""
    full = f"{spelled(schema)}.{spelled(name)}"
    return (full, spelled(name)) if visible else (full,)
