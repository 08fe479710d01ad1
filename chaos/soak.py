"""A soak: one client stays open while segments of mixed faults go by, each judged and forgotten, and nothing may grow."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from chaos import mix
from chaos.bench import Bench
from chaos.checkers import State
from chaos.judging import judge_apart
from chaos.play import record
from chaos.resting import growth, measure
from chaos.summary import total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chaos.history import Leak
    from chaos.judging import Judged
    from chaos.mix import Segment
    from chaos.resting import Growth, Rest
    from chaos.summary import Summary
    from dbguard.testing.proxied import ProxiedCluster

__all__ = ["Soak", "Stretch", "Watch"]

_WHOLE = 30.0  # seconds for all replicas to stream from the primary once all is healed


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


class Watch(Protocol):
    """Who looks on."""

    def begins(self, number: int, segment: Segment) -> None:
        """Hear that a segment begins."""

    def judged(self, number: int, found: Judged, scenario: Path, history: Path) -> None:
        """Hear all that is known of it, and in which files it stands."""

    def ends(self, stretch: Stretch) -> None:
        """Hear what is kept of it."""


@dataclass(slots=True, kw_only=True)
class Soak:
    """A soak under way, or over.

    seed: of the callers' choices; the segments have theirs already.
    folder: where to write each segment's scenario and history: what happens is kept there alone, and judged by another
        process, since all that this one holds is taken for the client's.
    watch: told of each segment; all that is known of it is gone afterwards.
    leaks: what the client left behind in the end; None before.
    """

    client: str
    seed: int
    say: Callable[[str], object]
    watch: Watch
    folder: Path
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
        began = time.monotonic()
        made = self.folder / f"{segment.scenario.name}.yaml"
        path = self.folder / f"{segment.scenario.name}-{self.client}.jsonl"
        made.write_text(segment.text, encoding="utf-8")
        await record(
            bench, segment.scenario, seed=self.seed + number, path=path, keep=False, last=False, leave_out=True
        )
        for node in bench.cluster.replicas:
            await bench.do(bench.cluster.wait_linked, node, bench.cluster.primary, _WHOLE)
        found = await judge_apart(made, path, time.monotonic() - began)
        self.watch.judged(number, found, made, path)
        rest = await measure(bench)
        stretch = Stretch(
            number=number, summary=found.summary, state=found.state, wrong=found.wrong, felt=found.felt, rest=rest
        )
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
