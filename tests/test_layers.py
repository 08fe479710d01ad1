"""The house: imports go downwards only, and each third-party package is imported in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dbguard"

# From the ground up. A module may import its own floor and those below.
FLOORS = [
    ["errors", "event", "gate_events", "events", "forked"],
    ["core"],
    ["config", "drivers", "sources"],
    ["runtime"],
    [
        "deadlines",
        "dialect",
        "texts",
        "session",
        "transaction",
        "blocks",
        "calling",
        "asyncpg_session",
        "prepared",
        "connection",
        "jobs",
        "calls",
        "pausing",
        "guarding",
        "status",
        "refresh",
        "wrapping",
        "assembly",
        "login",
        "wiring",
        "connecting",
        "connector",
        "dropped",
        "lifetime",
        "guard",
        "pg",
    ],
    ["__init__"],
    ["integrations", "cli", "testing", "__main__"],
]
APART = [("config", "drivers"), ("drivers", "config"), ("core", "drivers")]
ONE_PLACE = {
    "asyncpg": ["drivers/asyncpg/", "testing/", "cli/"],
    "psycopg": ["drivers/psycopg"],
    "sqlalchemy": ["integrations/sqlalchemy/"],
    "yaml": ["config/"],
    "pydantic": ["config/"],
    "tenacity": ["runtime/backoff.py"],
    "rich": ["cli/"],
    "toxiproxy": ["testing/"],
    "requests": ["testing/"],
}
IMPURE = {"time", "random", "asyncio", "threading", "logging", "socket", "os", "datetime", "subprocess"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imported(path: Path, *, typing_too: bool = False) -> set[str]:
    """Names of the modules that a file imports; under TYPE_CHECKING only if asked for."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            skipped.update(inner for child in node.body for inner in ast.walk(child))
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def floor_of(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    mine = room(path)
    for name in imported(path, typing_too=True):
        parts = name.split(".")
        if parts[0] != "dbguard" or len(parts) == 1:
            continue
        theirs = parts[1] if (ROOT / parts[1]).is_dir() or (ROOT / f"{parts[1]}.py").exists() else "__init__"
        assert floor_of(theirs) <= floor_of(mine), f"{path.name} ({mine}) imports {name}"
        assert (mine, theirs) not in APART, f"{mine} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path, typing_too=True)} & IMPURE


@pytest.mark.parametrize("package", ONE_PLACE)
def test_a_third_party_package_is_imported_in_one_place(package: str) -> None:
    for path in modules():
        if package in {name.split(".")[0] for name in imported(path)}:
            where = str(path.relative_to(ROOT))
            assert any(where.startswith(place) for place in ONE_PLACE[package]), f"{where} imports {package}"


def test_no_module_holds_two_concepts() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}

    assert {name: lines for name, lines in long.items() if lines > 450} == {}


def test_there_are_no_rooms_named_for_nothing() -> None:
    names = {path.stem for path in modules()}

    assert not names & {"utils", "helpers", "common", "manager", "misc"}
