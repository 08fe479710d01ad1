"""What the tests of the command share: a way to call it, and clusters that nobody breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dbguard.cli import main
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbguard.testing.binaries import Binaries


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def dbguard(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command in this process."""

    def run(*words: str) -> Ran:
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def locked_cluster(binaries: Binaries) -> Iterator[Cluster]:
    """A single node that asks for a password."""
    with Cluster(binaries=binaries, replicas=0, password="s3cret/p@ss") as cluster:
        yield cluster
