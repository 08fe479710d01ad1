"""What a soak breaks: drawn by a seed from all that there is."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

from chaos import mix
from chaos.faults import FAULTS
from chaos.scenario import parse
from chaos.workloads import WORKLOADS

SOME = 12  # segments


def test_same_seed_draws_the_same_segments_and_another_one_others() -> None:
    drawn = [segment.text for segment in islice(mix.segments(5), SOME)]

    assert [segment.text for segment in islice(mix.segments(5), SOME)] == drawn
    assert not {segment.text for segment in islice(mix.segments(6), SOME)}.intersection(drawn)


def test_every_kind_of_fault_and_every_workload_comes_up() -> None:
    drawn = [segment.scenario for segment in islice(mix.segments(1), SOME)]

    kinds = Counter(type(step.fault) for scenario in drawn for step in scenario.timeline)
    assert set(kinds) == set(FAULTS.values())
    assert {type(fault) for fault in mix.faults()} == set(kinds)
    assert {type(scenario.workload) for scenario in drawn} == set(WORKLOADS.values())
    assert all(scenario.workload.callers <= mix.CALLERS for scenario in drawn)


def test_each_kind_of_trouble_comes_once_before_any_comes_again() -> None:
    faults = [
        str(step.fault)
        for segment in islice(mix.segments(3), 40)
        for step in sorted(segment.scenario.timeline, key=lambda step: step.at)
    ]
    crashes = [number for number, what in enumerate(faults) if "crashed" in what]

    steps = len(mix.faults())  # of one deck
    assert len(crashes) >= 5
    assert all(after - before < 2 * steps for before, after in pairwise(crashes))


def test_segment_can_be_run_by_itself_from_its_text() -> None:
    segment = next(mix.segments(9))

    again = parse(segment.text, segment.scenario.name)

    assert again == segment.scenario
    assert again.schedule(1) == segment.scenario.schedule(1)
    assert again.topology.synchronous
