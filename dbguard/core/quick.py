"""The fast answer for most reads: one expression that can only say "plainly a read" or "look closer".

It knows a part of the language and nothing else: ASCII letters, plain strings, quoted names, parameters, common
operators, no comment, no semicolon inside. Whatever it does not match, a word that might make the text more than a read,
or a name before a parenthesis that is not on the list, sends the text the long way. It must never say yes where the long
way would not: a test asks both about every text it can get.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["plainly_read"]

_LONGEST: Final = 16384
"""Longer texts go the long way, in characters."""

_MORE: Final = r"(?:delete|for|insert|into|merge|operator|update)\b"
_PLACE: Final = r"%(?:\(\w++\))?s(?![\w$])"
_END: Final = rf"(?![-+*/<>=~!@#^&|`?]|%(?!{_PLACE[1:]}))"
_MEMBERS: Final = r"(?:\.[a-z_]\w*+)*+(?!\$)\s*+(?!\()"
_PLAIN: Final = rf"""
    [abcghjklnpqrstvwxyz_]\w*+{_MEMBERS}
  | [\s,()\[\]]++
  | (?!{_MORE}|e'|u&)[defimou]\w*+{_MEMBERS}
  | "[^"]*+"(?!")(?:\."[^"]*+"(?!"))*+\s*+(?!\()
  | (?:[=*+<>/-]|::|<=|>=|<>|!=|\|\||->>?|\#>>?|@>|<@|@@|&&|\?[|&]?|!?~\*?){_END}
  | \$\d++(?![\w$]) | {_PLACE}(?!\s*+[(/-])
  | \.(?=["*]) | \.[a-z_]\w*+(?!\$)\s*+(?!\()
  | \d++(?:\.\d++)?(?![\w$.])
  | '[^']*+'(?!')
"""
# Every match ends in a name before a parenthesis, at the end of the text (""), or in a character that is not understood.
_NAMES: Final = re.compile(
    rf"(?:{_PLAIN})*+ (?:;\s*+(?=\Z))?+ ( [a-z_]\w*+(?=\s*+\() | \Z | . )", re.ASCII | re.DOTALL | re.VERBOSE
)


def plainly_read(sql: str, names: frozenset[str]) -> bool:
    """Whether a text that begins with SELECT, VALUES or TABLE is a read beyond doubt.

    names: what may stand before a parenthesis, in lower case: harmless functions and words of syntax; none of one letter.
    """
    if len(sql) > _LONGEST or not sql.isascii():
        return False
    low = sql.lower()
    return names.issuperset(filter(None, _NAMES.findall(low))) and low.count("(") == low.count(")")
