"""All effective values, for people to read: secrets are redacted."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dbguard.config.section import Section, key_of
from dbguard.config.values import Secret

if TYPE_CHECKING:
    from dbguard.config.settings import Settings

__all__ = ["describe"]


def describe(settings: Settings) -> dict[str, Any]:
    """Return *settings* as plain data with the keys of the YAML file: times in seconds, ``***`` for what is secret.

    None: left to the driver.
    """
    return {key_of(entry.name): _said(getattr(settings, entry.name)) for entry in fields(settings)}


def _said(value: Any) -> Any:
    if isinstance(value, Section):
        return {key_of(entry.name): _said(getattr(value, entry.name)) for entry in fields(value)}  # type: ignore[arg-type]  # every section is a dataclass
    if isinstance(value, tuple):
        return [_said(item) for item in value]
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, Secret):
        return str(value)
    if callable(value):
        return "*** (a function)"
    return "none" if value == math.inf else value
