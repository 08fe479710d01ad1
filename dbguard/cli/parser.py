"""The command line: what can be asked for, in words that teach, and where it goes."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from dbguard import __version__
from dbguard.cli.output import complain
from dbguard.config.quantities import Duration
from dbguard.config.values import Unfit
from dbguard.drivers.outcome_sql import BATCH
from dbguard.errors import ConfigError, DbGuardError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

SHORTEST, LONGEST = 5.0, 300.0
"""Seconds a demo can take: below, the old primary is not back in time; above, it shows nothing new."""

ABOUT = """\
dbguard keeps a Python application going through PostgreSQL failovers: it
sends each statement to the right node, repeats only what is safe to repeat,
and says truthfully what became of every write.
"""

EXAMPLES = """\
examples:
  dbguard demo                       see it: a killed primary, with and without
  dbguard check guard.yaml           is it right, and is the cluster fit for it?
  dbguard check postgresql://app@db1,db2/shop
  dbguard status guard.yaml          who is the primary now, and why?
  dbguard watch guard.yaml           the same, live, with what happens
  dbguard route "SELECT * FROM item" where would it go, and why?
  dbguard outcome install guard.yaml so that no write's outcome stays unknown

exit codes: 0 fine; 1 something is wrong; 2 bad input or not reachable.
`dbguard COMMAND --help` tells more.
"""

DEMO = """\
Starts a primary with two streaming replicas on this machine (a PostgreSQL
that is installed, or the one of the extra `demo`), lets readers and writers
work on it through dbguard and, beside them, the same ones through a plain
asyncpg.create_pool; kills the primary, promotes a replica, brings the old
primary back. Each guarded write carries a token, which proves what became of
it if its answer is lost. At the end both tables are read back and compared with
what was acknowledged. Nothing stays behind.
"""

DEMO_EXAMPLES = """\
examples:
  dbguard demo
  dbguard demo --seconds 60
  dbguard demo --json=result.json    figures and events, for programs
  dbguard demo | cat                 plain lines instead of the live view

exit codes: 0 the guarded side saw no error, lost nothing, wrote nothing twice
and, with tokens, left no outcome unknown; 1 it did not keep that; 2 the demo
could not run.
"""

CHECK = """\
Reads a configuration, connects to every node, and says what it finds: roles,
timelines, lag, versions, rights, the connections needed against those there
are, and what is wrong. Changes nothing on any server.

CONFIG is a YAML file or a DSN of one or several hosts.
"""

CHECK_EXAMPLES = """\
examples:
  dbguard check guard.yaml
  dbguard check guard.yaml --processes 24   connections of 24 processes
  dbguard check guard.yaml --settings       all settings as they take effect
  dbguard check guard.yaml --rights         the least rights, as SQL
  dbguard check guard.yaml --json | jq .problems

exit codes: 0 fine; 1 reachable, and something is wrong; 2 the configuration is
wrong, or no node can be used.
"""

ROUTE = """\
Says what dbguard takes each statement for, by its text alone. With --config
it connects, and says which node would get it now and what speaks against each
of the others. The statements themselves are never sent.
"""

ROUTE_EXAMPLES = """\
examples:
  dbguard route "SELECT 1" "SELECT * FROM item FOR UPDATE"
  dbguard route --config guard.yaml "SELECT * FROM item"
  dbguard route - < statements.sql           one statement per line
  dbguard route --json - < statements.jsonl  {"sql": "..."} or a string per line

exit codes: 0 fine; 1 a statement could go nowhere now; 2 bad input or not
reachable.
"""


STATUS_NOW = """\
Asks every node once who it is, and says how the cluster stands: roles,
timelines, lag, who is the primary and why, and what is wrong. Takes a second
with a frozen node, three at most. Changes nothing on any server.

