"""dbguard: a resilience layer for PostgreSQL."""

__version__ = "0.1.0"
