"""The ``dbguard`` command."""

from dbguard.cli.parser import main

__all__ = ["main"]
