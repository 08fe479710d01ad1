"""From what a user gives to settings: read, fill in variables, take DSNs apart, validate, and tell all problems at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

from dbguard.config import dsn
from dbguard.config.environment import substitute
from dbguard.config.problems import Report
from dbguard.config.section import Section, key_of
from dbguard.config.settings import Connection, NodeSettings, Settings
from dbguard.config.values import Secret, Unfit
from dbguard.errors import ConfigError

if TYPE_CHECKING:
    from dbguard.config.values import Path

__all__ = ["load", "schema"]

logger = logging.getLogger("dbguard.config")

_Made = TypeVar("_Made", bound=Section)
_MAX_DEPTH = 10  # as in files
_SECTIONS = {key_of(entry.name) for entry in fields(Settings) if isinstance(entry.type, type)}


def load(
    source: Settings | Mapping[str, Any] | str | os.PathLike[str], *, environ: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings that *source* says.

    source: settings, returned as they are; a mapping with the keys of the YAML file; a DSN, ``postgresql://...``; or
        the path of a file: any `Path`, or text that ends in ``.yaml`` or ``.yml``.
    environ: where ``${NAME}`` in files and mappings is looked up. Default `os.environ`.

    Raises `ConfigError`, which tells every problem at once, and never shows a value.
    """
    environ = os.environ if environ is None else environ
    if isinstance(source, Settings):
        return source
    if isinstance(source, Mapping):
        report = Report()
        return _settle(_plain(source, report), report, environ)
    if isinstance(source, os.PathLike):
        return _from_file(source, environ)
    if isinstance(source, str):
        if dsn.is_dsn(source):
            return _from_dsn(source)
        if source.endswith((".yaml", ".yml")):
            return _from_file(source, environ)
    raise ConfigError(
        "a configuration is settings, a mapping, a DSN (postgresql://user@host1,host2/database), "
        "a Path, or the path of a .yaml or .yml file as text"
    )


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, for editors: ``# yaml-language-server: $schema=...``."""
    from dbguard.config.validate import json_schema  # noqa: PLC0415  # pydantic is for those who have a file or mapping

    return json_schema()


def _from_dsn(text: str) -> Settings:
    """Read a DSN without pydantic and yaml, so that a simple application starts fast."""
    report = Report("DSN")
    settings = None
    if found := _parsed(text, (), report):
        connection = _made(Connection, ("connection",), found.connection, report) or Connection()
        nodes = tuple(NodeSettings(**host) for host in found.hosts)
        if nodes:
            settings = _made(Settings, (), {"nodes": nodes, "connection": connection}, report)
        else:
            report.add((), "names no host: write postgresql://host1,host2/database")
    return _unless_wrong(settings, report)


def _unless_wrong(settings: Settings | None, report: Report) -> Settings:
    """Return *settings*, or raise what is wrong with them."""
    problem = report.error()
    if settings is None or problem:
        raise problem or ConfigError("the configuration cannot be read")
    return settings


def _made(kind: type[_Made], path: Path, said: dict[str, Any], report: Report) -> _Made | None:
    """Return one section of the settings, or None with what is wrong in *report*."""
    try:
        return kind(**said)
    except Unfit as unfit:
        for at, text in unfit.faults:
            report.add((*path, *at), text)
    return None


def _from_file(path: str | os.PathLike[str], environ: Mapping[str, str]) -> Settings:
    """Read a YAML file."""
    from dbguard.config import document  # noqa: PLC0415  # yaml is for those who have a file

    shown = os.fspath(path)
    failure: str | None = None
    text = ""
    try:
        with FilePath(shown).open("rb") as file:
            data = file.read(document.MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
        if len(data) > document.MAX_BYTES:
            failure = f"is larger than {document.MAX_BYTES // 1024} KiB"
    except UnicodeDecodeError as error:
        failure = f"is not UTF-8, at byte {error.start + 1}"
    except IsADirectoryError:
        failure = "is a directory; name the file in it"
    except FileNotFoundError:
        failure = "does not exist"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        failure = f"cannot be read: {getattr(error, 'strerror', None) or 'no such name is possible'}"
    if failure:
        raise ConfigError(f"{shown}: {failure}")
    tree, report = document.read(text, shown)
    if tree is None and report.error() is None:
        report.add((), "is empty: name at least one node, such as `nodes: [{host: 10.0.0.1}]`")
    return _settle(tree, report, environ)


def _plain(value: Any, report: Report, depth: int = 0) -> Any:
    """Copy a mapping's structure as dicts and tuples; everything else is left as it is."""
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth > _MAX_DEPTH:
        report.add((), "is nested too deeply")
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item, report, depth + 1) for key, item in value.items()}
    return tuple(_plain(item, report, depth + 1) for item in value)


