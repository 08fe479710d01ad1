"""The command ``run``: scenarios one after the other, with one client or several, and what they come to."""

from __future__ import annotations

import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from chaos import table
from chaos.checkers import State
from chaos.clients import CLIENTS
from chaos.clients.guards import GuardClient
from chaos.clusters import Clusters
from chaos.ctrl_c import CtrlC
from chaos.play import play
from chaos.progress import progress_on
from chaos.scenario import every, find, load
from chaos.table import EXIT_CODES, INTERRUPTED, Entry
from dbguard.cli.output import Output
from dbguard.errors import ConfigError
from dbguard.testing.binaries import find_binaries
from dbguard.testing.cluster import ClusterError
from dbguard.testing.toxiproxy_server import server_binary

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from chaos.play import Result
    from chaos.progress import Progress
    from chaos.report import Page
    from chaos.scenario import Scenario
    from dbguard.testing.binaries import Binaries

__all__ = ["GUARDED", "run"]

GUARDED = tuple(name for name, kind in CLIENTS.items() if issubclass(kind, GuardClient))
"""The clients that have a guard."""

_OVERHEAD = 3.0  # seconds that a run takes beside its own, at first sight: opening, closing, reading back


class Planned(NamedTuple):
    """A run to be made."""

    scenario: Scenario
    client: str
    seed: int

    @property
    def seconds(self) -> float:
        """How long it will be working."""
        return self.scenario.warm_up + self.scenario.duration


def run(given: argparse.Namespace) -> int:
    """Run what was asked for; return the exit code."""
    plan, senseless = planned(given.names, given.client, given.seed, given.rounds)
    if given.history:
        given.history.mkdir(parents=True, exist_ok=True)
    people: TextIO = sys.stderr if given.json == "-" else sys.stdout
    for line in senseless:
        print(line, file=people, flush=True)
    page: Page | None = import_module("chaos.report").Page() if given.report else None  # matplotlib takes its time
    batch = _Batch(plan, given.history, page, find_binaries())
    batch.run(people)
    _tell(batch, people, given)
    if shown := page is not None and bool(batch.entries):
        page.write(given.report)
    table.written(people, given.report if shown else None, given.json, given.history)
    if batch.interrupted:
        return INTERRUPTED
    return max((EXIT_CODES[entry.state] for entry in batch.entries), key=[0, 2, 1].index)


def planned(names: Sequence[str], clients: Sequence[str], seed: int, rounds: int) -> tuple[list[Planned], list[str]]:
    """List the runs in their order; and in one line each what is left out, since it could show nothing, and why.

    For ``all`` those of one topology follow each other, so that they can share a cluster. Raises ConfigError where a name
    is none, a file is wrong, or nothing is left to run.
    """
    scenarios: list[Scenario] = []
    for name in names:
        if name == "all":
            scenarios += sorted(map(load, every()), key=lambda made: (str(made.topology), made.name))
        else:
            scenarios.append(load(Path(name)) if _is_file(name) else find(name))
    pairs = [(scenario, client) for client in clients for scenario in scenarios]
    senseless = {pair: why for pair in pairs if (why := _senseless(*pair))}
    plan = [
        Planned(scenario, client, seed + extra)
        for extra in range(rounds)
        for scenario, client in pairs
        if (scenario, client) not in senseless
    ]
    if not plan:
        raise ConfigError("nothing to run: " + "; ".join(senseless.values()))
    return plan, [f"left out: {why}" for why in senseless.values()]


def _senseless(scenario: Scenario, client: str) -> str | None:
    """Say why *scenario* could show nothing of *client*; None if it could."""
    if CLIENTS[client].takes_tokens or not any(step.fault.on_tokens for step in scenario.timeline):
        return None
    return f"{scenario.name} with {client}: it breaks claims, and the writes of {client} carry no tokens to claim"


