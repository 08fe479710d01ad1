"""Rules by a statement's text, and groups of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from dbguard.config import load
from dbguard.errors import ConfigError

NODES = [{"name": "a", "host": "10.0.0.1"}, {"name": "b", "host": "10.0.0.2"}]


def routing(**given: Any) -> Any:
    return load({"nodes": NODES, "routing": given}).routing


def test_rules_and_groups() -> None:
    given = routing(groups={"reporting": ["b"]}, rules=[{"match": "^SELECT .* FROM report_", "to": "reporting"}])

    assert given.groups == {"reporting": ("b",)}
    assert given.rules[0].to == "reporting"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rules": [{"match": "(", "to": "primary"}]}, "is not a regular expression"),
        ({"rules": [{"match": "x", "to": "nobody"}]}, "should be primary, replica, or one of the groups"),
        ({"rules": [{"match": "x"}]}, "to"),
        ({"rules": "x"}, "routing.rules"),
        ({"groups": {"reporting": ["z"]}}, "is not the name of a node"),
        ({"groups": {"primary": ["a"]}}, "neither primary nor replica"),
        ({"groups": {"reporting": []}}, "should be a list of nodes' names"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_place(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        routing(**given)

    assert said in str(refused.value)
