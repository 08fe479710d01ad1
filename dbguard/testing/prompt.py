"""``python -m dbguard.testing.cluster``: a cluster kept up by hand, and the commands that break it.

On a terminal it prompts, and an error is shown and forgotten. From a pipe it runs line by line, and ends with exit code
1 at the first line that fails. Ctrl-C, SIGTERM and the end of the input end it, and nothing stays behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast, get_args

from dbguard.config.quantities import Duration
from dbguard.config.values import Unfit
from dbguard.testing.binaries import Source, find_binaries
from dbguard.testing.cluster import Cluster, ClusterError
from dbguard.testing.faults import Faults
from dbguard.testing.proxied import ProxiedCluster
from dbguard.testing.roles import ROLES
from dbguard.testing.standing import standing
from dbguard.testing.toxiproxy import TOXICS, ToxicKind, ToxiproxyError
from dbguard.testing.toxiproxy_server import ToxiproxyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dbguard.testing.toxiproxy import Proxy

__all__ = ["main"]

PROMPT = "cluster> "
CHUNK = 4096  # bytes read at once


class _Refused(Exception):
    """A command that cannot be done as it was written; the message says what to write."""


class _UsageError(Exception):
    """The words of a command are not fit."""


@dataclass(frozen=True, slots=True)
class _Command:
    """usage: what follows its name. says: what it does. links: it needs proxies."""

    usage: str
    says: str
    run: Callable[[Prompt, str], str | None]
    links: bool = False


class Prompt:
    """Does what a line says to a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.faults = Faults(cluster)  # never entered: what a command breaks stays broken until another one heals it

    def do(self, line: str) -> str | None:
        """Do one line; return what to print. Raises EOFError to end, and what kept it from being done."""
        name, _, rest = line.strip().partition(" ")
        if not name or name.startswith("#"):
            return None
        command = COMMANDS.get(name)
        if command is None:
            raise _Refused(f"no command {name}; `help` lists them")
        if command.links and not isinstance(self.cluster, ProxiedCluster):
            raise _Refused(f"{name} breaks a link, and there are proxies only with the option --proxied")
        try:
            return command.run(self, rest.strip())
        except (_UsageError, Unfit) as e:
            raise _Refused(f"{e}; usage: {name} {command.usage}") from None

    # --- looking

    def status(self, rest: str) -> str:
        """Show how all nodes stand."""
        _words(rest, 0)
        return standing(self.cluster)

    def dsn(self, rest: str) -> str:
        """Print the DSN of all nodes, or of those named."""
        return self.cluster.dsn(*(self.faults.node(name) for name in rest.split()))

    def sql(self, rest: str) -> str:
        """Run a statement as superuser, on the primary or on the node named first."""
        first, _, statement = rest.partition(" ")
        known = {*ROLES, *(node.name for node in self.cluster.nodes)}
        node, query = (first, statement.strip()) if first in known else ("primary", rest)
        if not query:
            raise _UsageError("which statement?")
        rows = self.cluster.sql(self.faults.node(node), query)
        return "\n".join([*(" | ".join(map(str, row)) for row in rows), f"({len(rows)} rows)"])

    def log(self, rest: str) -> str:
        """Show the end of a node's log."""
        (name,) = _words(rest, 1)
        return self.faults.node(name).log_tail()

    # --- nodes

    def on_node(self, act: Callable[[str], object], done: str, rest: str, default: str | None = None) -> str:
        """Do something to one node; say so."""
        words = _words(rest, 0 if default else 1, 1)
        node = self.faults.node(words[0] if words else str(default))
        how = act(node.name)
        return f"{node} {done}" + (f" ({how})" if isinstance(how, str) else "")

    def move(self, rest: str, how: str) -> str:
        """Move the office of the primary to another node."""
        words = _words(rest, 0, 2 if how == "kill" else 1)
        after = _seconds(words[1]) if len(words) > 1 else 0.0
        return self.faults.move(words[0] if words else "replica", stop=how == "stop", after=after)

    def heal(self, rest: str) -> str:
        """Heal all links, bring all nodes to their places, and let all replicas apply."""
        _words(rest, 0)
        if isinstance(self.cluster, ProxiedCluster):
            self.cluster.toxiproxy.reset()
        self.faults.restore_all()
        for replica in self.cluster.replicas:
            self.cluster.resume_replay(replica)
        return standing(self.cluster)

    # --- links

    def link(self, rest: str, act: Callable[[Proxy], object], done: str) -> str:
        """Break one link; say so."""
        (name,) = _words(rest, 1)
        act(self.faults.link(name))
        return f"{name} {done}"

    def latency(self, rest: str) -> str:
        """Hold up a link's replies."""
        name, seconds = _words(rest, 2)
        self.faults.link(name).toxic("latency", latency=round(_seconds(seconds) * 1000))
        return f"replies on {name} come {seconds} later"

    def toxic(self, rest: str) -> str:
        """Put any toxic on a link."""
        name, kind, *settings = _words(rest, 2, 9)
        if kind not in TOXICS:
            raise _UsageError(f"no toxic {kind}; there are {', '.join(TOXICS)}")
        attributes: dict[str, Any] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if not value.isdigit():
                raise _UsageError(f"{setting} should be an attribute and a whole number, such as rate=10")
            attributes[key] = int(value)
        try:
            return str(self.faults.link(name).toxic(cast("ToxicKind", kind), **attributes))
        except ValueError as e:
            raise _UsageError(str(e)) from None

    # --- going on

    def sleep(self, rest: str) -> None:
        """Wait for some seconds."""
        (seconds,) = _words(rest, 1)
        time.sleep(_seconds(seconds))

    def wait(self, rest: str) -> NoReturn:
        """Stay up until a signal ends it."""
        _words(rest, 0)
        while True:
            time.sleep(1)

    def help(self, rest: str) -> str:
        """List the commands."""
        _words(rest, 0)
        return described(links=isinstance(self.cluster, ProxiedCluster))

    def quit(self, _rest: str) -> NoReturn:
        """End."""
        raise EOFError


