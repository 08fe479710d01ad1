"""The page of scenario files is what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from chaos.checkers import CHECKERS
from chaos.clients import CLIENTS
from chaos.faults import FAULTS
from chaos.scenario import every, parse
from chaos.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "chaos-files.md"


def test_page_is_what_the_docstrings_say() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "generate_chaos.py"))

    assert PAGE.read_text() == made["page"](), "run tools/generate_chaos.py"


def test_page_has_everything_there_is() -> None:
    said = PAGE.read_text()

    titles = set(re.findall(r"^### `(.+)`$", said, re.MULTILINE))
    assert titles == {*FAULTS, *WORKLOADS, *CHECKERS}
    assert all(f"| `{client}` |" in said for client in CLIENTS)


def test_scenarios_of_the_page_on_chaos_can_be_run() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "chaos.md").read_text(), re.DOTALL | re.MULTILINE)

    assert blocks
    for block in blocks:
        assert parse(block, "a-block").schedule(1)


def test_commands_of_the_page_on_chaos_exist() -> None:
    said = (ROOT / "docs" / "chaos.md").read_text()

    names = {path.stem for path in every()} | {"all"}
    named = set(re.findall(r"python -m chaos run ([a-z-]+)", said))
    assert named
    assert named <= names