This is what a guard that is opened now would see. Breakers, waiting calls and
past failovers of a running service are its own, and cannot be seen from
another process: let its health endpoint return guard.status().as_dict().
"""

STATUS_NOW_EXAMPLES = """\
examples:
  dbguard status guard.yaml
  dbguard status postgresql://app@db1,db2/shop
  dbguard status guard.yaml --json | jq -r .primary
  until dbguard status guard.yaml >/dev/null; do sleep 1; done

exit codes: 0 writes can flow; 1 they cannot; 2 the configuration is wrong.
"""

WATCH = """\
Shows a cluster live until Ctrl-C: each node's role, whether it answers, its
breaker, lag, timeline and epoch, the last episodes (failovers and the like), and
events as they happen. On a terminal, with `rich` installed, as a picture; else
as lines. Asks each node every half second over one connection, as a guard does,
and changes nothing.

It is a guard of its own without any calls. Waiting calls, breakers and past
failovers of a running service cannot be seen from another process: they are in
its log, and in its guard.status().
"""

WATCH_EXAMPLES = """\
examples:
  dbguard watch guard.yaml
  dbguard watch guard.yaml --interval 0.2
  dbguard watch guard.yaml | tee watch.log     lines
  dbguard watch guard.yaml --count 1           one view

exit codes: 0 ended by Ctrl-C or --count; 2 the configuration is wrong.
"""

OUTCOME = """\
With a table of tokens in the database, dbguard can prove what became of every
write whose answer was lost with its connection: each write stores a token in
its own transaction, and the token is there if and only if the write is.
"""

OUTCOME_EXAMPLES = """\
examples:
  dbguard outcome install guard.yaml            the SQL, to read or to hand on
  dbguard outcome install guard.yaml --apply    put it on the primary
  dbguard outcome status guard.yaml             is it there, and fit?
  dbguard outcome prune guard.yaml              delete old tokens; for cron
  dbguard outcome resolve guard.yaml TOKEN      what became of that write?

exit codes: 0 fine; 1 something is wrong with the schema; 2 bad input, or the
primary was not reached or refused.
"""

INSTALL = """\
Prints the SQL of the schema `dbguard`, or with --apply runs it on the primary,
in one transaction: three tables (token, horizon, reign), two functions (mark,
prune), and the least rights for the role that guards log in as. Run again it
changes nothing, or upgrades what an earlier dbguard installed.

Then say `outcome: {resolve: token-table}` in the configuration, and let old
tokens be deleted every few minutes.

Tokens must not reach a logical subscriber that has no schema `dbguard`: it
stops. Where a publication FOR ALL TABLES exists, --apply refuses and says how
to keep them out.
"""

INSTALL_EXAMPLES = """\
examples:
  dbguard outcome install guard.yaml | less
  dbguard outcome install guard.yaml --role shop | psql -h db1 -d shop
  dbguard outcome install guard.yaml --apply --user postgres
  dbguard outcome install guard.yaml --apply --user admin --owner dbguard_owner

The pruner, in pg_cron:
  SELECT cron.schedule('dbguard-prune', '*/5 * * * *',
    'DO $$BEGIN WHILE dbguard.prune() = 10000 LOOP COMMIT; END LOOP; END$$')

exit codes: 0 done; 1 refused, or the schema is not fit; 2 bad input, or the
primary was not reached or refused.
"""

STATUS = """\
Says whether the schema is on the primary and fit: its shape, the rights of the
guard's role, publications, the size of the table, the age of the oldest token,
when the pruner ran last. Changes nothing.
"""

STATUS_EXAMPLES = """\
examples:
  dbguard outcome status guard.yaml
  dbguard outcome status guard.yaml --role shop
  dbguard outcome status guard.yaml --json | jq .problems

exit codes: 0 fine; 1 something is wrong; 2 bad input or not reachable.
"""

PRUNE = """\
Deletes the tokens of writes older than CONFIG's outcome.retention, in batches,
and moves the horizon: a write older than that cannot be asked for any more.
What claims left behind is kept for 30 days more. Any number may run at once.
Call it every few minutes, by cron or a timer; without it the table grows for
ever.
"""

PRUNE_EXAMPLES = """\
examples:
  dbguard outcome prune guard.yaml
  dbguard outcome prune guard.yaml --retention 24h
  */5 * * * *  dbguard outcome prune /etc/shop/guard.yaml     (crontab)