def _node_command(usage: str, says: str, method: str, done: str, default: str | None = None) -> _Command:
    """Make the command that calls a method of the cluster with one node."""

    def run(prompt: Prompt, rest: str) -> str:
        return prompt.on_node(getattr(prompt.cluster, method), done, rest, default)

    return _Command(usage, says, run)


def _hole(link: Proxy) -> None:
    link.toxic("timeout", stream="upstream", timeout=0)
    link.toxic("timeout", timeout=0)


COMMANDS: Mapping[str, _Command] = {
    "status": _Command("", "how all nodes stand, and which links are broken", Prompt.status),
    "dsn": _Command("[NODE ...]", "the DSN of all nodes, or of those named", Prompt.dsn),
    "sql": _Command("[NODE] STATEMENT", "run a statement as superuser, on the primary by default", Prompt.sql),
    "log": _Command("NODE", "the end of a node's log", Prompt.log),
    "kill": _node_command("NODE", "SIGKILL, as a power cut would", "kill", "killed"),
    "stop": _node_command("NODE", "stop it as an administrator does", "stop_node", "stopped"),
    "start": _node_command("NODE", "start it in the role it had: a primary of old as one", "start_node", "started"),
    "freeze": _node_command("NODE", "SIGSTOP: connections stay open, nothing answers", "freeze", "frozen"),
    "thaw": _node_command("NODE", "let a frozen node run on", "thaw", "runs on"),
    "promote": _node_command("[NODE]", "make a replica a primary, and tell nobody", "promote", "promoted", "replica"),
    "rejoin": _node_command("NODE", "bring it back as a replica; what only it had is lost", "rejoin", "rejoined"),
    "failover": _Command(
        "[NODE [SECONDS]]",
        "kill the primary, promote NODE after SECONDS, let the others follow",
        lambda p, r: p.move(r, "kill"),
    ),
    "switchover": _Command(
        "[NODE]", "stop the primary in order, promote NODE, let the others follow", lambda p, r: p.move(r, "stop")
    ),
    "pause-replay": _node_command(
        "[NODE]", "a replica receives, and shows the past", "pause_replay", "paused", "replica"
    ),
    "resume-replay": _node_command("NODE", "let it apply again", "resume_replay", "applies again"),
    "end-backends": _Command(
        "[NODE]",
        "end all client connections, as an administrator does",
        lambda p, r: p.on_node(
            lambda n: f"{p.cluster.terminate_backends(n)} backends", "lost its clients", r, "primary"
        ),
    ),
    "hole": _Command(
        "LINK",
        "swallow all that is said, both ways",
        lambda p, r: p.link(r, _hole, "swallows all that is said"),
        links=True,
    ),
    "down": _Command(
        "LINK",
        "end its connections, refuse new ones",
        lambda p, r: p.link(r, lambda link: link.disable(), "takes no connections"),
        links=True,
    ),
    "latency": _Command("LINK TIME", "hold up replies, by 200ms or 1s", Prompt.latency, links=True),
    "toxic": _Command("LINK KIND [name=number ...]", "put any toxic of Toxiproxy on it", Prompt.toxic, links=True),
    "heal": _Command("", "heal all links, bring all nodes to their places", Prompt.heal),
    "sleep": _Command("TIME", "wait, for scripts", Prompt.sleep),
    "wait": _Command("", "stay up until a signal comes, for scripts", Prompt.wait),
    "help": _Command("", "this list", Prompt.help),
    "quit": _Command("", "end, and remove everything", Prompt.quit),
}


def described(*, links: bool) -> str:
    """List the commands; *links*: those that need proxies as well."""
    rows = [(f"{name} {c.usage}".strip(), c.says) for name, c in COMMANDS.items() if links or not c.links]
    width = max(len(usage) for usage, _ in rows)
    names = f"NODE is a letter or a role: {', '.join(ROLES)}."
    if links:
        names += "\nLINK is who dials and who listens, such as app->primary or replica->primary."
    return "\n".join([*(f"{usage:{width}}  {says}" for usage, says in rows), names])


