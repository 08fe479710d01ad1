"""Tests here run on a loop whose time is a manual clock: nothing sleeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dbguard.testing.clock import ClockLoop, ManualClock
from dbguard.testing.fake import known_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from dbguard.core.state import GuardState


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state(clock: ManualClock) -> GuardState:
    return known_state(clock)


@pytest.fixture
def run(clock: ManualClock) -> Iterator[Callable[[Awaitable[object]], object]]:
    """Run a coroutine to its end, on the manual clock."""
    loop = ClockLoop(clock)
    yield loop.run_until_complete
    loop.close()
