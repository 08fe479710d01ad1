"""The simulated cluster: no promise is broken, and the judge notices when one is."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from dbguard.testing.simulation import Fault, Run, draw, simulate
from dbguard.testing.simulation import run as run_module
from dbguard.testing.simulation.__main__ import main
from dbguard.testing.simulation.defects import DEFECTS
from dbguard.testing.simulation.many import run_many
from dbguard.testing.simulation.schedule import CHOSEN, KINDS, OUSTED
from dbguard.testing.simulation.shrink import shrink

SEEDS, OF_THE_ENGINE = 5_000, 300
"""How many are run here; the command runs as many as it is told to."""

RULES = ("repeat", "fence", "gate", "number", "budget", "deadline", "nothing", "renewal", "branch")
"""Defects that a thousand seeds must find; the rarer ones have a seed in `test_simulation_seeds`."""

JOBS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(4, os.cpu_count() or 1)


def first_broken(promise: str, most: int, **options: Any) -> int | None:
    """Return the first seed that breaks *promise*, of *most*; None if none does."""
    for seed in range(most):
        if any(violation.promise == promise for violation in simulate(seed, **options).violations):
            return seed
    return None


def broken_of(seeds: range, **options: Any) -> list[tuple[int, str]]:
    """Run *seeds* on all cores; return those that broke a promise, with what they broke."""
    return [batch.broken for batch in run_many(seeds, jobs=JOBS, **options) if batch.broken is not None]


@pytest.mark.parametrize("first", range(0, SEEDS, 1_000))
def test_no_promise_is_broken_whatever_the_seed(first: int) -> None:
    assert broken_of(range(first, first + 1_000)) == []


def test_many_seeds_are_counted_and_the_first_that_breaks_a_promise_is_told() -> None:
    found = first_broken("stale", 100, defect="gate")
    assert found is not None

    alone = list(run_many(range(found), defect="gate"))
    with_it = list(run_many(range(found + 3), defect="gate"))
    together = list(run_many(range(60), jobs=2))

    assert sum(batch.done for batch in alone) == found
    assert [batch.broken for batch in alone if batch.broken] == []
    assert [batch.broken[0] for batch in with_it if batch.broken] == [found]
    assert sum(batch.done for batch in together) == 60
    assert sum(batch.totals["calls"] for batch in together) == sum(simulate(seed).calls for seed in range(60))


def test_each_seed_holds_fifty_calls_a_promotion_and_three_other_faults() -> None:
    for seed in range(60):
        run = simulate(seed)

        assert run.calls >= 50
        assert run.promotions >= 1
        assert run.faults >= 3


def test_a_seed_in_which_too_little_happens_is_no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "draw", lambda seed: replace(draw(seed), faults=draw(seed).faults[:2]))

    assert [violation.promise for violation in simulate(3).violations] == ["thin"]


def test_every_kind_of_fault_and_of_promotion_is_drawn() -> None:
    drawn = [fault for seed in range(400) for fault in draw(seed).faults]

    assert {fault.kind for fault in drawn} == {"promote", *KINDS}
    assert {(fault.how, fault.who) for fault in drawn if fault.kind == "promote"} == set(product(OUSTED, CHOSEN))
    assert {draw(seed).tokens for seed in range(20)} == {draw(seed).sync for seed in range(20)} == {True, False}


@pytest.mark.parametrize("engine", [False, True], ids=["own", "engine"])
def test_a_seed_replays_exactly(*, engine: bool) -> None:
    for seed in range(12):
        once = simulate(seed, trace=True, engine=engine)
        ballast = [object() for _ in range(1_000 + seed)]  # the same run at other places in memory
        again = simulate(seed, trace=True, engine=engine)
        del ballast

        assert once.history == again.history
        assert once.digest == again.digest


def test_two_seeds_are_two_runs() -> None:
    assert len({simulate(seed, trace=True).digest for seed in range(5)}) == 5


@pytest.mark.parametrize("seed", range(40))
def test_fast_path_makes_the_same_history_as_the_plan(seed: int) -> None:
    fast, slow = (simulate(seed, trace=True, fast=fast) for fast in (True, False))

    assert sorted(fast.history) == sorted(slow.history)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_switched_off_is_missed_within_a_thousand_seeds(name: str) -> None:
    found = first_broken(DEFECTS[name].finds, 1_000, defect=name)

    assert found is not None


def test_a_rule_is_switched_on_again_afterwards() -> None:
    assert simulate(9, defect="repeat").violations

    assert simulate(9).violations == ()


def test_a_failing_schedule_is_shrunk_to_what_it_needs() -> None:
    found = first_broken("fenced", 200, defect="fence")
    assert found is not None
    schedule = draw(found)

    small = shrink(schedule, "fenced", defect="fence")

    assert [fault.kind for fault in small.faults] in (["promote"], ["switchover"])
    assert small.clients * small.calls < schedule.clients * schedule.calls
    assert any(violation.promise == "fenced" for violation in simulate(small, defect="fence").violations)


def endings(run: Run) -> list[str]:
    return [line for line in run.history if "ends: " in line and not line.endswith("ends: ok")]


def test_a_calm_cluster_repeats_nothing_and_fails_only_what_its_own_deadline_ends() -> None:
    run = simulate(replace(draw(1), faults=(), conflicts=0.0, size=4), trace=True)

    assert (run.repeats, run.promotions, run.violations) == (0, 0, ())
    assert all("the time ran out" in line or "the call's 0.3 s" in line for line in endings(run))


@pytest.mark.parametrize("how", ["crash", "stop", "freeze", "isolate", "cut off", "alive"])
def test_a_promotion_fails_no_call_that_can_bear_it(how: str) -> None:
    fault = Fault(at=2.0, kind="promote", node="primary", lasts=0.6, how=how)

    run = simulate(replace(draw(1), faults=(fault,), conflicts=0.0, size=4, floor=3.0), trace=True)

    assert run.violations == ()
    short = ("OutcomeUnknown", "the call's 0.3 s", "the call's 1 s", "after 0.3 s", "after 1 s")
    assert [line for line in endings(run) if not any(said in line for said in short)] == []


@pytest.mark.parametrize(("seeds", "engine"), [(120, False), (30, True)], ids=["own", "engine"])
def test_tokens_settle_what_would_stay_unknown(seeds: int, *, engine: bool) -> None:
    unknown = {True: 0, False: 0}
    for seed in range(seeds):
        for tokens in unknown:
            run = simulate(replace(draw(seed), tokens=tokens), engine=engine)
            assert run.violations == ()
            unknown[tokens] += run.unknown

    assert unknown[False] > seeds / 5
    assert unknown[True] < unknown[False] / 2


# ---------------------------------------------------------------- dbguard's own engine


@pytest.mark.parametrize("first", range(0, OF_THE_ENGINE, 100))
def test_no_promise_is_broken_by_the_engine_that_applications_run(first: int) -> None:
    assert broken_of(range(first, first + 100), engine=True) == []


@pytest.mark.parametrize("name", ["repeat", "fence", "gate", "nothing"])
def test_engine_is_judged_as_sharply(name: str) -> None:
    found = first_broken(DEFECTS[name].finds, 200, defect=name, engine=True)

    assert found is not None


def test_engine_cancels_calls_and_nothing_of_them_is_left() -> None:
    runs = [simulate(seed, engine=True, trace=True) for seed in range(10)]

    assert sum(line.endswith("is cancelled") for run in runs for line in run.history) > 5
    assert not any(run.violations for run in runs)


# ---------------------------------------------------------------- the command


def test_command_runs_seeds_and_says_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3"]) == 0

    said = capsys.readouterr().out
    assert "3 seeds (0 to 2)" in said
    assert "0 promises broken" in said


def test_command_replays_a_seed_step_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "7", "--trace"]) == 0

    said = capsys.readouterr().out
    assert said.startswith("seed 7: ")
    assert "is promoted to timeline 2" in said


def test_command_prints_a_failing_seed_and_how_to_replay_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "50", "--defect", "gate"]) == 1

    said = capsys.readouterr().out
    assert "--trace --defect gate" in said
    assert "stale at" in said


def test_command_refuses_no_seeds_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--seeds", "0"])

    assert ended.value.code == 2