def _settle(tree: Any, report: Report, environ: Mapping[str, str]) -> Settings:
    """Turn plain values into settings, or raise everything that is wrong with them."""
    from dbguard.config.validate import validate  # noqa: PLC0415  # pydantic is for those who have a file or mapping

    tree = _filled(tree, (), report, environ)
    if isinstance(tree, dict):
        # A section with nothing under it, or only comments, has its defaults.
        tree = {key: value for key, value in tree.items() if value is not None or key not in _SECTIONS}
        _take_dsns(tree, report)
    return _unless_wrong(validate(tree, report), report)


def _filled(value: Any, path: Path, report: Report, environ: Mapping[str, str]) -> Any:
    """Fill in the variables of every text in *value*."""
    if isinstance(value, dict):
        return {key: _filled(item, (*path, key), report, environ) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_filled(item, (*path, n), report, environ) for n, item in enumerate(value))
    if not isinstance(value, str):
        return value
    is_dsn = path == ("dsn",) or (len(path) == 3 and path[0] == "nodes" and path[2] == "dsn")
    try:
        return substitute(value, environ, dsn=is_dsn)
    except Unfit as unfit:
        report.add(path, str(unfit))
        return None


def _take_dsns(tree: dict[str, Any], report: Report) -> None:
    """Put what DSNs say where it belongs, as if it had been written there; `dsn` itself is taken out of *tree*."""
    given = tree.get("connection", {})
    nodes = tree.get("nodes")
    said: dict[str, tuple[Path, Any]] = {}
    if "dsn" in tree:
        found = _parsed(tree.pop("dsn"), ("dsn",), report)
        if found is None:
            report.settle(("nodes",))
        elif found.hosts and "nodes" in tree:
            report.add(("nodes",), "are named by dsn, too: leave one of them out")
        elif found.hosts:
            tree["nodes"] = tuple(found.hosts)
            report.stand_in(("nodes",), ("dsn",))
        if found:
            said |= {key: (("dsn",), value) for key, value in found.connection.items()}
    if isinstance(nodes, tuple):
        tree["nodes"] = tuple(_node(node, ("nodes", n), said, report) for n, node in enumerate(nodes))
    if said and isinstance(given, dict):
        tree["connection"] = _merged(given, said, report)
    elif said:
        report.add(("connection",), "should be a mapping beside a dsn")


def _node(node: Any, path: Path, said: dict[str, tuple[Path, Any]], report: Report) -> Any:
    """Return *node* with its DSN taken apart; what that says about the login goes into *said*."""
    if not isinstance(node, dict) or "dsn" not in node:
        return node
    rest = {key: value for key, value in node.items() if key != "dsn"}
    at = (*path, "dsn")
    found = _parsed(node["dsn"], at, report)
    if found is None or len(found.hosts) != 1:
        if found:
            report.add(at, "should name one host: each node is one")
        report.settle((*path, "host"))
        return rest
    for key, value in found.connection.items():
        before, other = said.setdefault(key, (at, value))
        if other != value:
            report.add(
                at,
                f"has another {key} than {'dsn' if len(before) == 1 else f'nodes[{before[1]}].dsn'}: all nodes share one login",
            )
    for key in found.hosts[0]:
        if key in rest:
            report.add((*path, key), "is said by this node's dsn, too: leave one of them out")
    return found.hosts[0] | rest


def _parsed(text: Any, path: Path, report: Report) -> dsn.Dsn | None:
    """Read a DSN that stands at *path*."""
    if isinstance(text, Secret):
        text = text.reveal()
    if not isinstance(text, str):
        report.add(path, "should be a DSN: postgresql://user@host1,host2/database")
        return None
    try:
        found = dsn.parse(text)
    except Unfit as unfit:
        report.add(path, *(problem for _, problem in unfit.faults))
        return None
    _tell_ignored(found)
    return found


def _merged(given: dict[str, Any], said: dict[str, tuple[Path, Any]], report: Report) -> dict[str, Any]:
    """Return the section `connection` with what the DSNs say added to it."""
    merged = dict(given)
    for key, (at, value) in said.items():
        mine = given.get(key)
        if mine is None:
            merged[key] = value
            report.stand_in(("connection", key), at)
        elif key == "server_settings" and isinstance(mine, dict) and not set(mine) & set(value):
            merged[key] = {**value, **mine}
        else:
            report.add(("connection", key), "is said by the dsn, too: leave one of them out")
    return merged


def _tell_ignored(found: dsn.Dsn) -> None:
    for name in found.ignored:
        logger.info("%s in the DSN has no effect: %s", name, dsn.IGNORED[name])
