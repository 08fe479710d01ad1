r"""Print what classifying costs, and how right it is on the labelled corpus.

    python tools/bench_classify.py

Times are in microseconds, each the best of many runs; cold ones leave the cache aside. Machines differ, and one machine
differs from minute to minute, so a reference is measured between the statements: the standard library alone, taking the
join below apart by `re.findall(r"\w+|[^\w\s]", join)`. Compare figures of two machines by their quotients.

What pure Python (3.11) reaches, and why. A plain read: 0.3 references and 0.07 more for each 100 characters, since some
25 calls into C are needed for any text, and six passes over it (lower case, operators, words, parentheses). INSERT,
UPDATE and DELETE: 0.2 references, whatever their length. What the fast way does not answer is taken apart into tokens:
1 to 4 references, since `re` needs 0.25 us for each token. The median of the corpus is a little above half a reference,
which is 5 us where the reference takes 9.6 us; it stays under 6 us on machines where the reference takes less than 11 us.
"""

from __future__ import annotations

import json
import re
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
REFERENCE = re.compile(r"\w+|[^\w\s]")
COLD = Classifier()


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

    def call() -> None:
        COLD.classify(sql)
        COLD.cache.clear()

    return best(call, times)


def show(name: str, times: list[tuple[float, float]]) -> None:
    """Print the percentiles of a group of statements, and the median of their quotients by the reference beside them."""
    spent = sorted(time for time, _ in times)
    parts = "  ".join(f"{number}th {spent[len(spent) * number // 100]:6.2f}" for number in (50, 90, 99))
    quotient = median(time / reference for time, reference in times)
    print(f"cold, {name:<22}{len(spent):>5} statements   {parts}   {quotient:.2f} references")


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

    groups: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        times = cold(line["sql"]), best(lambda: REFERENCE.findall(JOIN), 15)
        of = ["all", line["from"]]
        of += ["of 100 to 400 letters"] * (100 <= len(line["sql"]) <= 400)
        of += ["reads"] * (line["label"] == "read")
        for group in of:
            groups.setdefault(group, []).append(times)
    references = [reference for _, reference in groups["all"]]
    print(f"reference, best (median)                {min(references):.2f} us ({median(references):.2f} us)")
    for name in sorted(groups, key=lambda name: -len(groups[name]))[:8]:
        show(name, groups[name])
    classify(JOIN)
    warm = min(repeat(lambda: classify(JOIN), number=10_000, repeat=20)) / 10_000 * 1e6
    print(f"warm, public function                   {warm:.3f} us")
    print(f"cold, join of {len(JOIN)} characters           {cold(JOIN, 300):.2f} us")
    million = 1_000_000
    for name, text in [
        ("plain", f"SELECT '{'x' * million}'"),
        ("E''", f"SELECT E'{'x' * million}'"),
        ("E'' with backslashes", "SELECT E'" + "xxxxxxxx\\n" * (million // 10) + "'"),
        ("dollar", f"SELECT $${'x' * million}$$"),
    ]:
        print(f"cold, 1 MB literal, {name:<22}{cold(text) / 1000:.2f} ms")
    rows = "INSERT INTO t (a, b, c) VALUES " + ", ".join(f"({i}, 'name {i}', 1.5)" for i in range(5_000))  # noqa: S608  # it is not run
    print(f"cold, INSERT of 5,000 rows ({len(rows) // 1000} KB)     {cold(rows):.2f} us")


if __name__ == "__main__":
    main()
