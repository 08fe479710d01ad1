"""PostgreSQL's lexical language, as far as telling reads from writes needs it.

One regular expression eats a text token by token, in time linear in its length: whatever it has consumed it never gives
back (possessive quantifiers), and whatever is not closed swallows the rest of the text. The rules:

* Blanks and comments between tokens are dropped; comments nest (`NESTING` deep; deeper ones are not understood).
* Strings (plain, E, B, X, N, U&, dollar-quoted) and quoted identifiers are one token each; those of the E kind go on in
  the next segment over a line break with their backslashes.
* Operators are the longest run of operator characters, cut before `--` and `/*`, as in the server. Only those of
  pg_catalog are known: a user's operator runs a user's function.
* psycopg's `%s`, `%b`, `%t`, `%(name)s` and `%%` are taken as psycopg means them, unless a parenthesis follows.
* A letter behind a digit begins a word: servers before 15 read `1into` as two, newer ones refuse it.
* Anything else is *odd*, an empty token. A text with an odd token is not understood, so it is never a read.

Plain strings are read with `standard_conforming_strings` on, and the text as the server's encoding has it: where either
does not hold for a connection, its texts must not be routed by this module.
"""

from __future__ import annotations

import re
from typing import Final

from dbguard.core.functions import OPERATORS

__all__ = ["HEAD", "IN_WORD", "NESTING", "line_of", "lower", "spelled", "tokens", "written"]

NESTING: Final = 8
"""How deep comments may nest."""

# Every character that is not ASCII is a letter. Written as what it is not: such a class compiles 50 times faster.
_NO_LETTER: Final = r"\x00-@\[-^`{-\x7f"
_LETTER: Final = rf"[^{_NO_LETTER}]"
IN_WORD: Final = r"[^\x00-#%-/:-@\[-^`{-\x7f]"
"""What a word consists of behind its first letter."""
_OP: Final = r"[-+*/<>=~!@#%^&|`?]"


def _comment(depth: int) -> str:
    nested = rf"|{_comment(depth - 1)}" if depth else ""
    return rf"/\*(?:[^*/]++|\*(?!/)|/(?!\*){nested})*+\*/"


BLANK: Final = rf"\s*+(?:(?:--[^\n\r]*+|{_comment(NESTING)})\s*+)*+"
"""What may stand between two tokens."""

_STRING: Final = r"'[^']*+(?:''[^']*+)*+'"
_BREAK: Final = r"[ \t\f\v]*+(?:--[^\n\r]*+)?[\n\r](?:\s++|--[^\n\r]*+[\n\r])*+"
# The first form is the second one's usual case, and ten times as fast: no quote inside, so the backslashes do not matter.
_ESCAPED: Final = r"(?:'[^']*+(?<!\\)'(?!')|'[^'\\]*+(?:(?:\\.|'')[^'\\]*+)*+')"
_E_STRING: Final = rf"[eE]{_ESCAPED}(?:{_BREAK}{_ESCAPED})*+"
_QUOTED: Final = r'"[^"]*+(?:""[^"]*+)*+"'
_NUMBER: Final = r"0[xX][0-9a-fA-F_]++|0[oO][0-7_]++|0[bB][01_]++|\d[\d_]*+(?:\.(?!\.)[\d_]*+)?(?:[eE][-+]?\d[\d_]*+)?"
_PLACE: Final = rf"\$\d++|%(?:\(\w++\))?[sSbBtT](?!{IN_WORD}|\s*+(?:\(|--|/\*))"
_PAREN_PLACE: Final = r"%(?:\(\w++\))?[sSbBtT](?![\w$])"
_RUN: Final = rf"(?:(?!--|/\*|{_PAREN_PLACE}){_OP})++"
_END: Final = rf"(?!(?!--|/\*|{_PAREN_PLACE}){_OP})"


def _one_of(operators: frozenset[str]) -> str:
    """Return a pattern for the operators that need no look-up: the longest first, psycopg's doubled percent included."""
    known = {op.replace("%", "%%") for op in operators} | operators
    return "|".join(re.escape(op) for op in sorted(known, key=lambda op: (-len(op), op)))


# A run of the plain characters ends before trailing signs: `=-1` is `=` and `-`. One with any other character keeps them.
_SIGNED: Final = rf"(?:<=|>=|<>|=>|[-+*/<>=])(?=[-+]{{1,9}}+{_END})"
_OPERATOR: Final = rf"(?:=|<>|<=|>=|[-+*/<>]|\|\|){_END}|(?:{_one_of(OPERATORS)}){_END}|{_SIGNED}"
_QUALIFIED_OPERATOR: Final = (
    rf"[oO][pP][eE][rR][aA][tT][oO][rR]\s*+\(\s*+[pP][gG]_[cC][aA][tT][aA][lL][oO][gG]\s*+\.\s*+{_RUN}\s*+\)"
)
_ODD: Final = rf"(?:[uU]&\"|[eE]'|['\"]|/\*)(?s:.*)|{_RUN}|(?s:.)"
_WORD: Final = rf"[^{_NO_LETTER}eEuU]{IN_WORD}*+|[eE](?!'){IN_WORD}*+|[uU](?!&\"){IN_WORD}*+"

