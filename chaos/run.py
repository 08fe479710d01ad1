"""Run scenarios from the command line: ``python -m chaos.run replica-hole``.

Exit code 0: all checkers of all scenarios say ok; 1: something is broken; 2: nothing is broken, but something is
unknown, or a scenario could not be run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import dbguard
from chaos.checkers import State
from chaos.clients import CLIENTS
from chaos.play import cluster_for, play
from chaos.scenario import every, find
from dbguard.testing.cluster import ClusterError
from dbguard.testing.toxiproxy_server import ToxiproxyUnavailable, server_binary

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXIT_CODES", "main"]

EXIT_CODES = {State.OK: 0, State.BROKEN: 1, State.UNKNOWN: 2}


def main(argv: Sequence[str] | None = None) -> int:
    """Run scenarios; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos.run", description="Run scenarios on a cluster behind Toxiproxy."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join(p.stem for p in every())}")
    parser.add_argument("--client", choices=CLIENTS, default="guard", help="who is put to the test; default guard")
    parser.add_argument("--seed", type=int, default=1, help="of the faults' times and the callers' choices; default 1")
    parser.add_argument(
        "--history", type=Path, metavar="FOLDER", help="write the history of each run there while it happens"
    )
    given = parser.parse_args(argv)
    say = partial(print, flush=True)  # also into a pipe
    results = []
    try:
        scenarios = [find(name) for name in given.names or [path.stem for path in every()]]
        binary = server_binary(say=say)
        if given.history:
            given.history.mkdir(parents=True, exist_ok=True)
        for scenario in scenarios:
            path = given.history / f"{scenario.name}-{given.client}-{given.seed}.jsonl" if given.history else None
            say(f"{scenario.name}: {scenario.about}")
            say(f"     ...  starting a primary with {scenario.topology.replicas} replicas behind Toxiproxy")
            with cluster_for(scenario, proxy_binary=binary) as cluster:
                running = play(scenario, cluster, client=given.client, seed=given.seed, path=path, say=say)
                results.append(asyncio.run(running))
            say(f"\n{results[-1]}\n")
    except (dbguard.ConfigError, ToxiproxyUnavailable, ClusterError) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001  Python's own exit code for it would say that a promise was broken
        traceback.print_exc()
        return 2
    return EXIT_CODES[max(result.state for result in results)]


if __name__ == "__main__":
    sys.exit(main())
