"""The example of a service with a test of its own, run as its reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVICE, TEST = EXAMPLES / "orders_service.py", EXAMPLES / "test_orders_service.py"


@pytest.mark.cluster
def test_service_of_the_example_passes_its_own_test() -> None:
    assert SERVICE.exists()

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_dbguard", "-p", "no:cacheprovider", "-s", str(TEST)],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "lost: none; applied twice: none" in done.stdout
