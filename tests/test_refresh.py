"""When the catalogue is read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dbguard import refresh
from dbguard.refresh import Refresh
from dbguard.texts import Texts
from tests.waiting import until

if TYPE_CHECKING:
    import pytest

    from dbguard.core.catalogue import Catalogue


async def test_it_is_read_once_at_the_start_and_again_after_ddl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "SOON", 0.0)
    texts, readings = Texts(), 0

    async def read() -> Catalogue | None:
        nonlocal readings
        readings += 1
        return None

    reading = Refresh(texts, read)
    await reading.start(wait=True)
    for _ in range(100):
        await asyncio.sleep(0)
    assert readings == 1

    texts.changed()
    await until(lambda: readings == 2)
    await reading.stop()
