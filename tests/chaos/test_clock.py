"""The timeline's time stands still while something is broken or healed."""

from __future__ import annotations

import asyncio
import time

from chaos.clock import Clock


async def test_what_is_due_while_it_stands_comes_later_by_as_much() -> None:
    now = 10.0
    clock = Clock(lambda: now)

    with clock.standing():
        now = 12.0
        assert clock.now() == 10.0
        with clock.standing():
            now = 13.0
        assert clock.now() == 10.0
        now = 14.0
    assert clock.now() == 10.0
    now = 14.5
    assert clock.now() == 10.5


async def test_nothing_comes_while_it_stands_and_what_is_due_comes_in_its_order() -> None:
    clock, came = Clock(time.monotonic), list[str]()
    start = clock.now()

    async def come(name: str, moment: float) -> None:
        await clock.until(start + moment)
        came.append(name)

    tasks = [asyncio.create_task(come("second", 0.02)), asyncio.create_task(come("first", 0.01))]
    with clock.standing():
        _, late = await asyncio.wait(tasks, timeout=0.1)
        assert len(late) == 2
    await asyncio.gather(*tasks)

    assert came == ["first", "second"]
    assert clock.now() >= start + 0.02
