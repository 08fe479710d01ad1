"""Servers of a test's own on loopback, which leave no connection behind, and a relay before another server.

    async with StreamServer(answer) as server:         # answer(reader, writer) is run for each connection
        ...                                            # connect to server.port

    async with Relay("127.0.0.1", port) as relay:      # what is sent to relay.port goes to *port*, and back
        ...

They do not use `asyncio.start_server`, which loses a connection that was accepted just before the server is closed
(python/cpython#109564), and closes none of the others. Such connections show much later, as unclosed transports, in a
test that never had any.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

__all__ = ["CHUNK", "Relay", "StreamServer", "both", "reset"]

CHUNK = 65_536
"""How much a relay reads at once, in bytes."""


class StreamServer:
    """A port whose every connection is served by *serve*; an asynchronous context manager.

    serve: called with the reader and the writer of each connection, in a task of its own. When it returns, the connection
    is closed as soon as what was written is sent; when it fails or is cut short, the connection is reset. Errors of the
    network and early ends (OSError, EOFError) are the peer's doing; all others are raised when the server closes.
    host, port: where it listens. Default loopback, and any port that is free.
    """

    def __init__(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._serve = serve
        self._address = (host, port)
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: list[asyncio.StreamWriter] = []
        self._failures: list[BaseException] = []

    @property
    def port(self) -> int:
        """The port it listens on, or did."""
        if not self._address[1]:
            raise RuntimeError("the server is not open yet")
        return self._address[1]

    async def __aenter__(self) -> Self:
        self._listening = socket.create_server(self._address)
        self._listening.setblocking(False)
        self._address = self._listening.getsockname()
        asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection that is reset when this server closes, if not before."""
        reader, writer = await asyncio.open_connection(host, port)
        self._keep(writer)
        return reader, writer

    def _keep(self, end: asyncio.StreamWriter) -> None:
        """Note an end to be closed, and forget those that are gone."""
        self._ends = [kept for kept in self._ends if kept.get_extra_info("socket").fileno() >= 0]
        self._ends.append(end)

    def cut(self) -> None:
        """Cut short what is served now: these connections are reset."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Listen no more, reset the connections that are left, and return when they are gone; twice is no mistake.

        Raises an ExceptionGroup of what *serve* raised and should not have.
        """
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in self._ends:
            reset(end)
        await asyncio.gather(*(end.wait_closed() for end in self._ends), return_exceptions=True)
        self._ends.clear()
        failures, self._failures = self._failures, []
        if failures:
            raise BaseExceptionGroup(f"serving port {self.port} failed", failures)

    def _accept(self, listening: socket.socket) -> None:
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it has gone again

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            accepted.close()  # which matters only to a task that was cut before it began
            if not task.cancelled() and (error := task.exception()) is not None:
                self._failures.append(error)

        task = asyncio.create_task(self._run(accepted))
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _run(self, accepted: socket.socket) -> None:
        taken_over = socket.socket(fileno=accepted.detach())
        reader, writer = await asyncio.open_connection(sock=taken_over)
        self._keep(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError):
            reset(writer)
        except BaseException:
            reset(writer)
            raise
        else:
            writer.close()


class Relay(StreamServer):
    """A server that passes on what it is sent to the one at *host* and *port*, and its replies back.

    When either end closes, both are reset. Subclasses say who is let in, and what is passed on.
    at: the host and port where it listens. Default loopback, and any port that is free.
    """

    def __init__(self, host: str, port: int, *, at: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(self.receive, host=at[0], port=at[1])
        self._target = (host, port)

    async def receive(
        self, requests: asyncio.StreamReader, client: asyncio.StreamWriter, *, first: bytes = b""
    ) -> None:
        """Relay a connection, of which *first* was read already. A subclass that only returns has turned it away."""
        replies, server = await self.dial(*self._target)
        try:
            server.write(first)
            await self.converse(requests, client, replies, server)
        finally:
            reset(client)
            reset(server)

    async def converse(
        self,
        requests: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        replies: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        """Pass on what comes from either end, until one of them closes."""
        await both(pass_on(requests, server), pass_on(replies, client), until="FIRST_COMPLETED")


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass on what comes from *source*, until it closes."""
    while data := await source.read(CHUNK):
        target.write(data)
        await target.drain()


async def both(
    *flows: Coroutine[Any, Any, None], until: Literal["FIRST_COMPLETED", "FIRST_EXCEPTION"] = "FIRST_EXCEPTION"
) -> None:
    """Run these until one fails and raise that, or until all have ended, or one has; none goes on afterwards."""
    tasks = [asyncio.create_task(flow) for flow in flows]
    try:
        done, _ = await asyncio.wait(tasks, return_when=until)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def reset(end: asyncio.StreamWriter) -> None:
    """Close a connection at once: what is still to be sent is dropped. One that has ended is left alone."""
    if not end.is_closing() or end.transport.get_write_buffer_size():  # asyncio fails to abort what has been closed
        end.transport.abort()
