"""The command line: ``python -m chaos list | run | soak | validate``.

Exit code 0: all checkers say ok; 1: something is broken; 2: nothing is broken, but something is unknown, or it could not
be run; 130: interrupted, and healed, or ended at once by another Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chaos import cli_list, cli_run, cli_soak
from chaos.clients import CLIENTS, Client
from dbguard.errors import ConfigError
from dbguard.testing.cluster import ClusterError
from dbguard.testing.toxiproxy_server import ToxiproxyUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_ABOUT = """\
Scenarios: a real PostgreSQL cluster behind Toxiproxy is broken on a timeline, while clients work with it, and checkers
judge what the clients saw: nothing acknowledged may be lost, nothing applied twice, no client may miss its own writes."""

_EXAMPLES = """\
examples:
  python -m chaos list                                  what there is
  python -m chaos run ack-lost                          one scenario, with a guard
  python -m chaos run ack-lost --client naive-retry     the same with the loop that is written everywhere
  python -m chaos run all --report chaos.html           all of them, and a page to look at
  python -m chaos run my-own.yaml                       a scenario of your own
  python -m chaos soak --minutes 30 --seed 7            one client, and everything that can break
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words say; return the exit code. argv: default those of the process."""
    words = sys.argv[1:] if argv is None else argv
    parser = _parser()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    given = parser.parse_args(words)
    # whoever is told to end heals first, also where a shell that started this in the background had SIGINT ignored
    before = [
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)),
        (signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))),
    ]
    try:
        code: int = given.do(given)
    except (ConfigError, ToxiproxyUnavailable, ClusterError) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    return code


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m chaos", description=_ABOUT, epilog=_EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="the scenarios there are")
    command.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    command.set_defaults(do=cli_list.show)

    command = commands.add_parser("validate", help="say what is wrong with scenario files")
    command.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: all that there are")
    command.set_defaults(do=cli_list.validate)

    command = commands.add_parser("run", help="run scenarios, and judge them")
    command.add_argument("names", nargs="+", metavar="NAME", help="a scenario, a file of your own, or `all`")
    command.add_argument(
        "--client",
        type=_clients,
        default=("guard",),
        metavar="NAME",
        help=f"who is put to the test: {', '.join(CLIENTS)}, or one of your own as module:Class; several with commas, or "
        "`all` that are guarded (default: guard)",
    )
    command.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the faults' times and the callers' choices (default: 1)"
    )
    command.add_argument(
        "--rounds", type=_count, default=1, metavar="N", help="run all so often, each time with the next seed"
    )
    command.add_argument("--markdown", action="store_true", help="write the table at the end as Markdown")
    _add_output(command)
    command.set_defaults(do=cli_run.run)

    command = commands.add_parser(
        "soak", help="keep one client open while everything breaks, and watch that nothing grows"
    )
    command.add_argument("--minutes", type=_minutes, default=30.0, metavar="N", help="how long (default: 30)")
    command.add_argument(
        "--client",
        type=_client,
        default="guard",
        metavar="NAME",
        help=f"who is put to the test: one of {', '.join(CLIENTS)}, or one of your own as module:Class (default: guard)",
    )
    command.add_argument("--seed", type=int, default=1, metavar="N", help="of all that breaks, and when (default: 1)")
    _add_output(command)
    command.set_defaults(do=cli_soak.run)
    return parser


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json",
        type=_document,
        nargs="?",
        const="-",
        metavar="FILE",
        help="write one document with everything; without FILE to standard output, and everything else to standard error",
    )
    command.add_argument(
        "--report", type=_page, metavar="FILE", help="write a page to look at, one HTML file that works offline"
    )
    command.add_argument(
        "--history", type=_folder, metavar="FOLDER", help="write the history of each run there while it happens"
    )


def _clients(text: str) -> tuple[str, ...]:
    return cli_run.GUARDED if text == "all" else tuple(dict.fromkeys(_client(name) for name in text.split(",")))


def _client(name: str) -> str:
    """Return the name of a client that is there; one of the user's own is there from now on."""
    if name in CLIENTS:
        return name
    module, colon, kind = name.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"no client {name}; there are {', '.join(CLIENTS)}, and your own as module:Class"
        )
    try:
        found = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as e:
        raise argparse.ArgumentTypeError(f"{name} cannot be imported: {e}") from None
    if not (isinstance(found, type) and issubclass(found, Client)):
        raise argparse.ArgumentTypeError(f"{name} is no class made of chaos.clients.Client")
    CLIENTS[kind] = found
    return kind


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000):
        raise argparse.ArgumentTypeError("should be a whole number from 1 to 1000")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0.1 <= minutes <= 100_000:
        raise argparse.ArgumentTypeError("should be a number of minutes, at least 0.1")
    return minutes


def _document(text: str) -> str:
    return text if text == "-" else str(_to_be_written(text))


def _page(text: str) -> Path:
    path = _to_be_written(text)
    try:
        importlib.import_module("chaos.report")
    except ModuleNotFoundError as e:  # better told now than after the runs
        raise argparse.ArgumentTypeError(str(e)) from None
    return path


def _folder(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return path


def _to_be_written(text: str) -> Path:
    """Return the path of a file that can be written, as far as one can see before the runs."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: there is no folder {path.parent} to write to")
    return path
