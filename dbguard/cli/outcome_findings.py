"""What is wrong with the schema of tokens, and what is worth knowing, from what was seen of it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbguard.cli.findings import Finding
from dbguard.drivers.outcome_sql import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.cli.outcome_look import TokenSchema

__all__ = ["find_in_schema", "in_words", "way_out_of_publications"]

SKEW = 60.0
"""Seconds that two clocks may differ without a word: far below the retention, far above what NTP leaves."""

DEAD = 1_000_000
"""Dead row versions that are worth a word, if they outnumber the living: about 100 MB that autovacuum left behind."""

_NEEDED = {
    "usage": "GRANT USAGE ON SCHEMA dbguard TO {role}",
    "token": "GRANT SELECT, INSERT (token, kind), UPDATE (n) ON dbguard.token TO {role}",
    "horizon": "GRANT SELECT, UPDATE (one) ON dbguard.horizon TO {role}",
    "reign": "GRANT SELECT, INSERT (timeline, mark) ON dbguard.reign TO {role}",
    "mark": "GRANT EXECUTE ON FUNCTION dbguard.mark(uuid) TO {role}",
}


def find_in_schema(node: str, seen: TokenSchema, *, wanted: bool, retention: float) -> Iterator[Finding]:
    """Yield what is found on *node*.

    wanted: the configuration says ``outcome.resolve: token-table``. retention: its ``outcome.retention``, in seconds.
    """
    if not seen.present:
        if wanted:
            yield Finding(
                True,
                node,
                f"outcome.resolve is token-table, and database {seen.database} has no schema dbguard: "
                "`dbguard outcome install CONFIG`",
            )
        return
    if seen.version is None:
        yield Finding(
            wanted, node, "has a schema dbguard that `dbguard outcome install` did not make, or not to its end"
        )
    elif seen.version != VERSION:
        upgrade = "run `dbguard outcome install CONFIG --apply` again" if seen.version < VERSION else "upgrade dbguard"
        yield Finding(True, node, f"has version {seen.version} of the schema dbguard, and this is {VERSION}: {upgrade}")
    for misfit in seen.misfits:
        yield Finding(True, node, f"schema dbguard: {misfit}; run `dbguard outcome install CONFIG --apply` again")
    yield from _of_tables(node, seen)
    if seen.installed:
        yield from _of_rights(node, seen, wanted=wanted)
        yield from _of_pruner(node, seen, retention)


def _of_tables(node: str, seen: TokenSchema) -> Iterator[Finding]:
    for table in seen.unlogged:
        yield Finding(
            True,
            node,
            f"dbguard.{table} is unlogged, so it is empty after a crash, and committed writes would be taken for lost: "
            f"ALTER TABLE dbguard.{table} SET LOGGED",
        )
    if strangers := [owner for owner in seen.owners if owner != seen.owner]:
        yield Finding(
            True,
            node,
            f"schema dbguard belongs to {seen.owner}, and what is in it to {', '.join(strangers)}: "
            "whoever owns the schema can replace its tables",
        )
    if seen.published:
        for table in seen.without_identity:
            yield Finding(
                True,
                node,
                f"dbguard.{table} is published and has no replica identity, so its rows cannot be changed: "
                f"ALTER TABLE dbguard.{table} REPLICA IDENTITY DEFAULT",
            )
        yield Finding(
            False,
            node,
            f"tokens are published by {', '.join(seen.published)}: a subscriber without the schema dbguard stops there; "
            f"{way_out_of_publications(seen)}",
        )


def _of_rights(node: str, seen: TokenSchema, *, wanted: bool) -> Iterator[Finding]:
    role = '"' + seen.grantee.replace('"', '""') + '"'
    if seen.usage is None:
        yield Finding(wanted, node, f"there is no role {seen.grantee} here")
        return
    for name, grant in _NEEDED.items():
        if not getattr(seen, name):
            yield Finding(wanted, node, f"{seen.grantee} lacks a right: {grant.format(role=role)}")
    if not seen.mark_is_public:
        yield Finding(
            False,
            node,
            "dbguard.mark() is not open to PUBLIC: a transaction under SET ROLE has a token only if that role may call it",
        )
    if seen.deletes and seen.grantee != seen.owner:
        yield Finding(
            False,
            node,
            f"{seen.grantee} may delete tokens, and a write whose token was deleted is taken for not applied: "
            f"REVOKE DELETE ON dbguard.token FROM {role}",
        )


def _of_pruner(node: str, seen: TokenSchema, wanted: float) -> Iterator[Finding]:
    if abs(seen.ahead) > SKEW:
        which = "ahead of" if seen.ahead > 0 else "behind"
        yield Finding(
            abs(seen.ahead) > wanted / 2,
            node,
            f"this machine's clock is {in_words(abs(seen.ahead))} {which} the server's: tokens are dated by this one, "
            "and deleted by that one; let NTP set both",
        )
    if seen.horizon_ahead is not None and seen.horizon_ahead > SKEW:
        yield Finding(
            True,
            node,
            f"the horizon lies {in_words(seen.horizon_ahead)} in the future, so no outcome can be asked until then: the "
            "server's clock was wrong when the pruner ran",
        )
    if seen.newest is not None and seen.newest < -SKEW:
        yield Finding(
            False,
            node,
            f"there are tokens dated up to {in_words(-seen.newest)} in the future, which are not deleted until then: a "
            "client's clock was wrong, or somebody calls dbguard.mark() for other ends",
        )
    retention = wanted if seen.retention is None else max(seen.retention, 60.0)
    if seen.retention is not None and seen.retention < wanted - SKEW:
        yield Finding(
            False,
            node,
            f"the pruner keeps {in_words(seen.retention)} of tokens, and outcome.retention is {in_words(wanted)}: let it read "
            "this configuration, or name the same time",
        )
    if seen.oldest is not None and seen.oldest > 2 * retention:
        ran = "never ran" if seen.pruned is None else f"ran last {in_words(seen.pruned)} ago"
        yield Finding(
            True,
            node,
            f"the oldest token is {in_words(seen.oldest)} old, and the pruner {ran}: call `dbguard outcome prune CONFIG` "
            "every few minutes (cron, a timer), or let pg_cron do it; `dbguard outcome install --help` has the line",
        )
    if seen.dead is not None and seen.dead > max(DEAD, seen.live or 0):
        yield Finding(
            False,
            node,
            f"dbguard.token has {seen.dead:,} dead rows: autovacuum does not keep up, or an old transaction holds it back",
        )


def way_out_of_publications(seen: TokenSchema) -> str:
    """Say how tokens are kept out of publications of all tables."""
    named = seen.others or ("public",)
    if seen.number >= 150_000:
        tables = "TABLES IN SCHEMA " + ", ".join(f'"{name}"' for name in named)
    else:
        tables = "TABLE ... (all but those of dbguard)"
    return (
        f"either publish by name: CREATE PUBLICATION named FOR {tables}; on the subscriber ALTER SUBSCRIPTION ... "
        "SET PUBLICATION named WITH (copy_data = false); or install the schema on the subscribers first"
    )


def in_words(seconds: float) -> str:
    """Write a time as a person would: ``2.5 h``."""
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
