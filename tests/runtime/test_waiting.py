"""The waiting room: who goes first, how fast, and that nobody is left in it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.core.flap import Hold
from dbguard.core.gate import PACE, Gate
from dbguard.core.retry import Stake
from dbguard.core.topology import Missed, Role
from dbguard.errors import Overloaded
from dbguard.events import WritesResumed
from dbguard.runtime.waiting import Room
from dbguard.testing.fake import known_state, new_call, seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.plan import Call
    from dbguard.core.state import GuardState
    from dbguard.testing.clock import ManualClock

    Run = Callable[[object], object]


@pytest.fixture
def state(clock: ManualClock) -> GuardState:
    state = known_state(clock, gate=Gate(max_waiting=100))
    for node in state.nodes.values():
        node.load.size = 20
    return state


@pytest.fixture
def room(state: GuardState) -> Room:
    return Room(state)


def test_the_gate_is_asked_under_the_lock_of_the_state(
    clock: ManualClock, run: Run, state: GuardState, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls on threads tell it of setbacks, and of a lost primary, at the same time."""
    held = 0

    class Lock:
        def __enter__(self) -> None:
            nonlocal held
            held += 1

        def __exit__(self, *_: object) -> None:
            nonlocal held
            held -= 1

    asked: list[tuple[str, int]] = []

    def watched(name: str) -> Callable[..., Any]:
        own = getattr(Gate, name)

        def ask(*args: Any) -> Any:
            asked.append((name, held))
            return own(*args)

        return ask

    for name in ("release", "returned", "setback", "unused"):
        monkeypatch.setattr(Gate, name, watched(name))
    monkeypatch.setattr(state, "lock", Lock())

    async def scene() -> None:
        lose_primary(state, clock)
        waits = asyncio.ensure_future(room.turn(5.0, could_go=never))
        await asyncio.sleep(0)
        find_primary(state, clock)
        asked.clear()
        room.changed()
        room.back(await waits, again=True)

    run(scene())
    assert {name for name, _ in asked} == {"release", "returned", "setback", "unused"}
    assert all(depth for _, depth in asked), asked


def never() -> bool:
    return False


def lose_primary(state: GuardState, clock: ManualClock) -> None:
    now = clock.advance(0.01)
    replicas = [seen(name, Role.REPLICA, now) for name in ("b", "c")]
    state.probed([Missed(node="a", at=now, why="refused"), *replicas], full=True)


def find_primary(state: GuardState, clock: ManualClock) -> None:
    now = clock.advance(0.01)
    state.probed([seen("a", Role.PRIMARY, now), *(seen(n, Role.REPLICA, now) for n in ("b", "c"))], full=True)


class Herd:
    """Calls that wait at the gate: who went, and when; each is back after *takes* seconds."""

    def __init__(self, room: Room, clock: ManualClock, *, takes: float = 0.001) -> None:
        self.room = room
        self.clock = clock
        self.takes = takes
        self.went: list[tuple[int, float]] = []

    async def wait(self, number: int, at_most: float = 60.0) -> None:
        turn = await self.room.turn(at_most, could_go=never)
        if turn is None:
            return
        self.went.append((number, self.clock.now))
        await asyncio.sleep(self.takes)
        self.room.back(turn)

    async def come(self, count: int, at_most: float = 60.0, *, first: int = 0) -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(self.wait(first + number, at_most)) for number in range(count)]
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
    steps = [round((at - opened) / herd.takes) for _, at in herd.went]

    assert [steps.count(step) for step in range(4)] == [2, 4, 8, 16]
    assert not state.gate.paced


