"""A report of runs as one HTML page that works offline; see `chaos.report.page`.

Import this where a report is asked for, and before the runs: it brings matplotlib, which takes its time, and that it is
missing is better told before than after.
"""

from __future__ import annotations

try:
    from chaos.report.page import Page, write
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "a report is drawn by matplotlib, which is missing: pip install 'matplotlib>=3.9', or dbguard with its extra chaos",
        name=error.name,
    ) from None

__all__ = ["Page", "write"]
