"""A simulated cluster: the real core, plans and policies, on a virtual clock, against a model of PostgreSQL.

A *seed* decides everything: which clients call, what breaks and when, how long each message takes. `simulate` runs one
and returns what happened; whatever the seed, no promise may be broken (see `judge`). ``python -m
dbguard.testing.simulation`` runs many, replays one and shrinks what fails.
"""

from __future__ import annotations

from dbguard.testing.simulation.run import Run, simulate
from dbguard.testing.simulation.schedule import Fault, Schedule, draw

__all__ = ["Fault", "Run", "Schedule", "draw", "simulate"]
