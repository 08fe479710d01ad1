#!/usr/bin/env python3
"""Set up what is needed, then run it: ``python3 do.py demo`` and ``python3 do.py test`` (also `make demo`, `make test`).

demo: runs ``dbguard demo``; what follows is passed on to it.
test: runs ruff, mypy and pytest; what follows is passed on to pytest.

Everything goes into ``.venv`` beside this file (or into DBGUARD_VENV), and the Toxiproxy server into the user's cache.
A second run installs nothing until pyproject.toml, the Python or the place of the checkout changes.

Its first task is to find a fit Python, so it runs on any Python from 3.6 on, on the standard library alone: no newer
syntax here.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Tuple

ROOT = Path(__file__).resolve().parent
VENV = ROOT / os.environ.get("DBGUARD_VENV", ".venv")
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "dbguard-setup.json"
OLDEST, NEWEST, RANGE = (3, 11), (3, 14), "3.11 to 3.14"
INSTALL = {
    "demo": ["--editable", ".[demo]"],
    "test": ["--editable", ".[psycopg,demo,test]", "--group", "dev"],
}
CHECKS = [
    ("ruff check", ["-m", "ruff", "check", "."]),
    ("ruff format --check", ["-m", "ruff", "format", "--check", "."]),
    ("mypy", ["-m", "mypy"]),
]
PARALLEL = ["-n", "3", "--dist", "loadfile"]  # most tests wait for servers; -n 0 among the arguments runs them in a row
LOG_EVERY = 10  # seconds between two lines of progress where there is no terminal


class Problem(Exception):
    """What went wrong, and the way out: shown to the user as it is."""


class Python(NamedTuple):
    """An interpreter that runs here: where, and which version."""

    program: str
    version: Tuple[int, ...]

    def __str__(self) -> str:
        """Say version and place."""
        return f"Python {'.'.join(map(str, self.version))} ({self.program})"

    def is_fit(self) -> bool:
        """Answer whether dbguard runs on it, and has its dependencies built for it."""
        return OLDEST <= self.version[:2] <= NEWEST


# Finding a Python


def candidates(environ: Mapping[str, str]) -> Iterator[str]:
    """Name the programs that may be a fit Python, the most likely first."""
    yield sys.executable
    names = ["python3"] + [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    for name in names:
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            yield found
    home = Path(environ.get("HOME") or "/nonexistent")
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    for kept in [
        Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions",
        Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python"),
        Path("/opt/homebrew/opt"),
    ]:
        with contextlib.suppress(OSError):
            for found_path in sorted(kept.glob("*3.1[1-4]*/bin/python3.1[1-4]"), reverse=True):
                yield str(found_path)
    for directory in ["/usr/local/bin", "/usr/bin"]:
        for name in names:
            yield f"{directory}/{name}"


def probe(program: str) -> Optional[Python]:
    """Ask a program what it is; None if it is no CPython that runs and can fetch packages.

    Inside a virtual environment it answers with the Python that the environment was made from, as the environment may
    be the one that is about to be replaced.
    """
    code = (
        "import sys, ssl; print(sys.implementation.name, '.'.join(map(str, sys.version_info[:3])),"
        " getattr(sys, '_base_executable', '') or sys.executable)"
    )
    try:
        answer = subprocess.check_output([program, "-I", "-c", code], stderr=subprocess.DEVNULL, timeout=20)
        kind, version, base = answer.decode().rstrip("\n").split(" ", 2)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Python(base, tuple(map(int, version.split(".")))) if kind == "cpython" else None


def fit_pythons(programs: Iterable[str]) -> Iterator[Python]:
    """Pick those that are fit, each once. Raises `Problem` if there is none, naming those that are not."""
    seen = {}  # type: Dict[str, Python]
    for program in programs:
        python = probe(program)
        if python and os.path.realpath(python.program) not in seen:
            seen[os.path.realpath(python.program)] = python
            if python.is_fit():
                yield python
    if not any(python.is_fit() for python in seen.values()):
        raise Problem(
            f"dbguard needs Python {RANGE}; found: {', '.join(map(str, seen.values())) or 'none that runs'}.\n"
            "Install one (`apt-get install python3.11 python3.11-venv`, `brew install python@3.13`, `pyenv install 3.13`"
            " or `uv python install 3.13`), or name one: `make test PYTHON=/path/to/python3`."
        )


def chosen_python(program: str) -> Python:
    """Return the Python that the user named. Raises `Problem` if it is not fit."""
    python = probe(program)
    if python is None or not python.is_fit():
        raise Problem(f"dbguard needs Python {RANGE}; `{program}` is {python or 'no Python that runs here'}.")
    return python


# Showing progress


def say(line: str = "") -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


class Waiting:
    """Shows how long something takes: one line that counts on a terminal, a line now and then in a log."""

    def __init__(self, title: str, stream: Optional[IO[str]] = None) -> None:
        self.title = title
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.shown = 0

    def tick(self, elapsed: float) -> None:
        """Show that it goes on, *elapsed* seconds after it began."""
        if self.terminal:
            self._write(f"\r  {self.title}: {elapsed:.0f} s ")
        elif elapsed >= self.shown + LOG_EVERY:
            self.shown = int(elapsed)
            self._write(f"  {self.title}: {self.shown} s so far\n")

    def end(self, outcome: str, elapsed: float) -> None:
        """Show how it ended, and after how long."""
        line = f"  {self.title}: {outcome}, {elapsed:.1f} s\n"
        self._write(f"\r{line}" if self.terminal else line)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def quietly(title: str, command: List[str], environ: Mapping[str, str]) -> str:
    """Run to the end while showing progress; return the output. Raises `Problem` with the output's end if it fails.

    The command gets a session of its own: an interruption reaches it through us alone, and we wait until it is gone.
    """
    waiting, begun = Waiting(title), time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=str(ROOT),
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Problem(f"{command[0]}: {error.strerror}") from None
        try:
            waiting.tick(0)
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                waiting.tick(time.monotonic() - begun)
        except BaseException:
            end_group(process)
            waiting.end("interrupted", time.monotonic() - begun)
            raise
        output.seek(0)
        text = output.read().decode(errors="replace").rstrip()
    waiting.end("failed" if process.returncode else "done", time.monotonic() - begun)
    if process.returncode:
        raise Problem("\n".join(text.splitlines()[-60:] or [f"exit code {process.returncode}"]))
    return text


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a command and all that it started; after 10 s, end them."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


# Setting up


def environment() -> Dict[str, str]:
    """Return the environment for all we start: the virtual environment's programs, nothing of another Python's."""
    environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    environ["VIRTUAL_ENV"] = str(VENV)
    environ["PATH"] = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", os.defpath)])
    environ["PIP_USER"] = environ["PIP_REQUIRE_VIRTUALENV"] = "0"  # a user's pip.conf may ask for either
    environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return environ


def stamp_for(kind: str, python: Python) -> Dict[str, Any]:
    """Describe a finished set-up: whatever changes here makes the next run install again."""
    inputs = (ROOT / "pyproject.toml").read_bytes() + json.dumps(INSTALL, sort_keys=True).encode()
    return {
        "root": str(ROOT),
        "python": list(python.version[:2]),
        "inputs": hashlib.sha256(inputs).hexdigest(),
        "kind": kind,
    }


def read_stamp() -> Optional[Dict[str, Any]]:
    """Return what the last set-up left: None if it was not ours, empty if it did not come to its end."""
    try:
        stamp = json.loads(STAMP.read_text())
    except ValueError:
        return {}
    except OSError:
        return None
    return stamp if isinstance(stamp, dict) else {}


def is_ready(kind: str, chosen: Optional[Python]) -> bool:
    """Answer whether all that *kind* needs is installed. Tests need more than the demo, so they cover it."""
    stamp, python = read_stamp(), probe(str(PYTHON))
    if not stamp or python is None or (chosen and chosen.version[:2] != python.version[:2]):
        return False
    return any(stamp == stamp_for(covering, python) for covering in {kind, "test"})


def set_up(kind: str, chosen: Optional[Python]) -> None:
    """Make the virtual environment if there is none that fits, and install into it. The lock is held."""
    if not os.access(str(VENV if VENV.exists() else VENV.parent), os.W_OK):
        raise Problem(f"{VENV} cannot be written by you; set DBGUARD_VENV to a directory of your own.")
    if not is_usable(chosen):
        if VENV.exists() and any(VENV.iterdir()) and read_stamp() is None:
            raise Problem(f"{VENV} is there, but is no environment that fits; remove it, or set DBGUARD_VENV.")
        make_venv([chosen] if chosen else fit_pythons(candidates(os.environ)))
    STAMP.write_text("{}")
    pip = [str(PYTHON), "-m", "pip", "install", "--no-input"]
    try:
        if "--group" in INSTALL[kind]:
            quietly("get a pip that knows dependency groups", [*pip, "pip>=25.1"], environment())
        quietly(f"install dbguard and what `{kind}` needs", [*pip, *INSTALL[kind]], environment())
    except Problem as problem:
        raise Problem(f"{problem}\nIf a second try fails in the same way, remove {VENV} first.") from None
    python = probe(str(PYTHON))
    if python is None:
        raise Problem(f"{PYTHON} does not run any more; remove {VENV} and try again.")
    STAMP.write_text(json.dumps(stamp_for(kind, python)))


def is_usable(chosen: Optional[Python]) -> bool:
    """Answer whether the environment that is there can be installed into. One of somebody else's making can, too."""
    stamp, python = read_stamp(), probe(str(PYTHON))
    if python is None or not python.is_fit() or (chosen and chosen.version[:2] != python.version[:2]):
        return False
    if stamp and (stamp["root"], stamp["python"]) != (str(ROOT), list(python.version[:2])):
        return False  # the checkout was moved, or the Python below was replaced by another
    return subprocess.call([str(PYTHON), "-c", "import pip"], stderr=subprocess.DEVNULL) == 0


