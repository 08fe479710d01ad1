"""A proxy before one server that breaks a connection at a chosen request: no sooner, no later, and no other one.

    async with Wire("127.0.0.1", port) as wire:
        wire.arm(b"; COMMIT", Break.ACK_CUT)      # the next request that holds these bytes is answered to nobody
        ...
        assert wire.struck == 1

Toxiproxy breaks a link from one moment on; what became of a commit depends on which of its bytes had passed by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from dbguard.testing.frontend import Frontend
from dbguard.testing.relay import CHUNK, Relay, both, reset

__all__ = ["Armed", "Break", "Wire"]


class Break(Enum):
    """What happens to the request that was waited for, and to its connection."""

    REQUEST_CUT = "request cut"
    """It is dropped, and both ends are reset: the server never saw it."""
    ACK_CUT = "acknowledgement cut"
    """The server gets it, and both ends are reset instead of its answer."""
    RESET = "reset both ways"
    """It is passed on, and both ends are reset at once: whether the server acts on it is open."""
    REQUEST_HOLE = "requests swallowed"
    """It and all that follows is swallowed; the connection stays open, and the server waits for more."""
    ACK_HOLE = "replies swallowed"
    """The server gets it, its replies are swallowed, and the connection stays open."""
    LATE = "request held up"
    """The client's end is reset; the server's stays open, and gets the request when `Wire.deliver` says so."""
    ORPHAN = "client gone"
    """The server gets it, the client's end is reset, and the server's stays open and silent."""


Said = Callable[[tuple[str, ...]], bool]
"""Whether it is this statement: the last of those that its transaction has run so far."""


@dataclass(slots=True, eq=False)
class Armed:
    """What waits for its requests. struck: how many it has broken."""

    what: bytes | Said
    how: Break
    skip: int = 0
    then: bytes | None = None
    times: int = 1
    struck: int = 0
    broken: list[_Line] = field(default_factory=list)

    def meets(self, data: bytes, scripts: list[tuple[str, ...]]) -> bool:
        """Whether this request is waited for."""
        what = self.what
        return what in data if isinstance(what, bytes) else any(what(script) for script in scripts)


class _Line:
    """One connection through the wire."""

    def __init__(self, down: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        self.down = down
        self.up = up
        self.deaf = False
        self.mute = False
        self.cut_at_reply = False
        self.frontend = Frontend()
        self.waits_for: Armed | None = None

    def reset(self) -> None:
        for end in (self.down, self.up):
            reset(end)


class Wire(Relay):
    """A proxy before the server at *host* and *port*; an asynchronous context manager.

    struck: how many requests were broken. opened: how many connections were made.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._armed: list[Armed] = []
        self._late: list[tuple[_Line, bytes]] = []
        self._lines: set[_Line] = set()
        self.struck = 0
        self.opened = 0
        self.broken = asyncio.Event()

    def arm(self, what: bytes | Said, how: Break, *, skip: int = 0, then: bytes | None = None, times: int = 1) -> Armed:
        """Break the next request that holds *what*, after *skip* others that do.

        what: bytes that the request holds; or a function that is asked of each statement that a request runs, whatever the
            driver: it is given the texts of its transaction so far, that statement's last.
        then: break not that one, but the next request on the same connection that holds this.
        times: how many requests are broken. Default one.
        """
        self._armed.append(armed := Armed(what, how, skip, then, times))
        return armed

    def disarm(self, what: bytes | Armed | None = None) -> None:
        """Break nothing more; *what*: no request that holds this."""
        self._armed = [armed for armed in self._armed if what is not None and what not in (armed, armed.what)]

    def deliver(self) -> int:
        """Let the server have the requests that were held up; returns how many."""
        late, self._late = self._late, []
        for line, request in late:
            line.up.write(request)
        return len(late)

    def heal(self, armed: Armed | None = None) -> None:
        """End the connections that were broken and left open; break nothing more.

        armed: do so for this alone, and let the server have what it held up.
        """
        self.disarm(armed)
        broken = list(self._lines) if armed is None else armed.broken
        for line, request in [(line, request) for line, request in self._late if armed is not None and line in broken]:
            self._late.remove((line, request))
            line.up.write(request)
            line.up.close()  # once it is sent
            line.deaf = line.mute = False
        for line in broken:
            if line.deaf or line.mute:
                line.reset()

    async def converse(
        self,
        requests: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        replies: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        """Pass on what comes from either end, until it is broken; what is left open then ends with the wire."""
        self.opened += 1
        line = _Line(client, server)
        self._lines.add(line)
        try:
            await both(self._requests(line, requests), self._replies(line, replies))
        finally:
            self._lines.discard(line)

    async def _requests(self, line: _Line, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            armed = None if line.deaf else self._struck(line, data)
            if armed is not None:
                self.struck += 1
                armed.struck += 1
                armed.broken.append(line)
                self._break(line, armed.how, data)
                self.broken.set()
            elif not line.deaf:
                line.up.write(data)
        if not (line.deaf or line.mute):
            line.reset()

    async def _replies(self, line: _Line, replies: asyncio.StreamReader) -> None:
        while data := await replies.read(CHUNK):
            if line.cut_at_reply:
                line.reset()
                return
            if not line.mute:
                line.down.write(data)
        line.reset()

    def _struck(self, line: _Line, data: bytes) -> Armed | None:
        scripts = list(line.frontend.feed(data))
        if (armed := line.waits_for) is not None and armed.then is not None and armed.then in data:
            line.waits_for = None
            return armed
        for armed in self._armed:
            if armed.meets(data, scripts):
                if armed.skip:
                    armed.skip -= 1
                    return None
                armed.times -= 1
                if not armed.times:
                    self._armed.remove(armed)
                if armed.then is None:
                    return armed
                line.waits_for = armed
        return None

    def _break(self, line: _Line, how: Break, data: bytes) -> None:
        match how:
            case Break.REQUEST_CUT:
                line.reset()
            case Break.ACK_CUT:
                line.cut_at_reply = True
                line.up.write(data)
            case Break.RESET:
                line.up.write(data)
                line.reset()
            case Break.REQUEST_HOLE:
                line.deaf = line.mute = True
            case Break.ACK_HOLE:
                line.mute = line.deaf = True
                line.up.write(data)
            case Break.LATE:
                line.deaf = line.mute = True
                self._late.append((line, data))
                reset(line.down)
            case Break.ORPHAN:
                line.deaf = line.mute = True
                line.up.write(data)
                reset(line.down)
