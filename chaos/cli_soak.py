"""The command ``soak``: one client stays open for minutes or hours while everything breaks, and nothing may grow."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from chaos.checkers import State
from chaos.ctrl_c import CtrlC
from chaos.judging import result_of
from chaos.mix import segments
from chaos.play import cluster_for
from chaos.progress import progress_on
from chaos.resting import give_back_large_pieces
from chaos.soak import Soak
from chaos.table import EXIT_CODES, INTERRUPTED, STYLES, write_document, written
from dbguard.cli.output import Output
from dbguard.errors import ConfigError
from dbguard.testing.binaries import find_binaries
from dbguard.testing.cluster import ClusterError
from dbguard.testing.toxiproxy_server import server_binary

if TYPE_CHECKING:
    import argparse

    from chaos.judging import Judged
    from chaos.mix import Segment
    from chaos.progress import Progress
    from chaos.soak import Stretch

__all__ = ["run"]

_FIRST, _WRONG = 2, 10  # segments that a page shows: all would be too much for it, and for the memory that is watched


def run(given: argparse.Namespace) -> int:
    """Soak; return the exit code."""
    people: TextIO = sys.stderr if given.json == "-" else sys.stdout
    if given.history:
        given.history.mkdir(parents=True, exist_ok=True)
    give_back_large_pieces()
    binaries = find_binaries()
    binary = server_binary(say=lambda line: print(line, file=people, flush=True))
    write = import_module("chaos.report").write if given.report else None  # matplotlib takes its time
    drawn = segments(given.seed)
    first = next(drawn)  # all have its topology
    seconds, interrupted, failed = given.minutes * 60, False, ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as kept, tempfile.TemporaryDirectory() as beside:
        folder = given.history or Path(beside)
        with progress_on(people) as progress, CtrlC(progress) as ctrl_c:
            show = _Show(progress, kept, seconds, forget=given.history is None)
            soak = Soak(client=given.client, seed=given.seed, say=progress.say, folder=folder, watch=show)
            try:
                progress.say(f"     ...  starting a cluster behind Toxiproxy: {binaries}")
                with cluster_for(first.scenario, binaries=binaries, proxy_binary=binary) as cluster:
                    ctrl_c.run(soak.run(cluster, itertools.chain([first], drawn), seconds=seconds))
            except KeyboardInterrupt:
                interrupted = True
            except Exception as e:  # noqa: BLE001  what was seen before is still told
                interrupted = ctrl_c.heard
                failed = f"{type(e).__name__}: {e}"
                known = isinstance(e, (ClusterError, ConfigError))  # it says by itself what is wrong
                progress.end(State.UNKNOWN, failed, failed if known else "".join(traceback.format_exception(e)))
        _tell(soak, Output(people), interrupted=interrupted, failed=failed)
        if given.json:
            kept.seek(0)
            said = {
                **soak.as_dict(),
                "postgres": binaries.version,
                "interrupted": interrupted,
                **({"error": failed, "state": _state(soak, failed).name.lower()} if failed else {}),
                "segments": [json.loads(line) for line in kept],
            }
            write_document(said, given.json)
        if shown := write is not None and bool(show.shown):
            write(given.report, [result_of(*files) for files in show.shown])
    written(people, given.report if shown else None, given.json, given.history)
    if interrupted:
        return INTERRUPTED
    return EXIT_CODES[_state(soak, failed)]


def _state(soak: Soak, failed: str) -> State:
    """Return the state of all of it; of a soak that was ended by an exception, at least unknown."""
    return max(soak.state, State.UNKNOWN) if failed else soak.state


class _Show:
    """Shows segments, and keeps all that is known of them in files: in memory it would count as growth.

    forget: whether to remove the files of segments that no page is to show.
    shown: the files of those that one is to show: the first segments, and the first that are not ok.
    """

    def __init__(self, progress: Progress, kept: TextIO, seconds: float, *, forget: bool) -> None:
        self._progress = progress
        self._kept = kept
        self._seconds = seconds
        self._forget = forget
        self._began = self._at = time.monotonic()
        self._whole = ""
        self._wrong = 0
        self.shown: list[tuple[Path, Path]] = []

    def begins(self, number: int, segment: Segment) -> None:
        """Show that a segment begins."""
        self._at = time.monotonic()
        gone, made = self._at - self._began, segment.scenario
        each = gone / (number - 1) if number > 1 else made.warm_up + made.duration
        self._progress.begin(
            made.name,
            f"{len(made.timeline)} faults",
            number=number,
            count=max(number, round(self._seconds / each)),
            seconds=each,
            left=max(each, self._seconds - gone),
        )

    def judged(self, number: int, found: Judged, scenario: Path, history: Path) -> None:
        """Keep what a segment showed."""
        self._kept.write(json.dumps({"number": number, **found.entry}) + "\n")
        self._whole = found.told
        wrong = found.state is not State.OK
        if number <= _FIRST or (wrong and self._wrong < _WRONG):
            self.shown.append((scenario, history))
        elif self._forget:
            scenario.unlink()
            history.unlink()
        self._wrong += wrong

    def ends(self, stretch: Stretch) -> None:
        """Show how a segment ended."""
        self._progress.end(stretch.state, str(stretch), f"{self._whole}\n{stretch}")
        self._whole = ""


def _tell(soak: Soak, output: Output, *, interrupted: bool, failed: str) -> None:
    """Write what it comes to."""
    total = soak.as_dict()["total"]
    output.line(
        f"soak, {total['segments']} segments, client {soak.client}, seed {soak.seed}: "
        f"{total['faults']:,} faults, {total['calls']:,} calls"
    )
    names = ("lost", "duplicated", "stale", "unknown", "failed_reads")
    counts = {name: "?" if total[name] is None else f"{total[name]:,}" for name in names}
    output.line("  " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()))
    if total["not_all_felt"]:
        output.line(f"  segments in which not every fault was felt: {total['not_all_felt']}")
    for one in soak.stretches:
        if one.state is not State.OK:
            output.line(f"  {one}", STYLES[one.state])
    for growth in soak.growth():
        output.line(f"  {growth}", STYLES[growth.state])
    if soak.leaks is not None:
        left = "; ".join(map(str, soak.leaks))
        output.line(f"  left behind in the end: {left or 'nothing'}", STYLES[State.BROKEN if left else State.OK])
    if interrupted:
        output.line("interrupted" if failed else "interrupted, and healed", "yellow")
    if failed:
        output.line(f"ended by {failed}", "yellow")
    state = _state(soak, failed)
    output.line(f"verdict: {state.name.lower()}", STYLES[state])
