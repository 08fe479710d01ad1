"""Rules for numbers, shares and times.

Types are strict: ``"5432"`` is text and no port, ``5432:30`` is no number, ``true`` is not 1. Text from an environment
variable or a DSN (`Substituted`) has no type of its own and may be a number.
"""

from __future__ import annotations

import math
import re
from typing import Any

from dbguard.config.values import VARIABLE, Fault, Rule, Substituted, Unfit

__all__ = ["Duration", "Flag", "Number", "Share", "Span", "Whole"]

YEAR = 365 * 86_400.0
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION = r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(us|ms|s|min|h|d)"
_PERCENT = r"([0-9]{1,6}(?:\.[0-9]{1,9})?) ?%"
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"


def _is_quoted_number(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Substituted) and re.fullmatch(_NUMBER, value) is not None


class Whole(Rule):
    """A whole number from *low* to *high*, or the one *word* that stands for no number."""

    __slots__ = ("high", "low", "word")

    def __init__(self, low: int, high: int, *, word: str | None = None) -> None:
        self.low, self.high, self.word = low, high, word

    def parse(self, value: Any) -> int | str:
        """Return the number, or the word."""
        if isinstance(value, str) and value == self.word:
            return self.word
        if isinstance(value, Substituted) and re.fullmatch(r"[0-9]{1,12}", value):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high:
            return int(value)
        quoted = " (without quotes)" if _is_quoted_number(value) else ""
        word = f", or {self.word}" if self.word else ""
        raise Unfit(f"should be a whole number from {self.low} to {self.high}{quoted}{word}")

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        word = [{"const": self.word}] if self.word else []
        return {"anyOf": [{"type": "integer", "minimum": self.low, "maximum": self.high}, *word, VARIABLE]}


class Flag(Rule):
    """Yes or no."""

    __slots__ = ()

    def parse(self, value: Any) -> bool:
        """Return it."""
        if isinstance(value, Substituted) and value in ("true", "false"):
            return value == "true"
        if isinstance(value, bool):
            return value
        raise Unfit("should be true or false")

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        return {"anyOf": [{"type": "boolean"}, VARIABLE]}


class Number(Rule):
    """A number from *low* to *high*; *above*: *low* itself is too little."""

    __slots__ = ("above", "high", "low")
    kind = "a number"
    pattern: str | None = None

    def __init__(self, low: float, high: float, *, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def parse(self, value: Any) -> float:
        """Return the number as a float."""
        number = self.read(value)
        if number is None or not (self.low < number or (self.low == number and not self.above)) or number > self.high:
            raise Unfit(f"should be {self.kind}, {self.bounds()}{self.hint(value)}")
        return number

    def read(self, value: Any) -> float | None:
        """Return the number that *value* says, within bounds or not; None if it says none."""
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                return None
            return None if math.isnan(number) else number
        if isinstance(value, Substituted) and re.fullmatch(_NUMBER, value):
            return float(value)
        return None

    def bounds(self) -> str:
        """Say the bounds in words."""
        return f"{'above' if self.above else 'from'} {self.show(self.low)} to {self.show(self.high)}"

    def show(self, number: float) -> str:
        """Write a bound as a user would."""
        return f"{number:g}"

    def hint(self, value: Any) -> str:
        """Return a way out for a likely slip."""
        return " (without quotes)" if _is_quoted_number(value) else ""

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        lowest = "exclusiveMinimum" if self.above else "minimum"
        number = {"type": "number", lowest: self.low, "maximum": self.high}
        text = [{"type": "string", "pattern": f"^{self.pattern}$"}] if self.pattern else []
        return {"anyOf": [number, *text, VARIABLE]}


class Share(Number):
    """A share of a whole: ``20%`` or 0.2."""

    __slots__ = ()
    kind = "a share such as 20% or 0.2"
    pattern = _PERCENT

    def __init__(self, low: float = 0.0, high: float = 1.0, *, above: bool = False) -> None:
        super().__init__(low, high, above=above)

    def read(self, value: Any) -> float | None:
        """Read percentages, too."""
        if isinstance(value, str) and (match := re.fullmatch(_PERCENT, value)):
            return float(match[1]) / 100
        return super().read(value)

    def show(self, number: float) -> str:
        """Write a bound as a percentage."""
        return f"{number:.0%}"

    def hint(self, value: Any) -> str:
        """Tell who wrote 20 that 20% may be meant."""
        whole = self.read(value)
        return "; with % if percent is meant" if whole and whole > self.high else super().hint(value)


class Duration(Number):
    """A time: ``250ms``, ``5s``, ``30min``, ``1h``, ``1d``, or a plain number of seconds. *none*: or ``none``, for ever."""

    __slots__ = ("none",)
    kind = "a duration such as 250ms, 5s, 30min or 1h"
    pattern = _DURATION

    def __init__(self, low: float = 0.0, high: float = YEAR, *, above: bool = False, none: bool = False) -> None:
        super().__init__(low, high, above=above)
        self.none = none

    def parse(self, value: Any) -> float:
        """Return seconds; `math.inf` is none."""
        if self.none and (value == "none" or (isinstance(value, float) and value == math.inf)):
            return math.inf
        return super().parse(value)

    def read(self, value: Any) -> float | None:
        """Read units, too."""
        if isinstance(value, str) and (match := re.fullmatch(_DURATION, value)):
            return float(match[1]) * _UNITS[match[2]]
        return super().read(value)

    def bounds(self) -> str:
        """Say the bounds in words."""
        return super().bounds() + (", or none" if self.none else "")

    def show(self, number: float) -> str:
        """Write a bound with its unit."""
        for unit in ("d", "h", "min", "s"):
            if number and number % _UNITS[unit] == 0:
                return f"{number / _UNITS[unit]:g}{unit}"
        return f"{number * 1e3:g}ms" if number else "0"

    def hint(self, value: Any) -> str:
        """Tell who wrote no unit, or m, what to write."""
        if isinstance(value, str) and value.endswith("m"):
            return "; m is not clear, write min or ms"
        return "; a number of seconds stands without quotes" if super().hint(value) else ""

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        choices = super().json_schema()["anyOf"]
        return {"anyOf": [*choices[:2], *([{"const": "none"}] if self.none else []), *choices[2:]]}


class Span(Duration):
    """Two durations, the second not below the first: where something starts, and up to where it grows."""

    __slots__ = ()

    def parse(self, value: Any) -> Any:
        """Return both in seconds."""
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise Unfit("should be a list of two durations, such as [1s, 15s]")
        faults: list[Fault] = []
        both: list[float] = []
        for index, item in enumerate(value):
            try:
                both.append(super().parse(item))
            except Unfit as unfit:
                faults.append(((index,), str(unfit)))
        if not faults and both[0] > both[1]:
            faults.append(((), "the first duration should not be longer than the second"))
        if faults:
            raise Unfit(faults[0][1], faults=tuple(faults))
        return tuple(both)

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        return {"type": "array", "items": super().json_schema(), "minItems": 2, "maxItems": 2}