def test_server_that_answers_slowly_is_asked_for_little(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    herd = Herd(room, clock, takes=0.95)

    async def scene() -> float:
        lose_primary(state, clock)
        tasks = await herd.come(30)
        find_primary(state, clock)
        opened = clock.now
        room.changed()
        await asyncio.gather(*tasks)
        return opened

    opened = run(scene())
    went = [at - opened for _, at in herd.went]

    assert sum(at < PACE / 2 for at in went) == 2
    assert sum(at < 0.9 for at in went) == 2 + 8  # one more per step of a tenth of a second
    assert max(went) < 30 * 0.95 / 2


def test_calls_that_wait_again_do_not_hand_their_turns_around(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    turns: list[float] = []

    async def wait_again_and_again() -> None:
        while len(turns) < 1_000:
            turn = await room.turn(60.0, could_go=never)
            if turn is not None:
                turns.append(clock.now)
                room.back(turn, again=True)

    async def scene() -> float:
        lose_primary(state, clock)
        tasks = [asyncio.ensure_future(wait_again_and_again()) for _ in range(30)]
        await asyncio.sleep(0)
        find_primary(state, clock)
        opened = clock.now
        room.changed()
        await asyncio.sleep(10 * PACE - 0.01)
        for task in tasks:
            task.cancel()
        return opened

    opened = run(scene())

    assert len([at for at in turns if at == opened]) == 2
    assert len(turns) <= 2 + 10


def test_call_whose_time_is_over_takes_nobodys_turn(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        lose_primary(state, clock)
        late = await herd.come(10, at_most=1.0)
        tasks = await herd.come(2, first=10)
        clock.advance(2.0)  # and nobody had the time to notice
        find_primary(state, clock)
        room.changed()
        assert state.waiting == len(room) == 0
        await asyncio.sleep(0)
        assert [number for number, _ in herd.went] == [10, 11]
        await asyncio.gather(*late, *tasks)

    run(scene())


def wish(state: GuardState, seconds: float) -> Call:
    return new_call(state, Stake.WRITE, timeout=seconds)


def test_full_room_drops_those_whose_time_is_over_before_it_refuses_a_newcomer(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        lose_primary(state, clock)
        late = await herd.come(10, at_most=1.0)
        tasks = await herd.come(90, first=10)
        refusal = room.admit(wish(state, 30.0))
        assert isinstance(refusal, Overloaded)
        clock.advance(2.0)

        assert room.admit(wish(state, 30.0)) is None

        assert state.waiting == len(room) == 90
        said = await asyncio.gather(*late, return_exceptions=True)
        assert [type(error) for error in said] == [Overloaded] * 10
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scene())


def test_full_room_drops_those_who_cannot_go_in_time(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        lose_primary(state, clock)
        state.gate.hold = Hold(3, 60.0, 5.0, clock.now + 5.0, begun=True)
        hopeless = await herd.come(10, at_most=4.0)
        tasks = await herd.come(90, at_most=6.0, first=10)

        assert room.admit(wish(state, 30.0)) is None

        said = await asyncio.gather(*hopeless, return_exceptions=True)
        assert [type(error) for error in said] == [Overloaded] * 10
        assert len(room) == 90
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scene())


def test_who_waits_is_told_when_writes_are_refused(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> float:
        lose_primary(state, clock)
        began = clock.now
        tasks = [asyncio.ensure_future(room.turn(600.0, could_go=never)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(2):
            now = clock.advance(0.1)
            both = [seen(name, Role.PRIMARY, now) for name in ("b", "c")]
            state.probed([Missed(node="a", at=now, why="refused"), *both], full=True)
        assert state.view.refused
        room.changed()
        assert await asyncio.gather(*tasks) == [None, None, None]
        return clock.now - began

    assert run(scene()) == pytest.approx(0.2)


def test_place_of_a_call_that_was_cancelled_as_its_turn_came_goes_to_the_next(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        lose_primary(state, clock)
        tasks = await herd.come(4)
        find_primary(state, clock)
        room.changed()
        tasks[0].cancel()
        tasks[1].cancel()
        began = clock.now
        await asyncio.gather(*tasks, return_exceptions=True)
        assert clock.now - began < PACE

    run(scene())

    assert [number for number, _ in herd.went] == [2, 3]


def test_nobody_goes_during_a_pause_and_all_do_after_it(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        state.pause(60.0)
        tasks = await herd.come(30)
        find_primary(state, clock)
        room.changed()
        await asyncio.sleep(5)
        assert herd.went == []
        state.resume()
        room.changed()
        await asyncio.gather(*tasks)

    run(scene())

    assert len(herd.went) == 30


def test_pause_that_nobody_ends_comes_to_its_limit(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    herd = Herd(room, clock)

    async def scene() -> None:
        state.pause(10.0)
        tasks = await herd.come(3)
        clock.advance(9.9)
        state.tick()
        assert state.gate.paused_until is not None
        clock.advance(0.2)
        state.tick()
        effects = state.take_effects()
        assert effects is not None
        assert [event.forgotten for event in effects.events if isinstance(event, WritesResumed)] == [True]
        room.changed()
        await asyncio.gather(*tasks)

    run(scene())

    assert len(herd.went) == 3


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
        tasks = [asyncio.ensure_future(room.turn(600.0, could_go=never)) for _ in range(3)]
        await asyncio.sleep(60)  # the gate's max_wait
        state.tick()
        room.changed()
        await asyncio.gather(*tasks)
        return clock.now - began

    assert run(scene()) == pytest.approx(60)


def test_who_could_go_elsewhere_is_woken_by_a_change_and_nobody_else(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    waits = {"write": new_call(state, Stake.WRITE), "read": new_call(state), "late": new_call(state)}
    waits["late"].box.wrote(state.view.reign, clock.now)  # and no position behind that is known
    woken: list[str] = []

    async def wait(name: str) -> None:
        await room.turn(60.0, could_go=lambda: state.could_go(waits[name]))
        woken.append(name)

    async def scene() -> None:
        lose_primary(state, clock)
        tasks = [asyncio.ensure_future(wait(name)) for name in waits]
        await asyncio.sleep(1)
        room.changed()
        await asyncio.sleep(1)
        assert woken == ["read"]
        for _ in range(3):  # rounds of probes that bring nothing new
            lose_primary(state, clock)
            room.changed()
            await asyncio.sleep(1)
        assert woken == ["read"]
        assert len(room) == 2
        find_primary(state, clock)
        room.changed()
        await asyncio.gather(*tasks)
        assert woken == ["read", "write", "late"]

    run(scene())


def test_who_waits_is_told_that_the_pool_was_closed_for_good(
    room: Room, state: GuardState, clock: ManualClock, run: Run
) -> None:
    async def scene() -> float:
        lose_primary(state, clock)
        call, began = new_call(state, Stake.WRITE), clock.now
        task = asyncio.ensure_future(room.turn(60.0, could_go=lambda: state.could_go(call)))
        await asyncio.sleep(1)
        state.nodes["a"].shut = True
        room.changed()
        await task
        return clock.now - began

    assert run(scene()) == pytest.approx(1)


def test_turn_ends_at_its_deadline(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> float:
        lose_primary(state, clock)
        began = clock.now
        await room.turn(2.0, could_go=never)
        return clock.now - began

    assert run(scene()) == pytest.approx(2.0)
    assert state.waiting == 0


def test_cancelled_wait_leaves_nobody_behind(room: Room, state: GuardState, clock: ManualClock, run: Run) -> None:
    async def scene() -> None:
        lose_primary(state, clock)
        task = asyncio.ensure_future(room.turn(60.0, could_go=never))
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
            for wait in (room.turn(60.0, could_go=never), room.turn(60.0, could_go=never), room.pause(60.0, deaf=True))
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
        task = asyncio.ensure_future(room.turn(float("inf"), could_go=never))
        await asyncio.sleep(1)
        find_primary(state, clock)
        room.changed()
        await task

    run(scene())

    assert len(room) == 0
