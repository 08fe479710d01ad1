"""What all sections of the settings have in common: their fields' rules hold, whichever way they are made."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from dbguard.config.values import Unfit

if TYPE_CHECKING:
    from dbguard.config.values import Fault

__all__ = ["Section", "key_of"]


def key_of(name: str) -> str:
    """Return the YAML key of the field *name*."""
    return name.removesuffix("_")


class Section:
    """Applies the rules of a dataclass's fields whenever one is made. Raises `Unfit`, a ConfigError, with all faults.

    Comparison, hash and repr stand here once, for all sections: generated for each, they cost 3 ms of each import.
    """

    __slots__ = ()
    # Read by pydantic, where a file or a mapping is loaded.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "alias_generator": key_of,
        "use_attribute_docstrings": True,
    }

    def __post_init__(self) -> None:
        faults: list[Fault] = []
        for entry in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, entry.name)
            kind: Any = entry.type
            try:
                for rule in getattr(kind, "__metadata__", ()):
                    value = rule.parse(value)
            except Unfit as unfit:
                faults += [((key_of(entry.name), *at), text) for at, text in unfit.faults]
            if isinstance(kind, type) and not isinstance(value, kind):
                faults.append(((key_of(entry.name),), f"should be {kind.__name__}"))
            object.__setattr__(self, entry.name, value)
        faults = faults or self._contradictions()
        if faults:
            said = "; ".join(f"{'.'.join(map(str, at))}: {text}" for at, text in faults)
            raise Unfit(f"{type(self).__name__}: {said}", faults=tuple(faults))

    def _compared(self) -> list[Any]:
        return [getattr(self, entry.name) for entry in fields(self)]  # type: ignore[arg-type]  # as above

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(tuple(value for value in self._compared() if not isinstance(value, dict)))

    def __repr__(self) -> str:
        shown = [entry.name for entry in fields(self) if entry.repr]  # type: ignore[arg-type]  # as above
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def _contradictions(self) -> list[Fault]:
        """Return what is wrong between fields that are each fit."""
        return []
