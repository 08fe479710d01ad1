"""A failover, understood from the log alone: one line per change, in order, one id, and the whole of it in the last."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from dbguard.events import EpisodeEnded
from tests.integration.failover.workload import promote

act = asyncio.to_thread


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "dbguard"]


def places(said: list[tuple[str, str]], *wanted: str) -> list[int]:
    """Where the lines stand that begin so; each must be there exactly once."""
    found = [[n for n, (_, text) in enumerate(said) if re.match(begin, text)] for begin in wanted]
    assert [len(at) for at in found] == [1] * len(wanted), list(zip(wanted, found, strict=True))
    return [at[0] for at in found]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="dbguard")
    return caplog


async def test_a_killed_primary_is_one_story_in_the_log(home, open_guard, at_work, until, log):
    guard = await open_guard(home)
    work = await at_work(guard, home)
    await until(lambda: [e for e in guard.status().episodes if e.over])
    old = guard.status().primary
    log.clear()

    await act(home.kill, old)
    await work.stands_still()
    new = await act(promote, home)
    await work.flows()
    await until(lambda: any(text.startswith("failover") for _, text in lines(log)))

    said = lines(log)
    order = places(
        said,
        rf"{old} does not answer: ",
        rf"writes stopped \(.*failover\): {old} is lost",
        rf"primary is {new} \(was {old}\), reign ",
        r"writes flow \(failover -> open\): ",
        rf"failover \d+: {old} -> {new} in ",
    )
    assert order == sorted(order)
    assert len({re.search(r"\[(\w+-\d+)\]$", text)[1] for _, text in said[: order[-1] + 1]}) == 1
    level, last = said[order[-1]]
    assert level == "WARNING"
    told = re.search(
        r"in (\S+) s \(noticed in (\S+), writes stopped for (\S+), .*waiting calls released in (\S+) s\).*; "
        r"(\S+) calls waited, (\d+) outcomes? unknown, (\d+) connections? ended \[",
        last,
    )
    seconds, *phases = (float(told[n]) for n in range(1, 5))
    assert seconds == pytest.approx(sum(phases), abs=0.03)
    assert int(told[5]) > 0
    assert int(told[6]) == guard.status().counts["unknown"]
    episode = guard.status().episodes[-1]
    assert (episode.kind, episode.was, episode.primary, episode.over) == ("failover", old, new, True)
    assert episode.text() in last


async def test_a_primary_that_is_frozen_for_a_moment_is_an_interruption(home, open_guard, at_work, until, log, events):
    guard = await open_guard(home)
    work = await at_work(guard, home)
    old = guard.status().primary
    log.clear()

    await act(home.freeze, old)
    await until(lambda: guard.status().writes == "failover")
    await act(home.thaw, old)
    await work.flows()
    await until(lambda: [e for e in events if isinstance(e, EpisodeEnded) and e.kind == "interruption"])

    said = [text for _, text in lines(log)]
    assert any(re.match(rf"interruption \d+: {old} is back after ", text) for text in said)
    assert not any("primary is" in text for text in said)


async def test_a_guard_that_is_closed_tells_what_is_under_way(home, open_guard, until, log):
    guard = await open_guard(home)
    old = guard.status().primary
    await until(lambda: [e for e in guard.status().episodes if e.over])
    await act(home.kill, old)
    await until(lambda: guard.status().writes == "failover")

    await guard.close()

    assert re.match(r"interruption \d+, not over yet: began ", lines(log)[-1][1])
