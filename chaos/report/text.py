"""Text that others wrote, made fit to be shown: errors and events hold whatever a server or an application put there.

Escaping is the business of whoever writes the page; this is about what no reader sees: characters that end an XML
document, make a terminal or a browser turn text around, or take a page's width.
"""

from __future__ import annotations

from datetime import timedelta

__all__ = ["counted", "fit", "seconds"]

_STRANGE = "\N{REPLACEMENT CHARACTER}"


def fit(text: object, most: int = 400) -> str:
    """Return text on one line, with at most *most* characters, of which all can be seen."""
    line = " ".join(str(text).split())
    shown = "".join(character if character.isprintable() else _STRANGE for character in line)
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def seconds(length: float) -> str:
    """Write a length of time with the digits that matter: ``0.4 ms``, ``12 ms``, ``1.24 s``, ``12.4 s``, ``0:30:00``."""
    if length < 0.00995:
        return f"{length * 1000:.1f} ms"
    if length < 0.9995:
        return f"{length * 1000:.0f} ms"
    if length < 9.995:
        return f"{length:.2f} s"
    return f"{length:.1f} s" if length < 600 else str(timedelta(seconds=round(length)))


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun: ``1 run``, ``2,000 runs``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
