"""Take nodes and settings from a YAML file, and show the cluster as the guard sees it.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop python yaml_topology.py [FILE]

FILE is ``topology.yaml`` beside this script if none is named. ``dbguard check FILE`` says what is wrong with one.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import dbguard


async def main(path: Path) -> None:
    """Print each node, then ask a replica and nobody else."""
    async with dbguard.connect(path) as guard:
        for node in guard.status().nodes:
            lag = "" if node.lag is None else f", {node.lag:.1f} s behind"
            print(f"{node.name}: {node.role}{lag}")
        reports = guard.using(role="replica", consistency="eventual", timeout=60)  # long, and not on the primary
        print("asked a replica:", await reports.fetchval("SELECT pg_is_in_recovery()"))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("topology.yaml")))
