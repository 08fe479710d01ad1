"""The JSON Schema agrees with the loader."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbguard.config import load, schema
from dbguard.errors import ConfigError

SCHEMA = schema()
KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}  # fmt: skip


def fits(value: Any, rule: dict[str, Any]) -> bool:
    """Judge *value* by the part of JSON Schema that is used; an unused keyword is an error."""
    unknown = set(rule) - {
        "$ref", "$defs", "$schema", "title", "description", "default", "anyOf", "type", "enum", "const", "properties",
        "additionalProperties", "required", "items", "minItems", "maxItems", "minLength", "pattern", "minimum",
        "maximum", "exclusiveMinimum",
    }  # fmt: skip
    assert not unknown
    if "$ref" in rule and not fits(value, SCHEMA["$defs"][rule["$ref"].rpartition("/")[2]]):
        return False
    if "anyOf" in rule and not any(fits(value, choice) for choice in rule["anyOf"]):
        return False
    if "enum" in rule and value not in rule["enum"]:
        return False
    if "const" in rule and value != rule["const"]:
        return False
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(isinstance(value, KINDS[kind]) and (not isinstance(value, bool) or kind == "boolean") for kind in kinds):  # fmt: skip
        return False
    if isinstance(value, str):
        return len(value) >= rule.get("minLength", 0) and re.search(rule.get("pattern", ""), value) is not None
    if isinstance(value, list):
        enough = rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", 99)
        return enough and all(fits(item, rule.get("items", {})) for item in value)
    if isinstance(value, dict):
        known = rule.get("properties", {})
        rest = rule.get("additionalProperties", {})
        return all(key in value for key in rule.get("required", [])) and all(
            fits(item, known[key]) if key in known else rest is not False and fits(item, rest)
            for key, item in value.items()
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rule.get("minimum", value) <= value <= rule.get("maximum", value) and value > rule.get("exclusiveMinimum", value - 1)  # fmt: skip
    return True


GOOD = [
    """
connection: {user: app, password: "${DB_PASSWORD}", database: shop, sslmode: verify-full}
nodes:
  - {name: a, host: 10.0.0.1}
  - {name: b, host: 10.0.0.2, weight: 2}
pool: {min_size: 2, max_size: 20, acquire_timeout: 5s, max_lifetime: 30min, max_idle: 5min}
reads: {from: replicas, consistency: own-writes, fallback: primary, max_lag: 5s, balance: least-busy}
retry: {attempts: 4, budget: 20%}
breaker: {consecutive: 5, open: [1s, 15s]}
failover: {writes: wait, max_wait: 60s}
outcome: {resolve: none}
startup: {wait: 30s, need: any}
mode: enforce
""",
    "dsn: postgresql://db1",
    "nodes: [{dsn: postgresql://db1}, {host: db2, port: '${PORT}'}]",
    "nodes: [{host: db1}]\npool:\ntimeout: none",
    "nodes: [{host: db1}]\npool: {hold: 3}\nprobe: {interval: 0.25}\nrouting: {functions: {read: [f]}}",
    "nodes: [{host: db1}]\nconnection: {server_settings: {jit: false, work_mem: 8MB}, user: }\nmode: '${MODE:-observe}'",
]
BAD = [
    "nodes: []",
    "mode: enforce",
    "nodes: [{port: 1}]",
    "nodes: [{host: db1, port: 99999}]",
    "nodes: [{host: db1, port: '5432'}]",
    "nodes: [{host: db1, prot: 1}]",
    "nodes: [{host: db1}]\npol: {}",
    "nodes: [{host: db1}]\nmode: maybe",
    "nodes: [{host: db1}]\ntimeout: 5m",
    "nodes: [{host: db1}]\ntimeout: -1",
    "nodes: [{host: db1}]\nretry: {budget: 20}",
    "nodes: [{host: db1}]\nbreaker: {open: [1s]}",
    "nodes: [{host: db1}]\nbreaker: {ratio: 0}",
    "nodes: [{host: db1}]\npool: {max_idle: [1]}",
    "nodes: [{host: db1}]\nconnection: {server_settings: {jit: [1]}}",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_loads_fits_the_schema(text: str, tmp_path: Path) -> None:
    file = tmp_path / "guard.yaml"
    file.write_text(text)

    load(file, environ={"DB_PASSWORD": "x", "PORT": "5433"})

    assert fits(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize("text", BAD)
def test_what_does_not_load_does_not_fit(text: str, tmp_path: Path) -> None:
    file = tmp_path / "guard.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError):
        load(file)

    assert not fits(yaml.safe_load(text), SCHEMA)


def test_each_default_fits_the_schema() -> None:
    for section in [SCHEMA, *SCHEMA["$defs"].values()]:
        for entry in section["properties"].values():
            assert "default" not in entry or fits(entry["default"], entry)


def test_every_setting_is_described_and_unknown_ones_are_refused() -> None:
    for section in [SCHEMA, *SCHEMA["$defs"].values()]:
        assert section["additionalProperties"] is False
        assert all(len(entry["description"]) > 10 for entry in section["properties"].values())
