"""What a test leaves open is told by its own file, not by one that runs later."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

LEAVES = """
import asyncio

async def test_leaves_a_connection_open():
    async def serve(reader, writer):
        kept = [writer]
        kept.append(kept)  # no count of references ends it
        await reader.read()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.transport.abort()
    server.close()

def test_has_nothing_to_do_with_it():
    pass
"""


def test_the_file_that_leaves_something_open_fails(tmp_path: Path) -> None:
    (tmp_path / "test_first.py").write_text(LEAVES)
    (tmp_path / "test_second.py").write_text("def test_is_innocent():\n    pass\n")
    names = ["-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "no:xdist"]

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *names, "-rEF", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert re.findall(r"^(?:ERROR|FAILED) \S*?(test_\w+\.py::\w+)", run.stdout, re.MULTILINE) == [
        "test_first.py::test_has_nothing_to_do_with_it"
    ], run.stdout
    assert "unclosed transport" in run.stdout
