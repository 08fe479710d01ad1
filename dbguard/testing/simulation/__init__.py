"""A simulated cluster: dbguard's own core on a virtual clock, against a model of PostgreSQL.

A *seed* decides everything: which clients call, what breaks and when, how long each message takes. `simulate` runs one
and returns what happened; whatever the seed, no promise may be broken (they are listed in `judge`).

    python -m dbguard.testing.simulation --seeds 10000           # many seeds; the first that fails is shrunk
    python -m dbguard.testing.simulation --seed 7 --trace        # one seed, step by step; it replays exactly
    python -m dbguard.testing.simulation --seeds 200 --engine    # the engine that applications run, with cancellations
    python -m dbguard.testing.simulation --defect fence          # one rule switched off: the judge has to notice

Of dbguard there runs what decides: state, topology, gate, breakers, budget, boxes and plans (``core``), and the pauses
(``runtime.backoff``). What is done about a decision is the simulation's own (`guard`, `pool`, `monitor`): as thin as that
of the runtime, and some three times as fast. With ``engine`` the runtime itself runs instead: attempts, flights, waiting
room, monitor, own pools, sessions and transaction functions, on an event loop whose time is a manual clock, over
connections with asyncpg's methods and exceptions (`driver`).

The model (`servers`, `network`, `world`): three servers with timelines and logs; asynchronous replication, or synchronous
to any one standby; replicas that lag, pause, lose their upstream and are rewound; crashes, restarts, freezes, orderly
stops and full servers; promotions of the best replica and of one that is behind, with the old primary dead, frozen,
isolated, cut off or alive as ever, and two successors under one timeline number; old primaries that come back claiming
what they were; requests, replies and whole connections that are lost, swallowed or held back; row locks, conflicts,
backends whose client is gone; waits for a standby that an operator cuts short.

What it leaves out, so that no figure from here speaks about it:

* Names that move from one server to another, several servers behind one name, poolers and proxies in between.
* Replicas that stream from the wrong one of two successors with the same timeline number; cascades of replicas.
* Tokens, and the resolving of unknown outcomes; sessions and what is left on them; the classifier: each call says what
  it is.
* Isolation levels, deadlocks and recovery conflicts: a conflict is a chance, not a schedule.
* Time-outs of the server's own, disks that fill or lose what was flushed, keepalives that find nothing.
* Threads: one process, one loop. The clock is exact, so the runtime's sweep and timers cost nothing.

With ``engine``, which of several calls is ended first at the same moment can depend on the order of a set, so a seed
replays closely, not always exactly.
"""

from __future__ import annotations

from dbguard.testing.simulation.run import Run, simulate
from dbguard.testing.simulation.schedule import Fault, Schedule, draw

__all__ = ["Fault", "Run", "Schedule", "draw", "simulate"]
