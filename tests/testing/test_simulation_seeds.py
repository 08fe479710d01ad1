"""Defects that the simulation found in dbguard, each with the seed that shows it.

Each seed is run twice: as dbguard is, and with the defect switched on again. So a row cannot outlive its meaning: a seed
that no longer shows its defect fails here, and another one has to be found (the command's `--defect` does that).
"""

from __future__ import annotations

import pytest

from dbguard.testing.simulation import simulate

FOUND = [
    # seed, defect, what broke, the rule that it broke
    (6, "renewal", "dead", "a name may come to lead to the new primary while its old connection lives on"),
    (240270, "elsewhere", "fenced", "a new connection is used only if it reached the server last seen under its name"),
    (926, "overtaken", "fenced", "a call whose node changed while it waited for a connection chooses anew"),
    (377, "number", "stale", "a timeline's number proves nothing once two servers were seen to claim it"),
    (1659, "pin", "stale", "a write of unknown fate keeps its context's reads on the primary"),
    (3006, "office", "duplicate", "a claim is answered by the server that holds the office alone"),
    (165, "nothing", "lost", "a claim never takes its own row for the write"),
    (44, "branch", "silent", "a reign begins where its timeline branched off, not where its primary was first seen"),
]
FOUND_BY_THE_ENGINE = [
    (2701, "branch", "silent", "so, too, behind a name that was moved, where the new primary has written for a while"),
]


@pytest.mark.parametrize(
    ("seed", "defect", "promise", "rule", "engine"),
    [
        pytest.param(*row, engine, id=row[1] + "-engine" * engine)
        for rows, engine in ((FOUND, False), (FOUND_BY_THE_ENGINE, True))
        for row in rows
    ],
)
def test_seed_keeps_every_promise_and_breaks_one_with_its_defect(
    seed: int, defect: str, promise: str, rule: str, *, engine: bool
) -> None:
    assert simulate(seed, engine=engine).violations == ()
    broken = {violation.promise for violation in simulate(seed, defect=defect, engine=engine).violations}
    assert promise in broken, rule