_TOKEN: Final = re.compile(
    rf"(?:({_QUALIFIED_OPERATOR}|{_WORD}|[(),;.\[\]]|{_PLACE}|{_NUMBER}|{_OPERATOR}|::|:=?"
    rf"|{_QUOTED}|{_STRING}|{_E_STRING})|{_ODD}){BLANK}",
    re.ASCII | re.DOTALL,
)
_BLANK: Final = re.compile(BLANK, re.ASCII)
_DOLLAR: Final = re.compile(rf"\$(?:{_LETTER}[^\x00-/:-@\[-^`{{-\x7f]*+)?\$", re.ASCII)
_BEFORE_DOLLAR: Final = re.compile(
    rf"(?:{_E_STRING}|{_STRING}|{_QUOTED}|{_WORD}|--[^\n\r]*+|{_comment(NESTING)}|[uU](?=&)|/(?!\*)|[\x00-!#%&(-.0-@\[-^`{{-\x7f])*+",
    re.ASCII | re.DOTALL,
)

HEAD: Final = re.compile(rf"{BLANK}(?:\({BLANK})*+({_WORD})?", re.ASCII)
"""The first word of a text, behind comments and parentheses."""

_UNQUOTED: Final = re.compile(r"[^\x00-^`{-\x7f][^\x00-#%-/:-^`{-\x7f]*\Z")


def spelled(name: str) -> str:
    """Return a name of the catalogue's in the one spelling that is compared: quoted only where it has to be.

    Key words are not quoted, whatever the server asks for.
    """
    return name if _UNQUOTED.match(name) else '"' + name.replace('"', '""') + '"'


def tokens(sql: str) -> list[str]:
    """Return the tokens of a text in lower case (ASCII letters alone, as the server does it); odd ones are empty.

    Quoted identifiers and strings are lowered too: whoever needs them as written asks `written`, whose list has the
    same length.
    """
    if "$" in sql and _DOLLAR.search(sql):
        sql = _without_dollar_quotes(sql)
    low = lower(sql)
    return _TOKEN.findall(low, _BLANK.match(low).end())  # type: ignore[union-attr]  # the pattern matches nothing too


def written(sql: str) -> list[str]:
    """Return the tokens as they are written, one for one with `tokens`."""
    if "$" in sql and _DOLLAR.search(sql):
        sql = _without_dollar_quotes(sql)
    return _TOKEN.findall(sql, _BLANK.match(sql).end())  # type: ignore[union-attr]  # the pattern matches nothing too


def line_of(sql: str, index: int) -> int:
    """Return the line, counted from 1, on which the token of this index stands."""
    if "\n" not in sql:
        return 1
    if "$" in sql and _DOLLAR.search(sql):
        sql = _without_dollar_quotes(sql)
    for number, match in enumerate(_TOKEN.finditer(sql, _BLANK.match(sql).end())):  # type: ignore[union-attr]  # the pattern matches nothing too
        if number == index:
            return sql.count("\n", 0, match.start()) + 1
    return 1


def lower(sql: str) -> str:
    """Lower ASCII letters only: the Kelvin sign is no k to the server."""
    if sql.isascii():
        return sql.lower()
    return sql.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _without_dollar_quotes(sql: str) -> str:
    """Put an empty string of as many lines in the place of each dollar-quoted one.

    Where something is not closed the rest is left out, and a backslash stands for it, which is odd wherever it stands:
    what looks like a dollar quote inside a comment that was not understood must not hide what follows.
    """
    kept = []
    at = 0
    while True:
        start = _BEFORE_DOLLAR.match(sql, at).end()  # type: ignore[union-attr]  # the pattern matches nothing too
        kept.append(sql[at:start])
        if start == len(sql):
            return "".join(kept)
        opened = _DOLLAR.match(sql, start)
        if opened is not None:
            end = sql.find(opened[0], opened.end())
            if end < 0:
                return "".join(kept) + "\\"
            kept.append("'" + "\n" * sql.count("\n", start, end) + "'")
            at = end + len(opened[0])
        elif sql[start] == "$":  # of a parameter
            kept.append("$")
            at = start + 1
        else:
            return "".join(kept) + "\\"
