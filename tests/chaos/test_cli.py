"""The command: what it runs, what it prints, and its exit code."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from chaos import cli, cli_run
from chaos.checkers import State, Verdict
from chaos.history import Fault, History
from chaos.play import Result
from chaos.progress import progress_on
from chaos.report import Page
from chaos.scenario import every, find
from dbguard.testing.binaries import BinariesNotFound, find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

NAMES = [path.stem for path in every()]
OWN = """
about: One of my own.
workload: {append: {readers: 1, writers: 1, owners: 0}}
duration: 2s
timeline: [{at: 500ms, for: 1s, down: {link: app->b}}]
checkers: {lost: {}, felt: {}}
"""


class Clusters:
    """Lends nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    @contextlib.contextmanager
    def lend(self, scenario: Any) -> Iterator[None]:
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let runs end at once, each with the next of `ends`, a state or an exception; give what was asked of them."""
    asked: list[dict[str, Any]] = []

    async def play(scenario: Any, cluster: Any, **options: Any) -> Result:
        asked.append({"name": scenario.name, **options})
        end = ends[len(asked) - 1] if len(asked) <= len(ends) else State.OK
        if isinstance(end, BaseException):
            raise end
        head = {"scenario": scenario.name, "client": options["client"], "seed": options["seed"]}
        faults = (Fault(what="a hole", start=1.0, end=2.0),)
        return Result(History(head=head, final={}, faults=faults), {"lost": Verdict(end, "so it is")})

    ends.clear()
    monkeypatch.setattr(cli_run, "play", play)
    monkeypatch.setattr(cli_run, "Clusters", Clusters)
    monkeypatch.setattr(cli_run, "server_binary", lambda say: "a server")
    return asked


ends: list[State | BaseException] = []


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([State.OK, State.OK], 0),
        ([State.OK, State.BROKEN], 1),
        ([State.UNKNOWN, State.OK], 2),
        ([State.BROKEN, State.UNKNOWN], 1),
    ],
)
def test_exit_code_is_that_of_the_worst(
    found: list[State], code: int, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ends[:] = found

    assert cli.main(["run", "replica-hole", "ack-lost", "--client", "plain", "--seed", "9"]) == code

    assert [(a["name"], a["client"], a["seed"]) for a in asked] == [
        ("replica-hole", "plain", 9),
        ("ack-lost", "plain", 9),
    ]
    said = capsys.readouterr().out
    for name, state in zip(["replica-hole", "ack-lost"], found, strict=True):
        assert f"\n{name}: {state.name.lower()} (client plain, seed 9; " in said
        assert f"\n  lost  {state.name.lower():7}  so it is\n" in said


def test_all_scenarios_are_run_with_every_client_that_is_asked_for_and_histories_kept(
    asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"

    assert cli.main(["run", "all", "--client", "guard,plain", "--history", str(kept)]) == 0

    pairs = [(n, c) for n in NAMES for c in ("guard", "plain") if (n, c) != ("claim-answer-lost", "plain")]
    assert sorted((a["name"], a["client"]) for a in asked) == pairs
    assert [a["path"] for a in asked] == [kept / f"{a['name']}-{a['client']}-1.jsonl" for a in asked]
    assert kept.is_dir()


def test_all_clients_are_those_with_a_guard(asked: list[dict[str, Any]]) -> None:
    assert cli.main(["run", "ack-lost", "--client", "all"]) == 0

    clients = [a["client"] for a in asked]
    assert "guard" in clients
    assert not {"plain", "naive-retry"}.intersection(clients)


def test_scenario_about_claims_is_left_out_for_clients_that_make_none(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "claim-answer-lost", "--client", "guard,sqlalchemy"]) == 0

    assert [a["client"] for a in asked] == ["guard"]
    assert capsys.readouterr().out.startswith("left out: claim-answer-lost with sqlalchemy: it breaks claims, and ")
    assert cli.main(["run", "claim-answer-lost", "--client", "plain"]) == 2
    assert "nothing to run: claim-answer-lost with plain: it breaks claims" in capsys.readouterr().err


def test_rounds_take_the_next_seeds(asked: list[dict[str, Any]]) -> None:
    assert cli.main(["run", "ack-lost", "--rounds", "3", "--seed", "5"]) == 0

    assert [a["seed"] for a in asked] == [5, 6, 7]


def test_file_of_ones_own_works_where_a_name_does(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN)

    assert cli.main(["run", str(file)]) == 0

    assert [a["name"] for a in asked] == ["mine"]


@pytest.mark.parametrize("words", [["run", "no-such-thing"], ["run", "no/such/thing.yaml"]])
def test_scenario_that_is_not_there_proves_nothing(
    words: list[str], asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2

    assert asked == []
    said = capsys.readouterr().err
    assert "no scenario no-such-thing; there are ack-lost, " in said or "no/such/thing.yaml: cannot be read" in said


def test_run_that_fails_proves_nothing_shows_why_and_the_next_is_made(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ends[:] = [RuntimeError("no cluster today"), State.OK]

    assert cli.main(["run", "ack-lost", "replica-lag"]) == 2

    said = capsys.readouterr().out
    assert "Traceback" in said
    assert "ack-lost (guard) could not be run: RuntimeError: no cluster today" in said
    assert [a["name"] for a in asked] == ["ack-lost", "replica-lag"]
    assert "1 of 2 ok" in said


def test_machine_without_postgres_is_told_once_before_the_runs(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find() -> Any:
        raise BinariesNotFound(("PATH: no pg_ctl",))

    monkeypatch.setattr(cli_run, "find_binaries", find)

    assert cli.main(["run", "ack-lost", "replica-lag"]) == 2

    out, err = capsys.readouterr()
    assert (asked, out) == ([], "")
    assert "install PostgreSQL, or pip install" in err


def test_interruption_leaves_the_table_of_what_was_run(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ends[:] = [State.OK, KeyboardInterrupt()]

    assert cli.main(["run", "ack-lost", "replica-hole", "replica-lag"]) == 130

    said = capsys.readouterr().out
    assert len(asked) == 2
    assert "interrupted, and healed; 1 runs were over" in said
    (line,) = [line for line in said.splitlines() if line.startswith("  ack-lost ")]
    assert line.split()[1:4] == ["guard", "1", "0"]


def test_interruption_of_the_first_run_is_told_too(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ends[:] = [KeyboardInterrupt()]
    file, page = tmp_path / "all.json", tmp_path / "page.html"

    assert cli.main(["run", "ack-lost", "--json", str(file), "--report", str(page)]) == 130

    assert len(asked) == 1
    assert capsys.readouterr().out.endswith(f"interrupted, and healed; 0 runs were over\nwritten: {file}\n")
    assert json.loads(file.read_text())["interrupted"] is True
    assert not page.exists()


def test_interrupted_run_that_cannot_heal_says_so_and_is_the_last(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    async def play(scenario: Any, cluster: Any, **options: Any) -> Result:
        made.append(scenario.name)
        signal.raise_signal(signal.SIGINT)
        raise OSError("no proxy any more")

    monkeypatch.setattr(cli_run, "play", play)

    assert cli.main(["run", "ack-lost", "replica-hole"]) == 130

    assert made == ["ack-lost"]
    assert "ack-lost (guard) could not be run: OSError: no proxy any more" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["run", "ack-lost"], ["soak"]])
@pytest.mark.parametrize(
    ("option", "path", "said"),
    [
        ("--report", "no/such/page.html", "there is no folder"),
        ("--json", "no/such/all.json", "there is no folder"),
        ("--json", "folder", "is a folder; name a file"),
        ("--history", "file", "is no folder"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_runs(
    command: list[str],
    option: str,
    path: str,
    said: str,
    asked: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")

    with pytest.raises(SystemExit) as e:
        cli.main([*command, option, str(tmp_path / path)])

    assert (e.value.code, asked) == (2, [])
    assert said in capsys.readouterr().err


def test_page_that_nothing_can_draw_is_refused_before_the_runs(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("chaos.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(SystemExit) as e:
        cli.main(["run", "ack-lost", "--report", "page.html"])

    assert (e.value.code, asked) == (2, [])
    assert "drawn by matplotlib, which is missing: pip install" in capsys.readouterr().err


def test_document_has_everything_and_standard_output_nothing_else(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ends[:] = [State.OK, State.BROKEN, OSError("gone")]

    assert cli.main(["run", "ack-lost", "replica-hole", "replica-lag", "--seed", "4", "--json"]) == 1

    out, err = capsys.readouterr()
    said = json.loads(out)
    assert "ack-lost" in err
    assert said["state"] == "broken"
    assert said["interrupted"] is False
    assert said["postgres"] == find_binaries().version
    assert said["total"] | {"runs": 3, "faults": 2} == said["total"]
    first, second, third = said["runs"]
    assert first["scenario"] == "ack-lost"
    assert (first["client"], first["seed"], first["lost"], first["state"]) == ("guard", 4, 0, "ok")
    assert first["injected"] == [{"what": "a hole", "start": 1.0, "end": 2.0}]
    assert second["verdicts"] == {"lost": {"state": "broken", "why": "so it is"}}
    assert third["error"] == "OSError: gone"


def test_document_is_written_to_a_file(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cli.main(["run", "ack-lost", "--json", str(tmp_path / "all.json")]) == 0

    assert json.loads((tmp_path / "all.json").read_text())["total"]["runs"] == 1


def test_table_can_be_markdown(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    ends[:] = [State.OK, State.BROKEN]

    assert cli.main(["run", "ack-lost", "replica-hole", "--markdown"]) == 1

    head, rule, first, second, total = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert head.startswith("| scenario | client | faults |")
    assert {line.count("|") for line in (head, rule, first, second, total)} == {13}
    assert first.startswith("| ack-lost | guard | 1 | 0 | 0 | 0 |")
    assert first.endswith("| ok |")
    assert second.endswith("| broken: lost |")
    assert "**2**" in total


def test_rounds_of_a_scenario_are_one_line_of_markdown(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ends[:] = [State.OK, State.OK, State.OK, State.BROKEN]

    assert cli.main(["run", "ack-lost", "replica-hole", "--rounds", "2", "--markdown"]) == 1

    first, second, _ = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"][2:]
    assert first.startswith("| ack-lost | guard | 2 |")
    assert first.endswith("| 2 of 2 ok |")
    assert second.startswith("| replica-hole | guard | 2 |")
    assert second.endswith("| 1 of 2 ok |")


def test_client_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["run", "replica-hole", "--client", "nobody"])

    assert e.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("guard", "plain", "naive-retry"))


OWN_CLIENT = """
from chaos.clients.pools import Plain


