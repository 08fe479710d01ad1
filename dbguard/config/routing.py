"""What the classifier cannot know by itself: functions of the application, and rules by a statement's text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from dbguard.config.section import Section
from dbguard.config.values import VARIABLE, Fault, Names, Rule, Text, Unfit

__all__ = ["FunctionNames", "RoutingRule", "RoutingSettings"]

ROLES = ("primary", "replica")


class Pattern(Rule):
    """A regular expression, as Python's `re` reads it."""

    __slots__ = ()

    def parse(self, value: Any) -> str:
        """Return the expression's text."""
        if not isinstance(value, str) or not value:
            raise Unfit("should be a regular expression, such as '^SELECT .* FROM report_'")
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError):
            raise Unfit("is not a regular expression that can be read") from None
        return value

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        return {"anyOf": [{"type": "string", "minLength": 1}, VARIABLE]}


class Groups(Rule):
    """Groups of nodes by name: ``{reporting: [c, d]}``."""

    __slots__ = ()

    def parse(self, value: Any) -> dict[str, tuple[str, ...]]:
        """Return the groups."""
        if not isinstance(value, Mapping):
            raise Unfit("should name groups of nodes, such as {reporting: [c, d]}")
        faults: list[Fault] = []
        for name, nodes in value.items():
            if not isinstance(name, str) or not name or name in ROLES:
                faults.append(((), "a group's name should be a text, and neither primary nor replica"))
            elif not isinstance(nodes, list | tuple) or not nodes or not all(isinstance(node, str) for node in nodes):
                faults.append(((name,), "should be a list of nodes' names"))
        if faults:
            raise Unfit(faults[0][1], faults=tuple(faults))
        return {str(name): tuple(str(node) for node in nodes) for name, nodes in value.items()}

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        names = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        return {"type": "object", "additionalProperties": names}


class Listed(Rule):
    """A list of sections."""

    __slots__ = ()

    def parse(self, value: Any) -> Any:
        """Return them."""
        if not isinstance(value, list | tuple) or not all(isinstance(entry, Section) for entry in value):
            raise Unfit("should be a list of rules")
        return tuple(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Tell pydantic to validate the entries, then to call `parse`."""
        after = {"type": "no-info", "function": self.parse}
        return {"type": "function-after", "function": after, "schema": handler(source)}

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Give the list's own JSON Schema."""
        return handler(schema)  # type: ignore[no-any-return]  # pydantic's handler is not typed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FunctionNames(Section):
    """Functions of the application, by what a statement that calls them is. Names as unquoted SQL writes them."""

    read: Annotated[tuple[str, ...], Names()] = ()
    """Functions that neither write nor touch the session: such a SELECT may go to a replica. Default none."""
    write: Annotated[tuple[str, ...], Names()] = ()
    """Functions that write, whatever the catalogue says. Default none."""

    def _contradictions(self) -> list[Fault]:
        both = set(self.read) & set(self.write)
        return [(("write", self.write.index(name)), "stands under read, too") for name in sorted(both)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RoutingRule(Section):
    """Where statements go whose text a regular expression finds. The first rule that fits counts."""

    match: Annotated[str, Pattern()]
    """A regular expression, searched in the statement's text (letter case counts; ``(?i)`` makes it not). No default."""
    to: Annotated[str, Text()]
    """primary, replica, or the name of a group: reads then go to that group's replicas alone. A definite write goes to
    the primary whatever a rule says. No default."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RoutingSettings(Section):
    """What the classifier cannot know by itself."""

    functions: FunctionNames = field(default_factory=FunctionNames)
    """Functions of the application."""
    groups: Annotated[Mapping[str, tuple[str, ...]], Groups()] = field(default_factory=dict)
    """Groups of nodes, by name, for rules: ``{reporting: [c, d]}``. Default none."""
    rules: Annotated[tuple[RoutingRule, ...], Listed()] = ()
    """Rules by a statement's text. A hint in the text and `using(role=...)` count for more. Default none."""

    def _contradictions(self) -> list[Fault]:
        known = {*ROLES, *self.groups}
        return [
            (("rules", index, "to"), "should be primary, replica, or one of the groups")
            for index, rule in enumerate(self.rules)
            if rule.to not in known
        ]
