"""A soak: one client stays open while segments of mixed faults go by, each judged and forgotten, and nothing may grow."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from chaos import mix
from chaos.bench import Bench
from chaos.checkers import State
from chaos.play import play_on
from chaos.resting import growth, measure
from chaos.summary import summary_of, total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chaos.history import Leak
    from chaos.mix import Segment
    from chaos.play import Result
    from chaos.resting import Growth, Rest
    from chaos.summary import Summary
    from dbguard.testing.proxied import ProxiedCluster

__all__ = ["Soak", "Stretch", "Watch", "state_of"]

_WHOLE = 30.0  # seconds for all replicas to stream from the primary once all is healed

_LENIENT = frozenset({"felt", "overshoot"})
"""Checkers that may leave a segment open: chance draws faults that nobody feels, and none that keeps a call for long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What is kept of a segment: a few numbers, so that a long soak does not grow by its own records.

    state: the worst of its verdicts, but for those that may leave it open.
    wrong: the checkers that say so, if it is not ok.
    felt: whether all its faults were felt.
    """

    number: int
    summary: Summary
    state: State
    wrong: tuple[str, ...]
    felt: bool
    rest: Rest

    def __str__(self) -> str:
        said = self.summary
        verdict = "ok" if self.state is State.OK else f"{self.state.name.lower()}: {', '.join(self.wrong)}"
        return (
            f"segment {self.number}: {verdict}; {said.faults} faults, {said.calls:,} calls, {said.unknown} of unknown "
            f"outcome, {said.failed_reads} failed reads, pauses {said.read_pause:.1f} s and {said.append_pause:.1f} s; "
            f"{self.rest}"
        )


def state_of(result: Result) -> tuple[State, tuple[str, ...]]:
    """Return the state of a segment, and the checkers that say so."""
    counted = {
        name: verdict.state
        for name, verdict in result.verdicts.items()
        if not (name in _LENIENT and verdict.state is State.UNKNOWN)
    }
    worst = max(counted.values())
    return worst, () if worst is State.OK else tuple(name for name, state in counted.items() if state is worst)


class Watch(Protocol):
    """Who looks on."""

    def begins(self, number: int, segment: Segment) -> None:
        """Hear that a segment begins."""

    def judged(self, number: int, result: Result) -> None:
        """Hear all that is known of it, which is gone afterwards."""

    def ends(self, stretch: Stretch) -> None:
        """Hear what is kept of it."""


@dataclass(slots=True, kw_only=True)
class Soak:
    """A soak under way, or over.

    seed: of the callers' choices; the segments have theirs already.
    folder: where to write each segment's scenario and history. Default: nowhere.
    watch: told of each segment; all that is known of it is gone afterwards.
    leaks: what the client left behind in the end; None before.
    """

    client: str
    seed: int
    say: Callable[[str], object]
    watch: Watch
    folder: Path | None = None
    stretches: list[Stretch] = field(default_factory=list)
    leaks: list[Leak] | None = None

    async def run(self, cluster: ProxiedCluster, segments: Iterator[Segment], *, seconds: float) -> None:
        """Play segments as long as another one is likely to end within *seconds*; at least one, unless there is none."""
        began, longest = time.monotonic(), 0.0
        async with Bench(
            cluster, self.client, size=mix.CALLERS, guard=mix.GUARD, faults=mix.faults(), say=self.say
        ) as bench:
            for number, segment in enumerate(segments, 1):
                at = time.monotonic()
                if at - began + longest > seconds:
                    break
                self.watch.begins(number, segment)
                await self._segment(bench, number, segment)
                longest = max(longest, time.monotonic() - at)
            await bench.close()
            self.leaks = await bench.left()

    async def _segment(self, bench: Bench, number: int, segment: Segment) -> None:
        path = None
        if self.folder is not None:
            path = self.folder / f"{segment.scenario.name}-{self.client}.jsonl"
            (self.folder / f"{segment.scenario.name}.yaml").write_text(segment.text, encoding="utf-8")
        result = await play_on(bench, segment.scenario, seed=self.seed + number, path=path, last=False, leave_out=True)
        for node in bench.cluster.replicas:
            await bench.do(bench.cluster.wait_linked, node, bench.cluster.primary, _WHOLE)
        self.watch.judged(number, result)
        state, wrong = state_of(result)
        felt, summary = result.verdicts["felt"].state is State.OK, summary_of(result)
        del result  # nothing of it may count as the client's
        rest = await measure(bench)
        stretch = Stretch(number=number, summary=summary, state=state, wrong=wrong, felt=felt, rest=rest)
        self.stretches.append(stretch)
        self.watch.ends(stretch)

    def growth(self) -> list[Growth]:
        """Judge what is held."""
        return growth([stretch.rest for stretch in self.stretches])

    @property
    def state(self) -> State:
        """The worst of all segments, of what has grown, and of what was left behind."""
        left = State.UNKNOWN if self.leaks is None else State.BROKEN if self.leaks else State.OK
        return max([left, *(one.state for one in self.stretches), *(one.state for one in self.growth())])

    def as_dict(self) -> dict[str, Any]:
        """Return the sums as plain data."""
        names = ("faults", "calls", "lost", "duplicated", "stale", "unknown", "failed_reads")
        return {
            "client": self.client,
            "seed": self.seed,
            "state": self.state.name.lower(),
            "total": {
                "segments": len(self.stretches),
                "not_ok": sum(one.state is not State.OK for one in self.stretches),
                "not_all_felt": sum(not one.felt for one in self.stretches),
                **{name: total(getattr(one.summary, name) for one in self.stretches) for name in names},
            },
            "growth": [
                {"what": one.what, "before": one.before, "after": one.after, "state": one.state.name.lower()}
                for one in self.growth()
            ],
            "left": None if self.leaks is None else [str(leak) for leak in self.leaks],
        }
