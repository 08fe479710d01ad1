"""The command ``dbguard outcome``: the schema of tokens on the primary, how it is, old tokens, and one write's outcome."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import asyncpg

from dbguard.cli import running
from dbguard.cli.check import ask_status, source
from dbguard.cli.looking import Look, Unusable, look_at_all
from dbguard.cli.outcome_findings import find_in_schema, in_words, way_out_of_publications
from dbguard.cli.outcome_look import look_at_schema
from dbguard.cli.outcome_resolve import resolve
from dbguard.cli.output import Output, complain
from dbguard.config import load
from dbguard.config.settings import OutcomeSettings
from dbguard.drivers import outcome_sql
from dbguard.drivers.asyncpg.dial import Dialer
from dbguard.wiring import connect_arguments

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from dbguard.cli.outcome_look import TokenSchema
    from dbguard.config import Settings

__all__ = ["run"]

LOCK_TIMEOUT = 10
"""Seconds that the installation waits for a lock, so that no queue of writes forms behind it."""

PRUNE_TIMEOUT = 120.0
"""Seconds that one batch may take: it waits for claims, which are short, and for the disk."""

_HEADER = """\
-- The schema of tokens: what `dbguard outcome install` puts on the primary.
-- Run it there as a role that may create a schema, all in one transaction;
-- `--apply` does that. Run again it changes nothing. To remove it again, first
-- take `outcome: {resolve: token-table}` out of every guard's configuration,
-- and then: DROP SCHEMA dbguard CASCADE;
BEGIN;
"""

_PG_CRON = "DO $$BEGIN WHILE dbguard.prune({kept}) = 10000 LOOP COMMIT; END LOOP; END$$"
"""What pg_cron should run. DO may commit between batches, so no claim waits for more than one of them."""


class Refused(Exception):
    """What was asked for was not done; the message says why, and the way out. code: the command's exit code."""

    def __init__(self, why: str, code: int = 2) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True, slots=True)
