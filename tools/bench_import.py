"""What `import dbguard` adds to `import asyncio, asyncpg`: the median of nine fresh interpreters, side by side.

python tools/bench_import.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

RUNS = 9
MEASURE = """
import time
begin = time.perf_counter(); import asyncio, asyncpg; base = time.perf_counter(); import dbguard
print(base - begin, time.perf_counter() - base)
"""


def main() -> None:
    """Measure and print."""
    # Bytecode is written once, before it counts.
    subprocess.run([sys.executable, "-c", "import dbguard"], check=True)
    runs = [
        tuple(
            map(float, subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True).stdout.split())
        )
        for _ in range(RUNS)
    ]
    base, added = (statistics.median(run[i] for run in runs) * 1e3 for i in range(2))
    print(f"import asyncio, asyncpg: {base:.0f} ms; import dbguard adds {added:.0f} ms (median of {RUNS})")


if __name__ == "__main__":
    main()
