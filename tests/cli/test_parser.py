from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import dbguard as package
from dbguard.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("chek",), id="unknown command"),
        pytest.param(("check",), id="no configuration"),
        pytest.param(("route",), id="no statement"),
        pytest.param(("check", "x.yaml", "--processes", "0"), id="no process"),
        pytest.param(("check", "x.yaml", "--processes", "many"), id="no number"),
        pytest.param(("demo", "--seconds", "1"), id="too short"),
        pytest.param(("demo", "--seconds", "1e9"), id="too long"),
        pytest.param(("demo", "--seconds", "nan"), id="not a number"),
        pytest.param(("demo", "extra"), id="a word too many"),
        pytest.param(("demo", "--outcome", "perhaps"), id="unknown way to settle"),
        pytest.param(("demo", "--facade", "pg8000"), id="unknown facade"),
        pytest.param(("outcome",), id="no verb"),
        pytest.param(("outcome", "install"), id="install what"),
        pytest.param(("outcome", "install", "x.yaml", "--print", "--apply"), id="print and apply"),
        pytest.param(("outcome", "prune", "x.yaml", "--retention", "1s"), id="retention too short"),
        pytest.param(("outcome", "prune", "x.yaml", "--batch", "0"), id="empty batch"),
    ],
)
def test_wrong_words_are_one_error_with_the_way_out(words: tuple[str, ...], dbguard: Callable[..., Ran]) -> None:
    ran = dbguard(*words)

    assert ran.code == 2
    assert ran.err.startswith("dbguard: error: ")
    assert "--help` shows what there is" in ran.err
    assert not ran.out


@pytest.mark.parametrize(
    ("words", "named", "way_out"),
    [
        (("check", "--procesess", "3", "postgresql://app:hidden@db1/shop"), "--procesess", "dbguard check --help"),
        (("check", "x.yaml", "postgresql://app:hidden@db1/shop"), "too many", "dbguard check --help"),
        (("check", "x.yaml", "--dsn=postgresql://app:hidden@db1/shop"), "--dsn", "dbguard check --help"),
        (("outcome", "install", "x.yaml", "password=hidden"), "too many", "dbguard outcome install --help"),
        (("postgresql://app:hidden@db1/shop",), "COMMAND", "dbguard --help"),
    ],
)
def test_wrong_words_are_named_in_their_command_and_no_password_is_shown(
    words: tuple[str, ...], named: str, way_out: str, dbguard: Callable[..., Ran]
) -> None:
    ran = dbguard(*words)

    assert ran.code == 2
    assert named in ran.err
    assert f"`{way_out}` shows what there is" in ran.err
    assert "hidden" not in ran.err


def test_without_a_command_the_help_is_shown(dbguard: Callable[..., Ran]) -> None:
    ran = dbguard()

    assert ran.code == 2
    assert "dbguard check guard.yaml" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("demo",),
        ("check",),
        ("route",),
        ("outcome",),
        ("outcome", "install"),
        ("outcome", "status"),
        ("outcome", "prune"),
    ],
    ids=" ".join,
)
def test_help_teaches_by_examples_and_tells_the_exit_codes(
    words: tuple[str, ...], dbguard: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    ran = dbguard(*words, "--help")

    assert ran.code == 0
    assert "examples:\n" in ran.out
    assert "exit codes: 0 " in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_version_is_the_packages(dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("--version")

    assert (ran.code, ran.out) == (0, f"dbguard {package.__version__}\n")


def test_module_is_the_same_as_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "dbguard", "route", "SELECT 1"], capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("SELECT 1\n    read:")


def test_check_and_route_need_neither_rich_nor_the_demo() -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from dbguard.cli import main\n"
        "assert main(['route', 'SELECT 1']) == 0\n"
        "assert main(['check', 'postgresql://db/x?port=none']) == 2\n"
        "assert not [name for name in sys.modules if name.startswith(('dbguard.cli.demo', 'dbguard.testing'))]\n"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr


def test_reader_that_has_seen_enough_gets_no_complaint() -> None:
    statements = "\n".join(f"SELECT {n}" for n in range(20_000))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "dbguard", "route", "-"],
            input=statements.encode(),
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)

    assert (ran.returncode, ran.stderr) == (128 + signal.SIGPIPE, b"")


def test_interruption_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("dbguard.cli.route.run", interrupted)

    assert main(["route", "SELECT 1"]) == 130
    assert capsys.readouterr().err == "dbguard: interrupted; nothing was left behind\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(None, "does not exist", id="missing file"),
        pytest.param("nodes: [", "", id="broken YAML"),
        pytest.param("", "is empty", id="empty file"),
        pytest.param("nodes: []", "nodes: is empty", id="no nodes"),
        pytest.param("nodes: [{host: a, port: 5432:30}]", ":1:25: nodes[0].port: should be", id="wrong type"),
        pytest.param("nodes: [{host: a, prot: 1}]", "did you mean port?", id="unknown key"),
        pytest.param(
            "nodes: [{host: a}]\nbreaker: {consecutiv: 3}", "did you mean consecutive?", id="unknown key below"
        ),
        pytest.param("nodes: [{host: '${NOT_SET_ANYWHERE}'}]", "NOT_SET_ANYWHERE", id="unset variable"),
        pytest.param(
            "nodes: [{host: a, name: x}, {host: a, name: y}]", "nodes[1]: has the same host and port", id="one address"
        ),
    ],
)
@pytest.mark.parametrize("command", ["check", "route"])
def test_wrong_configuration_names_the_place(
    command: str, text: str | None, said: str, dbguard: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / "guard.yaml"
    if text is not None:
        file.write_text(text)

    ran = dbguard("check", str(file)) if command == "check" else dbguard("route", "--config", str(file), "SELECT 1")

    assert ran.code == 2
    assert ran.err.startswith(f"dbguard: error: {file}")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not ran.out


def test_all_problems_of_a_configuration_are_told_at_once(dbguard: Callable[..., Ran], tmp_path: Path) -> None:
    file = tmp_path / "guard.yaml"
    file.write_text("nodes: [{host: a, port: x}]\npool: {max_size: -1}\nmod: observe\n")

    ran = dbguard("check", str(file))

    assert ran.code == 2
    assert "3 problems" in ran.err
    for place in ("nodes[0].port", "pool.max_size", "did you mean mode?"):
        assert place in ran.err


@pytest.mark.parametrize("name", ["mysql://db/x", "postgresql://"])
def test_text_with_a_scheme_is_a_dsn(name: str, dbguard: Callable[..., Ran]) -> None:
    ran = dbguard("check", name)

    assert ran.code == 2
    assert ran.err.startswith("dbguard: error: DSN")