def _words(rest: str, least: int, most: int | None = None) -> list[str]:
    words = rest.split()
    if not least <= len(words) <= (least if most is None else most):
        raise _UsageError("something is missing" if len(words) < least else "too many words")
    return words


def _seconds(word: str) -> float:
    with contextlib.suppress(ValueError):
        return Duration().parse(float(word))
    return Duration().parse(word)


# --- the command


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dbguard.testing.cluster",
        description="Keep a PostgreSQL primary with streaming replicas up on this machine, and break it by commands:\n"
        "from a terminal, or from a pipe, where the first failure ends it with exit code 1.",
        epilog=f"commands:\n{described(links=True)}\n\nexample:\n"
        "  printf 'failover\\nstatus\\n' | python -m dbguard.testing.cluster --synchronous",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--replicas", type=int, default=2, metavar="N", help="0 to 9; default 2")
    parser.add_argument("--synchronous", action="store_true", help="commits wait for one replica")
    parser.add_argument("--proxied", action="store_true", help="put Toxiproxy on every link, so that links can break")
    parser.add_argument(
        "--postgres", choices=get_args(Source), help="which PostgreSQL; default: the best that is found"
    )
    parser.add_argument("--password", help="ask for this password of the superuser; default: everybody here is trusted")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="a server setting; repeatable"
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.replicas <= 9:
        parser.error(f"--replicas should be 0 to 9, not {arguments.replicas}")
    for setting in arguments.settings:
        if "=" not in setting:
            parser.error(f"--set {setting} should be NAME=VALUE, such as --set work_mem=8MB")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run until told to end; return the exit code: 1 if a line of a pipe failed, 130 or 143 if a signal ended it."""
    arguments = _arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    options: dict[str, Any] = {
        "replicas": arguments.replicas,
        "synchronous": arguments.synchronous,
        "password": arguments.password,
        "settings": dict(setting.split("=", 1) for setting in arguments.settings),
    }
    try:
        options["binaries"] = find_binaries(arguments.postgres)
        _say(f"starting {arguments.replicas + 1} nodes of {options['binaries']}", to=sys.stderr)
        with ProxiedCluster(**options, say=_tell) if arguments.proxied else Cluster(**options) as cluster:
            return _converse(cluster)
    except (ClusterError, ToxiproxyError, ToxiproxyUnavailable) as e:
        _say(f"error: {e}", to=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _converse(cluster: Cluster) -> int:
    prompt, terminal = Prompt(cluster), sys.stdin.isatty()
    _say(f"{standing(cluster)}\n\nDSN:  {cluster.dsn()}\npsql: psql '{cluster.dsn()}?target_session_attrs=read-write'")
    if terminal:
        _say("`help` lists the commands, `quit` or Ctrl-D ends it and removes everything\n")
    for number, line in enumerate(_lines(terminal=terminal), start=1):
        if not terminal:
            _say(f"{PROMPT}{line.rstrip()}")
        try:
            said = prompt.do(line)
        except EOFError:
            return 0
        except Exception as e:  # noqa: BLE001  a server's refusal or a mistyped name: shown, and at a terminal forgotten
            reason = str(e) if isinstance(e, (_Refused, ClusterError)) else f"{type(e).__name__}: {e}"
            if not terminal:
                _say(f"line {number}: {line.strip()}: {reason}", to=sys.stderr)
                return 1
            _say(f"error: {reason}")
        else:
            if said:
                _say(said)
    return 0


def _lines(*, terminal: bool) -> Iterator[str]:
    """Read standard input line by line.

    Not by `input`: a signal that comes just before it waits is not seen until the next key is pressed. What wakes this
    is a file, so that it is not lost.
    """
    source, pending = sys.stdin.fileno(), b""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    before = signal.set_wakeup_fd(woken)
    try:
        while True:
            if terminal:
                print(PROMPT, end="", flush=True)
            while b"\n" not in pending:
                ready, _, _ = select.select([source, wake], [], [])
                if wake in ready:
                    os.read(wake, CHUNK)  # the signal's own handler runs now, and raises
                    continue
                read = os.read(source, CHUNK)
                if not read:
                    if pending:
                        yield pending.decode(errors="replace")
                    return
                pending += read
            line, _, pending = pending.partition(b"\n")
            yield line.decode(errors="replace")
    finally:
        signal.set_wakeup_fd(before)
        os.close(wake)
        os.close(woken)


def _say(text: str, *, to: Any = None) -> None:
    print(text, file=to or sys.stdout, flush=True)


def _tell(line: str) -> None:
    _say(line, to=sys.stderr)


def _ended(number: int, _frame: object) -> NoReturn:
    """End as by `sys.exit`, so that the cluster is taken down on the way."""
    sys.exit(128 + number)
