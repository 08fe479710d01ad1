"""``${NAME}`` and ``${NAME:-default}`` in the scalars of a file or mapping, after parsing.

The default stands in where the variable is unset or empty. ``$${`` is a literal ``${``. What was put in is not looked
through again. In a DSN it is percent-encoded, so that a password may hold anything; only where the variable is the
whole DSN it is one already, and taken as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from dbguard.config.values import Substituted, Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["substitute"]

_REFERENCE = r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?"


def substitute(text: str, environ: Mapping[str, str], *, dsn: bool = False) -> str:
    """Return *text* with its variables filled in; `Substituted` if there were any.

    dsn: *text* is a DSN.

    Raises `Unfit`, naming the variables that are not set.
    """
    if "${" not in text:
        return text
    encode = dsn and not _is_one_reference(text)
    unset: list[str] = []
    malformed = False

    def fill(match: re.Match[str]) -> str:
        nonlocal malformed
        name, default = match.groups()
        if match[0] == "$${":
            return "${"
        if name is None:
            malformed = True
            return ""
        value = environ.get(name)
        if default is not None:
            value = value or default
        elif value is None:
            unset.append(name)
        value = value or ""
        return quote(value, safe="", errors="surrogateescape") if encode else value

    filled = re.sub(_REFERENCE, fill, text)
    if malformed:
        raise Unfit("holds ${ without a variable: write ${NAME} or ${NAME:-default}, and $${ for a literal ${")
    if unset:
        names = ", ".join(dict.fromkeys(unset))
        raise Unfit(f"not set in the environment: {names} (${{NAME:-default}} gives a default)")
    return Substituted(filled)


def _is_one_reference(text: str) -> bool:
    match = re.fullmatch(_REFERENCE, text.strip())
    return match is not None and match[1] is not None