class _Batch:
    """Runs, one after the other; those that are over are in *entries*, and on the *page* if there is one."""

    def __init__(self, plan: Sequence[Planned], folder: Path | None, page: Page | None, binaries: Binaries) -> None:
        self.binaries = binaries
        self._plan = plan
        self._folder = folder
        self._page = page
        self.entries: list[Entry] = []
        self.interrupted = False

    def run(self, people: TextIO) -> None:
        """Make all runs, or those before the interruption. Raises what keeps a cluster from starting."""
        binary = server_binary(say=lambda line: print(line, file=people, flush=True))
        try:
            with (
                progress_on(people) as progress,
                CtrlC(progress) as ctrl_c,
                Clusters(self.binaries, binary, progress.say) as clusters,
            ):
                for number, one in enumerate(self._plan):
                    self._begin(progress, number)
                    self._one(one, clusters, progress, ctrl_c)
        except KeyboardInterrupt:
            self.interrupted = True

    def _begin(self, progress: Progress, number: int) -> None:
        one = self._plan[number]
        over = [entry.seconds - made.seconds for entry, made in zip(self.entries, self._plan, strict=False)]
        each = sum(over) / len(over) if over else _OVERHEAD
        progress.begin(
            f"{one.scenario.name} ({one.client}, seed {one.seed})",
            one.scenario.about,
            number=number + 1,
            count=len(self._plan),
            seconds=one.seconds + each,
            left=sum(made.seconds + each for made in self._plan[number:]),
        )

    def _one(self, one: Planned, clusters: Clusters, progress: Progress, ctrl_c: CtrlC) -> None:
        """Make one run. What fails in it is told and kept; the next can still be made."""
        scenario, client, seed = one
        path = self._folder / f"{scenario.name}-{client}-{seed}.jsonl" if self._folder else None
        began = time.monotonic()
        try:
            with clusters.lend(scenario) as cluster:
                result = ctrl_c.run(play(scenario, cluster, client=client, seed=seed, path=path, say=progress.say))
        except Exception as e:  # noqa: BLE001  kept, and shown in the end
            error = f"{type(e).__name__}: {e}"
            entry = Entry(
                scenario=scenario.name,
                about=scenario.about,
                client=client,
                seed=seed,
                seconds=time.monotonic() - began,
                error=error,
            )
            known = isinstance(e, (ClusterError, ConfigError))  # it says by itself what is wrong
            if self._page is not None:
                self._page.add_failed(scenario=scenario.name, client=client, seed=seed, error=error)
            progress.end(State.UNKNOWN, error, error if known else "".join(traceback.format_exception(e)))
        else:
            entry = Entry.of(result, scenario.about, time.monotonic() - began)
            progress.end(entry.state, _brief(entry), str(result))
            self._draw(result, progress)
        self.entries.append(entry)
        if ctrl_c.heard:  # and something failed while it was healed, which was told as the run's failure
            raise KeyboardInterrupt

    def _draw(self, result: Result, progress: Progress) -> None:
        """Put a run on the page. What fails in it is told there, and changes nothing in what the run has shown."""
        if self._page is None:
            return
        try:
            self._page.add(result)
        except Exception as e:  # noqa: BLE001  the table is worth more than the page
            error, head = f"it could not be drawn: {type(e).__name__}: {e}", result.history.head
            self._page.add_failed(scenario=head["scenario"], client=head["client"], seed=head["seed"], error=error)
            progress.say("".join(traceback.format_exception(e)))


def _brief(entry: Entry) -> str:
    said = entry.summary
    assert said is not None
    return (
        f"{entry.scenario} ({entry.client}): {entry.verdict}; {said.faults} faults, {said.calls:,} calls, "
        f"{said.unknown} of unknown outcome, {entry.seconds:.0f} s"
    )


def _tell(batch: _Batch, people: TextIO, given: argparse.Namespace) -> None:
    """Write the table, and the document."""
    output = Output(people)
    if given.markdown:
        people.write(table.markdown(batch.entries))
    elif batch.entries:
        table.table(output, batch.entries)
    for entry in batch.entries:
        if entry.error:
            output.line(f"{entry.scenario} ({entry.client}) could not be run: {entry.error}", "yellow")
    if batch.interrupted:
        output.line(f"interrupted, and healed; {len(batch.entries)} runs were over", "yellow")
    if given.json:
        document = table.document(batch.entries, postgres=batch.binaries.version, interrupted=batch.interrupted)
        table.write_document(document, given.json)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name
