"""The fast answer for most reads: a few passes that can only say "plainly a read" or "look closer".

Nothing is taken apart into tokens. What stands in plain strings is cut out; what is left may hold nothing that hides
text (comments, dollar quotes), no operator and no character that is not known, no semicolon but at the end, none of the
words that make a query more than a read, and before each parenthesis only names that are harmless there. Each of these
is asked of the whole text at once, so that the loops run in C.

Strings may be cut out first: whatever would make a quote something else than a string's begins before that quote and
outside of strings, so it is still there to be seen. Quoted identifiers are looked at as if they were not quoted, which
can only make the answer "look closer". Parentheses are counted, not matched, and those in quoted identifiers too: a text
of which that gives a wrong picture is a syntax error wherever it runs.

Calls are found in the text read backwards: a parenthesis is rare and a word is not, so it is the parenthesis that is
looked for, and then the word behind it, which ends before it.

It must never say yes where the long way would not: a test asks both about every text it can get.
"""

from __future__ import annotations

import re
from typing import Final

from dbguard.core.functions import OPERATORS
from dbguard.core.lexer import IN_WORD

__all__ = ["backwards", "plainly_read"]

# A run of operator characters: one of pg_catalog, as it is or with psycopg's doubled percent, or a plain one and a sign.
_SIGNED: Final = {f"{op}{sign}" for op in ("=", "<", ">", "<=", ">=", "<>", "*", "/", "+") for sign in "+-"}
_KNOWN: Final = frozenset(
    op.encode() for op in OPERATORS | {op.replace("%", "%%") for op in OPERATORS} | _SIGNED if op not in {"/*", "--"}
)
_LETTERS: Final = b"0123456789abcdefghijklmnopqrstuvwxyz_" + bytes(range(0x80, 0x100))
_FINE: Final = _LETTERS + b' \t\n\r\f\v"(),.:[]$'
# Leaves blanks in the place of what is fine, so that operators and unknown characters are the words of the result.
_ONLY_OPERATORS: Final = bytes(0x20 if char in _FINE else char for char in range(0x100))

_ODD: Final = "\\"  # a character that is not known

_END_OF_WORD: Final = rf"(?!{IN_WORD})"
_PLACE: Final = re.compile(rf"%(?:\(\w++\))?[sbt]{_END_OF_WORD}", re.ASCII)
_NO_PLACE: Final = re.compile(r"\$(?!\d)", re.ASCII)
# The end of a longer name, or a column behind its table, is none of these words; behind a number (`1.into`) it is.
_MORE: Final = re.compile(
    "|".join(
        [rf"{word}\b(?<![a-z_]{word})(?<![a-z_\"]\.{word})" for word in ("delete", "into", "update")]
        + [r"for\s++(?:update|share|no|key)\b"]
    ),
    re.ASCII,
)
_MAIN_OF_WITH: Final = re.compile(rf"\)(?=\s*+(?:(?:select|values|table){_END_OF_WORD}|\())", re.ASCII)

_BYTE_IN_WORD: Final = r"[\w$\x80-\xff]"


def _behind(words: str) -> str:
    """Return a pattern for blanks and then, read backwards, one of these words."""
    return rf"\s++(?:{'|'.join(word[::-1] for word in words.split())})(?!{_BYTE_IN_WORD})"


# What a parenthesis follows: words that are harmless behind certain others, or else (captured) a name with its schema.
_BEFORE_PAREN: Final = re.compile(
    rf"""\(\s*+ (?:
        (?:{"over"[::-1]}|{"filter"[::-1]}) \s*+ \)
      | {"join"[::-1]} (?: {_behind("left right full inner outer cross natural")} | (?<={re.escape("join (select"[::-1])}) )
      | {"by"[::-1]} {_behind("group order partition")}
      | {"on"[::-1]} (?! {_BYTE_IN_WORD} | \s*+\. ) (?!{_behind("distinct")})
      | {"materialized"[::-1]} (?:{_behind("not")})? {_behind("as")}
      | (?!{"operator"[::-1]}) {_BYTE_IN_WORD}++ {_behind("as with recursive")}
      | ( " | [\w$.\x80-\xff]*+ (?:\s++\.)? )
    )""".encode("latin-1"),
    re.VERBOSE,
)


def backwards(names: frozenset[str], qualified: frozenset[str]) -> frozenset[bytes]:
    """Return the names as `plainly_read` wants them.

    names: what may stand before a parenthesis, in lower case; none of one letter. qualified: the same for names with
    their schema, as `schema.name`.
    """
    return frozenset(" ".join((names - {"on"}) | qualified)[::-1].encode().split()) | {b""}


def plainly_read(sql: str, names: frozenset[bytes], verb: str) -> bool:
    """Whether a text whose first word is *verb* (SELECT, VALUES, TABLE or WITH) is a read beyond doubt.

    names: see `backwards`.
    """
    code = sql.lower() if sql.isascii() else sql.encode("utf-8", "surrogatepass").lower().decode("utf-8", "replace")
    if "'" in code:
        code = _without_strings(code)
    if "$" in code and _NO_PLACE.search(code):
        return False
    if '"' in code and (code.count('"') % 2 or ("&" in code and 'u&"' in code)):
        return False
    raw = code.encode()
    if not _KNOWN.issuperset(raw.translate(_ONLY_OPERATORS).split()):
        code = _PLACE.sub(" $1 ", code.rstrip(" \t\n\r\f\v").removesuffix(";"))
        raw = code.encode()
        if not _KNOWN.issuperset(raw.translate(_ONLY_OPERATORS).split()):
            return False
    if ("for" in code or "into" in code) and _MORE.search(code):
        return False
    if "(" not in code:
        return ")" not in code and verb != "with"
    # Only behind a parenthesis can a second statement begin; INSERT and MERGE have their INTO.
    if ("update" in code or "delete" in code) and _MORE.search(code):
        return False
    if verb == "with":
        main = _MAIN_OF_WITH.search(code)
        if main is None or code.count("(", 0, main.end()) != code.count(")", 0, main.end()):
            return False
    before = _BEFORE_PAREN.findall(raw[::-1])
    return names.issuperset(before) and len(before) == code.count(")")


def _without_strings(code: str) -> str:
    """Return a text with a number for each plain string; if they cannot be told, one that is not understood."""
    pieces = code.split("'")
    inside = len(pieces) % 2 == 0  # the last string is not closed
    hidden = "\\'" in code
    del pieces[1::2]
    if inside or ('"' in code and any(piece.count('"') % 2 for piece in pieces)):  # or the quote stands in a name
        return _ODD
    if hidden and any(piece.endswith("e") for piece in pieces):  # of the E kind, and a backslash before the quote
        return _ODD
    return " 0 ".join(pieces)