def ways(python: str) -> List[Tuple[str, List[List[str]]]]:
    """List the ways to make an environment, each with its commands; Debian's Python comes without the first."""
    virtualenv, uv = shutil.which("virtualenv"), shutil.which("uv")
    return [
        ("venv", [[python, "-m", "venv", str(VENV)]]),
        ("virtualenv", [[virtualenv or "virtualenv", "--python", python, str(VENV)]]),
        ("uv", [[uv or "uv", "venv", "--seed", "--allow-existing", "--no-cache", "--python", python, str(VENV)]]),
        (
            "pip",
            [
                [python, "-m", "venv", "--without-pip", str(VENV)],
                [python, "-m", "pip", "--python", str(PYTHON), "install", "--no-input", "pip"],
            ],
        ),
    ]


def make_venv(pythons: Iterable[Python]) -> None:
    """Make the environment in the first way that works. Raises `Problem` that says what to install if none does."""
    failures = []
    for python in pythons:
        say(f"making {VENV} with {python}")
        for way, commands in ways(python.program):
            if not all(shutil.which(command[0]) for command in commands):
                failures.append(f"{way}: not installed")
                continue
            shutil.rmtree(str(VENV), ignore_errors=True)
            VENV.mkdir(parents=True, exist_ok=True)
            STAMP.write_text("{}")  # from here on it is ours to remove
            try:
                for command in commands:
                    quietly(way, command, environment())
            except Problem as problem:
                without = "ensurepip" in str(problem)
                failures.append(f"{way}: {'no ensurepip' if without else str(problem).splitlines()[-1]}")
            else:
                return
    reasons = "\n  ".join(failures)
    raise Problem(
        f"no virtual environment could be made:\n  {reasons}\n"
        "Install one of these: `apt-get install python3-venv` (Debian, Ubuntu), virtualenv, or uv."
    )


