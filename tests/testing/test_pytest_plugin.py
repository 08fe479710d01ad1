"""The pytest plugin, as a test suite of somebody else's uses it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from dbguard.testing.toxiproxy_server import server_binary

pytest_plugins = ["pytester"]

PLUGIN = "pytest_dbguard"
INI = """
    [pytest]
    asyncio_mode = auto
    asyncio_default_fixture_loop_scope = function
    addopts = --strict-markers --strict-config
    dbguard_postgres = wheel
    dbguard_replicas = 0
"""


@pytest.fixture(scope="module")
def toxiproxy() -> str:
    """The server; found before pytester gives its runs a home without a cache, where it would be built again."""
    return str(server_binary())


@pytest.fixture
def suite(toxiproxy: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("DBGUARD_TOXIPROXY", toxiproxy)
    pytester.plugins = [PLUGIN]
    pytester.makeini(INI)
    return pytester


@pytest.mark.cluster
def test_clusters_have_the_shape_that_settings_and_markers_give_them_and_faults_heal(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import asyncio
        import pytest

        shared = []

        def names(cluster):
            return [node.name for node in cluster.nodes]

        def test_shared(dbguard_shared_cluster):
            shared.append(dbguard_shared_cluster)
            assert names(dbguard_shared_cluster) == ["a"]
            (version,) = dbguard_shared_cluster.sql("a", "SHOW server_version")[0]
            assert version.startswith("18")

        def test_shared_is_the_same(dbguard_shared_cluster):
            assert shared == [dbguard_shared_cluster]

        @pytest.mark.dbguard(replicas=1, synchronous=True, settings={"work_mem": "5MB"})
        class TestOwn:
            def test_in_plain_code(self, dbguard_cluster, dbguard_faults, dbguard_dsn):
                assert dbguard_cluster is not shared[0]
                assert dbguard_cluster is dbguard_faults.cluster
                assert names(dbguard_cluster) == ["a", "b"]
                assert dbguard_dsn == dbguard_cluster.dsn()
                shown = "SELECT current_setting('work_mem'), current_setting('synchronous_standby_names')"
                assert dbguard_cluster.sql("a", shown) == [("5MB", "ANY 1 (a, b)")]
                with dbguard_faults.failover(after=0):
                    assert dbguard_cluster.primary.name == "b"
                dbguard_cluster.wait_streaming()

            @pytest.mark.dbguard(replicas=0, settings={})
            async def test_in_a_coroutine(self, dbguard_faults):
                assert names(dbguard_faults.cluster) == ["a"]
                async with dbguard_faults.freeze():
                    assert dbguard_faults.cluster.primary.frozen
                await dbguard_faults.kill()

        def test_forgetful(dbguard_faults):
            dbguard_faults.kill()

        @pytest.mark.dbguard(replica=1)
        def test_mistyped(dbguard_cluster):
            pass

        @pytest.mark.dbguard(postgres="windows")
        def test_unknown_postgres(dbguard_cluster):
            pass
        """
    )

    result = suite.runpytest_inprocess("-p", "no:cacheprovider")

    result.assert_outcomes(passed=5, errors=3)
    result.stdout.fnmatch_lines(
        [
            "dbguard_faults: described and never done: kill primary; enter it by `with`*",
            "@pytest.mark.dbguard: unknown replica; it takes replicas, synchronous, postgres, settings, password",
            "the PostgreSQL for dbguard's clusters is 'system' or 'wheel', not 'windows'",
        ]
    )


@pytest.mark.chaos
def test_proxied_cluster_is_the_one_that_faults_and_dsn_are_for(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def test_links(dbguard_faults, dbguard_dsn, dbguard_proxied_cluster):
            link = dbguard_proxied_cluster.link("app", "a")
            assert dbguard_faults.cluster is dbguard_proxied_cluster
            assert f":{link.port}/" in dbguard_dsn
            with dbguard_faults.down("app->primary"):
                assert not link.enabled
            assert link.enabled
        """
    )

    suite.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


@pytest.mark.parametrize("fixture", ["dbguard_faults", "dbguard_shared_cluster"])
def test_without_a_postgresql_the_fixture_fails_and_says_what_to_install(
    fixture: str, suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbguard.testing.binaries._PACKAGE", "a_wheel_that_is_not_installed")
    suite.makepyfile(f"def test_it({fixture}): pass")

    result = suite.runpytest_inprocess("-p", "no:cacheprovider")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["dbguard_*cluster: no PostgreSQL*pip install 'dbguard-postgres[[]test]'*"])
    result.stdout.no_fnmatch_line("*exception*")


@pytest.mark.parametrize("missing", ["toxiproxy", "requests"])
def test_without_the_client_of_toxiproxy_the_fixture_fails_and_says_what_to_install(
    missing: str, suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "toxiproxy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv("DBGUARD_TOXIPROXY", "/a/server/that/is/not/looked/for/before")
    suite.makepyfile("def test_it(dbguard_proxied_cluster): pass")

    result = suite.runpytest_inprocess("-p", "no:cacheprovider")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"dbguard_proxied_cluster: {missing} is not *pip install 'dbguard-postgres[[]test]'"])


def test_without_the_server_of_toxiproxy_the_fixture_fails_and_says_the_way_out(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBGUARD_TOXIPROXY", "/nowhere")
    suite.makepyfile("def test_it(dbguard_proxied_cluster): pass")

    result = suite.runpytest_inprocess("-p", "no:cacheprovider")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["dbguard_proxied_cluster: DBGUARD_TOXIPROXY=/nowhere is not a Toxiproxy server*"])


def test_run_that_does_not_use_the_plugin_imports_nothing_of_dbguard(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        """
        import sys

        def pytest_sessionfinish():
            loaded = {name.partition(".")[0] for name in sys.modules} & {"dbguard", "asyncpg", "toxiproxy", "requests"}
            print("plugin:", "pytest_dbguard" in sys.modules, "loaded:", sorted(loaded))
        """
    )
    suite.makepyfile("def test_it(): pass")

    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-s")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*plugin: True loaded: []*"])


def test_package_registers_the_plugin_and_naming_it_as_well_does_no_harm(suite: pytest.Pytester) -> None:
    assert [(found.name, found.value) for found in metadata.entry_points(group="pytest11", name=PLUGIN)][:1] == [
        (PLUGIN, PLUGIN)
    ], "installed from an older pyproject.toml: `make test` installs it anew"

    for arguments in [], ["-p", PLUGIN]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments, "--markers", "-c", "/dev/null", "--rootdir", str(suite.path)],
            cwd=suite.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.count("@pytest.mark.dbguard(replicas=") == 1, done.stdout + done.stderr
