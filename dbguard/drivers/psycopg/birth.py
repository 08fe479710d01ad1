"""How a connection of the guard's own begins: dialled, asked who its server is, and configured by the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from dbguard.drivers.identity import identify
from dbguard.drivers.probe import ask, sighting
from dbguard.drivers.psycopg.refusals import heard
from dbguard.drivers.psycopg.upkeep import called, in_autocommit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.core.route import Node
    from dbguard.core.topology import Sighting
    from dbguard.drivers.lease import Tag
    from dbguard.drivers.pacing import Pacing
    from dbguard.drivers.psycopg.line import Line

__all__ = ["Birth", "is_full"]


class Birth:
    """What every connection of one pool goes through.

    dial: connects, in autocommit. line: the kind of line it becomes. pacing: hears what became of a dial.
    check: what its server must pass; raises `WrongNode`. configure: the application's function for new connections.
    asks: told of the line while it is asked, to be ended if that takes too long.
    """

    def __init__(
        self,
        node: Node,
        dial: Callable[[], Awaitable[Any]],
        line: type[Line],
        *,
        clock: Callable[[], float],
        pacing: Pacing,
        check: Callable[[Sighting], None],
        configure: Callable[[Any], Any] | None,
        asks: Callable[[Line], None],
    ) -> None:
        self._node = node
        self._dial = dial
        self._line = line
        self._clock = clock
        self._pacing = pacing
        self._check = check
        self._configure = configure
        self._asks = asks

    async def bring(self, tag: Tag) -> Line:
        """Return a new line, whose *tag* then says what its server told. Raises what came in between; it is closed then."""
        line: Any
        line, row, at = await self._reach(tag)
        try:
            seen = sighting(row, self._node.name, at, fresh=True)
            tag.learn(row, seen.instance)
            self._check(seen)
            if self._configure is not None:
                await called(line, self._configure)
                await in_autocommit(line)
            if self._configure is not None or not tag.plain_role:
                tag.identity = await identify(line)
                tag.plain_role = bool(tag.identity.plain)
        except BaseException:
            line.close()
            raise
        return line  # type: ignore[no-any-return]  # what speaks to us there is a line

    async def _reach(self, tag: Tag) -> tuple[Any, Any, float]:
        """Dial and ask; returns the line, what its server said, and when it was asked."""
        line: Any = None
        try:
            raw = await self._dial()
            try:
                line = self._line(raw, tag.heard)
            except BaseException:
                raw.pgconn.finish()
                raise
            self._asks(line)
            at = self._clock()
            row = await ask(line, timeout=None)
        except BaseException as error:
            if line is not None:
                line.close()
            if isinstance(error, Exception):
                self._pacing.refused(error, tag.born, full=is_full(error))
            raise
        self._pacing.dialled()
        return line, row, at


def is_full(error: Exception) -> bool:
    """Say whether a server refused a dial because it takes no more connections."""
    return isinstance(error, psycopg.Error) and heard(error).sqlstate == "53300"
