"""The script behind `make demo` and `make test`: which Python, when to install, what it says. Nothing is downloaded."""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

SCRIPT = Path(__file__).parents[1] / "do.py"


def load() -> ModuleType:
    """Load the script as a module of its own."""
    spec = importlib.util.spec_from_file_location("do", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretended_python(path: Path, version: str, *, base: Path | None = None, kind: str = "cpython") -> Path:
    """Write a program that answers like a Python, whatever it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {kind} {version} {base or path}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the script, at work in an empty checkout of its own."""
    module = load()
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text("[project]\n")
    for name, value in {
        "ROOT": root,
        "VENV": root / ".venv",
        "PYTHON": root / ".venv" / "bin" / "python",
        "STAMP": root / ".venv" / "dbguard-setup.json",
    }.items():
        monkeypatch.setattr(module, name, value)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield module
    for number, handler in before.items():
        signal.signal(number, handler)


class Steps:
    """Stands for the commands that would take long: remembers them, and makes or refuses what they would make."""

    def __init__(self, do: Any, *, broken: tuple[str, ...] = ()) -> None:
        self.do = do
        self.broken = broken
        self.titles: list[str] = []

    def __call__(self, title: str, command: list[str], environ: dict[str, str]) -> str:
        self.titles.append(title)
        if title in self.broken:
            raise self.do.Problem(f"{title} went wrong")
        if "venv" in command:
            pretended_python(self.do.PYTHON, "3.12.1")
        return ""

    @property
    def installed(self) -> list[str]:
        return [title for title in self.titles if title.startswith("install")]


@pytest.fixture
def steps(do: Any, monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps(do)
    monkeypatch.setattr(do, "quietly", steps)
    monkeypatch.setattr(do, "candidates", lambda _environ: [sys.executable])
    return steps


# Which Python


@pytest.mark.parametrize(
    ("version", "fit"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 14, 2), True), ((3, 15, 0), False)]
)
def test_python_3_11_to_3_14_is_fit(do: Any, version: tuple[int, ...], *, fit: bool) -> None:
    assert do.Python("/python", version).is_fit() is fit


def test_first_fit_python_is_taken(do: Any, tmp_path: Path) -> None:
    programs = [
        pretended_python(tmp_path / "old", "3.9.2"),
        pretended_python(tmp_path / "pypy", "3.11.9", kind="pypy"),
        tmp_path / "missing",
        pretended_python(tmp_path / "fit", "3.13.1"),
        pretended_python(tmp_path / "later", "3.14.0"),
    ]

    assert next(do.fit_pythons(map(str, programs))) == (str(tmp_path / "fit"), (3, 13, 1))


def test_one_python_under_two_names_is_tried_once(do: Any, tmp_path: Path) -> None:
    base = pretended_python(tmp_path / "base", "3.12.1")
    link = tmp_path / "link"
    link.symlink_to(base)
    in_venv = pretended_python(tmp_path / "venv" / "bin" / "python", "3.12.1", base=base)

    assert len(list(do.fit_pythons(map(str, [base, link, in_venv])))) == 1


def test_inside_a_virtual_environment_the_python_below_is_meant(do: Any) -> None:
    assert do.probe(sys.executable).program == sys._base_executable  # type: ignore[attr-defined]


def test_without_a_fit_python_the_message_names_what_was_found_and_the_way_out(do: Any, tmp_path: Path) -> None:
    old = pretended_python(tmp_path / "old", "3.9.2")

    with pytest.raises(do.Problem) as caught:
        list(do.fit_pythons([str(old)]))

    assert f"Python 3.9.2 ({old})" in str(caught.value)
    assert "3.11 to 3.14" in str(caught.value)
    assert "PYTHON=" in str(caught.value)


def test_python_that_the_user_named_is_taken_or_refused(do: Any, tmp_path: Path) -> None:
    fit = pretended_python(tmp_path / "fit", "3.13.1")
    old = pretended_python(tmp_path / "old", "3.9.2")

    assert do.chosen_python(str(fit)).version == (3, 13, 1)
    with pytest.raises(do.Problem, match=r"is Python 3\.9\.2"):
        do.chosen_python(str(old))
    with pytest.raises(do.Problem, match="no Python that runs here"):
        do.chosen_python(str(tmp_path / "missing"))


