"""A simulated cluster: dbguard's own core on a virtual clock, against a model of PostgreSQL.

A *seed* decides everything: which clients call, what breaks and when, how long each message takes. `simulate` runs one
and returns what happened; whatever the seed, no promise may be broken (they are listed in `judge`).

    python -m dbguard.testing.simulation --seeds 10000           # many seeds; the first that fails is shrunk
    python -m dbguard.testing.simulation --seed 7 --trace        # one seed, step by step; it replays exactly
    python -m dbguard.testing.simulation --seeds 200 --engine    # the engine that applications run, with cancellations
    python -m dbguard.testing.simulation --defect fence          # one rule switched off: the judge has to notice

Of dbguard there runs what decides: state, topology, gate, breakers, budget, boxes and plans (``core``), and the pauses
(``runtime.backoff``). What is done about a decision is the simulation's own (`guard`, `pool`, `monitor`): as thin as that
of the runtime, and some four times as fast. With ``engine`` the runtime itself runs instead: attempts, flights, waiting
room, monitor, own pools, sessions and transaction functions, on an event loop whose time is a manual clock, over
connections with asyncpg's methods and exceptions (`driver`).

The model: servers with timelines, logs, locks and tokens (`servers`, `replication`, `tokens`), the names that lead to
them (`names`), links that lose and hold back (`network`), and the hand that breaks and mends them (`world`). What breaks,
what is promised, and what the model leaves out is said in ``docs/simulation.md``.
"""

from __future__ import annotations

from dbguard.testing.simulation.run import Run, simulate
from dbguard.testing.simulation.schedule import Fault, Schedule, draw

__all__ = ["Fault", "Run", "Schedule", "draw", "simulate"]
