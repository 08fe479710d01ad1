"""What a scenario can break. Each kind of fault is a dataclass whose fields are its YAML keys."""

from __future__ import annotations

from chaos.faults.base import Breakage
from chaos.faults.links import Down, Hole, Link, Toxic

__all__ = ["FAULTS", "Breakage", "Down", "Hole", "Link", "Toxic"]

FAULTS: dict[str, type[Breakage]] = {"toxic": Toxic, "down": Down, "hole": Hole}
"""The faults, by their names in a scenario."""
