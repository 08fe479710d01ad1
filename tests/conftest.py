"""Fixtures shared by all tests that need a real PostgreSQL.

* `cluster`: a fresh primary with two streaming replicas, to be broken at will; about a second.
* `calm_cluster`: one such for the whole run, for tests that break nothing and clean up after themselves.
* `cluster_factory`: makes clusters of other shapes, `cluster_factory(synchronous=True)`; takes what `Cluster` takes.

They run on the wheel's newest PostgreSQL. Tests marked `every_postgres` run on the system's as well, where there is one.
Whoever asks for any of these fixtures, or for `binaries` below them, is marked `cluster`.

Properties are checked on the same examples in every run, and without a limit of time for one: neither a machine that
stands still for a moment nor chance decides whether the suite passes.

What a test leaves open shows when it is collected as garbage, which may be in any later test. So garbage is collected at
the end of each file, whose last test fails then.
"""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import HealthCheck, settings

from dbguard.testing.binaries import Binaries, BinariesNotFound, Source, find_binaries
from dbguard.testing.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "every_postgres: runs on the wheel's PostgreSQL, and on the system's if it is there"
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "binaries" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("every_postgres"):
        found = ["wheel"]  # must be there: a test that cannot find it fails
        with contextlib.suppress(BinariesNotFound):
            found.append(find_binaries("system").name)
        metafunc.parametrize("binaries", found, indirect=True, scope="session")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # the tests themselves: most of what there is, and looked through in vain at the end of each file


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect garbage before pytest asks, at the end of the teardown, what complained of being left open."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def binaries(request: pytest.FixtureRequest) -> Binaries:
    source: Source = getattr(request, "param", "wheel")
    assert source in get_args(Source)
    return find_binaries(source)


@pytest.fixture
def cluster_factory(binaries: Binaries) -> Iterator[Callable[..., Cluster]]:
    with contextlib.ExitStack() as clusters:

        def make(**kwargs: Any) -> Cluster:
            return clusters.enter_context(Cluster(**({"binaries": binaries} | kwargs)))

        yield make


@pytest.fixture
def cluster(cluster_factory: Callable[..., Cluster]) -> Cluster:
    return cluster_factory()


@pytest.fixture(scope="session")
def calm_cluster(binaries: Binaries) -> Iterator[Cluster]:
    with Cluster(binaries=binaries) as cluster:
        yield cluster
