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
from dbguard.cli import texts
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
        prog="dbguard",
        description=texts.ABOUT,
        epilog=texts.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dbguard {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = _command(
        commands, "demo", "a real failover, with and without dbguard beside each other", texts.DEMO, texts.DEMO_EXAMPLES
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
        "--facade",
        choices=("asyncpg", "psycopg", "threads"),
        default="asyncpg",
        help="what both sides use: asyncpg, psycopg on asyncio, or psycopg in threads (default: asyncpg)",
    )

    demo.add_argument(
        "--outcome",
        choices=("token-table", "none"),
        default="token-table",
        help="prove by tokens what became of guarded writes whose answer is lost, or leave them unknown (default: "
        "token-table)",
    )

    check = _command(
        commands,
        "check",
        "is the configuration right, and is the cluster fit for it?",
        texts.CHECK,
        texts.CHECK_EXAMPLES,
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

    status = _command(
        commands, "status", "who is the primary now, and what is wrong?", texts.STATUS_NOW, texts.STATUS_NOW_EXAMPLES
    )
    watch = _command(commands, "watch", "the cluster live: nodes, episodes, events", texts.WATCH, texts.WATCH_EXAMPLES)
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

    route = _command(commands, "route", "where would a statement go, and why?", texts.ROUTE, texts.ROUTE_EXAMPLES)
    route.add_argument("sql", nargs="+", metavar="SQL", help="a statement, or `-` for those on standard input")
    route.add_argument("--config", metavar="CONFIG", help="ask a guard with this configuration, a .yaml file or a DSN")
    route.add_argument("--json", action="store_true", help="one JSON object per statement and line")
    _add_outcome(commands)
    return parser


def _add_outcome(commands: argparse._SubParsersAction[_Parser]) -> None:
    outcome = _command(
        commands, "outcome", "prove what became of a write: the schema for it", texts.OUTCOME, texts.OUTCOME_EXAMPLES
    )
    verbs = outcome.add_subparsers(dest="do", metavar="VERB", required=True)
    install = _command(verbs, "install", "print or apply the schema's SQL", texts.INSTALL, texts.INSTALL_EXAMPLES)
    status = _command(verbs, "status", "is the schema there, and fit?", texts.STATUS, texts.STATUS_EXAMPLES)
    prune = _command(verbs, "prune", "delete old tokens", texts.PRUNE, texts.PRUNE_EXAMPLES)
    resolve = _command(verbs, "resolve", "say what became of one write", texts.RESOLVE, texts.RESOLVE_EXAMPLES)
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
