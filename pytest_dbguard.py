"""The pytest plugin of dbguard: a real PostgreSQL cluster for a test, and faults that heal themselves.

Registered by the package, so that installing ``dbguard-postgres[test]`` is enough. It stands outside the package
`dbguard`, and imports nothing of it before a fixture is asked for: a test run that does not use it pays nothing.

* `dbguard_cluster`: a fresh primary with replicas, to be broken at will.
* `dbguard_proxied_cluster`: the same behind Toxiproxy, so that links can be broken, too.
* `dbguard_shared_cluster`: one for the whole run, for tests that break nothing and clean up after themselves.
* `dbguard_faults`: what the test breaks of its cluster; see `dbguard.testing.faults`.
* `dbguard_dsn`: how the application reaches the test's cluster.

``@pytest.mark.dbguard(replicas=1, synchronous=True)`` gives the cluster of a test, class or module another shape.
What is missing is an error that says what to install, never a skip.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbguard.testing.cluster import Cluster
    from dbguard.testing.faults import Faults
    from dbguard.testing.proxied import ProxiedCluster

MARKER = "dbguard"
SHAPE = ("replicas", "synchronous", "postgres", "settings", "password")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what gives all clusters of a run their shape."""
    which = "'system' or 'wheel' (default: the best that is found)"
    group = parser.getgroup("dbguard", "dbguard: a PostgreSQL cluster for tests")
    group.addoption("--dbguard-postgres", metavar="SOURCE", help=f"which PostgreSQL to run: {which}")
    parser.addini("dbguard_postgres", f"which PostgreSQL to run: {which}", default="")
    parser.addini("dbguard_replicas", "how many replicas a cluster has, 0 to 9", default="2")
    parser.addini("dbguard_synchronous", "commits wait for one replica", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}({', '.join(f'{name}=...' for name in SHAPE)}): the shape of the test's PostgreSQL cluster",
    )


@pytest.fixture
def dbguard_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Give a fresh primary with two streaming replicas, or what the marker ``dbguard`` says; gone after the test."""
    from dbguard.testing.cluster import Cluster  # noqa: PLC0415  paid for by those who ask

    yield from _running(request, lambda: Cluster(**_shape(request)))


@pytest.fixture(scope="session")
def dbguard_shared_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Give one cluster for the whole run, for tests that break nothing; its shape is that of the settings."""
    from dbguard.testing.cluster import Cluster  # noqa: PLC0415  for those who ask for it

    yield from _running(request, lambda: Cluster(**_shape(request)))


@pytest.fixture
def dbguard_proxied_cluster(request: pytest.FixtureRequest) -> Iterator[ProxiedCluster]:
    """Give a fresh cluster behind Toxiproxy. The first one of a machine builds its server, if there is none."""
    from dbguard.testing.proxied import ProxiedCluster  # noqa: PLC0415  for those who ask for it

    def say(line: str) -> None:
        _say(request.config, line)

    yield from _running(request, lambda: ProxiedCluster(**_shape(request), say=say))


@pytest.fixture
def dbguard_faults(request: pytest.FixtureRequest) -> Iterator[Faults]:
    """Give what breaks the test's cluster: `dbguard_proxied_cluster` if the test asks for that, else `dbguard_cluster`."""
    from dbguard.testing.faults import Faults  # noqa: PLC0415  for those who ask for it
    from dbguard.testing.processes import ClusterError  # noqa: PLC0415  for those who ask for it

    cluster = _chosen(request)
    try:
        with Faults(cluster) as faults:
            yield faults
    except ClusterError as e:  # after the test: one that could not be healed, or that was never done
        raise _failed(f"dbguard_faults: {e}") from None


@pytest.fixture
def dbguard_dsn(request: pytest.FixtureRequest) -> str:
    """Give the DSN of all nodes of the test's cluster, chosen as for `dbguard_faults`; through proxies, if it has any."""
    return _chosen(request).dsn()


def _chosen(request: pytest.FixtureRequest) -> Cluster:
    """Return the cluster that a test has asked for."""
    proxied = "dbguard_proxied_cluster" in request.fixturenames
    cluster: Cluster = request.getfixturevalue("dbguard_proxied_cluster" if proxied else "dbguard_cluster")
    return cluster


def _running(request: pytest.FixtureRequest, make: Callable[[], Any]) -> Iterator[Any]:
    """Lend a cluster while it runs. What keeps it from starting is said in a few lines, without a traceback."""
    from dbguard.testing.processes import ClusterError  # noqa: PLC0415  for those who ask for it
    from dbguard.testing.toxiproxy import ToxiproxyError  # noqa: PLC0415  for those who ask for it
    from dbguard.testing.toxiproxy_server import ToxiproxyUnavailable  # noqa: PLC0415  for those who ask for it

    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(make())
        except (ClusterError, ToxiproxyError, ToxiproxyUnavailable) as e:
            raise _failed(f"{request.fixturename}: {e}") from None
        yield cluster


def _shape(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what `Cluster` is to be told: the settings of the run, and over them the markers, the closest last."""
    from dbguard.testing.binaries import find_binaries  # noqa: PLC0415  for those who ask for it

    config = request.config
    replicas = config.getini("dbguard_replicas")
    if not replicas.isdigit():
        raise _failed(f"dbguard_replicas should be a number from 0 to 9, not {replicas!r}")
    shape: dict[str, Any] = {
        "replicas": int(replicas),
        "synchronous": config.getini("dbguard_synchronous"),
        "postgres": config.getoption("--dbguard-postgres") or config.getini("dbguard_postgres") or None,
    }
    for marker in reversed(list(request.node.iter_markers(MARKER))):
        if marker.args or (unknown := marker.kwargs.keys() - SHAPE):
            what = f"unknown {', '.join(sorted(unknown))}" if not marker.args else "arguments need names"
            raise _failed(f"@pytest.mark.{MARKER}: {what}; it takes {', '.join(SHAPE)}")
        shape |= marker.kwargs
    postgres = shape.pop("postgres")
    if postgres not in {None, "system", "wheel"}:
        raise _failed(f"the PostgreSQL for dbguard's clusters is 'system' or 'wheel', not {postgres!r}")
    return shape | {"binaries": find_binaries(postgres)}


def _failed(why: str) -> BaseException:
    """Return a failure that is shown in its own words, without a traceback through pytest and us."""
    return pytest.fail.Exception(why, pytrace=False)


def _say(config: pytest.Config, line: str) -> None:
    """Tell at once what takes long, past pytest's capturing; a worker of pytest-xdist has nowhere to tell it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is not None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            reporter.write_line(f"dbguard: {line}")