exit codes: 0 done; 2 bad input, or the primary was not reached or refused.
"""

RESOLVE = """\
Says what became of one write, by the token that stands in the log line of its
unknown outcome (and in `OutcomeUnknown.token`). It asks on the primary that a
guard accepts, from anywhere that reaches it, as often as you like: the answer
stays the same. Asking closes the door on a write that is still under way: it
fails then, and the answer is "not applied".
"""

RESOLVE_EXAMPLES = """\
examples:
  dbguard outcome resolve guard.yaml 019aa8c2-5d30-7c1e-8f00-3b6f0a9d7e11
  dbguard outcome resolve guard.yaml TOKEN --json --timeout 5s

exit codes: 0 applied; 1 not applied, and never will be; 2 it cannot be told
now (no primary, a standby is waited for, older than what is kept), or bad
input.
"""


_DSN = re.compile(r"[^\s'\"]*://[^\s'\"]*|password=[^\s'\"]*")


class _Parser(argparse.ArgumentParser):
    """Wrong words get the same kind of message as everything else that is wrong."""

    def parse_known_args(  # type: ignore[override]  # argparse's overloads differ in the namespace alone
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Complain of what is left over here, in the command that it was given to, and show its options alone."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            options = [word.partition("=")[0] for word in rest if word.startswith("-")]
            self.error(f"there is no {' or '.join(options)}" if options else f"words too many: {len(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Name the way out. What may hold a password is not shown."""
        complain(f"{_DSN.sub('(a DSN)', message)}\n  `{self.prog} --help` shows what there is")
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 fine, 1 something is wrong, 2 bad input or not reachable.

    argv: its words. Default: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    if not words:
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(words)
    try:
        command: Callable[[argparse.Namespace], int] = import_module(f"dbguard.cli.{arguments.command}").run
        return command(arguments)
    except ConfigError as error:
        complain(str(error))
        return 2
    except DbGuardError as error:
        complain(f"{error}")
        return 2
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        sys.stderr.write("dbguard: interrupted; nothing was left behind\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dbguard", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"dbguard {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", "a real failover, with and without dbguard beside each other", DEMO, DEMO_EXAMPLES
    )
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=20.0,
        metavar="N",
        help=f"how long the clients work, {SHORTEST:g} to {LONGEST:g} (default: 20)",
    )
    demo.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the figures and events as JSON; without FILE to standard output, and everything else to standard error",
    )

    demo.add_argument(
        "--outcome",
        choices=("token-table", "none"),
        default="token-table",
        help="prove by tokens what became of guarded writes whose answer is lost, or leave them unknown (default: "
        "token-table)",
    )

    check = _command(
        commands, "check", "is the configuration right, and is the cluster fit for it?", CHECK, CHECK_EXAMPLES
    )
    check.add_argument(
        "config", metavar="CONFIG", help="a .yaml file, or a DSN: postgresql://user@host1,host2/database"
    )
    check.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="application processes that will each open a guard (default: 1)",
    )
    check.add_argument("--settings", action="store_true", help="show all settings as they take effect")
    check.add_argument("--rights", action="store_true", help="show the least rights that the role needs, as SQL")
    check.add_argument("--json", action="store_true", help="one JSON object instead of text")

    status = _command(commands, "status", "who is the primary now, and what is wrong?", STATUS_NOW, STATUS_NOW_EXAMPLES)
    watch = _command(commands, "watch", "the cluster live: nodes, episodes, events", WATCH, WATCH_EXAMPLES)
    for command in (status, watch):
        command.add_argument("config", metavar="CONFIG", help="a .yaml file, or a DSN")
    status.add_argument("--json", action="store_true", help="one JSON object instead of text")
    watch.add_argument(
        "--interval",
        type=_interval,
        default=1.0,
        metavar="N",
        help="seconds between two views, 0.1 to 3600 (default: 1)",
    )
    watch.add_argument("--count", type=_count, metavar="N", help="end after so many views (default: at Ctrl-C)")

    route = _command(commands, "route", "where would a statement go, and why?", ROUTE, ROUTE_EXAMPLES)
    route.add_argument("sql", nargs="+", metavar="SQL", help="a statement, or `-` for those on standard input")
    route.add_argument("--config", metavar="CONFIG", help="ask a guard with this configuration, a .yaml file or a DSN")
    route.add_argument("--json", action="store_true", help="one JSON object per statement and line")
    _add_outcome(commands)
    return parser


