"""The waiting room: who goes first, how fast, and that nobody is left in it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from dbguard.core.gate import PACE, Gate
from dbguard.core.topology import Missed, Role
from dbguard.runtime.waiting import Room
from dbguard.testing.fake import known_state, seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.state import GuardState
    from dbguard.testing.clock import ManualClock

    Run = Callable[[object], object]


@pytest.fixture
def state(clock: ManualClock) -> GuardState:
    return known_state(clock, gate=Gate(slots=20))


@pytest.fixture
def room(state: GuardState) -> Room:
    return Room(state)


def lose_primary(state: GuardState, clock: ManualClock) -> None:
    now = clock.advance(0.01)
    replicas = [seen(name, Role.REPLICA, now) for name in ("b", "c")]
    state.probed([Missed(node="a", at=now, why="refused"), *replicas], full=True)


def find_primary(state: GuardState, clock: ManualClock) -> None:
    now = clock.advance(0.01)
    state.probed([seen("a", Role.PRIMARY, now), *(seen(n, Role.REPLICA, now) for n in ("b", "c"))], full=True)


class Herd:
    """Calls that wait at the gate: who went, and when."""

    def __init__(self, room: Room, clock: ManualClock) -> None:
        self.room = room
        self.clock = clock
        self.went: list[tuple[int, float]] = []

    async def wait(self, number: int, at_most: float = 60.0) -> None:
        await self.room.turn(at_most, reads=False)
        self.went.append((number, self.clock.now))

    async def come(self, count: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(self.wait(number)) for number in range(count)]
        await asyncio.sleep(0)
        return tasks


def test_turns_are_given_in_the_order_of_coming(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        lose_primary(state, clock)
        tasks = await herd.come(20)
        find_primary(state, clock)
        room.changed()
        await asyncio.gather(*tasks)

    run(scene())

    assert [number for number, _ in herd.went] == list(range(20))


def test_herd_is_let_go_at_a_rising_pace(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    herd = Herd(room, clock)

    async def scene() -> float:
        lose_primary(state, clock)
        tasks = await herd.come(30)
        find_primary(state, clock)
        opened = clock.now
        room.changed()
        await asyncio.gather(*tasks)
        return opened

    opened = run(scene())
    steps = [round((at - opened) / PACE) for _, at in herd.went]

    assert [steps.count(step) for step in range(4)] == [2, 4, 8, 16]
    assert not state.gate.paced


def test_nobody_goes_while_there_is_no_primary(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        lose_primary(state, clock)
        tasks = await herd.come(3)
        room.changed()
        await asyncio.sleep(5)
        assert herd.went == []
        assert state.waiting == len(room) == 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scene())

    assert state.waiting == len(room) == 0


def test_who_waits_is_woken_when_the_cluster_is_given_up(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    async def scene() -> float:
        lose_primary(state, clock)
        began = clock.now
        tasks = [asyncio.ensure_future(room.turn(600.0, reads=False)) for _ in range(3)]
        await asyncio.sleep(60)  # the gate's max_wait
        state.tick()
        room.changed()
        await asyncio.gather(*tasks)
        return clock.now - began

    assert run(scene()) == pytest.approx(60)


def test_read_that_waits_is_woken_by_any_change(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> float:
        lose_primary(state, clock)
        began = clock.now
        task = asyncio.ensure_future(room.turn(60.0, reads=True))
        await asyncio.sleep(1)
        room.changed()
        await task
        return clock.now - began

    assert run(scene()) == pytest.approx(1)


def test_turn_ends_at_its_deadline(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> float:
        lose_primary(state, clock)
        began = clock.now
        await room.turn(2.0, reads=False)
        return clock.now - began

    assert run(scene()) == pytest.approx(2.0)
    assert state.waiting == 0


def test_cancelled_wait_leaves_nobody_behind(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> None:
        lose_primary(state, clock)
        task = asyncio.ensure_future(room.turn(60.0, reads=False))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scene())

    assert state.waiting == len(room) == 0


def test_turn_of_a_cancelled_call_goes_to_the_next(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        lose_primary(state, clock)
        tasks = await herd.come(4)
        tasks[0].cancel()
        await asyncio.sleep(0)
        find_primary(state, clock)
        room.changed()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scene())

    assert [number for number, _ in herd.went] == [1, 2, 3]


def test_backoff_ends_when_the_topology_changes(room: Room, clock: ManualClock, run: Run) -> None:
    async def scene() -> float:
        began = clock.now
        task = asyncio.ensure_future(room.pause(10.0))
        await asyncio.sleep(0.5)
        room.changed()
        await task
        return clock.now - began

    assert run(scene()) == pytest.approx(0.5)


def test_backoff_lasts_as_long_as_it_was_told_to(room: Room, clock: ManualClock, run: Run) -> None:
    async def scene() -> float:
        began = clock.now
        await room.pause(0.25)
        return clock.now - began

    assert run(scene()) == pytest.approx(0.25)


def test_backoff_that_is_deaf_to_the_topology_goes_on(room: Room, clock: ManualClock, run: Run) -> None:
    async def scene() -> float:
        began = clock.now
        task = asyncio.ensure_future(room.pause(10.0, deaf=True))
        await asyncio.sleep(0.5)
        room.changed()
        await task
        return clock.now - began

    assert run(scene()) == pytest.approx(10.0)


def test_closing_wakes_everybody(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> None:
        lose_primary(state, clock)
        waits = [
            asyncio.ensure_future(wait)
            for wait in (room.turn(60.0, reads=False), room.turn(60.0, reads=True), room.pause(60.0, deaf=True))
        ]
        await asyncio.sleep(0)
        began = clock.now
        room.release_all()
        await asyncio.gather(*waits)
        assert clock.now == began

    run(scene())

    assert state.waiting == 0


def test_deadline_that_is_far_away_is_no_error(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> None:
        lose_primary(state, clock)
        task = asyncio.ensure_future(room.turn(float("inf"), reads=False))
        await asyncio.sleep(1)
        find_primary(state, clock)
        room.changed()
        await task

    run(scene())

    assert len(room) == 0
