"""Claims of a token whose answer comes when another server has taken the place of the one that was asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dbguard.core.outcome import Applied
from dbguard.core.topology import Missed, Role
from dbguard.runtime.resolve import resolve
from dbguard.testing.clock import ManualClock
from dbguard.testing.fake import known_state, seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.state import GuardState


class Registry:
    """A registry that answers each claim with what the next of *answers* returns."""

    def __init__(self, *answers: Callable[[], bool]) -> None:
        self.turn = Turn()
        self.asked = 0
        self._answers = answers

    async def claim(self, token: UUID, own: tuple[int, float | None], within: float) -> bool:
        self.asked += 1
        return self._answers[self.asked - 1]()


class Turn:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def test_answer_is_asked_for_again_where_another_instance_went_on_with_the_reign() -> None:
    clock = ManualClock()
    state: GuardState = known_state(clock, replicas=("b",))
    reign = state.view.reign

    def restarted() -> bool:
        """The old primary answers when another instance has taken its place."""
        now = clock.advance(0.1)
        state.probed(
            [seen("a", Role.PRIMARY, now, started="second"), Missed(node="b", at=now, why="silent")], full=True
        )
        return False

    registry = Registry(restarted, lambda: True)
    engine: Any = SimpleNamespace(state=state, registries={"a": registry}, flights=set(), flush=lambda: None)

    found = await resolve(engine, UUID(int=1), clock() + 5.0, None)

    assert state.view.reign == reign
    assert (found, registry.asked) == (Applied(), 2)