def test_pythons_are_looked_for_on_path_and_where_pyenv_and_uv_keep_them(do: Any, tmp_path: Path) -> None:
    on_path = pretended_python(tmp_path / "bin" / "python3.12", "3.12.1")
    pyenv = pretended_python(tmp_path / ".pyenv" / "versions" / "3.13.0" / "bin" / "python3.13", "3.13.0")
    uv = pretended_python(
        tmp_path / ".local" / "share" / "uv" / "python" / "cpython-3.14.0-linux" / "bin" / "python3.14", "3.14.0"
    )

    found = list(do.candidates({"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}))

    assert found[:4] == [sys.executable, str(on_path), str(pyenv), str(uv)]


def test_script_can_be_read_by_an_old_python_which_then_looks_for_a_newer_one() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 7))

    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert "annotations" not in imported  # unknown to Python 3.6


# When to install


def test_first_run_makes_the_environment_and_installs(do: Any, steps: Steps) -> None:
    assert not do.is_ready("demo", None)

    do.set_up("demo", None)

    assert steps.titles == ["venv", "install dbguard and what `demo` needs"]
    assert do.is_ready("demo", None)


def test_tests_cover_the_demo_but_not_the_reverse(do: Any, steps: Steps) -> None:
    do.set_up("demo", None)
    assert not do.is_ready("test", None)

    do.set_up("test", None)
    assert do.is_ready("test", None)
    assert do.is_ready("demo", None)


def test_change_of_pyproject_installs_again(do: Any, steps: Steps) -> None:
    do.set_up("test", None)

    (do.ROOT / "pyproject.toml").write_text("[project]\ndependencies = ['more']\n")

    assert not do.is_ready("test", None)


def test_other_python_in_the_environment_installs_again(do: Any, steps: Steps) -> None:
    do.set_up("test", None)

    pretended_python(do.PYTHON, "3.13.0")

    assert not do.is_ready("test", None)
    assert not do.is_usable(None)


def test_patch_release_of_the_same_python_installs_nothing(do: Any, steps: Steps) -> None:
    do.set_up("test", None)

    pretended_python(do.PYTHON, "3.12.9")

    assert do.is_ready("test", None)


def test_python_that_the_user_names_replaces_another_one(do: Any, steps: Steps) -> None:
    do.set_up("test", None)

    assert do.is_ready("test", do.Python("/python", (3, 12, 5)))
    assert not do.is_ready("test", do.Python("/python", (3, 13, 0)))
    assert not do.is_usable(do.Python("/python", (3, 13, 0)))


def test_moved_checkout_gets_a_new_environment(do: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    do.set_up("test", None)

    for name in ("ROOT", "VENV", "PYTHON", "STAMP"):
        monkeypatch.setattr(do, name, Path(str(getattr(do, name)).replace("/checkout", "/elsewhere")))
    (do.ROOT.with_name("checkout")).rename(do.ROOT)

    assert not do.is_ready("test", None)
    assert not do.is_usable(None)


@pytest.mark.parametrize("left", ["", "{}", "{", "[]"])
def test_set_up_that_was_interrupted_is_done_again(do: Any, steps: Steps, left: str) -> None:
    do.set_up("test", None)

    do.STAMP.write_text(left)

    assert not do.is_ready("test", None)
    assert do.is_usable(None)


def test_set_up_that_failed_is_not_taken_for_done(do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(do, broken=("install dbguard and what `demo` needs",))
    monkeypatch.setattr(do, "quietly", steps)

    with pytest.raises(do.Problem, match=r"went wrong\n.*remove .*\.venv"):
        do.set_up("demo", None)

    assert not do.is_ready("demo", None)


def test_environment_of_somebody_elses_making_is_used_if_it_fits(do: Any, steps: Steps) -> None:
    pretended_python(do.PYTHON, "3.11.7")

    do.set_up("demo", None)

    assert steps.titles == ["install dbguard and what `demo` needs"]
    assert do.PYTHON.exists()


def test_environment_of_somebody_elses_making_is_never_removed(do: Any, steps: Steps) -> None:
    pretended_python(do.PYTHON, "3.9.2")

    with pytest.raises(do.Problem, match="DBGUARD_VENV"):
        do.set_up("demo", None)

    assert do.PYTHON.exists()
    assert steps.titles == []


def test_environment_of_our_own_that_broke_is_made_anew(do: Any, steps: Steps) -> None:
    do.set_up("demo", None)
    do.PYTHON.unlink()
    (do.VENV / "left over").touch()

    do.set_up("demo", None)

    assert do.is_ready("demo", None)
    assert not (do.VENV / "left over").exists()


def test_another_way_is_tried_where_venv_is_missing(do: Any, steps: Steps) -> None:
    steps.broken = ("venv",)

    do.make_venv([do.Python(sys.executable, (3, 12, 1))])

    assert steps.titles[0] == "venv"
    assert len(steps.titles) > 1
    assert do.PYTHON.exists()


def test_without_any_way_the_message_says_what_to_install(do: Any, steps: Steps) -> None:
    steps.broken = ("venv", "virtualenv", "uv", "pip")

    with pytest.raises(do.Problem) as caught:
        do.make_venv([do.Python(sys.executable, (3, 12, 1))])

    assert "venv: venv went wrong" in str(caught.value)
    assert "apt-get install python3-venv" in str(caught.value)


# Two runs at once


def test_run_waits_until_the_environment_is_no_longer_being_changed(do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    with do.locked() as other, do.locked() as ours:
        do.acquire(other, fcntl.LOCK_EX)

        def the_other_ends(_seconds: float) -> None:
            order.append("waited")
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(do.time, "sleep", the_other_ends)

        do.acquire(ours, fcntl.LOCK_SH)
        order.append("went on")

    assert order == ["waited", "went on"]


def test_runs_that_only_use_the_environment_do_not_wait_for_each_other(do: Any) -> None:
    with do.locked() as other, do.locked() as ours:
        do.acquire(other, fcntl.LOCK_SH)
        do.acquire(ours, fcntl.LOCK_SH)

        with pytest.raises(BlockingIOError):
            fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)


# What it says, and how it ends


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_counts_on_one_line_of_a_terminal(do: Any) -> None:
    stream = Terminal()
    waiting = do.Waiting("install", stream)

    waiting.tick(1.2)
    waiting.tick(2.2)
    waiting.end("done", 2.9)

    assert stream.getvalue() == "\r  install: 1 s \r  install: 2 s \r  install: done, 2.9 s\n"


def test_progress_in_a_log_is_a_line_now_and_then(do: Any) -> None:
    stream = io.StringIO()
    waiting = do.Waiting("install", stream)

    for elapsed in range(1, 25):
        waiting.tick(elapsed + 0.5)
    waiting.end("done", 24.9)

    assert stream.getvalue().splitlines() == [
        "  install: 10 s so far",
        "  install: 20 s so far",
        "  install: done, 24.9 s",
    ]


def test_failing_command_shows_its_own_words(do: Any) -> None:
    with pytest.raises(do.Problem, match="it broke"):
        do.quietly("step", [sys.executable, "-c", "import sys; sys.exit('it broke')"], os.environ)
    with pytest.raises(do.Problem, match="No such file"):
        do.quietly("step", ["/nonexistent"], os.environ)


def test_interruption_ends_the_command_and_waits_until_it_has_cleaned_up(do: Any, tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "signal.sigwait({signal.SIGINT})\n"
        f"pathlib.Path({str(tmp_path / 'cleaned')!r}).touch()\n"
    )

    with pytest.raises(KeyboardInterrupt):
        do.quietly("step", [sys.executable, "-c", script], os.environ)

    assert (tmp_path / "cleaned").exists()


def in_a_process(do_what: str) -> subprocess.CompletedProcess[str]:
    """Run some lines in a process of its own, with the script at hand as `do`."""
    lines = f"import os, signal, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport do\n{do_what}"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120, check=False)


def test_exit_code_is_that_of_the_command() -> None:
    assert in_a_process("sys.exit(do.in_front([sys.executable, '-c', 'raise SystemExit(5)']))").returncode == 5


def test_request_to_end_interrupts_pytest_and_waits_for_it() -> None:
    script = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.sigwait({signal.SIGINT})\n"
        "print('stopped its servers')\n"
    )

    ended = in_a_process(f"sys.exit(do.in_front([sys.executable, '-c', {script!r}]))")

    assert (ended.returncode, ended.stdout) == (128 + 15, "stopped its servers\n")


def test_every_check_runs_and_any_failure_fails_the_whole(
    do: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(do, "in_front", lambda command: ran.append(command) or 0)
    steps.broken = ("mypy",)

    assert do.test(["-k", "breaker"]) == 1

    assert [title.split(" (")[0] for title in steps.titles] == [
        "Toxiproxy server",
        "ruff check",
        "ruff format --check",
        "mypy",
    ]
    assert ran[0][1:] == ["-m", "pytest", *do.PARALLEL, "-k", "breaker"]
    assert capsys.readouterr().out.splitlines()[-1] == "failed: mypy"


def test_when_all_passes_the_last_words_are_those_of_pytest(
    do: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(do, "in_front", lambda _command: do.say("1 passed") or 0)

    assert do.test([]) == 0

    assert capsys.readouterr().out.splitlines()[-1] == "1 passed"


def test_failure_of_pytest_keeps_its_exit_code(do: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(do, "in_front", lambda _command: 5)

    assert do.test([]) == 5


def test_what_follows_the_command_is_passed_on(do: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[list[str]] = []
    monkeypatch.setattr(do, "test", lambda arguments: passed.append(arguments) or 0)

    assert do.main(["test", "-k", "a or b", "--python", "x"]) == 0

    assert passed == [["-k", "a or b", "--python", "x"]]


def test_problem_is_shown_without_a_traceback(do: Any, steps: Steps, capsys: pytest.CaptureFixture[str]) -> None:
    steps.broken = ("venv", "virtualenv", "uv", "pip")

    assert do.main(["demo"]) == 2

    assert "no virtual environment could be made" in capsys.readouterr().out
