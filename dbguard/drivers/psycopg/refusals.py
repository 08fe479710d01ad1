"""Why a connection did not come about, read off psycopg's error: it says so in words alone.

No failed dial of psycopg's carries an SQLSTATE. libpq hands on the server's message as text, in the language that the
server speaks (`lc_messages`), and its own in that of the process. So what stands here is a hint, and is treated as one:

* A server's message is known as a whole or not at all, with quotes around whatever stands for the names of others. The
  code is then the one that the server gave with it, and is judged by the same table as anybody's.
* An answer in words not known is an answer: libpq writes two spaces behind the severity of a server's message, in every
  language, and behind nothing of its own. The node lives, and nothing else is believed of it: that ends no wait, as a
  configuration that cannot work would, and trips no breaker, as silence would.
* What is not an answer is hard, but for what libpq itself does not do: it asks for TLS, or for options, in vain.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import psycopg

from dbguard.core.failure import Family
from dbguard.core.sqlstates import family as family_of
from dbguard.drivers.named import REFUSALS

__all__ = ["LEARNT", "Heard", "heard", "unknown"]

LEARNT: dict[str, str | None] = {}
"""The codes of refusals in words not known, once a server was asked for them (`asking.learn`); None: in vain."""


class Heard(NamedTuple):
    """What an error of a dial says.

    family: what it means for the node. sqlstate: the server's; None: it did not answer, or in words not known.
    words: what to tell people; never the server's text.
    """

    family: Family
    sqlstate: str | None
    words: str


def heard(error: psycopg.Error) -> Heard:
    """Say what *error*, with which a dial ended, means. Answers for every error of psycopg's."""
    said = str(error)
    answer = _ANSWERED.search(said.partition("\n")[0])
    sqlstate = error.sqlstate or _code(said) or (answer and LEARNT.get(answer[1]))
    if sqlstate is not None:
        return Heard(family_of(sqlstate, connection_died=True), sqlstate, _in_words(sqlstate))
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return Heard(Family.HARD, None, "no answer in time")
    if error.pgconn is not None and error.pgconn.needs_password:
        return Heard(Family.CONFIG, None, "it asks for a password, and there is none: look at connection.password")
    if answer:
        return Heard(Family.SOFT, None, "it refused the connection, in words that are not known here")
    for pattern, family, words in _OWN:
        if pattern.search(said):
            return Heard(family, None, words)
    if isinstance(error, psycopg.ProgrammingError | psycopg.NotSupportedError):
        return Heard(Family.CONFIG, None, "the options of the connection cannot be used")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return Heard(Family.HARD, None, "nobody answers, or the line was lost on the way")
    return Heard(Family.NEUTRAL, None, type(error).__name__)  # raised by a hook of the application's


def unknown(error: psycopg.Error) -> str | None:
    """Return the answer with which a server refused a dial, if it is in words not known; None otherwise."""
    said = str(error)
    answer = _ANSWERED.search(said.partition("\n")[0])
    return None if answer is None or error.sqlstate or _code(said) else answer[1]


def _in_words(sqlstate: str) -> str:
    if sqlstate in REFUSALS:
        return f"{REFUSALS[sqlstate]} ({sqlstate})"
    try:
        return f"{sqlstate} {psycopg.errors.lookup(sqlstate).__name__}"
    except KeyError:
        return sqlstate


_ANSWERED = re.compile(r"\S:  (\S.*)")
"""A server's message, whatever its language: libpq writes ``%s:  `` for severities alone."""

_REFUSED = [
    (re.compile(rf"FATAL:  (?:{said})$", re.MULTILINE), sqlstate)
    for said, sqlstate in (
        (r'password authentication failed for user ".*"|empty password returned by client', "28P01"),
        (r'role ".*" does not exist|role ".*" is not permitted to log in', "28000"),
        (
            r"no pg_hba\.conf entry for .*|pg_hba\.conf rejects .*|connection requires a valid client certificate",
            "28000",
        ),
        (r'\S+ authentication failed for user ".*"(?:: .*)?', "28000"),
        (r'database (?:".*"|\d+) does not exist', "3D000"),
        (r'database ".*" is not currently accepting connections|cannot connect to invalid database ".*"', "55000"),
        (r'permission denied for database .*|permission denied to set parameter ".*"', "42501"),
        (r'unrecognized configuration parameter ".*"', "42704"),
        (r'invalid value for parameter ".*": .*', "22023"),
        (r'sorry, too many clients already|too many connections for (?:role|database) ".*"', "53300"),
        (r"remaining connection slots are reserved for .*", "53300"),
        (r"the database system is (?:starting up|shutting down|in recovery mode)", "57P03"),
        (r"the database system is not (?:yet )?accepting connections", "57P03"),
        (r"terminating connection due to administrator command", "57P01"),
        (r"pgbouncer cannot connect to server", "08P01"),
    )
]
"""What PostgreSQL 13 to 18 say at the door, and the code that comes with it; the last one is PgBouncer's."""

_TLS_FILES = (
    r'(?:root certificate|certificate|private key) file ".*"'
    r"|could not (?:read|load|open|get|create|set|match|parse) [\w ]*(?:certificate|private key|SSL context)"
    r"|certificate (?:present, but not|does not match) private key"
)

_OWN = [
    (re.compile(said), family, words)
    for said, family, words in (
        (
            r"server does not support SSL, but SSL was required",
            Family.CONFIG,
            "it does not speak TLS, which connection.sslmode asks for",
        ),
        (r"SSL error: certificate verify failed", Family.CONFIG, "its certificate is not trusted"),
        (
            r'server certificate for ".*"(?: \(and \d+ other names?\))? does not match host name ".*"',
            Family.CONFIG,
            "its certificate is for another name",
        ),
        (
            r"SSL error: \S+ alert (?:certificate required|unknown ca|bad certificate)",
            Family.CONFIG,
            "it does not take the client's certificate: look at connection.sslcert",
        ),
        (
            _TLS_FILES,
            Family.CONFIG,
            "a file for TLS cannot be used: look at connection.sslrootcert, sslcert and sslkey",
        ),
        (
            r"channel binding (?:is )?required|authentication method requirement",
            Family.CONFIG,
            "it does not offer the way to log in that is asked for",
        ),
        (
            r"session is (?:not )?read-only|server is (?:not )?in hot standby mode",
            Family.ROLE,
            "it is not what target_session_attrs asks for",
        ),
        (
            r"failed to resolve host|could not translate host name",
            Family.HARD,
            "its name does not resolve",
        ),
        (
            r'^connection is bad: (?:invalid [\w "]*(?:value|number|option|range)|(?:missing|weak|could not match) )',
            Family.CONFIG,
            "the options of the connection cannot be used",
        ),
        (r"Connection refused", Family.HARD, "connection refused"),
    )
]
"""What psycopg and libpq (13 to 18) say when they did not get as far as an answer."""


def _code(said: str) -> str | None:
    """Return the SQLSTATE that came with a message which is known."""
    for pattern, sqlstate in _REFUSED:
        if pattern.search(said):
            return sqlstate
    return None
