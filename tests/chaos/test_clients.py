"""What the clients' errors promise, and how the naive one repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import dbguard
from chaos.clients import CLIENTS, Place, pools
from chaos.clients.pools import NaiveRetry, Plain
from chaos.history import Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

NOT_SENT = pools._NotSentError("no connection")
LOST = asyncpg.ConnectionDoesNotExistError("gone")
TERMINATED = asyncpg.AdminShutdownError("terminated")
REFUSED = asyncpg.UniqueViolationError("there already")


def place(told: list[Mapping[str, Any]] | None = None) -> Place:
    told = [] if told is None else told
    return Place(addresses={"a": ("127.0.0.1", 1)}, size=4, guard={}, tell=told.append)


def unknown() -> dbguard.OutcomeUnknown:
    return dbguard.OutcomeUnknown("?", node="a", phase="sent")


@pytest.mark.parametrize(
    ("client", "error", "outcome"),
    [
        ("guard", unknown(), Outcome.UNKNOWN),
        ("guard", dbguard.ResultLost("!", node="a"), Outcome.RESULT_LOST),
        ("guard", dbguard.NoPrimary("none"), Outcome.FAILED),
        ("guard", REFUSED, Outcome.FAILED),
        ("plain", NOT_SENT, Outcome.FAILED),
        ("plain", REFUSED, Outcome.FAILED),
        ("plain", LOST, Outcome.UNKNOWN),
        ("plain", TERMINATED, Outcome.UNKNOWN),
        ("plain", TimeoutError(), Outcome.UNKNOWN),
        ("plain", ConnectionResetError(), Outcome.UNKNOWN),
        ("plain", asyncpg.InterfaceError("connection is closed"), Outcome.UNKNOWN),
        ("naive-retry", LOST, Outcome.UNKNOWN),
    ],
)
async def test_error_is_read_as_its_library_means_it(client: str, error: Exception, outcome: Outcome) -> None:
    made = CLIENTS[client](place())

    assert made.outcome_of(Kind.APPEND, error) is outcome
    assert made.outcome_of(Kind.READ, error) is Outcome.FAILED


class Script:
    """Stands in for what `Plain` does: raises or returns what comes next; the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: Any) -> None:
        self.steps = list(steps)
        self.calls = 0
        monkeypatch.setattr(Plain, "_do", self.do)
        monkeypatch.setattr(pools, "_PAUSE", 0.001)

    async def do(self, kind: Kind, use: Any, timeout: float) -> Any:
        assert timeout > 0
        self.calls += 1
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step


async def test_naive_client_repeats_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    script, told = Script(monkeypatch, LOST, REFUSED, NOT_SENT, {"node": "a"}), list[Any]()

    assert await NaiveRetry(place(told)).call(Kind.APPEND, "INSERT", (1,), 10) == {"node": "a"}

    assert script.calls == 4
    assert [(event["event"], event["attempt"]) for event in told] == [("CallRepeated", n) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("steps", "outcome"), [((LOST, NOT_SENT), Outcome.UNKNOWN), ((REFUSED, NOT_SENT), Outcome.FAILED)]
)
async def test_naive_client_that_gives_up_says_unknown_if_any_attempt_was(
    steps: tuple[Exception, ...], outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, *steps)
    client = NaiveRetry(place())

    with pytest.raises((asyncpg.PostgresError, pools._NotSentError)) as e:
        await client.call(Kind.APPEND, "INSERT", (1,), 0.2)

    assert client.outcome_of(Kind.APPEND, e.value) is outcome
    assert script.calls > 1
