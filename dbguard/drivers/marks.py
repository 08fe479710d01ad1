"""The marks of reigns on one node: read with its probes, and added for the present reign.

The mark of a reign does not change, and neither does what a server has for the timeline that it follows, once it has
that. So a probe asks for it only while it can tell something new: after a promotion, or until a mark has been replicated.
The very probe that finds a replica promoted does not ask: its timeline is a higher one, whose mark decides nothing, and
calls wait for that probe's answer. (Three round trips more made their wait half as long again on a busy machine.)
A table that is not there, or must not be read, is no word about the node: its probe is answered all the same, and says
why it has no mark.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from dbguard.core.topology import Instance, Mark, Role
from dbguard.drivers import outcome_sql
from dbguard.drivers.speaker import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbguard.core.topology import Sighting
    from dbguard.drivers.speaker import Speaker

__all__ = ["Marks"]

ASKED_AGAIN = 10.0
"""Seconds after which a server that did not tell its marks is asked for them again: somebody may have mended that."""

_WAYS_OUT = {
    "42P01": "there is no table dbguard.reign: run `dbguard outcome install`",
    "3F000": "there is no schema dbguard: run `dbguard outcome install`",
    "42501": "the role lacks a right to dbguard.reign: run `dbguard outcome install` with its name",
    "55P03": "the table dbguard.reign is locked",
}

_Key = tuple[Instance, Role, int | None]


class Marks:
    """What one node says of the marks of reigns. clock: seconds, monotonic."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[Instance, Role] | None = None
        self._final: tuple[_Key, Mark] | None = None
        self._silent: tuple[_Key, str, float] | None = None

    async def tell(self, con: Speaker, seen: Sighting, timeout: float) -> Sighting:
        """Return what was *seen* over *con*, with the last mark there. Raises what the driver raises of a lost connection."""
        key = (seen.instance, seen.role, seen.timeline)
        last, self._last = self._last, (seen.instance, seen.role)
        if seen.role is Role.PRIMARY and last == (seen.instance, Role.REPLICA):
            return seen
        if self._final is not None and self._final[0] == key:
            return replace(seen, marked=self._final[1])
        if self._silent is not None and self._silent[0] == key and self._clock() < self._silent[2]:
            return replace(seen, unmarked=self._silent[1])
        try:
            await con.execute(outcome_sql.REIGN_BEGIN, timeout=timeout)
            row = await con.fetchrow(outcome_sql.REIGN_READ, timeout=timeout)
            await con.execute("COMMIT", timeout=timeout)
        except Exception as error:
            refused = refusal(error, con)
            if refused is None:
                raise
            await con.execute("ROLLBACK", timeout=timeout)
            why = why_not(refused)
            self._silent = key, why, self._clock() + ASKED_AGAIN
            return replace(seen, unmarked=why)
        marked = Mark(0, "") if row is None else Mark(row["timeline"], row["mark"].hex)
        if marked.timeline == seen.timeline and seen.instance.started is not None:
            self._final = key, marked
        return replace(seen, marked=marked)

    async def add(self, con: Speaker, timeline: int, mark: str, timeout: float) -> str | None:
        """Mark the reign on *timeline*, unless somebody has done so; return why that is not possible, None if it was done.

        Raises what the driver raises of a lost connection.
        """
        try:
            await con.execute(outcome_sql.reign_add(timeline, UUID(mark)), timeout=timeout)
        except Exception as error:
            refused = refusal(error, con)
            if refused is None:
                raise
            return why_not(refused)
        return None


def why_not(sqlstate: str) -> str:
    """Say in a phrase, with the way out, why the table of marks is of no use; nothing of the server's text."""
    return _WAYS_OUT.get(sqlstate, f"dbguard.reign cannot be used ({sqlstate})")
