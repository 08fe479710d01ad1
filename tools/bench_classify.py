"""Print what classifying costs, and how right it is on the labelled corpus.

    python tools/bench_classify.py

Times are the best of many runs, each in microseconds; cold ones leave the cache aside.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from timeit import repeat
from typing import TYPE_CHECKING

from dbguard.core.classify import Classifier, classify

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "corpus"
JOIN = (
    "SELECT o.id, o.total, c.name, c.email, c.phone FROM orders o JOIN customers c ON c.id = o.customer_id "
    "WHERE o.status = $1 AND c.region = $2 ORDER BY o.created_at DESC LIMIT 20"
)


def best(call: Callable[[], object], times: int = 30) -> float:
    """Return the shortest of *times* runs, in microseconds."""
    spent = []
    for _ in range(times):
        began = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - began) / 1000)
    return min(spent)


def cold(sql: str, times: int = 30) -> float:
    """Return what an unknown text costs."""
    classifier = Classifier()

    def call() -> None:
        classifier.classify(sql)
        classifier.cache.clear()

    return best(call, times)


def main() -> None:
    """Print the figures."""
    lines = [json.loads(line) for path in sorted(CORPUS.glob("*.jsonl")) for line in path.read_text().splitlines()]
    classifier = Classifier(read_functions=frozenset({"app_pure"}))
    reads = [line for line in lines if line["label"] == "read"]
    unsafe = [line for line in lines if line["label"] in {"refused", "session", "wrong", "transaction"}]
    false_reads = sum(classifier.classify(line["sql"]).is_read for line in unsafe)
    kept = sum(not classifier.classify(line["sql"]).is_read for line in reads)
    named = [line for line in lines if line["label"] in {"session", "transaction"}]
    right = sum(classifier.classify(line["sql"]).kind.value == line["label"] for line in named)
    print(f"statements                              {len(lines)} ({len(unsafe)} unsafe, {len(reads)} safe reads)")
    print(f"unsafe ones called a read               {false_reads}")
    print(f"reads kept from the replicas            {kept} ({kept / len(reads):.2%})")
    print(f"session and transaction by their names  {right} of {len(named)}")
    times = [cold(line["sql"]) for line in lines]
    print(f"cold, median of the corpus              {median(times):.2f} us")
    for number in (50, 90, 99):
        print(f"  {number}th percentile                       {sorted(times)[len(times) * number // 100]:.2f} us")
    classify(JOIN)
    warm = min(repeat(lambda: classify(JOIN), number=10_000, repeat=20)) / 10_000 * 1e6
    print(f"warm, public function                   {warm:.3f} us")
    print(f"cold, join of {len(JOIN)} characters           {cold(JOIN, 300):.2f} us")
    million = 1_000_000
    for name, text in [
        ("plain", f"SELECT '{'x' * million}'"),
        ("E''", f"SELECT E'{'x' * million}'"),
        ("dollar", f"SELECT $${'x' * million}$$"),
    ]:
        print(f"cold, 1 MB literal, {name:<20}{cold(text) / 1000:.2f} ms")
    rows = "INSERT INTO t (a, b, c) VALUES " + ", ".join(f"({i}, 'name {i}', 1.5)" for i in range(5_000))  # noqa: S608  # it is not run
    print(f"cold, INSERT of 5,000 rows ({len(rows) // 1000} KB)     {cold(rows):.2f} us")


if __name__ == "__main__":
    main()
