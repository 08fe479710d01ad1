"""``dbguard outcome resolve``: what became of one write, asked from the shell by the token that a log line has."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dbguard.cli.outcome_look import seconds_of
from dbguard.cli.output import complain
from dbguard.core.outcome import known_token
from dbguard.errors import OutcomeUnknown
from dbguard.guard import Guard

if TYPE_CHECKING:
    import argparse

    from dbguard.cli.output import Output
    from dbguard.config import Settings

__all__ = ["resolve"]

CODES = {"applied": 0, "not applied": 1, "unknown": 2}
"""Exit codes."""

WORDS = {
    "applied": "applied, once: it is in the database, unless somebody has changed it since",
    "not applied": "not applied, and never will be: it may be sent again",
}


async def resolve(output: Output, settings: Settings, arguments: argparse.Namespace) -> int:
    """Ask, as a guard does: on the primary that it accepts. Raises `TokenInvalid`, and what opening a guard raises."""
    token = known_token(arguments.token)
    made = datetime.fromtimestamp(seconds_of(token), UTC).isoformat(sep=" ", timespec="seconds")
    asking = replace(
        settings,
        outcome=replace(settings.outcome, resolve="token-table"),
        startup=replace(settings.startup, need="any", wait=max(5.0, settings.startup.wait)),
    )
    why = None
    async with Guard(asking, min_size=0, max_size=1) as guard:
        try:
            outcome = "applied" if await guard.resolve(str(token), timeout=arguments.timeout) else "not applied"
        except OutcomeUnknown as error:
            outcome, why = "unknown", str(error)
    if arguments.json:
        output.json({"token": str(token), "made": made, "outcome": outcome, "why": why})
    elif why is None:
        output.line(f"the write of {made}: {WORDS[outcome]}")
    else:
        complain(f"the write of {made}: {why}")
    return CODES[outcome]