@contextlib.contextmanager
def locked() -> Iterator[IO[str]]:
    """Open the lock file: held by all that use the environment, and by one alone while it is changed."""
    path = VENV.with_name(VENV.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError:
        try:
            lock = path.open()  # another user's checkout, set up already: enough to read
        except OSError as error:
            raise Problem(f"{error}; set DBGUARD_VENV to a directory of your own.") from None
    with lock:
        yield lock


def acquire(lock: IO[str], mode: int) -> None:
    """Take the lock in this mode, showing that we wait for another run."""
    waiting, begun = Waiting("wait for another run in this checkout"), time.monotonic()
    fcntl.flock(lock, fcntl.LOCK_UN)  # two runs that both hold it shared must not wait for each other
    while True:
        try:
            fcntl.flock(lock, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting.tick(time.monotonic() - begun)
            time.sleep(0.2)
        else:
            break
    if time.monotonic() - begun >= 0.2:
        waiting.end("done", time.monotonic() - begun)


# The two commands


def demo(arguments: List[str], lock: IO[str]) -> NoReturn:
    """Become ``dbguard demo``: signals and the exit code are its own. The lock stays with it."""
    os.set_inheritable(lock.fileno(), True)
    program = str(VENV / "bin" / "dbguard")
    os.execve(program, [program, "demo", *arguments], environment())


def test(arguments: List[str]) -> int:
    """Run every check, whatever the others say. The exit code is 0 only if all passed."""
    failed = []
    server = ("Toxiproxy server (built the first time)", ["-m", "dbguard.testing.toxiproxy_server"])
    for title, command in [server, *CHECKS]:
        try:
            quietly(title, [str(PYTHON), *command], environment())
        except Problem as problem:
            say(str(problem))
            failed.append(title)
    code = in_front([str(PYTHON), "-m", "pytest", *PARALLEL, *arguments])
    if code:
        failed.append("pytest")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return code or bool(failed)


def in_front(command: List[str]) -> int:
    """Run with the terminal, and wait for it also when interrupted, as it has servers to stop."""
    process = None  # type: Optional[subprocess.Popen[bytes]]
    stopped = []  # type: List[int]

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        if process is not None and number != signal.SIGINT:  # Ctrl-C reaches it without us
            process.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    process = subprocess.Popen(command, cwd=str(ROOT), env=environment())
    code = process.wait()
    return 128 + stopped[0] if stopped else code


def interrupted(number: int, _frame: object) -> NoReturn:
    """Treat a signal that asks us to end like Ctrl-C."""
    raise KeyboardInterrupt(number)


def main(arguments: Optional[List[str]] = None) -> int:
    """Do what the command line says; return the exit code: 2 if the set-up failed, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        description="Set up what is needed in .venv, then run the demo, or all tests with lint and types."
    )
    parser.add_argument("--python", help="use this Python (a program's name or path), whatever .venv was made with")
    parser.add_argument("command", choices=["demo", "test"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to `dbguard demo` or to pytest")
    asked = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        chosen = chosen_python(asked.python) if asked.python else None
        with locked() as lock:
            acquire(lock, fcntl.LOCK_SH)
            if not is_ready(asked.command, chosen):
                acquire(lock, fcntl.LOCK_EX)
                if not is_ready(asked.command, chosen):
                    set_up(asked.command, chosen)
                acquire(lock, fcntl.LOCK_SH)
            if asked.command == "demo":
                demo(asked.arguments, lock)
            return test(asked.arguments)
    except Problem as problem:
        say(str(problem))
        return 2
    except KeyboardInterrupt:
        say("interrupted; run it again to go on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
