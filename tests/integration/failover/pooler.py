"""A pooler in session mode, as small as it can be: clients keep their connections while the server behind is replaced.

    async with Pooler("127.0.0.1", port) as pooler:
        ...                       # connect to pooler.port; restart the server; the connections are still open

Between two requests of a client its server may go: the next request is sent to a new session, whose greetings the client
never sees. So a client goes on believing what the old server told it, ``in_hot_standby`` among that. A client with a
request under way is cut off. Clients must not use prepared statements by name, and the server must not ask for a password.
"""

from __future__ import annotations

import asyncio
import contextlib

from dbguard.testing.relay import StreamServer

SSL_REQUEST = 80877103
AGAIN = 0.02  # seconds between two dials of a server that is not there
READY, REFUSED, TERMINATE = b"Z", b"E", b"X"


class Pooler(StreamServer):
    """A context manager; *host* and *port* are the server's. replaced: how often a session was replaced."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(self._pool)
        self._target = (host, port)
        self.replaced = 0

    async def _pool(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        greeting = await _first(requests)
        while int.from_bytes(greeting[4:8], "big") == SSL_REQUEST:
            client.write(b"N")
            greeting = await _first(requests)
        session = await self._session(greeting)
        session.pass_on(client)
        try:
            while True:
                kind, message = await _message(requests)
                if kind == TERMINATE:
                    return
                if session.gone:
                    await session.close()
                    session = await self._session(greeting)
                    await session.greeted()
                    session.pass_on(client)
                    self.replaced += 1
                session.send(message)
        finally:
            await session.close()

    async def _session(self, greeting: bytes) -> _Session:
        while True:
            with contextlib.suppress(OSError):
                replies, up = await self.dial(*self._target)
                up.write(greeting)
                return _Session(replies, up)
            await asyncio.sleep(AGAIN)


class _Session:
    """One connection to the server."""

    def __init__(self, replies: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        self._replies = replies
        self._up = up
        self._busy = True  # until the server says that it is ready
        self._task: asyncio.Task[None] | None = None

    @property
    def gone(self) -> bool:
        return self._task is not None and self._task.done()

    async def greeted(self) -> None:
        """Swallow what a new session is told."""
        while (await _message(self._replies))[0] != READY:
            pass
        self._busy = False

    def pass_on(self, client: asyncio.StreamWriter) -> None:
        self._task = asyncio.create_task(self._pass_on(client))

    async def _pass_on(self, client: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind, message = await _message(self._replies)
                if kind == REFUSED and not self._busy:
                    continue  # the session's last word, to nobody's request
                if kind == READY:
                    self._busy = False
                client.write(message)
        except (OSError, asyncio.IncompleteReadError):
            if self._busy:
                client.transport.abort()

    def send(self, message: bytes) -> None:
        self._busy = True
        self._up.write(message)

    async def close(self) -> None:
        self._up.transport.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def _first(reader: asyncio.StreamReader) -> bytes:
    """Read a message of the kind without a type, as at the beginning of a connection."""
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head, "big") - 4)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
