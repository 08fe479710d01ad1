"""Plain values against the dataclasses of `dbguard.config.settings`. The one place that imports pydantic.

pydantic knows structure: sections, lists, keys that are missing or unknown. What a single value may be is said by the
rules in the annotations, in their own words; pydantic's, which can hold a value, are not shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from dbguard.config.settings import Settings
from dbguard.config.values import Unfit

if TYPE_CHECKING:
    from dbguard.config.problems import Report

__all__ = ["json_schema", "validate"]

_SETTINGS: TypeAdapter[Settings] = TypeAdapter(Settings)
_UNKNOWN_KEY = {"unexpected_keyword_argument", "invalid_key"}
_STRUCTURE = {
    "missing": "is missing",
    "dataclass_type": "should be a mapping of keys to values",
    "tuple_type": "should be a list",
}


def validate(tree: Any, report: Report) -> Settings | None:
    """Return the settings that *tree* says; None, with everything that is wrong in *report*, if it does not."""
    found: list[Any] = []
    try:
        return _SETTINGS.validate_python(tree)
    except ValidationError as error:
        found += error.errors(include_url=False, include_input=False)
    misspelt = {report.unknown_key(e["loc"][:-1], e["loc"][-1]) for e in found if e["type"] in _UNKNOWN_KEY}
    for problem in found:
        path, kind = problem["loc"], problem["type"]
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, Unfit):
            for at, text in cause.faults:
                report.add((*path, *at), text)
        elif kind not in _UNKNOWN_KEY and not (kind == "missing" and path in misspelt):
            report.add(path, _STRUCTURE.get(kind, "is not as it should be"))
    return None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, with the DSNs that stand in place of other keys."""
    said = _SETTINGS.json_schema()
    dsn = "A DSN, postgresql://user@host1,host2/database, in place of "
    said["properties"]["dsn"] = {"type": "string", "description": f"{dsn}nodes and connection."}
    said["anyOf"] = [{"required": [key]} for key in ("nodes", "dsn")]
    del said["required"]
    node = said["$defs"]["NodeSettings"]
    node["properties"]["dsn"] = {"type": "string", "description": f"{dsn}host and port."}
    node["anyOf"] = [{"required": [key]} for key in ("host", "dsn")]
    del node["required"]
    for key, entry in said["properties"].items():
        if "$ref" in entry:  # a section with nothing under it has its defaults
            section = said["$defs"][entry["$ref"].rpartition("/")[2]]
            choice = [{"$ref": entry["$ref"]}, {"type": "null"}]
            said["properties"][key] = {"anyOf": choice, "description": entry.get("description", section["description"])}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **said}
