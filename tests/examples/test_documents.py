"""What README and the pages beside it say is so: commands, code, links, names."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import dbguard
import dbguard.integrations.sqlalchemy
from chaos.scenario import every
from dbguard import events
from dbguard.cli import main
from dbguard.cli.demo import report
from dbguard.config import describe, load
from dbguard.drivers import outcome_sql

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
README = (ROOT / "README.md").read_text()
IN_THE_DATABASE = set(re.findall(r"dbguard\.(\w+)", outcome_sql.schema()))
"""Names of the schema ``dbguard``, which are not names of the package."""


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def undented(text: str) -> str:
    """Without indentation: an excerpt may stand less deep than in its file."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def paragraphs(page: str) -> dict[str, str]:
    """Return what stands below each title of *page*."""
    parts = re.split(r"^#+ (.+)$", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def all_below(kind: type) -> list[type]:
    return [found for below in kind.__subclasses__() for found in (below, *all_below(below))]


# ---------------------------------------------------------------------- README


def scenarios() -> list[list[str]]:
    """Return the rows of README's table of scenarios."""
    table = README.partition("| scenario |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip("* ") for cell in row.strip("|").split("|")] for row in table]


def test_readme_is_below_130_lines_beside_the_table_of_scenarios() -> None:
    assert len(README.splitlines()) - len(scenarios()) < 130


def test_recorded_scenarios_are_all_there_are_and_nothing_was_lost() -> None:
    *rows, total = scenarios()

    assert sorted(row[0] for row in rows) == sorted(path.stem for path in every())
    assert {tuple(row[4:7]) for row in rows} == {("0", "0", "0")}
    assert total[4:7] == ["0", "0", "0"]


def test_quick_start_is_the_example_word_for_word() -> None:
    assert fences(README, "python")[0] == (ROOT / "examples" / "quickstart.py").read_text()


def test_every_block_of_code_is_an_examples_text() -> None:
    for language, suffix in (("python", "py"), ("yaml", "yaml")):
        files = [undented(path.read_text()) for path in (ROOT / "examples").glob(f"*.{suffix}")]
        blocks = fences(README, language)
        assert blocks or language != "python"
        for block in blocks:
            assert any(undented(block) in file for file in files), block


def test_recorded_table_has_the_rows_that_the_demo_prints() -> None:
    table = next(block for block in fences(README, "") if "guarded   control" in block)
    rows = [re.split(r"  +", line.strip()) for line in table.splitlines()[1:]]
    source = inspect.getsource(report)

    assert all(f'"{name}"' in source for name, _, _ in rows)
    assert {guarded for name, guarded, _ in rows if name.split(":")[0] in {"errors", "lost", "duplicated"}} == {"0"}


def commands() -> set[tuple[str, str]]:
    said = set()
    for page in PAGES:
        text = page.read_text()
        code = [*fences(text, r"\w*"), *re.findall(r"`([^`\n]+)`", text)]
        for line in "\n".join(code).splitlines():
            if match := re.match(r"(dbguard|make|python3 do\.py) ([a-z]\w*)(?![\w.(])", line):
                said.add((match[1], match[2]))
    return said


def test_every_command_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = commands()
    known = {
        "make": set(re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()),
        "python3 do.py": set(runpy.run_path(str(ROOT / "do.py"))["INSTALL"]),
    }

    assert {("dbguard", "check"), ("dbguard", "route"), ("make", "demo"), ("make", "test")} <= named
    for program, command in named:
        if program == "dbguard":
            with pytest.raises(SystemExit) as ended:
                main([command, "--help"])
            assert ended.value.code == 0, command
        else:
            assert command in known[program]
    assert "usage: dbguard check" in capsys.readouterr().out


# ---------------------------------------------------------------------- all pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_names_that_are_mentioned_exist(page: Path) -> None:
    known = describe(load({"nodes": [{"host": "any"}]}))
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        if (match := re.match(r"(\w+)\.(\w+)(?:\.(\w+))?\b", code)) and isinstance(known.get(match[1]), dict):
            at: Any = known
            for key in filter(None, match.groups()):
                assert key in at, code
                at = at[key]
        for owner, name in re.findall(r"\b(dbguard|guard|Guard)\.([A-Za-z_]+)", code):
            if code.endswith((".yaml", ".py", ".yml")) or ".yaml" in code or ".py" in code:
                continue
            if owner == "dbguard" and name in IN_THE_DATABASE:
                continue
            assert hasattr(dbguard if owner == "dbguard" else dbguard.Guard, name), code


# ---------------------------------------------------------------------- docs/


def test_each_event_is_explained_with_its_level_and_every_field() -> None:
    told = paragraphs("events.md")
    kinds = {kind.__name__: kind for kind in all_below(events.Event)}
    of_all = {field.name for field in dataclasses.fields(events.Event)}

    assert all(f"`{name}`" in told["Events"] + told["One failover, one episode"] for name in of_all)
    assert {title for title in told if title[0].isupper() and " " not in title} - {"Events"} == set(kinds)
    for name, kind in kinds.items():
        text = " ".join(told[name].split())
        assert text.startswith(logging.getLevelName(kind.level)), name
        for question in ("**What happened:**", "**What the guard did:**", "**What to do:**"):
            assert question in text, name
        for field in dataclasses.fields(kind):
            assert field.name in of_all or f"`{field.name}`" in text, f"{name}.{field.name}"


def test_the_runbook_has_every_event_and_leads_to_what_to_do() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(events\.md#(\w+)\) \|(.+)\|$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE
    )
    kinds = sorted({kind.__name__ for kind in all_below(events.Event)})

    assert sorted(name for name, _, _ in rows) == kinds
    for name, anchor, cells in rows:
        assert anchor == name.lower()
        assert len([cell for cell in cells.split("|") if cell.strip()]) == 3, name


@pytest.mark.parametrize(
    "symptom",
    [
        "Writes stopped",
        "Split brain",
        "Contested",
        "A write may be lost",
        "Outcome unknown",
        "All nodes down",
        "A replica out of rotation",
        "A breaker is open",
        "The pool is exhausted",
    ],
)
def test_the_runbook_says_what_to_type(symptom: str) -> None:
    assert re.search(r"`[^`]*(dbguard |guard\.|psql |pg_ctl )", paragraphs("runbook.md")[symptom])


def test_each_error_is_explained() -> None:
    told = paragraphs("errors.md")

    errors = {
        name
        for name in dbguard.__all__
        if inspect.isclass(found := getattr(dbguard, name)) and issubclass(found, Exception)
    }

    assert set(told) - {"Errors"} == errors


def test_page_of_settings_is_what_the_settings_say() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "generate_configuration.py"))

    assert (ROOT / "docs" / "configuration.md").read_text() == made["page"](), "run tools/generate_configuration.py"


def test_each_setting_is_on_the_page_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()

    def check(section: dict[str, Any]) -> None:
        for key, value in section.items():
            if isinstance(value, dict) and value:
                assert f"`{key}`" in text or f".{key}`" in text, key
                check(value)
            else:
                row = re.search(rf"^\| `{key}` \| (.+) \|$", text, re.MULTILINE)
                assert row or f"## `{key}`" in text or f"{key}`" in text, key

    check(describe(load({"nodes": [{"host": "any"}]})))
    rows = re.findall(r"^\| `\w+` \| (.+) \|$", text, re.MULTILINE)
    assert rows
    assert [row for row in rows if "efault" not in row] == []
