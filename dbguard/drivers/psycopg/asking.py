"""Asking a server for the code of a refusal whose words are not known, by dialling it once more.

libpq keeps the SQLSTATE of a failed dial to itself, but writes it into the trace of the protocol, if one is asked for:
since version 18 that of every refusal, before that of those that come after the login. So a text is asked for once, and
the code that came *with that text* is remembered: the second dial may be refused for another reason, or not at all.

On systems other than Linux psycopg has no trace, and nothing is learnt.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from typing import TYPE_CHECKING

from psycopg import pq

from dbguard.drivers.psycopg.refusals import LEARNT, unknown

if TYPE_CHECKING:
    import psycopg

__all__ = ["MOST", "is_new", "learn"]

MOST = 256
"""Texts that are remembered. A server has some ten; names of users and databases stand in them."""

_WAITS: dict[int, int] = {pq.PollingStatus.READING: select.POLLIN, pq.PollingStatus.WRITING: select.POLLOUT}

_REFUSAL = re.compile(r'\tErrorResponse\t S "[^"]*" (?:V "[A-Z]+" )?C "([0-9A-Z]{5})" M "(.*)')
"""A refusal in the trace; what others wrote stands behind the code."""


def is_new(error: psycopg.Error) -> bool:
    """Say whether the words with which a server refused a dial are not known, and were not asked for before."""
    text = unknown(error)
    return text is not None and text not in LEARNT and sys.platform == "linux"


def learn(error: psycopg.Error, conninfo: str, *, timeout: float) -> None:
    """Find out which code belongs to the words of *error*, with which a dial by *conninfo* was refused.

    Does nothing if they are known, or were asked for before. Blocks for as long as a dial takes, and for *timeout*
    seconds at most, not counting the look-up of a name. Raises nothing that has to do with the server.
    """
    text = unknown(error)
    if text is None or not is_new(error):
        return
    again, refusals = _dialled(conninfo, time.monotonic() + timeout)
    code = next((code for code, rest in refusals if rest.startswith(f'{text}"')), None)
    if code is not None:
        error.sqlstate = code
    # A server that cannot write its words puts question marks: two texts may look alike.
    if text in again and "??" not in text and len(LEARNT) < MOST:
        LEARNT[text] = code


def _dialled(conninfo: str, until: float) -> tuple[str, list[tuple[str, str]]]:
    """Dial; return libpq's own words for how that ended, and of each refusal the code, and the text with what follows."""
    trace = os.memfd_create("refusals")  # in memory and of this process alone: a password may stand in it
    try:
        dialled = pq.PGconn.connect_start(conninfo.encode())
        try:
            if dialled.status != pq.ConnStatus.BAD:
                dialled.trace(trace)
                _drive(dialled, until)
                dialled.untrace()
            words = dialled.get_error_message()
        finally:
            dialled.finish()
        written = os.pread(trace, os.fstat(trace).st_size, 0).decode(errors="replace")
    finally:
        os.close(trace)
    return words, _REFUSAL.findall(written)


def _drive(dialled: pq.abc.PGconn, until: float) -> None:
    """Let a dial go on until it has succeeded, has failed, or time is up."""
    while (status := dialled.connect_poll()) in _WAITS:
        ready = select.poll()
        ready.register(dialled.socket, _WAITS[status])
        if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
            return
