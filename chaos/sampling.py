"""What no event tells is looked at every now and then while a run goes on: waiting calls, connections in use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from chaos.clients import Client
    from chaos.journal import Journal

__all__ = ["EVERY", "watch"]

EVERY = 0.1
"""Seconds between two looks: as fine as a page can show a run of 20 s, and too rare to be felt."""


async def watch(client: Client, journal: Journal, every: float = EVERY) -> NoReturn:
    """Keep what *client* says of itself every so many seconds, until cancelled; a client that says nothing leaves nothing."""
    while True:
        if told := client.sample():
            journal.sample({"at": journal.now(), **told})
        await asyncio.sleep(every)
