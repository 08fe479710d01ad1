"""YAML, mappings and DSNs become validated, frozen settings."""
