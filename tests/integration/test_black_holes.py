"""No call hangs, wherever the hole opens: the cases of `tools/bench_deadlines.py`, a few calls each, with much slack.

How far calls really overstay their deadlines is measured there, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dbguard.testing.proxied import ProxiedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dbguard.testing.binaries import Binaries

TOO_LATE = 8.0
"""Seconds: far above what a machine adds that stands still for some of them, and below every limit of the drivers' own."""


def _tool() -> Any:
    path = Path(__file__).parents[2] / "tools" / "bench_deadlines.py"
    spec = importlib.util.spec_from_file_location("bench_deadlines", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


tool = _tool()


@pytest.fixture(scope="module")
def proxied(binaries: Binaries) -> Iterator[ProxiedCluster]:
    with ProxiedCluster(binaries=binaries, replicas=0) as cluster:
        tool.prepare(cluster)
        yield cluster


@pytest.mark.parametrize("fault", ["replies", "frozen"])
@pytest.mark.parametrize("case", tool.CASES)
async def test_no_call_hangs_in_a_black_hole(proxied: ProxiedCluster, case: str, fault: str) -> None:
    options = argparse.Namespace(calls=3, batch=3, limit=0.5)

    async with asyncio.timeout(100):
        seen = await tool.run_case(proxied, fault, case, options)

    assert len(seen.ends) >= 3
    assert max(end - until for until, end in seen.ends) < TOO_LATE
    assert not seen.outcomes.keys() - tool.TRUTHFUL