class Primary:
    """The one node that takes writes: its name, how it was reached, and an open connection to it."""

    name: str
    con: Any
    limit: float


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked. Returns 0; 1 if something is wrong with the schema; 2 if nothing could be done."""
    settings = load(source(arguments.config))
    # These commands work before there is a schema, and must not need it.
    settings = replace(settings, outcome=replace(settings.outcome, resolve="none"))
    role = getattr(arguments, "role", None) or settings.connection.user or os.environ.get("PGUSER")
    if arguments.user:
        settings = replace(settings, connection=replace(settings.connection, user=arguments.user, password=None))
    output = Output(sys.stdout)
    try:
        if arguments.do == "install" and not arguments.apply:
            return _print(output, role, arguments.owner)
        if arguments.do == "resolve":
            return running.run(resolve(output, settings, arguments))
        work = {"install": _install, "status": _status, "prune": _prune}[arguments.do]
        return running.run(work(output, settings, role, arguments))
    except Refused as refused:
        complain(str(refused))
        return refused.code
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        complain(_explained(error, settings))
        return 2


def _script(role: str, owner: str | None) -> str:
    return outcome_sql.schema(owner) + "\n\n" + outcome_sql.grants(role)


def _print(output: Output, role: str | None, owner: str | None) -> int:
    if role is None:
        raise Refused("which role do guards log in as? Name it: --role, or connection.user in CONFIG")
    output.stream.write(f"{_HEADER}{_script(role, owner)}\nCOMMIT;\n")
    output.stream.flush()
    return 0


async def _install(output: Output, settings: Settings, role: str | None, arguments: argparse.Namespace) -> int:
    async with _primary(settings) as primary:
        con, limit = primary.con, primary.limit
        before = await look_at_schema(con, role, timeout=limit)
        role = role or before.role
        owner = arguments.owner or before.role
        _refuse_if_unfit(before, owner, published=arguments.published)
        async with con.transaction():
            await con.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'; SET LOCAL client_min_messages = warning")
            if await con.fetchval("SELECT pg_is_in_recovery()"):
                raise Refused(f"{primary.name} has just become a replica: try again")
            await con.execute(_script(role, arguments.owner), timeout=60.0)
        after = await look_at_schema(con, role, timeout=limit)
    did = "installed" if before.version is None else f"was there (version {before.version}): brought up to date"
    output.line(f"schema dbguard on {primary.name}, database {after.database}: {did}, version {after.version}")
    output.line(f"owner {after.owner}; role {role} may store, claim and prune tokens, and no more")
    if role == after.owner:
        output.item(
            "note: ",
            f"guards log in as {role}, which owns the schema and can change anything in it; better let another role own "
            "it: --user, or --owner with a role that needs no login",
            "yellow",
        )
    retention = settings.outcome.retention
    code = _tell(output, primary.name, after, retention)
    output.line()
    output.line("next:")
    output.line("  1. in the configuration of every guard: `outcome: {resolve: token-table}`")
    output.line("  2. delete old tokens every few minutes, by cron or a timer:")
    output.line(f"       dbguard outcome prune {_shown(arguments.config)}")
    output.line("     or by pg_cron:")
    kept = "" if retention == OutcomeSettings().retention else f"make_interval(secs => {retention:g})"
    output.line(f"       SELECT cron.schedule('dbguard-prune', '*/5 * * * *', '{_PG_CRON.format(kept=kept)}')")
    return code


def _refuse_if_unfit(before: TokenSchema, owner: str, *, published: bool) -> None:
    if before.version is not None and before.version > outcome_sql.VERSION:
        raise Refused(
            f"version {before.version} of the schema is installed, and this dbguard knows {outcome_sql.VERSION}: "
            "upgrade it",
            1,
        )
    if before.present and before.owner != owner:
        raise Refused(
            f"there is a schema dbguard that belongs to {before.owner}: run this as {before.owner} (--user), or with "
            f"--owner {before.owner} as a role that may act for it; or drop it, if it is not dbguard's",
            1,
        )
    if before.version is None and before.publish_all and not published:
        raise Refused(
            f"all tables are published here ({', '.join(before.publish_all)}), and a subscriber that has no schema "
            f"dbguard stops as soon as it is installed; {way_out_of_publications(before)}, and add --published",
            1,
        )


async def _status(output: Output, settings: Settings, role: str | None, arguments: argparse.Namespace) -> int:
    async with _primary(settings) as primary:
        seen = await look_at_schema(primary.con, role, timeout=primary.limit)
    if arguments.json:
        found = list(find_in_schema(primary.name, seen, wanted=True, retention=settings.outcome.retention))
        grave = [finding.text for finding in found if finding.grave]
        notes = [finding.text for finding in found if not finding.grave]
        output.json({"node": primary.name, "ok": not grave} | asdict(seen) | {"problems": grave, "notes": notes})
        return 1 if grave else 0
    if seen.present:
        version = "unknown" if seen.version is None else seen.version
        output.line(
            f"schema dbguard on {primary.name}, database {seen.database}: version {version}, owner {seen.owner}"
        )
    if seen.bytes is not None:
        oldest = "none of a write" if seen.oldest is None else f"the oldest of a write {in_words(seen.oldest)} old"
        output.line(f"tokens: about {max(seen.rows or 0, seen.live or 0):,} in {seen.bytes / 2**20:.1f} MB, {oldest}")
        pruner = "never ran" if seen.pruned is None else f"ran {in_words(seen.pruned)} ago"
        output.line(f"pruner: {pruner}" + (f", kept {in_words(seen.retention)}" if seen.retention is not None else ""))
    return _tell(output, primary.name, seen, settings.outcome.retention)


def _tell(output: Output, node: str, seen: TokenSchema, retention: float) -> int:
    found = list(find_in_schema(node, seen, wanted=True, retention=retention))
    for finding in found:
        mark, style = ("wrong:", "bold red") if finding.grave else ("note: ", "yellow")
        output.item(mark, finding.text, style)
    if any(finding.grave for finding in found):
        return 1
    output.item("fine: ", f"a guard that logs in as {seen.grantee} can prove the outcome of its writes", "bold green")
    return 0


async def _prune(output: Output, settings: Settings, role: str | None, arguments: argparse.Namespace) -> int:
    del role  # whoever logs in prunes
    gone = 0
    retention = settings.outcome.retention if arguments.retention is None else arguments.retention
    async with _primary(settings) as primary:
        while True:
            batch = await primary.con.fetchval(outcome_sql.PRUNE, retention, arguments.batch, timeout=PRUNE_TIMEOUT)
            gone += batch
            if batch < arguments.batch:
                break
    if arguments.json:
        output.json({"node": primary.name, "deleted": gone, "retention": retention})
    else:
        output.line(f"{primary.name}: deleted {gone:,} tokens older than {in_words(retention)}")
    return 0


@contextlib.asynccontextmanager
async def _primary(settings: Settings) -> AsyncIterator[Primary]:
    """Find the primary as a guard does, and connect to it. Raises Refused if there is none that takes writes."""
    looks = await look_at_all(settings, lambda _left, _said: None)
    if not any(isinstance(look, Look) for look in looks.values()):
        lines = [f"\n  {name}: {look.why}" for name, look in looks.items() if isinstance(look, Unusable)]
        raise Refused("no node can be used" + "".join(lines))
    status = await ask_status(settings)
    if status.primary is None or status.writes != "open":
        lines = [
            f"\n  {name}: " + (f"a {look.role}" if isinstance(look, Look) else look.why) for name, look in looks.items()
        ]
        raise Refused("no node answers as the primary, and only there can the schema be written" + "".join(lines))
    node = next(node for node in settings.nodes if node.name == status.primary)
    limit = settings.connection.connect_timeout
    con = await Dialer(connect_arguments(settings.connection, node), {}).control(timeout=limit)
    try:
        yield Primary(node.name, con, limit)
        await con.close(timeout=limit)
    finally:
        con.terminate()


_EXPLAINED = {
    "42501": "this role may not do that: use --user with a role that may, such as one with CREATE on the database",
    "42704": "name a role that exists: --role, --owner",
    "3F000": "the schema is not installed: `dbguard outcome install CONFIG`",
    "42883": "the schema is not installed: `dbguard outcome install CONFIG`",
    "25006": "this server takes no writes now: a replica, or default_transaction_read_only",
    "55P03": f"something held a lock for {LOCK_TIMEOUT} s: try again",
}


def _explained(error: Exception, settings: Settings) -> str:
    """Say what went wrong, and the way out. A server's words on our own statements hold no secret."""
    if isinstance(error, asyncpg.PostgresError):
        way_out = _EXPLAINED.get(error.sqlstate or "")
        return f"{error} ({error.sqlstate})" + (f"\n  {way_out}" if way_out else "")
    if isinstance(error, TimeoutError):
        return f"the primary did not answer within {settings.connection.connect_timeout:g} s"
    return f"the connection to the primary was lost: {type(error).__name__}"


def _shown(config: str) -> str:
    """Return CONFIG as it may be shown: a DSN can hold a password."""
    return "CONFIG" if "://" in config else config
