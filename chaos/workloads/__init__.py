"""What callers do, by name."""

from __future__ import annotations

from chaos.workloads.appending import Append, ListAppend
from chaos.workloads.base import Workload
from chaos.workloads.bulk import Bulk
from chaos.workloads.hot_rows import HotRows

__all__ = ["WORKLOADS", "Append", "Bulk", "HotRows", "ListAppend", "Workload"]

WORKLOADS: dict[str, type[Workload]] = {
    "append": Append,
    "list-append": ListAppend,
    "hot-rows": HotRows,
    "bulk": Bulk,
}
"""The workloads, by their names in a scenario."""
