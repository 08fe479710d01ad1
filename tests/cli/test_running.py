from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from dbguard.cli.running import run

if TYPE_CHECKING:
    from collections.abc import Callable


def forgotten(error: Exception) -> Callable[[], object]:
    async def work() -> str:
        asyncio.get_running_loop().create_future().set_exception(error)
        return "done"

    return work


def test_dial_that_was_cancelled_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert run(forgotten(ConnectionError("unexpected connection_lost() call"))()) == "done"

    assert not caplog.records


@pytest.mark.parametrize("error", [ConnectionError("another"), ValueError("unexpected connection_lost() call")])
def test_every_other_forgotten_exception_is_told(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    run(forgotten(error)())

    assert "Future exception was never retrieved" in caplog.text
