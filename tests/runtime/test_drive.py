"""The same plan on every runner: asyncio, threads and the simulation make the same history of it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.core.failure import Family
from dbguard.core.outcome import Applied, NotApplied, StillOpen
from dbguard.core.plan import Attempt, Bury, Done, Pause, Resolve, Stopped, recover
from dbguard.core.retry import RetryPolicy, Stake
from dbguard.core.topology import Missed, Reign, Role
from dbguard.errors import DbGuardError, NoPrimary
from dbguard.runtime.colour import now
from dbguard.runtime.drive import drive
from dbguard.testing.clock import ManualClock
from dbguard.testing.fake import (
    DriverError,
    FakeDriver,
    ThreadRunner,
    answered,
    conflict,
    demoted,
    ended_by_us,
    known_state,
    lost,
    new_call,
    refused,
    seen,
    timed_out,
    unsent,
)
from dbguard.testing.simulation.runner import drive_simulated

if TYPE_CHECKING:
    from dbguard.core.failure import Failure
    from dbguard.core.plan import Reply

SCRIPTS: dict[str, tuple[Stake, dict[str, tuple[Any, ...]]]] = {
    "read": (Stake.READ, {"b": (7,)}),
    "read moves on": (Stake.READ, {"b": (lost,), "c": (7,)}),
    "read meets three losses": (Stake.READ, {"b": (lost,), "c": (unsent,), "a": (timed_out, 7)}),
    "write": (Stake.WRITE, {"a": (7,)}),
    "write is lost": (Stake.WRITE, {"a": (lost,)}),
    "write is refused by the server": (Stake.WRITE, {"a": (answered,)}),
    "contention": (Stake.TRANSACTION, {"a": (conflict, conflict, 7)}),
    "contention without end": (Stake.TRANSACTION, {"a": (conflict,) * 9}),
    "drained": (Stake.READ, {"b": (ended_by_us,), "c": (ended_by_us,), "a": (7,)}),
    "write is proved applied": (Stake.WRITE, {"a": (lost,), "token": (Applied(),)}),
    "write is proved not applied": (Stake.WRITE, {"a": (ended_by_us, 7), "token": (NotApplied(Reign("42", 1, "m1")),)}),
    "write stays open": (Stake.WRITE, {"a": (timed_out,), "token": (StillOpen("the primary is gone"),)}),
    "time-outs": (Stake.TRANSACTION, {"a": (timed_out,) * 9}),
}


class Stage:
    """One call, its script, and the history that a runner makes of it."""

    def __init__(self, name: str) -> None:
        stake, endings = SCRIPTS[name]
        self.clock = ManualClock()
        self.state = known_state(self.clock, retry=RetryPolicy(wait=lambda _: 0.125))
        self.driver = FakeDriver(self.clock, takes=0.01)
        self.driver.tokens = "token" in endings
        for node, ends in endings.items():
            if node == "token":
                self.driver.answers.extend(ends)
            else:
                self.driver.on(node, *ends)
        self.threads = ThreadRunner(self.state, self.driver)
        self.call = new_call(self.state, stake)

    def attempt(self, step: Attempt) -> Done | Failure:
        return self.threads._attempt(self.call, step)

    def pause(self, step: Pause) -> Stopped | None:
        self.threads.history.append("gate" if step.gate else "backoff")
        self.clock.advance(0.125)
        return None

    def resolve(self, step: Resolve | Bury) -> Reply:
        self.threads.history.append("resolve")
        return self.driver.resolve(step)

    def on_threads(self) -> Any:
        return self.threads.call(self.call)

    def on_asyncio(self) -> Any:
        async def attempt(step: Attempt) -> Done | Failure:
            await asyncio.sleep(0)
            return self.attempt(step)

        async def pause(step: Pause) -> Stopped | None:
            await asyncio.sleep(0)
            return self.pause(step)

        async def resolve(step: Resolve | Bury) -> Reply:
            await asyncio.sleep(0)
            return self.resolve(step)

        return asyncio.run(drive(recover(self.call, self.state), attempt, pause, resolve))

    def on_simulation(self) -> Any:
        def attempt(step: Attempt) -> Any:
            yield "an event"
            return self.attempt(step)

        def pause(step: Pause) -> Any:
            yield "an event"
            return self.pause(step)

        def resolve(step: Resolve | Bury) -> Any:
            yield "an event"
            return self.resolve(step)

        process = drive_simulated(recover(self.call, self.state), attempt, pause, resolve)
        try:
            while True:
                assert next(process) == "an event"
        except StopIteration as end:
            return end.value


def history(stage: Stage, runner: str) -> list[str]:
    try:
        ended = str(getattr(stage, runner)())
    except (DbGuardError, DriverError) as error:
        ended = " ".join([type(error).__name__, str(error), *getattr(error, "__notes__", ())])
    return [*stage.threads.history, ended, f"{stage.clock.now:.3f}", str(stage.state.counts)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_three_runners_make_the_same_history(script: str) -> None:
    asyncio_, threads, simulation = (
        history(Stage(script), runner) for runner in ("on_asyncio", "on_threads", "on_simulation")
    )

    assert asyncio_ == threads == simulation
    assert len(threads) > 3


def test_cancelled_call_drops_its_plan() -> None:
    stage = Stage("write")
    plan = recover(stage.call, stage.state)

    async def never(step: Attempt) -> Any:
        await asyncio.Event().wait()

    async def scene() -> None:
        task = asyncio.ensure_future(drive(plan, never, never, never))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())

    assert plan.gi_frame is None


# ---------------------------------------------------------------- threads


def test_threads_decide_under_the_lock_and_act_without_it() -> None:
    lock, said = threading.Lock(), []

    def decides() -> Any:
        while True:
            said.append(("decides", lock.locked()))
            yield Attempt("a", 1, "a test") if len(said) < 3 else Pause(1.0, 1, Family.HARD, gate=True)
            if len(said) > 4:
                return

    async def acts(step: Attempt | Pause) -> Any:
        said.append(("acts", lock.locked()))

    now(drive(decides(), acts, acts, acts, lock))

    assert said == [("decides", True), ("acts", False)] * 3
    assert not lock.locked()


def gone(runner: ThreadRunner, clock: ManualClock) -> None:
    now = clock.now + 0.1
    runner.tell(Missed(node="a", at=now, why="refused"), *(seen(name, Role.REPLICA, now) for name in ("b", "c")))


def back(runner: ThreadRunner, clock: ManualClock) -> None:
    now = clock.now + 0.2
    runner.tell(seen("a", Role.PRIMARY, now), *(seen(name, Role.REPLICA, now) for name in ("b", "c")))


def at_once(runner: ThreadRunner, count: int, timeout: float = 30.0) -> tuple[list[threading.Thread], list[Any]]:
    """Let *count* threads make one write each; wait until all are at the gate."""
    ends: list[Any] = []

    def work() -> None:
        call = new_call(runner.state, Stake.WRITE, timeout=timeout)
        try:
            ends.append(runner.call(call))
        except DbGuardError as error:
            ends.append(error)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    while runner.waiting < count:
        threading.Event().wait(0)  # lets the others run
    return threads, ends


def test_threads_wait_at_the_gate_and_go_on_when_the_primary_is_back() -> None:
    clock = ManualClock()
    runner = ThreadRunner(known_state(clock), FakeDriver(clock))
    gone(runner, clock)
    threads, ends = at_once(runner, 8)

    back(runner, clock)
    for _ in range(4):
        runner.advance(0.1)
    for thread in threads:
        thread.join()

    assert ends == [None] * 8
    assert runner.waiting == 0


def test_threads_at_the_gate_end_at_their_deadline() -> None:
    clock = ManualClock()
    runner = ThreadRunner(known_state(clock), FakeDriver(clock))
    gone(runner, clock)
    threads, ends = at_once(runner, 3, timeout=2.0)

    runner.advance(2.0)
    for thread in threads:
        thread.join()

    assert [type(end) for end in ends] == [NoPrimary] * 3


def test_many_threads_share_one_state_without_losing_count() -> None:
    clock = ManualClock()
    runner = ThreadRunner(known_state(clock), FakeDriver(clock))
    runner.driver.on("b", *[refused] * 4)
    reads = [threading.Thread(target=lambda: runner.call(new_call(runner.state))) for _ in range(16)]

    for thread in reads:
        thread.start()
    for thread in reads:
        thread.join()

    assert len(runner.driver.attempts) == 16 + runner.state.counts["repeats"]


def test_demoted_primary_is_waited_out_on_threads() -> None:
    clock = ManualClock()
    runner = ThreadRunner(known_state(clock), FakeDriver(clock))
    runner.driver.on("a", demoted, 7)
    threads, ends = at_once(runner, 1)

    back(runner, clock)
    runner.advance(0.1)
    threads[0].join()

    assert ends == [7]
