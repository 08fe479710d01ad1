"""YAML, mappings and DSNs become validated, frozen settings."""

from dbguard.config.describe import describe
from dbguard.config.load import load, schema
from dbguard.config.settings import Settings
from dbguard.config.values import Secret

__all__ = ["Secret", "Settings", "describe", "load", "schema"]