def _add_outcome(commands: argparse._SubParsersAction[_Parser]) -> None:
    outcome = _command(
        commands, "outcome", "prove what became of a write: the schema for it", OUTCOME, OUTCOME_EXAMPLES
    )
    verbs = outcome.add_subparsers(dest="do", metavar="VERB", required=True)
    install = _command(verbs, "install", "print or apply the schema's SQL", INSTALL, INSTALL_EXAMPLES)
    status = _command(verbs, "status", "is the schema there, and fit?", STATUS, STATUS_EXAMPLES)
    prune = _command(verbs, "prune", "delete old tokens", PRUNE, PRUNE_EXAMPLES)
    resolve = _command(verbs, "resolve", "say what became of one write", RESOLVE, RESOLVE_EXAMPLES)
    for verb in (install, status, prune, resolve):
        verb.add_argument("config", metavar="CONFIG", help="a .yaml file, or a DSN")
        verb.add_argument(
            "--user",
            metavar="NAME",
            help="log in as another role than CONFIG says; its password: PGPASSWORD, ~/.pgpass",
        )
    for verb in (install, status):
        verb.add_argument(
            "--role", metavar="NAME", help="the role that guards log in as (default: CONFIG's connection.user)"
        )
    resolve.add_argument("token", metavar="TOKEN", help="what OutcomeUnknown.token, or the log, says")
    resolve.add_argument(
        "--timeout", type=_timeout, default=30.0, metavar="TIME", help="how long to try, 100ms to 1h (default: 30s)"
    )
    for verb in (status, prune, resolve):
        verb.add_argument("--json", action="store_true", help="one JSON object instead of text")
    doing = install.add_mutually_exclusive_group()
    doing.add_argument("--print", action="store_true", help="print the SQL and connect to nothing (the default)")
    doing.add_argument("--apply", action="store_true", help="run it on the primary")
    install.add_argument(
        "--owner", metavar="NAME", help="the role that shall own the schema; needs no login (default: who installs it)"
    )
    install.add_argument(
        "--published", action="store_true", help="apply although all tables are published: subscribers have the schema"
    )
    prune.add_argument(
        "--retention",
        type=_retention,
        metavar="TIME",
        help="what to keep, 1min to 365d (default: CONFIG's outcome.retention, which is 1h unless it says otherwise)",
    )
    prune.add_argument(
        "--batch", type=_count, default=BATCH, metavar="N", help=f"tokens per transaction (default: {BATCH})"
    )


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, brief: str, about: str, examples: str
) -> _Parser:
    return commands.add_parser(
        name,
        help=brief,
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not SHORTEST <= seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"should be a number from {SHORTEST:g} to {LONGEST:g}")
    return seconds


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3600.0:
        raise argparse.ArgumentTypeError("should be a number from 0.1 to 3600")
    return seconds


def _retention(text: str) -> float:
    try:
        return Duration(60.0, 365 * 86_400.0).parse(text)
    except Unfit as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _timeout(text: str) -> float:
    try:
        return Duration(0.1, 3_600.0).parse(text)
    except Unfit as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= 1_000_000:
        raise argparse.ArgumentTypeError("should be a whole number from 1 to 1000000")
    return count
