"""What one value of the configuration may be: the rules behind the annotations in `dbguard.config.settings`.

A rule reads what a file, a mapping, a DSN or code gives, and returns the value that dbguard works with, or raises
`Unfit`. It also says the same as JSON Schema. pydantic finds rules by the two hooks it documents for annotations, so
nothing here imports it: settings made in code, and a DSN, do without.

No message repeats the value it speaks of: it may be a password in the wrong place.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, get_args

from dbguard.errors import ConfigError

__all__ = [
    "VARIABLE",
    "Choice",
    "Fault",
    "Host",
    "Names",
    "Password",
    "PasswordSource",
    "Path",
    "Rule",
    "Secret",
    "ServerParameters",
    "Substituted",
    "Text",
    "Unfit",
    "is_text",
]

Path = tuple[str | int, ...]
"""Where a value stands: ``("nodes", 2, "port")``."""

Fault = tuple[Path, str]
"""What is wrong, and where, seen from the value or section that was looked at."""

PasswordSource = Callable[[], "str | Awaitable[str]"]
"""A function, plain or async, asked for the password at each connect (tokens of cloud providers)."""

# Patterns are compiled at first use, by re's own cache: that is not a part of importing dbguard.
_HOST = r"[^\s,@/:\[\]?#%\\]{1,253}"
_FUNCTION = r"[^\W\d][\w$]{0,62}(?:\.[^\W\d][\w$]{0,62})?"
VARIABLE: dict[str, Any] = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_]",
}  # what ${NAME} stands for is known only when it is loaded


class Unfit(ConfigError, ValueError):
    """One or several values are not fit. A ValueError too, so that pydantic collects it with the others."""

    def __init__(self, message: str, *, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults or (((), message),)


class Secret:
    """A text that shows itself to nobody: repr, str and format give ``***``. `reveal` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one who opens a connection."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


class Substituted(str):
    """Text that an environment variable or a DSN gave: it has no type of its own, so ``5432`` may be a number."""

    __slots__ = ()


class Rule:
    """What one value may be."""

    __slots__ = ()

    def parse(self, value: Any) -> Any:
        """Return the value to work with. A parsed value parses to itself. Raises `Unfit`."""
        raise NotImplementedError

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Tell pydantic to call `parse` and nothing else."""
        return {"type": "function-plain", "function": {"type": "no-info", "function": self.parse}}

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Give pydantic our own JSON Schema."""
        return self.json_schema()


class Choice(Rule):
    """One of the words of a `typing.Literal`. *optional*: or nothing."""

    __slots__ = ("optional", "words")

    def __init__(self, literal: Any, *, optional: bool = False) -> None:
        self.words: tuple[str, ...] = get_args(literal)
        self.optional = optional

    def parse(self, value: Any) -> str | None:
        """Return the word."""
        if self.optional and (value is None or (isinstance(value, Substituted) and not value)):
            return None
        for word in self.words:
            if isinstance(value, str) and value == word:
                return word
        *others, last = self.words
        raise Unfit(f"should be {', '.join(others)} or {last}" if others else f"should be {last}")

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        nothing = [{"type": "null"}] if self.optional else []
        return {"anyOf": [{"enum": list(self.words)}, *nothing, VARIABLE]}


