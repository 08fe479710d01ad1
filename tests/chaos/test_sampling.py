"""What no event tells is looked at while a run goes on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import pytest

from chaos.journal import Journal
from chaos.sampling import watch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaos.clients import Client


class Told:
    """A client that says something else each time, and then that it was asked often enough."""

    def __init__(self, *said: Mapping[str, Any]) -> None:
        self.said = list(said)
        self.enough = asyncio.Event()

    def sample(self) -> Mapping[str, Any]:
        if len(self.said) == 1:
            self.enough.set()
        return self.said.pop(0) if self.said else {}


async def watched(*said: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    client, journal = Told(*said), Journal(0.0)
    task = asyncio.create_task(watch(cast("Client", client), journal, every=0.0))
    await asyncio.wait([task, asyncio.create_task(client.enough.wait())], return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return journal.history().samples


async def test_what_a_client_says_is_kept_with_its_time() -> None:
    samples = await watched({"waiting": 0}, {"waiting": 3, "gate": "failover"}, {})

    assert [{key: value for key, value in sample.items() if key != "at"} for sample in samples] == [
        {"waiting": 0},
        {"waiting": 3, "gate": "failover"},
    ]
    assert 0 < samples[0]["at"] <= samples[1]["at"]


async def test_client_that_says_nothing_leaves_nothing() -> None:
    assert await watched({}, {}, {}) == ()


async def test_client_that_cannot_be_asked_is_no_secret() -> None:
    class Broken:
        def sample(self) -> Mapping[str, Any]:
            raise RuntimeError("no status today")

    with pytest.raises(RuntimeError, match="no status today"):
        await watch(cast("Client", Broken()), Journal(0.0), every=0.0)
