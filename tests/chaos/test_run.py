"""The command: what it prints, and its exit code."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from chaos import run
from chaos.checkers import State, Verdict
from chaos.history import History
from chaos.play import Result

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let runs end at once, each with the next state of `states`; give what was asked of them."""
    asked: list[dict[str, Any]] = []

    async def play(scenario: Any, cluster: Any, **options: Any) -> Result:
        asked.append({"name": scenario.name, **options})
        head = {"scenario": scenario.name, "client": options["client"], "seed": options["seed"]}
        return Result(History(head=head), {"lost": Verdict(states[len(asked) - 1], "so it is")})

    monkeypatch.setattr(run, "play", play)
    monkeypatch.setattr(run, "cluster_for", lambda scenario, **options: contextlib.nullcontext())
    monkeypatch.setattr(run, "server_binary", lambda say: "a server")
    return asked


states: list[State] = []


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
    states[:] = found

    assert run.main(["replica-hole", "ack-lost", "--client", "plain", "--seed", "9"]) == code

    assert [(a["name"], a["client"], a["seed"]) for a in asked] == [
        ("replica-hole", "plain", 9),
        ("ack-lost", "plain", 9),
    ]
    said = capsys.readouterr().out
    for name, state in zip(["replica-hole", "ack-lost"], found, strict=True):
        assert f"\n{name}: {state.name.lower()} (client plain, seed 9; " in said
        assert f"\n  lost  {state.name.lower():7}  so it is\n" in said


def test_all_scenarios_are_run_by_default_and_histories_kept_if_asked_for(
    asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    states[:] = [State.OK] * 99

    assert run.main(["--history", str(tmp_path / "kept")]) == 0

    assert len(asked) >= 3
    assert [a["path"] for a in asked] == [tmp_path / "kept" / f"{a['name']}-guard-1.jsonl" for a in asked]
    assert (tmp_path / "kept").is_dir()


def test_scenario_that_is_not_there_proves_nothing(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["no-such-thing"]) == 2

    assert asked == []
    assert "no scenario no-such-thing; there are ack-lost, " in capsys.readouterr().err


def test_harness_that_fails_proves_nothing_and_shows_why(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(scenario: Any, **options: Any) -> Any:
        raise RuntimeError("no cluster today")

    monkeypatch.setattr(run, "cluster_for", fail)

    assert run.main(["ack-lost"]) == 2

    assert "RuntimeError: no cluster today" in capsys.readouterr().err


def test_client_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        run.main(["replica-hole", "--client", "nobody"])

    assert e.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("guard", "plain", "naive-retry"))
