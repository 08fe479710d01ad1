"""What a client says on one connection: which statements it runs, prepared before or not, whatever its driver.

Drivers say the same thing in different bytes: as one simple query, or parsed under a name once and run by that name from
then on, or with a COMMIT in one packet with what goes before it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Frontend"]

_NEGOTIATES = {80877103, 80877104}  # SSLRequest and GSSENCRequest: another start follows
_LONGEST_START = 10_000  # bytes, PostgreSQL's own limit; TLS looks like a start that is longer
_BEGINS = re.compile(r"\s*(?:BEGIN|START\s+TRANSACTION)\b", re.IGNORECASE)
_ENDS = re.compile(r"\b(?:COMMIT|ROLLBACK)\s*;?\s*\Z", re.IGNORECASE)
_COPIES_IN = re.compile(r"\s*COPY\b.*\bFROM\s+STDIN\b", re.IGNORECASE | re.DOTALL)


class Frontend:
    """The client's half of one connection, from its first byte on.

    What is encrypted cannot be followed: nothing is told of it.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._started = False
        self._blind = False
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._copying: str | None = None
        self._script: list[str] = []
        self._open = False

    def feed(self, data: bytes) -> Iterator[tuple[str, ...]]:
        """Follow the next bytes; yield, for each statement that they run, its transaction so far, that statement last.

        A COPY of the client's rows counts as run when the last of them is sent: nothing is applied before.
        """
        if self._blind:
            return
        self._rest += data
        while (message := self._next()) is not None:
            if (text := self._run(*message)) is not None:
                yield self._said(text)

    def _next(self) -> tuple[bytes, bytes] | None:
        """Take one message that is there as a whole: its kind, empty for a start, and what it holds."""
        kind = 1 if self._started else 0
        if len(self._rest) < kind + 4:
            return None
        length = int.from_bytes(self._rest[kind : kind + 4])
        if not self._started and length > _LONGEST_START:
            self._blind, self._rest = True, b""
        if len(self._rest) < kind + length or self._blind:
            return None
        message = self._rest[:kind], self._rest[kind + 4 : kind + length]
        self._rest = self._rest[kind + length :]
        return message

    def _run(self, kind: bytes, body: bytes) -> str | None:
        """Return the statement that a message runs, if it runs one."""
        names = body.split(b"\0", 2)
        match kind:
            case b"":
                self._started = int.from_bytes(body[:4]) not in _NEGOTIATES
            case b"Q":
                return self._begun(names[0].decode(errors="replace"))
            case b"P":
                self._statements[names[0]] = names[1].decode(errors="replace")
            case b"B":
                self._portals[names[0]] = self._statements.get(names[1], "")
            case b"E":
                return self._begun(self._portals.get(names[0], ""))
            case b"c":
                copied, self._copying = self._copying, None
                return copied
        return None

    def _begun(self, text: str) -> str | None:
        self._copying = text if _COPIES_IN.match(text) else None
        return text if self._copying is None else None

    def _said(self, text: str) -> tuple[str, ...]:
        if not self._open or _BEGINS.match(text):
            self._script.clear()
        self._script.append(text)
        self._open = (self._open or _BEGINS.match(text) is not None) and not _ENDS.search(text)
        return tuple(self._script)
