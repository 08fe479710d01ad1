# a script beside the package
"""Write `docs/configuration.md` from the docstrings of `dbguard/config/settings.py`.

python tools/generate_configuration.py
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dbguard.config.section import Section, key_of
from dbguard.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Made by tools/generate_configuration.py from dbguard/config/settings.py; do not edit. -->

A guard takes a DSN, the path of a YAML file, a mapping with the same keys, or `dbguard.config.Settings`:

```python
dbguard.connect("postgresql://app@db1,db2,db3/shop")
dbguard.connect("guard.yaml")
dbguard.connect({"nodes": [{"host": "db1"}, {"host": "db2"}], "connection": {"user": "app", "database": "shop"}})
```

An annotated file: [examples/guard.yaml](../examples/guard.yaml). `dbguard check FILE` says what is wrong with yours, and
`dbguard check FILE --settings` shows all values as they take effect.

- **Times** are `250ms`, `5s`, `30min`, `1h`, `1d`, or a plain number of seconds. **Shares** are `20%` or `0.2`.
- **`${NAME}`** is taken from the environment, **`${NAME:-default}`** has a default; `$${` is a literal `${`. Values are
  filled in after the YAML was read, so a password may hold anything; inside a DSN it is percent-encoded.
- **`dsn:`** may stand in place of `connection:` and `nodes:`, or of a node's `host:` and `port:`.
- Types are strict (`port: "5432"` is an error), unknown and repeated keys are errors, and all errors are told at once,
  each with file, line and column.
- Any argument of `asyncpg.create_pool` (`init`, `setup`, `password` as a function, `ssl`, ...) can be given to
  `dbguard.connect` and `dbguard.Guard` beside the configuration, and wins over it.
- `Guard.wrap` takes the same sections in `config={...}`, but for `nodes`, `dsn` and `connection`: wrapped pools know
  their servers, and of `pool` only `acquire_timeout` has a meaning for them.
"""


def sections(kind: type[Section] = Settings, path: str = "") -> Iterator[tuple[str, type[Section]]]:
    """List all sections, each with its path in the file; the top level first."""
    yield path, kind
    for entry in fields(kind):
        below = f"{path}.{key_of(entry.name)}".lstrip(".")
        listed = get_args(get_args(entry.type)[0]) if get_args(entry.type) else ()  # Annotated[tuple[X, ...], rule]
        if listed and isinstance(listed[0], type) and issubclass(listed[0], Section):
            yield f"{below}[]", listed[0]
        elif isinstance(entry.type, type) and issubclass(entry.type, Section):
            yield from sections(entry.type, below)


def meanings(kind: type[Section]) -> dict[str, str]:
    """Return the docstring that stands below each field, by the field's key."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101  it is the source of a class
    told: dict[str, str] = {}
    for entry, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)  # noqa: S101, PT018  said below
            told[key_of(entry.target.id)] = markdown(str(below.value.value))
    assert list(told) == [key_of(entry.name) for entry in fields(kind)]  # noqa: S101  every field is explained
    return told


def markdown(text: str) -> str:
    """Turn a docstring into one line of Markdown."""
    return re.sub(r"\s+", " ", text).replace("``", "`").replace("|", r"\|").strip()


def _is_section(path: str, key: str, known: set[str]) -> bool:
    below = f"{path}.{key}".lstrip(".")
    return below in known or f"{below}[]" in known


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    known = list(sections())
    tops = {path for path, _ in known}
    for path, kind in known:
        rows = [(key, text) for key, text in meanings(kind).items() if not _is_section(path, key, tops)]
        if not rows:
            continue
        title = f"`{path.removesuffix('[]')}`" if path else "The file as a whole"
        about = markdown(inspect.getdoc(kind) or "")
        if path.endswith("[]"):
            about += " A list; each item has these keys."
        parts.append(f"\n## {title}\n\n{about}\n\n| setting | meaning |\n| --- | --- |\n")
        parts.extend(f"| `{key}` | {text} |\n" for key, text in rows)
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