class Shop(Plain):
    "Our shop's way to its database."


nothing = 1
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of the user's."""
    (tmp_path / "our_shop.py").write_text(OWN_CLIENT)
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch.dict(cli.CLIENTS):
        yield "our_shop"


def test_client_of_ones_own_is_put_to_the_test(shop: str, asked: list[dict[str, Any]]) -> None:
    assert cli.main(["run", "ack-lost", "--client", f"guard,{shop}:Shop"]) == 0

    assert [a["client"] for a in asked] == ["guard", "Shop"]
    assert cli.CLIENTS["Shop"].__module__ == shop


@pytest.mark.parametrize("name", [":Shop", "no_such_module:Shop", "our_shop:Shop2", "our_shop:nothing", "Shop"])
def test_client_of_ones_own_that_is_none_is_refused(
    name: str, shop: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "ack-lost", "--client", name])

    assert asked == []
    assert name in capsys.readouterr().err


def test_report_shows_the_runs(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    assert cli.main(["run", "ack-lost", "replica-lag", "--report", str(page)]) == 0

    said = page.read_text()
    assert "<title>Chaos report</title>" in said
    assert "ack-lost" in said
    assert "replica-lag" in said


def test_report_tells_of_a_run_that_could_not_be_made(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ends[:] = [RuntimeError("no cluster today"), State.OK]

    assert cli.main(["run", "ack-lost", "replica-lag", "--report", str(page)]) == 2

    said = page.read_text()
    assert "RuntimeError: no cluster today" in said
    assert said.count("<section") == 1


def test_run_that_cannot_be_drawn_keeps_its_verdict(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(page: Page, result: Result) -> None:
        raise RuntimeError("no ink")

    page = tmp_path / "page.html"
    monkeypatch.setattr(Page, "add", add)
    ends[:] = [State.BROKEN]

    assert cli.main(["run", "ack-lost", "--report", str(page)]) == 1

    assert "it could not be drawn: RuntimeError: no ink" in page.read_text()
    said = capsys.readouterr().out
    assert "Traceback" in said
    assert said.endswith(f"broken: lost\nwritten: {page}\n")


# --- list and validate


def test_list_names_every_scenario_with_its_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0

    said = capsys.readouterr().out
    lines = {words[0]: words for line in said.splitlines() if (words := line.split())}
    assert set(NAMES) <= set(lines)
    assert lines["replica-lag"][1:6] == ["16", "s", "5", "hole", "list-append"]

    assert cli.main(["list", "--json"]) == 0

    listed = json.loads(capsys.readouterr().out)["scenarios"]
    assert [one["name"] for one in listed] == NAMES
    assert {one["name"]: one["faults"] for one in listed} == {name: len(find(name).schedule(1)) for name in NAMES}


def test_validation_tells_what_is_wrong_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, wrong = tmp_path / "good.yaml", tmp_path / "wrong.yaml"
    good.write_text(OWN)
    wrong.write_text(OWN.replace("1s", "9s"))

    assert cli.main(["validate"]) == 0
    assert capsys.readouterr().out.count(": ok, ") == len(NAMES)
    assert cli.main(["validate", str(good), str(wrong)]) == 2

    out, err = capsys.readouterr()
    assert out == f"{good}: ok, 1 faults in 2 s\n"
    assert f"{wrong}:5:" in err
    assert "ends after the run" in err


# --- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_shows_bars_and_keeps_a_line_for_each_run_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    with progress_on(stream) as progress:
        progress.begin("one (guard)", "what it shows", number=1, count=2, seconds=5.0, left=10.0)
        progress.say("   0.3 s  broken: a hole")
        progress.end(State.OK, "one: ok", "all verdicts of one")
        progress.begin("two (guard)", "what it shows", number=2, count=2, seconds=5.0, left=5.0)
        progress.end(State.BROKEN, "two: broken", "all verdicts of two")

    said = stream.getvalue()
    assert "one: ok" in said
    assert "all verdicts of one" not in said
    assert "all verdicts of two" in said
    assert "run 2 of 2" in said
    assert "━" in said


def test_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()

    with progress_on(stream) as progress:
        progress.begin("one (guard)", "what it shows", number=1, count=2, seconds=5.0, left=10.0)
        progress.say("   0.3 s  broken: a hole")
        progress.end(State.OK, "one: ok", "all verdicts of one")

    assert stream.getvalue() == (
        "[1/2, 10 s to go] one (guard): what it shows\n   0.3 s  broken: a hole\n\nall verdicts of one\n\n"
    )
