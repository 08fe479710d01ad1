"""A recorded run, judged by a process of its own: what that takes does not count as the client's, whose memory is watched."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chaos import journal
from chaos.checkers import State
from chaos.play import judge
from chaos.scenario import load
from chaos.summary import Summary
from chaos.table import Entry

if TYPE_CHECKING:
    from chaos.play import Result

__all__ = ["Judged", "judge_apart", "judged", "result_of", "state_of"]

_LENIENT = frozenset({"felt", "overshoot"})
"""Checkers that may leave a segment open: chance draws faults that nobody feels, and none that keeps a call for long."""


class Judged(NamedTuple):
    """What is known of a segment once it was judged.

    state: the worst of its verdicts, but for those that may leave it open. wrong: the checkers that say so, if it is not
    ok. felt: whether all its faults were felt. told: all verdicts, for people. entry: all of it, as plain data.
    """

    summary: Summary
    state: State
    wrong: tuple[str, ...]
    felt: bool
    told: str
    entry: dict[str, Any]


def state_of(result: Result) -> tuple[State, tuple[str, ...]]:
    """Return the state of a segment, and the checkers that say so."""
    counted = {
        name: verdict.state
        for name, verdict in result.verdicts.items()
        if not (name in _LENIENT and verdict.state is State.UNKNOWN)
    }
    worst = max(counted.values())
    return worst, () if worst is State.OK else tuple(name for name, state in counted.items() if state is worst)


def judged(result: Result, seconds: float) -> Judged:
    """Say what is to be kept of *result*. seconds: that the run took, all in all."""
    entry = Entry.of(result, result.history.head["about"], seconds)
    assert entry.summary is not None
    state, wrong = state_of(result)
    felt = result.verdicts["felt"].state is State.OK
    return Judged(entry.summary, state, wrong, felt, str(result), entry.as_dict())


def result_of(scenario: Path, history: Path) -> Result:
    """Judge a run by its files. Raises ConfigError or ValueError where they are none."""
    return judge(load(scenario), journal.read(history))


async def judge_apart(scenario: Path, history: Path, seconds: float) -> Judged:
    """Judge a run by its files, in another process. Raises RuntimeError if that fails; it has told why on its own then."""
    command = (sys.executable, "-m", __name__, scenario, history, str(seconds))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        said, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"{history} could not be judged: exit code {process.returncode}")
    found = json.loads(said)
    summary = Summary(**found["summary"] | {"state": State[found["summary"]["state"]]})
    return Judged(summary, State[found["state"]], tuple(found["wrong"]), found["felt"], found["told"], found["entry"])


def _tell(scenario: str, history: str, seconds: str) -> None:
    """Judge, and write what is known."""
    found = judged(result_of(Path(scenario), Path(history)), float(seconds))
    summary = asdict(found.summary) | {"state": found.summary.state.name}
    print(json.dumps({**found._asdict(), "summary": summary, "state": found.state.name}))


if __name__ == "__main__":
    _tell(*sys.argv[1:])