def is_text(value: str) -> bool:
    """Return whether a server can be sent *value*: no NUL, and nothing that UTF-8 has no bytes for."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


class Text(Rule):
    """A line of text. *optional*: or nothing, which leaves it to the driver and its environment variables."""

    __slots__ = ("empty", "optional")

    def __init__(self, *, optional: bool = False, empty: bool = False) -> None:
        self.optional, self.empty = optional, empty

    def parse(self, value: Any) -> str | None:
        """Return the text."""
        if self.optional and (value is None or (isinstance(value, Substituted) and not value)):
            return None
        if not isinstance(value, str):
            raise Unfit("should be text" + ("; put it in quotes" if isinstance(value, int | float) else ""))
        if not value and not self.empty:
            raise Unfit("is empty")
        if not value.isprintable():
            raise Unfit("holds a line break or another character that cannot be shown")
        return str(value)

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        text = {"type": "string"} | ({} if self.empty else {"minLength": 1})
        return {"anyOf": [text, {"type": "null"}]} if self.optional else text


class Password(Rule):
    """A secret text, a function that gives one (in code only), or nothing."""

    __slots__ = ()

    def parse(self, value: Any) -> Secret | PasswordSource | None:
        """Return the text as a `Secret`, a function as it is."""
        if value is None or (isinstance(value, str) and not value):
            return None
        if isinstance(value, str):
            value = Secret(str(value))
        if isinstance(value, Secret):
            if not is_text(value.reveal()):
                raise Unfit("holds a NUL character, or is not UTF-8")
            return value
        if callable(value):
            return value  # type: ignore[no-any-return]  # what it takes and gives is seen when it is called
        raise Unfit("should be text" + ("; put it in quotes" if isinstance(value, int | float) else ""))

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        return {"type": ["string", "null"]}


class Host(Rule):
    """One host name, IPv4 or IPv6 address, or the directory of a Unix socket (begins with a slash)."""

    __slots__ = ()

    def parse(self, value: Any) -> str:
        """Return the host; an IPv6 address without brackets."""
        if not isinstance(value, str) or not value:
            raise Unfit("should be a host name, an address, or the directory of a socket")
        host = str(value)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if host.startswith("/"):
            if host.isprintable() and "," not in host:
                return host
        elif ":" in host:
            if _is_ipv6(host):
                return host
            raise Unfit("should be one host; the port goes into `port`, an IPv6 address is written in full")
        elif re.fullmatch(_HOST, host) and host.isprintable():
            return host
        raise Unfit("should be one host name, an address, or the directory of a socket, without user or port")

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        return {"type": "string", "minLength": 1}


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return host.isprintable() and not any(c in host for c in " ,@/")


class ServerParameters(Rule):
    """PostgreSQL's own settings for each session, by name."""

    __slots__ = ()

    def parse(self, value: Any) -> dict[str, str]:
        """Return them as text, numbers and booleans in PostgreSQL's spelling."""
        if not isinstance(value, Mapping):
            raise Unfit("should be a mapping of names to values")
        faults: list[Fault] = []
        given: dict[str, str] = {}
        for name, setting in value.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][\w$]*(?:\.[A-Za-z_][\w$]*)*", name, re.ASCII):
                faults.append(((name,) if isinstance(name, str) else (), "is not the name of a server setting"))
            elif isinstance(setting, bool):
                given[str(name)] = "on" if setting else "off"
            elif isinstance(setting, int | float) and abs(setting) < 1e18:
                given[str(name)] = repr(setting)
            elif isinstance(setting, str) and is_text(setting):
                given[str(name)] = str(setting)
            else:
                faults.append(((name,), "should be text, a number, or true or false"))
        if faults:
            raise Unfit(faults[0][1], faults=tuple(faults))
        return given

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        return {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


class Names(Rule):
    """Names of functions, as unquoted SQL writes them, with or without a schema."""

    __slots__ = ()

    def parse(self, value: Any) -> tuple[str, ...]:
        """Return them in lower case, as PostgreSQL folds them."""
        if not isinstance(value, list | tuple):
            raise Unfit("should be a list of function names")
        fit = [isinstance(name, str) and re.fullmatch(_FUNCTION, name) is not None for name in value]
        if not all(fit):
            faults = tuple(
                ((index,), "should be a function's name, such as refresh_totals or billing.total")
                for index, good in enumerate(fit)
                if not good
            )
            raise Unfit(faults[0][1], faults=faults)
        return tuple(str(name).lower() for name in value)

    def json_schema(self) -> dict[str, Any]:
        """Say the same as JSON Schema."""
        return {"type": "array", "items": {"type": "string", "minLength": 1}}
